"""Sees to it that there are agents on the hosts that the user named: starts them by ssh, again when
they are gone, and says why a host is not here."""

from collections.abc import Sequence
from typing import Protocol

from smartsched.core import words
from smartsched.core.model import HostAway, HostName, PilotsStand, Timestamp
from smartsched.core.standing import BEING_STARTED
from smartsched.edges.starter import NotStarted, SshStarter, Started

# A first report may take: the driver of a large box needs seconds.
_JOINS_WITHIN_SECONDS = 30.0


class SshRecruiter:
    """A Recruiter."""

    def __init__(self, starter: SshStarter, hosts: Sequence[HostName], place: str) -> None:
        """`place`: where agents find the dispatcher, for people."""
        self._starter = starter
        self._hosts = dict.fromkeys(hosts)
        self._place = place
        self._has_begun = False
        self._here: set[HostName] = set()
        self._joins_by: dict[HostName, tuple[Timestamp, Started]] = {}
        self._again_at: dict[
            HostName, Timestamp
        ] = {}  # who was here and has gone, or was sent away

    def take(self, now: Timestamp) -> list[HostAway]:
        news = self._begin(now)
        for by, started in list(self._joins_by.values()):
            if now >= by:
                del self._joins_by[started.host]
                self._starter.has_not_joined(started.host, self._why(started), now)
        for each in self._starter.take(now):
            if isinstance(each, NotStarted):
                again = words.duration(each.retry_at - now)
                news.append(HostAway(each.host, f"{each.why}; trying again in {again}"))
            elif each.host not in self._here and now >= self._again_at.get(each.host, now):
                self._joins_by[each.host] = (now + _JOINS_WITHIN_SECONDS, each)
        return news

    def _why(self, started: Started) -> str:
        """It has not joined."""
        if started.was_there:
            why = f"an agent is on {started.host} already and does not answer: does it hang, or"
        else:
            why = f"an agent was started on {started.host} and has not joined:"
        return f"{why} can it not reach {self._place} (--listen)?"

    def came(self, host: HostName, now: Timestamp) -> None:
        self._joins_by.pop(host, None)
        self._here.add(host)
        if host in self._hosts:
            self._starter.joined(host)

    def went(self, host: HostName, now: Timestamp, *, again_in_seconds: float) -> None:
        self._here.discard(host)
        self._joins_by.pop(host, None)  # it was heard of
        self._again_at[host] = now + again_in_seconds
        if host in self._hosts and again_in_seconds < float("inf"):
            self._starter.start(host, now, in_seconds=again_in_seconds)

    def wake_at(self) -> Timestamp:
        return min([self._starter.wake_at(), *(by for by, _ in self._joins_by.values())])

    def _begin(self, now: Timestamp) -> list[HostAway]:
        if self._has_begun:
            return []
        self._has_begun = True
        for host in self._hosts:
            self._starter.start(host, now)
        return [HostAway(host, BEING_STARTED) for host in self._hosts]


class Part(Protocol):
    """One of several that recruit."""

    def take(self, now: Timestamp) -> Sequence[HostAway | PilotsStand]: ...
    def came(self, host: HostName, now: Timestamp) -> None: ...
    def went(self, host: HostName, now: Timestamp, *, again_in_seconds: float) -> None: ...
    def wake_at(self) -> Timestamp: ...


class Recruiters:
    """Several as one."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def take(self, now: Timestamp) -> list[HostAway | PilotsStand]:
        return [news for part in self._parts for news in part.take(now)]

    def came(self, host: HostName, now: Timestamp) -> None:
        for part in self._parts:
            part.came(host, now)

    def went(self, host: HostName, now: Timestamp, *, again_in_seconds: float) -> None:
        for part in self._parts:
            part.went(host, now, again_in_seconds=again_in_seconds)

    def wake_at(self) -> Timestamp:
        return min((part.wake_at() for part in self._parts), default=float("inf"))
