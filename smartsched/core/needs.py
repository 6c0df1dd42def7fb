"""What a job needs of a GPU: as the user said, as its siblings used, or as it turned out."""

from collections.abc import Iterator

from msgspec import Struct

from smartsched.core.footprint import CONTEXT_BYTES, Footprint, Meter, with_growth
from smartsched.core.model import Asked, Job, Running, Timestamp
from smartsched.core.policy import Policy
from smartsched.core.state import State

# Beyond what siblings held that have ended: runs of one shape differ by a few percent.
_BEYOND_ENDED = 1.10
UNKNOWN_PERCENT = 100.0


class Need(Struct, frozen=True):
    gpus: int
    memory_bytes: int | None  # on each of them; None: nobody knows, so it gets them for itself
    asked_bytes: int | None  # of these, what the user said; None: nothing
    percent: float  # of each of them that it will keep busy
    seconds: float | None  # at the longest, by its siblings; None: nobody knows
    least_bytes: int = 0  # that others of its shape had, or that did not suffice
    shares: int | None = None  # so many jobs are to share a GPU, whatever they use; None: not so


def need_of(state: State, job: Job, now: Timestamp) -> Need:
    policy = state.policy
    gpus, asked = asked_of(policy, job.spec.asked)
    known = footprint_of(state, job)
    seconds = known.longest_seconds if known is not None else None
    percent = _percent(state, job, known)
    least = max(known.peak_bytes if known is not None else 0, job.needs_bytes or 0)
    if job.alone:
        return Need(gpus, None, asked, UNKNOWN_PERCENT, seconds, least)
    wanted = asked
    if wanted is None and policy.packs_by_learning:
        wanted = learned_bytes(state, job, now)
    if job.needs_bytes is not None:
        wanted = max(job.needs_bytes, wanted or 0)
    shares = policy.most_per_gpu if wanted is None and policy.shares_evenly else None
    return Need(gpus, wanted, asked, percent, seconds, least, shares)


def asked_of(policy: Policy, asked: Asked) -> tuple[int, int | None]:
    """How many GPUs, and what the user said of the memory on each of them; None: nothing."""
    gpus = policy.gpus_per_job if asked.gpus is None else asked.gpus
    of_all = policy.job_memory if isinstance(policy.job_memory, int) else None
    return gpus, of_all if asked.memory_bytes is None else asked.memory_bytes


def footprint_of(state: State, job: Job) -> Footprint | None:
    return state.footprints.get(job.spec.shape)


def _percent(state: State, job: Job, known: Footprint | None) -> float:
    if job.spec.wishes.utilization_percent is not None:
        return job.spec.wishes.utilization_percent
    if state.policy.job_utilization_percent is not None:
        return state.policy.job_utilization_percent
    if known is not None and known.utilization_percent is not None:
        return known.utilization_percent
    running = [p for meter in _siblings(state, job) if (p := meter.utilization_percent) is not None]
    return max(running, default=UNKNOWN_PERCENT)


def learned_bytes(state: State, job: Job, now: Timestamp) -> int | None:
    """What its siblings had, and some more; None: the first of its shape has not shown it yet."""
    known = footprint_of(state, job)
    running = _running_peak(state, job, now)
    if known is not None:
        return round(max(known.peak_bytes * _BEYOND_ENDED, running)) + CONTEXT_BYTES // 2
    return None if running == 0 else with_growth(running)


def _running_peak(state: State, job: Job, now: Timestamp) -> int:
    siblings = (m for m in _siblings(state, job) if m.teaches and m.has_ramped(now))
    return max((meter.peak_bytes for meter in siblings), default=0)


def _siblings(state: State, job: Job) -> Iterator[Meter]:
    """Of runs of its shape that go on."""
    shape = job.spec.shape
    for key, run in state.runs.items():
        meter = state.meters.get(key)
        if meter is None or not isinstance(run.status, Running):
            continue
        if run.job.spec.shape == shape:
            yield meter
