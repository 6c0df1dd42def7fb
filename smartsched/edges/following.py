"""What a job writes, and when it ends: its log and the run's journal, read on as they grow."""

import os
import re
import time
from collections.abc import Callable, Iterator
from io import FileIO

from smartsched.core.events import (
    JobAccepted,
    JobsAdded,
    JobsCancelled,
    JobsRetried,
    RunExited,
    RunLaunched,
    RunRevoked,
)
from smartsched.core.model import JobId
from smartsched.core.records import decode_line

_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_READ_BYTES = 1 << 16
_LOOK_SECONDS = 0.1
# Of all records, those that matter here; they are told apart without being taken apart.
_OF_ITS_RUNS = (b'"run_launched"', b'"run_exited"', b'"run_revoked"')


class JobWatch:
    """What a journal says of the last attempt at one job."""

    def __init__(self, journal: int, job: str) -> None:
        """`journal`: an open file, closed with this. `job`: its number or name."""
        self._file = FileIO(journal)
        self._records = 0
        self._accepted = 0
        self._rest = b""
        self._job = JobId(int(job)) if _NUMBER.fullmatch(job) else None
        self._name = job
        self.launched: RunLaunched | None = None
        self.exited: RunExited | None = None
        self.is_cancelled = False
        self.read_on()

    @property
    def is_known(self) -> bool:
        """Whether there is such a job so far."""
        return self._job is not None and 0 < self._job <= self._accepted

    def read_on(self) -> None:
        for line in self._whole_lines():
            self._records += 1
            self._count(line)
            if self._job is None and b'"name":' in line:
                self._find_by_name(line)
            if self._job is not None and b'"run":[%d,' % self._job in line:
                self._take(line)
            elif b'"jobs_cancelled"' in line[:60] or b'"jobs_retried"' in line[:60]:
                self._take_request(line)

    def wait_for_start(self, may_start: Callable[[], bool]) -> RunLaunched | None:
        """None: it never will, as things stand."""
        while self.launched is None:
            hopeless = self.is_cancelled or not may_start()
            self.read_on()
            if hopeless:
                break
            time.sleep(_LOOK_SECONDS)
        return self.launched

    def follow(
        self, log: FileIO, show: Callable[[bytes], None], is_watched: Callable[[], bool]
    ) -> None:
        """All that is in the log and comes to be, until the attempt is over, or neither it nor who
        would say so is there any more."""
        launched = self.launched
        while True:
            self.read_on()
            is_over = self.exited is not None or self.launched is not launched
            is_over = is_over or not (is_watched() or _lives(launched))
            while data := log.read(_READ_BYTES):
                show(data)
            if is_over:
                return
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        self._file.close()

    def _whole_lines(self) -> Iterator[bytes]:
        while data := self._file.read(1 << 20):
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from lines

    def _count(self, line: bytes) -> None:
        if b'"job_accepted"' in line[:60]:
            self._accepted += 1
        elif b'"jobs_added"' in line[:60]:
            match decode_line(line, self._records):
                case JobsAdded(specs=specs):
                    self._accepted += len(specs)
                case _:
                    pass

    def _find_by_name(self, line: bytes) -> None:
        match decode_line(line, self._records):
            case JobAccepted(job=job, spec=spec) if spec.wishes.name == self._name:
                self._job = job
            case JobsAdded(first=first, specs=specs):
                names = [spec.wishes.name for spec in specs]
                if self._name in names:
                    self._job = JobId(first + names.index(self._name))
            case _:
                pass

    def _take_request(self, line: bytes) -> None:
        match decode_line(line, self._records):
            case JobsCancelled(jobs=jobs) if self._job in jobs:
                self.is_cancelled = True
            case JobsRetried(jobs=jobs) if self._job in jobs:
                self.is_cancelled = False
            case _:
                pass

    def _take(self, line: bytes) -> None:
        if not any(name in line[:60] for name in _OF_ITS_RUNS):
            return
        match decode_line(line, self._records):
            case RunLaunched() as launched:
                self.launched, self.exited = launched, None
            case RunExited() as exited:
                self.exited = exited
            case RunRevoked():
                self.launched = None
            case _:
                pass


def _lives(launched: RunLaunched | None) -> bool:
    if launched is None:
        return False
    try:
        os.kill(launched.process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's by now, or still its own: nobody can tell
    return True


def show_all(log: FileIO, show: Callable[[bytes], None]) -> None:
    while data := log.read(_READ_BYTES):
        show(data)


def write_out(data: bytes) -> None:
    """All of it, to standard output."""
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]
