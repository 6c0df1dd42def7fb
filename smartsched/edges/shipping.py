"""Logs of jobs on their way from a host with disks of its own: read there in pieces, and written
here to the file that the job would have had.

Whoever writes says how much he has; whoever reads goes on from there. So nothing is lost or twice
when a connection breaks, an agent is another one, or a dispatcher is resumed.
"""

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from smartsched.core.messages import Chunk
from smartsched.core.model import RunKey, Timestamp
from smartsched.errors import StateError

_CHUNK_BYTES = 64 << 10
_MOST_AT_ONCE = 8  # pieces in one report
# The end of a job is told when its log is here; but a slow network must not keep a GPU idle.
_PATIENCE_SECONDS = 10.0
# Of a piece of which nobody has said by then that it has come: there was no room for it.
_SENT_AGAIN_AFTER_SECONDS = 10.0
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Log(Struct):
    path: str
    there: int = 0  # so many bytes have arrived
    sent_at: Timestamp | None = None  # what is on its way; None: nothing is
    may_have_more: bool = True
    ended_at: Timestamp | None = None  # its run's; None: it goes on


class LogFeed:
    """Logs, in an agent's sense: what it reads and sends."""

    def __init__(self, path_of: Callable[[RunKey], str], now: Callable[[], Timestamp]) -> None:
        self._path_of = path_of
        self._now = now
        self._logs: dict[RunKey, _Log] = {}

    def began(self, run: RunKey) -> None:
        self._logs.setdefault(run, _Log(self._path_of(run)))

    def joined(self) -> None:
        """There is a new connection: what was on its way may be lost."""
        for log in self._logs.values():
            log.sent_at, log.may_have_more = None, True

    def chunks(self) -> Sequence[Chunk]:
        """Of a log, the next piece is sent when the last one has arrived."""
        found: list[Chunk] = []
        for run, log in list(self._logs.items()):
            if self._is_on_its_way(log) or len(found) >= _MOST_AT_ONCE:
                continue
            data = _read(log.path, log.there)
            log.may_have_more = len(data) == _CHUNK_BYTES
            if data:
                log.sent_at = self._now()
                found.append(Chunk(run, log.there, data))
            elif log.ended_at is not None:
                del self._logs[run]
        return found

    def is_ready(self) -> bool:
        """Whether it would not do to wait for the next report."""
        return any(
            not self._is_on_its_way(log) and (log.may_have_more or log.ended_at is not None)
            for log in self._logs.values()
        )

    def fetched(self, run: RunKey, bytes_so_far: int) -> None:
        if (log := self._logs.get(run)) is not None:
            log.there, log.sent_at = bytes_so_far, None

    def is_fetched(self, run: RunKey) -> bool:
        """Asked when the run has ended."""
        log = self._logs.get(run)
        if log is None:
            return True
        if log.ended_at is None:
            log.ended_at = self._now()
        with suppress(OSError):
            if os.stat(log.path).st_size > log.there:
                return self._now() >= log.ended_at + _PATIENCE_SECONDS
        return True

    def is_done(self) -> bool:
        """Whether all has arrived of runs that have ended."""
        return all(log.ended_at is None for log in self._logs.values())

    def wake_at(self) -> Timestamp:
        """When the patience with one is over; with the others it is already."""
        ended = (log.ended_at for log in self._logs.values() if log.ended_at is not None)
        ends = (ended_at + _PATIENCE_SECONDS for ended_at in ended)
        return min((end for end in ends if end > self._now()), default=float("inf"))

    def _is_on_its_way(self, log: _Log) -> bool:
        return log.sent_at is not None and self._now() < log.sent_at + _SENT_AGAIN_AFTER_SECONDS


class LogStore:
    """Where the logs of other hosts are kept here. Nothing is followed or shared there."""

    def __init__(self, folder: Path, name_of: Callable[[RunKey], str]) -> None:
        """Raises StateError if there cannot be such a folder."""
        self._folder = folder.absolute()
        self._name_of = name_of
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._folder, _FOLDER_FLAGS))
        except OSError as error:
            raise StateError(f"cannot keep logs in {self._folder}: {error.strerror}") from error

    def path(self, run: RunKey) -> str:
        return str(self._folder / self._name_of(run))

    def write(self, chunk: Chunk) -> int | None:
        """So many bytes of the log are here now; None: it cannot be kept at the moment."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            folder_fd = os.open(self._folder, _FOLDER_FLAGS)
            try:
                name = self._name_of(chunk.run)
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | _FLAGS, 0o666, dir_fd=folder_fd)
            finally:
                os.close(folder_fd)
            return _append(fd, chunk)
        except OSError:
            return None


def _append(fd: int, chunk: Chunk) -> int:
    with open(fd, "wb", buffering=0) as log:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError("it is no plain file of ours")
        if found.st_size != chunk.offset:
            return found.st_size
        log.seek(chunk.offset)
        return chunk.offset + (log.write(chunk.data) or 0)


def _read(path: str, offset: int) -> bytes:
    """What is there by now; nothing, if it cannot be read."""
    try:
        with open(os.open(path, os.O_RDONLY | _FLAGS), "rb", buffering=0) as log:
            log.seek(offset)
            return log.read(_CHUNK_BYTES)
    except OSError:
        return b""
