"""The run's journal on disk: appended to, made durable, read back; see core/records.py for what a
line says."""

import errno
import os
import signal
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress

from smartsched.core.bookmark import NOWHERE, Mark
from smartsched.core.events import Event
from smartsched.core.records import decode_line, encode, name_in
from smartsched.errors import JournalDamagedError, StateError
from smartsched.ports import FdWatcher

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
        self._sync_beside: _SyncBeside | None = None  # that was begun, and not heard of
        self._fds: FdWatcher | None = None
        self._bell: int | None = None  # rung at the end of it
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
            if os.fstat(self._fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "it was removed")
            if self._has_scraps:
                os.ftruncate(self._fd, self._size)
                self._has_scraps = False
            self._append(data)
            if durable:
                self._sync()
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
        self._crc = zlib.crc32(data, self._crc)
        self._at_risk += data
        if durable:
            self._at_risk.clear()
        self.is_failing = False
        return None

    def ring(self, fds: FdWatcher) -> None:
        """Whoever waits on these is woken when what was begun has ended."""
        self._fds, self._bell = fds, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        fds.watch(self._bell, self._hush)

    def begin_sync(self) -> None:
        """In a thread, for which nothing waits but what is to be durable at once."""
        at_risk = self._at_risk
        again = bytes(at_risk) if self._is_in_doubt else b""
        self._is_in_doubt = True
        self._sync_beside = _SyncBeside(
            self._fd, again, self._size - len(at_risk), len(at_risk), self._bell
        )

    def synced(self) -> bool | None:
        if self._sync_beside is None or self._sync_beside.well is None:
            return None
        return self._hear_of_sync()

    def close(self) -> None:
        if self._sync_beside is not None:
            self._hear_of_sync()
        if self._fds is not None and self._bell is not None:
            self._fds.forget(self._bell)
            os.close(self._bell)
        os.close(self._fd)

    def _hear_of_sync(self) -> bool:
        """Waits for it."""
        sync, self._sync_beside = self._sync_beside, None
        assert sync is not None
        well = sync.wait()
        if well:
            del self._at_risk[: sync.size_bytes]
            self._is_in_doubt = False
        return well

    def _hush(self) -> None:
        assert self._bell is not None
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _append(self, data: bytes) -> None:
        _put(self._fd, data, self._size)

    def _sync(self) -> None:
        """Whoever waits is told if it failed; two at once would not both be. What failed once the
        system takes for written (fsync(2)): it has to be given it again."""
        if self._sync_beside is not None:
            self._hear_of_sync()
        if self._is_in_doubt:
            _put(self._fd, self._at_risk, self._size - len(self._at_risk))
        self._is_in_doubt = True
        os.fdatasync(self._fd)
        self._is_in_doubt = False

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


class _SyncBeside:
    """Makes a file durable in a thread of its own, or at once where none can be had."""

    def __init__(self, fd: int, again: bytes, at: int, size_bytes: int, bell: int | None) -> None:
        """`again`: what is to be written once more before, and where. `size_bytes`: of the records
        that are durable after it. `bell`: an eventfd to ring at the end."""
        import threading  # not before the first job has begun

        self.size_bytes = size_bytes
        self._again, self._at = again, at
        self.well: bool | None = None  # None: it has not ended
        self._fd = fd
        self._bell = bell
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="journal", daemon=True
        )
        # a thread inherits what its maker lets no signal through
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        except RuntimeError:  # there may be no more, by the limits of the user
            self._thread = None
            self._run()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def wait(self) -> bool:
        if self._thread is not None:
            self._thread.join()
        return bool(self.well)

    def _run(self) -> None:
        try:
            _put(self._fd, self._again, self._at)
            os.fdatasync(self._fd)
        except OSError:
            self.well = False
        else:
            self.well = True
        if self._bell is not None:
            os.eventfd_write(self._bell, 1)


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
