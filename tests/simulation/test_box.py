"""Whole batches in virtual time."""

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsched.core.events import (
    DrainRequested,
    GpuReleased,
    RunExited,
    RunKilled,
    RunPlaced,
    StopRequested,
    WaitTimedOut,
)
from smartsched.core.freeness import Share, Thresholds
from smartsched.core.model import Ending, Exited, Killed
from smartsched.core.policy import Policy
from smartsched.core.state import Closing
from smartsched.simulation.box import PretendBox, PretendJob, commands_at_once
from smartsched.simulation.colleagues import GIB
from tests.builders import INSTANT, a_policy
from tests.simulation.witness import Witness

MINUTE = 60.0
HOUR = 3600.0
DAY = 24 * HOUR
WINDOW = Thresholds(Share(10.0), 10.0, free_for_seconds=10.0)
A_GPU_GIB = 24


def a_box(
    job: PretendJob, count: int = 1, gpus: int = 1, commands: Iterable[str] | None = None
) -> PretendBox:
    """A box where every command does the same."""
    names = commands if commands is not None else (f"job {n}" for n in range(1, count + 1))
    return PretendBox(gpus, lambda _: job, commands_at_once(names))


def policy(thresholds: Thresholds = INSTANT, **more: float) -> Policy:
    return a_policy(thresholds=thresholds, **more)


def starts(box: PretendBox) -> list[float]:
    """When runs were launched, in seconds since the first."""
    return [round(at - box.launched[0][0], 6) for at, *_ in box.launched]


def test_every_command_runs_once_and_in_order():
    box = a_box(PretendJob(30.0), count=100, gpus=4)
    Witness(box, INSTANT)

    loop = box.run(policy())

    assert [command for _, _, command, _ in box.launched] == [f"job {n}" for n in range(1, 101)]
    assert loop.state.totals.ok == 100
    assert not box.living


def test_all_gpus_are_kept_busy():
    box = a_box(PretendJob(60.0), count=40, gpus=4)

    box.run(policy())

    assert max(starts(box)) == pytest.approx(9 * MINUTE, abs=0.1)
    assert {gpu for *_, gpu in box.launched} == {0, 1, 2, 3}


def test_a_gpu_is_used_again_within_milliseconds_when_its_memory_is_back_at_once():
    box = a_box(PretendJob(7.3, memory_bytes=20 * GIB), count=3)

    box.run(policy(WINDOW))

    assert starts(box) == pytest.approx([0.0, 7.3, 14.6], abs=0.01)


@pytest.mark.parametrize("lingers", [0.1, 1.0, 5.0, 45.0])
def test_a_gpu_is_used_again_soon_after_its_memory_came_back(lingers: float):
    box = a_box(PretendJob(10.0, 20 * GIB, memory_lingers_seconds=lingers), count=2)

    box.run(policy(WINDOW))

    back = 10.0 + lingers
    assert back <= starts(box)[1] <= back + min(1.01, max(0.03, lingers / 2 + 0.01))


def test_memory_of_a_run_in_a_container_counts_as_a_strangers_for_the_window_after_it():
    unseen = PretendJob(30.0, memory_bytes=20 * GIB, seen_by_driver=False)
    box = a_box(unseen, count=2)

    loop = box.run(policy(WINDOW))

    window = WINDOW.free_for_seconds
    assert 30 + window - 1 <= starts(box)[1] <= 30 + window + 1.01
    assert loop.state.totals.ok == 2


def test_nothing_is_thought_about_more_often_than_something_happens():
    box = a_box(PretendJob(HOUR))
    witness = Witness(box, INSTANT)

    box.run(policy())

    assert witness.ticks <= HOUR / box.interval_seconds + 5


def test_failures_and_signals_are_counted_and_stop_nobody_else():
    endings: dict[str, Ending] = {"bad": Exited(3), "crash": Killed(11), "good": Exited(0)}
    box = PretendBox(
        1, lambda name: PretendJob(1.0, ending=endings[name]), commands_at_once(endings)
    )

    loop = box.run(policy())

    assert (loop.state.totals.ok, loop.state.totals.failed) == (1, 2)


def test_commands_start_as_they_arrive():
    box = PretendBox(2, lambda _: PretendJob(5.0), [(0.0, "now"), (100.0, "later")])

    box.run(policy())

    assert starts(box) == pytest.approx([0.0, 100.0], abs=1.01)


def test_nothing_starts_on_the_gpu_of_a_colleague_nor_within_the_window_after_them():
    box = a_box(PretendJob(5.0), count=3)
    box.visit(0, begins=-5, ends=100, gib=20)
    began = box.clock.time
    Witness(box, WINDOW)

    box.run(policy(WINDOW))

    assert box.launched[0][0] - began == pytest.approx(110, abs=1.01)


def test_a_colleague_below_the_thresholds_is_no_hindrance():
    box = a_box(PretendJob(5.0), count=1)
    box.visit(0, begins=-5, ends=1000, gib=2, percent=5)
    began = box.clock.time

    box.run(policy(WINDOW))

    assert box.launched[0][0] - began == pytest.approx(10, abs=1.01)


def test_a_colleague_who_comes_during_our_run_keeps_the_gpu_after_it():
    box = a_box(PretendJob(60.0, memory_bytes=10 * GIB), count=2)
    box.visit(0, begins=30, ends=300, gib=10)

    box.run(policy(WINDOW))

    assert starts(box)[1] == pytest.approx(300, abs=1.01)


def test_while_the_driver_hangs_nothing_starts_and_runs_go_on():
    box = a_box(PretendJob(20.0), count=4)
    hang = (box.clock.time + 50.5, box.clock.time + 120)
    box.driver_hangs.append(hang)
    Witness(box, WINDOW)

    loop = box.run(policy(WINDOW))

    assert not [at for at, *_ in box.launched if hang[0] + 1 <= at < hang[1]]
    assert loop.state.totals.ok == 4
    exits = [event.at for event in box.events if isinstance(event, RunExited)]
    assert any(hang[0] <= at < hang[1] for at in exits)


def test_draining_lets_runs_end_and_starts_nothing_more():
    box = a_box(PretendJob(60.0), count=10, gpus=2)
    box.requests.append((box.clock.time + 30, DrainRequested))

    loop = box.run(policy())

    assert len(box.launched) == 2
    assert (loop.state.totals.ok, len(loop.state.queue)) == (2, 8)


def test_stopping_ends_runs_within_the_grace_period():
    box = a_box(PretendJob(HOUR), count=10, gpus=2)
    began = box.clock.time
    box.requests.append((began + 30, StopRequested))

    loop = box.run(policy(grace_seconds=10.0))

    assert [e.ending for e in box.events if isinstance(e, RunExited)] == [Killed(15), Killed(15)]
    assert box.clock.time - began == pytest.approx(30, abs=1.01)
    assert loop.state.totals.stopped == 2
    assert not box.living


@pytest.mark.parametrize(("asked", "lasts"), [(1, 40.0), (2, 30.0)], ids=["once", "twice"])
def test_a_stubborn_run_is_killed_after_the_grace_period_or_when_asked_again(
    asked: int, lasts: float
):
    box = a_box(PretendJob(HOUR, ignores_sigterm=True))
    began = box.clock.time
    box.requests += [(began + 30, StopRequested)] * asked

    box.run(policy(grace_seconds=10.0))

    assert [e.ending for e in box.events if isinstance(e, RunExited)] == [Killed(9)]
    assert box.clock.time - began == pytest.approx(lasts, abs=1.01)


@pytest.mark.parametrize("stubborn", [False, True])
def test_what_a_job_leaves_behind_is_stopped_before_its_gpu_is_used_again(stubborn: bool):
    job = PretendJob(10.0, 5 * GIB, leaves_behind_seconds=HOUR, ignores_sigterm=stubborn)
    box = a_box(job, count=2)
    Witness(box, INSTANT)

    loop = box.run(policy(grace_seconds=10.0))

    assert starts(box)[1] == pytest.approx(20 if stubborn else 10, abs=0.1)
    assert any(isinstance(event, RunKilled) for event in box.events) == stubborn
    assert loop.state.totals.ok == 2


def test_a_start_that_the_system_refuses_is_tried_again():
    box = a_box(PretendJob(1.0), count=3, gpus=3)
    began = box.clock.time
    box.start_fails = lambda _: "cannot fork" if box.clock.time < began + 10 else None

    loop = box.run(policy())

    assert loop.state.totals.ok == 3
    assert [command for _, _, command, _ in box.launched] == ["job 1", "job 2", "job 3"]


def test_it_gives_up_waiting_for_a_first_gpu_when_told_to():
    box = a_box(PretendJob(1.0))
    box.visit(0, begins=-5, ends=HOUR, gib=20)
    began = box.clock.time

    loop = box.run(policy(wait_timeout_seconds=60.0))

    assert loop.state.wait_timed_out
    assert any(isinstance(event, WaitTimedOut) for event in box.events)
    assert box.clock.time - began == pytest.approx(60, abs=1.01)
    assert box.launched == []


def test_a_long_batch_keeps_little_in_mind():
    box = a_box(PretendJob(10.0), count=500, gpus=2)
    queued: list[int] = []
    box.observers.append(lambda state, _: queued.append(len(state.queue) + len(state.holds)))

    box.run(policy())

    assert max(queued) <= 64 + 2


@pytest.mark.parametrize(
    "lasts", [2 * HOUR, pytest.param(DAY, marks=pytest.mark.soak)], ids=["two hours", "a day"]
)
def test_virtual_hours_of_500_jobs_on_8_gpus_pass_quickly(lasts: float):
    box = a_box(PretendJob(lasts * 8 / 500 * 0.9, memory_bytes=10 * GIB), count=500, gpus=8)
    box.interval_seconds = 10.0
    began = box.clock.time

    loop = box.run(policy(WINDOW, interval_seconds=10.0))

    assert loop.state.totals.ok == 500
    assert 0.85 * lasts <= box.clock.time - began <= lasts


# --- any history

short = st.floats(0.1, 25.0).map(lambda seconds: round(seconds, 2))
pretend_jobs = st.builds(
    PretendJob,
    seconds=short,
    memory_bytes=st.sampled_from([0, 1, 20]).map(lambda gib: gib * GIB),
    ending=st.sampled_from([Exited(0), Exited(1), Killed(11)]),
    memory_lingers_seconds=st.sampled_from([0.0, 0.0, 0.5, 8.0]),
    leaves_behind_seconds=st.sampled_from([0.0, 0.0, 3.0, 500.0]),
    ignores_sigterm=st.booleans(),
    seen_by_driver=st.sampled_from([True, True, False]),
)


@dataclass(frozen=True)
class Story:
    gpus: int
    jobs: list[PretendJob]
    arrivals: list[float]
    visits: list[tuple[int, float, float, float, int]]
    hangs: list[tuple[float, float]]
    requests: list[tuple[float, type[DrainRequested | StopRequested]]]
    free_for: float


stories = st.builds(
    Story,
    gpus=st.integers(1, 3),
    jobs=st.lists(pretend_jobs, min_size=1, max_size=8),
    arrivals=st.lists(st.floats(0, 60), max_size=8),
    visits=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.floats(-20, 120),
            st.floats(0.1, 40),
            st.sampled_from([0.5, 2.0, 5.0, 15.0]),
            st.sampled_from([0, 5, 50, 100]),
        ),
        max_size=6,
    ),
    hangs=st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 9)), max_size=2),
    requests=st.lists(
        st.tuples(st.floats(0, 150), st.sampled_from([DrainRequested, StopRequested])), max_size=3
    ),
    free_for=st.sampled_from([0.0, 3.0, 10.0]),
)


def box_of(story: Story) -> PretendBox:
    jobs = {f"job {number}": job for number, job in enumerate(story.jobs)}
    arrivals = sorted([*story.arrivals, *[0.0] * len(jobs)])[: len(jobs)]
    box = PretendBox(story.gpus, jobs.__getitem__, list(zip(arrivals, jobs, strict=True)))
    now = box.clock.time
    for gpu, begins, lasts, gib, percent in story.visits:
        box.visit(gpu % story.gpus, begins, begins + lasts, gib, percent)
    box.driver_hangs = [(now + at, now + at + lasts) for at, lasts in story.hangs]
    box.requests = sorted([(now + at, kind) for at, kind in story.requests], key=lambda r: r[0])
    return box


@given(stories)
@settings(max_examples=60)
def test_whatever_happens_nobody_is_harmed_and_nothing_lost(story: Story):
    limits = Thresholds(Share(10.0), 10.0, free_for_seconds=story.free_for)
    box = box_of(story)
    began = box.clock.time
    Witness(box, limits)

    loop = box.run(policy(limits, grace_seconds=2.0), seconds=HOUR)

    assert box.clock.time - began < HOUR, "it never ended"
    assert not box.living
    if loop.state.closing is Closing.NO:
        assert loop.state.totals.finished == len(story.jobs)
    placed = [event.run for event in box.events if isinstance(event, RunPlaced)]
    assert placed == [run for _, run, _, _ in box.launched]
    released = [event.run for event in box.events if isinstance(event, GpuReleased)]
    assert len(released) == len(set(released))
