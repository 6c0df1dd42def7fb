"""Where commands come from: inputs to be opened, the one of the command line, lines as they are."""

import os
import select
import stat
from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from smartsched.core.events import InputRead
from smartsched.core.lines import LineSplitter
from smartsched.core.model import BadLine, JobSpec, Timestamp
from smartsched.errors import UsageError
from smartsched.ports import Arrived

_READ_BYTES = 1 << 16


class Input(Struct, frozen=True):
    """Something to read commands from: an open descriptor and its name for messages."""

    fd: int
    name: str


def open_inputs(paths: Sequence[str]) -> list[Input]:
    """Open them all before anything runs; `-` is standard input. Raises UsageError."""
    inputs = []
    for path in paths:
        try:
            fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise UsageError(f"{path} is a folder, not a list of commands: name a file in it")
            if _is_program(fd):
                raise UsageError(f"{path} is a program, not a list of commands: write -- before it")
        except OSError as error:
            hint = " (to run a command, write -- before it)" if error.errno == 2 else ""
            raise UsageError(f"cannot read {path!r}: {error.strerror}{hint}") from error
        inputs.append(Input(fd, "stdin" if path == "-" else path))
    return inputs


def _is_program(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, 4, 0) == b"\x7fELF"


class OneCommand:
    """An Intake of a single command that was given on the command line."""

    def __init__(self, command: str, directory: str) -> None:
        spec = JobSpec(command, "the command line", directory)
        self._waiting = [Arrived(spec)]

    def take(self, most: int) -> Sequence[Arrived]:
        waiting, self._waiting = self._waiting[:most], self._waiting[most:]
        return waiting

    def finished(self, now: Timestamp) -> Sequence[InputRead]:
        return []

    def has_more(self) -> bool:
        return False

    def ended(self) -> bool:
        return not self._waiting

    def close(self) -> None: ...


class Lines:
    """Lines straight from their inputs, one after the other, without waiting for them."""

    def __init__(self, inputs: Sequence[Input], directory: str = "") -> None:
        self._inputs = deque(inputs)
        self._directory = directory
        self._splitter = LineSplitter(inputs[0].name, directory) if inputs else None
        self._ready: deque[JobSpec | BadLine] = deque()

    def take(self, most: int) -> Sequence[JobSpec | BadLine]:
        while len(self._ready) < most and self._read_more():
            pass
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def ended(self) -> bool:
        return not self._inputs and not self._ready

    def current_fd(self) -> int | None:
        """What is being read; None: nothing any more."""
        return self._inputs[0].fd if self._inputs else None

    def close(self) -> None:
        for source in self._inputs:
            os.close(source.fd)
        self._inputs.clear()

    def _read_more(self) -> bool:
        """Whether it is worth while to ask again at once."""
        if not self._inputs or not _is_readable(self._inputs[0].fd):
            return False
        source = self._inputs[0]
        assert self._splitter is not None
        try:
            data = os.read(source.fd, _READ_BYTES)
        except OSError as error:
            why = f"cannot be read any further: {error.strerror}"
            self._ready.append(BadLine(source.name, why))
            data = b""
        if data:
            self._ready.extend(self._splitter.feed(data))
        else:
            self._ready.extend(self._splitter.end())
            os.close(self._inputs.popleft().fd)
            if self._inputs:
                self._splitter = LineSplitter(self._inputs[0].name, self._directory)
        return True


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
