"""The lease of this host's runs: a file that says until when they may run, beside marks of those
that it has ended.

It is on a file system of this host, since whoever looks at it must not hang when the network is
gone, in a folder that only we may enter. Times are of the host's uptime, which nobody sets: the
file says when the lease ends, when it was renewed, and once more when it ends, in hundredths of a
second. Whoever is the next to renew it for the same runs finds it by the same token.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from smartsched.core.model import RunKey
from smartsched.errors import StateError

LEASE = "lease"
_NEW, _MARK_SUFFIX = "lease.new", ".ended"
# Not where logind tidies up when the user's last login ends: /run/user, and mostly /dev/shm.
_PLACES = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108  # a folder of ours there
_REMOTE = re.compile(
    r"nfs|cifs|smb|afs|ceph|lustre|gpfs|beegfs|pvfs|orangefs|panfs|wekafs|fuse\.(?!fuse-overlayfs)"
)
_ESCAPE = re.compile(r"\\([0-7]{3})")  # proc_pid_mountinfo(5)
_IS_TOKEN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,199}", re.ASCII)
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
# A folder that nobody has touched for so long is forgotten.
_FORGOTTEN_AFTER_SECONDS = 30 * 86_400


def uptime_seconds() -> float:
    """Of the host, as watchdogs see it. Raises StateError."""
    try:
        with open("/proc/uptime", encoding="ascii") as uptime:
            return float(uptime.read().split()[0])
    except (OSError, ValueError, IndexError) as error:
        raise StateError(f"cannot read /proc/uptime, by which leases are kept: {error}") from error


def remote_kind(place: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The kind of file system of another host that it is on; None: on none, as far as is known."""
    mounts: dict[Path, str] = {}  # what was mounted last at one point hides the rest
    with suppress(OSError):
        for line in mountinfo.read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            point = _ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), before.split(" ")[4])
            mounts[Path(point)] = after.partition(" ")[0]
    real = place.resolve()
    kind = next((mounts[path] for path in (real, *real.parents) if path in mounts), "")
    return kind if _REMOTE.match(kind) else None


class Lease:
    """Of one agent's runs. Raises StateError where there is no room for it."""

    def __init__(
        self, token: str, *, grace_seconds: float, places: Sequence[Path] = _PLACES
    ) -> None:
        """`token`: the same for whoever adopts the runs, and nobody else's on this host.
        `grace_seconds`: what runs have between the asking and the end; whole ones count."""
        if not _IS_TOKEN.fullmatch(token):
            raise ValueError(f"no name of a folder: {token!r}")
        self._grace_seconds = max(0, int(grace_seconds))
        # where watchdogs of an earlier agent look, whatever other places there are by now
        first_known = sorted(places, key=lambda place: not _is_ours(place, token))
        self._ours, self._name = _our_folder(first_known), token
        self._ends_at: float | None = None  # None: it was not renewed yet
        try:
            with self._opened():
                pass
        except OSError as error:
            raise StateError(f"cannot keep a lease in {self.folder}: {_why(error)}") from error
        _tidy(self._ours)

    @property
    def folder(self) -> Path:
        return self._ours / self._name

    def renew(self, until_uptime_seconds: float) -> None:
        """Runs may go on until then. Raises StateError; then they may for as long as before."""
        ends, now = int(until_uptime_seconds * 100), int(uptime_seconds() * 100)
        # as long each time: where there is no room for a new file, it can be written over
        data = b"%012d %012d %012d\n" % (ends, now, ends)
        try:
            with self._opened() as folder_fd:
                _replace(folder_fd, data)
        except OSError as error:
            raise StateError(f"cannot renew the lease in {self.folder}: {_why(error)}") from error
        self._ends_at = until_uptime_seconds

    def arguments(self, run: RunKey) -> list[str]:
        """What the watchdog of a run is told. Raises OSError when there is no lease to start it
        under."""
        if self._ends_at is None or uptime_seconds() >= self._ends_at:
            why = "the lease of this host has run out"
            raise OSError(errno.EAGAIN, why, str(self.folder))
        mark = self.folder / _mark_of(run)
        ends = int(self._ends_at * 100)
        return [str(self.folder / LEASE), str(mark), str(ends), str(self._grace_seconds)]

    def expired(self, run: RunKey) -> bool:
        """Whether it was the lease that ended this run."""
        try:
            with self._opened() as folder_fd:
                os.stat(_mark_of(run), dir_fd=folder_fd, follow_symlinks=False)
        except (OSError, StateError):
            return False
        return True

    def forget(self, run: RunKey) -> None:
        """How it ended is on record."""
        with suppress(OSError, StateError), self._opened() as folder_fd:
            os.unlink(_mark_of(run), dir_fd=folder_fd)

    def remove(self) -> None:
        """When nothing runs under it any more, and all ends are on record."""
        self._ends_at = None
        _remove(self.folder)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder; it is made where somebody has tidied it away."""
        ours_fd = _open_own(self._ours, None)
        try:
            folder_fd = _open_own(Path(self._name), ours_fd)
        finally:
            os.close(ours_fd)
        try:
            yield folder_fd
        finally:
            os.close(folder_fd)


def _is_ours(place: Path, token: str) -> bool:
    """Whether the lease was kept there before."""
    ours = _in(place)
    with suppress(OSError):
        return all(_why_not_ours(os.lstat(folder)) is None for folder in (ours, ours / token))
    return False


def _in(place: Path) -> Path:
    return place / f"smartsched-{os.getuid()}"


def _our_folder(places: Sequence[Path]) -> Path:
    """The first place in which there can be one."""
    why = []
    for place in places:
        if not place.is_dir():
            continue
        mode = place.stat().st_mode
        if mode & 0o022 and not mode & stat.S_ISVTX:
            why.append(f"anybody may replace what is in {place} (chmod +t it)")
            continue
        if (kind := remote_kind(place)) is not None:
            why.append(f"{place} is on {kind}")
            continue
        folder = _in(place)
        try:
            os.close(_open_own(folder, None))
        except OSError as error:
            why.append(f"{folder}: {_why(error)}")
        else:
            return folder
    raise StateError(
        "no folder of this host's own to keep the lease of runs in "
        f"({'; '.join(why) or 'there is none'}): make room there, or use --on-lost keep"
    )


def _open_own(folder: Path, dir_fd: int | None) -> int:
    """Made if need be. Raises OSError, also where others could enter or have made it."""
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700, dir_fd=dir_fd)
    fd = os.open(folder, _FOLDER_FLAGS, dir_fd=dir_fd)
    if (why := _why_not_ours(os.fstat(fd))) is not None:
        os.close(fd)
        raise OSError(errno.EPERM, why)
    return fd


def _why_not_ours(found: os.stat_result) -> str | None:
    """None: it is, and nobody else's."""
    if not stat.S_ISDIR(found.st_mode):
        return "it is no folder"
    if found.st_uid != os.getuid():
        return "it belongs to somebody else"
    if stat.S_IMODE(found.st_mode) & 0o077:
        return "others may enter it (chmod 700 it)"
    return None


def _replace(folder_fd: int, data: bytes) -> None:
    try:
        fd = os.open(_NEW, _FILE_FLAGS | os.O_TRUNC, 0o600, dir_fd=folder_fd)
        with open(fd, "wb", buffering=0) as new:
            new.write(data)
        os.rename(_NEW, LEASE, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        # a full disk must not end anybody's run
        fd = os.open(LEASE, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
        with open(fd, "r+b", buffering=0) as old:
            old.write(data)


def _mark_of(run: RunKey) -> str:
    return f"{run.job:04d}.{run.attempt}{_MARK_SUFFIX}"


def _tidy(ours: Path) -> None:
    """Forget what agents that never came back have left here, an earlier boot's too."""
    long_ago = time.time() - _FORGOTTEN_AFTER_SECONDS
    with suppress(OSError):
        for folder in ours.iterdir():
            if folder.stat(follow_symlinks=False).st_mtime < long_ago:
                _remove(folder)


def _remove(folder: Path) -> None:
    try:
        fd = os.open(folder, _FOLDER_FLAGS)
    except OSError:
        return
    with suppress(OSError):
        for name in os.listdir(fd):
            if name in (LEASE, _NEW) or name.endswith(_MARK_SUFFIX):
                os.unlink(name, dir_fd=fd)
    os.close(fd)
    with suppress(OSError):
        folder.rmdir()


def _why(error: OSError) -> str:
    return error.strerror or str(error)
