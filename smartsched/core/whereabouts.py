"""Whether runs are on the GPUs that they were given: what is worth a word to the user, once."""

from collections.abc import Iterator
from typing import NamedTuple

from smartsched.core import words
from smartsched.core.contention import strangers_at
from smartsched.core.freeness import Busy, culprits
from smartsched.core.model import GpuKey, Run, Running, Timestamp
from smartsched.core.selection import label
from smartsched.core.standing import current_verdict, is_in_use
from smartsched.core.state import State

# A job that has not touched its GPU for so long may need none, or not have found it.
UNUSED_FOR_SECONDS = 300.0


class Remark(NamedTuple):
    about: object  # what has been said once is not said again
    text: str


def remarks(state: State, now: Timestamp) -> Iterator[Remark]:
    """All that is so now."""
    for run in state.runs.values():
        if not isinstance(run.status, Running):
            continue
        if (remark := _misplaced(state, run)) is not None:
            yield remark
        if now >= run.status.since + UNUSED_FOR_SECONDS and is_unused(state, run, now):
            lasted = words.duration(UNUSED_FOR_SECONDS)
            gpus = run.status.placement.labels
            text = f"{run.job.words} has not used GPU {gpus} for {lasted}: does it need one?"
            yield Remark(("unused", run.key), f"{text} (# smartsched: gpus=0)")
    for gpu in state.holds:
        yield from _about(state, gpu, now)


def looks_again_at(state: State) -> Timestamp:
    """When there may be more to say, though nothing happens."""
    running = (run.status.since for run in state.runs.values() if isinstance(run.status, Running))
    return min((since + UNUSED_FOR_SECONDS for since in running), default=float("inf"))


def is_unused(state: State, run: Run, now: Timestamp) -> bool:
    if not isinstance(run.status, Running) or not run.status.placement.gpus:
        return False
    meter = state.meters.get(run.key)
    seen = meter is not None and (meter.samples > 0 or meter.is_blind or bool(meter.elsewhere))
    return not seen and meter is not None and now >= run.status.since + UNUSED_FOR_SECONDS


def _misplaced(state: State, run: Run) -> Remark | None:
    meter = state.meters.get(run.key)
    if meter is None or not meter.elsewhere:
        return None
    there = ",".join(_name(state, gpu) for gpu in sorted(meter.elsewhere))
    given = run.status.placement.labels or "none"
    text = (
        f"{run.job.words} uses GPU {there}, and was given {given}:"
        " does it set CUDA_VISIBLE_DEVICES, or choose a device by number?"
    )
    return Remark(("misplaced", run.key), text)


def _about(state: State, gpu: GpuKey, now: Timestamp) -> Iterator[Remark]:
    watch = state.gpus.get(gpu)
    if watch is None or not (watch.is_unattributed or watch.strangers) or not is_in_use(state, gpu):
        return
    name = label(watch.latest, with_host=state.policy.spans_hosts)
    if watch.is_unattributed:
        text = (
            "the driver does not say which memory is our jobs' (as in a container, with MIG or in"
            f" WSL): on GPU {name} all use counts as other people's, and nothing is packed there"
        )
        yield Remark("unattributed", text)
        return
    there = strangers_at(state, watch)
    if there and isinstance(current_verdict(state, watch, now), Busy):
        text = f"others came to GPU {name}, where jobs run: {words.printable(culprits(there))}"
        if state.policy.on_contention == "drain":
            text += "; nothing more is started there"
        yield Remark(("strangers", gpu, min(p.pid for p in there)), text)


def _name(state: State, gpu: GpuKey) -> str:
    """Also of one that the user has not chosen, but a job of his."""
    watch = state.gpus.get(gpu)
    if watch is not None:
        return label(watch.latest, with_host=state.policy.spans_hosts)
    index = state.cards.get(gpu.host, {}).get(gpu)
    return gpu.uuid if index is None else str(index)
