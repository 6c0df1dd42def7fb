"""The only module that starts, signals and awaits jobs.

Each run is a session and process group of its own. What it leaves behind is found wherever it went:
by its group, by its ancestry (orphans of our runs become our children, where the system can do
that) and by the tag in its environment.
"""

import errno
import os
import select
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from smartsched.core.actions import Launch
from smartsched.core.events import RunCleared, RunExited, RunLaunched, RunPostponed
from smartsched.core.model import Ending, Exited, JobId, Killed, NotStarted, RunKey, Timestamp
from smartsched.ports import FdWatcher

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
_PR_SET_CHILD_SUBREAPER = 36
_TAG_VARIABLES = ("SMARTSCHED_RUN", "SMARTSCHED_JOB", "SMARTSCHED_ATTEMPT")


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


@dataclass(slots=True)
class _Leader:
    run: RunKey
    tag: str
    pid: int
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
        other_children: Callable[[], Collection[int]],
    ) -> None:
        """`other_children`: pids of children of this process that are no runs."""
        self._shell = shell
        self._environment = dict(environment)
        self._run_name = run_name
        self._output = output
        self._scripts = scripts
        self._other_children = other_children
        self._leaders: dict[RunKey, _Leader] = {}
        self._by_pid: dict[int, _Leader] = {}
        self._ended: list[_Leader] = []
        self._lingering: dict[RunKey, _Leader] = {}
        self._look_at: Timestamp = float("inf")
        _adopt_orphans()
        fds.on_signal(signal.SIGCHLD, self._reap)

    def launch(self, launch: Launch, now: Timestamp) -> RunLaunched | RunPostponed | RunExited:
        run = launch.run
        try:
            pid = self._spawn(launch)
        except OSError as error:
            self._output.opened(run, started=False)
            if _needs_script(launch):
                self._scripts.remove(run.job)
            why = _why(error)
            if error.errno in _WANTING:
                return RunPostponed(now, run, why)
            return RunExited(now, run, NotStarted(why), leftovers=0)
        self._output.opened(run, started=True)
        tag = f"{self._run_name}/{run.job}/{run.attempt}"
        leader = _Leader(run, tag, pid, _needs_script(launch))
        self._leaders[run] = self._by_pid[pid] = leader
        return RunLaunched(now, run, pid, self._output.path(run))

    def terminate(self, run: RunKey) -> None:
        """SIGTERM; and SIGCONT, since a stopped process would not notice."""
        leader = self._leaders[run]
        if leader.ending is None:
            _signal_group(leader.pid, signal.SIGTERM)
            _signal_group(leader.pid, signal.SIGCONT)
        for process in _members(leader, but_group=leader.ending is None):
            _send(process, signal.SIGTERM)
            _send(process, signal.SIGCONT)

    def kill(self, run: RunKey) -> None:
        """SIGKILL, until nobody new appears: a process may be starting others meanwhile."""
        leader = self._leaders[run]
        killed: set[int] = set()
        for _ in range(_MOST_ROUNDS_OF_KILLING):
            if leader.ending is None:
                _signal_group(leader.pid, signal.SIGKILL)
            members = [p for p in _members(leader) if p.pid not in killed]
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
        for _ in range(_CLOSING_ROUNDS):
            self._reap()
            self.take(0.0)
            if not self._leaders:
                return
            select.select([], [], [], _LOOK_AT_LEFTOVERS_SECONDS)
        for run in self._leaders:
            self.kill(run)

    def _spawn(self, launch: Launch) -> int:
        command = launch.spec.command.encode("utf-8", "surrogateescape")
        if _needs_script(launch):
            argv = [self._shell, self._scripts.write(launch.run.job, command)]
        else:
            argv = [self._shell, "-c", command]  # type: ignore[list-item]  # bytes are welcome too
        return os.posix_spawn(
            self._shell,
            argv,
            self._environment | self._variables(launch),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                *self._output.open(launch.run, launch),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=_RESET_SIGNALS,
        )

    def _variables(self, launch: Launch) -> dict[bytes, bytes]:
        gpus = launch.placement.gpus
        values = {
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.visible for gpu in gpus),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "SMARTSCHED_RUN": self._run_name,
            "SMARTSCHED_JOB": str(launch.run.job),
            "SMARTSCHED_ATTEMPT": str(launch.run.attempt),
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
        if not _group_exists(leader.pid) and not self._has_orphans():
            return 0
        return sum(1 for _ in _members(leader))

    def _has_orphans(self) -> bool:
        """Whether we have children that are no shells of runs. Cheap, since asked at every exit."""
        known = {leader.pid for leader in self._leaders.values()}
        known.update(self._other_children())
        return any(pid not in known for pid in _children())

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


def _needs_script(launch: Launch) -> bool:
    return len(launch.spec.command.encode("utf-8", "surrogateescape")) >= LONGEST_ARGUMENT_BYTES


def _why(error: OSError) -> str:
    place = f": {os.fsdecode(error.filename)}" if error.filename else ""
    return f"{error.strerror}{place}"


def _ending(status: int) -> Ending:
    if os.WIFSIGNALED(status):
        return Killed(os.WTERMSIG(status))
    return Exited(os.WEXITSTATUS(status))


def _adopt_orphans() -> None:
    """Become the parent of what our runs' processes orphan, instead of init (Linux, prctl(2))."""
    import ctypes

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _signal_group(leader_pid: int, signum: int) -> None:
    """Only while the leader is not reaped: until then nobody else can have its number."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signum)


def _group_exists(leader_pid: int) -> bool:
    try:
        os.killpg(leader_pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _children() -> list[int]:
    """Pids of our children."""
    try:
        threads = os.listdir("/proc/self/task")
        pids: list[int] = []
        for thread in threads:
            with open(f"/proc/self/task/{thread}/children", "rb") as listing:
                pids.extend(map(int, listing.read().split()))
    except OSError:
        return _children_by_scan()
    return pids


def _children_by_scan() -> list[int]:
    """For kernels without CONFIG_PROC_CHILDREN."""
    me = str(os.getpid()).encode()
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    return [pid for pid in pids if _parent(pid) == me]


def _parent(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            return stat.read(4096).rpartition(b")")[2].split(None, 2)[1]
    except (OSError, IndexError):
        return b""


def _members(leader: _Leader, *, but_group: bool = False) -> Iterator[Any]:
    """The living processes of a run, as psutil.Process: they know when a pid was recycled."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.pid == leader.pid or process.status() == psutil.STATUS_ZOMBIE:
                continue
            group, session = os.getpgid(process.pid), os.getsid(process.pid)
            in_group = group == leader.pid
            if in_group and but_group:
                continue
            if in_group or session == leader.pid or _carries(process, leader.tag):
                yield process
        except (psutil.Error, OSError):
            continue


def _carries(process: Any, tag: str) -> bool:
    if process.uids().real != os.getuid():
        return False
    environment = process.environ()
    return "/".join(environment.get(name, "") for name in _TAG_VARIABLES) == tag


def _send(process: Any, signum: int) -> None:
    import psutil

    with suppress(psutil.Error, OSError):
        process.send_signal(signum)
