"""What a report's pictures show, as rows of data: bars, what is behind them, waits, shares. All
text in them is printable."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from smartsched.core import words
from smartsched.core.account import Bar
from smartsched.core.history import GpuSeen, History, QueueSeen
from smartsched.core.model import GpuKey, JobId, Timestamp
from smartsched.core.shares import SHARES, Share, Span

Rows: TypeAlias = list[dict[str, Any]]

# Behind what became of every other bar of a lane: neighbours are told apart by it.
PALER = " "
SHARE_WORDS: dict[Share, str] = {
    "ours": "our jobs",
    "strangers": "other people",
    "window": "free, window not over",
    "claimed": "claimed by another smartsched",
    "capped": "free, but capped",
    "held": "free, but what waits cannot use it",
    "idle": "free, nothing to start",
    "unknown": "unknown or withheld",
    "unwatched": "nobody watched",
}
# Of a row's height, from its top: what is behind, the bars before it, the strip below.
TOP, BASE = 0.06, 0.76
_BAR_TOP, _BAR_BASE = 0.2, 0.7
STRIP_TOP, STRIP_BASE = 0.82, 0.92
# More would not be seen on any screen.
_MOST_PIECES = 800
_LONGEST_COMMAND = 160


class GpuLine(Struct, frozen=True):
    """A row of the timeline."""

    key: GpuKey
    label: str
    memory_total_bytes: int | None


class Scene(Struct, frozen=True):
    """What there is to be drawn."""

    gpus: Sequence[GpuLine]
    bars: Sequence[Bar]
    commands: Mapping[JobId, str]
    history: History
    span: Span
    shares: Mapping[GpuKey, Mapping[Share, float]]
    local_offset: float  # seconds from the times here to those on the wall


def datasets(scene: Scene) -> dict[str, Rows]:
    """The data of both pictures. Times are milliseconds as on the wall of the box."""
    behind = _Behind(scene)
    return {
        "bars": _bars(scene),
        "memory": behind.memory(),
        "utilisation": behind.utilisation(),
        "uses": behind.uses(),
        "waits": _waits(scene),
        "lines": _lines(scene),
        "shares": _shares(scene),
    }


def _lines(scene: Scene) -> Rows:
    """Between the rows; as long as the run, so that all of it is shown."""
    begin, end = (milliseconds(scene, at) for at in scene.span)
    end = max(end, begin + 1000)
    return [{"b": begin, "e": end, "y": number} for number in range(1, max(len(scene.gpus), 1) + 1)]


def _bars(scene: Scene) -> Rows:
    row_of = {gpu.key: number for number, gpu in enumerate(scene.gpus)}
    rows = []
    for key, bars in _by_gpu(scene).items():
        lanes = _lanes(bars, scene.span[1])
        height = (_BAR_BASE - _BAR_TOP) / (max(lanes, default=0) + 1)
        tones: Counter[int] = Counter()  # of each lane, in turns
        for bar, lane in zip(bars, lanes, strict=True):
            tones[lane] += 1
            end = scene.span[1] if bar.end is None else bar.end
            top = row_of[key] + _BAR_TOP + lane * height
            rows.append(
                {
                    "b": milliseconds(scene, bar.begin),
                    "e": milliseconds(scene, end),
                    "y0": round(top, 4),
                    "y1": round(top + 0.94 * height, 4),
                    "gpu": scene.gpus[row_of[key]].label,
                    "job": bar.run.job,
                    "attempt": bar.run.attempt,
                    "became": bar.became,
                    "tone": bar.became + PALER * (1 - tones[lane] % 2),
                    "command": _short(scene.commands.get(bar.run.job, "")),
                    "took": words.duration(end - bar.begin),
                    "how": _how(bar),
                }
            )
    return rows


def _how(bar: Bar) -> str:
    told = bar.how or bar.became
    return f"{told} ({bar.to_whom})" if bar.to_whom else told


def _by_gpu(scene: Scene) -> dict[GpuKey, list[Bar]]:
    found: dict[GpuKey, list[Bar]] = {gpu.key: [] for gpu in scene.gpus}
    for bar in scene.bars:
        for given in bar.placement.gpus:
            if given.key in found:
                found[given.key].append(bar)
    return found


def _lanes(bars: Sequence[Bar], now: Timestamp) -> list[int]:
    """Of jobs that share a GPU, each has one for itself."""
    free_at: list[Timestamp] = []
    lanes = []
    for bar in bars:
        end = now if bar.end is None else bar.end
        lane = next((n for n, at in enumerate(free_at) if at <= bar.begin), len(free_at))
        free_at[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes


def _waits(scene: Scene) -> Rows:
    """Merged where nothing but their number changes."""
    top = len(scene.gpus)
    rows: Rows = []
    for seen in _merged_waits(scene.history.queue):
        rows.append(
            {
                "b": milliseconds(scene, seen.at),
                "e": milliseconds(scene, seen.until),
                "y0": top + 0.3,
                "y1": top + 0.7,
                "why": seen.why,
                "took": words.duration(seen.until - seen.at),
            }
        )
    return rows


def _merged_waits(queue: Iterable[QueueSeen]) -> list[QueueSeen]:
    merged: list[QueueSeen] = []
    for seen in queue:
        if not seen.why:
            continue
        last = merged[-1] if merged else None
        if last is not None and last.why == seen.why and last.until >= seen.at:
            merged[-1] = QueueSeen(last.at, seen.until, seen.waiting, seen.why)
        else:
            merged.append(seen)
    return merged


class _Behind:
    """What was seen of the GPUs, no finer than anybody could see it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        seen: dict[GpuKey, list[GpuSeen]] = {gpu.key: [] for gpu in scene.gpus}
        for piece in scene.history.seen:
            if piece.gpu in seen:
                seen[piece.gpu].append(piece)
        self._seen = {gpu: _thinned(pieces, scene.span) for gpu, pieces in seen.items()}

    def memory(self) -> Rows:
        rows: Rows = []
        for number, gpu in enumerate(self._scene.gpus):
            total = gpu.memory_total_bytes
            for piece in self._seen[gpu.key]:
                if not total or not piece.strangers_bytes:
                    continue
                share = min(1.0, piece.strangers_bytes / total)
                top = round(number + BASE - (BASE - TOP) * share, 3)
                row = self._row(piece, top, number + BASE)
                text = f"{words.size(piece.strangers_bytes)} of {words.size(total)}"
                _append(rows, row | {"gpu": gpu.label, "memory": text}, "y0", "memory")
        return rows

    def utilisation(self) -> Rows:
        """Two points a piece; null where nobody knows. Empty where nobody ever does."""
        rows: Rows = []
        if all(p.utilization_percent is None for pieces in self._seen.values() for p in pieces):
            return rows
        for number, gpu in enumerate(self._scene.gpus):
            for piece in self._seen[gpu.key]:
                percent = piece.utilization_percent
                y = None
                if percent is not None:
                    y = round(number + BASE - (BASE - TOP) * percent / 100, 3)
                for at in (piece.at, piece.until):
                    rows.append({"t": milliseconds(self._scene, at), "y": y, "n": number})
            rows.append(
                {"t": milliseconds(self._scene, self._scene.span[1]), "y": None, "n": number}
            )
        return rows

    def uses(self) -> Rows:
        rows: Rows = []
        for number, gpu in enumerate(self._scene.gpus):
            for piece in self._seen[gpu.key]:
                row = self._row(piece, number + STRIP_TOP, number + STRIP_BASE)
                told = {"gpu": gpu.label, "use": SHARE_WORDS[piece.use], "why": piece.why}
                _append(rows, row | told, "use", "why", "y0")
        return rows

    def _row(self, piece: GpuSeen, top: float, base: float) -> dict[str, Any]:
        begin = milliseconds(self._scene, piece.at)
        return {"b": begin, "e": milliseconds(self._scene, piece.until), "y0": top, "y1": base}


def _append(rows: Rows, row: dict[str, Any], *alike: str) -> None:
    """As part of the last one, if it goes on where that ended and says the same."""
    last = rows[-1] if rows else {"e": None}
    if last["e"] == row["b"] and all(last[name] == row[name] for name in ("gpu", *alike)):
        last["e"] = row["e"]
    else:
        rows.append(row)


def _thinned(pieces: list[GpuSeen], span: Span) -> list[GpuSeen]:
    """At most so many: of each short while, the piece that lasted longest."""
    if len(pieces) <= _MOST_PIECES:
        return pieces
    width = max((span[1] - span[0]) / _MOST_PIECES, 1e-3)
    whiles: dict[int, GpuSeen] = {}
    for piece in pieces:
        number = int((piece.at - span[0]) / width)
        longest = whiles.get(number)
        if longest is None or piece.until - piece.at > longest.until - longest.at:
            whiles[number] = piece
    kept = sorted(whiles.values(), key=lambda piece: piece.at)
    return [
        _up_to(piece, after, width) for piece, after in zip(kept, [*kept[1:], None], strict=True)
    ]


def _up_to(piece: GpuSeen, after: GpuSeen | None, width: float) -> GpuSeen:
    """What was left out between the two was like the first of them."""
    if after is None or after.at - piece.until > 2 * width:
        return piece
    return replace(piece, until=after.at)


def _shares(scene: Scene) -> Rows:
    rows: Rows = []
    whole = dict.fromkeys(SHARES, 0.0)
    for number, gpu in enumerate(scene.gpus):
        seconds = scene.shares[gpu.key]
        rows += _share_rows(f"GPU {gpu.label}", number + 1, seconds)
        whole = {share: whole[share] + seconds[share] for share in SHARES}
    return [*_share_rows("all", 0, whole), *rows]


def _share_rows(name: str, order: int, seconds: Mapping[Share, float]) -> Rows:
    all_seconds = sum(seconds.values()) or 1.0
    return [
        {
            "gpu": name,
            "order": order,
            "use": SHARE_WORDS[share],
            "place": place,
            "share": round(seconds[share] / all_seconds, 5),
            "took": words.duration(seconds[share]),
        }
        for place, share in enumerate(SHARES)
        if seconds[share] > 0
    ]


def _short(command: str) -> str:
    return words.shortened(words.printable(command), _LONGEST_COMMAND)


def milliseconds(scene: Scene, at: Timestamp) -> int:
    return round(1000 * (at + scene.local_offset))
