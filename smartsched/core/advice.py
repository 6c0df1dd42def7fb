"""What a run that did not pack could have had: a line for its end."""

from collections.abc import Iterable

from smartsched.core import words
from smartsched.core.capacity import MARGIN, MOST_PERCENT
from smartsched.core.events import RunMeasured
from smartsched.core.footprint import with_growth
from smartsched.core.model import GpuSample
from smartsched.core.state import State

_FEWEST_RUNS = 3
_MOST = 8


def advice(state: State, measured: Iterable[RunMeasured]) -> str | None:
    """How many jobs a GPU would take by what these runs used; None: one, or nobody can tell."""
    runs = list(measured)
    sizes = [
        watch.latest.memory_total_bytes
        for watch in state.gpus.values()
        if isinstance(watch.latest, GpuSample)
    ]
    if state.policy.jobs_per_gpu != 1 or len(runs) < _FEWEST_RUNS or not sizes:
        return None
    peak = max(run.peak_bytes for run in runs)
    percents = [run.utilization_percent for run in runs if run.utilization_percent is not None]
    if not percents:
        return None
    by_memory = int((1 - MARGIN) * min(sizes) / with_growth(peak))
    by_time = int(MOST_PERCENT / max(*percents, 1.0))
    fit = min(by_memory, by_time, _MOST)
    if fit < 2:  # one is what there was
        return None
    memory, busy = words.percent(100 * peak / min(sizes)), words.percent(max(percents))
    return (
        f"the jobs took up to {memory} of a GPU's memory and {busy} of its time:"
        f" --jobs-per-gpu {fit} would fit, --jobs-per-gpu auto finds out by itself"
    )
