"""What we believe.

Rule 1: what happened to jobs changes here, in `apply`, and nowhere else.
Rule 2: a transition that is not listed here is a bug and raises.
Rule 3: nothing here grows with the number of finished jobs.

What was seen of the GPUs is kept here too, but taken in elsewhere (sight.py).
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum

from smartsched.core.events import (
    DrainRequested,
    Event,
    GpuReleased,
    InputEnded,
    JobAccepted,
    LineRejected,
    RunCleared,
    RunExited,
    RunKilled,
    RunLaunched,
    RunPlaced,
    RunPostponed,
    RunStopping,
    StopRequested,
    WaitTimedOut,
)
from smartsched.core.freeness import Watch
from smartsched.core.model import (
    Ending,
    Exited,
    GpuKey,
    GpuReading,
    GpuSample,
    HostName,
    Job,
    JobId,
    Lingering,
    NotStarted,
    Run,
    RunKey,
    Running,
    RunStatus,
    SamplerTrouble,
    Starting,
    Stopping,
    Timestamp,
)
from smartsched.core.policy import Policy
from smartsched.core.strangers import Hold, unexplained_bytes
from smartsched.core.tag import tag_of
from smartsched.errors import IllegalTransitionError

FIRST_POSTPONE_SECONDS = 1.0
LONGEST_POSTPONE_SECONDS = 30.0


class Closing(IntEnum):
    """How far the end has been asked for; it only ever rises."""

    NO = 0
    DRAIN = 1
    STOP = 2
    KILL = 3


@dataclass(slots=True)
class Totals:
    accepted: int = 0
    rejected: int = 0
    ok: int = 0
    failed: int = 0
    stopped: int = 0  # because the user asked
    gpu_seconds: float = 0.0

    @property
    def finished(self) -> int:
        return self.ok + self.failed + self.stopped


@dataclass(slots=True)
class State:
    policy: Policy
    queue: deque[Job] = field(default_factory=deque)
    runs: dict[RunKey, Run] = field(default_factory=dict)
    holds: dict[GpuKey, Hold] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    input_open: bool = True
    closing: Closing = Closing.NO
    waiting_since: Timestamp | None = None  # None: no command accepted so far
    ever_launched: bool = False
    wait_timed_out: bool = False
    last_ending: Ending | None = None  # None: no job has ended so far
    postponed_until: Timestamp = float("-inf")
    postponed_why: str = ""
    postpone_seconds: float = FIRST_POSTPONE_SECONDS
    gpus: dict[GpuKey, Watch] = field(default_factory=dict)
    # Selected or not: where the cards of a host were listed last, and which are out of reach.
    cards: dict[HostName, dict[GpuKey, int]] = field(default_factory=dict)
    out_of_reach: dict[HostName, frozenset[int]] = field(default_factory=dict)
    troubles: dict[HostName, SamplerTrouble] = field(default_factory=dict)

    def next_job(self) -> JobId:
        return JobId(self.totals.accepted + 1)

    def in_order(self) -> list[tuple[GpuKey, Watch]]:
        """The GPUs as people list them."""
        return sorted(self.gpus.items(), key=lambda item: position(item[1].latest))


def position(reading: GpuReading) -> tuple[str, int, int]:
    slot = -1 if reading.slot is None else reading.slot
    return (reading.key.host, reading.index, slot)


def replay(policy: Policy, events: Iterable[Event]) -> State:
    state = State(policy)
    for event in events:
        apply(state, event)
    return state


def apply(state: State, event: Event) -> None:  # noqa: C901  # a table: one case an event
    """Take in what happened. Raises IllegalTransitionError and changes nothing if it cannot be."""
    match event:
        case JobAccepted(at, job_id, spec):
            if job_id != state.next_job():
                raise IllegalTransitionError(event, state.totals)
            state.totals.accepted += 1
            state.queue.append(Job(job_id, spec))
            if state.waiting_since is None:
                state.waiting_since = at
        case LineRejected():
            state.totals.rejected += 1
        case InputEnded():
            state.input_open = False
        case DrainRequested():
            state.closing = max(state.closing, Closing.DRAIN)
        case StopRequested():
            state.closing = Closing.KILL if state.closing >= Closing.STOP else Closing.STOP
        case WaitTimedOut():
            state.wait_timed_out = True
            state.closing = max(state.closing, Closing.DRAIN)
        case GpuReleased(_, gpu, run):
            _release(state, event, gpu, run)
        case _:
            _apply_to_run(state, event)


_RunEvent = (
    RunPlaced | RunLaunched | RunPostponed | RunStopping | RunKilled | RunExited | RunCleared
)


def _apply_to_run(state: State, event: _RunEvent) -> None:  # noqa: C901  # a table
    """The run's life, one case per legal step."""
    run = state.runs.get(event.run)
    match run.status if run is not None else None, event:
        case None, RunPlaced():
            _place(state, event)
        case Starting(_, placement), RunLaunched(at, key, pid):
            _set_status(state, key, Running(at, placement, pid))
            _amend_holds(state, key, pid=pid)
            state.ever_launched, state.postpone_seconds = True, FIRST_POSTPONE_SECONDS
        case Starting(), RunPostponed(at, key, why):
            _queue_again(state, state.runs.pop(key).job)
            _drop_holds(state, key)
            _postpone(state, at, why)
        case Starting(), RunExited(_, key, NotStarted() as ending):
            state.last_ending = ending
            del state.runs[key]
            _drop_holds(state, key)
            state.totals.failed += 1
        case Running(since, placement, pid), RunStopping(at, key):
            _set_status(state, key, Stopping(at, placement, pid, since, killed_at=None))
        case Stopping(killed_at=None) as stopping, RunKilled(at, key):
            _set_status(state, key, replace(stopping, killed_at=at))
        case (Running() | Stopping()) as living, RunExited():
            _end(state, event, living)
        case Lingering(asked=False) as lingering, RunStopping(_, key):
            _set_status(state, key, replace(lingering, asked=True))
        case Lingering(asked=True, killed_at=None) as lingering, RunKilled(at, key):
            _set_status(state, key, replace(lingering, killed_at=at))
        case Lingering(), RunCleared(at, key):
            del state.runs[key]
            _amend_holds(state, key, cleared_at=at)
        case status, _:
            raise IllegalTransitionError(event, status)


def _place(state: State, event: RunPlaced) -> None:
    if not state.queue or state.queue[0].id != event.run.job:
        raise IllegalTransitionError(event, state.queue[0] if state.queue else None)
    gpus = [gpu.key for gpu in event.placement.gpus]
    if any(gpu in state.holds for gpu in gpus):
        raise IllegalTransitionError(event, state.holds)
    if event.run.attempt != state.queue[0].attempts + 1:
        raise IllegalTransitionError(event, state.queue[0])
    job = replace(state.queue.popleft(), attempts=event.run.attempt)
    state.runs[event.run] = Run(event.run, job, Starting(event.at, event.placement))
    for gpu in gpus:
        state.holds[gpu] = _new_hold(state, gpu, event)


def _postpone(state: State, at: Timestamp, why: str) -> None:
    """Nothing is started for a while; several that fail in one tick count as one failure."""
    if at >= state.postponed_until:
        state.postponed_until = at + state.postpone_seconds
        state.postpone_seconds = min(2 * state.postpone_seconds, LONGEST_POSTPONE_SECONDS)
    state.postponed_why = why


def _queue_again(state: State, job: Job) -> None:
    """In its place: several may come back at once."""
    state.queue.append(job)
    state.queue = deque(sorted(state.queue, key=lambda queued: queued.id))


def _new_hold(state: State, gpu: GpuKey, event: RunPlaced) -> Hold:
    watch = state.gpus.get(gpu)
    latest = watch.latest if watch is not None else None
    unexplained = unexplained_bytes(latest) if isinstance(latest, GpuSample) else 0
    return Hold(
        run=event.run,
        tag=tag_of(state.policy.run_name, event.run),
        since=event.at,
        unexplained_before_bytes=unexplained,
        pid=None,
        cleared_at=None,
    )


def _set_status(state: State, key: RunKey, status: RunStatus) -> None:
    state.runs[key] = replace(state.runs[key], status=status)


def _end(state: State, event: RunExited, living: Running | Stopping) -> None:
    started = living.since if isinstance(living, Running) else living.started_at
    state.totals.gpu_seconds += (event.at - started) * len(living.placement.gpus)
    state.last_ending = event.ending
    if event.ending == Exited(0):
        state.totals.ok += 1
    elif isinstance(living, Stopping):
        state.totals.stopped += 1
    else:
        state.totals.failed += 1
    if event.leftovers:
        lingering = Lingering(event.at, living.placement, asked=False, killed_at=None)
        _set_status(state, event.run, lingering)
    else:
        del state.runs[event.run]
        _amend_holds(state, event.run, cleared_at=event.at)


def _holds_of(state: State, key: RunKey) -> Iterator[GpuKey]:
    return (gpu for gpu, hold in list(state.holds.items()) if hold.run == key)


def _amend_holds(
    state: State, key: RunKey, *, pid: int | None = None, cleared_at: Timestamp | None = None
) -> None:
    for gpu in _holds_of(state, key):
        hold = state.holds[gpu]
        state.holds[gpu] = replace(hold, pid=pid or hold.pid, cleared_at=cleared_at)


def _drop_holds(state: State, key: RunKey) -> None:
    for gpu in _holds_of(state, key):
        del state.holds[gpu]


def _release(state: State, event: GpuReleased, gpu: GpuKey, run: RunKey) -> None:
    hold = state.holds.get(gpu)
    if hold is None or hold.run != run or hold.cleared_at is None:
        raise IllegalTransitionError(event, hold)
    del state.holds[gpu]
