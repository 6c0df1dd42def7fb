"""Looks between the samples, at GPUs where runs are: who comes there is to be noticed within two
seconds, however seldom samples are due. Of a look that shows what the last one showed nobody is
told, where nothing has changed for a while and nobody else is there; but every ten seconds he is.
"""

from collections.abc import Callable, Iterable
from math import ceil

from msgspec import Struct, field

from smartsched.core.model import GpuProcess, GpuReading, GpuSample

EVERY_SECONDS = 1.5
# What follows from a change may follow from its having lasted: a process that came has shown by
# then how it takes its memory, and memory that nobody accounts for is somebody's.
_QUIET_AFTER_SECONDS = 12.0
# So often it is told all the same, for whoever wants to know what runs use and how busy they are.
_TOLD_EVERY_SECONDS = 10.0


class _Seen(Struct):
    """Of one GPU: what was seen there last, but for how busy it was, since when, and when that was
    last told."""

    what: tuple[object, ...]
    since: float
    told_at: float


class CloseLooks(Struct):
    """When they are due and what is news in them. Times are of any clock that is steady."""

    is_ours: Callable[[GpuProcess], bool]
    watched: frozenset[str] = frozenset()  # UUIDs
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _looked_at: float = float("-inf")

    def watch(self, uuids: Iterable[str]) -> None:
        """From now on these, and no others."""
        self.watched = frozenset(uuids)
        self._seen = {uuid: seen for uuid, seen in self._seen.items() if uuid in self.watched}

    def due_at(self) -> float:
        return self._looked_at + EVERY_SECONDS if self.watched else float("inf")

    def told(self, readings: Iterable[GpuReading], now: float, *, whole: bool) -> None:
        """These are told, whatever they show. `whole`: of all GPUs, as a look would have been."""
        for reading in readings:
            self._is_news(reading, now)
            self._seen[reading.key.uuid].told_at = now
        if whole:
            self._looked_at = now

    def news(self, readings: Iterable[GpuReading], now: float) -> tuple[GpuReading, ...]:
        """Of a look at what is watched, what is to be told."""
        self._looked_at = now
        return tuple(reading for reading in readings if self._is_news(reading, now))

    def failed(self, now: float) -> None:
        """Nothing could be seen: whatever is seen next is news."""
        self._looked_at = now
        self._seen.clear()

    def skip(self, until: float) -> None:
        """The looks before that would show what the last one showed, of which nobody was told."""
        told_at = (self._seen[uuid].told_at for uuid in self.watched if uuid in self._seen)
        told_again_at = min(told_at, default=until) + _TOLD_EVERY_SECONDS
        silent = ceil((min(until, told_again_at) - self._looked_at) / EVERY_SECONDS) - 1
        self._looked_at += max(0, silent) * EVERY_SECONDS

    def _is_news(self, reading: GpuReading, now: float) -> bool:
        uuid, what = reading.key.uuid, _what_shows(reading)
        last = self._seen.get(uuid)
        if last is None or last.what != what:
            self._seen[uuid] = _Seen(what, now, now)
            return True
        is_due = now >= last.told_at + _TOLD_EVERY_SECONDS
        is_news = now < last.since + _QUIET_AFTER_SECONDS or is_due or self._has_others(reading)
        last.told_at = now if is_news else last.told_at
        return is_news

    def _has_others(self, reading: GpuReading) -> bool:
        if not isinstance(reading, GpuSample):
            return False
        return not all(self.is_ours(process) for process in reading.processes)


def _what_shows(reading: GpuReading) -> tuple[object, ...]:
    if not isinstance(reading, GpuSample):
        return (reading.why,)
    processes = tuple((process.pid, process.memory_bytes) for process in reading.processes)
    computes = bool(reading.utilization_percent)
    return reading.memory_used_bytes, processes, computes, reading.ailment, reading.compute_mode
