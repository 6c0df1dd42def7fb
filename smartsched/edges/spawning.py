"""Starts a command: its environment, its folder, and the wrapper that keeps its record."""

import errno
import fcntl
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from smartsched.core.actions import Launch
from smartsched.core.model import RunKey
from smartsched.core.selection import without_host
from smartsched.core.tag import variables_of
from smartsched.errors import UsageError

_IS_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_RESET_SIGNALS = [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD,
    signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
]  # fmt: skip

# Where the wrapper of a leased run has both ends of the pipe between it and its watchdog, and its
# own text: as an argument, that would fill the screen of whoever lists processes.
_PIPE_FDS = (5, 6)
_TEXT_FD = 7


class Lease(Protocol):
    """Under which runs are started."""

    def arguments(self, run: RunKey) -> list[str]:
        """What the run's watchdog is told. Raises OSError when nothing may be started."""
        ...


class Spawner:
    """Starts commands as sessions of their own."""

    def __init__(
        self,
        *,
        shell: str,
        environment: Mapping[bytes, bytes],
        run_name: str,
        run_id: str,
        wrapper: str,
        nice: int | None = None,
        lease: Lease | None = None,
        stand_in: tuple[str, str] | None = None,
    ) -> None:
        """`wrapper`: shell text that runs a command and keeps its record. `nice`: of the commands;
        None: as we are. `lease`: of the runs, and the wrapper is text for bash that starts a
        watchdog; None: they run for as long as they like. Raises UsageError for what this host
        lacks. `stand_in`: a folder, and another one for its commands where it is not there; all
        other commands whose folder is not there fail."""
        self._lease = lease
        self._stand_in = stand_in
        self._nice = [] if nice is None else [_nice_program(), "-n", str(nice)]
        self._run_id = run_id
        self._shell = shell
        # we may run inside a job ourselves, which has a name
        self._environment = {k: v for k, v in environment.items() if k != b"SMARTSCHED_NAME"}
        self._run_name = run_name
        self._text_fd: int | None = None  # None: the text is an argument
        if lease is None:
            self._wrapper = [*_wrapped(wrapper, environment), "smartsched"]
        else:
            self._text_fd = _in_memory(f"exec {_TEXT_FD}<&-; set +p; {wrapper}")
            self._wrapper = [_local_bash(), "-p", f"/dev/fd/{_TEXT_FD}"]
        self._umask = _umask()
        self._here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def spawn(
        self, launch: Launch, record: str, script: str | None, output: Sequence[tuple[Any, ...]]
    ) -> int:
        """The pid of the wrapper. `script`: where the command is, if it is too long for an
        argument; `output`: what posix_spawn has to do to descriptors. Raises OSError."""
        if not os.access(self._shell, os.X_OK):
            raise OSError(errno.ENOENT, "it cannot be executed", self._shell)
        command = launch.spec.command.encode("utf-8", "surrogateescape")
        what = ["-c", command] if script is None else [script]
        watched = [] if self._lease is None else self._lease.arguments(launch.run)
        if launch.spec.directory:
            self._go_to(launch.spec.directory)
        try:
            with self._pipe() as pipe:
                return os.posix_spawn(
                    self._wrapper[0],
                    [
                        *self._wrapper,
                        record,
                        self._umask,
                        *watched,
                        *self._nice,
                        self._shell,
                        *what,
                    ],
                    self._environment | self._variables(launch),
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                        *output,
                        *pipe,
                    ],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=_RESET_SIGNALS,
                )
        finally:
            if launch.spec.directory:
                os.fchdir(self._here)

    def close(self) -> None:
        os.close(self._here)
        if self._text_fd is not None:
            os.close(self._text_fd)

    def _go_to(self, directory: str) -> None:
        try:
            os.chdir(directory)
        except FileNotFoundError:
            if self._stand_in is None or self._stand_in[0] != directory:
                raise
            os.chdir(self._stand_in[1])

    @contextmanager
    def _pipe(self) -> Iterator[list[tuple[int, int, int]]]:
        """What posix_spawn has to do for the pipe of a leased run."""
        if self._lease is None:
            yield []
            return
        fds = list(os.pipe2(os.O_CLOEXEC))
        try:
            # out of the way of where they have to be
            ends = [*fds, self._text_fd]
            fds += [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _TEXT_FD + 1) for end in ends if end]
            places = (*_PIPE_FDS, _TEXT_FD)
            yield [(os.POSIX_SPAWN_DUP2, *pair) for pair in zip(fds[2:], places, strict=True)]
        finally:
            for fd in fds:
                os.close(fd)

    def _variables(self, launch: Launch) -> dict[bytes, bytes]:
        gpus = launch.placement.gpus
        values = {
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.visible for gpu in gpus),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "SMARTSCHED_RUN": self._run_name,
            **variables_of(self._run_id, launch.run),
            "SMARTSCHED_GPUS": without_host(launch.placement.labels),
            "SMARTSCHED_GPU_UUIDS": ",".join(gpu.key.uuid for gpu in gpus),
        }
        variables = {name.encode(): value.encode() for name, value in values.items()}
        if launch.spec.wishes.name:
            variables[b"SMARTSCHED_NAME"] = launch.spec.wishes.name.encode()
        if b"PYTHONUNBUFFERED" not in self._environment:
            variables[b"PYTHONUNBUFFERED"] = b"1"
        return variables


def _nice_program() -> str:
    found = shutil.which("nice")
    if found is None:
        raise UsageError("--nice: there is no program `nice` in PATH: leave --nice out")
    return found


def _umask() -> str:
    """Ours, which the jobs inherit, in octal digits."""
    mask = os.umask(0o077)
    os.umask(mask)
    return f"{mask:03o}"


def _in_memory(text: str) -> int:
    """A file of this text that has no name, to be read by whoever is given it."""
    fd = os.memfd_create("smartsched", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(text.encode())
    return fd


def _wrapped(wrapper: str, environment: Mapping[bytes, bytes]) -> list[str]:
    """What runs the wrapper. dash drops variables that are no names, such as those in which bash
    hands on functions (`module` of HPC boxes); bash -p hands them on, and reads no BASH_ENV. Where
    SHELLOPTS is exported, it would hand on its -p as well."""
    bash = None
    if not all(_IS_NAME.fullmatch(name) for name in environment):
        bash = shutil.which("bash")
    return ["/bin/sh", "-c", wrapper] if bash is None else [bash, "-p", "-c", f"set +p; {wrapper}"]


def _local_bash() -> str:
    """What PATH says first may be on a file system of the network, and hang with it."""
    found = shutil.which("bash", path="/bin:/usr/bin:/usr/local/bin") or shutil.which("bash")
    if found is None:
        raise UsageError(
            "there is no bash on this host, which stops runs when the host is cut off: "
            "install it, or use --on-lost keep"
        )
    return found
