"""What a run that did not pack is told at its end."""

from typing import Any

import pytest

from smartsched.core.advice import advice, advice_on_time
from smartsched.core.events import RunMeasured
from smartsched.core.shares import SHARES, Share
from smartsched.core.state import State
from tests.builders import GIB, T0, a_run, a_sample, a_state, unreadable

MANY = 5


def measured(gib: float, percent: float | None, count: int = MANY) -> list[RunMeasured]:
    return [
        RunMeasured(T0, a_run(n), "python train.py", int(gib * GIB), percent, 600.0)
        for n in range(1, count + 1)
    ]


def box(**policy: Any) -> State:
    """A card of 100 GiB."""
    return a_state(a_sample(), **policy)


def said(gib: float, percent: float | None, **policy: Any) -> str | None:
    return advice(box(**policy), measured(gib, percent))


def test_jobs_that_leave_room_are_said_to():
    assert said(11, 30.0) == (
        "the jobs took up to 11% of a GPU's memory and 30% of its time:"
        " --jobs-per-gpu 4 would fit, --jobs-per-gpu auto finds out by itself"
    )


@pytest.mark.parametrize(
    ("gib", "percent", "count"),
    [(1, 50.0, 2), (1, 60.0, 2), (20, 10.0, 3), (35, 10.0, 2), (0.1, 0.0, 8), (0.1, 1.0, 8)],
)
def test_as_many_would_fit_as_memory_and_time_allow(gib: float, percent: float, count: int):
    words = said(gib, percent)

    assert words is not None
    assert f"--jobs-per-gpu {count} " in words


@pytest.mark.parametrize(("gib", "percent"), [(60, 10.0), (1, 90.0), (1, None)])
def test_jobs_that_fill_a_gpu_or_of_which_nobody_knows_are_not_mentioned(
    gib: float, percent: float | None
):
    assert said(gib, percent) is None


@pytest.mark.parametrize("jobs_per_gpu", [2, "auto"])
def test_who_packs_already_needs_no_advice(jobs_per_gpu: Any):
    assert said(1, 10.0, jobs_per_gpu=jobs_per_gpu) is None


def test_a_few_runs_say_nothing():
    assert advice(box(), measured(1, 10.0, count=2)) is None
    assert advice(box(), []) is None


def test_the_hungriest_run_and_the_smallest_card_count():
    state = a_state(a_sample(0), a_sample(1, memory_total_bytes=24 * GIB))

    words = advice(state, [*measured(1, 10.0), *measured(8, 40.0)])

    assert words is not None
    assert "33% of a GPU's memory and 40% of its time: --jobs-per-gpu 2 " in words


def test_without_a_card_that_can_be_read_there_is_no_advice():
    assert advice(a_state(unreadable()), measured(1, 10.0)) is None


@pytest.mark.parametrize(
    ("share", "option"),
    [("capped", "--max-gpus"), ("window", "--free-for"), ("held", "--job-mem"),
     ("claimed", "other smartsched"), ("unknown", "--exclude")],
)  # fmt: skip
def test_time_that_was_lost_is_worth_advice_when_it_was_a_tenth_and_jobs_waited(
    share: Share, option: str
):
    much = dict.fromkeys(SHARES, 0.0) | {"ours": 80.0, share: 20.0}
    little = much | {"ours": 950.0}

    [said] = advice_on_time(much, jobs_wanted=True)

    assert "20%" in said
    assert option in said
    assert advice_on_time(much, jobs_wanted=False) == []
    assert advice_on_time(little, jobs_wanted=True) == []


def test_time_that_was_ours_or_other_peoples_needs_no_advice():
    seconds = dict.fromkeys(SHARES, 0.0) | {"ours": 50.0, "strangers": 50.0}

    assert advice_on_time(seconds, jobs_wanted=True) == []
    assert advice_on_time(dict.fromkeys(SHARES, 0.0), jobs_wanted=True) == []
