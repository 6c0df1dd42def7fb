"""What the dispatcher and the agents of its hosts say to each other, however it travels.

Times are the sender's own: an agent's in its messages, the dispatcher's in his. Each says when it
was sent, so that the other side can tell what that is in its own time.
"""

from typing import Any, TypeAlias

from msgspec import Struct, field

from smartsched.core.actions import Checkpoint, Claim, Kill, Launch, Release, Terminate
from smartsched.core.events import (
    RunAdopted,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    RunRevoked,
)
from smartsched.core.hours import NO_CAP, Cap
from smartsched.core.model import (
    ClaimAnswer,
    GpuUuid,
    HostName,
    Run,
    RunKey,
    Seen,
    Timestamp,
)


class Look(Struct, frozen=True):
    """Read these GPUs now."""

    gpus: tuple[GpuUuid, ...]


class Expect(Struct, frozen=True):
    """The runs that are believed to be on the host, all of them, but for their commands. Whoever is
    not known there is looked for; whoever else is there is of no use to anybody any more."""

    runs: tuple[Run, ...]


class Fetched(Struct, frozen=True):
    """So much of a log has come; what follows may be sent."""

    run: RunKey
    bytes: int


class Leave(Struct, frozen=True):
    """The dispatcher ends, or has no more work for the host."""


Order: TypeAlias = (
    Launch | Terminate | Checkpoint | Kill | Claim | Release | Look | Expect | Fetched | Leave
)


class Orders(Struct, frozen=True):
    number: int  # 1, 2, 3 ... since the agent joined
    sent_at: Timestamp
    orders: tuple[Order, ...] = ()
    acknowledged: int = 0  # events of the agent, up to this number, are on record
    renewed: float | None = None  # the agent's time of the last report heard; None: none so far


AgentEvent: TypeAlias = (
    RunLaunched | RunPostponed | RunExited | RunCleared | RunAdopted | RunRevoked
)
"""What an agent knows of runs."""


class Chunk(Struct, frozen=True):
    """A piece of a run's log."""

    run: RunKey
    offset: int
    data: bytes
    is_last: bool = False


class Report(Struct, frozen=True):
    """How a host stands: with all that is not on record yet, whether it was said before or not."""

    sent_at: Timestamp
    obeyed: int = 0  # orders up to this number were carried out
    heard: tuple[Timestamp, Timestamp] | None = None  # when the last were sent, and arrived
    seen: tuple[Seen, ...] = ()  # since the last report
    events: tuple[tuple[int, AgentEvent], ...] = ()  # numbered, in order
    living: frozenset[RunKey] = frozenset()  # runs that have processes there
    answers: tuple[ClaimAnswer, ...] = ()  # since the last report
    chunks: tuple[Chunk, ...] = ()
    leaves: bool = False  # soon, and for good
    is_unfit: bool = False  # no command can run there; why, what is seen says
    has_logs: bool = False  # of runs that have ended, and not all of them has come
    is_urgent: bool = True  # somebody waits for what it says


class Hello(Struct, frozen=True):
    """Who an agent is, first of all."""

    version: str  # of smartsched
    agent: str  # random: another one after each start
    node: str  # what the machine calls itself
    cores: int
    shares_logs: bool = True  # logs lie where the dispatcher finds them by the same name
    pilot: str = ""  # the batch job that it runs in; "": none
    sent_at: Timestamp = 0.0
    more: dict[str, Any] = field(default_factory=dict)  # for people
    is_unfit: bool = False  # no command can run there; why, its reports say
    machine: str = ""  # which one it is, whatever it is called; "": it does not know
    most_gpus: Cap = NO_CAP  # of a run there, as its administrator allows
    leave_free: Cap = NO_CAP  # GPUs there that stay free, as he wants it


Connection: TypeAlias = str
"""One between the dispatcher and an agent, of all that there ever were. Orders and reports are
about what was said over the same one; what comes late over another says nothing."""


class Came(Struct, frozen=True):
    """An agent has joined."""

    host: HostName
    hello: Hello
    connection: Connection = ""


class Said(Struct, frozen=True):
    host: HostName
    report: Report
    at: Timestamp  # when it arrived
    connection: Connection = ""


class Garbled(Struct, frozen=True):
    """An agent said what cannot be read: instead of Came, or of Said."""

    host: HostName
    why: str
    connection: Connection = ""


class Went(Struct, frozen=True):
    """The connection to an agent is gone; the agent may not be."""

    host: HostName
    why: str
    connection: Connection = ""


News: TypeAlias = Came | Said | Garbled | Went
