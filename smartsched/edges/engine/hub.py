"""The dispatcher's end: which agents are here, what they have said, and what they are told. One
port; a Dask scheduler that schedules nothing, in a thread of its own."""

import asyncio
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smartsched.core.credentials import Credentials
from smartsched.edges.engine.channel import LARGEST_MESSAGE_BYTES, Channel
from smartsched.edges.engine.door import Entrance, listening_on
from smartsched.edges.engine.greeting import Greeting
from smartsched.edges.engine.settings import import_dask
from smartsched.edges.engine.thread import LoopThread, Mailbox
from smartsched.edges.engine.tls import dispatchers_context
from smartsched.errors import StateError
from smartsched.ports import FdWatcher

if TYPE_CHECKING:
    from smartsched.edges.engine.inside import OurScheduler

TOPIC = "smartsched"
_START_SECONDS = 20.0
_A_MOMENT_SECONDS = 0.25  # that a message lies about which can wait
_CLOSE_SECONDS, _JOIN_SECONDS = 0.5, 0.9
# More than 10,000 agents would need; some programs that inherit the limit go through all below it.
_MOST_DESCRIPTORS = 65_536
_REFUSAL_REPEATED_AFTER_SECONDS = 60.0
_MOST_REFUSALS_TOLD = 30  # in that time, of all addresses together


@dataclass(frozen=True)
class Came:
    """An agent is here. `hello`: what it says first; `peer`: where it came from, `host:port`."""

    host: str
    hello: bytes
    peer: str


@dataclass(frozen=True)
class Said:
    host: str
    message: bytes
    at_monotonic: float  # time.monotonic() when it arrived here


@dataclass(frozen=True)
class Went:
    """For every Came one Went, before this host's next Came."""

    host: str
    why: str


@dataclass(frozen=True)
class Refused:
    """Somebody was not let in; the same of the same address is told once a minute."""

    peer: str
    why: str


News = Came | Said | Went | Refused


@dataclass
class _Member:
    greeting: Greeting
    channel: Channel
    address: str = ""  # Dask's name for it, once it is known to Dask


class Hub:
    """Raises StateError when it cannot listen, and UsageError without Dask."""

    def __init__(
        self,
        fds: FdWatcher,
        credentials: Credentials,
        *,
        listen: str = "",
        port: int = 0,
        run_id: str,
        silent_after_seconds: float = 10.0,
        can_wait: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        """`listen`: an address of this host, "" for all; `port` 0: any that is free. An agent that
        was not heard for `silent_after_seconds` is gone. `can_wait`: of which messages it would do
        to hear a moment later, with others: where there are many agents, each wakes us."""
        import_dask()
        context = dispatchers_context(credentials)
        self._listening = listening_on(listen, port)
        self.port: int = self._listening.getsockname()[1]
        self._descriptors = _RaisedLimit()
        self._news: Mailbox[News] = Mailbox(fds)
        self._members = _Members(self._news, can_wait)
        self._entrance = Entrance(
            self._listening,
            context,
            run_id,
            silent_after_seconds,
            self._members.judge,
            self._members.arrived,
            _Refusals(self._news).tell,
        )
        self._stop: asyncio.Event | None = None
        self._is_up = threading.Event()
        self._failed_because = "it did not start in time"
        self._thread = LoopThread("engine-hub", self._live)
        if not self._is_up.wait(_START_SECONDS) or self._stop is None:
            self.close()
            raise StateError(f"cannot wait for agents on port {self.port}: {self._failed_because}")

    def send(self, host: str, message: bytes) -> None:
        """To the agent of this name, in order; dropped when it is not here. At most 64 MiB."""
        if len(message) > LARGEST_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(message)} bytes is too long")
        self._thread.call(self._members.send, host, message)

    def take(self) -> list[News]:
        """What has come since the last call, oldest first."""
        return self._news.take()

    def drop(self, host: str) -> None:
        """Disconnect it, of which its Went tells. It may come back."""
        self._thread.call(self._members.drop, host)

    def close(self) -> None:
        """What was sent goes out first, as far as the agents take it in half a second. Nothing is
        reported any more. Agents will look for a dispatcher of this run again."""
        if self._stop is not None:
            self._thread.call(self._stop.set)
        if self._thread.join(_JOIN_SECONDS):
            self._listening.close()
        self._news.close()
        self._descriptors.give_back()

    async def _live(self) -> None:
        from smartsched.edges.engine import comm, inside

        comm.register()
        passport = inside.Passport({}, {"entrance": self._entrance})
        stop = asyncio.Event()
        try:
            scheduler = inside.OurScheduler(passport, (plugin_for(self._members),))
            self._members.scheduler = scheduler
            await scheduler
        except Exception as error:  # noqa: BLE001  # what a later Dask may raise is not known
            self._failed_because = str(error.__cause__ or error)
            self._is_up.set()
            return
        self._stop = stop
        self._is_up.set()
        await stop.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await scheduler.close()
        self._members.abort_all()


class _Members:
    """Lives in the thread of the event loop."""

    def __init__(self, news: Mailbox[News], can_wait: Callable[[bytes], bool]) -> None:
        self._news = news
        self._can_wait = can_wait
        self._rings_soon = False
        self.scheduler: OurScheduler | None = None
        self._at_the_door: dict[str, _Member] = {}  # by mark
        self._here: dict[str, _Member] = {}  # by host
        self._by_address: dict[str, _Member] = {}

    def judge(self, greeting: Greeting) -> str:
        """The agent that began last counts; and one that comes back counts at once, though its
        old connection may not have been found dead yet."""
        here = self._here.get(greeting.name)
        if here is not None and here.greeting.begun_at_ns > greeting.begun_at_ns:
            return f"another agent of the name {greeting.name} is here, which began later"
        return ""

    def arrived(self, channel: Channel, greeting: Greeting) -> None:
        waiting = self._at_the_door.items()
        self._at_the_door = {mark: who for mark, who in waiting if not who.channel.is_lost}
        self._at_the_door[greeting.mark] = _Member(greeting, channel)

    def joined(self, address: str, hello: bytes) -> None:
        """Dask knows it."""
        member = self._at_the_door.pop(address.rpartition("://")[2], None)
        if member is None:
            return
        member.address = address
        host = member.greeting.name
        if self.judge(member.greeting):
            member.channel.abort("a later agent came first")
            return
        self._leave(host, "its agent has come anew")
        self._here[host] = self._by_address[address] = member
        self._news.put(Came(host, hello, member.channel.peer))

    def left(self, address: str) -> None:
        if member := self._by_address.get(address):
            self._leave(member.greeting.name, member.channel.lost_because or "it left")

    def said(self, address: str, message: bytes) -> None:
        if member := self._by_address.get(address):
            can_wait = self._can_wait(message)
            said = Said(member.greeting.name, message, time.monotonic())
            self._news.put(said, can_wait=can_wait)
            if can_wait and not self._rings_soon:
                self._rings_soon = True
                asyncio.get_running_loop().call_later(_A_MOMENT_SECONDS, self._ring)

    def _ring(self) -> None:
        self._rings_soon = False
        self._news.ring()

    def send(self, host: str, message: bytes) -> None:
        if (member := self._here.get(host)) and self.scheduler is not None:
            self.scheduler.tell(member.address, message)

    def drop(self, host: str) -> None:
        if member := self._here.get(host):
            member.channel.abort("dropped by the dispatcher")

    def abort_all(self) -> None:
        for member in [*self._here.values(), *self._at_the_door.values()]:
            member.channel.abort("the dispatcher ends")

    def _leave(self, host: str, why: str) -> None:
        if member := self._here.pop(host, None):
            del self._by_address[member.address]
            self._news.put(Went(host, why))
            member.channel.abort(why)


class _Refusals:
    """Tells of them, but not of a flood."""

    def __init__(self, news: Mailbox[News]) -> None:
        self._news = news
        self._told: set[tuple[str, str]] = set()
        self._forgets_at = 0.0

    def tell(self, peer: str, why: str) -> None:
        now = time.monotonic()
        if now >= self._forgets_at:
            self._told.clear()
            self._forgets_at = now + _REFUSAL_REPEATED_AFTER_SECONDS
        same = (peer.rpartition(":")[0], why)
        if same not in self._told and len(self._told) < _MOST_REFUSALS_TOLD:
            self._told.add(same)
            self._news.put(Refused(peer, why))


class _RaisedLimit:
    """Of open descriptors, for this process and those that it starts meanwhile."""

    def __init__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft, hard = self._before
        most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
        self._ours = (max(soft, most), hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._ours)

    def give_back(self) -> None:
        if resource.getrlimit(resource.RLIMIT_NOFILE) == self._ours:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._before)


def plugin_for(members: _Members) -> Any:
    """What Dask tells; made late, as its base class is Dask's."""
    from distributed import SchedulerPlugin

    class Membership(SchedulerPlugin):
        def add_worker(self, scheduler: Any, worker: str) -> None:
            hello = scheduler.workers[worker].extra.get("hello", b"")
            members.joined(worker, hello if isinstance(hello, bytes) else b"")

        def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
            members.left(worker)

        def log_event(self, topic: str, msg: Any) -> None:
            if topic == TOPIC and isinstance(msg, dict) and isinstance(msg.get("data"), bytes):
                members.said(msg.get("worker", ""), msg["data"])

    return Membership()
