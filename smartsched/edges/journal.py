"""The run's journal on disk: appended to, made durable, read back; see core/records.py for what a
line says."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from smartsched.core.events import Event
from smartsched.core.records import decode_line, encode
from smartsched.errors import JournalDamagedError, StateError


class FileJournal:
    """A Journal. Whoever opens it holds the run's lock: there is no other writer."""

    def __init__(self, open_file: Callable[[int], int], path: str) -> None:
        """`open_file` opens it with these flags. Raises OSError."""
        self._fd = open_file(os.O_RDWR | os.O_CREAT)
        self._path = path
        self._size = 0
        self._seq = 0
        self._has_scraps = False  # behind the last record, of a write that failed
        self.is_failing = False  # the last write came to nothing
        self.cut_off_bytes = 0  # at the end: a record that was being written when we died

    @property
    def seq(self) -> int:
        """The number of the last record."""
        return self._seq

    def replay(self) -> Iterator[Event]:
        """All records; to be called, and read to its end, before anything is written.

        What a crash left of a last record is cut off: it was not durable, so nothing came of it.
        Raises JournalDamagedError for anything else that is no record, naming the line.
        """
        self._size = self._seq = 0
        size = os.fstat(self._fd).st_size
        with open(os.dup(self._fd), "rb") as journal:
            journal.seek(0)
            for line in journal:
                if not line.endswith(b"\n"):
                    break
                yield self._decode(line)
                self._size += len(line)
        if self._size == 0:
            raise JournalDamagedError(
                f"{self._path} holds no whole record: there is nothing to go on with; begin anew"
                " with the list, and delete that folder"
            )
        self.cut_off_bytes = size - self._size
        if self.cut_off_bytes:
            os.ftruncate(self._fd, self._size)

    def write(self, events: Sequence[Event], *, durable: bool = True) -> str | None:
        """Append and make durable, all or nothing; why not, or None."""
        data = b"".join(encode(event, self._seq + n) for n, event in enumerate(events, start=1))
        try:
            if os.fstat(self._fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "it was removed")
            if self._has_scraps:
                os.ftruncate(self._fd, self._size)
                self._has_scraps = False
            self._append(data)
            if durable:
                os.fdatasync(self._fd)
        except OSError as error:
            if os.fstat(self._fd).st_nlink == 0:
                raise StateError(
                    f"{self._path} is gone: without it nothing is started; begin anew, with what"
                    " is left of the list"
                ) from error
            self._take_back()
            self.is_failing = True
            return f"cannot write {self._path}: {error.strerror}"
        self._size += len(data)
        self._seq += len(events)
        self.is_failing = False
        return None

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, data: bytes) -> None:
        at = self._size
        left = memoryview(data)
        while left:
            written = os.pwrite(self._fd, left, at)
            at += written
            left = left[written:]

    def _take_back(self) -> None:
        """What did get written must not be read as records. Before it is gone, nothing more is
        written."""
        self._has_scraps = True
        with suppress(OSError):
            os.ftruncate(self._fd, self._size)
            self._has_scraps = False

    def _decode(self, line: bytes) -> Event:
        self._seq += 1
        try:
            return decode_line(line.removesuffix(b"\n"), self._seq)
        except JournalDamagedError as error:
            raise JournalDamagedError(
                f"{self._path} is damaged in line {self._seq}: {error}. What follows from the lines"
                " before it is true; to go on from there, cut the file off above that line. What"
                " happened later is forgotten then: if it was not just the last moments before a"
                " loss of power, jobs may run again"
            ) from error


def read_journal(fd: int, path: str) -> Iterator[Event]:
    """All whole records of a journal that somebody else may be writing; closes `fd`. Raises
    JournalDamagedError for what is no record, naming the line."""
    with open(fd, "rb") as journal:
        for number, line in enumerate(journal, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode_line(line.removesuffix(b"\n"), number)
            except JournalDamagedError as error:
                raise JournalDamagedError(f"{path} is damaged in line {number}: {error}") from error
