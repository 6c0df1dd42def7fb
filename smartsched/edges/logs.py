"""Files that people and programs follow: the joblog, and every event as a line of JSON.

Both are written after the journal and follow from it: what a crash kept out of them is added when
the run is resumed, and nothing is there twice.
"""

import json
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from smartsched.core import joblog
from smartsched.core.decide import Decision
from smartsched.core.events import Event, JobFinished, JobRequeued, RunExited
from smartsched.core.model import EndedRun, Timestamp
from smartsched.core.records import as_object
from smartsched.core.state import State
from smartsched.errors import UsageError

_READ_BYTES = 1 << 16


def open_log(path: str, *, append: bool, option: str) -> int:
    """Raises UsageError with the option's name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (0 if append else os.O_TRUNC)
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise UsageError(
            f"{option}: cannot write {path}: {error.strerror}; name another file"
        ) from error


class JobLog:
    """An Observer."""

    def __init__(
        self,
        fd: int,
        state: State,
        before: Iterable[EndedRun],
        when_lost: Callable[[str], None],
        is_behind: Callable[[], bool] = lambda: False,
    ) -> None:
        """`before`: the last runs of jobs that earlier dispatchers have seen finished; rows that
        they had no time to write are added. `when_lost` is told why a line cannot be written;
        `is_behind`: whether the journal lacks anything that was recorded: it comes first."""
        self._is_behind = is_behind
        self._out = _Lines(fd, when_lost)
        self._ended = dict(state.ended)
        there = {joblog.names(line) for line in self._out.lines()}
        rows = (joblog.row(ended, _size_of(ended.log)) for ended in before)
        missing = [row for row in rows if joblog.names(row) not in there]
        self._out.begin(missing if there else [joblog.HEADER, *missing])

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        match event:
            case RunExited(run=run):
                self._ended[run] = state.ended[run]
            case JobRequeued(run=run):
                del self._ended[run]
            case JobFinished(run=run):
                ended = self._ended.pop(run)
                self._out.add(joblog.row(ended, _size_of(ended.log)))
            case _:
                pass

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        if not self._is_behind():
            self._out.flush()

    def wake_at(self) -> Timestamp:
        return float("inf")

    def close(self) -> None:
        self._out.close()


class JsonLog:
    """An Observer: one object an event, as in the journal, with the name of the run."""

    def __init__(
        self,
        fd: int,
        run_name: str,
        before: Iterable[Event],
        when_lost: Callable[[str], None],
        is_written: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """`before`: all that is in the journal; what is missing here is added, but for a pipe.
        `is_written`: whether the event of this number is there by now."""
        self._is_written = is_written
        self._waiting: deque[tuple[int, str]] = deque()
        self._out = _Lines(fd, when_lost)
        self._run_name = run_name
        self._seq = 0
        written = max(map(self._seq_in, self._out.lines()), default=0)
        missing = []
        for event in before:
            self._seq += 1
            if self._seq > written:
                missing.append(self._line(event, self._seq))
        self._out.begin(missing if self._out.is_file else ())

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        self._seq += 1
        self._waiting.append((self._seq, self._line(event, self._seq)))

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        while self._waiting and self._is_written(self._waiting[0][0]):
            self._out.add(self._waiting.popleft()[1])
        self._out.flush()

    def wake_at(self) -> Timestamp:
        return float("inf")

    def close(self) -> None:
        while self._waiting and self._is_written(self._waiting[0][0]):
            self._out.add(self._waiting.popleft()[1])
        self._out.close()

    def _line(self, event: Event, seq: int) -> str:
        record = {"run_name": self._run_name, "seq": seq, **as_object(event)}
        return json.dumps(record, separators=(",", ":")) + "\n"

    def _seq_in(self, line: str) -> int:
        try:
            record = json.loads(line)
            return int(record["seq"]) if record["run_name"] == self._run_name else 0
        except (ValueError, TypeError, KeyError):
            return 0


class _Lines:
    """Whole lines at the end of a file; those that cannot be written are tried again."""

    def __init__(self, fd: int, when_lost: Callable[[str], None]) -> None:
        self._fd = fd
        self._when_lost = when_lost
        self._unwritten = bytearray()
        self._told = False
        self.is_file = stat.S_ISREG(os.fstat(fd).st_mode)

    def begin(self, missing: Sequence[str]) -> None:
        """Add these. Half a line at the end goes if a crash left it of one of them; of anybody
        else's, it ends there."""
        whole, torn = self._torn_line()
        if torn and any(
            line.encode("utf-8", "surrogateescape").startswith(torn) for line in missing
        ):
            os.ftruncate(self._fd, whole)
        elif torn:
            self.add("\n")
        for line in missing:
            self.add(line)
        self.flush()

    def add(self, line: str) -> None:
        self._unwritten += line.encode("utf-8", "surrogateescape")

    def flush(self) -> None:
        while self._unwritten:
            try:
                del self._unwritten[: os.write(self._fd, self._unwritten)]
            except OSError as error:
                if not self._told:
                    self._told = True
                    self._when_lost(error.strerror or str(error))
                return
        self._told = False

    def lines(self) -> Iterable[str]:
        """Those that are whole."""
        if not self.is_file:
            return
        with open(
            os.dup(self._fd), encoding="utf-8", errors="surrogateescape", newline="\n"
        ) as file:
            file.seek(0)
            yield from (line for line in file if line.endswith("\n"))

    def close(self) -> None:
        self.flush()
        os.close(self._fd)

    def _torn_line(self) -> tuple[int, bytes]:
        """The size of all whole lines, and what follows them."""
        size = os.fstat(self._fd).st_size if self.is_file else 0
        end = size
        while end > 0:
            start = max(0, end - _READ_BYTES)
            found = os.pread(self._fd, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        return end, os.pread(self._fd, size - end, end) if size else b""


def _size_of(path: str | None) -> int:
    try:
        return 0 if path is None else os.stat(path).st_size
    except OSError:
        return 0
