"""What a run could have had: a line for its end, and what a report says besides."""

from collections.abc import Collection, Iterable, Mapping

from smartsched.core import words
from smartsched.core.capacity import MARGIN, MOST_PERCENT
from smartsched.core.events import RunMeasured
from smartsched.core.footprint import with_growth
from smartsched.core.model import GpuSample
from smartsched.core.shares import Share
from smartsched.core.state import State

_FEWEST_RUNS = 3
_MOST = 8
_WORTH_A_WORD = 0.1  # of all GPU time


def advice(state: State, measured: Iterable[RunMeasured]) -> str | None:
    """How many jobs a GPU would take by what these runs used; None: one, or nobody can tell."""
    if state.policy.jobs_per_gpu != 1:
        return None
    latest = [watch.latest for watch in state.gpus.values()]
    sizes = [gpu.memory_total_bytes for gpu in latest if isinstance(gpu, GpuSample)]
    return what_would_fit(sizes, measured)


def what_would_fit(sizes: Collection[int], measured: Iterable[RunMeasured]) -> str | None:
    """Of runs that had their GPUs for themselves. `sizes`: of the GPUs, in bytes."""
    runs = list(measured)
    if len(runs) < _FEWEST_RUNS or not sizes:
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


def advice_on_time(seconds: Mapping[Share, float], jobs_wanted: bool) -> list[str]:
    """By what the GPU time went to. `jobs_wanted`: jobs waited while they could have run."""
    whole = sum(seconds.values())
    if whole <= 0 or not jobs_wanted:
        return []
    said: dict[Share, str] = {
        "capped": "{} of the GPU time was free, and caps of yours (--max-gpus, --leave-free,"
        " --jobs) kept it so: they may be larger, at least at night (--max-gpus 2@09-18,6@18-09)",
        "window": "{} of the GPU time went by until the window was over: a shorter --free-for"
        " starts sooner, and meets more often somebody who was away for a moment",
        "held": "{} of the GPU time was free, and what waited could not use it: jobs that need"
        " fewer GPUs, or --job-mem closer to what they use, fit sooner",
        "claimed": "{} of the GPU time was claimed by other smartsched of this box",
        "unknown": "for {} of the GPU time GPUs could not be read, or were taken for broken: ask"
        " the administrator, or --exclude them",
    }
    return [
        text.format(words.percent(100 * seconds[share] / whole))
        for share, text in said.items()
        if seconds[share] >= _WORTH_A_WORD * whole
    ]
