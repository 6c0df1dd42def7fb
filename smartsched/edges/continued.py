"""The list of a run that is resumed: what of it is left to be done."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from smartsched.core.events import FailuresDropped, InputRead
from smartsched.core.ledger import Ledger
from smartsched.core.model import JobId, JobSpec, Position, Timestamp
from smartsched.ports import Arrived, Intake, Recall

_LINES_AT_ONCE = 256


class Continued:
    """An Intake: of the lines of another one, those that the run does not know yet, and those that
    it knows but has still to run. Before them, if asked for, jobs that had failed."""

    def __init__(
        self,
        lines: Intake,
        ledger: Ledger,
        *,
        is_waiting: Callable[[JobId], bool],
        failed_too: bool,
        failed_first: bool,
        read_to: Position | None,
        replaces: bool = False,
    ) -> None:
        """`is_waiting`: whether a known job has still to run. `failed_too`: failed ones have as
        well; `failed_first`: whether or not the list names them. `read_to`: how far an earlier
        dispatcher came with this list, if it is read from its beginning once more. `replaces`:
        it took the place of another: failures that it does not name are no longer of the run."""
        self._lines = lines
        self._ledger = ledger
        self._is_waiting = is_waiting
        self._failed = dict(ledger.failed) if failed_too else {}
        self._read_to = read_to
        self._unnamed = ledger.failed_before() if replaces else set()
        self._ready: deque[Arrived] = deque()
        if failed_first:
            for job in sorted(self._failed):
                spec, attempts = self._failed[job]
                self._ready.append(Arrived(Recall(job, spec, attempts)))
            self._failed.clear()

    def take(self, most: int) -> Sequence[Arrived]:
        if len(self._ready) < most:
            for arrived in self._lines.take(max(most, _LINES_AT_ONCE)):
                self._ready.extend(self._left_of(arrived))
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def finished(self, now: Timestamp) -> Sequence[InputRead | FailuresDropped]:
        events: list[InputRead | FailuresDropped] = [*self._lines.finished(now)]
        if self._unnamed and self.ended():
            events.append(FailuresDropped(now, tuple(sorted(self._unnamed))))
            self._unnamed.clear()
        return events

    def has_more(self) -> bool:
        return bool(self._ready) or self._lines.has_more()

    def ended(self) -> bool:
        return not self._ready and self._lines.ended()

    def close(self) -> None:
        self._lines.close()

    def _left_of(self, arrived: Arrived) -> Iterator[Arrived]:
        read_to = arrived.read_to
        is_past = None not in (read_to, self._read_to) and read_to <= self._read_to  # type: ignore[operator]
        spec = arrived.what
        if not isinstance(spec, JobSpec):
            if not is_past:
                yield arrived
            return
        job = self._ledger.next_occurrence(spec)
        if job is not None:
            self._unnamed.discard(job)
        if is_past:
            return
        if job is None:
            yield arrived
        elif job in self._failed:
            _, attempts = self._failed.pop(job)
            yield Arrived(Recall(job, spec, attempts), read_to)
        elif self._is_waiting(job):
            yield Arrived(Recall(job, spec, 0), read_to)
