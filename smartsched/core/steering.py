"""What comes of a request: the event that does it, and what its user is told. Pure."""

import re
from collections.abc import Iterable
from typing import Literal

from smartsched.core import words
from smartsched.core.events import (
    Event,
    JobsAdded,
    JobsCancelled,
    JobsRetried,
    RequestRefused,
    RunContinued,
    RunPaused,
)
from smartsched.core.model import Job, JobId, Timestamp
from smartsched.core.requests import Add, Answer, Cancel, Continue, Pause, Retry, Unusable
from smartsched.core.state import Closing, State, unsettled

# Jobs that wait are kept in memory; a list of more belongs into a file.
MOST_QUEUED = 20_000
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_RANGE = re.compile(r"(\d{1,15})-(\d{1,15})", re.ASCII)
_NAMED_AT_MOST = 10

Steering = Add | Cancel | Retry | Pause | Continue | Unusable


class _RefusedError(Exception):
    """Why nothing of a request is done."""


def steer(state: State, request: Steering, now: Timestamp) -> tuple[Event, Answer]:
    """What happens by it. Nothing of it, and an answer that says why, where one of its jobs is not
    there or it makes no sense as the run stands."""
    try:
        return _done(state, request, now)
    except _RefusedError as refusal:
        return refused(request.id, str(refusal), now)


def refused(request: str, why: str, now: Timestamp) -> tuple[Event, Answer]:
    return RequestRefused(now, request, why), Answer(done=False, words=why)


def _done(state: State, request: Steering, now: Timestamp) -> tuple[Event, Answer]:
    match request:
        case Add():
            return _add(state, request, now)
        case Cancel():
            return _cancel(state, request, now)
        case Retry():
            return _retry(state, request, now)
        case Pause(request_id):
            _check_goes_on(state)
            running = words.count(len(unsettled(state)), "running job")
            text = f"paused: nothing more is started; {running} may finish"
            already = "it was paused already"
            return RunPaused(now, request_id), Answer(True, already if state.paused else text)
        case Continue(request_id):
            _check_goes_on(state)
            text = "it goes on" if state.paused else "it was not paused"
            return RunContinued(now, request_id), Answer(True, text)
        case Unusable(why=why):
            raise _RefusedError(why)


def _add(state: State, request: Add, now: Timestamp) -> tuple[Event, Answer]:
    _check_goes_on(state)
    if len(state.queue) + len(request.specs) > MOST_QUEUED:
        raise _RefusedError(
            f"more than {MOST_QUEUED:,} jobs would wait in memory: wait until some are done, or"
            " start a run with the list"
        )
    first = state.next_job()
    last = first + len(request.specs) - 1
    numbers = f"job {first}" if first == last else f"jobs {first}-{last}"
    ids = list(range(first, last + 1))
    answer = Answer(True, f"added as {numbers}", {"jobs": ids})
    return JobsAdded(now, request.id, first, request.specs), answer


def _cancel(state: State, request: Cancel, now: Timestamp) -> tuple[Event, Answer]:
    going = unsettled(state) - state.cancelled
    waiting = {job.id for job in (*state.queue, *state.interrupted)}
    if request.everything:
        chosen = sorted(going | waiting)
    else:
        chosen = _chosen(state, request.jobs, going | waiting, "cancel")
    running = going.intersection(chosen)
    text = f"cancelled {_named(chosen)}"
    if running:
        text += f"; stopping {words.count(len(running), 'running job')}"
    rest = request.everything and (state.input_open or state.stays_open)
    if request.everything and state.input_open:
        text += "; what is still to be read is left out"
    answer = Answer(True, text, {"jobs": chosen})
    return JobsCancelled(now, request.id, tuple(chosen), rest), answer


def _retry(state: State, request: Retry, now: Timestamp) -> tuple[Event, Answer]:
    _check_goes_on(state)
    over = state.given_up
    if request.all_failed:
        chosen = sorted(job for job in over if over[job].outcome == "failed")
    else:
        chosen = _chosen(state, request.jobs, over.keys(), "retry")
    text = f"queued again: {_named(chosen)}" if chosen else "no job has failed"
    if request.all_failed and (forgotten := state.totals.failed - len(chosen)) > 0:
        text += f"; {forgotten:,} more failed too long ago: smartsched --resume-failed has them"
    return JobsRetried(now, request.id, tuple(chosen)), Answer(True, text, {"jobs": chosen})


def _check_goes_on(state: State) -> None:
    if state.closing is not Closing.NO:
        raise _RefusedError(
            "the run is ending and starts nothing more: smartsched --resume goes on"
        )


def _chosen(
    state: State, wanted: Iterable[str], there: Iterable[JobId], verb: Literal["cancel", "retry"]
) -> list[JobId]:
    """Numbers, ranges and names; of a range, what is there."""
    available, chosen = set(there), set()
    for text in wanted:
        if _NUMBER.fullmatch(text):
            found = {JobId(int(text))}
        elif (match := _RANGE.fullmatch(text)) is not None:
            begin, end = int(match[1]), int(match[2])
            found = {job for job in available if begin <= job <= end}
        else:
            found = {job.id for job in _known(state) if job.spec.wishes.name == text}
        if not found or not found <= available:
            raise _RefusedError(_why_not(state, text, found, verb))
        chosen |= found
    return sorted(chosen)


def _known(state: State) -> list[Job]:
    runs = (run.job for run in state.runs.values())
    ended = (ended.job for ended in state.ended.values())
    over = (each.job for each in state.given_up.values())
    return [*state.queue, *state.interrupted, *runs, *ended, *over]


def _why_not(  # a table: one case a reason
    state: State, text: str, found: set[JobId], verb: Literal["cancel", "retry"]
) -> str:
    nothing = f"nothing was {'cancelled' if verb == 'cancel' else 'queued again'}"
    if not found:
        what = f"there is no job {words.printable(text)}"
        if _RANGE.fullmatch(text):
            what = f"none of jobs {text} can be"
        return f"{what}: smartsched status lists them; {nothing}"
    job = min(found)
    if job > state.totals.accepted or job < 1:
        more = ", or it was not read from the list yet" if state.input_open else ""
        return f"there is no job {job}{more}; {nothing}"
    if job in state.cancelled:
        return f"job {job} is being cancelled already; {nothing}"
    if verb == "cancel":
        return f"job {job} is over; {nothing}"
    waiting = {queued.id for queued in (*state.queue, *state.interrupted)}
    if job in waiting | unsettled(state):
        return f"job {job} {'waits' if job in waiting else 'runs'}; {nothing}"
    return (
        f"job {job} did not fail, or too long ago (smartsched --resume-failed has those); to run"
        f" its command once more: smartsched add; {nothing}"
    )


def _named(jobs: list[JobId]) -> str:
    if not jobs:
        return "no job"
    if len(jobs) > _NAMED_AT_MOST:
        return words.count(len(jobs), "job")
    plural = "s" if len(jobs) > 1 else ""
    return f"job{plural} {', '.join(map(str, jobs))}"
