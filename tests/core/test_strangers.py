"""Whose use is whose, while a run of ours holds the GPU and just after."""

import pytest

from smartsched.core.freeness import (
    UNEXPLAINED_FOR_SECONDS,
    UTILIZATION_PERIOD_SECONDS,
    Busy,
    Free,
    Thresholds,
    verdict,
)
from smartsched.core.model import GpuProcess, GpuSample
from smartsched.core.strangers import (
    SLACK_BYTES,
    Hold,
    Ignored,
    StrangersUse,
    memory_is_back,
    strangers_use,
    unexplained_bytes,
)
from tests.builders import (
    GIB,
    INSTANT,
    MAX_GAP_SECONDS,
    T0,
    a_hold,
    a_process,
    a_run,
    a_sample,
    observe,
    used_by,
    watched,
)

OURS = a_process(77, gib=30, user="me")


def use_of(gpu: GpuSample, hold: Hold | None = None, *, theirs: bool = False) -> StrangersUse:
    holds = () if hold is None else (hold,)
    return strangers_use(gpu, holds, Ignored(), unexplained_is_theirs=theirs)


@pytest.mark.parametrize(
    "process",
    [
        a_process(77, session=77),
        a_process(900, session=77),
        a_process(900, session=900, ancestors=(1, 77)),
        a_process(900, session=900, run_tag="test/1/1"),
    ],
    ids=["the shell itself", "its session", "a descendant", "its tag"],
)
def test_processes_of_the_run_are_ours(process: GpuProcess):
    use = use_of(used_by(process), a_hold(pid=77, tag="test/1/1"))

    assert (use.memory_bytes, use.processes) == (0, ())


@pytest.mark.parametrize(
    "process",
    [
        a_process(900),
        a_process(900, session=None),
        a_process(900, run_tag="other/1/1"),
        a_process(900, run_tag=""),
        a_process(900, ancestors=(1, 78)),
    ],
)
def test_all_other_processes_are_strangers(process: GpuProcess):
    use = use_of(used_by(process), a_hold(pid=77))

    assert (use.memory_bytes, use.processes) == (1 * GIB, (process,))


def test_before_its_launch_only_the_tag_makes_a_process_ours():
    hold = a_hold(pid=None, tag="test/1/1")

    assert hold.owns(a_process(900, run_tag="test/1/1"))
    assert not hold.owns(a_process(900, session=None))


def test_without_a_hold_everything_is_strangers():
    use = use_of(a_sample(used_gib=5, processes=(OURS,)), theirs=True)

    assert use.processes == (OURS,)


def test_ours_and_theirs_on_one_gpu_are_told_apart():
    use = use_of(used_by(OURS, a_process(900, gib=5)), a_hold())

    assert use.memory_bytes == 5 * GIB
    assert use.free_bytes == 95 * GIB


def test_what_a_pid_unknown_to_the_host_holds_is_unexplained():
    ghost = a_process(4242, gib=7, user=None, command=None)

    assert unexplained_bytes(used_by(ghost)) == 7 * GIB
    assert unexplained_bytes(used_by(OURS)) == 0
    assert unexplained_bytes(a_sample(used_gib=3)) == 3 * GIB


def test_processes_that_hold_more_than_is_used_leave_nothing_unexplained():
    assert unexplained_bytes(a_sample(used_gib=1, processes=(a_process(gib=5),))) == 0


def test_without_a_hold_unexplained_memory_is_a_strangers():
    ghost = a_process(4242, gib=70, user=None)

    assert isinstance(verdict(watched([(0, used_by(ghost))]), 0.0), Busy)


def test_unexplained_memory_that_was_there_before_us_stays_a_strangers():
    use = use_of(a_sample(used_gib=8), a_hold(unexplained_before_bytes=5 * GIB))

    assert use.memory_bytes == 5 * GIB


def test_memory_that_stays_unexplained_during_our_run_is_somebodys():
    gpu = a_sample(used_gib=60)

    soon = watched([(0, gpu), (UNEXPLAINED_FOR_SECONDS - 0.1, gpu)], hold=a_hold())
    later = watched([(0, gpu), (UNEXPLAINED_FOR_SECONDS, gpu)], hold=a_hold())

    assert verdict(soon, 0.0) == Free(0)
    assert isinstance(verdict(later, 0.0), Busy)


def test_memory_unexplained_for_a_moment_now_and_then_is_nobodys():
    gpus = [a_sample(used_gib=60) if n % 2 else used_by(OURS) for n in range(20)]

    watch = watched([(n * 0.9, gpu) for n, gpu in enumerate(gpus)], hold=a_hold())

    assert watch.breaches == {}


def test_a_little_unexplained_memory_during_our_run_is_bookkeeping():
    gpu = a_sample(memory_used_bytes=30 * GIB + SLACK_BYTES, processes=(OURS,))

    watch = watched([(float(n), gpu) for n in range(9)], hold=a_hold())

    assert watch.use is not None
    assert watch.use.memory_bytes == 0


def test_memory_of_an_ended_run_on_its_way_back_is_not_a_strangers():
    gpu = a_sample(used_gib=60)

    watch = watched([(float(n), gpu) for n in range(9)], hold=a_hold(cleared_at=T0))

    assert watch.breaches == {}


@pytest.mark.parametrize(
    ("before", "used", "back"),
    [
        (0, 0, True),
        (0, SLACK_BYTES, True),
        (0, SLACK_BYTES + 1, False),
        (3 * GIB, 3 * GIB + SLACK_BYTES, True),
        (3 * GIB, 4 * GIB, False),
        (3 * GIB, 0, True),
    ],
)
def test_memory_is_back_up_to_the_slack_of_the_drivers_bookkeeping(
    before: int, used: int, back: bool
):
    hold = a_hold(unexplained_before_bytes=before, cleared_at=T0)

    assert memory_is_back(a_sample(memory_used_bytes=used), hold) == back


def test_memory_of_a_stranger_who_came_meanwhile_does_not_hold_our_gpu():
    assert memory_is_back(used_by(a_process(900, gib=50)), a_hold(cleared_at=T0))


def test_a_process_of_the_run_still_listed_holds_the_gpu_though_it_holds_no_memory():
    assert not memory_is_back(used_by(a_process(77, gib=0, user=None)), a_hold(pid=77))


def test_our_own_utilisation_is_not_blamed_on_strangers():
    busy = used_by(OURS, utilization_percent=100)

    assert verdict(watched([(0, busy)], hold=a_hold()), 0.0) == Free(0)


def test_a_stranger_who_may_compute_beside_us_is_blamed():
    busy = used_by(OURS, a_process(900, gib=1), utilization_percent=100)

    found = verdict(watched([(0, busy)], hold=a_hold()), 0.0)

    assert isinstance(found, Busy)
    assert found.breaches[0].words(T0) == (
        "utilisation 100% > 10% (ours or theirs: alice: python train.py, 1 GiB)"
    )


def test_a_display_server_beside_us_is_not_blamed_for_our_utilisation():
    screen = a_process(900, gib=0.5, kind="graphics", command="Xorg")

    watch = watched([(0, used_by(OURS, screen, utilization_percent=100))], hold=a_hold())

    assert isinstance(verdict(watch, 0.0), Free)


@pytest.mark.parametrize(
    ("seconds_after", "free"),
    [(0.1, True), (UTILIZATION_PERIOD_SECONDS, True), (UTILIZATION_PERIOD_SECONDS + 0.1, False)],
)
def test_utilisation_just_after_our_run_may_still_be_its(seconds_after: float, free: bool):
    watch = watched([(0, used_by(OURS, utilization_percent=100))], hold=a_hold())

    later = a_sample(utilization_percent=100)
    watch = observe(watch, later, T0 + seconds_after, None, INSTANT, MAX_GAP_SECONDS)

    assert isinstance(verdict(watch, 0.0), Free) == free


def test_a_run_of_ours_leaves_no_trace_in_the_window():
    busy = used_by(OURS, utilization_percent=100)
    limits = Thresholds(free_for_seconds=10.0)
    watch = watched([(float(n), a_sample()) for n in range(10)], limits)
    for second in range(10, 20):
        watch = observe(watch, busy, T0 + second, a_hold(), limits, MAX_GAP_SECONDS)

    watch = observe(watch, a_sample(), T0 + 20, a_hold(cleared_at=T0 + 20), limits, MAX_GAP_SECONDS)

    assert verdict(watch, 10.0) == Free(0)


def test_a_stranger_who_was_there_during_our_run_is_remembered_after_it():
    limits = Thresholds(free_for_seconds=10.0)
    both = used_by(OURS, a_process(900, gib=50))
    watch = watched([(float(n), both) for n in range(20)], limits, a_hold())

    watch = observe(watch, a_sample(), T0 + 20, a_hold(cleared_at=T0 + 20), limits, MAX_GAP_SECONDS)

    assert isinstance(verdict(watch, 10.0), Busy)


def test_a_hold_knows_which_run_it_is_for():
    assert a_hold().run == a_run()
