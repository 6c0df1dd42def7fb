"""The run's journal on disk: appended to, made durable, read back; see core/records.py for what a
line says."""

import errno
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress

from smartsched.core.bookmark import NOWHERE, Mark
from smartsched.core.events import Event
from smartsched.core.records import decode_line, encode, name_in
from smartsched.errors import JournalDamagedError, StateError
from smartsched.ports import Begin, Work

_READ_BYTES = 1 << 20


class FileJournal:
    """A Journal. Whoever opens it holds the run's lock: there is no other writer."""

    def __init__(self, open_file: Callable[[int], int], path: str) -> None:
        """`open_file` opens it with these flags. Raises OSError."""
        self._fd = open_file(os.O_RDWR | os.O_CREAT)
        self._path = path
        self._size = 0
        self._seq = 0
        self._crc = 0  # of all records
        self._has_scraps = False  # behind the last record, of a write that failed
        self._at_risk = bytearray()  # the records that may not be durable
        self._is_in_doubt = False  # whether the system still has those to make them durable
        self._begin: Begin | None = None
        self._syncing: Work | None = None  # that was begun, and not heard of
        self._given_bytes = 0  # of what is at risk, to that
        self.is_failing = False  # the last write came to nothing
        self.cut_off_bytes = 0  # at the end: a record that was being written when we died

    @property
    def seq(self) -> int:
        """The number of the last record."""
        return self._seq

    @property
    def mark(self) -> Mark:
        """Behind the last record."""
        return Mark(self._seq, self._size, self._crc)

    def has_come_by(self, mark: Mark) -> bool:
        """Whether it begins byte for byte as the journal did to which the mark was put."""
        return has_come_by(self._fd, mark)

    def replay(
        self, after: Mark = NOWHERE, only: Collection[bytes] | None = None
    ) -> Iterator[Event]:
        """All records; to be called, and read to its end, before anything is written.

        `after`: those behind a mark that it has come by; `only`: events of these names; the others
        are passed over, whole or not. What a crash left of a last record is cut off: it was not
        written whole, so nothing came of it. Raises JournalDamagedError for anything else that is
        no record, naming the line.
        """
        self._seq, self._size, self._crc = after
        size = os.fstat(self._fd).st_size
        with open(os.dup(self._fd), "rb") as journal:
            journal.seek(self._size)
            for line in journal:
                if not line.endswith(b"\n"):
                    break
                self._seq += 1
                if only is None or name_in(line) in only:
                    yield self._decode(line)
                self._size += len(line)
                self._crc = zlib.crc32(line, self._crc)
        if self._size == 0:
            raise JournalDamagedError(
                f"{self._path} holds no whole record: there is nothing to go on with; begin anew"
                " with the list, and delete that folder"
            )
        if size > self._size:
            self.cut_off_bytes = size - self._size
            os.ftruncate(self._fd, self._size)

    def write(self, events: Sequence[Event], *, durable: bool = True) -> str | None:
        """Append, all or nothing, and make durable with all before; why not, or None."""
        data = b"".join(encode(event, self._seq + n) for n, event in enumerate(events, start=1))
        try:
            if durable:
                self.rest()  # two at once would not both be told if it fails
            if self._has_scraps:
                os.ftruncate(self._fd, self._size)
                self._has_scraps = False
            self._append(data)
            if durable:
                self._keeping()()
                self._is_in_doubt = False
        except OSError as error:
            why = self._why(error)
            self._take_back()
            self.is_failing = True
            return why
        self._size += len(data)
        self._seq += len(events)
        self._crc = zlib.crc32(data, self._crc)
        self._at_risk += data
        if durable:
            self._at_risk.clear()
        self.is_failing = False
        return None

    def sync_by(self, begin: Begin) -> None:
        """How to begin what nobody waits for."""
        self._begin = begin

    def begin_sync(self) -> None:
        assert self._begin is not None
        self._given_bytes = len(self._at_risk)
        self._syncing = self._begin(self._keeping())

    def synced(self) -> str | None:
        if self._syncing is None or self._syncing.is_at_work:
            return None
        error = self._hear_of_sync()
        self.is_failing = error is not None
        return "" if error is None else self._why(error)

    def rest(self) -> None:
        """Waits for what was begun."""
        if self._syncing is not None:
            self._hear_of_sync()

    def close(self) -> None:
        self.rest()
        os.close(self._fd)

    def _hear_of_sync(self) -> OSError | StateError | None:
        """Waits for it."""
        sync, self._syncing = self._syncing, None
        assert sync is not None
        sync.wait()
        if sync.error is None:
            del self._at_risk[: self._given_bytes]
            self._is_in_doubt = False
        return sync.error

    def _why(self, error: OSError | StateError) -> str:
        """Raises StateError when there is nothing any more to be written to."""
        if os.fstat(self._fd).st_nlink == 0:
            raise StateError(
                f"{self._path} is gone: without it nothing is started; begin anew, with what is"
                " left of the list"
            ) from error
        return f"cannot write {self._path}: {getattr(error, 'strerror', error)}"

    def _append(self, data: bytes) -> None:
        _put(self._fd, data, self._size)

    def _keeping(self) -> Callable[[], None]:
        """What makes durable all that there is; until it has, that is in doubt. What failed once
        the system takes for written (fsync(2)): it has to be given it again."""
        at = self._size - len(self._at_risk)
        again = bytes(self._at_risk) if self._is_in_doubt else b""
        self._is_in_doubt = True
        return lambda: _keep(self._fd, again, at)

    def _take_back(self) -> None:
        """What did get written must not be read as records. Before it is gone, nothing more is
        written."""
        self._has_scraps = True
        with suppress(OSError):
            os.ftruncate(self._fd, self._size)
            self._has_scraps = False

    def _decode(self, line: bytes) -> Event:
        try:
            return decode_line(line.removesuffix(b"\n"), self._seq)
        except JournalDamagedError as error:
            raise JournalDamagedError(
                f"{self._path} is damaged in line {self._seq}: {error}. What follows from the lines"
                " before it is true; to go on from there, cut the file off above that line. What"
                " happened later is forgotten then: if it was not just the last moments before a"
                " loss of power, jobs may run again"
            ) from error


def _keep(fd: int, again: bytes, at: int) -> None:
    """Make a journal durable, and before that write once more what may have been dropped. Only here
    it is asked whether it is still there: on another machine's disk, to ask is to wait as well."""
    if os.fstat(fd).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, "it was removed")
    _put(fd, again, at)
    os.fdatasync(fd)


def _put(fd: int, data: bytes | bytearray, at: int) -> None:
    left = memoryview(bytes(data))
    while left:
        written = os.pwrite(fd, left, at)
        at += written
        left = left[written:]


def has_come_by(fd: int, mark: Mark) -> bool:
    """Whether this journal begins byte for byte as the one did to which the mark was put."""
    at = crc = 0
    while at < mark.size_bytes:
        data = os.pread(fd, min(_READ_BYTES, mark.size_bytes - at), at)
        if not data:
            return False
        at += len(data)
        crc = zlib.crc32(data, crc)
    return crc == mark.crc


def read_journal(fd: int, path: str, after: Mark = NOWHERE) -> Iterator[Event]:
    """All whole records, behind a mark that it has come by, of a journal that somebody else may be
    writing; closes `fd`. Raises JournalDamagedError for what is no record, naming the line."""
    with open(fd, "rb") as journal:
        journal.seek(after.size_bytes)
        for number, line in enumerate(journal, start=after.seq + 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode_line(line.removesuffix(b"\n"), number)
            except JournalDamagedError as error:
                raise JournalDamagedError(f"{path} is damaged in line {number}: {error}") from error
