"""Lines with the time of day, for files, pipes and plain terminals."""

import time
from typing import Literal, TextIO

from smartsched.core import words
from smartsched.core.model import Timestamp
from smartsched.core.state import State


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
