"""Runs the user's own command for each job that is finished (`--on-finish`)."""

import os
import signal
from collections import deque
from collections.abc import Callable, Mapping

from smartsched.core.actions import Tell
from smartsched.core.model import Exited, Killed
from smartsched.core.tag import HOOK_VARIABLE, VARIABLES

_MOST_AT_ONCE = 8
# A variable, as an argument, may hold 128 KiB; a character takes up to four bytes.
_LONGEST_COMMAND = 30_000
_RESET_SIGNALS = [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD,
    signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
]  # fmt: skip


class NoHooks:
    """A Teller where nobody wants to be told."""

    def tell(self, what: Tell) -> None: ...

    def pids(self) -> list[int]:
        return []

    def ended(self, pid: int) -> None: ...

    def is_settled(self) -> bool:
        return True

    def left(self) -> int:
        return 0


class Hooks:
    """A Teller. A few at once, in sessions of their own; the rest wait their turn."""

    def __init__(
        self,
        command: str,
        *,
        shell: str,
        environment: Mapping[bytes, bytes],
        run_name: str,
        when_failed: Callable[[str], None],
    ) -> None:
        self._command = command
        self._shell = shell
        tags = {name.encode() for name in VARIABLES}  # we may run inside a job ourselves
        self._environment = {k: v for k, v in environment.items() if k not in tags}
        self._run_name = run_name
        self._when_failed = when_failed
        self._waiting: deque[Tell] = deque()
        self._running: set[int] = set()
        self._survived: set[int] = set()  # ended, but not all that they started

    def tell(self, what: Tell) -> None:
        self._waiting.append(what)
        self._start_some()

    def pids(self) -> list[int]:
        """Of those that run, and of those that left something behind: it has their session."""
        self._survived = {pid for pid in self._survived if _group_exists(pid)}
        return [*self._running, *self._survived]

    def ended(self, pid: int) -> None:
        """A child of ours ended, perhaps one of these."""
        if pid in self._running:
            self._running.remove(pid)
            self._survived.add(pid)
        self._start_some()

    def is_settled(self) -> bool:
        return not self._running and not self._waiting

    def left(self) -> int:
        """How many have not ended, or not begun."""
        return len(self._running) + len(self._waiting)

    def _start_some(self) -> None:
        while self._waiting and len(self._running) < _MOST_AT_ONCE:
            try:
                self._running.add(self._spawn(self._waiting.popleft()))
            except OSError as error:
                self._when_failed(error.strerror or str(error))

    def _spawn(self, what: Tell) -> int:
        return os.posix_spawn(
            self._shell,
            [self._shell, "-c", self._command],
            self._environment | fields_of(what, self._run_name),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, 2, 1),  # our stdout is the jobs'
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=_RESET_SIGNALS,
        )


def _group_exists(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except OSError:
        return False
    return True


def fields_of(what: Tell, run_name: str) -> dict[bytes, bytes]:
    """The job's fields as environment variables: not all that would make it part of the run."""
    ended = what.ended
    status, signum = "", ""
    match ended.ending:
        case Exited(code):
            status = str(code)
        case Killed(number):
            signum = str(number)
        case _:
            pass
    values = {
        HOOK_VARIABLE: "1",
        "SMARTSCHED_RUN": run_name,
        "SMARTSCHED_JOB": str(ended.key.job),
        "SMARTSCHED_NAME": ended.job.spec.wishes.name,
        "SMARTSCHED_ATTEMPTS": str(ended.key.attempt),
        "SMARTSCHED_COMMAND": ended.job.spec.command[:_LONGEST_COMMAND],
        "SMARTSCHED_DIRECTORY": ended.job.spec.directory,
        "SMARTSCHED_OUTCOME": what.outcome,
        "SMARTSCHED_EXIT_STATUS": status,
        "SMARTSCHED_SIGNAL": signum,
        "SMARTSCHED_GPUS": ended.placement.labels,
        "SMARTSCHED_STARTED_AT": f"{ended.started_at:.3f}",
        "SMARTSCHED_SECONDS": f"{ended.seconds:.3f}",
        "SMARTSCHED_LOG": ended.log or "",
    }
    return {
        name.encode(): value.encode("utf-8", "surrogateescape") for name, value in values.items()
    }
