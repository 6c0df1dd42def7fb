"""Waiting for a condition: the only way in which tests wait."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 30.0
_LOOK_EVERY_SECONDS = 0.01


def wait_until(condition: Callable[[], object], timeout: float = PATIENCE_SECONDS) -> None:
    """Fails when the condition has not come true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s"
        time.sleep(_LOOK_EVERY_SECONDS)
