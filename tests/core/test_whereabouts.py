"""What is worth a word to the user about where runs are."""

from typing import Any

import pytest

from smartsched.core.apply import apply, replay
from smartsched.core.events import Event, RunPlaced, RunStopping
from smartsched.core.freeness import UNEXPLAINED_FOR_SECONDS
from smartsched.core.model import GpuReading
from smartsched.core.placement import NO_GPU
from smartsched.core.state import State
from smartsched.core.whereabouts import UNUSED_FOR_SECONDS, looks_again_at, remarks
from tests.builders import (
    T0,
    a_part,
    a_policy,
    a_process,
    a_run,
    a_sample,
    a_snapshot,
    begun,
    exited,
    launched,
    listed,
    ours,
    see,
    used_by,
)


def running(*more: Event, **policy: Any) -> State:
    """Job 1 has GPU 0."""
    return replay(a_policy(**policy), [*listed("a", "b"), *begun(1), *more])


def look(state: State, *readings: GpuReading, at: float = 1.0) -> None:
    see(state, a_snapshot(*readings, at=T0 + at))


def texts(state: State, at: float = 1.0) -> list[str]:
    return [remark.text for remark in remarks(state, T0 + at)]


# --- elsewhere than it was to be


def test_a_run_on_its_gpu_is_not_worth_a_word():
    state = running()
    look(state, used_by(ours()), a_sample(1))

    assert texts(state) == []


def test_a_run_on_another_gpu_is_named_with_the_likely_cause():
    state = running()
    look(state, a_sample(0), used_by(ours(), index=1), used_by(ours(), index=2))

    (text,) = texts(state)
    assert text.startswith("job 1 uses GPU 1,2, and was given 0:")
    assert "CUDA_VISIBLE_DEVICES" in text


def test_a_run_without_a_gpu_that_uses_one_is_named():
    start: list[Event] = [RunPlaced(T0, a_run(2), NO_GPU), launched(2, pid=ours(2).pid)]
    state = running(*start)
    look(state, used_by(ours(1), ours(2)))

    assert any(text.startswith("job 2 uses GPU 0, and was given none:") for text in texts(state))


def test_the_same_is_about_the_same_however_often_it_is_so():
    state = running()
    look(state, a_sample(0), used_by(ours(), index=1))
    first = list(remarks(state, T0 + 1))
    look(state, a_sample(0), used_by(ours(), index=1), used_by(ours(), index=2), at=2)

    assert [r.about for r in remarks(state, T0 + 2)] == [r.about for r in first]


# --- nowhere


def test_a_run_that_has_not_used_its_gpu_for_long_is_asked_whether_it_needs_one():
    state = running()
    look(state, a_sample(), at=1)

    assert texts(state, UNUSED_FOR_SECONDS - 1) == []
    (text,) = texts(state, UNUSED_FOR_SECONDS)
    assert text.startswith("job 1 has not used GPU 0 for 5m")
    assert "gpus=0" in text


def test_a_run_that_used_its_gpu_once_needs_it():
    state = running()
    look(state, used_by(ours()), at=1)
    look(state, a_sample(), at=2)

    assert texts(state, UNUSED_FOR_SECONDS) == []


def test_a_run_that_uses_another_gpu_is_not_asked_whether_it_needs_one():
    state = running()
    look(state, a_sample(0), used_by(ours(), index=1))

    assert not any("need one" in text for text in texts(state, UNUSED_FOR_SECONDS))


def test_of_a_gpu_that_was_never_seen_nothing_is_said():
    assert texts(running(), UNUSED_FOR_SECONDS) == []


def test_a_run_that_is_being_stopped_is_not_asked_whether_it_needs_a_gpu():
    state = running(RunStopping(T0 + 9, a_run()))
    look(state, a_sample(), at=10)

    assert texts(state, UNUSED_FOR_SECONDS) == []


def test_it_is_known_when_there_may_be_more_to_say():
    later = begun(2, a_part(1), at=T0 + 50)

    assert looks_again_at(running(*later)) == T0 + UNUSED_FOR_SECONDS
    assert looks_again_at(replay(a_policy(), [])) == float("inf")


# --- with whom


def crowded(**policy: Any) -> State:
    state = running(**policy)
    look(state, used_by(ours(), a_process(pid=700, gib=60)))
    return state


def test_strangers_that_came_are_named():
    (text,) = texts(crowded())

    assert text.startswith("others came to GPU 0, where jobs run: alice: python train.py, 60 GiB")
    assert "nothing more is started there" in text


@pytest.mark.parametrize("what", ["requeue", "ignore"])
def test_what_is_done_about_strangers_is_said_only_where_it_is_so(what: Any):
    (text,) = texts(crowded(on_contention=what))

    assert "nothing more" not in text


def test_strangers_below_the_thresholds_are_not_worth_a_word():
    state = running()
    look(state, used_by(ours(), a_process(gib=2)))

    assert texts(state) == []


def test_strangers_where_no_run_of_ours_is_are_not_worth_a_word():
    state = running()
    look(state, used_by(ours()), used_by(a_process(gib=60), index=1))

    assert texts(state) == []


def test_where_our_run_has_ended_strangers_are_not_worth_a_word():
    state = running()
    apply(state, exited(1))
    look(state, used_by(a_process(gib=60)))

    assert texts(state) == []


def test_a_name_cannot_steer_the_terminal():
    state = running()
    look(state, used_by(ours(), a_process(gib=60, command="evil \x1b[2J\n\x07")))

    (text,) = texts(state)
    assert text.isprintable()


def test_another_stranger_is_another_remark():
    first = crowded()
    other = running()
    look(other, used_by(ours(), a_process(pid=800, gib=60)))

    assert [r.about for r in remarks(first, T0)] != [r.about for r in remarks(other, T0)]


# --- where nobody can tell


def in_a_container(*indices: int) -> State:
    state = running(*begun(2, a_part(1)))
    for at in (1.0, 2.0 + UNEXPLAINED_FOR_SECONDS):
        look(state, *(a_sample(index, used_gib=20) for index in indices), at=at)
    return state


def test_where_the_driver_attributes_nothing_it_is_said():
    (text,) = texts(in_a_container(0), at=4)

    assert "counts as other people's" in text
    assert "GPU 0" in text


def test_where_the_driver_attributes_nothing_it_is_said_once_for_all_gpus():
    said = list(remarks(in_a_container(0, 1), T0 + 4))

    assert len({remark.about for remark in said}) == 1
