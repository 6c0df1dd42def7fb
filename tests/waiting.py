"""Waiting for a condition: the only way in which tests wait."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0
_LOOK_EVERY_SECONDS = 0.01


def wait_until(
    condition: Callable[[], object],
    what: str = "it is so",
    dump: Callable[[], str] = lambda: "",
    timeout: float = PATIENCE_SECONDS,
) -> None:
    """Fails when the condition has not come true in time, with what was seen instead."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}\n{dump()}"
        time.sleep(_LOOK_EVERY_SECONDS)
