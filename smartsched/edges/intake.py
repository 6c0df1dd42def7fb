"""Reads commands as they are needed: lines of files and pipes, without ever waiting for them."""

import os
import select
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from smartsched.core.model import BadLine, JobSpec
from smartsched.errors import UsageError
from smartsched.ports import FdWatcher

_READ_BYTES = 1 << 16
_READS_AT_ONCE = 16
LONGEST_COMMAND_BYTES = 16 << 20
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Input:
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
                raise UsageError(f"{path} is a folder, not a list of commands")
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

    def __init__(self, command: str) -> None:
        self._waiting = [JobSpec(command, "the command line")]

    def take(self, most: int) -> Sequence[JobSpec | BadLine]:
        waiting, self._waiting = self._waiting[:most], self._waiting[most:]
        return waiting

    def has_more(self) -> bool:
        return False

    def ended(self) -> bool:
        return not self._waiting


class Lines:
    """An Intake of lines, one input after the other."""

    def __init__(self, inputs: Sequence[Input], fds: FdWatcher | None) -> None:
        """`fds`: who is told that we want to read more; None: the caller asks again by itself."""
        self._inputs = deque(inputs)
        self._fds = fds
        self._splitter = LineSplitter(inputs[0].name) if inputs else None
        self._ready: deque[JobSpec | BadLine] = deque()
        self._has_more = False

    def take(self, most: int) -> Sequence[JobSpec | BadLine]:
        self._has_more = True
        for _ in range(_READS_AT_ONCE):
            if len(self._ready) >= most:
                break
            if not self._read_more():
                self._has_more = False
                break
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def has_more(self) -> bool:
        return self._has_more

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
        if not self._inputs:
            return False
        source = self._inputs[0]
        assert self._splitter is not None
        if not _is_readable(source.fd):
            if self._fds is not None:
                self._fds.watch(source.fd, lambda: self._wake(source.fd))
            return False
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
            self._next_input()
        return True

    def _wake(self, fd: int) -> None:
        assert self._fds is not None
        self._fds.forget(fd)  # until `take` wants more; being woken is all that this is for

    def _next_input(self) -> None:
        done = self._inputs.popleft()
        if self._fds is not None:
            self._fds.forget(done.fd)
        os.close(done.fd)
        if self._inputs:
            self._splitter = LineSplitter(self._inputs[0].name)


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class LineSplitter:
    """Turns bytes of one input into commands.

    Blank lines and comments are skipped, a backslash at a line's end continues it, CRLF ends a line
    as LF does. Bytes that are not UTF-8 travel as surrogate escapes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = bytearray()
        self._line_number = 0
        self._command = bytearray()  # of lines so far that say they go on
        self._began_at = 0
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[JobSpec | BadLine]:
        self._rest += data
        if b"\n" in data:
            *lines, rest = self._rest.split(b"\n")
            self._rest = rest
            for line in lines:
                yield from self._line(bytes(line))
        if len(self._rest) > LONGEST_COMMAND_BYTES:
            self._too_long = True
            self._rest.clear()

    def end(self) -> Iterator[JobSpec | BadLine]:
        if self._rest or self._too_long:
            yield from self._line(bytes(self._rest))
        if self._command:  # the last line said that it goes on; take it at what it has
            yield from self._finish(bytes(self._command))

    def _line(self, line: bytes) -> Iterator[JobSpec | BadLine]:
        self._line_number += 1
        if self._line_number == 1:
            line = line.removeprefix(_UTF8_BOM)
        line = line.removesuffix(b"\r")
        if not self._command:
            self._began_at = self._line_number
        is_comment = (self._command.lstrip() or line.lstrip()).startswith(b"#")
        if _goes_on(line) and not is_comment:
            self._command += line[:-1]
            self._check_length()
            return
        yield from self._finish(bytes(self._command) + line)

    def _check_length(self) -> None:
        if len(self._command) > LONGEST_COMMAND_BYTES:
            self._too_long = True
            self._command = bytearray(b" ")

    def _finish(self, command: bytes) -> Iterator[JobSpec | BadLine]:
        too_long, self._too_long = self._too_long, False
        self._command.clear()
        source = f"{self._name}:{self._began_at}"
        command = command.lstrip()
        if too_long or len(command) > LONGEST_COMMAND_BYTES:
            yield BadLine(source, f"longer than {LONGEST_COMMAND_BYTES >> 20} MiB")
        elif not command or command.startswith(b"#"):
            return
        elif b"\0" in command:
            yield BadLine(source, "holds a NUL byte, which no shell can take")
        else:
            yield JobSpec(command.decode("utf-8", "surrogateescape"), source)


def _goes_on(line: bytes) -> bool:
    backslashes = len(line) - len(line.rstrip(b"\\"))
    return backslashes % 2 == 1
