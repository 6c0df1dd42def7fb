"""Jobs' output on our own stdout: whole lines, each behind its job and GPU.

Jobs write to files in the run's folder and we read after them, so that nobody who dies, is slow or
stops reading (this process, a pager) stops a job. A file goes once all of it was written out.
"""

import ctypes
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from smartsched.core.actions import Launch
from smartsched.core.model import JobId, Placement, RunKey
from smartsched.ports import FdWatcher

# Of each job at a time: short lines take a while, and others wait.
_TAIL_BYTES = 1 << 16
_READ_BYTES = 1 << 14
# What was shown is given back to the disk, so much at least at a time.
_PUNCH_BYTES = 1 << 20
_KEEP_SIZE_AND_PUNCH_HOLE = 0x1 | 0x2  # fallocate(2)
_LONGEST_LINE_BYTES = 1 << 20
# What poll() promises: a pipe that is writable takes this much without blocking (POSIX PIPE_BUF).
_WRITE_BYTES = 4096
_WRITES_AT_ONCE = 64
_MOST_UNWRITTEN_BYTES = 1 << 20
_IN_MODIFY, _IN_NONBLOCK, _IN_CLOEXEC = 0x2, os.O_NONBLOCK, os.O_CLOEXEC  # inotify(7)
# Where the kernel does not tell of changes, how often to look for some.
_LOOK_SECONDS = 0.2
_FILE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class _Stream(Struct):
    path: Path
    tag: bytes
    read_fd: int
    shown_fd: int
    offset: int  # what was read
    given_back: int = 0  # bytes at the beginning that take no room any more
    pending: bytearray = field(default_factory=bytearray)
    has_ended: bool = False  # nobody writes any more


class Tagged:
    """An Output."""

    def __init__(
        self, folder: Path, fds: FdWatcher, fd: int, when_gone: Callable[[str], None]
    ) -> None:
        """`folder` is the run's own. `when_gone` is called with the reason when nothing can be
        written to `fd` any more."""
        self._folder = folder
        self._fds = fds
        self._fd = fd
        self._when_gone = when_gone
        self._write_fds: dict[RunKey, int] = {}
        self._streams: dict[RunKey, _Stream] = {}
        self._unwritten = bytearray()
        self._gone = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._again = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        fds.watch(self._again, self._pump)
        self._changes = _Changes(fds, self._pump)
        for path in sorted(folder.iterdir()):  # of runs that an earlier dispatcher did not show
            if (run := _run_of(path)) is not None:
                with suppress(OSError):
                    self._follow(run, b"")
                    self._streams[run].has_ended = True  # until it is adopted
                    self._wake()

    def open(self, run: RunKey, launch: Launch) -> list[tuple[Any, ...]]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _FILE_FLAGS
        fd = self._write_fds[run] = os.open(self._path(run), flags, 0o600)
        self._follow(run, _tag(launch))
        return [(os.POSIX_SPAWN_DUP2, fd, 1), (os.POSIX_SPAWN_DUP2, fd, 2)]

    def opened(self, run: RunKey, *, started: bool) -> None:
        if (fd := self._write_fds.pop(run, None)) is not None:
            os.close(fd)
        if not started and run in self._streams:
            self._drop(run)

    def adopt(self, run: RunKey, placement: Placement) -> None:
        """It goes on writing."""
        if run in self._streams:
            self._streams[run].has_ended = False
            self._wake()

    def closed(self, run: RunKey) -> None:
        if run in self._streams:
            self._streams[run].has_ended = True
            self._pump()

    def path(self, run: RunKey) -> None:
        return None

    def tail(self, run: RunKey) -> str:
        stream = self._streams.get(run)
        if stream is None:
            return ""
        size = os.fstat(stream.read_fd).st_size
        data = os.pread(stream.read_fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        return data.decode("utf-8", "surrogateescape")

    def is_settled(self) -> bool:
        """Whether the reader has taken everything."""
        return not self._unwritten and not any(s.has_ended for s in self._streams.values())

    def close(self) -> None:
        """What the reader has not taken by now is dropped."""
        self._fds.forget(self._fd)
        self._fds.forget(self._again)
        self._changes.close()
        self._unwritten.clear()
        for run, stream in list(self._streams.items()):
            if stream.has_ended:
                self._drop(run)
            else:
                os.close(stream.read_fd)
                os.close(stream.shown_fd)
        self._streams.clear()
        os.close(self._again)

    def _path(self, run: RunKey) -> Path:
        return self._folder / f"{run.job:04d}.{run.attempt}"

    def _follow(self, run: RunKey, tag: bytes) -> None:
        """`tag`: what to put before each line; of one that was followed before, that is known."""
        path = self._path(run)
        read_fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | _FILE_FLAGS)
        shown_fd = os.open(_shown(path), os.O_RDWR | os.O_CREAT | _FILE_FLAGS, 0o600)
        said, _, known_tag = os.pread(shown_fd, 4096, 0).partition(b"\n")
        offset = int(said) if said.isdigit() and not tag else 0
        if tag:
            os.ftruncate(shown_fd, 0)
            os.pwrite(shown_fd, b"%020d\n%s" % (0, tag), 0)
        tag = tag or known_tag
        self._streams[run] = _Stream(path, tag, read_fd, shown_fd, offset)
        self._changes.watch(path)

    def _drop(self, run: RunKey) -> None:
        stream = self._streams.pop(run)
        self._changes.forget(stream.path)
        os.close(stream.read_fd)
        os.close(stream.shown_fd)
        for path in (stream.path, _shown(stream.path)):
            with suppress(OSError):
                path.unlink()

    def _wake(self) -> None:
        os.eventfd_write(self._again, 1)

    def _pump(self) -> None:
        """Read what there is of all streams in turn, as long as the reader takes it."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._again)
        is_more = False
        for run, stream in list(self._streams.items()):
            if len(self._unwritten) > _MOST_UNWRITTEN_BYTES:
                return  # until the reader takes more
            count = self._read(stream)
            is_more = is_more or count > 0
            if count == 0 and stream.has_ended:
                if stream.pending:
                    self._emit(stream, [bytes(stream.pending)])
                self._drop(run)
        if is_more:
            self._wake()

    def _read(self, stream: _Stream) -> int:
        """How many bytes there were."""
        data = os.pread(stream.read_fd, _READ_BYTES, stream.offset)
        if not data:
            return 0
        stream.offset += len(data)
        stream.pending += data
        *lines, rest = stream.pending.split(b"\n")
        shown_from = rest.rfind(b"\r", 0, len(rest.rstrip(b"\r"))) + 1
        rest = rest[shown_from:]
        if len(rest) > _LONGEST_LINE_BYTES:
            lines, rest = [*lines, rest], bytearray()
        stream.pending = rest
        if lines:
            self._emit(stream, lines)
            said = b"%020d" % (stream.offset - len(rest))
            with suppress(OSError):  # no room: after a crash some lines would be shown again
                os.pwrite(stream.shown_fd, said, 0)
            self._give_back(stream)
        return len(data)

    def _give_back(self, stream: _Stream) -> None:
        """Where that can be done: a job that writes for days takes no room for what was shown."""
        shown = stream.offset - len(stream.pending)
        if shown - stream.given_back < _PUNCH_BYTES:
            return
        length = shown - stream.given_back
        arguments = (ctypes.c_int64(stream.given_back), ctypes.c_int64(length))
        with suppress(AttributeError):
            ctypes.CDLL(None).fallocate(stream.read_fd, _KEEP_SIZE_AND_PUNCH_HOLE, *arguments)
        stream.given_back = shown

    def _emit(self, stream: _Stream, lines: list[Any]) -> None:
        if not self._gone:
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

    def _wait_for_reader(self) -> None:
        try:
            self._fds.watch(self._fd, self._on_writable, writable=True)
        except PermissionError:  # a plain file: always writable, and epoll knows no such thing
            while self._unwritten:
                self._write_some()

    def _on_writable(self) -> None:
        self._write()
        if len(self._unwritten) <= _MOST_UNWRITTEN_BYTES:
            self._wake()

    def _write_some(self) -> None:
        try:
            del self._unwritten[: os.write(self._fd, self._unwritten[:_WRITE_BYTES])]
        except BlockingIOError:
            return
        except OSError as error:
            self._gone = True
            self._unwritten.clear()
            self._when_gone(error.strerror or str(error))


class _Changes:
    """Tells that some of the watched files have grown: inotify, or else a look now and then."""

    def __init__(self, fds: FdWatcher, when_changed: Callable[[], None]) -> None:
        self._fds = fds
        self._when_changed = when_changed
        self._watches: dict[Path, int] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _inotify(self._libc)
        if self._fd >= 0:
            fds.watch(self._fd, self._on_readable)

    def watch(self, path: Path) -> None:
        watch = -1
        if self._fd >= 0:
            watch = self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY)
        if watch >= 0:
            self._watches[path] = watch
        else:
            self._fds.on_signal(signal.SIGALRM, self._when_changed)
            signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)

    def forget(self, path: Path) -> None:
        if (watch := self._watches.pop(path, None)) is not None:
            self._libc.inotify_rm_watch(self._fd, watch)

    def close(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._fd >= 0:
            self._fds.forget(self._fd)
            os.close(self._fd)

    def _on_readable(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, _READ_BYTES)
        self._when_changed()


def _inotify(libc: ctypes.CDLL) -> int:
    """Its descriptor; -1 where there is none to be had."""
    try:
        return int(libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
    except AttributeError:  # not Linux
        return -1


def _tag(launch: Launch) -> bytes:
    name = f" {launch.spec.wishes.name}" if launch.spec.wishes.name else ""
    gpus = f"gpu {launch.placement.labels}" if launch.placement.gpus else "no gpu"
    return f"[{launch.run.job}{name} {gpus}] ".encode()


def _run_of(path: Path) -> RunKey | None:
    job, _, attempt = path.name.partition(".")
    return RunKey(JobId(int(job)), int(attempt)) if job.isdigit() and attempt.isdigit() else None


def _shown(path: Path) -> Path:
    """Holds how much of the output was written out, in bytes, and the tag of its lines."""
    return path.with_name(f"{path.name}.shown")


def _as_seen(line: bytes | bytearray) -> bytes:
    """What a terminal would show of it: progress bars overwrite what stands before."""
    return bytes(line.rstrip(b"\r").rpartition(b"\r")[2])
