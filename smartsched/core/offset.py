"""What the time of another host is in ours, as far as messages tell."""

from msgspec import Struct

from smartsched.core.model import Timestamp

# Clocks that are kept in step are slewed by no more than half of this (adjtimex(2): 500 ppm).
_DRIFT = 0.001


class Offset(Struct):
    """Between two bounds: a message arrives after it was sent, in both directions."""

    _least: float = float("-inf")
    _most: float = float("inf")
    _as_of: Timestamp = 0.0

    def heard(self, sent_there: float, arrived_here: Timestamp) -> None:
        """A message of theirs has come."""
        self._age(arrived_here)
        self._most = min(self._most, arrived_here - sent_there)

    def echoed(self, sent_here: Timestamp, arrived_there: float) -> None:
        """They say when a message of ours has come."""
        since_then = max(0.0, self._as_of - sent_here)
        self._least = max(self._least, sent_here - arrived_there - _DRIFT * since_then)

    def ours(self, there: float) -> Timestamp:
        """In our time, rather too early than too late: what was seen is not taken for newer than
        it is. Before they have heard from us, as if their messages took no time."""
        return there + (self._most if self._least == float("-inf") else self._least)

    def soonest(self, sent_there: float) -> Timestamp:
        """When a message that was sent then would have come, were it as fast as the fastest."""
        return sent_there + self._most

    def _age(self, now: Timestamp) -> None:
        """The bounds were right then; clocks drift."""
        passed = max(0.0, now - self._as_of) if self._as_of else 0.0
        self._as_of = now
        self._least -= _DRIFT * passed
        self._most += _DRIFT * passed
