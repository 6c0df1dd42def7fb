"""A run that ran out of a GPU's memory: whose fault it was, and what its job is given next time."""

from smartsched.core import words
from smartsched.core.events import JobRequeued
from smartsched.core.metering import strays_at, strays_bytes
from smartsched.core.model import EndedRun, GpuSample, PlacedGpu, Timestamp
from smartsched.core.state import State
from smartsched.core.strangers import SLACK_BYTES

# For so long the GPU is looked at after the end, to see who has its memory now.
_LOOK_FOR_SECONDS = 5.0
# What a job is given that ran out of memory, over the most it was seen to hold.
_MORE = 1.5
_PAUSE_SECONDS = 2.0  # before a job is tried again that strangers left no memory


def is_blame_open(state: State, ended: EndedRun, now: Timestamp) -> bool:
    """Whether a sample from after the end is still to come that will say who holds the memory."""
    if not ended.out_of_memory or now >= blame_ends_at(ended):
        return False
    watches = [state.gpus.get(gpu.key) for gpu in ended.placement.gpus]
    return any(watch is None or watch.taken_at < ended.ended_at for watch in watches)


def blame_ends_at(ended: EndedRun) -> Timestamp:
    """By then it is settled by what is known."""
    return ended.ended_at + _LOOK_FOR_SECONDS


def requeued_for_memory(state: State, ended: EndedRun, now: Timestamp) -> JobRequeued | None:
    """The next try; None: it had the GPU for itself, or has been tried often enough."""
    if any(_strangers_grew(state, gpu) for gpu in ended.placement.gpus):
        return JobRequeued(now, ended.key, "strangers_grew", now + _PAUSE_SECONDS)
    job = ended.job
    if was_alone(state, ended) or job.ooms >= state.policy.oom_retries:
        return None
    is_last = job.needs_bytes is not None or job.ooms + 1 >= state.policy.oom_retries
    held = _most_held(state, ended)
    is_last = is_last or not held  # nobody knows what more would be
    needs = None if is_last else round(held * _MORE)
    return JobRequeued(now, ended.key, "packed_too_tightly", now, needs, alone=is_last)


def was_alone(state: State, ended: EndedRun) -> bool:
    """Whether no other run of ours was on its GPUs, given to it or not."""
    meter = state.meters.get(ended.key)
    if meter is not None and not meter.was_alone:
        return False
    watches = [state.gpus.get(gpu.key) for gpu in ended.placement.gpus]
    if any(watch is not None and strays_at(state, watch) for watch in watches):
        return False
    others = (state.holds.get(gpu.key, {}).keys() - {ended.key} for gpu in ended.placement.gpus)
    return not any(others)


def peak_bytes(state: State, ended: EndedRun) -> int:
    """The most that it was seen to hold on one GPU."""
    meter = state.meters.get(ended.key)
    return meter.peak_bytes if meter is not None else 0


def words_on_memory(state: State, ended: EndedRun) -> str:
    """How much it had of how much, ": it held 20.5 of 24 GiB"; "" if nobody saw it."""
    watches = [state.gpus.get(gpu.key) for gpu in ended.placement.gpus]
    sizes = [
        watch.latest.memory_total_bytes
        for watch in watches
        if watch is not None and isinstance(watch.latest, GpuSample)
    ]
    peak = peak_bytes(state, ended)
    if not sizes or not peak:
        return ""
    beside = "" if was_alone(state, ended) else ", beside other jobs of this run"
    return f": it was seen to hold {words.size(peak)} of {words.size(min(sizes))}{beside}"


def _most_held(state: State, ended: EndedRun) -> int:
    from smartsched.core.oom import wanted_bytes  # only failures need it

    promised = max((gpu.reserved_bytes or 0 for gpu in ended.placement.gpus), default=0)
    wanted = wanted_bytes(ended.out_of_memory) or 0
    return max(promised, peak_bytes(state, ended) + wanted)


def _strangers_grew(state: State, gpu: PlacedGpu) -> bool:
    watch = state.gpus.get(gpu.key)
    if watch is None or watch.use is None or not isinstance(watch.latest, GpuSample):
        return False
    if watch.is_unattributed:
        return False
    theirs = watch.use.memory_bytes - strays_bytes(state, watch)
    return theirs > gpu.strangers_bytes + SLACK_BYTES
