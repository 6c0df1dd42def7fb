"""Reads commands as they are needed: lines of files and pipes, without ever waiting for them."""

import os
import select
import stat
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from smartsched.core.events import InputRead
from smartsched.core.model import BadLine, JobSpec, Position, Timestamp
from smartsched.errors import UsageError
from smartsched.ports import Arrived, FdWatcher

_READ_BYTES = 1 << 16
_READS_AT_ONCE = 16
LONGEST_COMMAND_BYTES = 16 << 20
_NO_LINES_BYTES = 16 * LONGEST_COMMAND_BYTES
# How much of a pipe is kept in the run's folder before it is needed.
_FAR_AHEAD_BYTES = 64 << 20
_TOO_LARGE_TO_COUNT_BYTES = 256 << 20
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


class Spool:
    """An Intake of lines, one input after the other, by way of the run's folder.

    Inputs are copied there as soon as they can be read, so that the run can be resumed without
    them; commands are read from the copy when they are needed.
    """

    def __init__(
        self,
        open_copy: Callable[[int, int], int],
        inputs: Sequence[Input],
        names: Sequence[str],
        directory: str,
        fds: FdWatcher | None = None,
        whole: Container[int] = (),
        read_to: Position | None = None,
    ) -> None:
        """`open_copy` opens the copy of an input by its number, with these flags. `names` are those
        of all inputs, of which `inputs` can still be read: all of them, or none when a run is
        resumed without its list. `whole`: inputs whose copies are complete. Raises OSError."""
        self._open_copy = open_copy
        self._names = list(names)
        self._directory = directory
        self._fds = fds
        self._live = {number: source.fd for number, source in enumerate(inputs)}
        self._whole = {number for number in range(len(names)) if number in whole}
        self._told_whole = set(self._whole)
        self._unsaved: dict[int, bytes] = {}  # read, and not in the copy yet
        self._no_room: OSError | None = None
        self._without_line: dict[int, int] = {}  # bytes since the last end of a line
        self._copies: dict[int, int] = {}
        self._troubles: dict[int, str] = {}
        self._ready: deque[Arrived] = deque()
        self._has_more = False
        start = read_to or Position(0, 0, 0)
        self._number = start.number
        self._offset = start.offset
        self._splitter = self._new_splitter(start.line, start.offset)
        for number, fd in list(self._live.items()):
            if stat.S_ISREG(os.fstat(fd).st_mode):
                while self._copy_some(number):
                    pass
                if self._no_room is not None:
                    raise self._no_room

    def take(self, most: int) -> Sequence[Arrived]:
        self._has_more = False
        for number in list(self._live):
            self._copy(number)
        for _ in range(_READS_AT_ONCE):
            if len(self._ready) >= most:
                self._has_more = True
                break
            if not self._read_more():
                break
        else:
            self._has_more = True
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def finished(self, now: Timestamp) -> Sequence[InputRead]:
        events = []
        for number in sorted(self._whole - self._told_whole):
            try:
                os.fsync(self._copy_of(number))
            except OSError:
                break  # it is not there for good yet
            self._told_whole.add(number)
            events.append(InputRead(now, number, os.fstat(self._copy_of(number)).st_size))
        return events

    def has_more(self) -> bool:
        return self._has_more

    def ended(self) -> bool:
        return self._number >= len(self._names) and not self._ready and not self._live

    def line_count(self) -> int | None:
        """About how many commands there are in all; None: that would be too much to count, or they
        are still to come."""
        if self._live or len(self._whole) < len(self._names):
            return None
        total = 0
        for number in self._whole:
            copy = self._copy_of(number)
            if os.fstat(copy).st_size > _TOO_LARGE_TO_COUNT_BYTES:
                return None
            position = 0
            while chunk := os.pread(copy, 1 << 20, position):
                total += chunk.count(b"\n")
                position += len(chunk)
        return total

    def sync(self) -> None:
        """Make the copies durable. Raises OSError."""
        for fd in self._copies.values():
            os.fsync(fd)

    def close(self) -> None:
        for number in list(self._live):
            self._let_go(number)
        for fd in self._copies.values():
            os.close(fd)
        self._copies.clear()

    def _copy(self, number: int) -> None:
        """What can be read of it by now, within limits."""
        fd = self._live[number]
        if self._is_far_ahead(number):
            return
        for _ in range(_READS_AT_ONCE):
            if not _is_readable(fd):
                break
            if not self._copy_some(number):
                return
        else:
            self._has_more = True
        if self._fds is not None and not self._has_more:
            try:
                self._fds.watch(fd, lambda: self._wake(fd))
            except PermissionError:  # /dev/zero and the like: always readable, epoll knows it not
                self._has_more = True

    def _is_far_ahead(self, number: int) -> bool:
        """Whether the rest may wait in its pipe: endless inputs must not fill the disk."""
        read = self._offset if number == self._number else 0
        return os.fstat(self._copy_of(number)).st_size - read > _FAR_AHEAD_BYTES

    def _copy_some(self, number: int) -> bool:
        """Whether there may be more to come."""
        try:
            data = self._unsaved.get(number) or os.read(self._live[number], _READ_BYTES)
        except OSError as error:
            self._troubles[number] = f"cannot be read any further: {error.strerror}"
            data = b""
        if not data:
            self._whole.add(number)
            self._let_go(number)
            return False
        self._unsaved[number] = data
        newline = data.rfind(b"\n")
        before = self._without_line.get(number, 0) if newline < 0 else -newline - 1
        self._without_line[number] = before + len(data)
        if self._without_line[number] > _NO_LINES_BYTES:
            self._troubles[number] = f"has no lines: read {_NO_LINES_BYTES >> 20} MiB of it"
            self._whole.add(number)
            self._let_go(number)
            return False
        copy = self._copy_of(number)
        size = os.fstat(copy).st_size
        try:
            _write_all(copy, data, size)
        except OSError as error:  # no room: what was read waits here until there is
            self._no_room = error
            with suppress(OSError):
                os.ftruncate(copy, size)
            if self._fds is not None:
                self._fds.forget(self._live[number])
            return False
        del self._unsaved[number]
        return True

    def _let_go(self, number: int) -> None:
        fd = self._live.pop(number)
        if self._fds is not None:
            self._fds.forget(fd)
        os.close(fd)

    def _wake(self, fd: int) -> None:
        assert self._fds is not None
        self._fds.forget(fd)  # until `take` wants more; being woken is all that this is for

    def _copy_of(self, number: int) -> int:
        if number not in self._copies:
            copy = self._copies[number] = self._open_copy(number, os.O_RDWR | os.O_CREAT)
            if number in self._live:
                os.ftruncate(copy, 0)  # of a list that was given before, and never got its turn
        return self._copies[number]

    def _read_more(self) -> bool:
        """Whether it is worth while to ask again at once."""
        number = self._number
        if number >= len(self._names):
            return False
        data = os.pread(self._copy_of(number), _READ_BYTES, self._offset)
        self._offset += len(data)
        if data:
            self._arrive(self._splitter.feed(data))
            return True
        if number in self._live:
            return False
        if number in self._whole:
            self._arrive(self._splitter.end())
        if number in self._troubles:
            self._arrive([BadLine(self._names[number], self._troubles[number])])
        self._number, self._offset = number + 1, 0
        self._splitter = self._new_splitter(0, 0)
        return True

    def _arrive(self, lines: Iterable[JobSpec | BadLine]) -> None:
        for line in lines:
            position = Position(self._number, self._splitter.offset, self._splitter.line_number)
            self._ready.append(Arrived(line, position))

    def _new_splitter(self, line: int, offset: int) -> "LineSplitter":
        name = self._names[self._number] if self._number < len(self._names) else ""
        return LineSplitter(name, self._directory, line, offset)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        offset += written
        left = left[written:]


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


class LineSplitter:
    """Turns bytes of one input into commands.

    Blank lines and comments are skipped, a backslash at a line's end continues it, CRLF ends a line
    as LF does. Bytes that are not UTF-8 travel as surrogate escapes.
    """

    def __init__(self, name: str, directory: str = "", line: int = 0, offset: int = 0) -> None:
        """`line` and `offset`: what of the input was read before."""
        self._name = name
        self._directory = directory
        self._rest = bytearray()
        self._dropped = 0  # bytes of the present line that are too many to be kept
        self.line_number = line
        self.offset = offset  # behind the last whole line
        self._command = bytearray()  # of lines so far that say they go on
        self._began_at = 0
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[JobSpec | BadLine]:
        self._rest += data
        if b"\n" in data:
            *lines, rest = self._rest.split(b"\n")
            self._rest = rest
            for line in lines:
                self.offset += self._dropped + len(line) + 1
                self._dropped = 0
                yield from self._line(bytes(line))
        if len(self._rest) > LONGEST_COMMAND_BYTES:
            self._too_long = True
            self._dropped += len(self._rest)
            self._rest.clear()

    def end(self) -> Iterator[JobSpec | BadLine]:
        self.offset += self._dropped + len(self._rest)
        if self._rest or self._too_long:
            yield from self._line(bytes(self._rest))
        if self._command:  # the last line said that it goes on; take it at what it has
            yield from self._finish(bytes(self._command))

    def _line(self, line: bytes) -> Iterator[JobSpec | BadLine]:
        self.line_number += 1
        if self.line_number == 1:
            line = line.removeprefix(_UTF8_BOM)
        line = line.removesuffix(b"\r")
        if not self._command:
            self._began_at = self.line_number
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
            text = command.decode("utf-8", "surrogateescape")
            yield JobSpec(text, source, self._directory)


def _goes_on(line: bytes) -> bool:
    backslashes = len(line) - len(line.rstrip(b"\\"))
    return backslashes % 2 == 1
