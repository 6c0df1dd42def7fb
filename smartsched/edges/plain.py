"""Lines with the time of day, for files, pipes and plain terminals."""

import sys
import time
from typing import Literal

from smartsched.core.model import Timestamp
from smartsched.core.state import State


class PlainView:
    """A View without a picture, on stderr."""

    def line(
        self, at: Timestamp, text: str, tone: Literal["plain", "good", "bad", "notice"]
    ) -> None:
        stamped = f"{time.strftime('%H:%M:%S', time.localtime(at))} {text}\n"
        try:
            sys.stderr.write(stamped)
            sys.stderr.flush()
        except OSError:  # nobody listens any more (a closed terminal); the jobs are not concerned
            pass

    def refresh(self, state: State, now: Timestamp) -> None: ...

    def wake_at(self) -> Timestamp:
        return float("inf")

    def close(self) -> None: ...
