"""The folder that the dispatchers of a box share, and our file there, which says what we claim.

Whoever claims GPUs keeps one file there, and its flock for as long as he lives. The folder's own
flock is held while the files of the others are read and ours is written: a file to lock could be a
trap. Nothing is opened through a link, and nothing is written to but a file that we have made.
"""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from smartsched.core.model import GpuKey, Timestamp
from smartsched.errors import StateError

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ADVICE = "name another folder with --claims DIR, or do without (--no-claims)"


class Reader(Protocol):
    """Reads the files of others, which are not to be trusted."""

    def read(self, folder_fd: int, own: tuple[int, int] | None) -> Mapping[str, object]:
        """By UUID, what others claim. `own`: device and inode of the file that is ours. Raises
        OSError if that cannot be said."""
        ...

    def complaints(self, folder: Path) -> list[str]: ...
    def ourselves(self) -> Mapping[str, object]:
        """What a file of ours has to say for others to find out whether we live."""
        ...

    def somebody(self, pid: int) -> Mapping[str, object]:
        """Likewise, of a child of ours that has it."""
        ...


def default_folder() -> Path:
    """Root's own, and open to all. A folder below it would belong to whoever came first: he could
    lock the others out, or remove their claims."""
    memory, otherwise = Path("/dev/shm"), Path("/tmp")  # noqa: S108  # see above
    try:
        mode = os.lstat(memory).st_mode
    except OSError:
        return otherwise
    is_for_all = stat.S_ISDIR(mode) and mode & stat.S_ISVTX and mode & stat.S_IWOTH
    return memory if is_for_all else otherwise


def claims_of_others(folder: Path, reader: Reader, warn: Callable[[str], None]) -> dict[str, str]:
    """By UUID, what others claim at the moment. Changes nothing; without the folder, it is nothing.

    Raises StateError if the folder cannot be used, or if what is claimed there cannot be said.
    """
    try:
        fd = _open_folder(folder)
        try:
            with suppress(BlockingIOError):  # reading meanwhile may miss what is just being written
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            claims = reader.read(fd, None)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unusable(folder, error) from error
    for complaint in reader.complaints(folder):
        warn(complaint)
    return {uuid: str(claimant) for uuid, claimant in claims.items()}


class ClaimFiles:
    """What is shared may be removed by others at any time; then it is made anew."""

    def __init__(self, folder: Path, reader: Reader, *, run_name: str) -> None:
        """Makes the folder if it is not there. Raises StateError if it cannot be used."""
        self.folder = folder.absolute()
        self._reader = reader
        self._own = _OwnFile({**reader.ourselves(), "run": run_name})
        self._fd = -1
        if self.lock():
            self.unlock()

    def lock(self) -> bool:
        """Whether we have it now; False: somebody else has. Raises StateError if nobody can."""
        try:
            if not self._is_where_others_look():
                self._open()
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise _unusable(self.folder, error) from error
        if self._is_where_others_look():
            return True
        self.unlock()  # the folder was replaced in just this moment
        return False

    def unlock(self) -> None:
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def others(self) -> Mapping[str, object]:
        """Under the lock: by UUID, what others claim. Raises StateError if that cannot be said."""
        try:
            return self._reader.read(self._fd, self._own.identity())
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def write(self, shares: Mapping[GpuKey, tuple[int, Timestamp]]) -> None:
        """Under the lock: say what is ours; of each GPU how many bytes, and since when.
        Raises StateError, and says what it said before."""
        try:
            self._own.write(self._fd, shares)
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def hand_over(
        self, shares: Mapping[GpuKey, tuple[int, Timestamp]], start: Callable[[int, str], int]
    ) -> int:
        """Under the lock: leave our file, in which this is claimed, to a process that lives on. It
        is started by `start`, which is given the open file, to be kept open, and the file's path,
        to be removed in the end, and gives its pid; so do we. Of what else we claimed, nothing is
        left. Raises StateError; then it may be that nothing is claimed any more."""
        try:
            return self._own.hand_over(self._fd, shares, self.folder, start, self._reader.somebody)
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def is_listed(self) -> bool:
        """Whether others can still read what we wrote."""
        return self._is_where_others_look() and self._own.is_in(self._fd)

    def complaints(self) -> list[str]:
        """News of files that are not as they should be."""
        return self._reader.complaints(self.folder)

    def close(self) -> None:
        """Claim nothing any more, for good."""
        self._own.remove(self._fd)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _is_where_others_look(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self.folder))
        except OSError:
            return False

    def _open(self) -> None:
        try:
            fd = _open_folder(self.folder)
        except FileNotFoundError:
            _make_folder(self.folder)
            fd = _open_folder(self.folder)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd


class _OwnFile:
    """Locked for as long as it is open, so that others know that we live."""

    def __init__(self, whose: Mapping[str, object]) -> None:
        self._whose = {"smartsched_claims": 1, **whose, "host": os.uname().nodename}
        self._fd = -1
        self._name = ""
        self._written = b""

    def identity(self) -> tuple[int, int] | None:
        """None: there is no file yet."""
        if self._fd < 0:
            return None
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def is_in(self, folder_fd: int) -> bool:
        """Whether it still has its name there."""
        try:
            found = os.stat(self._name, dir_fd=folder_fd, follow_symlinks=False)
            return os.path.samestat(os.fstat(self._fd), found)
        except OSError:
            return False

    def write(self, folder_fd: int, shares: Mapping[GpuKey, tuple[int, Timestamp]]) -> None:
        """Raises OSError, and says what it said before."""
        gpus = [
            {"uuid": gpu.uuid, "memory_bytes": memory_bytes, "since": round(since, 3)}
            for gpu, (memory_bytes, since) in shares.items()
        ]
        data = json.dumps({**self._whose, "gpus": gpus}).encode() + b"\n"
        if not self.is_in(folder_fd):
            self._make(folder_fd)
        try:
            _overwrite(self._fd, data)
        except OSError:
            with suppress(OSError):
                _overwrite(self._fd, self._written)  # there is room for it: it was there
            raise
        self._written = data

    def hand_over(
        self,
        folder_fd: int,
        shares: Mapping[GpuKey, tuple[int, Timestamp]],
        folder: Path,
        start: Callable[[int, str], int],
        describe: Callable[[int], Mapping[str, object]],
    ) -> int:
        """Raises OSError."""
        if not self.is_in(folder_fd):
            self._make(folder_fd)
        pid = start(self._fd, str(folder / self._name))
        self._whose |= describe(pid)
        self.write(folder_fd, shares)
        os.close(self._fd)  # the other one's stays open, and locked
        self._fd = -1
        return pid

    def remove(self, folder_fd: int) -> None:
        if self.is_in(folder_fd):
            with suppress(OSError):
                os.unlink(self._name, dir_fd=folder_fd)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _make(self, folder_fd: int) -> None:
        name = f"smartsched-{os.urandom(8).hex()}.claim"
        fd = os.open(name, _NEW_FILE_FLAGS, 0o600, dir_fd=folder_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(fd, 0o644)  # not before: whoever can open it can lock it
        except OSError:
            os.unlink(name, dir_fd=folder_fd)
            os.close(fd)
            raise
        self.remove(folder_fd)
        self._fd, self._name, self._written = fd, name, b""


def _overwrite(fd: int, data: bytes) -> None:
    """Raises OSError; then part of it may be there."""
    if os.pwrite(fd, data, 0) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, len(data))


def _open_folder(folder: Path) -> int:
    """Raises OSError, also where claims would be worth nothing."""
    try:
        fd = os.open(folder, _FOLDER_FLAGS)
    except NotADirectoryError as error:
        raise OSError(errno.ENOTDIR, "it is no folder, or a link to one") from error
    mode = os.fstat(fd).st_mode
    why = None
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        why = "anybody may remove the files of others there (chmod +t it)"
    elif not os.access(".", os.R_OK | os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
        why = "you may not write there"
    if why is not None:
        os.close(fd)
        raise OSError(errno.EPERM, why)
    return fd


def _make_folder(folder: Path) -> None:
    """Open to all from the first moment: the next may already be waiting for it."""
    umask = os.umask(0)
    try:
        os.mkdir(folder, 0o1777)
    except FileExistsError:
        pass
    finally:
        os.umask(umask)


def _unusable(folder: Path, error: OSError) -> StateError:
    return StateError(f"cannot use the claims in {folder}: {error.strerror}; {_ADVICE}")
