"""What may still be given away: room on each GPU, and the caps on all of them."""

from typing import Any

import pytest
from msgspec.structs import replace

from smartsched.core.apply import apply, replay
from smartsched.core.capacity import (
    ASK_AGAIN_SECONDS,
    MARGIN,
    Budget,
    Offer,
    budget_of,
    caps_change_at,
    offers,
    quiet_for,
    spoken_for,
)
from smartsched.core.events import Event, RunPlaced
from smartsched.core.footprint import with_growth
from smartsched.core.freeness import Share, Thresholds
from smartsched.core.hours import parse_cap
from smartsched.core.model import (
    ClaimGranted,
    ClaimRefused,
    GpuReading,
    HostName,
    PlacedGpu,
)
from smartsched.core.needs import Need
from smartsched.core.placement import NO_GPU
from smartsched.core.preference import parse_preference
from smartsched.core.sight import hear
from smartsched.core.standing import REMEMBERED_SECONDS
from smartsched.core.state import State
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
    see,
    see_ramp,
    unreadable,
    used_by,
)

AUTO: dict[str, Any] = {
    "jobs_per_gpu": "auto",
    "thresholds": Thresholds(Share(50.0), 100.0, free_for_seconds=0.0),
}
TRAIN = "python train.py --lr {}"
USABLE = 100 * GIB
HOUR = 3600.0

HERE = HostName("")  # the only host


def a_box(*events: Event, gpus: tuple[GpuReading, ...] = (), jobs: int = 4, **policy: Any) -> State:
    """A list of siblings, some of which run, and what is seen then."""
    commands = [TRAIN.format(n) for n in range(jobs)]
    state = replay(a_policy(**(AUTO | policy)), [*listed(*commands), *events])
    if gpus:
        see(state, a_snapshot(*gpus, at=T0 + 1))
    return state


def offered(state: State, at: float = T0 + 1) -> list[str]:
    """In the order in which they are given away."""
    return [offer.visible for offer in offers(state, at)]


def the_offer(state: State, at: float = T0 + 1) -> Offer:
    (offer,) = offers(state, at)
    return offer


def spoken(state: State, job: int = 1, at: float = T0 + 1) -> int:
    hold = state.holds[a_key()][a_run(job)]
    return spoken_for(state, hold, a_key(), USABLE, at)


# --- what of a GPU is spoken for


@pytest.mark.parametrize(("used", "expected"), [(3, 10), (10, 10), (14, 14)])
def test_of_what_a_run_uses_and_was_promised_the_more_counts(used: int, expected: int):
    state = a_box(*begun(1, a_part(gib=10)), gpus=(used_by(ours(gib=used)),))

    assert spoken(state) == expected * GIB


def test_what_was_promised_counts_from_the_start():
    assert spoken(a_box(*begun(1, a_part(gib=10)))) == 10 * GIB


def test_the_first_of_a_shape_has_all_of_its_gpu_until_its_ramp_is_seen():
    busy = used_by(ours(gib=8), utilization_percent=40)
    state = a_box(*begun(1))
    last = see_ramp(state, busy)

    assert spoken(state, at=last - 2) == USABLE
    assert spoken(state, at=last) == with_growth(8 * GIB)


def test_a_run_that_was_said_to_need_its_gpu_for_itself_keeps_it():
    state = a_box(*begun(1))
    run = state.runs[a_run(1)]
    state.runs[a_run(1)] = replace(run, job=replace(run.job, alone=True))

    last = see_ramp(state, used_by(ours(gib=8), utilization_percent=40))

    assert spoken(state, at=last) == USABLE


def test_where_nothing_is_learned_a_run_keeps_its_gpu():
    state = a_box(*begun(1), jobs_per_gpu=2, job_memory=4 * GIB)

    last = see_ramp(state, used_by(ours(gib=8), utilization_percent=40))

    assert spoken(state, at=last) == USABLE


def test_what_is_left_is_what_neither_strangers_nor_ours_nor_the_margin_have():
    state = a_box(
        *begun(1, a_part(gib=10)),
        *begun(2, a_part(gib=20)),
        gpus=(used_by(a_process(gib=7), ours(1, 4), ours(2, 25)),),
    )

    offer = the_offer(state)

    assert (offer.strangers_bytes, offer.runs) == (7 * GIB, 2)
    assert offer.left_bytes == USABLE - int(MARGIN * USABLE) - (7 + 10 + 25) * GIB


def test_of_its_time_is_left_what_runs_are_not_seen_or_expected_to_need():
    state = a_box(*begun(1, a_part(gib=10, percent=30.0)), *begun(2, a_part(gib=10, percent=20.0)))
    for at in (1, 2):
        see(state, a_snapshot(used_by(ours(1, 1, 45), ours(2, 1, 0)), at=T0 + at))

    assert the_offer(state, T0 + 2).percent == 45.0 + 20.0


# --- which GPUs are offered


def test_gpus_without_a_run_of_ours_are_given_away_first():
    gpus = (used_by(ours(gib=1)), a_sample(1), a_sample(2))

    assert offered(a_box(*begun(1, a_part(gib=10)), gpus=gpus)) == ["1", "2", "0"]


def test_of_those_with_as_many_runs_the_least_busy_is_given_away_first():
    state = a_box(
        *begun(1, a_part(0, gib=5, percent=60.0)),
        *begun(2, a_part(1, gib=5, percent=20.0)),
        gpus=(used_by(ours(1)), used_by(ours(2), index=1)),
    )

    assert offered(state) == ["1", "0"]


@pytest.mark.parametrize(
    ("prefer", "order"),
    [("first", ["0", "1", "2"]), ("last", ["2", "1", "0"]), ("1", ["1", "0", "2"])],
)
def test_free_gpus_go_by_the_users_preference(prefer: str, order: list[str]):
    state = a_box(gpus=(a_sample(0), a_sample(1), a_sample(2)), preference=parse_preference(prefer))

    assert offered(state) == order


def test_where_runs_give_way_a_gpu_is_given_away_first_where_nobody_came_for_longest():
    gpus = [a_sample(0), a_sample(1), a_sample(2)]
    state = a_box(on_contention="requeue", thresholds=Thresholds(free_for_seconds=0.0))
    see(state, a_snapshot(used_by(a_process(gib=50)), *gpus[1:], at=T0))
    see(state, a_snapshot(gpus[0], used_by(a_process(gib=50), index=1), gpus[2], at=T0 + 60))
    see(state, a_snapshot(*gpus, at=T0 + 90))

    assert offered(state, T0 + 90) == ["2", "0", "1"]
    assert quiet_for(state, a_key(0), T0 + 90) == 90
    assert quiet_for(state, a_key(2), T0 + 90) == float("inf")


@pytest.mark.parametrize(
    "gpu", [unreadable(), used_by(a_process(gib=80)), a_sample(ailment="reset required")]
)
def test_a_gpu_that_is_not_free_is_not_offered(gpu: GpuReading):
    assert offered(a_box(gpus=(gpu,))) == []


def test_a_gpu_with_as_many_runs_as_may_be_is_not_offered():
    runs = [event for job in (1, 2) for event in begun(job, a_part(gib=5))]
    state = a_box(*runs, gpus=(used_by(ours(1), ours(2)),))

    assert offered(state) == ["0"]
    assert offered(a_box(*runs, gpus=(used_by(ours(1), ours(2)),), jobs_per_gpu=2)) == []


def test_a_gpu_whose_run_has_ended_is_not_offered_until_its_memory_is_back():
    state = a_box(*begun(1, a_part(gib=5)), exited(1), gpus=(a_sample(used_gib=5),))

    assert offered(state) == []
    assert [o.visible for o in offers(state, T0 + 1, {(a_key(), a_run(1))})] == ["0"]


def test_beside_a_run_nothing_is_offered_where_the_driver_attributes_nothing():
    state = a_box(*begun(1, a_part(gib=5)))
    last = see_ramp(state, a_sample(used_gib=20, utilization_percent=90))

    assert offered(state, last) == []


def test_beside_a_run_nothing_is_offered_once_strangers_came():
    state = a_box(*begun(1, a_part(gib=5)), gpus=(used_by(ours(), a_process(gib=60)),))

    assert offered(state) == []


def test_who_ignores_strangers_offers_what_is_left_beside_them():
    gpus = (used_by(ours(), a_process(gib=60)),)
    state = a_box(*begun(1, a_part(gib=5)), gpus=gpus, on_contention="ignore")

    assert offered(state) == ["0"]
    assert the_offer(state).strangers_bytes == 60 * GIB


def test_who_ignores_strangers_does_not_come_to_their_gpus():
    state = a_box(gpus=(used_by(a_process(gib=60)),), on_contention="ignore")

    assert offered(state) == []


# --- other dispatchers


def refused(state: State, *indices: int, at: float = T0) -> None:
    why = tuple((a_key(index), "claimed by bob") for index in indices)
    hear(state, ClaimRefused(at, tuple(a_key(index) for index in indices), why))


def test_a_gpu_that_another_dispatcher_claimed_is_asked_for_again_after_a_while():
    state = a_box(gpus=(a_sample(0), a_sample(1)))
    refused(state, 0, at=T0 + 1)

    assert offered(state, T0 + 1 + ASK_AGAIN_SECONDS - 0.1) == ["1"]
    assert offered(state, T0 + 1 + ASK_AGAIN_SECONDS) == ["0", "1"]


def test_a_gpu_that_was_granted_at_last_is_offered():
    state = a_box(gpus=(a_sample(0),))
    refused(state, 0, at=T0 + 1)

    hear(state, ClaimGranted(T0 + 1, (a_key(0),)))

    assert offered(state) == ["0"]


def test_a_gpu_beside_a_run_of_ours_that_another_dispatcher_claimed_is_not_offered():
    state = a_box(*begun(1, a_part(gib=5)), gpus=(used_by(ours()),))
    refused(state, 0, at=T0 + 1)

    assert offered(state) == []


# --- taking from an offer


def a_need(gib: float | None = None, **fields: Any) -> Need:
    memory = None if gib is None else int(gib * GIB)
    return replace(Need(1, memory, None, 40.0, None), **fields)


def test_a_part_is_written_down_as_it_was_promised():
    offer = the_offer(a_box(gpus=(used_by(a_process(gib=7)),)))

    given = offer.take(a_need(gib=20))

    assert given == PlacedGpu(a_key(), "0", "0", 0, 20 * GIB, 40.0, 7 * GIB)
    assert (offer.runs, offer.percent) == (1, 40.0)


def test_who_gets_all_of_a_gpu_leaves_nothing():
    offer = the_offer(a_box(gpus=(a_sample(),)))

    assert offer.take(a_need()).reserved_bytes is None
    assert offer.left_bytes < 0


@pytest.mark.parametrize("count", [2, 3, 7])
def test_so_many_even_shares_fit_and_not_one_more(count: int):
    offer = the_offer(a_box(gpus=(used_by(a_process(gib=9)),), jobs_per_gpu=count))
    need = a_need(shares=count)
    part = offer.part_of(need)
    assert part is not None

    for _ in range(count):
        offer.take(need)

    assert 0 <= offer.left_bytes < part


# --- the user's caps


def budget(state: State, at: float = T0 + 1) -> Budget:
    return budget_of(state, offers(state, at), at)


def at_hour(hour: float) -> float:
    """So late it is by the clock on the wall."""
    return T0 - T0 % 86400 + hour * HOUR


def capped(**caps: str) -> State:
    """One run, two GPUs that are free."""
    gpus = (used_by(ours()), a_sample(1), a_sample(2))
    named: dict[str, Any] = {name: parse_cap(text) for name, text in caps.items()}
    return a_box(*begun(1, a_part(gib=5)), gpus=gpus, **named)


def test_without_caps_there_is_no_limit():
    found = budget(capped())

    assert (found.runs, found.gpus) == (float("inf"), float("inf"))


@pytest.mark.parametrize(("cap", "left"), [("4", 3), ("1", 0)])
def test_a_cap_on_jobs_counts_those_that_run(cap: str, left: int):
    assert budget(capped(most_jobs=cap)).runs == left


@pytest.mark.parametrize(("cap", "left"), [("2", 1), ("1", 0), ("0", 0)])
def test_a_cap_on_gpus_counts_those_where_runs_of_ours_are(cap: str, left: int):
    assert budget(capped(most_gpus=cap)).gpus == left


@pytest.mark.parametrize(("keep", "left"), [("1", 1), ("2", 0), ("5", 0)])
def test_the_last_free_gpus_are_left(keep: str, left: int):
    assert budget(capped(leave_free=keep)).gpus == left


def claimed_by_others(state: State, *indices: int, at: float) -> None:
    """It turned out while a claim of ours was granted."""
    others = tuple((a_key(index), "claimed by bob") for index in indices)
    hear(state, ClaimGranted(at, (a_key(1),), others))


def test_what_other_dispatchers_have_claimed_is_left_to_nobody():
    state = capped(leave_free="1")
    claimed_by_others(state, 2, at=T0 + 1)

    assert budget(state, T0 + 1).gpus == 0
    assert budget(state, T0 + 1 + ASK_AGAIN_SECONDS).gpus == 0
    assert budget(state, T0 + 1 + REMEMBERED_SECONDS).gpus == 1


def test_what_others_have_claimed_limits_nobody_who_need_not_leave_any_free():
    state = capped(leave_free="0")
    claimed_by_others(state, 2, at=T0 + 1)

    assert budget(state, T0 + 1).gpus == float("inf")


def test_what_others_claim_no_longer_is_left_to_everybody():
    state = capped(leave_free="1")
    claimed_by_others(state, 2, at=T0 + 1)
    claimed_by_others(state, at=T0 + 2)

    assert budget(state, T0 + 2).gpus == 1


def test_to_leave_none_free_is_no_limit():
    assert budget(capped(leave_free="0")).gpus == float("inf")


def test_the_tighter_of_two_limits_holds_and_is_named():
    both = budget(capped(most_gpus="3", leave_free="1"))
    tight = budget(capped(most_gpus="1", leave_free="1"))

    assert (both.gpus, both.why) == (1, "--leave-free 1")
    assert (tight.gpus, tight.why) == (0, "--max-gpus 1")


def test_jobs_without_a_gpu_have_the_cores_unless_jobs_are_capped():
    start: list[Event] = [RunPlaced(T0, a_run(1), NO_GPU), launched(1)]

    assert budget(a_box(*start, most_gpuless=3)).gpuless == {HERE: 2}
    capped_by_user = budget(a_box(*start, most_gpuless=3, most_jobs=parse_cap("9")))
    assert capped_by_user.gpuless == {HERE: float("inf")}


def test_jobs_without_a_gpu_take_none_from_the_cap_on_gpus():
    start: list[Event] = [RunPlaced(T0, a_run(1), NO_GPU), launched(1)]

    assert budget(a_box(*start, most_gpus=parse_cap("2"))).gpus == 2


@pytest.mark.parametrize(("hour", "left"), [(8.99, 5), (9, 1), (17.99, 1), (18, 5)])
def test_a_cap_by_the_hour_holds_in_its_hours(hour: float, left: int):
    state = capped(most_gpus="2@09-18,6@18-09")

    assert budget_of(state, (), at_hour(hour)).gpus == left


def test_hours_are_those_of_the_clock_on_the_wall():
    state = capped(most_gpus="2@09-18,6@18-09")
    state.local_offset = 2 * HOUR

    assert budget_of(state, (), at_hour(7.5)).gpus == 1


def test_when_caps_change_is_known():
    state = capped(most_gpus="2@09-18,6@18-09", most_jobs="1@12-13", leave_free="1@0-6")

    turns = [caps_change_at(state, at_hour(hour)) for hour in (1, 6, 9, 12.5, 17, 18)]

    assert turns == [at_hour(hour) for hour in (6, 9, 12, 13, 18, 24)]


def test_caps_that_never_change_wake_nobody():
    assert caps_change_at(capped(most_gpus="2", leave_free="1"), T0) == float("inf")


def test_a_run_that_ended_still_has_its_gpu_until_the_memory_is_back():
    state = capped(most_gpus="1")
    apply(state, exited(1))

    assert budget(state).gpus == 0


def test_a_gpu_that_is_given_back_in_this_very_moment_is_ours_no_more():
    state = capped(most_gpus="1")
    apply(state, exited(1))
    see(state, a_snapshot(a_sample(0), a_sample(1), at=T0 + 2))
    given_back = offers(state, T0 + 2, {(a_key(0), a_run(1))})

    assert budget_of(state, given_back, T0 + 2).gpus == 1
