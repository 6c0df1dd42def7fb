"""What is told of looks between the samples."""

import pytest

from smartsched.core.close_look import EVERY_SECONDS, CloseLooks
from smartsched.core.model import GpuProcess, GpuReading
from tests.builders import a_key, a_process, a_sample, unreadable, used_by

OURS = a_process(77)
UUID = a_key().uuid
QUIET = 12.0


def is_ours(process: GpuProcess) -> bool:
    return process.pid == OURS.pid


def looks(*readings: GpuReading) -> CloseLooks:
    """At a GPU that was last seen so at the time 0."""
    found = CloseLooks(is_ours)
    found.told(readings, 0.0, whole=True)
    found.watch([UUID])
    return found


def test_they_are_due_within_two_seconds_of_the_last_sample_or_look():
    close = looks(used_by(OURS))

    assert close.due_at() == EVERY_SECONDS < 2
    close.news([used_by(OURS)], 1.6)
    assert close.due_at() == 1.6 + EVERY_SECONDS
    close.told([used_by(OURS)], 3.0, whole=False)
    assert close.due_at() == 1.6 + EVERY_SECONDS
    close.told([used_by(OURS)], 3.1, whole=True)
    assert close.due_at() == 3.1 + EVERY_SECONDS


def test_where_nothing_is_watched_there_are_none():
    close = looks(used_by(OURS))

    close.watch([])

    assert close.due_at() == float("inf")


def test_what_shows_nothing_new_for_a_while_is_told_now_and_then_only():
    close = looks(used_by(OURS))

    told = [at for at in range(2, 46, 2) if close.news([used_by(OURS)], float(at))]

    assert told == [2, 4, 6, 8, 10, 20, 30, 40]


def test_how_busy_it_is_is_no_news_but_whether_it_is():
    busy = used_by(OURS, utilization_percent=90)
    close = looks(busy)
    close.told([busy], 8.0, whole=True)

    assert close.news([used_by(OURS, utilization_percent=7)], QUIET) == ()
    assert close.news([used_by(OURS)], QUIET + 1) == (used_by(OURS),)


def test_after_what_could_not_be_seen_everything_is_news():
    close = looks(used_by(OURS))

    close.failed(QUIET)

    assert close.due_at() == QUIET + EVERY_SECONDS
    close.skip(QUIET + 4)
    assert close.due_at() == QUIET + 3 + EVERY_SECONDS
    assert close.news([used_by(OURS)], QUIET + 4) == (used_by(OURS),)


@pytest.mark.parametrize(("until", "due"), [(20.4, 20.5), (20.5, 20.5), (20.6, 22.0), (99.0, 29.5)])
def test_silent_looks_can_be_skipped_but_none_that_would_be_told(until: float, due: float):
    close = looks(used_by(OURS))
    close.told([used_by(OURS)], 19.0, whole=True)

    close.skip(until)

    assert close.due_at() == due


def test_whoever_comes_goes_or_takes_more_is_told_at_once_and_for_a_while():
    changes: list[GpuReading] = [
        used_by(OURS, a_process(500, gib=0.5)),
        used_by(OURS),
        used_by(a_process(OURS.pid, gib=3.0)),
        a_sample(used_gib=9.0, processes=(OURS,)),
        a_sample(ailment="Xid 79"),
        unreadable(),
        unreadable(why="it hangs"),
        a_sample(),
    ]
    close = looks(used_by(OURS))

    for number, reading in enumerate(changes, start=1):
        at = 100.0 * number
        assert close.news([reading], at) == (reading,)
        assert close.news([reading], at + QUIET - 1) == (reading,)


def test_as_long_as_others_are_there_each_look_is_told():
    beside = used_by(OURS, a_process(500))
    close = looks(beside)

    assert close.news([beside], 1000.0) == (beside,)


def test_of_several_only_the_news_are_told():
    close = CloseLooks(is_ours)
    quiet, loud = used_by(OURS), used_by(OURS, index=1)
    close.told([quiet, loud], 0.0, whole=True)
    close.watch([a_key(0).uuid, a_key(1).uuid])

    changed = used_by(OURS, a_process(500), index=1)

    close.told([quiet, loud], QUIET - 1, whole=True)
    assert close.news([quiet, changed], QUIET) == (changed,)


def test_what_is_watched_anew_is_told_whatever_was_known_of_it():
    close = looks(used_by(OURS))
    close.watch([])

    close.watch([UUID])

    assert close.news([used_by(OURS)], 1000.0) == (used_by(OURS),)
