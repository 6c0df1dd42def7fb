"""Reads what is on disk of a run, whoever may be writing it: nothing is locked and nothing is
changed."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from smartsched.core.events import Event
from smartsched.core.history import History, read_history
from smartsched.core.records import decode_line
from smartsched.errors import JournalDamagedError, StateError

OpenFile = Callable[[int, str, int], int]
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PastRun:
    def __init__(self, path: Path, open_file: OpenFile) -> None:
        """`open_file` opens a file in a folder with these flags; it may raise OSError. Raises
        StateError if there is no such folder."""
        self._path = path
        self._open_file = open_file
        try:
            self._folder = os.open(path, _FOLDER_FLAGS)
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._folder)

    def events(self, journal: str) -> Iterator[Event]:
        """All whole records; the last line may be half written. Raises StateError, and
        JournalDamagedError for anything else that is no record, naming the line."""
        try:
            fd = self._open_file(self._folder, journal, os.O_RDONLY)
        except OSError as error:
            raise StateError(f"cannot read {self._path / journal}: {error.strerror}") from error
        with open(fd, "rb") as lines:
            for seq, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield decode_line(line[:-1], seq)
                except JournalDamagedError as error:
                    where = f"{self._path / journal} is damaged in line {seq}"
                    raise JournalDamagedError(f"{where}: {error}") from error

    def history(self, name: str) -> History:
        """Empty where nothing was kept."""
        try:
            fd = self._open_file(self._folder, name, os.O_RDONLY)
        except OSError:
            return History()
        with open(fd, "rb") as lines:
            return read_history(lines)

    def is_held_here(self, lock: str, host: str) -> bool:
        """Whether a dispatcher on this host says that it holds the run, and lives. By what is
        written: to try the lock would keep a dispatcher out that comes just then."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            fd = self._open_file(self._folder, lock, os.O_RDONLY)
            with open(fd, "rb") as file:
                holder = json.loads(file.read(4096))
            if holder["host"] == host:
                return os.path.exists(f"/proc/{int(holder['pid'])}")
        return False
