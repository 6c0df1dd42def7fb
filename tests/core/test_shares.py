"""Where the GPUs' time went."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.account import Bar
from smartsched.core.gpu_time import USES, GpuUse
from smartsched.core.history import GpuSeen, History
from smartsched.core.model import Placement
from smartsched.core.shares import gpu_seconds, total
from tests.builders import T0, a_key, a_part, a_run

KEY = a_key(0)


def a_bar(begin: float, end: float | None, *indices: int) -> Bar:
    placement = Placement(tuple(a_part(index) for index in indices or (0,)))
    return Bar(a_run(), placement, T0 + begin, None if end is None else T0 + end)


def seen(begin: float, end: float, use: GpuUse, index: int = 0) -> GpuSeen:
    return GpuSeen(T0 + begin, T0 + end, a_key(index), use, "", None, None, None)


def shares(bars: list[Bar], pieces: list[GpuSeen], seconds: float = 100.0) -> dict[str, float]:
    found = gpu_seconds([KEY], bars, History(seen=pieces), (T0, T0 + seconds))[KEY]
    return {use: each for use, each in found.items() if each}


def test_the_journal_says_when_our_runs_were_there_and_the_history_the_rest():
    told = shares(
        [a_bar(10, 40)],
        [seen(0, 10, "window"), seen(10, 41, "ours"), seen(41, 100, "strangers")],
    )

    assert told == {"ours": 31, "window": 10, "strangers": 59}


def test_where_nothing_was_kept_nobody_watched():
    assert shares([a_bar(20, 50)], []) == {"ours": 30, "unwatched": 70}


def test_runs_that_share_a_gpu_do_not_take_its_time_twice():
    assert shares([a_bar(0, 50), a_bar(10, 60), a_bar(20, 30)], [])["ours"] == 60


def test_a_run_that_goes_on_lasts_until_now():
    assert shares([a_bar(40, None)], [])["ours"] == 60


def test_what_lies_before_or_behind_counts_for_nothing():
    told = shares(
        [a_bar(-50, -10), a_bar(120, 130)], [seen(-20, 10, "idle"), seen(90, 200, "idle")]
    )

    assert told == {"idle": 20, "unwatched": 80}


def test_a_run_on_two_gpus_takes_time_of_both():
    keys = [a_key(0), a_key(1)]

    found = gpu_seconds(keys, [a_bar(0, 10, 0, 1)], History(), (T0, T0 + 10))

    assert total(found)["ours"] == 20


SPANS = st.tuples(st.integers(-20, 120), st.integers(0, 60)).map(lambda s: (s[0], s[0] + s[1]))


@given(st.lists(SPANS, max_size=8), st.lists(st.tuples(st.sampled_from(USES), st.integers(1, 30))))
def test_the_parts_together_are_the_whole(
    ours: list[tuple[int, int]], pieces: list[tuple[GpuUse, int]]
):
    history, at = [], 0
    for use, seconds in pieces:
        history.append(seen(at, at + seconds, use))
        at += seconds

    told = shares([a_bar(begin, end) for begin, end in ours], history)

    assert sum(told.values()) == pytest.approx(100)
    assert all(seconds >= 0 for seconds in told.values())
