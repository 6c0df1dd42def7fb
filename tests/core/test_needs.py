"""What a job is taken to need of a GPU."""

from typing import Any

import pytest
from msgspec.structs import replace

from smartsched.core.apply import apply, replay
from smartsched.core.events import Event
from smartsched.core.footprint import RAMP_SECONDS, with_growth
from smartsched.core.needs import UNKNOWN_PERCENT, Need, need_of
from smartsched.core.state import State
from tests.builders import (
    GIB,
    T0,
    a_footprint,
    a_key,
    a_policy,
    a_sample,
    a_snapshot,
    begun,
    exited,
    know,
    listed,
    ours,
    see,
    see_ramp,
    used_by,
)

TRAIN = "python train.py --lr 0.1"
SIBLING = "python train.py --lr 0.2"
OTHER = "python evaluate.py --lr 0.1"


def queue(*commands: str, **policy: Any) -> State:
    return replay(a_policy(**policy), listed(*commands))


def need_in(state: State, seconds: float = 0.0, **job: Any) -> Need:
    """Of the first job that waits."""
    return need_of(state, replace(state.queue[0], **job), T0 + seconds)


def beside(command: str, *events: Event, **policy: Any) -> State:
    """Job 1 trains on GPU 0; the next command waits."""
    every = [*listed(TRAIN, command), *begun(1), *events]
    return replay(a_policy(**({"jobs_per_gpu": "auto"} | policy)), every)


# --- as the user said


def test_where_nobody_says_anything_a_job_has_one_gpu_for_itself():
    assert need_in(queue(TRAIN)) == Need(1, None, None, UNKNOWN_PERCENT, None)


@pytest.mark.parametrize(
    ("wish", "policy", "gpus"),
    [("", {}, 1), ("", {"gpus_per_job": 4}, 4), ("gpus=2", {"gpus_per_job": 4}, 2),
     ("gpus=0", {"gpus_per_job": 4}, 0)],
)  # fmt: skip
def test_how_many_gpus_it_needs_the_command_says_before_the_option(
    wish: str, policy: dict[str, Any], gpus: int
):
    command = f"{TRAIN}  # smartsched: {wish}" if wish else TRAIN

    assert need_in(queue(command, **policy)).gpus == gpus


@pytest.mark.parametrize(
    ("wish", "option", "gib"),
    [("", 5 * GIB, 5), ("mem=7GiB", None, 7), ("mem=7GiB", 5 * GIB, 7), ("mem=7GiB", "auto", 7)],
)
def test_how_much_memory_it_needs_the_command_says_before_the_option(
    wish: str, option: Any, gib: int
):
    command = f"{TRAIN}  # smartsched: {wish}" if wish else TRAIN

    need = need_in(queue(command, jobs_per_gpu="auto", job_memory=option))

    assert (need.memory_bytes, need.asked_bytes) == (gib * GIB, gib * GIB)


def test_what_was_asked_for_counts_though_siblings_had_more():
    state = queue(f"{TRAIN}  # smartsched: mem=2GiB util=10%", jobs_per_gpu="auto")
    know(state, TRAIN, a_footprint(gib=9, percent=80.0))

    need = need_in(state)

    assert (need.memory_bytes, need.percent) == (2 * GIB, 10.0)


def test_how_busy_it_keeps_a_gpu_the_command_says_before_the_option():
    options: dict[str, Any] = {"job_utilization_percent": 30.0}

    assert need_in(queue(TRAIN, **options)).percent == 30.0
    assert need_in(queue(f"{TRAIN}  # smartsched: util=55%", **options)).percent == 55.0


def test_where_so_many_are_to_share_a_gpu_each_has_its_share_whatever_it_uses():
    assert need_in(queue(TRAIN, jobs_per_gpu=3)).shares == 3
    assert need_in(queue(TRAIN, jobs_per_gpu=3, job_memory=GIB)).shares is None
    assert need_in(queue(f"{TRAIN} # smartsched: mem=1GiB", jobs_per_gpu=3)).shares is None
    assert need_in(queue(TRAIN, jobs_per_gpu="auto")).shares is None


# --- as its siblings had


def test_nobody_knows_what_the_first_of_a_shape_needs():
    need = need_in(queue(TRAIN, jobs_per_gpu="auto"))

    assert (need.memory_bytes, need.percent, need.seconds) == (None, UNKNOWN_PERCENT, None)


@pytest.mark.parametrize("policy", [{"jobs_per_gpu": "auto"}, {"job_memory": "auto"}])
def test_it_needs_some_more_than_its_siblings_had_at_most(policy: dict[str, Any]):
    state = queue(SIBLING, **policy)
    know(state, TRAIN, a_footprint(gib=10, percent=30.0, seconds=600.0))

    need = need_in(state)

    assert need.memory_bytes is not None
    assert 10 * GIB < need.memory_bytes < 13 * GIB
    assert (need.percent, need.seconds, need.asked_bytes) == (30.0, 600.0, None)


def test_what_commands_of_another_shape_had_says_nothing():
    state = queue(OTHER, jobs_per_gpu="auto")
    know(state, TRAIN, a_footprint())

    assert need_in(state).memory_bytes is None


def test_where_nothing_is_packed_nothing_is_learned_about_memory():
    state = queue(SIBLING)
    know(state, TRAIN, a_footprint())

    assert need_in(state).memory_bytes is None


def test_a_sibling_that_has_ramped_shows_what_it_needs():
    state = beside(SIBLING)

    last = see_ramp(state, used_by(ours(gib=8), utilization_percent=40))

    need = need_of(state, state.queue[0], last)
    assert need.memory_bytes == with_growth(8 * GIB)
    assert need.percent == pytest.approx(40.0)


def test_a_sibling_shows_nothing_until_its_ramp_is_seen():
    state = beside(SIBLING)
    busy = used_by(ours(gib=8), utilization_percent=40)
    for at in (1, 2, RAMP_SECONDS):
        see(state, a_snapshot(busy, at=T0 + at))

    assert need_of(state, state.queue[0], T0 + 1 + RAMP_SECONDS - 0.1).memory_bytes is None


def test_a_sibling_that_loads_its_data_for_long_shows_nothing():
    state = beside(SIBLING)

    last = see_ramp(state, used_by(ours(gib=8), utilization_percent=0))

    assert need_of(state, state.queue[0], last).memory_bytes is None


def test_a_run_of_another_shape_shows_nothing():
    state = beside(OTHER)

    last = see_ramp(state, used_by(ours(gib=8), utilization_percent=40))

    assert need_of(state, state.queue[0], last).memory_bytes is None


def test_a_sibling_that_goes_on_counts_where_it_holds_more_than_those_that_ended():
    state = beside(SIBLING)
    know(state, TRAIN, a_footprint(gib=2))

    last = see_ramp(state, used_by(ours(gib=30), utilization_percent=40))

    need = need_of(state, state.queue[0], last)
    assert need.memory_bytes is not None
    assert need.memory_bytes > 30 * GIB


def test_a_sibling_that_has_just_ended_without_being_learned_from_says_nothing():
    state = beside(SIBLING)
    last = see_ramp(state, used_by(ours(gib=8), utilization_percent=40))

    apply(state, exited(at=last))

    assert need_of(state, state.queue[0], last).memory_bytes is None


def test_nothing_is_learned_where_the_driver_attributes_nothing():
    state = beside(SIBLING)

    last = see_ramp(state, a_sample(used_gib=20, utilization_percent=90))

    assert state.gpus[a_key()].is_unattributed
    assert need_of(state, state.queue[0], last).memory_bytes is None


# --- as it turned out


def test_a_job_that_ran_out_of_memory_needs_what_it_was_said_to_need_then():
    need = need_in(queue(TRAIN, jobs_per_gpu="auto"), needs_bytes=20 * GIB)

    assert (need.memory_bytes, need.asked_bytes) == (20 * GIB, None)


def test_a_job_that_ran_out_of_memory_needs_more_than_its_siblings_had():
    state = queue(TRAIN, jobs_per_gpu="auto")
    know(state, TRAIN, a_footprint(gib=10))

    assert need_in(state, needs_bytes=20 * GIB).memory_bytes == 20 * GIB


def test_a_job_that_ran_out_of_memory_with_what_it_asked_for_needs_more_than_that():
    state = queue(f"{TRAIN} # smartsched: mem=4GiB", jobs_per_gpu="auto")

    need = need_in(state, needs_bytes=20 * GIB)

    assert (need.memory_bytes, need.asked_bytes) == (20 * GIB, 4 * GIB)


def test_a_job_that_ran_out_of_its_share_has_no_share_any_more():
    assert need_in(queue(TRAIN, jobs_per_gpu=3), needs_bytes=20 * GIB).shares is None


def test_a_job_that_is_to_be_alone_has_all_of_its_gpu():
    state = queue(f"{TRAIN} # smartsched: mem=4GiB", jobs_per_gpu="auto")
    know(state, TRAIN, a_footprint(percent=20.0))

    need = need_in(state, alone=True)

    assert (need.memory_bytes, need.asked_bytes, need.shares) == (None, 4 * GIB, None)
    assert need.percent == UNKNOWN_PERCENT
