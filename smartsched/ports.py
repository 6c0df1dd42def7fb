"""What the loop needs from the outside world; the edges provide it, the simulation fakes it.

Nothing here waits but `Waiter.wait`: everything else answers with what there is by now.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol, TypeAlias

from msgspec import Struct

from smartsched.core.actions import Launch, Tell
from smartsched.core.decide import Decision
from smartsched.core.events import (
    DrainRequested,
    Event,
    FailuresDropped,
    InputRead,
    RunAdopted,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    RunRevoked,
    StopRequested,
)
from smartsched.core.messages import AgentEvent, Chunk, Connection, News, Orders
from smartsched.core.model import (
    BadLine,
    ClaimAnswer,
    GpuKey,
    HostAway,
    HostName,
    JobId,
    JobSpec,
    Observation,
    PilotsStand,
    Position,
    Run,
    RunKey,
    Seen,
    Timestamp,
)
from smartsched.core.policy import Policy
from smartsched.core.requests import Add, Answer, Ask, Cancel, Continue, Pause, Retry, Unusable
from smartsched.core.state import State
from smartsched.errors import StateError

Request = Add | Cancel | Retry | Pause | Continue | Ask | Unusable


class Clock(Protocol):
    def now(self) -> Timestamp: ...
    def local_offset(self) -> float:
        """What to add to `now` for the time on the wall, in seconds since 1970-01-01 there."""
        ...


class Waiter(Protocol):
    """Sleeps until something happened, at the latest until the given time."""

    def wait(self, until: Timestamp) -> None: ...


class FdWatcher(Protocol):
    """Where edges say which file descriptors and signals wake the loop."""

    def watch(self, fd: int, when_ready: Callable[[], None], *, writable: bool = False) -> None: ...
    def forget(self, fd: int) -> None: ...
    def on_signal(self, signum: int, when_caught: Callable[[], None]) -> None: ...


class GpuSource(Protocol):
    def take(self, now: Timestamp) -> Sequence[Observation]:
        """What was seen since the last call, oldest first."""
        ...

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        """Read these GPUs at once; answers that were begun before the given times do not count."""
        ...

    def wake_at(self) -> Timestamp:
        """When it wants `take` to be called at the latest, though nothing was seen."""
        ...


class Sampler(Protocol):
    """A GpuSource of one host."""

    def take(self, now: Timestamp) -> Sequence[Seen]: ...
    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None: ...
    def watch(self, gpus: Collection[GpuKey]) -> None:
        """Runs are on these and no others: whoever comes there is to be told of within two
        seconds."""
        ...

    def wake_at(self) -> Timestamp: ...


class Launcher(Protocol):
    def launch(
        self, launch: Launch, now: Timestamp
    ) -> RunLaunched | RunPostponed | RunExited | None:
        """Start it, or say why not: RunExited with NotStarted, or RunPostponed. None: it is under
        way, and `take` tells."""
        ...

    def adopt(self, run: Run, now: Timestamp) -> Sequence[RunLaunched | RunRevoked | RunAdopted]:
        """Look after a run that an earlier dispatcher placed. What is news; of its end, `take`
        tells."""
        ...

    def terminate(self, run: RunKey) -> None: ...
    def checkpoint(self, run: RunKey) -> None:
        """Send the user's signal to those of its processes that wait for it; if there is none,
        terminate it."""
        ...

    def kill(self, run: RunKey) -> None: ...

    def take(self, now: Timestamp) -> Iterable[AgentEvent]:
        """What has become of runs since the last call. Each is to be taken in before the next one
        is asked for."""
        ...

    def noted(self) -> None:
        """All that was taken is in the journal by now."""
        ...

    def kept(self) -> None:
        """What was taken before the last `noted` is there for good: what only a crash before that
        would have needed may go."""
        ...

    def wake_at(self) -> Timestamp: ...


class Recall(Struct, frozen=True):
    """A job that the run knows is to be queued again."""

    job: JobId
    spec: JobSpec
    attempts: int


class Arrived(Struct, frozen=True):
    """Something new to do, and how far the input was read for it."""

    what: JobSpec | BadLine | Recall
    read_to: Position | None = None  # None: it was not read from an input


class Intake(Protocol):
    def take(self, most: int) -> Sequence[Arrived]:
        """Up to `most` that have arrived."""
        ...

    def finished(self, now: Timestamp) -> Sequence[InputRead | FailuresDropped]:
        """Which inputs were read to their ends since the last call, and what follows from it."""
        ...

    def has_more(self) -> bool:
        """Whether another call would find more at once."""
        ...

    def ended(self) -> bool:
        """Whether nothing will come any more."""
        ...

    def close(self) -> None: ...


class Work(Protocol):
    """Something that was begun, and is done while whoever began it goes on."""

    @property
    def is_at_work(self) -> bool: ...

    @property
    def error(self) -> OSError | StateError | None:
        """Why it failed, when it has ended."""
        ...

    def wait(self) -> None:
        """For its end."""
        ...


Begin: TypeAlias = Callable[[Callable[[], None]], Work]


class Journal(Protocol):
    def write(self, events: Sequence[Event], *, durable: bool = True) -> str | None:
        """Append them, all or none, and, if that is asked for, make all there is durable: which
        waits for what was begun, whatever comes of it. None: it is so; else why not. Raises
        StateError where there is no journal any more."""
        ...

    def begin_sync(self) -> None:
        """Begin to make durable what there is, without waiting for it; not while that is still
        being done. Its end wakes whoever waits."""
        ...

    def synced(self) -> str | None:
        """How that has ended, once: "": all is durable now that there was then; else why not. None:
        it has not, or a durable write did it meanwhile. Raises StateError as `write` does."""
        ...


class LocalLauncher(Protocol):
    """Starts and looks after runs on the host where it is."""

    def launch(self, launch: Launch, now: Timestamp) -> RunLaunched | RunPostponed | RunExited:
        """Start it, or say why not: RunExited with NotStarted, or RunPostponed."""
        ...

    def adopt(
        self, run: Run, now: Timestamp
    ) -> Sequence[RunLaunched | RunRevoked | RunAdopted] | None:
        """Look after a run of an earlier dispatcher or agent, as above. None: whether it is here
        cannot be told at the moment, and has to be asked again."""
        ...

    def terminate(self, run: RunKey) -> None: ...
    def checkpoint(self, run: RunKey) -> None: ...
    def kill(self, run: RunKey) -> None: ...
    def take(self, now: Timestamp) -> Sequence[RunExited | RunCleared | RunPostponed]: ...
    def written(self, events: Sequence[Event]) -> None: ...
    def living(self) -> Collection[RunKey]:
        """The runs that it looks after: they have processes, as far as it knows."""
        ...

    def wake_at(self) -> Timestamp: ...


class Lease(Protocol):
    """Until when runs may go on though nobody hears from the dispatcher."""

    def renew(self, until: Timestamp) -> None: ...


class Logs(Protocol):
    """The logs of runs, for a dispatcher that cannot read them where they lie."""

    def chunks(self) -> Sequence[Chunk]:
        """What may be sent next."""
        ...

    def began(self, run: RunKey) -> None: ...
    def joined(self) -> None:
        """There is a new connection: what was on its way may be lost."""
        ...

    def is_ready(self) -> bool:
        """Whether there is something to be sent at once."""
        ...

    def is_done(self) -> bool:
        """Whether all has come of runs that have ended."""
        ...

    def wake_at(self) -> Timestamp: ...
    def fetched(self, run: RunKey, bytes_so_far: int) -> None: ...
    def is_fetched(self, run: RunKey) -> bool:
        """Whether all of it has come, or will not come any more."""
        ...


class Transport(Protocol):
    """Carries messages between the dispatcher and the agents of hosts, whatever they mean."""

    def send(self, connection: Connection, orders: Orders) -> bool:
        """To the agent at the other end, and to no other; lost if that is gone. False: they are too
        long, and were not sent."""
        ...

    def take(self, now: Timestamp) -> Sequence[News]:
        """What has come since the last call, oldest first."""
        ...

    def drop(self, connection: Connection, why: str, keep_out_seconds: float = 0.0) -> None:
        """Let go of an agent: of this connection nothing counts any more. `keep_out_seconds`: for
        so long the agent may not come again."""
        ...

    def wake_at(self) -> Timestamp: ...


class Recruiter(Protocol):
    """Sees to it that there are agents on the hosts."""

    def take(self, now: Timestamp) -> Sequence[HostAway | PilotsStand]:
        """Why some are not here, as news."""
        ...

    def came(self, host: HostName, now: Timestamp) -> None: ...
    def went(self, host: HostName, now: Timestamp, *, again_in_seconds: float) -> None:
        """When there is to be another agent, if there can be; inf: never."""
        ...

    def wake_at(self) -> Timestamp: ...


class Claims(Protocol):
    """What dispatchers of a host tell each other: on which GPUs they are, or are about to be."""

    def ask(self, gpus: Sequence[tuple[GpuKey, int]], now: Timestamp) -> None:
        """Claim all of these, with so many bytes of each (0: all), or none. Asking again while the
        answer is under way changes nothing."""
        ...

    def release(self, gpus: Collection[GpuKey], now: Timestamp) -> None: ...

    def take(self, now: Timestamp) -> Sequence[ClaimAnswer]:
        """What came of claims since the last call."""
        ...

    def wake_at(self) -> Timestamp: ...


class Teller(Protocol):
    def tell(self, what: Tell) -> None:
        """Start the user's own command for a job that is finished. Must not fail."""
        ...


class Requests(Protocol):
    def take(self, now: Timestamp) -> Sequence[DrainRequested | StopRequested]: ...


class NewOptions(Struct, frozen=True):
    """What the user wants to be changed, as it would be then."""

    id: str
    options: str  # a JSON object: all of the run's
    policy: Policy
    words: str  # what has changed


class Inbox(Protocol):
    """What the user asks for from other terminals."""

    def take(self, now: Timestamp) -> Sequence[Request | NewOptions]:
        """What has come since the last call, oldest first."""
        ...

    def answer(self, request: str, answer: Answer) -> None:
        """It is on record: say so to whoever asked."""
        ...


class Observer(Protocol):
    """Whoever tells people about it. Must not fail and must not take long."""

    def recorded(self, event: Event, state: State, now: Timestamp) -> None: ...
    def decided(self, decision: Decision, state: State, now: Timestamp) -> None: ...
    def wake_at(self) -> Timestamp: ...
