"""Keeps what was seen of the GPUs in the run's folder, for `smartsched report`. It never gets in
the run's way: what cannot be written is left out."""

import os
from collections.abc import Callable
from contextlib import suppress

from smartsched.core.decide import Decision
from smartsched.core.events import Event
from smartsched.core.gpu_time import discreet, standings
from smartsched.core.history import FINEST_SECONDS, Noter, coarsened, resolution_of
from smartsched.core.model import Timestamp
from smartsched.core.state import State

HISTORY = "history.jsonl"
_NEW = "history.jsonl.new"
_LARGEST_BYTES = 4 * 2**20
_LOOK_EVERY_SECONDS = 0.9  # a little less than between samples, which may come early
_WRITE_EVERY_SECONDS = 2.0
_MOST_UNWRITTEN_BYTES = 1 << 18
_COARSEST_SECONDS = 86400.0


class HistoryFile:
    """An Observer."""

    def __init__(
        self,
        folder_fd: int,
        open_file: Callable[[str, int], int],
        clock: Callable[[], Timestamp],
        when_lost: Callable[[str], None],
        largest_bytes: int = _LARGEST_BYTES,
    ) -> None:
        """`open_file` opens a file of the folder with these flags; it may raise OSError.
        `when_lost` is told, once, why it cannot be written; `largest_bytes`: where lines are left
        out, so that half of that remains."""
        self._folder_fd = folder_fd
        self._open_file = open_file
        self._clock = clock
        self._when_lost = when_lost
        self._largest_bytes = largest_bytes
        self._has_told = False
        self._unwritten = bytearray()
        self._look_at: Timestamp = float("-inf")
        self._write_at: Timestamp = float("-inf")
        self._fd = -1
        self._noter = Noter()
        self._begin()

    def recorded(self, event: Event, state: State, now: Timestamp) -> None: ...

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        if now < self._look_at or self._fd < 0:
            return
        self._look_at = now + _LOOK_EVERY_SECONDS
        found = standings(state, decision.waiting, now)
        why = "" if decision.waiting is None else discreet(decision.waiting.why)
        for line in self._noter.note(found, len(state.queue), why, now):
            self._unwritten += line
        if now >= self._write_at:
            self._write_at = now + _WRITE_EVERY_SECONDS
            self._write()

    def wake_at(self) -> Timestamp:
        return float("inf")  # every sample wakes the loop

    def close(self) -> None:
        if self._fd < 0:
            return
        self._unwritten += self._noter.end(self._clock())
        self._write()
        os.close(self._fd)
        self._fd = -1

    def _begin(self) -> None:
        try:
            self._fd = self._open_file(HISTORY, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            lines = self._lines()
        except OSError as error:
            self._lost(error)
            return
        known = [seconds for line in lines if (seconds := resolution_of(line)) is not None]
        self._noter = Noter(max(known, default=FINEST_SECONDS))
        if lines and not lines[-1].endswith(b"\n"):
            self._unwritten += b"\n"
        self._unwritten += self._noter.begin(self._clock())

    def _lines(self) -> list[bytes]:
        with open(os.dup(self._fd), "rb") as file:
            file.seek(0)
            return file.readlines()

    def _write(self) -> None:
        try:
            while self._unwritten:
                del self._unwritten[: os.write(self._fd, self._unwritten)]
            if os.fstat(self._fd).st_size > self._largest_bytes:
                self._coarsen()
        except OSError as error:
            self._lost(error)
            if len(self._unwritten) > _MOST_UNWRITTEN_BYTES:  # numbers that nobody gave are useless
                self._noter = Noter(self._noter.resolution_seconds)
                self._unwritten[:] = b"\n" + self._noter.begin(self._clock())

    def _coarsen(self) -> None:
        """Leave out lines until half of what there may be is there."""
        lines = self._lines()
        resolution = self._noter.resolution_seconds
        while sum(map(len, lines)) > self._largest_bytes // 2 and resolution < _COARSEST_SECONDS:
            resolution *= 2
            lines = list(coarsened(lines, resolution))
        self._noter.resolution_seconds = resolution
        with suppress(FileNotFoundError):
            os.unlink(_NEW, dir_fd=self._folder_fd)
        fd = self._open_file(_NEW, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        try:
            with open(os.dup(fd), "wb") as file:
                file.writelines(lines)
            os.rename(_NEW, HISTORY, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
        except OSError:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd

    def _lost(self, error: OSError) -> None:
        if not self._has_told:
            self._has_told = True
            self._when_lost(error.strerror or str(error))
