"""Where runs are remembered: a folder each below the user's state folder, held by one dispatcher.

Only the user may read or write there (0700, files 0600). Nothing below the state folder is opened
through a link, and what belongs to somebody else is refused: others may have made it first.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from smartsched.core.model import HostName
from smartsched.errors import SmartschedError, StateError, UsageError

JOURNAL = "events.jsonl"
JOBS = "jobs"  # the folder of the attempts
_LOCK = "lock"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}", re.ASCII)
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# A `run_closed` is much shorter; a longer one is something else, and need not be whole.
_LONGEST_LAST_RECORD_BYTES = 4096
# A folder that is being filled is locked a moment after it was made.
_BUILT_BY_NOW_SECONDS = 60.0
_A_MOMENT_SECONDS = 0.1
_ADVICE = "name another place with --state DIR"


def parse_run_name(text: str) -> str:
    """Raises UsageError for what cannot be the name of a folder."""
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"{text!r} cannot be the name of a run: use up to 64 letters, digits and _ . + -"
        )
    return text


class RunFolder:
    """A run's folder, ours alone for as long as it is open."""

    def __init__(self, path: Path, fd: int, lock_fd: int) -> None:
        self.path = path
        self.fd = fd
        self._lock_fd = lock_fd

    @property
    def name(self) -> str:
        return self.path.name

    def open_file(self, name: str, flags: int) -> int:
        """Raises OSError, also for anything that is not a plain file of our own."""
        return open_own_file(self.fd, name, flags)

    def make_folder(self, name: str) -> Path:
        """A folder in it, whether or not it is there already."""
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fd)
        os.close(_open_own_folder(name, self.fd, str(self.path / name)))
        return self.path / name

    def erase(self) -> None:
        """Of a run that never began, nothing stays."""
        for name in os.listdir(self.fd):
            try:
                os.unlink(name, dir_fd=self.fd)
            except OSError:
                shutil.rmtree(name, ignore_errors=True, dir_fd=self.fd)
        with suppress(OSError):
            os.rmdir(self.path)

    def close(self) -> None:
        """Leave it; that nobody holds it any more is written down too."""
        with suppress(OSError):
            os.ftruncate(self._lock_fd, 0)
        os.close(self._lock_fd)
        os.close(self.fd)


class Counted(Struct):
    accepted: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    left_then: int | None = None  # as its last dispatcher said when it ended
    complete: bool = False  # its last dispatcher found nothing left to be done

    @property
    def left(self) -> int:
        """As far as the list was read."""
        if self.left_then is not None:
            return self.left_then
        return max(0, self.accepted - self.ok - self.failed - self.cancelled)

    def take(self, line: bytes) -> None:
        """One record; see core/records.py."""
        if b'"job_finished"' in line[:60]:
            self.ok += b'"outcome":"ok"' in line
            self.failed += b'"outcome":"failed"' in line
            self.cancelled += b'"outcome":"cancelled"' in line
        elif b'"job_accepted"' in line[:60]:
            self.accepted += 1
        elif any(word in line[:60] for word in _TAKEN_APART):
            self._take_apart(line)

    def _take_apart(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            match record["event"]:
                case "jobs_added":
                    self.accepted += len(record["specs"])
                case "run_closed":
                    self.complete = record["complete"]
                    self.failed = record["failed"]
                    self.ok = record.get("ok", self.ok)
                    self.cancelled = record.get("cancelled", self.cancelled)
                    self.left_then = record.get("left")
                case _:  # it was resumed
                    self.complete, self.left_then = False, None
        except (ValueError, KeyError, TypeError):  # of another version, or torn
            self.complete = False


_TAKEN_APART = (b'"jobs_added"', b'"run_closed"', b'"run_resumed"')


class Runs:
    """All runs below a state folder, which need not be there yet."""

    def __init__(self, state: Path, host: HostName) -> None:
        self._folder = state / "runs"
        self._state = state
        self._host = host

    def create(self, name: str) -> "NewRun":
        """Raises UsageError if there is such a run, StateError if somebody holds it, naming whom,
        or if there is no place for one."""
        try:
            runs_fd = self._open_runs()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            return self._build(name, runs_fd)
        except OSError as error:
            os.close(runs_fd)
            raise self._unusable(error) from error
        except SmartschedError:
            os.close(runs_fd)
            raise

    def _build(self, name: str, runs_fd: int) -> "NewRun":
        if name in os.listdir(runs_fd):
            raise self._taken(name)
        self._tidy_up(runs_fd)
        building = f".{name}.{os.urandom(4).hex()}"
        os.mkdir(building, 0o700, dir_fd=runs_fd)
        fd = -1
        try:
            fd = _open_own_folder(building, runs_fd, str(self._folder / building))
            lock_fd = self._lock(fd, name)
        except (OSError, StateError):
            if fd >= 0:
                with suppress(OSError):
                    os.unlink(_LOCK, dir_fd=fd)
                os.close(fd)
            os.rmdir(building, dir_fd=runs_fd)
            raise
        return NewRun(RunFolder(self._folder / name, fd, lock_fd), runs_fd, building)

    def open(self, name: str) -> RunFolder:
        """Raises StateError if there is none, or if somebody holds it."""
        if not _NAME.fullmatch(name):
            raise StateError(f"there is no run {name!r}: smartsched runs lists them")
        try:
            runs_fd = self._open_runs()
            try:
                fd = _open_own_folder(name, runs_fd, str(self._folder / name))
            finally:
                os.close(runs_fd)
        except FileNotFoundError as error:
            raise StateError(f"there is no run {name}: smartsched runs lists them") from error
        except OSError as error:
            raise self._unusable(error) from error
        try:
            return RunFolder(self._folder / name, fd, self._lock(fd, name))
        except OSError as error:
            os.close(fd)
            raise self._unusable(error) from error
        except StateError:
            os.close(fd)
            raise

    def path(self, name: str) -> Path:
        return self._folder / name

    def who_holds(self, name: str) -> str | None:
        """Who has a run open: a dispatcher, in words. None: nobody."""
        try:
            folder_fd = os.open(self._folder / name, _FOLDER_FLAGS)
        except OSError:
            return None
        try:
            fd = open_own_file(folder_fd, _LOCK, os.O_RDWR)
        except OSError:
            return None
        finally:
            os.close(folder_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _who(_holder(fd))
        finally:
            os.close(fd)
        return None

    def names(self) -> list[str]:
        """The latest begun first, as far as their names and times say."""
        try:
            names = [name for name in os.listdir(self._folder) if _NAME.fullmatch(name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error) from error
        return sorted(names, reverse=True)

    def count(self, name: str) -> Counted:
        """How many jobs came to what, as far as a run's journal says; quick, since its records are
        not taken apart, or only the last of them."""
        counted = Counted()
        if (records := self.first_and_last_record(name)) is not None:
            counted.take(records[1])
            if counted.left_then is not None:
                return counted
        counted = Counted()
        try:
            folder = os.open(self._folder / name, _FOLDER_FLAGS)
            try:
                fd = open_own_file(folder, JOURNAL, os.O_RDONLY)
            finally:
                os.close(folder)
        except OSError:
            return counted
        with open(fd, "rb") as journal:
            for line in journal:
                counted.take(line)
        return counted

    def remove(self, name: str) -> None:
        """Forget a run that nobody holds. Raises StateError if somebody does."""
        folder = self.open(name)
        gone = self._folder / f".{name}.{os.urandom(4).hex()}"
        try:
            os.rename(folder.path, gone)
            shutil.rmtree(gone)
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            os.close(folder.fd)

    def first_and_last_record(self, name: str) -> tuple[bytes, bytes] | None:
        """The first and the last whole line of a run's journal; None where there is no such."""
        try:
            folder = os.open(self._folder / name, _FOLDER_FLAGS)
        except OSError:
            return None
        try:
            fd = open_own_file(folder, JOURNAL, os.O_RDONLY)
        except OSError:
            return None
        finally:
            os.close(folder)
        with open(fd, "rb") as journal:
            return _ends(journal)

    def _open_runs(self) -> int:
        self._state.mkdir(0o700, parents=True, exist_ok=True)
        state_fd = os.open(self._state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _check_owner(state_fd, str(self._state))
            _check_mode(state_fd, str(self._state))
            with suppress(FileExistsError):
                os.mkdir("runs", 0o700, dir_fd=state_fd)
            return _open_own_folder("runs", state_fd, str(self._folder))
        finally:
            os.close(state_fd)

    def _lock(self, folder_fd: int, name: str) -> int:
        """Fails closed: where the file system cannot lock, there could be two dispatchers."""
        fd = open_own_file(folder_fd, _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            _lock_soon(fd)
        except OSError as error:
            holder = _holder(fd)
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise StateError(
                    f"run {name} is alive: {_who(holder)}; smartsched status {name} shows it,"
                    f" smartsched cancel --all --name {name} ends it"
                ) from error
            raise StateError(
                f"cannot lock {self._folder / name}: {error.strerror}; {_ADVICE}"
            ) from error
        holder = _holder(fd)
        if holder is not None and holder.get("host") != self._host:
            # It did not say that it left; and not every network file system keeps locks for all.
            os.close(fd)
            raise StateError(
                f"run {name} was left by {_who(holder)}, and may live there: go on with it there,"
                f" or remove {self._folder / name / _LOCK} if you know that it does not"
            )
        mine = {"host": self._host, "pid": os.getpid(), "since": time.time(), "uid": os.getuid()}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(mine).encode() + b"\n", 0)
        os.fsync(fd)
        return fd

    def _tidy_up(self, runs_fd: int) -> None:
        """Folders whose dispatchers died while they filled them."""
        for name in os.listdir(runs_fd):
            if not name.startswith("."):
                continue
            with suppress(OSError), ExitStack() as stack:
                fd = _open_own_folder(name, runs_fd, name)
                stack.callback(os.close, fd)
                if time.time() - os.fstat(fd).st_mtime < _BUILT_BY_NOW_SECONDS:
                    continue  # between its making and its locking it looks the same
                lock_fd = open_own_file(fd, _LOCK, os.O_RDWR)
                stack.callback(os.close, lock_fd)
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                RunFolder(self._folder / name, fd, lock_fd).erase()

    def _taken(self, name: str) -> UsageError:
        self.open(name).close()  # says so if somebody holds it
        return UsageError(
            f"there is a run {name} already: go on with it (--resume {name}), or choose another"
            " name"
        )

    def _unusable(self, error: OSError) -> StateError:
        place = os.fsdecode(error.filename) if error.filename else str(self._folder)
        if not place.startswith("/"):
            place = str(self._folder / place)
        return StateError(f"cannot keep runs in {place}: {error.strerror}; {_ADVICE}")


class NewRun:
    """A folder that is being filled: it gets its name once a run can be resumed from it."""

    def __init__(self, folder: RunFolder, runs_fd: int, building: str) -> None:
        self.folder = folder
        self._runs_fd = runs_fd
        self._building = building

    def publish(self) -> None:
        """Raises UsageError if somebody else took the name meanwhile."""
        name = self.folder.name
        try:
            os.fsync(self.folder.fd)
            os.rename(self._building, name, src_dir_fd=self._runs_fd, dst_dir_fd=self._runs_fd)
            os.fsync(self._runs_fd)
        except OSError as error:
            self.discard()
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise UsageError(f"there is a run {name} already: choose another name") from error
            raise StateError(f"cannot keep run {name}: {error.strerror}; {_ADVICE}") from error
        os.close(self._runs_fd)

    def discard(self) -> None:
        """It was not filled."""
        self.folder.erase()
        with suppress(OSError):
            os.rmdir(self._building, dir_fd=self._runs_fd)
        os.close(self._runs_fd)
        self.folder.close()


def open_own_file(folder_fd: int, name: str, flags: int) -> int:
    """Raises OSError, also for anything that is not a plain file of our own."""
    fd = os.open(name, flags | _FILE_FLAGS, 0o600, dir_fd=folder_fd)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
        os.close(fd)
        raise OSError(errno.EPERM, "it is no plain file of yours alone", name)
    return fd


def _open_own_folder(name: str, parent_fd: int, path: str) -> int:
    try:
        fd = os.open(name, _FOLDER_FLAGS, dir_fd=parent_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(error.errno, "it is no folder, or a link to one", path) from error
        raise
    try:
        _check_own(fd, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_owner(fd: int, path: str) -> None:
    if os.fstat(fd).st_uid != os.geteuid():
        raise OSError(errno.EPERM, "it belongs to somebody else", path)


def _check_mode(fd: int, path: str) -> None:
    """Whoever may rename what lies there could put something of his own in its place."""
    mode = os.fstat(fd).st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        raise OSError(errno.EPERM, "others may write there: chmod go-w it", path)


def _check_own(fd: int, path: str) -> None:
    """Ours, and nobody else may enter: made so if it is not."""
    _check_owner(fd, path)
    if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
        os.fchmod(fd, 0o700)


def _lock_soon(fd: int) -> None:
    """Whoever only looks whether somebody holds it does so for a moment."""
    until = time.monotonic() + _A_MOMENT_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.005)
        else:
            return


def _holder(lock_fd: int) -> dict[str, object] | None:
    """Who wrote that it holds a run; None: nobody does."""
    data = os.pread(lock_fd, 4096, 0)
    if not data.strip(b"\0 \n"):
        return None
    try:
        holder = json.loads(data)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _who(holder: dict[str, object] | None) -> str:
    holder = holder or {}
    since = holder.get("since")
    when = "an unknown time"
    if isinstance(since, int | float):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    user = _user_name(holder.get("uid"))
    return f"pid {holder.get('pid', '?')}{user} on {holder.get('host', '?')} since {when}"


def _user_name(uid: object) -> str:
    import pwd

    if not isinstance(uid, int):
        return ""
    try:
        return f" of {pwd.getpwuid(uid).pw_name}"
    except (KeyError, OverflowError):
        return f" of user {uid}"


def _ends(journal: BinaryIO) -> tuple[bytes, bytes] | None:
    first = journal.readline()
    size = os.fstat(journal.fileno()).st_size
    journal.seek(max(0, size - _LONGEST_LAST_RECORD_BYTES))
    data = journal.read(_LONGEST_LAST_RECORD_BYTES)
    whole = data[: data.rfind(b"\n")]
    last = whole[whole.rfind(b"\n") + 1 :]
    return (first.removesuffix(b"\n"), last) if first.endswith(b"\n") else None
