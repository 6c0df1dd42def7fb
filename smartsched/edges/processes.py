"""The only module that starts, signals and awaits jobs.

Each run is a session and process group of its own; the family knows whoever it starts besides.
"""

import errno
import os
import select
import signal
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from smartsched.core.actions import Launch
from smartsched.core.events import RunCleared, RunExited, RunLaunched, RunPostponed
from smartsched.core.model import (
    Ending,
    Exited,
    JobId,
    Killed,
    NotStarted,
    RunKey,
    Shell,
    Timestamp,
)
from smartsched.core.tag import tag_of, variables_of
from smartsched.ports import FdWatcher

Postponed = TypeVar("Postponed", RunPostponed, RunExited)

# Linux's MAX_ARG_STRLEN: the most that fits into one argument, its final NUL included.
LONGEST_ARGUMENT_BYTES = 128 * 1024
# Where no signal tells of the end of what a run left behind, how often to look.
_LOOK_AT_LEFTOVERS_SECONDS = 0.1
_MOST_ROUNDS_OF_KILLING = 10
_CLOSING_ROUNDS = 30
_WANTING = {
    errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip
_RESET_SIGNALS = [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD,
    signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
]  # fmt: skip


class Output(Protocol):
    """Where the output of runs goes."""

    def open(self, run: RunKey, launch: Launch) -> list[tuple[Any, ...]]:
        """What posix_spawn has to do to the run's descriptors. Raises OSError."""
        ...

    def opened(self, run: RunKey, *, started: bool) -> None: ...
    def closed(self, run: RunKey) -> None:
        """The last process of the run is gone."""
        ...

    def path(self, run: RunKey) -> str | None: ...


class Scripts(Protocol):
    """Where commands go that are too long for an argument."""

    def write(self, job: JobId, command: bytes) -> str: ...
    def remove(self, job: JobId) -> None: ...


class Family(Protocol):
    """Who belongs to which run; processes are psutil's, which notice when a pid was recycled."""

    def may_have_left(self, shell: Shell, shells: Collection[Shell]) -> bool: ...
    def members(self, shell: Shell, shells: Collection[Shell]) -> list[Any]: ...
    def everybody(self) -> list[Any]: ...


@dataclass(slots=True)
class _Leader:
    run: RunKey
    shell: Shell
    has_script: bool
    ending: Ending | None = None  # None: its shell lives


class Processes:
    """A Launcher for this host."""

    def __init__(
        self,
        fds: FdWatcher,
        *,
        shell: str,
        environment: Mapping[bytes, bytes],
        run_name: str,
        output: Output,
        scripts: Scripts,
        family: Family,
    ) -> None:
        self._shell = shell
        self._environment = dict(environment)
        self._run_name = run_name
        self._output = output
        self._scripts = scripts
        self._family = family
        self._leaders: dict[RunKey, _Leader] = {}
        self._by_pid: dict[int, _Leader] = {}
        self._ended: list[_Leader] = []
        self._lingering: dict[RunKey, _Leader] = {}
        self._look_at: Timestamp = float("inf")
        fds.on_signal(signal.SIGCHLD, self._reap)

    def launch(self, launch: Launch, now: Timestamp) -> RunLaunched | RunPostponed | RunExited:
        run = launch.run
        try:
            pid = self._spawn(launch)
        except _NotReadyError as error:
            return self._not_started(launch, RunPostponed(now, run, str(error)))
        except OSError as error:
            why = _why(error)
            if error.errno in _WANTING:
                return self._not_started(launch, RunPostponed(now, run, why))
            return self._not_started(launch, RunExited(now, run, NotStarted(why), leftovers=0))
        self._output.opened(run, started=True)
        shell = Shell(pid, tag_of(self._run_name, run))
        leader = _Leader(run, shell, _needs_script(launch))
        self._leaders[run] = self._by_pid[pid] = leader
        return RunLaunched(now, run, pid, self._output.path(run))

    def _not_started(self, launch: Launch, event: Postponed) -> Postponed:
        self._output.opened(launch.run, started=False)
        if _needs_script(launch):
            self._scripts.remove(launch.run.job)
        return event

    def terminate(self, run: RunKey) -> None:
        """SIGTERM; and SIGCONT, since a stopped process would not notice."""
        leader = self._leaders[run]
        for signum in (signal.SIGTERM, signal.SIGCONT):
            if leader.ending is None:
                _signal_group(leader.shell.pid, signum)
            for process in self._members(leader):
                if leader.ending is not None or _group_of(process) != leader.shell.pid:
                    _send(process, signum)

    def kill(self, run: RunKey) -> None:
        """SIGKILL, until nobody new appears: a process may be starting others meanwhile."""
        leader = self._leaders[run]
        killed: set[int] = set()
        for _ in range(_MOST_ROUNDS_OF_KILLING):
            if leader.ending is None:
                _signal_group(leader.shell.pid, signal.SIGKILL)
            members = [p for p in self._members(leader) if p.pid not in killed]
            for process in members:
                _send(process, signal.SIGKILL)
                killed.add(process.pid)
            if not members:
                break

    def take(self, now: Timestamp) -> list[RunExited | RunCleared]:
        events: list[RunExited | RunCleared] = []
        ended, self._ended = self._ended, []
        for leader in ended:
            assert leader.ending is not None
            leftovers = self._count_leftovers(leader)
            events.append(RunExited(now, leader.run, leader.ending, leftovers))
            if leftovers:
                self._lingering[leader.run] = leader
            else:
                self._forget(leader)
        if now >= self._look_at:
            events.extend(self._look_at_lingering(now))
            self._look_at = float("inf")
        if self._lingering:
            self._look_at = min(self._look_at, now + _LOOK_AT_LEFTOVERS_SECONDS)
        return events

    def wake_at(self) -> Timestamp:
        return self._look_at

    def close(self) -> None:
        """Leave nobody behind, whatever brought us here. Runs are gone by now but for mishaps."""
        for run in self._leaders:
            self.terminate(run)
        for process in self._family.everybody():
            _send(process, signal.SIGTERM)
        for _ in range(_CLOSING_ROUNDS):
            self._reap()
            left = self._family.everybody()
            if not left:
                return
            select.select([], [], [], _LOOK_AT_LEFTOVERS_SECONDS)
        for process in left:
            _send(process, signal.SIGKILL)

    def _members(self, leader: _Leader) -> list[Any]:
        return self._family.members(leader.shell, self._shells())

    def _shells(self) -> list[Shell]:
        return [leader.shell for leader in self._leaders.values()]

    def _spawn(self, launch: Launch) -> int:
        """Raises _NotReadyError for what has nothing to do with the command, else OSError."""
        command = launch.spec.command.encode("utf-8", "surrogateescape")
        argv: list[str | bytes] = [self._shell, "-c", command]
        try:
            if _needs_script(launch):
                argv = [self._shell, self._scripts.write(launch.run.job, command)]
            output = self._output.open(launch.run, launch)
        except OSError as error:
            raise _NotReadyError(_why(error)) from error
        return os.posix_spawn(
            self._shell,
            argv,
            self._environment | self._variables(launch),
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), *output],
            setsid=True,
            setsigmask=[],
            setsigdef=_RESET_SIGNALS,
        )

    def _variables(self, launch: Launch) -> dict[bytes, bytes]:
        gpus = launch.placement.gpus
        values = {
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.visible for gpu in gpus),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            **variables_of(self._run_name, launch.run),
            "SMARTSCHED_GPUS": launch.placement.labels,
            "SMARTSCHED_GPU_UUIDS": ",".join(gpu.key.uuid for gpu in gpus),
        }
        variables = {name.encode(): value.encode() for name, value in values.items()}
        if b"PYTHONUNBUFFERED" not in self._environment:
            variables[b"PYTHONUNBUFFERED"] = b"1"
        return variables

    def _reap(self) -> None:
        """Every child that ended: shells of runs, adopted orphans, the sampler."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if leader := self._by_pid.pop(pid, None):
                leader.ending = _ending(status)
                self._ended.append(leader)
            elif self._lingering:
                self._look_at = float("-inf")

    def _count_leftovers(self, leader: _Leader) -> int:
        if not self._family.may_have_left(leader.shell, self._shells()):
            return 0
        return len(self._members(leader))

    def _look_at_lingering(self, now: Timestamp) -> Iterator[RunCleared]:
        for leader in list(self._lingering.values()):
            if not self._count_leftovers(leader):
                del self._lingering[leader.run]
                self._forget(leader)
                yield RunCleared(now, leader.run)

    def _forget(self, leader: _Leader) -> None:
        del self._leaders[leader.run]
        self._output.closed(leader.run)
        if leader.has_script:
            self._scripts.remove(leader.run.job)


class _NotReadyError(Exception):
    """A log or a script cannot be written; that may be mended while the command waits."""


def _needs_script(launch: Launch) -> bool:
    return len(launch.spec.command.encode("utf-8", "surrogateescape")) >= LONGEST_ARGUMENT_BYTES


def _why(error: OSError) -> str:
    place = f": {os.fsdecode(error.filename)}" if error.filename else ""
    return f"{error.strerror}{place}"


def _ending(status: int) -> Ending:
    if os.WIFSIGNALED(status):
        return Killed(os.WTERMSIG(status))
    return Exited(os.WEXITSTATUS(status))


def _signal_group(leader_pid: int, signum: int) -> None:
    """Only while the leader is not reaped: until then nobody else can have its number."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signum)


def _group_of(process: Any) -> int | None:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return None


def _send(process: Any, signum: int) -> None:
    import psutil

    with suppress(psutil.Error, OSError):
        process.send_signal(signum)
