"""What is true of jobs is true of those whose lease is kept: the same tests once more."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edges import test_adoption, test_processes
from tests.edges.jobs import Dispatcher, lease_for
from tests.edges.predecessors import Predecessor

# Where the wrapper is killed and not asked, the watchdog does not leave the rest to anybody else.
_OTHERWISE = (
    "test_what_vanished_without_a_record_is_lost",
    "test_a_job_whose_wrapper_was_killed_is_lost_and_what_lives_of_it_is_left_over",
)
_FIXTURES = ("successor", "bystander", "any_kernel", "other_child")
for _module in (test_processes, test_adoption):
    for _name, _value in vars(_module).items():
        if (_name.startswith("test_") and _name not in _OTHERWISE) or _name in _FIXTURES:
            globals()[_name] = _value


@pytest.fixture
def dispatcher_of(
    dispatcher_of: Callable[..., Dispatcher], tmp_path: Path
) -> Callable[..., Dispatcher]:
    def make(run_name: str | None = None, **options: Any) -> Dispatcher:
        run_name = run_name or f"test-{os.urandom(8).hex()}"
        return dispatcher_of(run_name=run_name, lease=lease_for(tmp_path, run_name), **options)

    return make


@pytest.fixture
def predecessor(tmp_path: Path) -> Iterator[Predecessor]:
    predecessor = Predecessor(tmp_path, lease_seconds=3600.0)
    yield predecessor
    predecessor.kill_jobs()
