"""A process that keeps a file open, and locked, for a while after we have ended."""

import os
import signal
from contextlib import suppress

# It goes nowhere near the folder or the terminal of whoever waits for us, and ends by itself. With
# it ends its hold, whoever has ended it: what it waits with has not got the file.
_FD = 9
_SCRIPT = f'cd / && sleep "$1" {_FD}>&-; rm -f -- "$2"'
_SHELL = "/bin/sh"


def hold_open(fd: int, path: str, seconds: float) -> int:
    """The pid of a process that has open for so long what `fd` is, and then removes `path`. Raises
    OSError."""
    os.set_inheritable(fd, fd == _FD)
    return os.posix_spawn(
        _SHELL,
        [_SHELL, "-c", _SCRIPT, "smartsched-hold", f"{seconds:.3f}", path],
        {"PATH": os.defpath},  # of a job in which we may run, nothing: it is not part of it
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
            (os.POSIX_SPAWN_DUP2, fd, _FD),
            *((os.POSIX_SPAWN_CLOSE, each) for each in _inherited() if each != _FD),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM],
    )


def _inherited() -> list[int]:
    """What a script that started us may have open for itself: a lock, a pipe."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing itself was one of them
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found
