"""The dispatcher's end: which agents are here, what they have said, and what they are told. One
port; a Dask scheduler that schedules nothing, in a thread of its own."""

import asyncio
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec import Struct

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
# What an agent is told that was dropped, and comes too soon.
SENT_AWAY = "sent away for a while"
_START_SECONDS = 20.0
_A_MOMENT_SECONDS = 0.25  # that a message lies about which can wait
_CLOSE_SECONDS, _JOIN_SECONDS = 0.5, 0.9
# More than 10,000 agents would need; some programs that inherit the limit go through all below it.
_MOST_DESCRIPTORS = 65_536
_REFUSAL_REPEATED_AFTER_SECONDS = 60.0
_MOST_REFUSALS_TOLD = 30  # in that time, of all addresses together


class Came(Struct, frozen=True):
    """An agent is here. `connection`: tells this one from all that there ever were, and what is
    sent goes there and nowhere else. `hello`: what it says first; `peer`: where it came from,
    `host:port`."""

    host: str
    connection: str
    hello: bytes
    peer: str


class Said(Struct, frozen=True):
    host: str
    connection: str
    message: bytes
    at_monotonic: float  # time.monotonic() when it arrived here


class Went(Struct, frozen=True):
    """For every Came one Went, before this host's next Came."""

    host: str
    connection: str
    why: str


class Refused(Struct, frozen=True):
    """Somebody was not let in; the same of the same address is told once a minute."""

    peer: str
    why: str


News = Came | Said | Went | Refused


class _Member(Struct):
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

    def send(self, connection: str, message: bytes) -> None:
        """To its agent, in order; lost when that is gone, though another one of its name may have
        come. At most LARGEST_MESSAGE_BYTES."""
        if len(message) > LARGEST_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(message)} bytes is too long")
        self._thread.call(self._members.send, connection, message)

    def take(self) -> list[News]:
        """What has come since the last call, oldest first."""
        return self._news.take()

    def drop(self, connection: str, why: str = "", keep_out_seconds: float = 0.0) -> None:
        """Disconnect its agent, of which its Went tells. It may come back, but not for so long; it
        is told why, and nobody here."""
        self._thread.call(self._members.drop, connection, why, keep_out_seconds)

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
        # Here and below by the agent's mark, which is that of the connection.
        self._at_the_door: dict[str, _Member] = {}
        self._inside: dict[str, _Member] = {}
        self._here: dict[str, _Member] = {}  # the same by host
        # Who is not let in for a while, by name and beginning: until when, and why.
        self._kept_out: dict[tuple[str, int], tuple[float, str]] = {}

    def judge(self, greeting: Greeting) -> str:
        """The agent that began last counts; and one that comes back counts at once, though its
        old connection may not have been found dead yet."""
        if why := self._why_kept_out(greeting):
            return f"{SENT_AWAY}: {why}"
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
        member = self._at_the_door.pop(_mark_of(address), None)
        if member is None:
            return
        member.address = address
        host, mark = member.greeting.name, member.greeting.mark
        if self.judge(member.greeting):
            member.channel.abort("a later agent came first")
            return
        self._leave(host, "its agent has come anew")
        self._here[host] = self._inside[mark] = member
        self._news.put(Came(host, mark, hello, member.channel.peer))

    def left(self, address: str) -> None:
        if member := self._inside.get(_mark_of(address)):
            self._leave(member.greeting.name, member.channel.lost_because or "it left")

    def said(self, address: str, message: bytes) -> None:
        if member := self._inside.get(_mark_of(address)):
            can_wait = self._can_wait(message)
            greeting = member.greeting
            said = Said(greeting.name, greeting.mark, message, time.monotonic())
            self._news.put(said, can_wait=can_wait)
            if can_wait and not self._rings_soon:
                self._rings_soon = True
                asyncio.get_running_loop().call_later(_A_MOMENT_SECONDS, self._ring)

    def _ring(self) -> None:
        self._rings_soon = False
        self._news.ring()

    def send(self, mark: str, message: bytes) -> None:
        if (member := self._inside.get(mark)) and self.scheduler is not None:
            self.scheduler.tell(member.address, message)

    def drop(self, mark: str, why: str, keep_out_seconds: float) -> None:
        if member := self._inside.get(mark):
            if keep_out_seconds > 0:
                who = (member.greeting.name, member.greeting.begun_at_ns)
                self._kept_out[who] = (time.monotonic() + keep_out_seconds, why)
            member.channel.abort("dropped by the dispatcher")

    def _why_kept_out(self, greeting: Greeting) -> str:
        now = time.monotonic()
        self._kept_out = {who: kept for who, kept in self._kept_out.items() if now < kept[0]}
        return self._kept_out.get((greeting.name, greeting.begun_at_ns), (0.0, ""))[1]

    def abort_all(self) -> None:
        for member in [*self._here.values(), *self._at_the_door.values()]:
            member.channel.abort("the dispatcher ends")

    def _leave(self, host: str, why: str) -> None:
        if member := self._here.pop(host, None):
            del self._inside[member.greeting.mark]
            self._news.put(Went(host, member.greeting.mark, why))
            member.channel.abort(why)


class _Refusals:
    """Tells of them, but not of a flood."""

    def __init__(self, news: Mailbox[News]) -> None:
        self._news = news
        self._told: set[tuple[str, str]] = set()
        self._forgets_at = 0.0

    def tell(self, peer: str, why: str) -> None:
        if why.startswith(SENT_AWAY):
            return  # by those who are told here
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


def _mark_of(address: str) -> str:
    """The agent's, by Dask's name for it (see inside.OurWorker)."""
    return address.rpartition("://")[2]


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
