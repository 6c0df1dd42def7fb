"""Launches, signals and awaits jobs, and adopts those of an earlier dispatcher.

Each run is a session and process group of its own, led by a wrapper that leaves a record of how its
command ended, for whoever dispatches then; the family knows whoever the run starts besides. Runs of
an earlier dispatcher are adopted: no children of ours, they are watched through pidfds.
"""

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias, TypeVar

from msgspec import Struct

from smartsched.core.actions import Launch
from smartsched.core.events import (
    Event,
    RunAdopted,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    RunRevoked,
)
from smartsched.core.model import (
    Ending,
    Exited,
    Killed,
    Lingering,
    Lost,
    NotStarted,
    Placement,
    ProcessId,
    Run,
    RunKey,
    Running,
    Shell,
    Starting,
    Stopping,
    Timestamp,
)
from smartsched.core.tag import tag_of
from smartsched.ports import FdWatcher

_Adoption: TypeAlias = RunLaunched | RunRevoked | RunAdopted
Postponed = TypeVar("Postponed", RunPostponed, RunExited)

# What the wrapper exits with when it cannot make its record; nothing was started then.
NO_RECORD = 125
# Linux's MAX_ARG_STRLEN: the most that fits into one argument, its final NUL included.
LONGEST_ARGUMENT_BYTES = 128 * 1024
# Where no signal tells of the end of what a run left behind, how often to look.
_LOOK_AT_LEFTOVERS_SECONDS = 0.1
# Where the kernel has no pidfds (before Linux 5.3), how often to look at adopted runs.
_LOOK_AT_ADOPTED_SECONDS = 0.2
# How often to look whether those live that end runs with their lease.
_LOOK_AT_WATCHDOGS_SECONDS = 10.0
# How long a wrapper that has made its record may take to write its pid there.
_ABOUT_TO_SAY_SECONDS = 2.0
# Signals that end a process; shells report 128 + the number.
_ENDING_SIGNALS = frozenset(range(1, 32)) - {
    signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
    signal.SIGURG, signal.SIGWINCH,
}  # fmt: skip
# Why a run is lost that the lease has ended, whatever its command made of that.
_OUT_OF_REACH = "its host was out of reach for longer than --lease"
_UNGUARDED = "nothing would have ended it with its lease: somebody has killed its watchdog"
_MOST_ROUNDS_OF_KILLING = 10
_CLOSING_ROUNDS = 30
_WANTING = {
    errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip


class Output(Protocol):
    """Where the output of runs goes."""

    def open(self, run: RunKey, launch: Launch) -> list[tuple[Any, ...]]:
        """What posix_spawn has to do to the run's descriptors. Raises OSError."""
        ...

    def opened(self, run: RunKey, *, started: bool) -> None: ...
    def adopt(self, run: RunKey, placement: Placement) -> None:
        """The run goes on to write where an earlier dispatcher had it write."""
        ...

    def closed(self, run: RunKey) -> None:
        """The last process of the run is gone."""
        ...

    def path(self, run: RunKey) -> str | None: ...
    def tail(self, run: RunKey) -> str:
        """The last of what it wrote; "": that cannot be known."""
        ...


class Spawner(Protocol):
    def spawn(
        self, launch: Launch, record: str, script: str | None, output: Sequence[tuple[Any, ...]]
    ) -> int: ...


class AttemptRecord(Protocol):
    @property
    def pid(self) -> int | None: ...
    @property
    def status(self) -> int | None: ...
    @property
    def changed_at(self) -> float: ...
    @property
    def by_lease(self) -> bool: ...


class Attempts(Protocol):
    """What runs leave behind for whoever dispatches later."""

    def prepare(self, run: RunKey, script: bytes | None) -> str | None: ...
    def record_path(self, run: RunKey) -> str: ...
    def read(self, run: RunKey) -> AttemptRecord | None: ...
    def revoke(self, run: RunKey) -> bool: ...
    def remove(self, run: RunKey) -> None: ...


class Lease(Protocol):
    """What else ends runs on this host: they may not go on for long when it is cut off."""

    def expired(self, run: RunKey) -> bool:
        """Whether it has ended this run."""
        ...

    def forget(self, run: RunKey) -> None: ...


class Family(Protocol):
    """Who belongs to which run; processes are psutil's, which notice when a pid was recycled."""

    def may_have_left(self, shell: Shell, shells: Collection[Shell]) -> bool: ...
    def members(self, shell: Shell, shells: Collection[Shell]) -> list[Any]: ...
    def everybody(self) -> list[Any]: ...
    def look_everywhere(self) -> None:
        """Runs may have processes that do not descend from this one."""
        ...

    def ticks(self) -> int:
        """The time, by the clock by which processes begin."""
        ...

    def identify(self, pid: int, not_before: int = -1) -> ProcessId:
        """`not_before`: `ticks` before it was started; -1: nobody knows."""
        ...

    def age_seconds(self, process: ProcessId) -> float: ...
    def may_be_reused(self, process: ProcessId) -> bool: ...
    def lives(self, process: ProcessId) -> bool: ...
    def watchdog(self, wrapper: int) -> ProcessId | None:
        """What ends the run of this wrapper with its lease; None: nobody can tell."""
        ...

    def carries(self, pid: int, tag: str) -> bool: ...
    def catches(self, pid: int, signum: int) -> bool:
        """Whether it has a handler for this signal."""
        ...


class _Leader(Struct):
    run: RunKey
    shell: Shell
    process: ProcessId
    adopted: bool = False
    pidfd: int | None = None  # None: it is our child, or there is no such thing here
    may_be_killed: bool = False  # by us: then there is no record of its end
    ending: Ending | None = None  # None: its shell lives
    ended_at: Timestamp | None = None  # None: just now
    watchdog: ProcessId | None = None  # None: it has none, or was not seen yet
    unguarded_looks: int = 0  # for how many looks the watchdog has been gone


class Processes:
    """A Launcher for this host."""

    def __init__(
        self,
        fds: FdWatcher,
        *,
        run_id: str,
        spawner: Spawner,
        output: Output,
        attempts: Attempts,
        family: Family,
        on_other_end: Callable[[int], None] = lambda _: None,
        checkpoint_signal: int = signal.SIGUSR1,
        lease: Lease | None = None,
    ) -> None:
        """`on_other_end`: told of every child that ended and was no run's. `lease`: None: there is
        none."""
        self._lease = lease
        self._checkpoint_signal = checkpoint_signal
        self._fds = fds
        self._on_other_end = on_other_end
        self._run_id = run_id
        self._spawner = spawner
        self._output = output
        self._attempts = attempts
        self._family = family
        self._leaders: dict[RunKey, _Leader] = {}
        self._by_pid: dict[int, _Leader] = {}
        self._ended: list[_Leader] = []
        self._lingering: dict[RunKey, _Leader] = {}
        self._unwatched: list[_Leader] = []  # adopted, and no pidfd tells of their end
        self._look_at: Timestamp = float("inf")
        self._look_at_watchdogs_at: Timestamp = float("-inf")
        self._last_look_took = 0.0
        fds.on_signal(signal.SIGCHLD, self._reap)

    def launch(self, launch: Launch, now: Timestamp) -> RunLaunched | RunPostponed | RunExited:
        run = launch.run
        command = launch.spec.command.encode("utf-8", "surrogateescape")
        is_long = len(command) >= LONGEST_ARGUMENT_BYTES
        try:
            script = self._attempts.prepare(run, command if is_long else None)
        except FileExistsError:
            return self._take_up(launch, now)
        except OSError as error:
            return self._not_started(run, RunPostponed(now, run, _why(error)))
        try:
            output = self._output.open(run, launch)
        except OSError as error:  # that may be mended while the command waits
            return self._not_started(run, RunPostponed(now, run, _why(error)))
        return self._start(launch, script, output, now)

    def _start(
        self, launch: Launch, script: str | None, output: list[tuple[Any, ...]], now: Timestamp
    ) -> RunLaunched | RunPostponed | RunExited:
        run = launch.run
        not_before = self._family.ticks()
        try:
            pid = self._spawner.spawn(launch, self._attempts.record_path(run), script, output)
        except OSError as error:
            why = _why(error)
            if error.errno in _WANTING:
                return self._not_started(run, RunPostponed(now, run, why))
            return self._not_started(run, RunExited(now, run, NotStarted(why), leftovers=0))
        leader = self._lead(run, self._family.identify(pid, not_before))
        self._output.opened(run, started=True)
        self._by_pid[pid] = leader
        return RunLaunched(now, run, leader.process, self._output.path(run))

    def _take_up(self, launch: Launch, now: Timestamp) -> RunLaunched:
        """It has begun before, though the journal knows nothing of that any more, as after a loss
        of power where a server has got its record and not the journal's: what became of it, that
        record tells."""
        run = launch.run
        self._family.look_everywhere()
        self._output.adopt(run, launch.placement)
        process = self._process_by_record(run)
        self._watch(self._lead(run, process), now)
        self._look_at = float("-inf")  # it may have ended long ago
        lives = self._family.lives(process)
        began = now - self._family.age_seconds(process) if lives else now
        return RunLaunched(began, run, process, self._output.path(run))

    def _lead(self, run: RunKey, process: ProcessId) -> _Leader:
        shell = Shell(process.pid, tag_of(self._run_id, run))
        leader = self._leaders[run] = _Leader(run, shell, process)
        return leader

    def _not_started(self, run: RunKey, event: Postponed) -> Postponed:
        self._output.opened(run, started=False)
        self._attempts.remove(run)
        return event

    def adopt(self, run: Run, now: Timestamp) -> list[_Adoption] | None:
        """None: whether it has begun cannot be told, as where the disk is full."""
        self._family.look_everywhere()
        self._output.adopt(run.key, run.status.placement)
        match run.status:
            case Starting():
                return self._adopt_starting(run, now)
            case Running(process=process):
                return self._watch(self._lead(run.key, process), now)
            case Stopping(process=process, killed_at=killed_at):
                leader = self._lead(run.key, process)
                leader.may_be_killed = killed_at is not None
                return self._watch(leader, now)
            case Lingering():
                # its shell has ended: only its session and its tag still tell who belongs to it
                leader = self._lead(run.key, ProcessId(0, 0, ""))
                leader.adopted, leader.ending = True, Lost()
                self._lingering[run.key] = leader
                self._look_at = float("-inf")
        return []

    def _adopt_starting(self, starting: Run, now: Timestamp) -> list[_Adoption] | None:
        """The last dispatcher died around its launch: the attempt itself knows whether it began."""
        run = starting.key
        try:
            is_revoked = self._attempts.revoke(run)
        except OSError:
            return None
        if is_revoked:
            self._output.closed(run)
            return [RunRevoked(now, run)]
        process = self._process_by_record(run)
        launched = RunLaunched(starting.status.since, run, process, self._output.path(run))
        return [launched, *self._watch(self._lead(run, process), now)]

    def _process_by_record(self, run: RunKey) -> ProcessId:
        """Of an attempt that has begun: its wrapper, if that is here."""
        deadline = time.monotonic() + _ABOUT_TO_SAY_SECONDS
        while (record := self._attempts.read(run)) is None or record.pid is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        pid = record.pid if record is not None else None
        process = ProcessId(pid or 0, 0, "")
        if pid is not None and self._family.carries(pid, tag_of(self._run_id, run)):
            process = self._family.identify(pid)
        return process

    def _watch(self, leader: _Leader, now: Timestamp) -> list[_Adoption]:
        """Be told of the end of a shell that is no child of ours. Nothing, if it has ended."""
        leader.adopted = True
        try:
            leader.pidfd = os.pidfd_open(leader.process.pid)
        except (OSError, AttributeError, ValueError, OverflowError):
            leader.pidfd = None
        if not self._family.lives(leader.process):  # or it was somebody else whom we opened
            self._on_adopted_end(leader)
            return []
        if leader.pidfd is not None:
            self._fds.watch(leader.pidfd, lambda: self._on_adopted_end(leader))
        else:
            self._unwatched.append(leader)
            self._look_at = float("-inf")
        return [RunAdopted(now, leader.run, now - self._family.age_seconds(leader.process))]

    def _on_adopted_end(self, leader: _Leader) -> None:
        if leader.pidfd is not None:
            self._fds.forget(leader.pidfd)
            os.close(leader.pidfd)
            leader.pidfd = None
        record = self._attempts.read(leader.run)
        if record is not None and record.status is not None:
            leader.ending = as_shells_say(record.status)
            leader.ended_at = record.changed_at
        elif record is not None and record.by_lease:
            leader.ending = Lost(_OUT_OF_REACH)
            leader.ended_at = record.changed_at
        else:
            leader.ending = Killed(signal.SIGKILL) if leader.may_be_killed else Lost()
        self._ended.append(leader)

    def written(self, events: Sequence[Event]) -> None:
        """Only now is an attempt's record of no more use; one that revokes always is: the wrapper
        may still be to come."""
        for event in events:
            match event:
                case RunExited(leftovers=0) | RunCleared():
                    self._attempts.remove(event.run)
                    if self._lease is not None:
                        self._lease.forget(event.run)
                case _:
                    pass

    def terminate(self, run: RunKey) -> None:
        """SIGTERM; and SIGCONT, since a stopped process would not notice."""
        leader = self._leaders[run]
        for signum in (signal.SIGTERM, signal.SIGCONT):
            if leader.ending is None:
                self._signal_leader(leader, signum)
            for process in self._members(leader):
                in_group = _group_of(process) == leader.shell.pid and not leader.adopted
                if leader.ending is not None or not in_group:
                    _send(process, signum)

    def checkpoint(self, run: RunKey) -> None:
        """Only to those that wait for the signal: most others, such as a shell between us and a
        training, would die of it."""
        signum, leader = self._checkpoint_signal, self._leaders[run]
        commands = [p for p in self._members(leader) if p.pid != leader.shell.pid]  # our wrapper
        catching = [process for process in commands if self._family.catches(process.pid, signum)]
        for process in catching:
            _send(process, signum)
        if not catching:
            self.terminate(run)

    def kill(self, run: RunKey) -> None:
        """SIGKILL, until nobody new appears: a process may be starting others meanwhile."""
        leader = self._leaders[run]
        leader.may_be_killed = True
        killed: set[int] = set()
        for _ in range(_MOST_ROUNDS_OF_KILLING):
            if leader.ending is None:
                self._signal_leader(leader, signal.SIGKILL)
            members = [p for p in self._members(leader) if p.pid not in killed]
            for process in members:
                _send(process, signal.SIGKILL)
                killed.add(process.pid)
            if not members:
                break

    def take(self, now: Timestamp) -> list[RunExited | RunCleared | RunPostponed]:
        events: list[RunExited | RunCleared | RunPostponed] = []
        if now >= self._look_at:
            self._look_at_unwatched()
        if self._lease is not None and now >= self._look_at_watchdogs_at:
            self._look_at_watchdogs_at = now + _LOOK_AT_WATCHDOGS_SECONDS
            self._look_at_watchdogs()
        ended, self._ended = self._ended, []
        events.extend([self._end_of(leader, now) for leader in ended])
        if now >= self._look_at:
            events.extend(self._look_at_lingering(now))
            self._look_at = float("inf")
        if self._lingering:
            # on a box with very many processes a look takes long: a twentieth of the time will do
            pause = max(_LOOK_AT_LEFTOVERS_SECONDS, 20 * self._last_look_took)
            self._look_at = min(self._look_at, now + pause)
        if self._unwatched:
            self._look_at = min(self._look_at, now + _LOOK_AT_ADOPTED_SECONDS)
        return events

    def _end_of(self, leader: _Leader, now: Timestamp) -> RunExited | RunPostponed:
        assert leader.ending is not None
        record = self._attempts.read(leader.run) if leader.ending == Exited(NO_RECORD) else None
        if leader.ending == Exited(NO_RECORD) and (record is None or record.pid is None):
            self._forget(leader)
            self._attempts.remove(leader.run)
            return RunPostponed(now, leader.run, "no room for a record of how it ends")
        if (why := self._why_lost(leader)) is not None:
            leader.ending = Lost(why)
        failed = leader.ending != Exited(0)
        why = _says_out_of_memory(self._output.tail(leader.run)) if failed else ""
        leftovers = self._count_leftovers(leader)
        if leftovers:
            self._lingering[leader.run] = leader
        else:
            self._forget(leader)
        ended_at = now if leader.ended_at is None else min(leader.ended_at, now)
        return RunExited(ended_at, leader.run, leader.ending, leftovers, why)

    def _why_lost(self, leader: _Leader) -> str | None:
        """Where it was not the command that has come to its end. A wrapper that lived to see that
        says itself if it was the lease; of another there may be a mark, though not for ever."""
        if self._lease is None:
            return None
        if leader.unguarded_looks > 1:
            return _UNGUARDED
        record = self._attempts.read(leader.run)
        if record is not None and record.status is not None:
            return None
        by_lease = (record is not None and record.by_lease) or self._lease.expired(leader.run)
        return _OUT_OF_REACH if by_lease else None

    def _look_at_watchdogs(self) -> None:
        """A run without one would go on where its host is cut off, beside its successor: it is
        stopped. One that is gone for a single look may have ended together with its run."""
        for leader in [leader for leader in self._leaders.values() if leader.ending is None]:
            if leader.watchdog is None:
                leader.watchdog = self._family.watchdog(leader.process.pid)
            elif not self._family.lives(leader.watchdog):
                leader.unguarded_looks += 1
                if leader.unguarded_looks == 2:
                    self.terminate(leader.run)
                elif leader.unguarded_looks > 2:
                    self.kill(leader.run)

    def _look_at_unwatched(self) -> None:
        for leader in list(self._unwatched):
            if not self._family.lives(leader.process):
                self._unwatched.remove(leader)
                self._on_adopted_end(leader)

    def living(self) -> Collection[RunKey]:
        return self._leaders.keys()

    def wake_at(self) -> Timestamp:
        return self._look_at

    def close(self) -> None:
        """Leave nobody behind. Runs are gone by now but for mishaps."""
        for run in self._leaders:
            self.terminate(run)
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if self._end_everybody(signum):
                return

    def _end_everybody(self, signum: int) -> bool:
        """Whether nobody is left, after a while. Who came after the others were told is told as
        well: what dies may be about to begin something."""
        told: set[Any] = set()
        for _ in range(_CLOSING_ROUNDS):
            self._reap()
            left = self._family.everybody()
            if not left:
                return True
            for process in left:
                if process not in told:
                    _send(process, signum)
            told.update(left)
            select.select([], [], [], _LOOK_AT_LEFTOVERS_SECONDS)
        return False

    def _members(self, leader: _Leader) -> list[Any]:
        return self._family.members(leader.shell, self._shells())

    def _shells(self) -> list[Shell]:
        return [
            leader.shell._replace(is_known=self._is_known(leader))
            for leader in self._leaders.values()
        ]

    def _is_known(self, leader: _Leader) -> bool:
        """Whether its number, and the session of that number, cannot be anybody else's."""
        if leader.adopted:
            return self._family.lives(leader.process)
        return leader.ending is None or not self._family.may_be_reused(leader.process)

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
            else:
                self._on_other_end(pid)
                if self._lingering:
                    self._look_at = float("-inf")

    def _count_leftovers(self, leader: _Leader) -> int:
        shells = [other.shell for other in self._leaders.values()]
        if not leader.adopted and not self._family.may_have_left(leader.shell, shells):
            return 0
        return len(self._members(leader))

    def _look_at_lingering(self, now: Timestamp) -> Iterator[RunCleared]:
        began = time.monotonic()
        for leader in list(self._lingering.values()):
            if not self._count_leftovers(leader):
                del self._lingering[leader.run]
                self._forget(leader)
                yield RunCleared(now, leader.run)
        self._last_look_took = time.monotonic() - began

    def _forget(self, leader: _Leader) -> None:
        del self._leaders[leader.run]
        self._output.closed(leader.run)

    def _signal_leader(self, leader: _Leader, signum: int) -> None:
        """And its group, while the leader is not reaped: until then nobody else can have its
        number. Of an adopted one that is not known, and its members are signalled one by one."""
        if not leader.adopted:
            _signal_group(leader.shell.pid, signum)
        elif leader.pidfd is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(leader.pidfd, signum)
        elif self._family.lives(leader.process):
            with suppress(OSError):
                os.kill(leader.process.pid, signum)


def _says_out_of_memory(tail: str) -> str:
    from smartsched.core.oom import out_of_memory  # only failures need it

    return out_of_memory(tail) or ""


def _why(error: OSError) -> str:
    place = f": {os.fsdecode(error.filename)}" if error.filename else ""
    return f"{error.strerror}{place}"


def _ending(status: int) -> Ending:
    if os.WIFSIGNALED(status):
        return Killed(os.WTERMSIG(status))
    return as_shells_say(os.WEXITSTATUS(status))


def as_shells_say(status: int) -> Ending:
    """128 + the signal that ended it. A command that itself exits so means the same by it."""
    return Killed(status - 128) if status - 128 in _ENDING_SIGNALS else Exited(status)


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
