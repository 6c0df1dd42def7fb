"""Starts one of Slurm's programs and collects what it says; what that means is for others."""

import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

from msgspec import Struct, field

from smartsched.core import slurm
from smartsched.core.model import Timestamp
from smartsched.core.slurm import PilotId
from smartsched.ports import FdWatcher

NOT_IN_TIME = "it was not answered in time"
_READ_BYTES = 1 << 16
# Shells lose variables that are no names: in these, bash hands on functions.
_AND_STATUS = '"$@"; echo "status $?" >&2'
_RESET_SIGNALS = [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD,
    signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2,
]  # fmt: skip

Program = Literal["sbatch", "squeue", "scancel"]


class Said(Struct, frozen=True):
    program: Program
    concerns: frozenset[PilotId]
    output: str
    errors: str
    is_fine: bool
    has_run: bool = True


class _Call(Struct):
    program: Program
    concerns: frozenset[PilotId]
    pid: int
    output_fd: int
    errors_fd: int
    until: Timestamp
    is_killed: bool = False
    output: bytearray = field(default_factory=bytearray)


class Programs:
    """One at a time, in sessions of their own. Works whoever awaits children."""

    def __init__(
        self, fds: FdWatcher, environment: Mapping[bytes, bytes], patience_seconds: float
    ) -> None:
        """`patience_seconds`: what takes longer is killed."""
        self._fds = fds
        self._path = path_in(environment)
        self._for_sbatch = slurm.sbatch_environment(environment)
        self._for_others = slurm.plain_environment(environment)
        self._patience = patience_seconds
        self._call: _Call | None = None
        self._said: Said | None = None
        self._unawaited: set[int] = set()

    def start(
        self,
        program: Program,
        arguments: Sequence[str],
        now: Timestamp,
        *,
        stdin: bytes = b"",
        concerns: frozenset[PilotId] = frozenset(),
    ) -> None:
        """If it cannot be started, that is what is said."""
        assert not self.is_busy()
        try:
            where = find(program, self._path)
            pid, output_fd, errors_fd = self._spawn(program, [where, *arguments], stdin)
        except OSError as error:
            text = f"cannot be started: {error.strerror}"
            self._said = Said(program, concerns, "", text, is_fine=False, has_run=False)
            return
        until = now + self._patience
        self._call = _Call(program, concerns, pid, output_fd, errors_fd, until)
        self._fds.watch(output_fd, partial(self._hear, self._call))

    def take(self, now: Timestamp) -> Said | None:
        """What the last one said; None: nothing is new."""
        self._await_ended()
        call = self._call
        if call is not None and now >= call.until and not call.is_killed:
            call.is_killed = True
            _kill(call.pid)
        said, self._said = self._said, None
        return said

    def is_busy(self) -> bool:
        """Whether one runs, or has said what nobody has taken yet."""
        return self._call is not None or self._said is not None

    def wake_at(self) -> Timestamp:
        """When `take` has to be called at the latest."""
        if self._said is not None:
            return float("-inf")
        call = self._call
        return float("inf") if call is None or call.is_killed else call.until

    def pids(self) -> list[int]:
        """Of children that run, or that nobody has awaited yet."""
        return [*self._unawaited, *([] if self._call is None else [self._call.pid])]

    def ended(self, pid: int) -> None:
        """Somebody has awaited a child of ours, perhaps one of these."""
        call = self._call
        if call is not None and call.pid == pid:
            self._hear(call)
            if call is self._call:  # somebody else holds its output
                self._finish(call)
        self._unawaited.discard(pid)

    def close(self) -> None:
        """A submission that is under way is not broken off: that would not make it undone."""
        call = self._call
        if call is not None:
            if call.program != "sbatch":
                _kill(call.pid)
            self._let_go(call)
        self._await_ended()

    def _spawn(self, program: Program, argv: list[str], stdin: bytes) -> tuple[int, int, int]:
        """The pid; its output, which ends when it does; its errors."""
        is_sbatch = program == "sbatch"
        if not is_sbatch:
            argv = ["/bin/sh", "-c", _AND_STATUS, "smartsched", *argv]
        fds = [_in_memory(stdin), _in_memory(b"")]
        try:
            fds += os.pipe()
            input_fd, errors_fd, output_fd, output = fds
            os.set_blocking(output_fd, False)
            pid = os.posix_spawn(
                argv[0],
                argv,
                self._for_sbatch if is_sbatch else self._for_others,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, input_fd, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, errors_fd, 2),
                ],
                setsid=True,  # a Ctrl-C in the terminal is not meant for it
                setsigmask=[],
                setsigdef=_RESET_SIGNALS,
            )
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        os.close(input_fd)
        os.close(output)
        return pid, output_fd, errors_fd

    def _hear(self, call: _Call) -> None:
        while call is self._call:
            try:
                data = os.read(call.output_fd, _READ_BYTES)
            except BlockingIOError:
                return
            call.output += data
            if not data:
                self._finish(call)

    def _finish(self, call: _Call) -> None:
        """Its output has ended: it is dead, or as good as."""
        text = os.pread(call.errors_fd, os.fstat(call.errors_fd).st_size, 0)
        errors = text.decode("utf-8", "replace")
        output = call.output.decode("utf-8", "replace")
        if call.program == "sbatch":
            is_fine = slurm.parse_submitted(output) is not None
        else:
            is_fine = errors.endswith("status 0\n")
            errors = errors.rpartition("status ")[0]
        if call.is_killed and not is_fine:
            errors = errors.strip() or NOT_IN_TIME
        self._said = Said(call.program, call.concerns, output, errors, is_fine)
        self._let_go(call)

    def _let_go(self, call: _Call) -> None:
        self._fds.forget(call.output_fd)
        os.close(call.output_fd)
        os.close(call.errors_fd)
        self._unawaited.add(call.pid)
        self._call = None

    def _await_ended(self) -> None:
        for pid in list(self._unawaited):
            try:
                is_gone = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                is_gone = True
            if is_gone:
                self._unawaited.discard(pid)


def path_in(environment: Mapping[bytes, bytes]) -> str:
    """Where programs are looked for."""
    return os.fsdecode(environment.get(b"PATH", os.defpath.encode()))


def find(program: Program, path: str) -> str:
    """Raises FileNotFoundError, which says what is needed."""
    found = shutil.which(program, path=path)
    if found is None:
        why = f"there is no {program} in PATH: Slurm's client programs are needed here"
        raise FileNotFoundError(2, why)
    return found


def _kill(pid: int) -> None:
    """With all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _in_memory(content: bytes) -> int:
    """A file without a name, to be read from its beginning."""
    fd = os.memfd_create("smartsched")
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
