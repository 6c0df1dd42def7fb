"""A record for each attempt at a job: what has to outlive the dispatcher while the attempt does.

It is made by the attempt itself, exclusively, as the first thing it does, and holds the pid of its
wrapper; when its command has ended, the wrapper adds the status, or that it was the lease that has
ended it, whatever the command made of that. So whoever makes the record first
decides: a dispatcher that makes it for an attempt that its predecessor may just have launched,
revokes it. What was revoked stays so while the run's folder is there, since nobody knows when a
wrapper comes that is late. Beside a record lies the script of a command too long for an argument.

Earlier versions gave each attempt a folder of that name, with `record` and `script` in it: those
are still read, and in the way of whoever would begin such an attempt once more.
"""

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from smartsched.core.model import JobId, RunKey

# What a wrapper says when it could not make its record: then nothing was started either.
NO_RECORD = 125
_SCRIPT = ".script"  # behind the name of the record
_IN_FOLDER = "record", "script"  # of earlier versions
# A line with the status may be cut short, as long as the one with the pid is not.
_FORM = re.compile(rb"(\d{1,10})\n(?:exit (\d{1,3})\n|(lease)\n|[^\n]*)", re.ASCII)
_REVOKED = b"revoked\n"
_MOST_BYTES = 4096
_FILE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC

# Arguments: the record's path, the umask of the command, then what to run. The signals by which
# runs are asked to end are caught, not ignored: what is ignored would be so for the command too.
# What the shell itself has to say ("Terminated") is not the command's output. `command` keeps a
# redirection that fails from ending the shell with a status of its own. Nothing is forked but the
# command.
_BEGIN = (
    "exec 3>&2 2>/dev/null; set -C; umask 077; "
    f'command exec 4>"$1" || exit {NO_RECORD}; set +C; umask "$2"; '
    f"echo $$ >&4 || exit {NO_RECORD}; shift 2; "
)
_ASKED_BY = "HUP INT QUIT TERM USR1 USR2"
# By it a watchdog says, whatever disk is full, that it is about to end the command.
_OVER = "RTMIN+7"
_TERMINATED = 143  # 128 + SIGTERM: what a wrapper says for a command that the lease has ended
WRAPPER = (
    f'{_BEGIN}trap : {_ASKED_BY}; (exec "$@" 2>&3 3>&- 4>&-); s=$?; echo "exit $s" >&4; exit $s'
)


def leased_wrapper(watchdog: str) -> str:
    """The same for bash, with a watchdog beside it: text that makes smartsched_watch a function of
    five arguments: four that come before what to run, and the signal by which it tells the wrapper
    that the lease is over. Descriptors 5 and 6 are both ends of a pipe: by it the watchdog is told
    of the end of the command, and sees that of the wrapper. It is waited for, so that nobody takes
    it for something that the command has left behind. From its first moment no signal by which runs
    are asked to end does end it."""
    return (
        f"{watchdog}unset smartsched_over; {_BEGIN}"
        f"trap '' {_ASKED_BY}; trap smartsched_over=1 {_OVER}; set -m; "
        f'smartsched_watch "$1" "$2" "$3" "$4" {_OVER} >/dev/null 3>&- 6>&- & set +m; shift 4; '
        f"exec 5<&-; trap : {_ASKED_BY}; "
        '(exec "$@" 2>&3 3>&- 4>&- 6>&-); s=$? how="exit $s"; '
        f"[[ $smartsched_over ]] && s={_TERMINATED} how=lease; "
        f"echo \"$how\" >&4; trap '' {_ASKED_BY} {_OVER} PIPE; echo done >&6; wait $!; exit $s"
    )


class AttemptRecord(Struct, frozen=True):
    """What an attempt wrote down."""

    pid: int | None  # None: it is just about to say
    status: int | None  # None: it has not ended, or not by itself
    changed_at: float  # Unix seconds
    by_lease: bool = False  # whether it was the lease that has ended it


class Attempts:
    """Below the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._plain: set[RunKey] = set()  # prepared, without a script, and not removed yet

    def record_path(self, run: RunKey) -> str:
        return f"{self._folder}/{run.job:04d}.{run.attempt}"

    def prepare(self, run: RunKey, script: bytes | None) -> str | None:
        """Before an attempt begins; the script's path, if it needs one. Raises FileExistsError for
        an attempt that has begun before, OSError when there is no room."""
        path = self.record_path(run)
        try:
            os.lstat(path)
        except FileNotFoundError:
            pass  # as it should be
        else:
            if not self.revoke(run):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            self.remove(run)
        if script is None:
            self._plain.add(run)
            return None
        with suppress(FileNotFoundError):
            os.unlink(path + _SCRIPT)
        with open(_open_new(path + _SCRIPT), "wb") as file:
            file.write(script + b"\n")
        return path + _SCRIPT

    def read(self, run: RunKey) -> AttemptRecord | None:
        """None: the attempt has not begun."""
        data, changed_at = _read(self._where(run))
        if data is None:
            return None
        found = _FORM.fullmatch(data)
        if found is None:
            return AttemptRecord(None, None, changed_at)
        status = None if found[2] is None else int(found[2])
        return AttemptRecord(int(found[1]), status, changed_at, found[3] is not None)

    def revoke(self, run: RunKey) -> bool:
        """Whether it had not begun; then it never will. Raises OSError if that cannot be said."""
        path = self._where(run)
        try:
            fd = _open_new(path)
        except FileExistsError:
            return _read(path)[0] == _REVOKED  # by a dispatcher that died then
        with open(fd, "wb") as record:
            record.write(_REVOKED)
        return True

    def remove(self, run: RunKey) -> None:
        """Of an attempt whose end is known for good."""
        path = self.record_path(run)
        try:
            os.unlink(path)
        except OSError:
            _remove_folder(path)  # if it is one
        if run in self._plain:
            self._plain.remove(run)
            return
        with suppress(OSError):
            os.unlink(path + _SCRIPT)

    def all(self) -> list[RunKey]:
        """Those of which something is there, but for those that were revoked."""
        found = set()
        for name in os.listdir(self._folder):
            job, _, attempt = name.removesuffix(_SCRIPT).partition(".")
            if job.isdigit() and attempt.isdigit():
                found.add(RunKey(JobId(int(job)), int(attempt)))
        return [run for run in found if _read(self._where(run))[0] != _REVOKED]

    def _where(self, run: RunKey) -> str:
        """Its record."""
        path = self.record_path(run)
        return f"{path}/{_IN_FOLDER[0]}" if _is_folder(path) else path


def _is_folder(path: str) -> bool:
    """And no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _open_new(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, 0o600)


def _read(path: str) -> tuple[bytes | None, float]:
    """What a record says, and since when; None: there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _FILE_FLAGS)
    except OSError:
        return None, 0.0
    with open(fd, "rb") as record:
        return record.read(_MOST_BYTES), os.fstat(fd).st_mtime


def _remove_folder(path: str) -> None:
    if _is_folder(path):
        for name in _IN_FOLDER:
            with suppress(OSError):
                os.unlink(f"{path}/{name}")
        with suppress(OSError):
            os.rmdir(path)
