"""Tells the user, once each, what is odd about where jobs run, and at the end what would fit."""

from collections.abc import Callable, Hashable

from smartsched.core.advice import advice
from smartsched.core.decide import Decision
from smartsched.core.events import Event, RunMeasured
from smartsched.core.model import Timestamp
from smartsched.core.state import State
from smartsched.core.whereabouts import looks_again_at, remarks

# Of what jobs used, so much is kept for the advice at the end.
_MOST_MEASURED = 1000


class Remarks:
    """An Observer."""

    def __init__(self, say: Callable[[str, Timestamp], None]) -> None:
        self._say = say
        self._said: set[Hashable] = set()
        self._measured: list[RunMeasured] = []
        self._again_at: Timestamp = float("inf")

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        if isinstance(event, RunMeasured) and len(self._measured) < _MOST_MEASURED:
            self._measured.append(event)

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        so = list(remarks(state, now))
        for about, text in so:
            if about not in self._said:
                self._say(text, now)
        # whatever is so no longer has to be said again when it is; but for the one that never ends
        lasting = {about for about in self._said if isinstance(about, str)}
        self._said = lasting | {about for about, _ in so}
        at = looks_again_at(state)
        self._again_at = at if at > now else float("inf")

    def wake_at(self) -> Timestamp:
        return self._again_at

    def finish(self, state: State, now: Timestamp) -> None:
        if (text := advice(state, self._measured)) is not None:
            self._say(text, now)
