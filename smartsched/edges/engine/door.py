"""The dispatcher's one port: who may come in, and how many may stand before it.

Anybody on the network can connect, by the thousand, and say nothing or rubbish. So whoever has not
shown a certificate of ours costs one descriptor and little memory, has a few seconds, and only so
many may wait at a time; when they are too many, the longest waiting of whichever host sends most
goes first. Nothing that anybody says is looked into before TLS has found him to be one of ours.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from msgspec import Struct

from smartsched.edges.engine.channel import Channel, LostError, peer_of
from smartsched.edges.engine.greeting import Greeting, RefusedError, hear, refuse, welcome
from smartsched.errors import StateError

_BACKLOG = 1024
_MOST_WAITING = 128
_PATIENCE_SECONDS = 6.0
_GOODBYE_SECONDS = 0.5
# At most so many are let to the door at a time, so that a flood leaves us time for our own.
_ACCEPTED_AT_ONCE, _PAUSE_SECONDS = 32, 0.02
_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_WHEN_FULL_SECONDS = 0.2
_TLS_HANDSHAKE = b"\x16"

# Says why an agent may not come in; "": it may.
Judge = Callable[[Greeting], str]
Arrived = Callable[[Channel, Greeting], None]
Welcome = Callable[[Channel, Greeting], Coroutine[Any, Any, None]]
# Is told who was sent away, and why.
Tell = Callable[[str, str], None]


def listening_on(host: str, port: int) -> socket.socket:
    """One socket; host "": all addresses of this host, of IPv4 and IPv6. Raises StateError."""
    try:
        if not host and socket.has_dualstack_ipv6():
            listening = _bound(socket.AF_INET6, ("::", port), dualstack=True)
        else:
            found = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]
            listening = _bound(family, address)
    except (OSError, OverflowError) as error:
        where = f"port {port}" if port else "a port"
        at = f" of {host}" if host else ""
        raise StateError(
            f"cannot listen on {where}{at}: {getattr(error, 'strerror', None) or error}"
        ) from error
    return listening


class Entrance(Struct, frozen=True):
    """What a door is made of."""

    listening: socket.socket
    context: ssl.SSLContext
    run_id: str
    silent_after_seconds: float
    judge: Judge
    arrived: Arrived
    tell: Tell


class Door:
    """Lives in the thread of its event loop."""

    def __init__(self, entrance: Entrance, welcome: Welcome) -> None:
        self._entrance = entrance
        self._listening = entrance.listening
        self._welcome = welcome
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, dict[asyncio.Task[None], None]] = {}
        self._inside: set[asyncio.Task[None]] = set()
        self._resumes: asyncio.TimerHandle | None = None

    def open(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    def close(self) -> None:
        """Nobody comes in any more, and nobody waits; who is inside stays."""
        if self._resumes is not None:
            self._resumes.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for waiting in list(self._waiting.values()):
            for task in list(waiting):
                task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue
            except OSError as error:
                if error.errno in _FULL:
                    self._send_one_away()
                    self._pause(_PAUSE_WHEN_FULL_SECONDS)
                return
            connection.setblocking(False)
            # asyncio does so only where it has made the listening socket itself; without it an
            # order waits 40 ms for the other end to confirm the one before it
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._let_wait(connection, address)
        self._pause(_PAUSE_SECONDS)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._resumes = self._loop.call_later(seconds, self.open)

    def _let_wait(self, connection: socket.socket, address: tuple[object, ...]) -> None:
        if sum(map(len, self._waiting.values())) >= _MOST_WAITING:
            self._send_one_away()
        host = str(address[0])
        task = self._loop.create_task(self._receive(connection, peer_of(address)))
        self._waiting.setdefault(host, {})[task] = None
        task.add_done_callback(lambda task: self._waits_no_more(host, task))

    def _send_one_away(self) -> None:
        """Of the host that has most waiting, whoever waits longest."""
        if self._waiting:
            host = max(self._waiting, key=lambda host: len(self._waiting[host]))
            task = next(iter(self._waiting[host]))
            self._waits_no_more(host, task)
            task.cancel()

    def _waits_no_more(self, host: str, task: asyncio.Task[None]) -> None:
        if waiting := self._waiting.get(host):
            waiting.pop(task, None)
            if not waiting:
                del self._waiting[host]

    async def _receive(self, connection: socket.socket, peer: str) -> None:
        channel = Channel(self._entrance.silent_after_seconds)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                greeting = await self._know(connection, channel)
        except asyncio.CancelledError:
            self._entrance.tell(peer, "too many wait at the door")
            channel.abort("too many wait at the door")
        except Exception as error:  # noqa: BLE001  # whatever a stranger has thought of
            self._entrance.tell(peer, _why(error))
            await self._leave(channel)
        else:
            self._take_in(channel, greeting)

    async def _know(self, connection: socket.socket, channel: Channel) -> Greeting:
        """Raises RefusedError, LostError, OSError and TimeoutError."""
        try:
            await self._see_it_begin_with_tls(connection)
            await self._loop.connect_accepted_socket(
                lambda: channel,
                connection,
                ssl=self._entrance.context,
                ssl_handshake_timeout=_PATIENCE_SECONDS,
                ssl_shutdown_timeout=_GOODBYE_SECONDS,
            )
        except BaseException:
            if not channel.peer:
                connection.close()
            raise
        greeting = await hear(channel, self._entrance.run_id)
        if why := self._entrance.judge(greeting):
            refuse(channel, self._entrance.run_id, why)
            raise RefusedError(why)
        welcome(channel, self._entrance.run_id, greeting)
        return greeting

    async def _see_it_begin_with_tls(self, connection: socket.socket) -> None:
        """The first byte stays where it is. Until it has come no TLS is begun, which would cost
        memory. Raises RefusedError and OSError."""
        has_come = asyncio.Event()
        self._loop.add_reader(connection, has_come.set)
        try:
            await has_come.wait()
        finally:
            self._loop.remove_reader(connection)
        if connection.recv(1, socket.MSG_PEEK) != _TLS_HANDSHAKE:
            raise RefusedError("it did not begin with TLS")

    async def _leave(self, channel: Channel) -> None:
        with suppress(asyncio.CancelledError):
            await channel.close()

    def _take_in(self, channel: Channel, greeting: Greeting) -> None:
        task = self._loop.create_task(self._welcome(channel, greeting))
        self._inside.add(task)
        task.add_done_callback(self._inside.discard)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it did not show in time who it is"
    if isinstance(error, ssl.SSLError):
        return f"it has no certificate of this user's ({(error.reason or str(error)).lower()})"
    if isinstance(error, ConnectionError) and not isinstance(error, LostError):
        return "it left before it had shown who it is"
    return str(error) or type(error).__name__


def _bound(family: int, address: tuple[object, ...], *, dualstack: bool = False) -> socket.socket:
    listening = socket.create_server(
        address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=dualstack
    )
    listening.setblocking(False)
    return listening
