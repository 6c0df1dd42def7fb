"""What was seen of the GPUs while a run lasted, as lines of JSON: what `smartsched report` draws
behind the jobs.

The first line of a dispatcher is an object: `smartsched_history` (version, 1), `at` (Unix seconds)
and `resolution_seconds`. `{"gpu": 0, "host": ..., "uuid": ..., "label": ..., "name": ...,
"memory_bytes": ...}` gives a GPU its number and `{"why": 3, "text": ...}` a reason; 0 is no reason.
A list `[at, gpu, use, why, strangers' MiB, our MiB, utilisation percent]` says how a GPU is from
then on, `[at, jobs that wait, why]` the same of the queue, `[at]` that the dispatcher ended. `use`
is the number of one of gpu_time.USES; null is what nobody knows. A change within a tolerance is
left out, but each is said again every so often: where a line is missing for much longer, nobody
watched. When the file grows large, lines are left out and the resolution becomes coarser.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from smartsched.core.gpu_time import USES, GpuUse, Standing
from smartsched.core.model import GpuKey, GpuUuid, HostName, Timestamp

VERSION = 1
# How soon a GPU is written down again though its use is the same.
FINEST_SECONDS = 10.0
# How soon though nothing has changed; a gap of twice that means that nobody watched.
SAID_AGAIN_SECONDS = 60.0
_MEMORY_TOLERANCE = 0.02  # of the GPU's
_PERCENT_TOLERANCE = 10.0
_MOST_REASONS = 500  # beyond, they are left out: something is wrong with one of their texts
_LONGEST_REASON = 200
_MIB = 2**20
_LATEST = 1e12  # beyond, it is no time
_USES = dict(enumerate(USES))


class KnownGpu(Struct, frozen=True):
    key: GpuKey
    label: str
    name: str
    memory_total_bytes: int | None  # None: it could not be read when it was first seen


class GpuSeen(Struct, frozen=True):
    """From `at` on, and at most until `until`."""

    at: Timestamp
    until: Timestamp
    gpu: GpuKey
    use: GpuUse
    why: str
    strangers_bytes: int | None
    ours_bytes: int | None
    utilization_percent: float | None


class QueueSeen(Struct, frozen=True):
    """Likewise. `why`: "": nothing has to wait."""

    at: Timestamp
    until: Timestamp
    waiting: int
    why: str


class History(Struct):
    gpus: dict[GpuKey, KnownGpu] = field(default_factory=dict)
    seen: list[GpuSeen] = field(default_factory=list)
    queue: list[QueueSeen] = field(default_factory=list)
    until: Timestamp | None = None  # the last line's time; None: nothing was written


_Said: TypeAlias = tuple[Timestamp, Standing]


class Noter:
    """Turns what is seen into lines, as few as tell it."""

    def __init__(self, resolution_seconds: float = FINEST_SECONDS) -> None:
        self.resolution_seconds = resolution_seconds
        self._numbers: dict[GpuKey, int] = {}
        self._reasons: dict[str, int] = {"": 0}
        self._said: dict[GpuKey, _Said] = {}
        self._said_queue: tuple[Timestamp, bool, str] | None = None

    def begin(self, at: Timestamp) -> bytes:
        """To be said first."""
        head = {"smartsched_history": VERSION, "at": round(at, 1)}
        return _line(head | {"resolution_seconds": self.resolution_seconds})

    def note(
        self, found: Iterable[Standing], waiting: int, why: str, at: Timestamp
    ) -> Iterator[bytes]:
        """What has to be said of this moment."""
        for standing in found:
            if self._is_news(standing, at):
                self._said[standing.key] = (at, standing)
                yield from self._gpu(standing)
                yield from self._reason(standing.why)
                yield _line(self._row(standing, at))
        if self._is_news_of_queue(waiting, why, at):
            self._said_queue = (at, waiting > 0, why)
            yield from self._reason(why)
            yield _line([round(at, 1), waiting, self._number_of(why)])

    def end(self, at: Timestamp) -> bytes:
        return _line([round(at, 1)])

    def _is_news(self, now: Standing, at: Timestamp) -> bool:
        if now.key not in self._said:
            return True
        said_at, before = self._said[now.key]
        if (now.use, now.why) != (before.use, before.why):
            return True
        if at - said_at < self.resolution_seconds:
            return False
        if at - said_at >= max(SAID_AGAIN_SECONDS, self.resolution_seconds):
            return True
        tolerance = _MEMORY_TOLERANCE * (now.memory_total_bytes or 0)
        return (
            _differ(now.strangers_bytes, before.strangers_bytes, tolerance)
            or _differ(now.ours_bytes, before.ours_bytes, tolerance)
            or _differ(now.utilization_percent, before.utilization_percent, _PERCENT_TOLERANCE)
        )

    def _is_news_of_queue(self, waiting: int, why: str, at: Timestamp) -> bool:
        if self._said_queue is None:
            return True
        said_at, waited, before = self._said_queue
        if (waiting > 0, why) != (waited, before):
            return True
        return at - said_at >= max(SAID_AGAIN_SECONDS, self.resolution_seconds)

    def _gpu(self, standing: Standing) -> Iterator[bytes]:
        if standing.key in self._numbers:
            return
        self._numbers[standing.key] = len(self._numbers)
        yield _line(
            {
                "gpu": self._numbers[standing.key],
                "host": standing.key.host,
                "uuid": standing.key.uuid,
                "label": standing.label,
                "name": standing.name,
                "memory_bytes": standing.memory_total_bytes,
            }
        )

    def _reason(self, why: str) -> Iterator[bytes]:
        text = why[:_LONGEST_REASON]
        if text not in self._reasons and len(self._reasons) < _MOST_REASONS:
            self._reasons[text] = len(self._reasons)
            yield _line({"why": self._reasons[text], "text": text})

    def _number_of(self, why: str) -> int:
        return self._reasons.get(why[:_LONGEST_REASON], 0)

    def _row(self, standing: Standing, at: Timestamp) -> list[Any]:
        percent = standing.utilization_percent
        return [
            round(at, 1),
            self._numbers[standing.key],
            USES.index(standing.use),
            self._number_of(standing.why),
            _mib(standing.strangers_bytes),
            _mib(standing.ours_bytes),
            None if percent is None else round(percent),
        ]


def _differ(now: float | None, before: float | None, tolerance: float) -> bool:
    if now is None or before is None:
        return now is not before
    return abs(now - before) > tolerance


def _mib(amount_bytes: int | None) -> int | None:
    return None if amount_bytes is None else round(amount_bytes / _MIB)


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def coarsened(lines: Iterable[bytes], resolution_seconds: float) -> Iterator[bytes]:
    """The lines, those left out that come sooner than that after another of their GPU: what is
    kept is said to last until the next one that is."""
    said: dict[bytes, float] = {}
    for line in lines:
        if resolution_of(line) is not None:
            said.clear()  # what follows has numbers of its own
            yield _line(json.loads(line) | {"resolution_seconds": resolution_seconds})
        elif not line.startswith(b"[") or _is_worth_a_line(line, said, resolution_seconds):
            yield line


def _is_worth_a_line(line: bytes, said: dict[bytes, float], resolution_seconds: float) -> bool:
    at, _, rest = line.strip(b"[]\n").partition(b",")
    what = b"queue" if rest.count(b",") == 1 else rest.partition(b",")[0]
    try:
        seconds = float(at)
    except ValueError:
        return False  # half a line
    if rest and seconds - said.get(what, float("-inf")) < resolution_seconds:
        return False
    said[what] = seconds
    return True


def resolution_of(line: bytes) -> float | None:
    """What the first line of a dispatcher says; None: it is no such line."""
    if not line.startswith(b'{"smartsched_history"'):
        return None
    try:
        return float(json.loads(line)["resolution_seconds"])
    except (ValueError, TypeError, KeyError):
        return None


def read_history(lines: Iterable[bytes]) -> History:
    """What is no such line is passed over: the end may be torn, and a program that went on with
    the run may have been another version."""
    reader = _Reader()
    for line in lines:
        try:
            reader.take(json.loads(line))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
    reader.end()
    return reader.history


class _Reader:
    def __init__(self) -> None:
        self.history = History()
        self._keys: dict[int, GpuKey] = {}
        self._texts: dict[int, str] = {}
        self._open: dict[GpuKey, GpuSeen] = {}
        self._open_queue: QueueSeen | None = None
        self._longest = 2 * SAID_AGAIN_SECONDS

    def take(self, value: Any) -> None:
        match value:
            case [at]:
                self._close_all(self._time(at))
            case [at, int(waiting), int(why)]:
                self._queue(self._time(at), waiting, why)
            case [at, int(), int(), int(), _, _, _]:
                self._gpu(self._time(at), value)
            case {"smartsched_history": _, "at": at}:
                self._begin(float(at), float(value["resolution_seconds"]))
            case {"gpu": int(number)}:
                self._name(number, value)
            case {"why": int(number), "text": str(text)}:
                self._texts[number] = text
            case _:
                pass

    def end(self) -> None:
        """The last word on each is true until somebody should have said more."""
        last = self.history.until
        if last is not None:
            self._close_all(last)

    def _time(self, at: Any) -> Timestamp:
        if not abs(seconds := float(at)) < _LATEST:
            raise ValueError("no time")
        before = self.history.until
        self.history.until = seconds if before is None else max(before, seconds)
        return seconds

    def _begin(self, at: float, resolution: float) -> None:
        self._close_all(at)
        self._keys.clear()
        self._texts.clear()
        self._longest = max(self._longest, 2 * resolution)

    def _name(self, number: int, value: dict[str, Any]) -> None:
        key = GpuKey(HostName(str(value["host"])), GpuUuid(str(value["uuid"])))
        memory = value["memory_bytes"]
        self._keys[number] = key
        before = self.history.gpus.get(key)
        if memory is None and before is not None:
            memory = before.memory_total_bytes
        known = None if memory is None else int(memory)
        self.history.gpus[key] = KnownGpu(key, str(value["label"]), str(value["name"]), known)

    def _gpu(self, at: float, value: list[Any]) -> None:
        _, number, use, why, strangers, ours, percent = value
        key = self._keys[number]
        seen = GpuSeen(
            at,
            at,
            key,
            _USES[use],
            self._texts.get(why, ""),
            None if strangers is None else int(strangers) * _MIB,
            None if ours is None else int(ours) * _MIB,
            None if percent is None else float(percent),
        )
        self._close(key, at)
        self._open[key] = seen

    def _queue(self, at: float, waiting: int, why: int) -> None:
        self._close_queue(at)
        self._open_queue = QueueSeen(at, at, waiting, self._texts.get(why, ""))

    def _close_all(self, at: float) -> None:
        for key in list(self._open):
            self._close(key, at)
        self._close_queue(at)

    def _close(self, key: GpuKey, at: float) -> None:
        seen = self._open.pop(key, None)
        if seen is not None and at > seen.at:
            until = min(at, seen.at + self._longest)
            self.history.seen.append(replace(seen, until=until))

    def _close_queue(self, at: float) -> None:
        seen, self._open_queue = self._open_queue, None
        if seen is not None and at > seen.at:
            until = min(at, seen.at + self._longest)
            self.history.queue.append(replace(seen, until=until))
