"""What the user asks of a run from other terminals: a folder of requests in the run's own folder.

A request is a file that appears there in one piece (by a rename) and stays until it is done and on
record; its answer is a file beside it, which goes when it was read. So requests survive a
dispatcher that dies or is down, and nothing is done twice: what the journal knows is only answered.

Whoever has put a request there says so through a FIFO. On a file system that other hosts write to,
the folder's time of change tells as well, once a tick.
"""

import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from smartsched.core.model import Timestamp
from smartsched.core.requests import Answer, Ask, Request, Unusable, request_of
from smartsched.ports import FdWatcher

FOLDER = "requests"
_BELL = "bell"
_REQUEST, _ANSWER = ".request", ".answer"
_LARGEST_BYTES = 64 << 20
# A folder's time of change does not tell two changes apart that are closer than this.
_SAME_TIME_NS = 2_000_000_000
_FORGOTTEN_AFTER_SECONDS = 86_400.0
_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.002, 0.05
# Opens a plain file of our own in a folder, and nothing else (edges/runs.py).
OpenFile = Callable[[int, str, int], int]
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileInbox:
    """The dispatcher's end."""

    def __init__(
        self, folder: Path, open_file: OpenFile, fds: FdWatcher, known: Collection[str] = ()
    ) -> None:
        """`known`: requests that are on record. Raises OSError."""
        self._open_file = open_file
        self._fds = fds
        self._fd = os.open(folder, _FOLDER_FLAGS)
        self._bell = _open_bell(self._fd)
        self._known = set(known)
        self._taken: set[str] = set()
        self._looked_at: tuple[int, int] | None = None  # the folder's time then, and ours
        self._rang = True
        if self._bell >= 0:
            fds.watch(self._bell, self._on_bell)
        self._tidy_up()

    def take(self, now: Timestamp) -> list[Request]:
        """What has come since the last call, oldest first."""
        if not self._has_changed():
            return []
        found: list[Request] = []
        for name in sorted(os.listdir(self._fd)):
            number = name.removesuffix(_REQUEST)
            if number == name or number.startswith(".") or number in self._taken:
                continue
            self._taken.add(number)
            if number in self._known:
                self.answer(number, Answer(True, "done already, before the dispatcher ended"))
            elif (request := self._read(number)) is not None:
                found.append(request)
        return found

    def answer(self, request: str, answer: Answer) -> None:
        """It is on record; whoever asked may be gone, and a full disk keeps the answer from him
        only."""
        record = {"done": answer.done, "words": answer.words, "facts": answer.facts}
        with suppress(OSError):
            _put(self._fd, self._open_file, request + _ANSWER, json.dumps(record).encode())
        with suppress(OSError):
            os.unlink(request + _REQUEST, dir_fd=self._fd)
            self._taken.discard(request)

    def close(self) -> None:
        if self._bell >= 0:
            self._fds.forget(self._bell)
            os.close(self._bell)
        os.close(self._fd)

    def _has_changed(self) -> bool:
        changed = os.fstat(self._fd).st_mtime_ns
        before, self._looked_at = self._looked_at, (changed, time.time_ns())
        rang, self._rang = self._rang, False
        if rang or before is None or before[0] != changed:
            return True
        return before[1] - changed < _SAME_TIME_NS

    def _read(self, number: str) -> Request | None:
        try:
            fd = self._open_file(self._fd, number + _REQUEST, os.O_RDONLY)
            with open(fd, "rb") as file:
                text = file.read(_LARGEST_BYTES + 1)
        except FileNotFoundError:  # taken back
            self._taken.discard(number)
            return None
        except OSError as error:
            return Unusable(number, f"it cannot be read: {error.strerror}")
        if len(text) > _LARGEST_BYTES:
            return Unusable(number, f"it is longer than {_LARGEST_BYTES >> 20} MiB")
        return request_of(number, text)

    def _on_bell(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._bell, 4096)
        self._rang = True

    def _tidy_up(self) -> None:
        """Answers that nobody has fetched, and questions whose askers are gone."""
        now = time.time()
        for name in os.listdir(self._fd):
            with suppress(OSError):
                is_old = now - os.stat(name, dir_fd=self._fd).st_mtime > _FORGOTTEN_AFTER_SECONDS
                if is_old and not name.endswith(_REQUEST) and name != _BELL:
                    os.unlink(name, dir_fd=self._fd)
        for name in os.listdir(self._fd):
            number = name.removesuffix(_REQUEST)
            if number != name and isinstance(self._read(number), Ask):
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._fd)


class Sender:
    """The other end: of whoever asks. Raises OSError where the folder cannot be used."""

    def __init__(self, run_folder: Path, open_file: OpenFile) -> None:
        self._open_file = open_file
        run_fd = os.open(run_folder, _FOLDER_FLAGS)
        try:
            with suppress(FileExistsError):
                os.mkdir(FOLDER, 0o700, dir_fd=run_fd)
            self._fd = os.open(FOLDER, _FOLDER_FLAGS, dir_fd=run_fd)
        finally:
            os.close(run_fd)

    def send(self, request: Mapping[str, Any]) -> str:
        """Put it there; what it is known by."""
        number = f"{time.time_ns():020d}-{os.getpid()}-{os.urandom(3).hex()}"
        data = json.dumps(request).encode()
        _put(self._fd, self._open_file, number + _REQUEST, data, durable=True)
        with suppress(OSError):
            bell = os.open(_BELL, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=self._fd)
            try:
                os.write(bell, b"!")
            finally:
                os.close(bell)
        return number

    def wait_for(
        self, number: str, is_alive: Callable[[], bool], patience_seconds: float
    ) -> Answer | None:
        """The answer; None: it does not come while the dispatcher lives, nor in this time."""
        pause, until = _FIRST_LOOK_SECONDS, time.monotonic() + patience_seconds
        while True:
            lives = is_alive() and time.monotonic() < until
            if (answer := self._fetch(number)) is not None:
                return answer
            if not lives:
                return None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK_SECONDS)

    def take_back(self, number: str) -> bool:
        """Whether it could be: nobody has done it."""
        try:
            os.unlink(number + _REQUEST, dir_fd=self._fd)
        except OSError:
            return False
        return True

    def close(self) -> None:
        os.close(self._fd)

    def _fetch(self, number: str) -> Answer | None:
        try:
            fd = self._open_file(self._fd, number + _ANSWER, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            record = json.loads(file.read())
        with suppress(OSError):
            os.unlink(number + _ANSWER, dir_fd=self._fd)
        return Answer(record["done"], record["words"], record["facts"])


def has_requests(run_folder: Path) -> bool:
    """Whether something waits there to be done."""
    try:
        names = os.listdir(run_folder / FOLDER)
    except OSError:
        return False
    return any(name.endswith(_REQUEST) for name in names)


def _open_bell(folder: int) -> int:
    """-1 where the file system knows no FIFOs: the folder's time of change has to do."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with suppress(FileExistsError):
            os.mkfifo(_BELL, 0o600, dir_fd=folder)
        return os.open(_BELL, flags, dir_fd=folder)
    except OSError:
        return -1


def _put(
    folder: int, open_file: OpenFile, name: str, data: bytes, *, durable: bool = False
) -> None:
    """In one piece."""
    building = f".{name}.{os.urandom(3).hex()}"
    fd = open_file(folder, building, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(fd)
        os.rename(building, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(building, dir_fd=folder)
        raise
