"""Where the output of jobs goes: to a log file each, or untouched (tagged.py has the third way)."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

from smartsched.core.actions import Launch
from smartsched.core.model import Placement, RunKey
from smartsched.errors import UsageError

_TAIL_BYTES = 1 << 16
_MOST_TAIL_LINES = 200


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
        self._prefix = f"{self._folder}/"
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
        return self._prefix + log_name(run)

    def tail(self, run: RunKey) -> str:
        return "\n".join(tail(self.path(run), _MOST_TAIL_LINES))

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

    def tail(self, run: RunKey) -> str:
        return ""

    def is_settled(self) -> bool:
        return True

    def close(self) -> None: ...
