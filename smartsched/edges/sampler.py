"""The dispatcher's side of the sampler: a child process, a pipe to it, and a deadline.

The child alone talks to the driver (it may hang, die or be of yesterday's version). It writes one
snapshot a line on its interval, at once when a line with the UUIDs to read arrives on its stdin,
and when somebody comes to a GPU that it was told to watch. Late or broken means that nothing is
known; the child is replaced, never joined by another.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from msgspec import Struct, field

from smartsched.core import codec, words
from smartsched.core.model import (
    GpuKey,
    GpuUuid,
    HostName,
    SamplerTrouble,
    Seen,
    Snapshot,
    Timestamp,
)
from smartsched.errors import BadSnapshotError
from smartsched.ports import FdWatcher

# Without a word about the driver: somebody killed it, and the next one may do better.
ENDED = "the sampler process ended unexpectedly"
_READ_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 16 << 20
_STDERR_KEPT_BYTES = 4096
_LONGEST_REASON = 200
_FIRST_BACKOFF_SECONDS = 0.5
_OVERSLEPT_SECONDS = 2.0
# Without the persistence daemon the driver sets up every card first: seconds each on large boxes.
FIRST_LINE_PATIENCE_SECONDS = 30.0
_LONGEST_BACKOFF_SECONDS = 10.0


class _Child(Struct):
    pid: int
    requests_fd: int
    lines_fd: int
    errors_fd: int
    heard_at: Timestamp
    patience: float
    pending: bytearray = field(default_factory=bytearray)
    errors: bytearray = field(default_factory=bytearray)
    asked: dict[GpuKey, Timestamp] = field(default_factory=dict)
    watched: list[GpuUuid] = field(default_factory=list)  # as it was told
    unwritten: bytes = b""  # of a request that has begun
    said_why: bool = False  # its last line was about trouble, which its end may be due to
    doomed: bool = False  # killed; its end is awaited, since a hung driver call may delay it

    def hears(self, request: object) -> bool:
        """Whether it was told. If not, it is dying or hanging; either is noticed elsewhere."""
        data = self.unwritten + json.dumps(request).encode() + b"\n"
        try:
            written = os.write(self.requests_fd, data)
        except OSError:
            return False
        has_begun = written > len(self.unwritten)
        self.unwritten = data[written:] if has_begun else self.unwritten[written:]
        return has_begun

    def hears_the_rest(self) -> None:
        if self.unwritten:
            with suppress(OSError):
                self.unwritten = self.unwritten[os.write(self.requests_fd, self.unwritten) :]


class Sampler:
    """A GpuSource. `begin` makes a child: its pid, and our ends of its input, its output and its
    errors, which do not block. Raises OSError."""

    def __init__(
        self,
        fds: FdWatcher,
        begin: Callable[[], tuple[int, int, int, int]],
        host: HostName,
        *,
        at_monotonic: Callable[[float], Timestamp],
        patience_seconds: float,
        first_patience_seconds: float = FIRST_LINE_PATIENCE_SECONDS,
        run_id: str | None = None,
        now: Timestamp,
    ) -> None:
        """Patience: how long it may be silent; first: until it has said anything at all.
        `run_id`: of the run whose processes are no news where they are; None: samples are due so
        often that there is nothing to be watched between them."""
        self._fds = fds
        self._begin = begin
        self._host = host
        self._at_monotonic = at_monotonic
        self._patience = patience_seconds
        self._first_patience = max(first_patience_seconds, patience_seconds)
        self._run_id = run_id
        self._watched: list[GpuUuid] = []
        self._observations: list[Seen] = []
        self._child: _Child | None = None
        self._restart_at: Timestamp | None = None  # None: the last one's end is news
        self._backoff = _FIRST_BACKOFF_SECONDS
        self._now = now
        self._start()

    def take(self, now: Timestamp) -> Sequence[Seen]:
        self._now = now
        child = self._child
        if child is not None and now > child.heard_at + child.patience + _OVERSLEPT_SECONDS:
            child.heard_at = now  # we should have looked long ago: it was us who did not listen
        if child is None:
            self._restart_when_due(now)
        elif not child.doomed and now - child.heard_at > child.patience:
            waited = words.duration(now - child.heard_at)
            self._give_up_on(child, f"the driver has not answered for {waited}")
        if self._child is not None:
            self._child.hears_the_rest()
        self._say_what_to_watch()  # if it could not be said before
        observations, self._observations = self._observations, []
        return observations

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        child = self._child
        if child is None or child.doomed:
            return  # the next child's first line answers
        due = [gpu for gpu, after in gpus if child.asked.get(gpu, float("-inf")) < after]
        if due and child.hears([gpu.uuid for gpu in due]):
            child.asked.update(dict.fromkeys(due, now))

    def watch(self, gpus: Collection[GpuKey]) -> None:
        self._watched = sorted(gpu.uuid for gpu in gpus)
        self._say_what_to_watch()

    def _say_what_to_watch(self) -> None:
        child = self._child
        if child is None or child.doomed or self._run_id is None:
            return  # the next child is told
        if child.watched != self._watched and child.hears(
            {"watch": self._watched, "run": self._run_id}
        ):
            child.watched = self._watched

    def wake_at(self) -> Timestamp:
        child = self._child
        if child is None:
            return self._now if self._restart_at is None else self._restart_at
        return float("inf") if child.doomed else child.heard_at + child.patience + 0.01

    def pids(self) -> list[int]:
        """The child, if there is one."""
        return [] if self._child is None else [self._child.pid]

    def close(self) -> None:
        if self._child is not None:
            self._kill(self._child)
            self._let_go(self._child)

    def _restart_when_due(self, now: Timestamp) -> None:
        if self._restart_at is None:
            self._put_off(now)
        elif now >= self._restart_at:
            self._restart_at = None
            self._start()

    def _put_off(self, now: Timestamp) -> None:
        self._restart_at = now + self._backoff
        self._backoff = min(self._backoff * 2, _LONGEST_BACKOFF_SECONDS)

    def _start(self) -> None:
        try:
            pid, requests_fd, lines_fd, errors_fd = self._begin()
        except OSError as error:
            place = f": {error.filename}" if error.filename else ""
            why = f"the sampler cannot be started: {error.strerror}{place}"
            self._observations.append(SamplerTrouble(self._host, why))
            self._put_off(self._now)
            return
        self._child = _Child(pid, requests_fd, lines_fd, errors_fd, self._now, self._first_patience)
        self._fds.watch(lines_fd, self._read_lines)
        self._fds.watch(errors_fd, self._read_errors)
        self._say_what_to_watch()

    def _read_lines(self) -> None:
        child = self._child
        assert child is not None
        data = _read(child.lines_fd)
        if data is None:
            return
        if not data:
            self._bury(child)
            return
        if child.doomed:
            return
        child.pending += data
        if b"\n" not in data and len(child.pending) <= _LONGEST_LINE_BYTES:
            return
        *lines, rest = child.pending.split(b"\n")
        child.pending = rest
        try:
            for line in lines:
                self._hear(child, bytes(line))
            _check_length(rest)
        except BadSnapshotError as error:
            why = words.shortened(str(error), _LONGEST_REASON)
            self._give_up_on(child, f"the sampler said something unreadable: {why}")

    def _hear(self, child: _Child, line: bytes) -> None:
        fields = codec.parse(line)
        taken_at = self._at_monotonic(codec.monotonic_seconds(fields))
        observation = codec.decode(fields, taken_at=taken_at, host=self._host)
        self._observations.append(observation)
        child.heard_at = self._at_monotonic(time.monotonic())
        child.patience = self._patience
        if isinstance(observation, Snapshot):
            self._backoff = _FIRST_BACKOFF_SECONDS
            for gpu in observation.gpus:
                if child.asked.get(gpu.key, float("inf")) <= taken_at:
                    del child.asked[gpu.key]
        child.said_why = not isinstance(observation, Snapshot)

    def _read_errors(self) -> None:
        child = self._child
        assert child is not None
        data = _read(child.errors_fd)
        if data == b"":
            self._fds.forget(child.errors_fd)
        elif data is not None:
            child.errors += data
            del child.errors[:-_STDERR_KEPT_BYTES]

    def _give_up_on(self, child: _Child, why: str) -> None:
        self._observations.append(SamplerTrouble(self._host, why))
        self._kill(child)
        child.doomed = True

    def _bury(self, child: _Child) -> None:
        """Its output has ended: it is dead, or as good as. Another one follows after a while."""
        if not child.doomed and not child.said_why:
            self._read_errors()
            last_words = child.errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
            last_words = last_words.removeprefix("smartsched: ")
            why = last_words or ENDED
            self._observations.append(SamplerTrouble(self._host, why))
        self._let_go(child)
        self._child = None
        self._restart_at = None

    def _kill(self, child: _Child) -> None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)

    def _let_go(self, child: _Child) -> None:
        for fd in (child.requests_fd, child.lines_fd, child.errors_fd):
            self._fds.forget(fd)
            os.close(fd)


def _check_length(line: bytearray) -> None:
    if len(line) > _LONGEST_LINE_BYTES:
        raise BadSnapshotError("a line without end")


def _read(fd: int) -> bytes | None:
    """What is there; b"" at the end; None when there is nothing yet."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None
