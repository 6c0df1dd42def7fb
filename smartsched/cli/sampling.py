"""The sampler's process: how it begins.

Imports next to nothing, so that it can begin before everything else is loaded: it takes as long to
load what it needs itself, on another core.
"""

import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

from smartsched.core.sampling import SECRETS, sampler_arguments

# -P: a pynvml.py that happens to lie in the current folder is not the driver's
_COMMAND = ("-P", "-c", "import sys; from smartsched.cli import main; sys.exit(main())")
_KILLED_WITHIN_SECONDS = 1.0
# Options with which nothing is sampled here, or what the run itself remembers.
_ELSEWHERE = ("resume", "hosts", "hosts_file", "slurm", "listen")


class Begun(NamedTuple):
    """A child, and our ends of its input and its outputs, which do not block."""

    pid: int
    requests_fd: int
    lines_fd: int
    errors_fd: int


class Ahead:
    """A child that begins as soon as it is likely to be needed; in the end it is killed, unless
    somebody has taken it."""

    def __init__(self) -> None:
        self._arguments: tuple[str, ...] = ()
        self._begun: Begun | None = None

    def begin(self, options: Mapping[str, Any]) -> None:
        """By the command line alone, and by no file yet. Why it cannot begin is told by whoever
        begins it again."""
        arguments = _arguments_by(options)
        if arguments is not None:
            self._arguments = arguments
            with suppress(OSError):
                self._begun = begin(argv_of(arguments))

    def settle(self, options: Mapping[str, Any]) -> None:
        """By all options, those from files too: whoever was told something else ends at once, since
        two at once must not ask a driver that may hang."""
        if _arguments_by(options) != self._arguments:
            self.close()

    def take(self) -> Begun | None:
        begun, self._begun = self._begun, None
        return begun

    def close(self) -> None:
        """End who was not taken."""
        begun = self.take()
        if begun is not None:
            os.kill(begun.pid, signal.SIGKILL)
            # The end of its output is its own. One that hangs in the driver is not waited for.
            select.select([begun.errors_fd], (), (), _KILLED_WITHIN_SECONDS)
            os.waitpid(begun.pid, os.WNOHANG)
            for fd in begun[1:]:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class SamplerProcess:
    """Begins one each time that it is called. Raises OSError when it cannot."""

    def __init__(self, arguments: Sequence[str], ahead: Ahead | None = None) -> None:
        """`ahead`: may have begun one already."""
        self.arguments = tuple(arguments)
        self._ahead = ahead

    def __call__(self) -> Begun:
        begun = None if self._ahead is None else self._ahead.take()
        return begun or begin(argv_of(self.arguments))


def _arguments_by(options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """None: they do not tell."""
    if any(options.get(name) is not None for name in _ELSEWHERE):
        return None
    return sampler_arguments(options["interval"], options.get("simulate"), options.get("replay"))


def argv_of(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, *_COMMAND, *arguments]


def begin(argv: list[str]) -> Begun:
    """Raises OSError."""
    fds: list[int] = []
    try:
        for _ in range(3):
            fds += os.pipe()
        requests, requests_fd, lines_fd, lines, errors_fd, errors = fds
        pid = _spawn(argv, requests, lines, errors)
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    for fd in (requests, lines, errors):
        os.close(fd)
    for fd in (requests_fd, lines_fd, errors_fd):
        os.set_blocking(fd, False)
    return Begun(pid, requests_fd, lines_fd, errors_fd)


def _spawn(argv: list[str], requests: int, lines: int, errors: int) -> int:
    return os.posix_spawn(
        argv[0],
        argv,
        {name: value for name, value in os.environ.items() if name not in SECRETS},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, requests, 0),
            (os.POSIX_SPAWN_DUP2, lines, 1),
            (os.POSIX_SPAWN_DUP2, errors, 2),
        ],
        setsid=True,  # a Ctrl-C in the terminal is not meant for it
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM],
    )
