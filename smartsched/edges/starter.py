"""Starts agents on other hosts by the user's own ssh, and here without it.

The user's ssh knows how to reach a host: by his configuration, keys and jump hosts, in which
nothing is overridden but what would ask or hang. What lets an agent join goes through its stdin,
out of memory that has no name: arguments and environments are read by others. Knows nothing of what
an agent is but that it says "joined" or "started" and leaves its ssh.
"""

import os
import signal
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from msgspec import Struct, field

from smartsched.core import reaching
from smartsched.core.host_list import HostSpec
from smartsched.core.model import HostName, Timestamp
from smartsched.core.tag import HOOK_VARIABLE, VARIABLES
from smartsched.errors import SmartschedError
from smartsched.ports import FdWatcher

_MOST_AT_ONCE = 16
_READ_BYTES = 1 << 16
_READS_AT_THE_END = 4
_KEPT_BYTES = 8192  # of what was said last
_FIRST_BACKOFF_SECONDS = 2.0
_LONGEST_BACKOFF_SECONDS = 60.0
_SPREAD = 0.25  # of the backoff: hosts that fell together are not asked together for ever
# Where the kernel has no pidfds (before Linux 5.3), how often to look.
_LOOK_SECONDS = 0.2
_RESET_SIGNALS = [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD,
    signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
]  # fmt: skip


class Started(Struct, frozen=True):
    """The agent is up, and about to join. `was_there`: before, and it was told where to."""

    host: HostName
    was_there: bool = False


class NotStarted(Struct, frozen=True):
    host: HostName
    why: str  # one line, which names the host
    retry_at: Timestamp


News: TypeAlias = Started | NotStarted


class _Attempt(Struct):
    host: HostSpec
    pid: int
    output_fd: int
    errors_fd: int
    deadline: Timestamp
    pidfd: int | None  # None: the kernel has no such thing
    output: bytearray = field(default_factory=bytearray)
    errors: bytearray = field(default_factory=bytearray)


class _Host(Struct):
    spec: HostSpec
    is_wanted: bool = False  # its agent is to be started, and has not joined
    failures: int = 0  # since it joined
    retry_at: Timestamp | None = None  # None: none is due


class SshStarter:
    """Tries each host that it is told to, until its agent is up; a few at once.

    Works whoever awaits children: it notices the end of its own by itself, and where somebody else
    may be quicker to reap them, he tells of it (`ended`).
    """

    def __init__(
        self,
        fds: FdWatcher,
        hosts: Sequence[HostSpec],
        *,
        remote_command: str,
        local_command: str | None = None,
        bundle: Callable[[HostSpec], bytes],
        ssh: str = "ssh",
        patience_seconds: float = 60.0,
        most_at_once: int = _MOST_AT_ONCE,
    ) -> None:
        """`remote_command`: text for the shell of a host, to which the agent's arguments are
        appended. `local_command`: the same for this very host; None: it is no other. `bundle`: what
        the agent of a host needs for joining. `ssh`: looked for in PATH. Starts nothing yet. Raises
        UsageError for a command that cannot be one line."""
        self._fds = fds
        self._script = reaching.agent_script(remote_command)
        self._local_script = reaching.agent_script(local_command or remote_command)
        self._bundle = bundle
        self._ssh = ssh
        self._patience = patience_seconds
        self._most_at_once = most_at_once
        self._hosts = {spec.name: _Host(spec) for spec in hosts}
        self._queue: deque[HostName] = deque()
        self._attempts: dict[int, _Attempt] = {}
        self._killed: set[int] = set()  # not reaped yet
        self._finished: list[tuple[_Attempt, int | None]] = []
        self._news: list[News] = []
        self._now: Timestamp = 0.0

    def start(self, host: HostName, now: Timestamp, *, in_seconds: float = 0.0) -> None:
        """Then, or as soon as fewer are under way; nothing, if an attempt is. KeyError: it is none
        of the hosts."""
        known = self._hosts[host]
        known.is_wanted, known.retry_at = True, None
        if in_seconds > 0:
            known.retry_at = now + in_seconds
            return
        if host not in self._queue and all(a.host.name != host for a in self._under_way()):
            self._queue.append(host)
        self._start_some(now)

    def joined(self, host: HostName) -> None:
        """However it came to be: it needs no more attempts, and its next failure is a first one."""
        known = self._hosts[host]
        known.is_wanted, known.failures, known.retry_at = False, 0, None
        with suppress(ValueError):
            self._queue.remove(host)

    def has_not_joined(self, host: HostName, why: str, now: Timestamp) -> None:
        """Though it was up: that attempt has failed, too."""
        self._fail(self._hosts[host].spec, why, now)

    def take(self, now: Timestamp) -> Sequence[News]:
        """What came of attempts since the last call. Starts those that are due."""
        self._now = now
        self._look()
        finished, self._finished = self._finished, []
        for attempt, status in finished:
            self._conclude(attempt, status, now)
        for attempt in [a for a in self._attempts.values() if now >= a.deadline]:
            self._give_up_on(attempt, now)
        for name, host in self._hosts.items():
            if host.retry_at is not None and now >= host.retry_at:
                self.start(name, now)
        self._start_some(now)
        news, self._news = self._news, []
        return news

    def wake_at(self) -> Timestamp:
        if self._news or self._finished or (self._queue and self._has_room()):
            return float("-inf")
        times = [host.retry_at for host in self._hosts.values() if host.retry_at is not None]
        for attempt in self._attempts.values():
            is_watched = attempt.pidfd is not None
            times.append(attempt.deadline if is_watched else self._now + _LOOK_SECONDS)
        return min(times, default=float("inf"))

    def pids(self) -> list[int]:
        """Of children that run, or that nobody has awaited yet."""
        return [*self._attempts, *self._killed]

    def ended(self, pid: int, status: int | None = None) -> None:
        """Somebody has awaited a child of ours, perhaps one of these. `status`: as os.waitpid gives
        it; None: he does not know."""
        self._killed.discard(pid)
        if (attempt := self._attempts.pop(pid, None)) is not None:
            self._end(attempt, status)

    def close(self) -> None:
        """What is under way is given up. Agents that are up stay."""
        for attempt in list(self._attempts.values()):
            self._kill(attempt)
        self._queue.clear()
        self._look()

    def _under_way(self) -> list[_Attempt]:
        return [*self._attempts.values(), *(attempt for attempt, _ in self._finished)]

    def _has_room(self) -> bool:
        return len(self._attempts) < self._most_at_once

    # --- starting

    def _start_some(self, now: Timestamp) -> None:
        while self._queue and self._has_room():
            spec = self._hosts[self._queue.popleft()].spec
            try:
                self._start(spec, now)
            except OSError as error:
                self._fail(spec, reaching.cannot_start(spec, self._why(error)), now)
            except SmartschedError as error:
                self._fail(spec, reaching.cannot_start(spec, str(error)), now)

    def _start(self, spec: HostSpec, now: Timestamp) -> None:
        fds: list[int] = []
        try:
            fds.append(_in_memory(self._bundle(spec)))
            fds += os.pipe()
            fds += os.pipe()
            bundle, output_fd, output, errors_fd, errors = fds
            pid = self._spawn(spec, bundle, output, errors)
        except (OSError, SmartschedError):
            for fd in fds:
                os.close(fd)
            raise
        for fd in (bundle, output, errors):
            os.close(fd)
        attempt = _Attempt(spec, pid, output_fd, errors_fd, now + self._patience, _pidfd(pid))
        self._attempts[pid] = attempt
        self._watch(attempt)

    def _spawn(self, spec: HostSpec, stdin: int, stdout: int, stderr: int) -> int:
        if _is_here(spec):
            argv = reaching.local_argv(self._local_script)
        else:
            argv = reaching.ssh_argv(self._ssh, spec, self._script)
        ours = {name.encode() for name in (*VARIABLES, HOOK_VARIABLE)}  # an agent is in no job
        return os.posix_spawnp(
            argv[0],
            argv,
            {name: value for name, value in os.environb.items() if name not in ours},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, stdout, 1),
                (os.POSIX_SPAWN_DUP2, stderr, 2),
            ],
            setsid=True,  # no terminal to ask at, and its Ctrl-C is not meant for it
            setsigmask=[],
            setsigdef=_RESET_SIGNALS,
        )

    def _why(self, error: OSError) -> str:
        if isinstance(error, FileNotFoundError | PermissionError):  # nor in folders closed to us
            return f"there is no {self._ssh} here: install the OpenSSH client"
        return error.strerror or str(error)

    # --- listening

    def _watch(self, attempt: _Attempt) -> None:
        for fd, kept in ((attempt.output_fd, attempt.output), (attempt.errors_fd, attempt.errors)):
            os.set_blocking(fd, False)
            self._fds.watch(fd, partial(self._hear, fd, kept))
        if attempt.pidfd is not None:
            self._fds.watch(attempt.pidfd, self._look)

    def _hear(self, fd: int, kept: bytearray) -> None:
        self._read(fd, kept)

    def _read(self, fd: int, kept: bytearray) -> bool:
        """Whether there may be more."""
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._fds.forget(fd)
        kept += data
        del kept[:-_KEPT_BYTES]
        return bool(data)

    def _look(self) -> None:
        """Which of our children have ended."""
        for pid in self.pids():
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else was quicker, and has not told us
                self.ended(pid)
            else:
                if found:
                    self.ended(pid, status)

    def _end(self, attempt: _Attempt, status: int | None) -> None:
        """What it left running, such as the master of shared connections, may hold the pipes for
        ever: what is there by now is all."""
        for fd, kept in ((attempt.output_fd, attempt.output), (attempt.errors_fd, attempt.errors)):
            for _ in range(_READS_AT_THE_END):
                if not self._read(fd, kept):
                    break
        self._let_go(attempt)
        self._finished.append((attempt, status))

    def _let_go(self, attempt: _Attempt) -> None:
        for fd in (attempt.output_fd, attempt.errors_fd, attempt.pidfd):
            if fd is not None:
                self._fds.forget(fd)
                os.close(fd)

    # --- concluding

    def _conclude(self, attempt: _Attempt, status: int | None, now: Timestamp) -> None:
        host, output, errors = attempt.host, _text(attempt.output), _text(attempt.errors)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        if code in (0, None) and reaching.says_it_is_up(output):
            self._news.append(Started(host.name, reaching.says_it_was_there(output)))
            return
        why = reaching.why_not(host, code, output, errors, by_ssh=not _is_here(host))
        self._fail(host, why, now)

    def _give_up_on(self, attempt: _Attempt, now: Timestamp) -> None:
        self._kill(attempt)
        host, output, errors = attempt.host, _text(attempt.output), _text(attempt.errors)
        if reaching.says_it_is_up(output):  # something else keeps the connection open
            self._news.append(Started(host.name, reaching.says_it_was_there(output)))
        else:
            self._fail(host, reaching.too_late(host, self._patience, output, errors), now)

    def _kill(self, attempt: _Attempt) -> None:
        """With its group, of which nobody else can have the number: it is not awaited yet."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(attempt.pid, signal.SIGKILL)
        del self._attempts[attempt.pid]
        self._killed.add(attempt.pid)
        self._let_go(attempt)

    def _fail(self, spec: HostSpec, why: str, now: Timestamp) -> None:
        host = self._hosts[spec.name]
        if not host.is_wanted:
            return
        host.failures += 1
        host.retry_at = now + _backoff_seconds(spec.name, host.failures)
        self._news.append(NotStarted(spec.name, why, host.retry_at))


def _is_here(spec: HostSpec) -> bool:
    """Whoever names a user or a port wants to go through ssh."""
    if spec.user is not None or spec.port is not None:
        return False
    return spec.address.lower() in ("localhost", os.uname().nodename.lower())


def _in_memory(data: bytes) -> int:
    """An open file of which nobody else can have the name, to be read from its beginning."""
    fd = os.memfd_create("join", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None


def _backoff_seconds(host: HostName, failures: int) -> float:
    doublings = min(failures - 1, 10)  # it is the longest by then
    backoff = min(_FIRST_BACKOFF_SECONDS * (1 << doublings), _LONGEST_BACKOFF_SECONDS)
    spread = zlib.crc32(host.encode("utf-8", "replace")) / 2**32
    return backoff * (1 + _SPREAD * spread)


def _text(said: bytearray) -> str:
    return said.decode("utf-8", "replace")
