"""Reads what other dispatchers claim, from a folder in which anybody may put anything.

Nothing is opened through a link or waited for, and nothing is believed but that the owner of a file
wants the GPUs that it names, for as long as he lives. A file that nobody can understand claims
nothing. What its owner cannot have caused (no memory, no descriptors left, too many files) leaves
unknown what is claimed, and that is an error.
"""

import errno
import fcntl
import json
import os
import re
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from smartsched.core.words import printable, shortened

LONGEST_FILE_BYTES = 64 * 1024
MOST_FILES = 4096
# All others wait while somebody reads: what takes longer than a moment is refused.
_MOST_BYTES = 4 * 1024 * 1024
_MOST_ENTRIES = 100_000
_LONGEST_RUN_NAME = 40
_NAME = re.compile(r"smartsched-[0-9a-f]{16}\.claim", re.ASCII)
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# How the owner of a file can keep us from opening it: a link in its place, no permission, a lease.
_ITS_OWNER_S_DOING = {errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EAGAIN}


class Claimant(NamedTuple):
    """Who claims a GPU: the owner of the file, whatever it says of him."""

    uid: int
    run: str  # as he says, made harmless; empty: he does not say

    def __str__(self) -> str:
        """Looks his name up, which may take its time."""
        return f"claimed by {_user_name(self.uid)}" + (f" (run {self.run})" if self.run else "")


class ClaimReader:
    """Remembers which files it has complained of."""

    def __init__(self, *, tidy_up: bool) -> None:
        """`tidy_up`: remove what dead dispatchers of our user left."""
        self._tidies_up = tidy_up
        self._oddities: dict[tuple[int, str], str] = {}  # one file's name for each owner and kind
        self._told = 0

    def read(self, folder_fd: int, own: tuple[int, int] | None) -> dict[str, Claimant]:
        """By UUID. `own`: device and inode of the file that is ours. Raises OSError if it cannot
        be said what is claimed."""
        claimants: dict[str, Claimant] = {}
        seen = {own}  # anybody can give further names to what is not his
        left_bytes = _MOST_BYTES
        for name in _names(folder_fd):
            fd = self._open(folder_fd, name)
            if fd is None:
                continue
            try:
                status = os.fstat(fd)
                identity = status.st_dev, status.st_ino
                if identity in seen or not stat.S_ISREG(status.st_mode):
                    continue
                seen.add(identity)
                data = os.pread(fd, LONGEST_FILE_BYTES + 1, 0) if _is_locked(fd) else None
            finally:
                os.close(fd)
            left_bytes -= len(data or b"")
            if left_bytes < 0:
                raise OSError(errno.EFBIG, "there is too much in it")
            claim = None if data is None else self._understand(data, name, status.st_uid)
            if claim is not None and not claim.is_of_the_dead():
                claimants |= dict.fromkeys(claim.uuids, claim.claimant)
            elif self._tidies_up and status.st_uid == os.geteuid():
                with suppress(OSError):
                    os.unlink(name, dir_fd=folder_fd)
        return claimants

    def ourselves(self) -> dict[str, object]:
        """What a file of ours has to say for others to find out whether we live."""
        return self.somebody(os.getpid())

    def somebody(self, pid: int) -> dict[str, object]:
        """Likewise, of a child of ours that has it."""
        return {"pid": pid, "start_ticks": _start_ticks(pid), "place": _place()}

    def complaints(self, folder: Path) -> list[str]:
        """News since the last call. Looks names up, which may take its time."""
        news = list(self._oddities.items())[self._told :]
        self._told += len(news)
        return [
            f"paying no attention to {folder / name} of {_user_name(uid)}: {why}"
            for (uid, why), name in news
        ]

    def _open(self, folder_fd: int, name: str) -> int | None:
        """None: nothing is claimed there. Raises OSError if that cannot be said."""
        uid = -1
        try:
            status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            uid = status.st_uid
            if stat.S_ISREG(status.st_mode):
                return os.open(name, _FLAGS, dir_fd=folder_fd)
            self._note(name, uid, "it is no plain file")
        except FileNotFoundError:
            pass  # it was just removed
        except OSError as error:
            if error.errno not in _ITS_OWNER_S_DOING:
                raise
            self._note(name, uid, "it cannot be read")
        return None

    def _understand(self, data: bytes, name: str, uid: int) -> "_Claim":
        try:
            if len(data) <= LONGEST_FILE_BYTES:
                return _parse(data, uid)
            self._note(name, uid, "it is too long")
        except (ValueError, RecursionError):
            self._note(name, uid, "it is no claim")
        return _Claim(Claimant(uid, ""))

    def _note(self, name: str, uid: int, why: str) -> None:
        self._oddities.setdefault((uid, why), name)


class _Claim(NamedTuple):
    """What a file says, but for the owner."""

    claimant: Claimant
    uuids: tuple[str, ...] = ()
    pid: int = 0  # 0: it does not say
    start_ticks: int = 0
    place: str = ""

    def is_of_the_dead(self) -> bool:
        """That it is locked does not prove that he lives: anybody can lock what he can read."""
        if not self.pid or not self.place or self.place != _place():
            return False
        try:
            os.kill(self.pid, 0)  # finds also whom /proc hides from us (hidepid)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # somebody else's, and alive
        return _start_ticks(self.pid) not in (0, self.start_ticks)


def _parse(data: bytes, uid: int) -> _Claim:
    """Raises ValueError, RecursionError for what no smartsched has written."""
    if not data:
        return _Claim(Claimant(uid, ""))  # there was no room for more
    said = json.loads(data.partition(b"\n")[0])
    if not isinstance(said, dict) or not isinstance(said.get("gpus"), list):
        raise ValueError("it says something else")  # noqa: TRY004 (of data, not of arguments)
    claimant = Claimant(uid, printable(shortened(_text(said.get("run")), _LONGEST_RUN_NAME)))
    uuids = tuple(_text(gpu.get("uuid")) for gpu in said["gpus"] if isinstance(gpu, dict))
    pid, start_ticks = said.get("pid"), said.get("start_ticks")
    if isinstance(pid, int) and isinstance(start_ticks, int) and 0 < pid < 2**31:
        return _Claim(claimant, uuids, pid, start_ticks, _text(said.get("place")))
    return _Claim(claimant, uuids)


def _text(said: object) -> str:
    return said if isinstance(said, str) else ""


def _names(folder_fd: int) -> list[str]:
    """Of what may be claims. Raises OSError."""
    names = []
    with os.scandir(folder_fd) as entries:
        for number, entry in enumerate(entries):
            if _NAME.fullmatch(entry.name):
                names.append(entry.name)
            if number >= _MOST_ENTRIES or len(names) > MOST_FILES:
                raise OSError(errno.EFBIG, "there are too many files in it")
    return names


def _is_locked(fd: int) -> bool:
    """By anybody else. Raises OSError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False  # closing the file unlocks it again


@cache
def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"user {uid}"


@cache
def _place() -> str:
    """Where our pids and start times mean the same; empty where that cannot be said."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as boot_id:
            boot = boot_id.read(64).strip().decode()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {_time_namespace()}"
    except OSError:
        return ""


def _time_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/time")
    except OSError:
        return ""  # before Linux 5.6 there is but one


def _start_ticks(pid: int) -> int:
    """When it started (proc(5): stat, field 22); 0 where that cannot be said."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as fields:
            return int(fields.read(4096).rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
