"""A folder for each attempt at a job: what has to outlive the dispatcher while the attempt does.

It holds `record`, and `script` for commands too long for an argument. The record is made by the
attempt itself, exclusively, as the first thing it does, and holds the pid of its wrapper; when its
command has ended, the wrapper adds the status. So whoever makes the record first decides: a
dispatcher that makes it for an attempt that its predecessor may just have launched, revokes it.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from smartsched.core.model import JobId, RunKey

# What a wrapper says when it could not make its record: then nothing was started either.
NO_RECORD = 125
RECORD, SCRIPT = "record", "script"
# A line with the status may be cut short, as long as the one with the pid is not.
_FORM = re.compile(rb"(\d{1,10})\n(?:exit (\d{1,3})\n|[^\n]*)", re.ASCII)
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
WRAPPER = (
    f'{_BEGIN}trap : {_ASKED_BY}; (exec "$@" 2>&3 3>&- 4>&-); s=$?; echo "exit $s" >&4; exit $s'
)


def leased_wrapper(watchdog: str) -> str:
    """The same for bash, with a watchdog beside it: text that makes smartsched_watch a function of
    four arguments, which come before what to run. Descriptors 5 and 6 are both ends of a pipe: by
    it the watchdog is told of the end of the command, and sees that of the wrapper. It is waited
    for, so that nobody takes it for something that the command has left behind. From its first
    moment no signal by which runs are asked to end does end it."""
    return (
        f"{watchdog}{_BEGIN}trap '' {_ASKED_BY}; "
        'set -m; smartsched_watch "$1" "$2" "$3" "$4" >/dev/null 3>&- 6>&- & set +m; shift 4; '
        f"exec 5<&-; trap : {_ASKED_BY}; "
        '(exec "$@" 2>&3 3>&- 4>&- 6>&-); s=$?; echo "exit $s" >&4; '
        f"trap '' {_ASKED_BY} PIPE; echo done >&6; wait $!; exit $s"
    )


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """What an attempt wrote down."""

    pid: int | None  # None: it is just about to say
    status: int | None  # None: it has not ended, or not by itself
    changed_at: float  # Unix seconds


class Attempts:
    """Below the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def record_path(self, run: RunKey) -> str:
        return str(self._of(run) / RECORD)

    def prepare(self, run: RunKey, script: bytes | None) -> str | None:
        """Make room for an attempt; the script's path, if it needs one. Raises FileExistsError for
        an attempt that has begun before, OSError when there is no room."""
        folder = self._of(run)
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            if not self.revoke(run):
                raise
            self.remove(run)
            folder.mkdir(0o700)
        if script is None:
            return None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS
        with open(os.open(folder / SCRIPT, flags, 0o600), "wb") as file:
            file.write(script + b"\n")
        return str(folder / SCRIPT)

    def read(self, run: RunKey) -> AttemptRecord | None:
        """None: the attempt has not begun."""
        data, changed_at = self._read(run)
        if data is None:
            return None
        found = _FORM.fullmatch(data)
        if found is None:
            return AttemptRecord(None, None, changed_at)
        status = None if found[2] is None else int(found[2])
        return AttemptRecord(int(found[1]), status, changed_at)

    def revoke(self, run: RunKey) -> bool:
        """Whether it had not begun; then it never will. Raises OSError if that cannot be said."""
        with suppress(FileExistsError):
            self._of(run).mkdir(0o700)
        folder_fd = self._open(run)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS
            fd = os.open(RECORD, flags, 0o600, dir_fd=folder_fd)
        except FileExistsError:
            return self._read(run)[0] == _REVOKED  # by a dispatcher that died then
        finally:
            os.close(folder_fd)
        with open(fd, "wb") as record:
            record.write(_REVOKED)
        return True

    def remove(self, run: RunKey) -> None:
        """Of an attempt whose end is known for good."""
        try:
            folder_fd = self._open(run)
        except OSError:
            return
        for name in (RECORD, SCRIPT):
            with suppress(OSError):
                os.unlink(name, dir_fd=folder_fd)
        os.close(folder_fd)
        with suppress(OSError):
            self._of(run).rmdir()

    def _read(self, run: RunKey) -> tuple[bytes | None, float]:
        """What the record says, and since when; None: there is none."""
        try:
            folder_fd = self._open(run)
        except OSError:
            return None, 0.0
        try:
            fd = os.open(RECORD, os.O_RDONLY | os.O_NONBLOCK | _FILE_FLAGS, dir_fd=folder_fd)
        except OSError:
            return None, 0.0
        finally:
            os.close(folder_fd)
        with open(fd, "rb") as record:
            return record.read(_MOST_BYTES), os.fstat(fd).st_mtime

    def _open(self, run: RunKey) -> int:
        return os.open(self._of(run), os.O_RDONLY | os.O_DIRECTORY | _FILE_FLAGS)

    def all(self) -> list[RunKey]:
        """Those that have folders."""
        found = []
        for name in os.listdir(self._folder):
            job, _, attempt = name.partition(".")
            if job.isdigit() and attempt.isdigit():
                found.append(RunKey(JobId(int(job)), int(attempt)))
        return found

    def _of(self, run: RunKey) -> Path:
        return self._folder / f"{run.job:04d}.{run.attempt}"
