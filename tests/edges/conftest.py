"""Fixtures of the edges' tests."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.edges.jobs import Dispatcher
from tests.waiting import wait_until

_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def dispatcher_of(tmp_path: Path) -> Iterator[Callable[..., Dispatcher]]:
    """Makes the test's dispatcher; whatever it started is gone after the test."""
    with ExitStack() as stack:
        yield lambda **options: Dispatcher(stack, tmp_path, **options)
    wait_until(_nobody_is_left)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def dispatcher(dispatcher_of: Callable[..., Dispatcher]) -> Dispatcher:
    return dispatcher_of()


def _nobody_is_left() -> bool:
    """Reaps what was killed; running children of other fixtures may stay."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return False
