"""The only reader of the clock for the loop: a timeline that starts at the wall clock and never
steps back, whatever anybody does to the wall clock."""

import time

from smartsched.core.model import Timestamp


class SteadyClock:
    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> Timestamp:
        return time.monotonic() + self._offset

    def local_offset(self) -> float:
        """What to add to `now` for the local time, whoever set the wall clock meanwhile."""
        wall = time.time()
        return wall - self.now() + time.localtime(wall).tm_gmtoff

    def at_monotonic(self, monotonic_s: float) -> Timestamp:
        """The timeline's value for a reading of the host's monotonic clock, which all processes of
        a host share."""
        return monotonic_s + self._offset


def on_the_wall(at: Timestamp) -> str:
    """As people write it, in local time: "2026-03-01 14:05:09"."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
