"""What runs of ours use of the GPUs they were given, by what is seen there."""

from typing import Any

from msgspec.structs import replace

from smartsched.core.apply import apply, replay
from smartsched.core.events import Event, RunMeasured, RunPlaced
from smartsched.core.footprint import Meter
from smartsched.core.freeness import UNEXPLAINED_FOR_SECONDS
from smartsched.core.metering import measured_event
from smartsched.core.model import GpuProcess, GpuReading, Placement
from smartsched.core.placement import NO_GPU
from smartsched.core.shapes import shape_of
from smartsched.core.state import State
from tests.builders import (
    GIB,
    HOST,
    MIB,
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
    finished,
    launched,
    listed,
    ours,
    see,
    unreadable,
    used_by,
)

TRAIN = "python train.py --lr 0.1"


def running(*more: Event, **policy: Any) -> State:
    """Job 1 has GPU 0."""
    return replay(a_policy(**policy), [*listed(TRAIN, TRAIN), *begun(1), *more])


def seen_to_use(*processes: GpuProcess, state: State | None = None, **fields: Any) -> Meter:
    """The first job, after one look at its GPU."""
    state = running() if state is None else state
    see(state, a_snapshot(used_by(*processes, **fields), at=T0 + 1))
    return state.meters[a_run(1)]


def look(state: State, *readings: GpuReading, at: float) -> None:
    see(state, a_snapshot(*readings, at=T0 + at))


# --- memory


def test_a_run_has_what_its_processes_have():
    child = a_process(50, 3, ancestors=(ours().pid,))

    assert seen_to_use(ours(gib=2), child).used_bytes == {a_key(): 5 * GIB}


def test_what_a_stranger_has_is_not_the_runs():
    assert seen_to_use(ours(gib=2), a_process(gib=7)).peak_bytes == 2 * GIB


def test_what_no_process_accounts_for_is_the_runs_if_it_is_alone():
    meter = seen_to_use(ours(gib=2), memory_used_bytes=4 * GIB, memory_free_bytes=96 * GIB)

    assert meter.peak_bytes == 4 * GIB


def test_each_of_two_runs_has_what_its_own_processes_have():
    state = running(*begun(2))

    look(state, used_by(ours(1, 2), ours(2, 5), memory_free_bytes=90 * GIB), at=1)

    assert [state.meters[a_run(job)].peak_bytes for job in (1, 2)] == [2 * GIB, 5 * GIB]


def test_a_run_that_began_beside_nobody_is_no_longer_alone_once_another_comes():
    state = running()
    assert seen_to_use(ours(), state=state).was_alone

    for event in begun(2):
        apply(state, event)
    look(state, used_by(ours(1), ours(2)), at=2)

    assert not state.meters[a_run(1)].was_alone
    assert not state.meters[a_run(2)].was_alone


def test_what_was_used_before_by_nobody_visible_is_not_the_runs():
    part = replace(a_part(), unexplained_bytes=400 * MIB)
    state = replay(a_policy(), [*listed(TRAIN), *begun(1, part)])

    look(state, a_sample(used_gib=400 * MIB / GIB), at=1)

    assert state.meters[a_run(1)].samples == 0


def test_a_gpu_that_cannot_be_read_says_nothing():
    state = running()

    look(state, unreadable(), at=1)

    assert state.meters == {}


def test_a_run_that_has_ended_is_measured_no_more():
    state = running(exited(at=T0 + 1))

    look(state, used_by(ours()), at=2)

    assert state.meters == {}


# --- time


def test_a_run_computes_as_much_as_the_driver_says_of_its_processes():
    state = running(*begun(2))
    for at in (1, 2):
        look(state, used_by(ours(1, 1, 30), ours(2, 1, 60), utilization_percent=90), at=at)

    percents = [state.meters[a_run(job)].utilization_percent for job in (1, 2)]
    assert percents == [30.0, 60.0]


def test_alone_a_run_computes_as_much_as_the_gpu():
    state = running()
    for at in (1, 2):
        look(state, used_by(ours(), utilization_percent=70), at=at)

    assert state.meters[a_run(1)].utilization_percent == 70.0


def test_beside_somebody_nobody_can_tell_how_much_a_run_computes():
    state = running()
    for at in (1, 2):
        look(state, used_by(ours(), a_process(), utilization_percent=70), at=at)

    meter = state.meters[a_run(1)]
    assert meter.utilization_percent is None
    assert meter.active_at == T0 + 1


# --- where the driver attributes nothing


def in_a_container(state: State) -> Meter:
    """Memory is used that no process accounts for which is known here."""
    for at in (1.0, 1.0 + UNEXPLAINED_FOR_SECONDS, 3.0 + UNEXPLAINED_FOR_SECONDS):
        look(state, a_sample(used_gib=20, utilization_percent=90), at=at)
    return state.meters[a_run(1)]


def test_where_the_driver_attributes_nothing_a_run_teaches_nothing():
    state = running()

    meter = in_a_container(state)

    assert meter.is_blind
    assert not meter.teaches


def test_what_ends_where_the_driver_attributes_nothing_is_not_learned():
    state = running()
    in_a_container(state)
    apply(state, exited(at=T0 + 60))

    assert measured_event(state, state.ended[a_run(1)], T0 + 60) is None


# --- what a run teaches


def after_a_run(*looks: GpuReading) -> State:
    state = running()
    for at, reading in enumerate(looks, start=1):
        look(state, reading, at=at)
    apply(state, exited(at=T0 + 100))
    return state


def test_a_run_that_ended_well_teaches_what_it_used():
    busy = used_by(ours(gib=6), utilization_percent=50)
    state = after_a_run(busy, busy)

    measured = measured_event(state, state.ended[a_run(1)], T0 + 100)

    shape = shape_of(TRAIN)
    assert measured == RunMeasured(T0 + 100, a_run(1), shape, 6 * GIB, 50.0, 100.0)


def test_a_run_teaches_once():
    busy = used_by(ours(gib=6))
    state = after_a_run(busy, busy)
    measured = measured_event(state, state.ended[a_run(1)], T0 + 100)
    assert measured is not None

    apply(state, measured)

    assert measured_event(state, state.ended[a_run(1)], T0 + 100) is None


def test_a_run_that_was_hardly_seen_teaches_nothing():
    state = after_a_run(used_by(ours(gib=6)))

    assert measured_event(state, state.ended[a_run(1)], T0 + 100) is None


def test_a_run_without_a_gpu_teaches_nothing():
    state = replay(a_policy(), listed("make  # smartsched: gpus=0"))
    for event in (RunPlaced(T0, a_run(), NO_GPU), launched(), exited(at=T0 + 9)):
        apply(state, event)
    look(state, a_sample(), at=10)

    assert measured_event(state, state.ended[a_run(1)], T0 + 10) is None


def test_what_was_measured_is_kept_no_longer_than_its_run():
    busy = used_by(ours(gib=6))
    state = after_a_run(busy, busy)

    apply(state, finished(outcome="failed"))

    assert state.meters == {}


# --- where they were not to be


def test_a_run_that_uses_another_gpu_is_noticed_with_the_time():
    state = running()
    look(state, a_sample(0), used_by(ours(), index=1), at=1)
    look(state, a_sample(0), used_by(ours(), index=1), at=2)

    assert state.meters[a_run(1)].elsewhere == {a_key(1): T0 + 1}


def test_a_run_of_two_gpus_may_use_both():
    events = [*listed(TRAIN), *begun(1, a_part(0), a_part(1))]
    state = replay(a_policy(), events)

    look(state, used_by(ours()), used_by(ours(), index=1), at=1)

    assert state.meters[a_run(1)].elsewhere == {}


def test_a_stranger_on_another_gpu_is_no_run_of_ours():
    state = running()

    look(state, used_by(ours()), used_by(a_process(), index=1), at=1)

    assert state.meters[a_run(1)].elsewhere == {}


def test_a_run_that_was_given_no_gpu_is_noticed_on_any():
    state = replay(a_policy(), listed("make  # smartsched: gpus=0"))
    for event in (RunPlaced(T0, a_run(), NO_GPU), launched(pid=ours().pid)):
        apply(state, event)

    look(state, used_by(ours()), at=1)

    assert state.meters[a_run(1)].elsewhere == {a_key(): T0 + 1}


def test_a_process_of_another_host_that_has_the_same_pid_is_no_run_of_ours():
    state = running()
    there = replace(used_by(ours()), key=a_key(1, host="another"))

    see(state, a_snapshot(there, at=T0 + 1, host="another"))

    assert not any(meter.elsewhere for meter in state.meters.values())


def test_a_run_without_a_gpu_is_looked_for_on_its_own_host_alone():
    state = replay(a_policy(), listed("make  # smartsched: gpus=0"))
    for event in (RunPlaced(T0, a_run(), Placement((), HOST)), launched(pid=ours().pid)):
        apply(state, event)
    there = replace(used_by(ours()), key=a_key(1, host="another"))

    see(state, a_snapshot(there, at=T0 + 1, host="another"))
    assert not any(meter.elsewhere for meter in state.meters.values())
    see(state, a_snapshot(used_by(ours()), at=T0 + 1))
    assert state.meters[a_run(1)].elsewhere == {a_key(): T0 + 1}
