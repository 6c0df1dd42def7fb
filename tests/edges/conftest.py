"""Fixtures of the edges' tests."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.edges.jobs import Dispatcher, our_children
from tests.waiting import wait_until

_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def dispatcher_of(tmp_path: Path) -> Iterator[Callable[..., Dispatcher]]:
    """Makes the test's dispatcher; whatever it started is gone after the test."""
    others = our_children()
    try:
        with ExitStack() as stack:
            yield lambda **options: Dispatcher(stack, tmp_path, **options)
        wait_until(
            lambda: _all_reaped(our_children() - others), dump=lambda: str(our_children() - others)
        )
    finally:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def dispatcher(dispatcher_of: Callable[..., Dispatcher]) -> Dispatcher:
    return dispatcher_of()


def _all_reaped(pids: set[int]) -> bool:
    """Not the children of fixtures that last as long as the session: those stay."""
    for pid in pids:
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                return False
    return True
