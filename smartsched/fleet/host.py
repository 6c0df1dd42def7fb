"""One host, as far as the dispatcher knows, and how long one that is out of reach is waited for.
Values only: who changes them is in hosts.py and launcher.py.
"""

from collections import deque

from msgspec import Struct, field

from smartsched.core.messages import AgentEvent, Connection, Hello
from smartsched.core.model import (
    GpuKey,
    HostAway,
    HostName,
    PilotsStand,
    Run,
    RunKey,
    Timestamp,
)
from smartsched.core.offset import Offset


class Host(Struct):
    """One host, as far as this dispatcher knows."""

    name: HostName
    renewed_at: Timestamp  # no lease there was renewed later than that
    heard_at: Timestamp = float("-inf")  # when it was last heard, or came
    connection: Connection = ""  # the last
    hello: Hello | None = None  # of the last agent; None: none has been here
    here: bool = False
    is_gone: bool = False  # for good
    announced: bool | None = None  # as one that leaves, or that does not; None: not yet
    leaves: bool = False  # soon
    was_sent_off: bool = False  # or has said that it goes: it is not expected back
    was_told: bool = False  # that it may go
    has_logs: bool = False  # of runs that have ended, and not all of them has come
    offset: Offset = field(default_factory=Offset)
    number: int = 0  # of the last orders to this agent
    expected_by: int = 0  # with these it was told which runs there should be
    obeyed: int = 0
    reported_at: float | None = None  # when its last report was sent, by its own clock
    heard: int = 0  # events of the agent
    noted: int = 0  # of these, so many are in the journal
    acknowledged: int = 0  # and so many for good
    events: deque[tuple[int, AgentEvent]] = field(default_factory=deque)  # not taken yet
    living: frozenset[RunKey] = frozenset()
    strays_are_known: bool = True  # to be told to end: all that its last report had
    # That the user has given up while nobody could be told; they may still run there.
    abandoned: dict[RunKey, Run] = field(default_factory=dict)
    launched: dict[RunKey, int] = field(default_factory=dict)  # with which orders
    looks: dict[GpuKey, Timestamp] = field(default_factory=dict)  # asked for, not answered yet
    asks: set[tuple[GpuKey, ...]] = field(default_factory=set)  # claims, likewise
    wanted: dict[GpuKey, int] = field(default_factory=dict)  # claims that we want to have there

    @property
    def is_settled(self) -> bool:
        """Whether it has been heard since it was told which runs should be there."""
        return self.here and self.obeyed >= self.expected_by > 0


class Patience(Struct, frozen=True):
    """With hosts that are out of reach, from the last time that a lease there was renewed."""

    lost_after_seconds: float = float("inf")  # then their runs are gone for sure; inf: never
    # In place of it on hosts that were not heard of so far, by the user's word that they are gone;
    # None: he has not said so.
    unheard_seconds: float | None = None

    @property
    def is_endless(self) -> bool:
        """Whether runs may go on for ever: they are never taken for lost."""
        return self.lost_after_seconds == float("inf")


class NoRecruiter:
    """Where the agent is in this process."""

    def take(self, now: Timestamp) -> list[HostAway | PilotsStand]:
        return []

    def came(self, host: HostName, now: Timestamp) -> None: ...

    def went(self, host: HostName, now: Timestamp, *, again_in_seconds: float) -> None: ...

    def wake_at(self) -> Timestamp:
        return float("inf")
