"""One connection: frames of bytes in order, until either side is gone or was silent for too long.
Knows nothing of what the frames say.

A frame is its length (4 bytes, big-endian) and that many bytes. An empty one says only that its
sender is alive; it is sent when there was nothing else to send.
"""

import asyncio
import struct
from collections import deque
from contextlib import suppress

LARGEST_FRAME_BYTES = 64 << 20
LARGEST_MESSAGE_BYTES = LARGEST_FRAME_BYTES - 4096  # of ours; the rest is what is written around it
# Whoever is not known yet has little to say.
LARGEST_GREETING_BYTES = 4096
_LENGTH = struct.Struct(">I")
_ALIVE = _LENGTH.pack(0)
_ALIVE_SIGNS_PER_SILENCE = 4
_DOUBT_SECONDS = 0.1
_MOST_UNREAD_FRAMES = 256


class LostError(ConnectionError):
    """There is nobody at the other end any more; says why."""


class Channel(asyncio.Protocol):
    """For one reader. `peer`: its address, as people write it."""

    def __init__(self, silent_after_seconds: float) -> None:
        self.peer = ""
        self.lost_because = ""
        self.silent_after_seconds = silent_after_seconds
        self._alive_every_seconds = silent_after_seconds / _ALIVE_SIGNS_PER_SILENCE
        self._largest_frame_bytes = LARGEST_GREETING_BYTES
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._frames: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        self._gone = asyncio.Event()
        self._heard_at = self._said_at = self._loop.time()
        self._is_doubted = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_lost(self) -> bool:
        return bool(self.lost_because)

    def trust(self, its_patience_seconds: float) -> None:
        """It is one of ours: frames may be long. It takes us for gone when it has not heard us for
        this time, which need not be the time that we wait."""
        self._largest_frame_bytes = LARGEST_FRAME_BYTES
        self._alive_every_seconds = its_patience_seconds / _ALIVE_SIGNS_PER_SILENCE
        if not self.is_lost:
            self._look_at_the_clock()

    async def read(self) -> bytes:
        """The next frame that says something. Raises LostError, but not before all frames that
        have come were read."""
        while not self._frames:
            if self.is_lost:
                raise LostError(self.lost_because)
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        frame = self._frames.popleft()
        if len(self._frames) == _MOST_UNREAD_FRAMES // 2 and self._transport is not None:
            self._transport.resume_reading()
        return frame

    def write(self, frame: bytes) -> None:
        """Raises LostError."""
        if self._transport is None or self.is_lost:
            raise LostError(self.lost_because or "it was never there")
        self._said_at = self._loop.time()
        self._transport.write(_LENGTH.pack(len(frame)) + frame)

    async def drain(self) -> None:
        """Until the other end keeps up. Raises LostError."""
        await self._drained.wait()
        if self.is_lost:
            raise LostError(self.lost_because)

    async def close(self) -> None:
        """After what was written has been sent, as far as the other end takes it in time (the
        transport's own limit on a shutdown)."""
        if self._transport is not None and not self.is_lost:
            self._transport.close()
            await self._gone.wait()

    def abort(self, why: str) -> None:
        self._lose(why)
        if self._transport is not None:
            self._transport.abort()

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.peer = peer_of(transport.get_extra_info("peername"))
        self._heard_at = self._said_at = self._loop.time()
        self._look_at_the_clock()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._is_doubted = False
        self._received += data
        start = 0
        while len(self._received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received, start)
            if length > self._largest_frame_bytes:
                self.abort(f"it sent a message of {length} bytes")
                return
            end = start + _LENGTH.size + length
            if len(self._received) < end:
                break
            if length:
                self._frames.append(bytes(self._received[start + _LENGTH.size : end]))
            start = end
        del self._received[:start]
        if self._frames:
            self._wake_the_reader()
        if len(self._frames) > _MOST_UNREAD_FRAMES and self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"the connection broke: {exc}" if exc else "it closed the connection")
        self._gone.set()

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    def _lose(self, why: str) -> None:
        if not self.is_lost:
            self.lost_because = why
        if self._timer is not None:
            self._timer.cancel()
        self._drained.set()
        self._wake_the_reader()

    def _wake_the_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _look_at_the_clock(self) -> None:
        now = self._loop.time()
        patience_seconds = self._heard_at + self.silent_after_seconds - now
        if patience_seconds <= 0 and self._frames_are_taken():
            if self._is_doubted:
                self.abort(f"silent for {self.silent_after_seconds:.0f} s")
                return
            # We may have been stopped ourselves, and what has come meanwhile was not read yet:
            # after a stop, select() says that the time is over, without a look at what is there.
            self._is_doubted = True
        if now - self._said_at >= self._alive_every_seconds / 2 and self._transport is not None:
            self._said_at = now
            self._transport.write(_ALIVE)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(
            min(self._alive_every_seconds, max(patience_seconds, _DOUBT_SECONDS)),
            self._look_at_the_clock,
        )

    def _frames_are_taken(self) -> bool:
        """Whether we are reading at all: nobody is heard who is not listened to."""
        return len(self._frames) <= _MOST_UNREAD_FRAMES // 2


def peer_of(address: object) -> str:
    """`host:port`, as people write it; an IPv4 address without what IPv6 puts before it."""
    with suppress(TypeError, ValueError, IndexError):
        host, port = address[0].removeprefix("::ffff:"), address[1]  # type: ignore[index]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "an unknown address"
