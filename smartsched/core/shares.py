"""Where the GPUs' time went: the journal says when runs of ours were there, the history what the
rest was."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, get_args

from smartsched.core.account import Bar
from smartsched.core.gpu_time import GpuUse
from smartsched.core.history import History
from smartsched.core.model import GpuKey, Timestamp

Share: TypeAlias = GpuUse | Literal["unwatched"]
"""What a GPU's time went to; unwatched: no dispatcher was there, or nothing was kept."""
SHARES: tuple[Share, ...] = (*get_args(GpuUse), "unwatched")
Span: TypeAlias = tuple[Timestamp, Timestamp]


def gpu_seconds(
    gpus: Iterable[GpuKey], bars: Iterable[Bar], history: History, span: Span
) -> dict[GpuKey, dict[Share, float]]:
    """Of each GPU, seconds by what they went to; together they are the span."""
    ours: dict[GpuKey, list[Span]] = {}
    for bar in bars:
        for given in bar.placement.gpus:
            end = span[1] if bar.end is None else bar.end
            ours.setdefault(given.key, []).append((bar.begin, end))
    found = {gpu: dict.fromkeys(SHARES, 0.0) for gpu in gpus}
    covered = {gpu: _Union(ours.get(gpu, ()), span) for gpu in found}
    for gpu, seconds in found.items():
        seconds["ours"] = covered[gpu].seconds
    for seen in history.seen:
        if seen.gpu in found:
            begin, end = max(seen.at, span[0]), min(seen.until, span[1])
            left = max(0.0, end - begin) - covered[seen.gpu].overlap(begin, end)
            found[seen.gpu][seen.use] += max(0.0, left)
    for seconds in found.values():
        seconds["unwatched"] = max(0.0, span[1] - span[0] - sum(seconds.values()))
    return found


def total(found: dict[GpuKey, dict[Share, float]]) -> dict[Share, float]:
    """Of all GPUs together, in GPU-seconds."""
    return {share: sum(seconds[share] for seconds in found.values()) for share in SHARES}


class _Union:
    """Times that may overlap, as times that do not."""

    def __init__(self, spans: Sequence[Span], within: Span) -> None:
        self._begins: list[Timestamp] = []
        self._ends: list[Timestamp] = []
        self._before: list[float] = []  # seconds in all that come earlier
        self.seconds = 0.0
        for begin, end in sorted((max(b, within[0]), min(e, within[1])) for b, e in spans):
            if self._ends and begin <= self._ends[-1]:
                self.seconds += max(0.0, end - self._ends[-1])
                self._ends[-1] = max(end, self._ends[-1])
            elif end > begin:
                self._begins.append(begin)
                self._ends.append(end)
                self._before.append(self.seconds)
                self.seconds += end - begin

    def overlap(self, begin: Timestamp, end: Timestamp) -> float:
        return max(0.0, self._until(end) - self._until(begin))

    def _until(self, at: Timestamp) -> float:
        index = bisect_left(self._begins, at) - 1
        if index < 0:
            return 0.0
        return self._before[index] + min(at, self._ends[index]) - self._begins[index]
