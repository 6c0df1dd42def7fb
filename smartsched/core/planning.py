"""What goes where now, and what has to wait: the queue against what may be given away.

Jobs go in their order. The first one that does not fit yet is sure of its turn: the GPUs where it
will fit first are held for it, and those behind it may only use what is not held, or what they will
have given back by then.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from smartsched.core import words
from smartsched.core.capacity import Budget, Offer, budget_of, offers
from smartsched.core.guard import closed
from smartsched.core.model import (
    GpuKey,
    GpuSample,
    Job,
    Placement,
    RunKey,
    Running,
    Starting,
    Timestamp,
    Wait,
)
from smartsched.core.needs import Need, footprint_of, need_of
from smartsched.core.placement import fits, place
from smartsched.core.standing import why_none_is_free, why_not
from smartsched.core.state import State

NONE_LEFT = "every free GPU is given to an earlier command"
# A job that failed is tried on another GPU; for so long it waits for one that runs of ours hold.
WAIT_FOR_ANOTHER_GPU_SECONDS = 300.0
# A run that has taken longer than its siblings is expected to take so much more of its time.
_OVERDUE = 0.1


@dataclass(slots=True)
class Plan:
    starts: list[tuple[Job, Placement]] = field(default_factory=list)
    impossible: list[tuple[Job, str]] = field(default_factory=list)  # and why
    waiting: Wait | None = None  # None: nothing that is queued has to wait


@dataclass(frozen=True, slots=True)
class _Held:
    """GPUs for a job that waits, and when it is expected to have them all."""

    gpus: frozenset[GpuKey]
    until: Timestamp


def plan(state: State, now: Timestamp, released: Collection[tuple[GpuKey, RunKey]] = ()) -> Plan:
    """By all that was seen so far. `released`: what is given back in this very moment."""
    made = Plan()
    left = offers(state, now, released)
    budget = budget_of(state, left, now)
    held: _Held | None = None
    for job in state.queue:
        if job.not_before > now:
            made.waiting = made.waiting or Wait("commands that failed are tried again later")
            continue
        if budget.runs < 1 or not (left or state.has_gpuless):
            made.waiting = _why_nothing_goes(state, made, budget, now)
            break
        need = need_of(state, job, now)
        if (why := why_impossible(state, need)) is not None:
            made.impossible.append((job, why))
            continue
        allowed = [offer for offer in left if _may_use(offer, need, held, now)]
        match place(allowed, need, budget, state.policy, _to_avoid(state, job, now)):
            case Placement() as placement:
                made.starts.append((job, placement))
                left = [offer for offer in left if _has_room(offer, state)]
            case Wait() as wait:
                made.waiting = made.waiting or wait
                if held is None and need.gpus and not job.failed_on:
                    held = _hold_for(state, need, left, now)
                    budget.gpus -= need.gpus  # it is sure of that part of the caps as well
    return made


def _why_nothing_goes(state: State, made: Plan, budget: Budget, now: Timestamp) -> Wait:
    if budget.runs < 1:
        return Wait("as many jobs run as --jobs allows")
    return made.waiting or Wait(why_none_is_free(state, now) or NONE_LEFT)


def _has_room(offer: Offer, state: State) -> bool:
    return offer.left_bytes > 0 and offer.runs < state.policy.most_per_gpu


def _may_use(offer: Offer, need: Need, held: _Held | None, now: Timestamp) -> bool:
    if held is None or offer.key not in held.gpus:
        return True
    return need.seconds is not None and now + need.seconds <= held.until < float("inf")


def _hold_for(state: State, need: Need, left: list[Offer], now: Timestamp) -> _Held:
    """The GPUs where it will fit first, by what the siblings of those that run there took."""
    by_key = {offer.key: offer for offer in left}
    when: dict[GpuKey, Timestamp] = {}
    for key in state.gpus:
        offer = by_key.get(key)
        if offer is not None and fits(offer, need, state.policy):
            when[key] = now
        elif key in state.holds and not closed(state) & {key}:
            when[key] = max(_expected_end(state, hold.run, now) for hold in state.holds_on(key))
    soonest = sorted(when, key=lambda key: (when[key], key))[: need.gpus]
    if len(soonest) < need.gpus:
        return _Held(frozenset(soonest), float("inf"))
    return _Held(frozenset(soonest), max(when[key] for key in soonest))


def _expected_end(state: State, key: RunKey, now: Timestamp) -> Timestamp:
    run = state.runs.get(key)
    if run is None:
        return now  # its memory is about to come back
    known = footprint_of(state, run.job)
    if known is None or not isinstance(run.status, Starting | Running):
        return now if known is not None else float("inf")
    return max(run.status.since + known.mean_seconds, now + _OVERDUE * known.mean_seconds)


def why_impossible(state: State, need: Need) -> str | None:
    """Why no GPU that comes free will ever do; None: one may."""
    if not state.gpus or not need.gpus:
        return None
    there = len(state.gpus)
    if need.gpus > there:
        return f"it needs {need.gpus} GPUs, and there are {there} to choose from"
    most = state.policy.most_gpus.most()
    if most is not None and need.gpus > most:
        return f"it needs {need.gpus} GPUs, and --max-gpus allows {most}"
    keep = state.policy.leave_free.fewest() or 0
    if need.gpus + keep > there:
        return f"it needs {need.gpus} of {there} GPUs, and --leave-free keeps {keep}"
    return _why_too_large(state, need.asked_bytes)


def _why_too_large(state: State, asked_bytes: int | None) -> str | None:
    readings = [watch.latest for watch in state.gpus.values()]
    sizes = [gpu.memory_total_bytes for gpu in readings if isinstance(gpu, GpuSample)]
    if asked_bytes is None or len(sizes) < len(readings) or asked_bytes <= max(sizes):
        return None
    largest = words.size(max(sizes))
    return f"it needs {words.size(asked_bytes)} on a GPU, and the largest has {largest}"


def _to_avoid(state: State, job: Job, now: Timestamp) -> Collection[GpuKey]:
    """Where it failed, as long as there is somewhere else where it may soon be tried."""
    if not job.failed_on or now >= job.requeued_at + WAIT_FOR_ANOTHER_GPU_SECONDS:
        return ()
    elsewhere = (key for key in state.gpus if key not in job.failed_on and key not in closed(state))
    if any(
        key in state.holds or not why_not(state, key, state.gpus[key], now) for key in elsewhere
    ):
        return job.failed_on
    return ()
