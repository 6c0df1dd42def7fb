"""How busy and how full each GPU was over the last seconds or hours, as coarse as it is drawn.

What is kept does not grow with the span nor with the rate of the samples: a fixed number of cells,
each with the highest value in it.
"""

from collections import deque
from collections.abc import Sequence
from math import floor

from smartsched.core.model import GpuKey, GpuSample, Observation, Snapshot, Timestamp

# Every width that divides it can be drawn.
CELLS = 240
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.:-=+*#"
# A gap as long as this is not drawn over.
_GAP_INTERVALS = 3.0


class Trace:
    """One quantity of one GPU, from 0 to 1."""

    def __init__(self, span_seconds: float) -> None:
        self._cell_seconds = span_seconds / CELLS
        self._cells: deque[tuple[int, float]] = deque(maxlen=CELLS + 1)  # number and value
        self._last_at: Timestamp = float("-inf")

    def add(self, at: Timestamp, value: float) -> None:
        """What is not newer than the last one is known already."""
        if at <= self._last_at:
            return
        self._last_at = at
        number = floor(at / self._cell_seconds)
        if self._cells and self._cells[-1][0] == number:
            value = max(value, self._cells.pop()[1])
        self._cells.append((number, value))

    def drawn(self, now: Timestamp, width: int, gap_seconds: float) -> list[float | None]:
        """The span up to now in `width` parts, which divides CELLS; None: nothing is known. What
        was seen holds until the next sample, for `gap_seconds` at most."""
        per_part = CELLS // width
        part_seconds = per_part * self._cell_seconds
        newest = floor(now / part_seconds)
        values: list[float | None] = [None] * width
        for number, value in self._cells:
            place = number // per_part - newest + width - 1
            if 0 <= place < width:
                values[place] = max(value, values[place] or 0.0)
        return _filled(values, max(1, round(gap_seconds / part_seconds)))


def _filled(values: Sequence[float | None], most: int) -> list[float | None]:
    """Samples come a little sooner or later than once in each part."""
    filled: list[float | None] = []
    missing = 0
    for place, value in enumerate(values):
        missing = missing + 1 if value is None else 0
        carried = filled[-1] if place and value is None and missing <= most else None
        filled.append(carried if value is None else value)
    return filled


class History:
    """Of all GPUs."""

    def __init__(self, span_seconds: float, interval_seconds: float) -> None:
        """`interval_seconds`: between samples."""
        self.span_seconds = span_seconds
        self._gap_seconds = _GAP_INTERVALS * interval_seconds
        self._utilization: dict[GpuKey, Trace] = {}
        self._memory: dict[GpuKey, Trace] = {}

    def see(self, observation: Observation) -> None:
        if isinstance(observation, Snapshot):
            for gpu in observation.gpus:
                if isinstance(gpu, GpuSample):
                    self._see(gpu, observation.taken_at)

    def utilization(self, gpu: GpuKey, now: Timestamp, width: int) -> list[float | None]:
        """See Trace.drawn."""
        return self._drawn(self._utilization.get(gpu), now, width)

    def memory(self, gpu: GpuKey, now: Timestamp, width: int) -> list[float | None]:
        """Likewise, as a part of all of its memory."""
        return self._drawn(self._memory.get(gpu), now, width)

    def _see(self, gpu: GpuSample, at: Timestamp) -> None:
        busy = self._utilization.setdefault(gpu.key, Trace(self.span_seconds))
        past = sorted((p.age_seconds, p.percent) for p in gpu.utilization_history or ())
        for age, percent in reversed(past):
            busy.add(at - age, percent / 100)
        if gpu.utilization_percent is not None:
            busy.add(at, gpu.utilization_percent / 100)
        full = self._memory.setdefault(gpu.key, Trace(self.span_seconds))
        full.add(at, gpu.memory_used_bytes / max(gpu.memory_total_bytes, 1))

    def _drawn(self, trace: Trace | None, now: Timestamp, width: int) -> list[float | None]:
        if trace is None:
            return [None] * width
        return trace.drawn(now, width, self._gap_seconds)


def sparkline(values: Sequence[float | None], *, ascii_only: bool = False) -> str:
    """A bar for each value from 0 to 1; a blank where nothing is known."""
    bars = _ASCII_BARS if ascii_only else _BARS
    return "".join(
        " " if value is None else bars[min(int(max(value, 0.0) * len(bars)), len(bars) - 1)]
        for value in values
    )
