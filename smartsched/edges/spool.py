"""The list of a run, kept in the run's folder and read from there."""

import os
import select
import stat
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from smartsched.core.events import InputRead
from smartsched.core.lines import LONGEST_COMMAND_BYTES, LineSplitter
from smartsched.core.model import BadLine, JobSpec, Position, Timestamp
from smartsched.ports import Arrived, FdWatcher

_READ_BYTES = 1 << 16
_READS_AT_ONCE = 16
_NO_LINES_BYTES = 16 * LONGEST_COMMAND_BYTES
# How much of a pipe is kept in the run's folder before it is needed.
_FAR_AHEAD_BYTES = 64 << 20
_TOO_LARGE_TO_COUNT_BYTES = 256 << 20


class Source(Protocol):
    """Something to read from; ours to close."""

    @property
    def fd(self) -> int: ...


class Spool:
    """An Intake of lines, one input after the other, by way of the run's folder.

    Inputs are copied there as soon as they can be read, so that the run can be resumed without
    them; commands are read from the copy when they are needed.
    """

    def __init__(
        self,
        open_copy: Callable[[int, int], int],
        inputs: Sequence[Source],
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
            total += sum(chunk.count(b"\n") for chunk in self._chunks(number))
        return total

    def look_ahead(self, word: bytes) -> Iterator[JobSpec | BadLine]:
        """What is in the inputs that are there as a whole and have this word in them somewhere.
        Nothing is taken by that."""
        for number in sorted(self._whole):
            if any(word in chunk for chunk in self._chunks(number, overlap=len(word))):
                splitter = LineSplitter(self._names[number], self._directory)
                for chunk in self._chunks(number):
                    yield from splitter.feed(chunk)
                yield from splitter.end()

    def _chunks(self, number: int, overlap: int = 0) -> Iterator[bytes]:
        """Each with so many bytes of the one before."""
        copy, position, last = self._copy_of(number), 0, b""
        while chunk := os.pread(copy, 1 << 20, position):
            yield last + chunk
            last = chunk[-overlap:] if overlap else b""
            position += len(chunk)

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

    def _new_splitter(self, line: int, offset: int) -> LineSplitter:
        name = self._names[self._number] if self._number < len(self._names) else ""
        return LineSplitter(name, self._directory, line, offset)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        offset += written
        left = left[written:]


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
