"""What becomes of a job when a run of it has ended, by the user's policy: events, no deeds."""

from collections.abc import Iterator

from smartsched.core.blame import is_blame_open, requeued_for_memory
from smartsched.core.decide import is_given_up
from smartsched.core.events import Event, Halted, JobFinished, JobRequeued
from smartsched.core.guard import to_be_withheld
from smartsched.core.metering import measured_event
from smartsched.core.model import EndedRun, Lost, Outcome, Run, Timestamp
from smartsched.core.policy import Policy
from smartsched.core.state import Closing, State, is_out_of_reach

_LONGEST_RETRY_DELAY_SECONDS = 3600.0
# A machine that goes down is no fault of the job's; one that goes down each time may be.
_LOSSES_FORGIVEN = 1
# Where a host was out of reach, that says next to nothing of the job.
_HOST_LOSSES_FORGIVEN = 5


def settle(state: State, now: Timestamp) -> Iterator[Event]:
    """The next thing to be recorded, one at a time: what is recorded changes what follows."""
    while event := _next(state, now):
        yield event


def _next(state: State, now: Timestamp) -> Event | None:
    for ended in state.ended.values():
        if (event := _settled(state, ended, now)) is not None:
            return event
    return _halted(state, now) or (to_be_withheld(state, now) if state.policy.guard else None)


def _settled(state: State, ended: EndedRun, now: Timestamp) -> Event | None:
    if ended.succeeded and (measured := measured_event(state, ended, now)) is not None:
        return measured
    if ended.job.id in state.cancelled and not ended.succeeded:
        return JobFinished(now, ended.key, "cancelled")
    if is_blame_open(state, ended, now):
        return None
    requeued = _requeued(state, ended, now)
    if requeued is None:
        return JobFinished(now, ended.key, _outcome(ended))
    run = state.runs.get(ended.key)
    return requeued if run is None else _kept_from(ended, state, run, now)


def _kept_from(ended: EndedRun, state: State, left: Run, now: Timestamp) -> Event | None:
    """What becomes of a job that is to begin anew and may not yet: two attempts must not meet, what
    the first has left behind has to go before. Out of reach it may be gone: whoever resumes the run
    finds out."""
    if not is_given_up(state, left, now) or is_out_of_reach(state, left.status.placement.host):
        return None
    return JobFinished(now, ended.key, "failed")


def _outcome(ended: EndedRun) -> Outcome:
    if ended.succeeded:
        return "ok"
    return "stopped" if ended.why_stopped == "asked" else "failed"


def _requeued(state: State, ended: EndedRun, now: Timestamp) -> JobRequeued | None:
    stops = state.closing >= Closing.STOP
    if ended.succeeded or (ended.why_stopped == "asked" and stops):
        return None
    match ended.why_stopped:
        case "contention":
            return JobRequeued(now, ended.key, "contention", now)
        case "leaving":
            return JobRequeued(now, ended.key, "leaving", now)
        case "survivor" | "asked":  # asked by a dispatcher that is no more
            return JobRequeued(now, ended.key, "survivor", now)
        case _:
            pass
    if ended.out_of_memory:
        return requeued_for_memory(state, ended, now)
    return _retried(state, ended, now)


def _retried(state: State, ended: EndedRun, now: Timestamp) -> JobRequeued | None:
    job, retries = ended.job, state.policy.retries
    if ended.was_refused:
        return None
    if isinstance(ended.ending, Lost):
        forgiven = _HOST_LOSSES_FORGIVEN if ended.ending.why else _LOSSES_FORGIVEN
        may_go_on = job.losses < max(retries, forgiven)
        return JobRequeued(now, ended.key, "lost", now) if may_go_on else None
    if job.failures < retries:
        return JobRequeued(now, ended.key, "failed", now + _delay(state.policy, job.failures))
    return None


def _delay(policy: Policy, failures: int) -> float:
    longest = max(_LONGEST_RETRY_DELAY_SECONDS, policy.retry_delay_seconds)
    return min(policy.retry_delay_seconds * 2.0 ** min(failures, 30), longest)


def _halted(state: State, now: Timestamp) -> Halted | None:
    halt = state.policy.halt
    if halt is None or state.halted or state.closing is not Closing.NO:
        return None
    why = halt.reached(state.totals, state.before)
    return None if why is None else Halted(now, why, halt.stop)
