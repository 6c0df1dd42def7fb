"""Every legal step of what we believe: what happened to jobs changes State here, nowhere else.

A transition that is not listed here is a bug and raises. Nothing is decided here: what follows from
the user's policy is an event of its own, so that an old journal means the same under any policy.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from smartsched.core.events import (
    DrainRequested,
    Event,
    FailuresDropped,
    GpuReleased,
    GpuWithheld,
    Halted,
    InputEnded,
    InputRead,
    JobAccepted,
    JobFinished,
    JobRecalled,
    JobRequeued,
    JobsAdded,
    JobsCancelled,
    JobsRetried,
    LineRejected,
    ListReplaced,
    OptionsSet,
    RequestRefused,
    RunAdopted,
    RunBegan,
    RunCleared,
    RunClosed,
    RunContinued,
    RunExited,
    RunKilled,
    RunLaunched,
    RunMeasured,
    RunPaused,
    RunPlaced,
    RunPostponed,
    RunResumed,
    RunRevoked,
    RunStopping,
    StopRequested,
    WaitTimedOut,
)
from smartsched.core.footprint import NO_RUNS
from smartsched.core.guard import keep_record, withhold
from smartsched.core.model import (
    EndedRun,
    GivenUp,
    GpuKey,
    Job,
    JobId,
    Lingering,
    NotStarted,
    Placement,
    Run,
    RunKey,
    Running,
    RunStatus,
    Starting,
    Stopping,
    Timestamp,
)
from smartsched.core.policy import Policy
from smartsched.core.state import (
    Closing,
    State,
    dequeue,
    enqueue,
    give_up,
    note_start,
    postpone,
    unsettled,
)
from smartsched.core.strangers import Hold
from smartsched.core.tag import tag_of
from smartsched.errors import IllegalTransitionError

MOST_SHAPES = 2000  # of commands, of which is kept what they used


def replay(policy: Policy, events: Iterable[Event]) -> State:
    state = State(policy)
    for event in events:
        apply(state, event)
    return state


def apply(state: State, event: Event) -> None:  # noqa: C901, PLR0912  # a table: one case an event
    """Take in what happened. Raises IllegalTransitionError and changes nothing if it cannot be."""
    match event:  # those first that every job has
        case JobAccepted():
            _accept(state, event)
        case RunPlaced() | RunLaunched() | RunExited():
            _apply_to_run(state, event)
        case JobFinished() | JobRequeued():
            _settle(state, event)
        case GpuReleased(_, gpu, run):
            _release(state, event, gpu, run)
        case RunBegan(place=place):
            state.place = place
        case RunClosed():
            pass
        case RunResumed():
            _resume(state, event)
        case JobRecalled():
            _recall(state, event)
        case LineRejected(read_to=read_to):
            state.totals.rejected += 1
            state.read_to = read_to
        case InputRead(_, number, size_bytes):
            state.whole_inputs[number] = size_bytes
        case InputEnded():
            _end_input(state)
        case ListReplaced():
            _set_aside(state)
        case FailuresDropped(jobs=jobs):
            if len(jobs) > state.totals.failed:
                raise IllegalTransitionError(event, state.totals)
            state.totals.failed -= len(jobs)
            state.before.failed -= len(jobs)
            state.totals.dropped += len(jobs)
            for job in jobs:
                state.given_up.pop(job, None)
        case JobsAdded():
            _add(state, event)
        case JobsCancelled():
            _cancel(state, event)
        case JobsRetried():
            _retry(state, event)
        case RunPaused():
            state.paused = True
        case RunContinued():
            state.paused = False
        case OptionsSet() | RequestRefused():
            pass
        case DrainRequested():
            state.closing = max(state.closing, Closing.DRAIN)
        case StopRequested():
            state.closing = Closing.KILL if state.closing >= Closing.STOP else Closing.STOP
        case Halted(stop=stop):
            state.halted = True
            state.closing = max(state.closing, Closing.STOP if stop else Closing.DRAIN)
        case WaitTimedOut():
            state.wait_timed_out = True
            state.closing = max(state.closing, Closing.DRAIN)
        case RunMeasured():
            _learn(state, event)
        case GpuWithheld():
            withhold(state, event)
        case _:
            _apply_to_run(state, event)


_RunEvent = (
    RunPlaced
    | RunLaunched
    | RunAdopted
    | RunPostponed
    | RunRevoked
    | RunStopping
    | RunKilled
    | RunExited
    | RunCleared
)


def _apply_to_run(state: State, event: _RunEvent) -> None:  # noqa: C901, PLR0912  # a table
    """The run's life, one case per legal step."""
    run = state.runs.get(event.run)
    match run.status if run is not None else None, event:
        case None, RunPlaced():
            _place(state, event)
        case Starting(_, placement), RunLaunched(at, key, process, log):
            _set_status(state, key, Running(at, placement, process, log))
            _amend_holds(state, state.runs[key], pid=process.pid)
            state.ever_launched = state.ever_launched or bool(placement.gpus)
            note_start(state, placement.host)
        case Running() as running, RunAdopted(_, key, since):
            _set_status(state, key, replace(running, since=since))
        case Stopping() as stopping, RunAdopted(_, key, since):
            _set_status(state, key, replace(stopping, started_at=since))
        case ((Starting() | Running() | Stopping()), RunPostponed(at, key, why)):
            run = state.runs.pop(key)
            _take_back(state, run.job)
            _drop_holds(state, run)
            state.meters.pop(key, None)
            postpone(state, run.status.placement.host, at, why)
        case Starting(), RunRevoked(_, key):
            run = state.runs.pop(key)
            _take_back(state, run.job)
            _drop_holds(state, run)
        case Starting() as starting, RunExited(at, key, NotStarted() as ending):
            run = state.runs.pop(key)
            state.last_ending = ending
            state.ended[key] = EndedRun(
                key, run.job, starting.placement, starting.since, at, ending, None, None
            )
            _drop_holds(state, run)
        case Running(since, placement, process, log), RunStopping(at, key, why):
            stopping = Stopping(at, placement, process, log, since, why, killed_at=None)
            _set_status(state, key, stopping)
            if why == "contention":
                _remember_for_whom(state, placement)
        case Stopping(killed_at=None) as stopping, RunKilled(at, key):
            _set_status(state, key, replace(stopping, killed_at=at))
        case (Running() | Stopping()) as living, RunExited():
            _end(state, event, living)
        case Lingering(asked=False) as lingering, RunStopping(_, key):
            _set_status(state, key, replace(lingering, asked=True))
        case Lingering(asked=True, killed_at=None) as lingering, RunKilled(at, key):
            _set_status(state, key, replace(lingering, killed_at=at))
        case Lingering(), RunCleared(at, key):
            _amend_holds(state, state.runs.pop(key), cleared_at=at)
        case status, _:
            raise IllegalTransitionError(event, status)


def _accept(state: State, event: JobAccepted) -> None:
    if event.job != state.next_job():
        raise IllegalTransitionError(event, state.totals)
    state.totals.accepted += 1
    _enqueue_last(state, Job(event.job, event.spec), event)


def _add(state: State, event: JobsAdded) -> None:
    if event.first != state.next_job():
        raise IllegalTransitionError(event, state.totals)
    for spec in event.specs:
        job = Job(state.next_job(), spec, is_added=True)
        state.totals.accepted += 1
        _enqueue_behind_all(state, job, event.at)


def _cancel(state: State, event: JobsCancelled) -> None:
    gone = set(event.jobs)
    going = unsettled(state) & gone
    queued = [job for job in state.queue if job.id in gone]
    stopped = [job for job in state.interrupted if job.id in gone]
    if len(going) + len(queued) + len(stopped) != len(gone):
        raise IllegalTransitionError(event, sorted(gone - going))
    state.cancelled |= going
    for job in queued:
        dequeue(state, job)
    state.interrupted = [job for job in state.interrupted if job.id not in gone]
    state.totals.stopped -= len(stopped)
    for job in (*queued, *stopped):
        state.totals.cancelled += 1
        give_up(state, GivenUp(job, "cancelled"))
    if event.rest:
        state.all_cancelled = True
        _end_input(state)


def _retry(state: State, event: JobsRetried) -> None:
    if unknown := set(event.jobs) - state.given_up.keys():
        raise IllegalTransitionError(event, sorted(unknown))
    for record in state.records.values():  # it gets a new chance, whatever comes of that GPU
        failures = (each for each in record.quick_failures if each.job.id not in event.jobs)
        record.quick_failures = tuple(failures)
    for number in event.jobs:
        given_up = state.given_up.pop(number)
        job, totals = given_up.job, [state.totals]
        if given_up.earlier:
            totals.append(state.before)
        for each in totals:
            if given_up.outcome == "failed":
                each.failed -= 1
            else:
                each.cancelled -= 1
        again = Job(job.id, job.spec, job.attempts, is_added=job.is_added)
        _enqueue_behind_all(state, again, event.at)


def _end_input(state: State) -> None:
    state.input_open = False
    state.totals.dropped += len(state.set_aside)
    state.dropped |= state.set_aside
    state.set_aside.clear()


def _recall(state: State, event: JobRecalled) -> None:
    if not _may_be_recalled(state, event.job):
        raise IllegalTransitionError(event, state.totals)
    if event.job in state.unnamed:
        state.unnamed.remove(event.job)
        state.read_to = event.read_to or state.read_to
    elif event.job in state.set_aside:
        job = state.set_aside.pop(event.job)
        _enqueue_last(state, replace(job, spec=event.spec), event)
    else:  # it had failed for good
        state.totals.failed -= 1
        state.before.failed -= 1
        state.given_up.pop(event.job, None)
        _enqueue_last(state, Job(event.job, event.spec, event.attempts), event)


def _enqueue_last(state: State, job: Job, event: JobAccepted | JobRecalled) -> None:
    state.read_to = event.read_to or state.read_to
    _enqueue_behind_all(state, job, event.at)


def _enqueue_behind_all(state: State, job: Job, at: Timestamp) -> None:
    enqueue(state, replace(job, rank=state.next_rank))
    state.next_rank += 1
    if state.waiting_since is None:
        state.waiting_since = at


def _may_be_recalled(state: State, job: JobId) -> bool:
    """Whether it waits to be named by the new list, or has failed, as far as is known here."""
    if job in state.set_aside or job in state.unnamed:
        return True
    alive = {run.job for run in (*state.runs, *state.ended)}
    waiting = {queued.id for queued in (*state.queue, *state.interrupted)}
    return (
        0 < job <= state.totals.accepted and job not in alive | waiting and state.totals.failed > 0
    )


def _set_aside(state: State) -> None:
    of_the_list = [job for job in state.queue if not job.is_added]
    state.set_aside |= state.dropped | {job.id: job for job in of_the_list}
    for job in of_the_list:
        dequeue(state, job)
    state.dropped.clear()
    state.totals.dropped = 0
    going = [run.job for run in state.runs.values()] + [end.job for end in state.ended.values()]
    state.unnamed = {job.id for job in going if not job.is_added}
    state.input_open, state.read_to = True, None
    state.whole_inputs.clear()
    state.totals.rejected = state.before.rejected = 0  # those lines were of the other list


def _resume(state: State, event: RunResumed) -> None:
    """Another dispatcher, perhaps after days, or by a wall clock that was set back: nothing that
    is known can have happened later than now."""
    at = event.at
    state.place = event.place
    state.input_open = state.input_open or event.failed_too
    for key, run in state.runs.items():
        job = _at_once(run.job, at)  # should it turn out that it was never started
        state.runs[key] = replace(run, job=job, status=_not_later(run.status, at))
    for key, ended in state.ended.items():
        started_at, ended_at = min(ended.started_at, at), min(ended.ended_at, at)
        state.ended[key] = replace(ended, started_at=started_at, ended_at=ended_at)
    for holds in state.holds.values():
        for key, hold in holds.items():
            cleared_at = None if hold.cleared_at is None else min(hold.cleared_at, at)
            holds[key] = replace(hold, since=min(hold.since, at), cleared_at=cleared_at)
    for job in state.interrupted:
        enqueue(state, job)
    state.totals.stopped -= len(state.interrupted)
    state.interrupted.clear()
    state.queue = deque(_at_once(job, at) for job in state.queue)
    state.closing, state.halted, state.wait_timed_out = Closing.NO, False, False
    state.paused = state.all_cancelled = False
    for number, given_up in state.given_up.items():
        state.given_up[number] = replace(given_up, earlier=True)
    state.waiting_since = at if state.queue else None
    state.ever_launched = bool(state.runs)
    state.postponed.clear()
    state.records.clear()
    state.withheld.clear()
    state.before = replace(state.totals)


def _at_once(job: Job, at: Timestamp) -> Job:
    return replace(job, not_before=float("-inf"), requeued_at=min(job.requeued_at, at))


def _not_later(status: RunStatus, at: Timestamp) -> RunStatus:
    status = replace(status, since=min(status.since, at))
    if isinstance(status, Stopping):
        status = replace(status, started_at=min(status.started_at, at))
    match status:
        case Stopping(killed_at=float()) | Lingering(killed_at=float()):
            return replace(status, killed_at=at)  # it is killed once more, and may be gone by then
        case Stopping() | Lingering(asked=True):
            return replace(status, since=at)  # it is asked once more, and given time once more
        case _:
            return status


def _place(state: State, event: RunPlaced) -> None:
    job = next((queued for queued in state.queue if queued.id == event.run.job), None)
    gpus = event.placement.gpus
    if job is None or event.run.attempt != job.attempts + 1:
        raise IllegalTransitionError(event, job)
    if len({gpu.key for gpu in gpus}) != len(gpus):
        raise IllegalTransitionError(event, gpus)
    dequeue(state, job)
    job = replace(job, attempts=event.run.attempt)
    state.runs[event.run] = Run(event.run, job, Starting(event.at, event.placement))
    for gpu in gpus:
        state.holds.setdefault(gpu.key, {})[event.run] = Hold(
            run=event.run,
            tag=tag_of(state.policy.run_id, event.run),
            since=event.at,
            unexplained_before_bytes=gpu.unexplained_bytes,
            pid=None,
            cleared_at=None,
            reserved_bytes=gpu.reserved_bytes,
            percent=gpu.percent,
        )


def _take_back(state: State, job: Job) -> None:
    """It did not begin after all."""
    if job.id in state.cancelled:
        state.cancelled.remove(job.id)
        state.totals.cancelled += 1
        give_up(state, GivenUp(job, "cancelled"))
    else:
        enqueue(state, job)


def _remember_for_whom(state: State, placement: Placement) -> None:
    """A run gives way just once to whoever came."""
    for gpu in placement.gpus:
        if (watch := state.gpus.get(gpu.key)) is not None:
            watch.given_way_to |= watch.strangers.keys()


def _set_status(state: State, key: RunKey, status: RunStatus) -> None:
    run = state.runs[key]
    state.runs[key] = Run(key, run.job, status)


def _end(state: State, event: RunExited, living: Running | Stopping) -> None:
    run = state.runs[event.run]
    ended = EndedRun(
        key=event.run,
        job=run.job,
        placement=living.placement,
        started_at=living.started_at if isinstance(living, Stopping) else living.since,
        ended_at=event.at,
        ending=event.ending,
        why_stopped=living.why if isinstance(living, Stopping) else None,
        log=living.log,
        out_of_memory=event.out_of_memory,
    )
    state.ended[event.run] = ended
    state.totals.gpu_seconds += ended.seconds * len(living.placement.gpus)
    state.last_ending = event.ending
    if event.leftovers:
        lingering = Lingering(event.at, living.placement, asked=False, killed_at=None)
        _set_status(state, event.run, lingering)
    else:
        del state.runs[event.run]
        _amend_holds(state, run, cleared_at=event.at)


def _settle(state: State, event: JobFinished | JobRequeued) -> None:
    ended = state.ended.pop(event.run, None)
    if ended is None:
        raise IllegalTransitionError(event, None)
    is_cancelled = isinstance(event, JobFinished) and event.outcome == "cancelled"
    if not ended.out_of_memory and not is_cancelled:  # that is no fault of the GPU's
        keep_record(state, ended, final=isinstance(event, JobFinished))
    state.meters.pop(event.run, None)
    match event:
        case JobFinished(outcome="ok"):
            state.totals.ok += 1
        case JobFinished(outcome="failed"):
            state.totals.failed += 1
            give_up(state, GivenUp(ended.job, "failed"))
        case JobFinished(outcome="cancelled"):
            state.totals.cancelled += 1
            give_up(state, GivenUp(ended.job, "cancelled"))
        case JobFinished():
            state.totals.stopped += 1
            state.interrupted.append(ended.job)
        case JobRequeued():
            _queue_again(state, _to_be_tried_again(state, ended, event))
    state.unnamed.discard(event.run.job)
    state.cancelled.discard(event.run.job)


def _to_be_tried_again(state: State, ended: EndedRun, event: JobRequeued) -> Job:
    job = replace(ended.job, not_before=event.not_before, requeued_at=event.at)
    match event.why:
        case "failed":
            gpus = {*job.failed_on, *(gpu.key for gpu in ended.placement.gpus)}
            return replace(job, failures=job.failures + 1, failed_on=tuple(sorted(gpus)))
        case "lost":
            return replace(job, losses=job.losses + 1)
        case "contention":
            state.totals.yields += 1
            state.totals.yielded_gpu_seconds += ended.seconds * len(ended.placement.gpus)
            return job
        case "packed_too_tightly":
            needs = event.needs_bytes
            return replace(job, ooms=job.ooms + 1, needs_bytes=needs, alone=event.alone)
        case _:
            return job


def _learn(state: State, event: RunMeasured) -> None:
    if event.run not in state.ended:
        raise IllegalTransitionError(event, None)
    for footprints in (state.learned, state.footprints):
        known = footprints.pop(event.shape, NO_RUNS)
        footprints[event.shape] = known.with_run(
            event.peak_bytes, event.utilization_percent, event.seconds
        )
        while len(footprints) > MOST_SHAPES:
            del footprints[next(iter(footprints))]  # of what was learned longest ago
    state.meters.pop(event.run, None)


def _queue_again(state: State, job: Job) -> None:
    """Unless the list that the run was resumed with does not name it, or not yet."""
    if job.id not in state.unnamed:
        enqueue(state, job)
    elif state.input_open:
        state.set_aside[job.id] = job
    else:
        state.dropped[job.id] = job
        state.totals.dropped += 1


def _holds_of(state: State, run: Run) -> Iterator[GpuKey]:
    for gpu in run.status.placement.gpus:
        if run.key in state.holds.get(gpu.key, ()):
            yield gpu.key


def _amend_holds(
    state: State, run: Run, *, pid: int | None = None, cleared_at: Timestamp | None = None
) -> None:
    for gpu in _holds_of(state, run):
        hold = state.holds[gpu][run.key]
        state.holds[gpu][run.key] = replace(hold, pid=pid or hold.pid, cleared_at=cleared_at)


def _drop_holds(state: State, run: Run) -> None:
    for gpu in _holds_of(state, run):
        _drop_hold(state, gpu, run.key)


def _release(state: State, event: GpuReleased, gpu: GpuKey, run: RunKey) -> None:
    hold = state.holds.get(gpu, {}).get(run)
    if hold is None or hold.cleared_at is None:
        raise IllegalTransitionError(event, hold)
    _drop_hold(state, gpu, run)


def _drop_hold(state: State, gpu: GpuKey, run: RunKey) -> None:
    del state.holds[gpu][run]
    if not state.holds[gpu]:
        del state.holds[gpu]
