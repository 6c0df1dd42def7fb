"""Whose fault it was that a run ran out of a GPU's memory, and what its job is given then."""

from typing import Any

import pytest
from msgspec.structs import replace

from smartsched.core.apply import apply, replay
from smartsched.core.blame import is_blame_open, peak_bytes, words_on_memory
from smartsched.core.events import (
    Event,
    GpuReleased,
    JobFinished,
    JobRequeued,
    RunExited,
    RunPlaced,
)
from smartsched.core.freeness import Share, Thresholds
from smartsched.core.model import Exited, GpuProcess, GpuReading, PlacedGpu
from smartsched.core.needs import need_of
from smartsched.core.placement import NO_GPU
from smartsched.core.planning import plan
from smartsched.core.settle import settle
from smartsched.core.state import State
from smartsched.core.strangers import SLACK_BYTES
from tests.builders import (
    GIB,
    T0,
    a_key,
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
    placed,
    see,
    unreadable,
    used_by,
)

SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB."
ENDED = T0 + 60
LOOSE = Thresholds(Share(50.0), 100.0, free_for_seconds=0.0)
LATER = 120.0  # by then nobody looks any more for whose fault it was


def ran_out(job: int = 1, attempt: int = 1, says: str = SAYS, at: float = ENDED) -> RunExited:
    return RunExited(at, a_run(job, attempt), Exited(1), 0, says)


def a_box(*events: Event, **policy: Any) -> State:
    """Two siblings."""
    commands = ["python train.py --lr 0.1", "python train.py --lr 0.2"]
    policy = {"jobs_per_gpu": "auto"} | policy
    return replay(a_policy(**policy), [*listed(*commands), *events])


def after(
    *events: Event,
    before: GpuReading | None = None,
    then: GpuReading | None = None,
    **policy: Any,
) -> State:
    """Job 1 ran out of memory; so its GPU looked before and after it."""
    state = a_box(*events, **policy)
    if before is not None:
        see(state, a_snapshot(before, at=ENDED - 1))
    apply(state, ran_out())
    see(state, a_snapshot(a_sample() if then is None else then, at=ENDED + 0.1))
    return state


def settled(state: State, seconds: float = 61.0) -> list[Event]:
    """What is recorded so long after T0, and has become of the state."""
    events = []
    for event in settle(state, T0 + seconds):
        apply(state, event)
        events.append(event)
    return events


def requeued(state: State) -> JobRequeued:
    (event,) = settled(state)
    assert isinstance(event, JobRequeued)
    return event


def has_failed(state: State) -> bool:
    return [e.outcome for e in settled(state) if isinstance(e, JobFinished)] == ["failed"]


PACKED: list[Event] = [*begun(1, a_part(gib=4)), *begun(2, a_part(gib=4))]
BOTH = used_by(ours(1, 6), ours(2, 4))


# --- strangers grew


@pytest.mark.parametrize("retries", [0, 2])
def test_a_job_that_strangers_left_no_memory_is_tried_again_free_of_charge(retries: int):
    state = after(*begun(1), then=used_by(a_process(gib=60)), oom_retries=retries)

    event = requeued(state)

    assert (event.why, event.needs_bytes, event.alone) == ("strangers_grew", None, False)
    (job, _) = state.queue
    assert (job.id, job.failures, job.ooms, job.failed_on) == (1, 0, 0, ())
    assert job.not_before > T0 + 61


def test_strangers_may_take_the_memory_of_a_job_again_and_again():
    state = a_box()
    for attempt in range(1, 10):
        for event in begun(1, attempt=attempt):
            apply(state, event)
        apply(state, ran_out(attempt=attempt, at=T0))
        see(state, a_snapshot(used_by(a_process(gib=60)), at=T0 + attempt))
        assert isinstance(settled(state, attempt)[-1], JobRequeued)
        state.holds.clear()


def test_strangers_that_have_what_they_had_are_not_to_blame():
    part = a_part(gib=4, strangers_gib=9)
    packed = [*begun(1, part), *begun(2, part)]
    beside = a_process(gib=9 + SLACK_BYTES / GIB)

    state = after(*packed, before=used_by(beside, ours(1, 6), ours(2, 4)), then=used_by(beside))

    assert requeued(state).why == "packed_too_tightly"


def test_strangers_on_any_gpu_of_a_job_may_be_to_blame():
    state = a_box(*begun(1, a_part(0), a_part(1)))
    apply(state, ran_out())
    crowded = used_by(a_process(gib=60), index=1)
    see(state, a_snapshot(a_sample(0), crowded, at=ENDED + 0.1))

    assert requeued(state).why == "strangers_grew"


# --- jobs of ours that are where they were not to be


ELSEWHERE = [*begun(1, a_part(0)), *begun(2, a_part(1))]
STRAY = ours(2, 60)
TAGGED = a_process(4711, 60, run_tag="test/2/1")


@pytest.mark.parametrize("stray", [STRAY, TAGGED], ids=["by its shell", "by its tag"])
@pytest.mark.parametrize("when", ["before", "then"])
def test_a_job_of_ours_on_a_gpu_that_it_was_not_given_is_no_stranger(stray: GpuProcess, when: str):
    state = after(*ELSEWHERE, **{when: used_by(stray)})

    assert requeued(state).why == "packed_too_tightly"


def test_beside_a_job_of_ours_that_was_not_to_be_there_strangers_may_grow_as_well():
    at_first = replace(a_part(0), strangers_bytes=0)
    crowded = used_by(ours(2, 30), a_process(gib=30))

    state = after(*begun(1, at_first), *begun(2, a_part(1)), before=used_by(STRAY), then=crowded)

    assert requeued(state).why == "strangers_grew"


def test_what_strangers_have_is_noted_without_what_is_ours_at_the_start_of_a_job():
    state = a_box(*begun(2, a_part(1)), thresholds=LOOSE)
    see(state, a_snapshot(used_by(ours(2, 20), a_process(gib=5)), a_sample(1), at=T0 + 1))

    (placement,) = [placement for _, placement in plan(state, T0 + 1).starts]

    assert [gpu.strangers_bytes for gpu in placement.gpus] == [5 * GIB]


def test_that_another_job_of_the_run_was_there_is_told_wherever_it_was_to_be():
    state = after(*ELSEWHERE, before=used_by(ours(1, 6), STRAY), then=a_sample())

    assert words_on_memory(state, state.ended[a_run(1)]).endswith("beside other jobs of this run")


# --- our own packing


def test_a_job_that_ran_out_beside_others_of_ours_needs_more_next_time():
    state = after(*PACKED, before=BOTH, then=used_by(ours(2, 4)))

    event = requeued(state)

    assert event.why == "packed_too_tightly"
    assert event.needs_bytes is not None
    assert event.needs_bytes > (6 + 2) * GIB  # that it held, and that it wanted
    assert not event.alone
    job = state.queue[0]
    assert (job.failures, job.ooms, job.needs_bytes) == (0, 1, event.needs_bytes)
    assert need_of(state, job, T0).memory_bytes == event.needs_bytes


def test_what_was_promised_counts_where_more_was_promised_than_it_was_seen_to_hold():
    wide: list[Event] = [*begun(1, a_part(gib=30)), *begun(2, a_part(gib=4))]

    event = requeued(after(*wide, before=BOTH))

    assert event.needs_bytes is not None
    assert event.needs_bytes > 30 * GIB


def test_a_job_that_has_run_out_though_it_got_more_is_alone_next_time():
    state = after(*PACKED, before=BOTH)
    first = requeued(state)
    apply(state, GpuReleased(ENDED + 1, a_key(), a_run(1)))
    part = replace(a_part(), reserved_bytes=first.needs_bytes)
    for event in [*begun(1, part, attempt=2), ran_out(attempt=2)]:
        apply(state, event)
    see(state, a_snapshot(used_by(ours(2, 4)), at=ENDED + 2))

    second = requeued(state)

    assert (second.why, second.alone) == ("packed_too_tightly", True)
    assert need_of(state, state.queue[0], T0).memory_bytes is None


@pytest.mark.parametrize(
    ("retries", "ooms", "event"),
    [
        (0, 0, None),
        (1, 0, "alone"),
        (1, 1, None),
        (2, 0, "more"),
        (2, 1, "alone"),
        (2, 2, None),
        (3, 0, "more"),
        (3, 2, "alone"),
        (3, 3, None),
    ],
)
def test_how_often_it_is_tried_again_the_user_says(retries: int, ooms: int, event: str | None):
    state = after(*PACKED, before=BOTH, oom_retries=retries)
    ended = state.ended[a_run(1)]
    state.ended[a_run(1)] = replace(ended, job=replace(ended.job, ooms=ooms))

    if event is None:
        assert has_failed(state)
    else:
        assert requeued(state).alone == (event == "alone")


def test_tries_for_memory_are_not_those_for_failures():
    state = after(*PACKED, before=BOTH, oom_retries=0, retries=5)

    assert has_failed(state)


def test_who_is_no_longer_there_may_have_taken_the_memory():
    """The other run ended before this one was seen to have failed."""
    state = a_box(*PACKED)
    see(state, a_snapshot(BOTH, at=ENDED - 2))
    apply(state, exited(2, at=ENDED - 1))
    apply(state, GpuReleased(ENDED - 1, a_key(), a_run(2)))
    apply(state, ran_out())
    see(state, a_snapshot(a_sample(), at=ENDED + 0.1))

    assert "packed_too_tightly" in [e.why for e in settled(state) if isinstance(e, JobRequeued)]


# --- alone


def test_a_job_that_had_its_gpu_for_itself_has_failed():
    state = after(*begun(1), before=used_by(ours(1, 90)), retries=5)

    assert has_failed(state)


def test_a_job_without_a_gpu_has_failed():
    state = a_box(RunPlaced(T0, a_run(), NO_GPU), launched())
    apply(state, ran_out())

    assert has_failed(state)


def test_the_peak_and_the_cards_size_are_said():
    alone = after(*begun(1), before=used_by(ours(1, 90)))
    beside = after(*PACKED, before=BOTH)
    unseen = after(*begun(1))

    assert words_on_memory(alone, alone.ended[a_run()]) == ": it was seen to hold 90 GiB of 100 GiB"
    assert words_on_memory(beside, beside.ended[a_run()]) == (
        ": it was seen to hold 6 GiB of 100 GiB, beside other jobs of this run"
    )
    assert words_on_memory(unseen, unseen.ended[a_run()]) == ""
    assert (peak_bytes(alone, alone.ended[a_run()]), peak_bytes(unseen, unseen.ended[a_run()])) == (
        90 * GIB,
        0,
    )


# --- before it can be told


def test_nobody_is_blamed_before_the_gpu_was_looked_at_once_more():
    state = a_box(*PACKED)
    see(state, a_snapshot(BOTH, at=ENDED - 1))
    apply(state, ran_out())

    assert is_blame_open(state, state.ended[a_run()], ENDED)
    assert settled(state, 60) == []


def test_a_gpu_that_nobody_can_look_at_does_not_hold_the_job_for_ever():
    state = a_box(*PACKED)
    see(state, a_snapshot(BOTH, at=ENDED - 1))
    apply(state, ran_out())

    assert not is_blame_open(state, state.ended[a_run()], ENDED + LATER)
    (event,) = settled(state, 60 + LATER)
    assert isinstance(event, JobRequeued)


def test_a_gpu_that_cannot_be_read_any_more_blames_no_stranger():
    state = after(*PACKED, before=BOTH, then=unreadable())

    assert requeued(state).why == "packed_too_tightly"


def test_any_other_failure_waits_for_nothing():
    state = a_box(*PACKED)
    see(state, a_snapshot(BOTH, at=ENDED - 1))
    apply(state, exited(1, at=ENDED, ending=Exited(1)))

    assert [type(event) for event in settled(state)] == [JobFinished]


def test_want_of_memory_is_not_held_against_the_gpu():
    state = after(*begun(1), before=used_by(ours(1, 90)))

    assert has_failed(state)
    assert state.records == {}


def test_what_a_part_said_is_kept_with_the_run():
    """Whose fault it is can be told only by what strangers had when the run was placed."""
    part = PlacedGpu(a_part().key, "0", "0", 0, 4 * GIB, 40.0, 7 * GIB)
    state = a_box(*begun(1, part))

    assert state.runs[a_run()].status.placement.gpus == (part,)
    assert placed().placement.gpus[0].strangers_bytes == 0
