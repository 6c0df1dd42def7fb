"""An agent's end: finds its run's dispatcher, stays with it, and finds it again. Listens nowhere; a
Dask worker that works on nothing, in a thread of its own."""

import asyncio
import random
import socket
import ssl
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from smartsched.core.credentials import Credentials
from smartsched.edges.engine.channel import LARGEST_MESSAGE_BYTES, Channel, LostError
from smartsched.edges.engine.greeting import Greeting, RefusedError, introduce
from smartsched.edges.engine.settings import import_dask
from smartsched.edges.engine.thread import LoopThread, Mailbox, in_a_thread
from smartsched.edges.engine.tls import agents_context
from smartsched.errors import UsageError
from smartsched.ports import FdWatcher

if TYPE_CHECKING:
    from smartsched.edges.engine.inside import OurWorker

TOPIC = "smartsched"
_NAME_SECONDS = 5.0
_TRY_SECONDS = 5.0  # for each address of a name: TCP, TLS, greeting
_JOIN_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
_STEADY_SECONDS = 10.0
_CLOSE_SECONDS, _END_SECONDS = 0.5, 0.9
_GOODBYE_SECONDS = 0.5


class Connected(Struct, frozen=True):
    """`address`: which of the candidates it was."""

    address: str


class Message(Struct, frozen=True):
    message: bytes
    at_monotonic: float  # time.monotonic() when it arrived here


class Disconnected(Struct, frozen=True):
    """For every Connected one."""

    why: str


class NotReached(Struct, frozen=True):
    """One address was tried in vain; it is tried again."""

    address: str
    why: str


News = Connected | Message | Disconnected | NotReached


class _MovedError(Exception):
    """The dispatcher is elsewhere by now."""


class Link:
    """Raises UsageError (an address that is none, no Dask) and StateError (credentials)."""

    def __init__(
        self,
        fds: FdWatcher,
        credentials: Credentials,
        *,
        addresses: Sequence[str],
        name: str,
        run_id: str,
        hello: bytes,
        silent_after_seconds: float = 10.0,
    ) -> None:
        """`addresses`: where the dispatcher may be, `host:port` or `[IPv6]:port`. `hello`: what is
        said first at each joining (`set_hello` changes it)."""
        self._places = [_parsed(address) for address in addresses]
        import_dask()
        self._context = agents_context(credentials)
        self._name, self._run_id, self._hello = name, run_id, hello
        self._silent_after_seconds = silent_after_seconds
        self._begun_at_ns = time.time_ns()
        self._news: Mailbox[News] = Mailbox(fds)
        self._worker: OurWorker | None = None
        self._channel: Channel | None = None  # the worker's
        self._is_connected = False
        # How often it was, and as far as the main thread knows.
        self._connections = self._known_connections = 0
        self._is_closing = False
        self._life: asyncio.Task[None] | None = None
        self._look_again: asyncio.Event | None = None
        self._has_moved: asyncio.Event | None = None
        self._thread = LoopThread("engine-link", self._live)

    def send(self, message: bytes) -> None:
        """To the dispatcher, in order, over the connection of which `take` has told last; lost when
        that is gone, though there may be another one. At most LARGEST_MESSAGE_BYTES."""
        if len(message) > LARGEST_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(message)} bytes is too long")
        self._thread.call(self._send, self._known_connections, message)

    def take(self) -> list[News]:
        """What has come since the last call, oldest first."""
        news = self._news.take()
        self._known_connections += sum(isinstance(each, Connected) for each in news)
        return news

    def drop(self) -> None:
        """Give the connection up, and look for the dispatcher again: what it says is no use."""
        self._thread.call(self._drop)

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """For a dispatcher that was resumed elsewhere. Looks there at once when not connected."""
        self._thread.call(self._set_places, [_parsed(address) for address in addresses])

    def look_again(self) -> None:
        """Now, or as soon as what is being tried has failed: it may be within reach again."""
        self._thread.call(self._wake)

    def set_hello(self, hello: bytes) -> None:
        """For joinings to come."""
        self._hello = hello

    def close(self) -> None:
        """What was sent goes out first, as far as the dispatcher takes it in half a second."""
        self._thread.call(self._end)
        self._thread.join(_END_SECONDS)
        self._news.close()

    # the rest lives in the thread of the event loop

    def _send(self, connection: int, message: bytes) -> None:
        if self._worker is not None and self._is_connected and connection == self._connections:
            self._worker.log_event(TOPIC, {"data": message})

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.abort("dropped here")

    def _set_places(self, places: list[tuple[str, str, int]]) -> None:
        self._places = places
        if self._has_moved is not None:
            self._has_moved.set()
        self._wake()

    def _wake(self) -> None:
        if self._look_again is not None:
            self._look_again.set()

    def _end(self) -> None:
        self._is_closing = True
        if self._life is not None:
            self._life.cancel()

    async def _live(self) -> None:
        from smartsched.edges.engine import comm

        comm.register()
        self._look_again, self._has_moved = asyncio.Event(), asyncio.Event()
        if self._is_closing:
            return
        self._life = asyncio.get_running_loop().create_task(self._look_for_it())
        with suppress(asyncio.CancelledError):
            await self._life

    async def _look_for_it(self) -> None:
        assert self._look_again is not None
        assert self._has_moved is not None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._look_again.clear()
            self._has_moved.clear()
            began = time.monotonic()
            if await self._try_all() and time.monotonic() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            # not all agents of a dispatcher that ended shall come back in the same moment
            with suppress(TimeoutError):
                pause_now = pause * random.uniform(0.5, 1)  # noqa: S311  # nothing secret
                await asyncio.wait_for(self._look_again.wait(), pause_now)
                pause = _FIRST_PAUSE_SECONDS
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _try_all(self) -> bool:
        """Whether it was connected, until it was not any more."""
        for address, host, port in list(self._places):
            try:
                channel, greeting = await self._reach_unless_moved(host, port)
            except _MovedError:
                return False
            except Exception as error:  # noqa: BLE001  # one that ceased to look would be lost
                self._news.put(NotReached(address, _why(error)))
                continue
            if await self._stay(address, channel, greeting):
                return True
        return False

    async def _reach_unless_moved(self, host: str, port: int) -> tuple[Channel, Greeting]:
        """Raises also _MovedError: whoever is silent at the old place must not keep us there."""
        assert self._has_moved is not None
        moved = asyncio.ensure_future(self._has_moved.wait())
        reaching = asyncio.ensure_future(self._reach(host, port))
        try:
            await asyncio.wait((moved, reaching), return_when=asyncio.FIRST_COMPLETED)
            if not reaching.done():
                raise _MovedError
            return reaching.result()
        finally:
            moved.cancel()
            reaching.cancel()

    async def _reach(self, host: str, port: int) -> tuple[Channel, Greeting]:
        """Raises RefusedError and OSError, of which TimeoutError is one."""
        async with asyncio.timeout(_NAME_SECONDS):
            found = await in_a_thread(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        error: Exception = OSError("the name has no address")
        for ip in dict.fromkeys(str(address[0]) for *_, address in found):
            try:
                async with asyncio.timeout(_TRY_SECONDS):
                    return await self._connect(ip, port)
            except (RefusedError, OSError) as raised:
                error = raised
        raise error

    async def _connect(self, ip: str, port: int) -> tuple[Channel, Greeting]:
        channel = Channel(self._silent_after_seconds)
        await asyncio.get_running_loop().create_connection(
            lambda: channel,
            ip,
            port,
            ssl=self._context,
            server_hostname="",
            ssl_handshake_timeout=_TRY_SECONDS,
            ssl_shutdown_timeout=_GOODBYE_SECONDS,
        )
        greeting = Greeting(
            self._run_id,
            self._name,
            self._begun_at_ns,
            uuid.uuid4().hex,
            self._silent_after_seconds,
        )
        try:
            await introduce(channel, greeting)
        except BaseException:
            channel.abort("not greeted")
            raise
        return channel, greeting

    async def _stay(self, address: str, channel: Channel, greeting: Greeting) -> bool:
        """As long as the connection holds. Whether there was one."""
        from smartsched.edges.engine import inside

        was_connected = False
        self._channel = channel
        try:
            self._worker = inside.OurWorker(
                inside.Passport({"ready": [channel]}, {}),
                name=self._name,
                mark=greeting.mark,
                hello=self._hello,
                on_message=lambda message: self._on_message(address, message),
                patience_seconds=_JOIN_SECONDS,
            )
            await self._worker
            was_connected = True
            self._on_connected(address)
            await self._worker.finished()  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001  # what a later Dask may raise is not known
            self._news.put(NotReached(address, channel.lost_because or _why(error)))
        finally:
            await self._leave(channel)
        return was_connected

    async def _leave(self, channel: Channel) -> None:
        worker, self._worker, self._channel = self._worker, None, None
        why = channel.lost_because or "it closed the connection"
        if self._is_connected:
            self._is_connected = False
            self._news.put(Disconnected("closed here" if self._is_closing else why))
        if worker is not None:
            with suppress(TimeoutError, RuntimeError, OSError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await worker.close(executor_wait=False, nanny=False)
        channel.abort("closed here")

    def _on_connected(self, address: str) -> None:
        if not self._is_connected:
            self._is_connected = True
            self._connections += 1
            self._news.put(Connected(address))

    def _on_message(self, address: str, message: bytes) -> None:
        """Which may come before Dask has said that it is up."""
        self._on_connected(address)
        self._news.put(Message(message, time.monotonic()))


def _parsed(address: str) -> tuple[str, str, int]:
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not (colon and bare and port.isdecimal() and 0 < int(port) < 65_536):
        raise UsageError(f"{address!r} is no address of a dispatcher: give host:port")
    return address, bare, int(port)


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"it did not answer in {_TRY_SECONDS:.0f} s"
    if isinstance(error, ssl.SSLError):
        return f"it is no dispatcher of this user's ({(error.reason or str(error)).lower()})"
    if isinstance(error, LostError):
        return f"it closed the connection before it had greeted ({error})"
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # Dask wraps it
        error = error.__cause__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
