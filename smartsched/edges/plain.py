"""Lines with the time of day, for files, pipes and plain terminals."""

import time
from collections.abc import Iterable, Iterator
from typing import Literal, TextIO

from smartsched.core import words
from smartsched.core.model import Timestamp
from smartsched.core.state import State
from smartsched.core.survey import GpuRow, who_and_why_not


class PlainView:
    """A View without a picture."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(
        self, at: Timestamp, text: str, tone: Literal["plain", "good", "bad", "notice"]
    ) -> None:
        stamp = time.strftime("%H:%M:%S", time.localtime(at))
        self._stream.write(f"{stamp} {words.printable(text)}\n")
        self._stream.flush()

    def refresh(self, state: State, now: Timestamp) -> None:
        self._stream.flush()

    def wake_at(self) -> Timestamp:
        return float("inf")

    def close(self) -> None: ...


def gpu_lines(rows: Iterable[GpuRow], now: Timestamp) -> Iterator[str]:
    """One for each GPU, to be read by people and by grep."""
    stamp = time.strftime("%H:%M:%S", time.localtime(now))
    for row in rows:
        busy = row.utilization_now_percent
        parts = [
            f"{stamp} GPU {row.label} {row.word}",
            f"memory {row.memory_words}",
            f"utilisation {'-' if busy is None else f'{busy}%'}",
            *who_and_why_not(row),
        ]
        yield ", ".join(part for part in parts if part)
