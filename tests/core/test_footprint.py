"""What is kept of a run while it lasts, and of the runs of a command shape."""

import pytest

from smartsched.core.footprint import NO_RUNS, RAMP_SECONDS, Meter, with_growth
from tests.builders import GIB, T0, a_footprint, a_key

HERE, THERE = a_key(0), a_key(1)


def seen(*samples: tuple[float, float | None]) -> Meter:
    """A run that was seen a second apart to hold so many GiB and to compute so much."""
    meter = Meter()
    for number, (gib, percent) in enumerate(samples):
        meter.take_in(HERE, int(gib * GIB), percent, T0 + number)
    return meter


# --- of a run


def test_what_a_run_holds_now_and_held_at_most_are_two_things():
    meter = seen((2, 50), (9, 50), (3, 50))

    assert (meter.used_bytes[HERE], meter.peak_bytes) == (3 * GIB, 9 * GIB)


def test_the_peak_of_a_run_on_several_gpus_is_that_of_the_fullest():
    meter = seen((2, 50))
    meter.take_in(THERE, 5 * GIB, 50, T0)

    assert meter.peak_bytes == 5 * GIB
    assert meter.used_bytes == {HERE: 2 * GIB, THERE: 5 * GIB}


def test_a_run_that_has_nothing_on_its_gpu_has_not_been_seen_there():
    meter = seen((0, 100), (0, 100))

    assert (meter.samples, meter.active_at, meter.utilization_percent) == (0, None, None)
    assert meter.used_bytes == {HERE: 0}


def test_its_ramp_begins_when_it_is_first_seen_to_compute():
    meter = seen((1, 0), (5, 0), (5, 20), (5, 90))

    assert meter.active_at == T0 + 2
    assert not meter.has_ramped(T0 + 2 + RAMP_SECONDS - 0.1)
    assert meter.has_ramped(T0 + 2 + RAMP_SECONDS)


def test_a_run_that_never_computed_has_not_ramped():
    assert not seen((1, 0), (1, 0)).has_ramped(T0 + 10 * RAMP_SECONDS)


def test_where_nobody_can_tell_whether_it_computes_the_ramp_begins_with_its_memory():
    assert seen((0, None), (1, None)).active_at == T0 + 1


def test_its_utilisation_is_the_mean_while_it_computes():
    assert seen((1, 0), (1, 40), (1, 0), (1, 60)).utilization_percent == pytest.approx(50)


def test_samples_count_for_the_time_that_they_stand_for():
    """Where something changes there are more of them."""
    meter = Meter()
    for at, percent in ((0, 30), (1, 30), (2, 30), (12, 90), (22, 90)):
        for gpu in (HERE, THERE):
            meter.take_in(gpu, GIB, percent, T0 + at)

    assert meter.utilization_percent == pytest.approx((2 * 30 + 20 * 90) / 22, rel=0.01)


def test_one_sample_says_nothing_of_its_utilisation():
    assert seen((1, 40), (1, 0)).utilization_percent is None


def test_a_run_teaches_once_it_was_seen_twice():
    assert not seen((1, 40)).teaches
    assert seen((1, 40), (1, 40)).teaches


def test_where_nobody_can_tell_what_is_its_own_it_teaches_nothing():
    meter = seen((1, 40), (1, 40))
    meter.is_blind = True

    assert not meter.teaches


# --- of a shape


def test_a_first_run_is_all_that_is_known():
    known = NO_RUNS.with_run(3 * GIB, 40.0, 120.0)

    assert known == a_footprint(gib=3, percent=40.0, seconds=120.0, runs=1)


def test_a_run_that_held_more_counts_at_once():
    known = a_footprint(gib=3, percent=20.0, seconds=60.0).with_run(9 * GIB, 70.0, 600.0)

    assert (known.peak_bytes, known.utilization_percent) == (9 * GIB, 70.0)
    assert known.longest_seconds == 600.0


def test_a_run_that_held_less_lowers_what_is_expected_only_a_little():
    before = a_footprint(gib=10, seconds=600.0)

    after = before.with_run(2 * GIB, 30.0, 60.0)

    assert 9 * GIB < after.peak_bytes < before.peak_bytes
    assert 540 < after.longest_seconds < before.longest_seconds


def test_what_programs_held_long_ago_is_forgotten_at_last():
    known = a_footprint(gib=10)
    for _ in range(200):
        known = known.with_run(2 * GIB, 30.0, 600.0)

    assert known.peak_bytes < 2.01 * GIB


def test_a_run_whose_utilisation_nobody_saw_leaves_what_is_known():
    assert a_footprint(percent=30.0).with_run(GIB, None, 1.0).utilization_percent == 30.0
    assert NO_RUNS.with_run(GIB, None, 1.0).utilization_percent is None


def test_the_mean_duration_is_that_of_all_runs():
    known = NO_RUNS
    for seconds in (10.0, 20.0, 60.0):
        known = known.with_run(GIB, None, seconds)

    assert known.runs == 3
    assert known.mean_seconds == pytest.approx(30.0)


@pytest.mark.parametrize("gib", [0, 1, 20])
def test_a_run_that_goes_on_may_come_to_hold_more_than_it_did(gib: int):
    assert with_growth(gib * GIB) > 1.2 * gib * GIB
