"""Where the output of jobs goes: to a log file each, to our own stdout with a tag, or untouched."""

import errno
import os
import select
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartsched.core.actions import Launch
from smartsched.core.model import Placement, RunKey
from smartsched.errors import UsageError
from smartsched.ports import FdWatcher

_READ_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 20
# What poll() promises: a pipe that is writable takes this much without blocking (POSIX PIPE_BUF).
_WRITE_BYTES = 4096
_WRITES_AT_ONCE = 64
_LAST_READS = 16
_MOST_UNWRITTEN_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16


def log_name(run: RunKey) -> str:
    """0001.log, of a second attempt 0001.2.log; longer numbers get a letter for each further digit,
    so that names still sort."""
    digits = f"{run.job:04d}"
    longer_by = len(digits) - 4
    again = f".{run.attempt}" if run.attempt > 1 else ""
    return f"{chr(ord('a') + longer_by - 1) if longer_by else ''}{digits}{again}.log"


def tail(path: str, lines: int) -> list[str]:
    """The last lines of a log, as text that may hold anything. Empty where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb") as log:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return []
            log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
            data = log.read(_TAIL_BYTES)
    except OSError:
        return []
    texts = [_as_seen(line) for line in data.rstrip().split(b"\n")]
    return [text.decode("utf-8", "surrogateescape") for text in texts if text][-lines:]


def _as_seen(line: bytes | bytearray) -> bytes:
    """What a terminal would show of it: progress bars overwrite what stands before."""
    return bytes(line.rstrip(b"\r").rpartition(b"\r")[2])


class LogFiles:
    """An Output: one file a job, in a folder of the run's own.

    Others may own the folder above (a group's, /tmp): nothing there is followed or overwritten.
    """

    def __init__(self, folder: Path, *, resumed: bool = False) -> None:
        """`resumed`: it may be there already, as an earlier dispatcher's of the same run."""
        self._folder = folder.absolute()
        folder = self._folder
        self._made = [path for path in (folder, folder.parent) if not path.exists()]
        self._fds: dict[RunKey, int] = {}
        try:
            self._folder_fd = self._make_folder(again=resumed)
        except OSError as error:
            raise UsageError(
                f"cannot make {error.filename} for the jobs' logs: {error.strerror};"
                " name another place with --logs DIR"
            ) from error

    def open(self, run: RunKey, launch: Launch) -> list[tuple[Any, ...]]:
        fd = self._fds[run] = self._open(log_name(run))
        return [(os.POSIX_SPAWN_DUP2, fd, 1), (os.POSIX_SPAWN_DUP2, fd, 2)]

    def _open(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(name, flags, 0o666, dir_fd=self._folder_fd)
        except FileNotFoundError:  # somebody tidied up; that is no reason for a job to fail
            gone, self._folder_fd = self._folder_fd, self._make_folder(again=True)
            os.close(gone)
            return os.open(name, flags, 0o666, dir_fd=self._folder_fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder / name)) from error

    def _make_folder(self, *, again: bool = False) -> int:
        self._folder.mkdir(parents=True, exist_ok=again)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._folder, flags)
        if os.fstat(fd).st_uid != os.getuid():
            os.close(fd)
            raise OSError(errno.EPERM, "it belongs to somebody else", str(self._folder))
        return fd

    def opened(self, run: RunKey, *, started: bool) -> None:
        if (fd := self._fds.pop(run, None)) is not None:
            os.close(fd)

    def adopt(self, run: RunKey, placement: Placement) -> None: ...

    def closed(self, run: RunKey) -> None: ...

    def path(self, run: RunKey) -> str:
        return str(self._folder / log_name(run))

    def is_settled(self) -> bool:
        return True

    def close(self) -> None:
        """Leave no empty folders where nothing ran."""
        os.close(self._folder_fd)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return


class Untouched:
    """An Output: jobs write to our own stdout and stderr."""

    def open(self, run: RunKey, launch: Launch) -> list[tuple[Any, ...]]:
        return []

    def opened(self, run: RunKey, *, started: bool) -> None: ...

    def adopt(self, run: RunKey, placement: Placement) -> None: ...

    def closed(self, run: RunKey) -> None: ...

    def path(self, run: RunKey) -> None:
        return None

    def is_settled(self) -> bool:
        return True

    def close(self) -> None: ...


@dataclass(slots=True)
class _Stream:
    read_fd: int
    write_fd: int  # the run's end; ours to close once the run has it
    tag: bytes
    pending: bytearray = field(default_factory=bytearray)


class Tagged:
    """An Output: every line of every job on one descriptor, whole, behind the job and its GPU.

    A reader who is slow (a pager) slows the jobs, as any pipe would, and not this process.
    """

    def __init__(self, fds: FdWatcher, fd: int, when_gone: Callable[[str], None]) -> None:
        """`when_gone` is called with the reason when nothing can be written to `fd` any more."""
        self._fds = fds
        self._fd = fd
        self._when_gone = when_gone
        self._streams: dict[RunKey, _Stream] = {}
        self._unwritten = bytearray()
        self._paused = False
        self._gone = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def open(self, run: RunKey, launch: Launch) -> list[tuple[Any, ...]]:
        if self._paused:
            raise OSError(errno.EAGAIN, "whoever reads the output is slow")
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        tag = f"[{run.job} gpu {launch.placement.labels}] ".encode()
        self._streams[run] = _Stream(read_fd, write_fd, tag)
        return [(os.POSIX_SPAWN_DUP2, write_fd, 1), (os.POSIX_SPAWN_DUP2, write_fd, 2)]

    def opened(self, run: RunKey, *, started: bool) -> None:
        stream = self._streams.get(run)
        if stream is None:
            return
        os.close(stream.write_fd)
        if not started:
            os.close(self._streams.pop(run).read_fd)
        elif not self._paused:
            self._listen(stream)

    def closed(self, run: RunKey) -> None:
        stream = self._streams.pop(run, None)
        if stream is None:
            return
        self._fds.forget(stream.read_fd)
        for _ in range(_LAST_READS):  # somebody unknown may still write, and never end
            if not self._read(stream):
                break
        if stream.pending:
            self._emit(stream, [bytes(stream.pending)])
        os.close(stream.read_fd)

    def path(self, run: RunKey) -> None:
        return None

    def is_settled(self) -> bool:
        """Whether the reader has taken everything."""
        return not self._unwritten

    def close(self) -> None:
        """What the reader has not taken by now is dropped."""
        self._fds.forget(self._fd)
        self._unwritten.clear()

    def _listen(self, stream: _Stream) -> None:
        self._fds.watch(stream.read_fd, lambda: self._on_readable(stream))

    def _on_readable(self, stream: _Stream) -> None:
        if not self._read(stream):
            self._fds.forget(stream.read_fd)

    def _read(self, stream: _Stream) -> bool:
        """Whether there may be more to come."""
        try:
            data = os.read(stream.read_fd, _READ_BYTES)
        except BlockingIOError:
            return False
        stream.pending += data
        *lines, rest = stream.pending.split(b"\n")
        shown_from = rest.rfind(b"\r", 0, len(rest.rstrip(b"\r"))) + 1
        rest = rest[shown_from:]
        if len(rest) > _LONGEST_LINE_BYTES:
            lines, rest = [*lines, rest], bytearray()
        stream.pending = rest
        self._emit(stream, lines)
        return bool(data)

    def _emit(self, stream: _Stream, lines: list[Any]) -> None:
        if lines and not self._gone:
            self._unwritten += b"".join([stream.tag + _as_seen(line) + b"\n" for line in lines])
            self._write()

    def _write(self) -> None:
        """What the reader takes at once; for the rest, be woken when he takes more."""
        for _ in range(_WRITES_AT_ONCE):
            if not self._unwritten or not self._poll.poll(0):
                break
            self._write_some()
        if self._unwritten:
            self._wait_for_reader()
        else:
            self._fds.forget(self._fd)
            self._resume()

    def _wait_for_reader(self) -> None:
        try:
            self._fds.watch(self._fd, self._write, writable=True)
        except PermissionError:  # a plain file: always writable, and epoll knows no such thing
            while self._unwritten:
                self._write_some()
        if len(self._unwritten) > _MOST_UNWRITTEN_BYTES and not self._paused:
            self._paused = True
            for stream in self._streams.values():
                self._fds.forget(stream.read_fd)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            for stream in self._streams.values():
                self._listen(stream)

    def _write_some(self) -> None:
        try:
            del self._unwritten[: os.write(self._fd, self._unwritten[:_WRITE_BYTES])]
        except BlockingIOError:
            return
        except OSError as error:
            self._gone = True
            self._unwritten.clear()
            self._when_gone(error.strerror or str(error))
