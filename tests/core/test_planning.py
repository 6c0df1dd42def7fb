"""What goes where, and what has to wait: the queue against what may be given away."""

from typing import Any

import pytest

from smartsched.core.apply import apply, replay
from smartsched.core.capacity import MOST_PERCENT
from smartsched.core.decide import decide
from smartsched.core.events import Event, GpuReleased, JobAccepted, RunPlaced
from smartsched.core.footprint import RAMP_SECONDS
from smartsched.core.hours import parse_cap
from smartsched.core.model import GpuReading, JobId, JobSpec, Wishes
from smartsched.core.planning import Plan, plan
from smartsched.core.preference import parse_preference
from smartsched.core.state import State
from tests.builders import (
    GIB,
    T0,
    a_footprint,
    a_key,
    a_part,
    a_policy,
    a_process,
    a_run,
    a_sample,
    a_snapshot,
    a_state,
    begun,
    exited,
    know,
    launched,
    listed,
    ours,
    placed,
    requeued,
    see,
    see_ramp,
    unreadable,
    used_by,
)

AUTO: dict[str, Any] = {"jobs_per_gpu": "auto"}
POLITE: dict[str, Any] = {"on_contention": "requeue"}
NOW = T0 + 1


def sweep(count: int, wishes: str = "") -> list[str]:
    """Commands of one shape."""
    behind = f"  # smartsched: {wishes}" if wishes else ""
    return [f"python train.py --lr 0.{n}{behind}" for n in range(1, count + 1)]


def gang(count: int, wishes: str = "") -> str:
    return f"torchrun big.py  # smartsched: gpus={count} {wishes}"


def free(count: int) -> list[GpuReading]:
    return [a_sample(index) for index in range(count)]


def a_box(
    commands: list[str], gpus: list[GpuReading], *events: Event, at: float = NOW, **policy: Any
) -> State:
    state = replay(a_policy(**policy), [*listed(*commands), *events])
    see(state, a_snapshot(*gpus, at=at))
    return state


def starts(planned: Plan) -> list[tuple[int, str]]:
    """Which job goes where."""
    return [(job.id, placement.labels) for job, placement in planned.starts]


def planned(state: State, at: float = NOW) -> list[tuple[int, str]]:
    return starts(plan(state, at))


def why_wait(state: State, at: float = NOW) -> str:
    waiting = plan(state, at).waiting
    assert waiting is not None
    return waiting.why


def start_all(state: State, at: float = NOW) -> list[tuple[int, str]]:
    """Start whatever is planned."""
    made = plan(state, at)
    for job, placement in made.starts:
        run = a_run(job.id, job.attempts + 1)
        apply(state, RunPlaced(at, run, placement))
        apply(state, launched(job.id, run.attempt, at, pid=ours(job.id).pid))
    return starts(made)


# --- packing


def test_the_first_of_a_shape_has_a_gpu_for_itself():
    state = a_box(sweep(6), free(2), **AUTO)

    assert start_all(state) == [(1, "0"), (2, "1")]
    assert planned(state) == []
    assert "not known yet" in why_wait(state)


def test_until_its_ramp_is_seen_nothing_is_started_beside_the_first():
    state = a_box(sweep(6), free(1), **AUTO)
    start_all(state)
    busy = used_by(ours(gib=8), utilization_percent=30)
    for at in (1, 2, RAMP_SECONDS):
        see(state, a_snapshot(busy, at=NOW + at))

    assert planned(state, NOW + 1 + RAMP_SECONDS - 0.1) == []


def test_when_its_ramp_is_over_is_no_sample_s_to_say():
    """They may be due seldom."""
    state = a_box(sweep(6), free(1), **AUTO)
    start_all(state)
    busy = used_by(ours(gib=8), utilization_percent=30)
    for at in (1, 2):
        see(state, a_snapshot(busy, at=NOW + at))

    assert decide(state, NOW + 2).wake_at <= NOW + 1 + RAMP_SECONDS


def test_once_its_ramp_is_seen_as_many_as_fit_are_started_beside_it():
    state = a_box(sweep(6), free(1), **AUTO)
    start_all(state)

    last = see_ramp(state, used_by(ours(gib=8), utilization_percent=30))

    assert planned(state, last) == [(2, "0"), (3, "0")]


@pytest.mark.parametrize(
    ("gib", "percent", "most"), [(8, 30.0, 3), (40, 30.0, 2), (60, 30.0, 1), (8, 90.0, 1)]
)
def test_a_gpu_takes_as_many_as_its_memory_and_time_allow(gib: float, percent: float, most: int):
    state = a_box(sweep(6), free(1), **AUTO)
    know(state, sweep(1)[0], a_footprint(gib=gib, percent=percent))

    assert planned(state) == [(job, "0") for job in range(1, most + 1)]


def test_runs_together_do_not_need_more_time_than_there_is():
    state = a_box(sweep(6), free(1), **AUTO)
    know(state, sweep(1)[0], a_footprint(gib=1, percent=MOST_PERCENT / 2))

    assert len(planned(state)) == 2
    know(state, sweep(1)[0], a_footprint(gib=1, percent=MOST_PERCENT / 2 + 1))
    assert len(planned(state)) == 1


@pytest.mark.parametrize("policy", [AUTO, {"jobs_per_gpu": 3}], ids=["learned", "by number"])
def test_gpus_that_nobody_uses_are_filled_before_any_is_shared(policy: dict[str, Any]):
    state = a_box(sweep(5), free(3), **policy)
    know(state, sweep(1)[0], a_footprint(gib=8, percent=30.0))

    assert planned(state) == [(1, "0"), (2, "1"), (3, "2"), (4, "0"), (5, "1")]


def test_what_strangers_use_below_the_thresholds_is_left_to_them():
    footprint = a_footprint(gib=42, percent=30.0)
    state = a_box(sweep(3), [used_by(a_process(gib=9))], **AUTO)
    empty = a_box(sweep(3), free(1), **AUTO)
    for box in (state, empty):
        know(box, sweep(1)[0], footprint)

    assert (len(planned(state)), len(planned(empty))) == (1, 2)


def test_a_shape_that_is_not_known_waits_for_a_gpu_of_its_own_and_known_ones_go_on():
    state = a_box(["python new.py", *sweep(2)], free(1), *begun(2, a_part(gib=9)), **AUTO)
    know(state, sweep(1)[0], a_footprint(gib=8, percent=30.0))
    see(state, a_snapshot(used_by(ours(2, 8)), at=NOW))

    made = plan(state, NOW)

    assert all(job.id != 1 for job, _ in made.starts)
    assert made.waiting is not None


def test_so_many_as_the_user_said_share_a_gpu_at_once():
    state = a_box(sweep(5), free(1), jobs_per_gpu=3)

    assert planned(state) == [(1, "0"), (2, "0"), (3, "0")]


def test_so_much_memory_as_the_user_said_is_kept_for_each():
    state = a_box(sweep(5), free(1), jobs_per_gpu=5, job_memory=30 * GIB)

    assert planned(state) == [(1, "0"), (2, "0"), (3, "0")]


def test_without_a_wish_to_pack_each_has_its_gpu_whatever_is_known():
    state = a_box(sweep(5), free(2))
    know(state, sweep(1)[0], a_footprint(gib=1, percent=1.0))

    assert planned(state) == [(1, "0"), (2, "1")]


def test_where_the_driver_attributes_nothing_nothing_is_packed():
    state = a_box(sweep(3), free(1), **AUTO)
    know(state, sweep(1)[0], a_footprint(gib=8, percent=30.0))
    apply(state, placed(1))
    apply(state, launched(1))

    last = see_ramp(state, a_sample(used_gib=8, utilization_percent=30))

    assert planned(state, last) == []


# --- several GPUs

LONG, SHORT = "python long.py", "python short.py"


def beside(running: dict[int, str], gpus: int, queue: list[str], **policy: Any) -> State:
    """Of so many GPUs these run something since T0. What runs takes 1000 s, or 100 s if it is
    short; that is known."""
    events = [
        event
        for job, gpu in enumerate(running, start=1)
        for event in begun(job, a_part(gpu), at=T0)
    ]
    jobs = {gpu: job for job, gpu in enumerate(running, start=1)}
    readings: list[GpuReading] = [
        used_by(ours(jobs[index]), index=index) if index in jobs else a_sample(index)
        for index in range(gpus)
    ]
    state = a_box([*running.values(), *queue], readings, *events, **policy)
    know(state, LONG, a_footprint(seconds=1000.0))
    know(state, SHORT, a_footprint(seconds=100.0))
    return state


def test_a_job_of_several_gpus_gets_them_together():
    assert planned(beside({}, 3, [gang(2), SHORT, SHORT])) == [(1, "0,1"), (2, "2")]


def test_a_gpu_that_is_free_is_held_for_the_job_of_several_that_waits():
    state = beside({0: SHORT}, 2, [gang(2), LONG, "python unknown.py"])

    assert planned(state) == []
    assert "2 GPUs at once" in why_wait(state)


def test_a_job_of_several_gpus_starts_as_soon_as_there_are_so_many():
    state = beside({0: SHORT}, 2, [gang(2), LONG, LONG])
    apply(state, exited(1, at=T0 + 90))
    see(state, a_snapshot(*free(2), at=T0 + 91))
    apply(state, GpuReleased(T0 + 91, a_key(0), a_run(1)))

    assert planned(state, T0 + 91) == [(2, "0,1")]


def test_a_held_gpu_is_lent_to_jobs_that_are_expected_to_end_before():
    assert planned(beside({0: LONG}, 2, [gang(2), SHORT, SHORT])) == [(3, "1")]


def test_a_held_gpu_is_not_lent_to_jobs_that_are_expected_to_end_later():
    assert planned(beside({0: SHORT}, 2, [gang(2), SHORT, LONG])) == []


def test_a_held_gpu_is_not_lent_to_jobs_of_which_nobody_knows_how_long_they_take():
    assert planned(beside({0: LONG}, 2, [gang(2), "python unknown.py"])) == []


def test_a_held_gpu_is_not_lent_where_nobody_knows_when_it_will_be_needed():
    state = beside({0: "python unknown.py"}, 2, [gang(2), SHORT])

    assert planned(state) == []


def test_gpus_that_are_not_held_are_given_to_those_behind():
    state = beside({0: LONG, 1: SHORT, 2: SHORT}, 4, [gang(3), LONG])
    assert planned(state) == []

    assert planned(beside({0: LONG, 1: SHORT}, 4, [gang(3), LONG])) == []
    assert planned(beside({0: LONG}, 5, [gang(5), SHORT])) == [(3, "1")]
    assert planned(beside({0: SHORT, 1: SHORT, 2: LONG}, 4, [gang(2), LONG])) == []


def test_the_gpus_where_a_job_of_several_fits_first_are_the_ones_that_are_held():
    """Two that are free in a minute and a half: the long one is not waited for, nor is another."""
    state = beside({0: LONG, 1: SHORT, 2: SHORT}, 3, [gang(2), LONG])
    apply(state, exited(1, at=T0 + 2))
    see(state, a_snapshot(a_sample(0), used_by(ours(2), index=1), used_by(ours(3), index=2),
                          at=T0 + 3))  # fmt: skip
    apply(state, GpuReleased(T0 + 3, a_key(0), a_run(1)))

    assert planned(state, T0 + 3) == []


def test_a_job_of_higher_priority_goes_before_one_that_waits():
    urgent = f"{LONG}  # smartsched: priority=1"
    state = beside({0: SHORT}, 2, [gang(2), urgent])

    assert planned(state) == [(3, "1")]


def test_a_job_of_several_gpus_of_lower_priority_holds_nothing_back_from_others_before_it():
    state = beside({0: SHORT}, 2, [gang(2, "priority=-1"), LONG])

    assert planned(state) == [(3, "1")]


def test_only_the_first_that_waits_is_sure_of_its_turn():
    state = beside({0: LONG}, 3, [gang(3), gang(2), SHORT])

    assert planned(state) == [(4, "1")]


def test_jobs_of_several_gpus_are_not_overtaken_by_singles_for_ever():
    """Each time a GPU comes free, a single one is ready that would take it."""
    state = beside({0: LONG, 1: LONG}, 2, [gang(2), *[LONG] * 4])
    apply(state, exited(1, at=T0 + 500))
    see(state, a_snapshot(a_sample(0), used_by(ours(2), index=1), at=T0 + 501))
    apply(state, GpuReleased(T0 + 501, a_key(0), a_run(1)))

    assert planned(state, T0 + 501) == []

    apply(state, exited(2, at=T0 + 1000))
    see(state, a_snapshot(*free(2), at=T0 + 1001))
    apply(state, GpuReleased(T0 + 1001, a_key(1), a_run(2)))

    assert planned(state, T0 + 1001) == [(3, "0,1")]


def test_a_run_that_takes_longer_than_its_siblings_is_expected_to_take_still_longer():
    state = beside({0: SHORT}, 2, [gang(2), SHORT])
    see(state, a_snapshot(used_by(ours(1)), a_sample(1), at=T0 + 5000))

    assert planned(state, T0 + 5000) == []


def test_a_job_that_waits_for_several_gpus_is_sure_of_its_part_of_the_cap():
    state = beside({0: SHORT}, 4, [gang(3), LONG], most_gpus=parse_cap("3"))

    assert planned(state) == []


def test_behind_so_many_kinds_of_jobs_that_fit_nowhere_nothing_is_looked_for_any_more():
    kinds = ["".join(chr(ord("a") + int(digit)) for digit in str(n)) for n in range(300)]
    queue = [gang(2), *[f"python {kind}.py" for kind in kinds]]

    assert planned(beside({0: LONG}, 2, [*queue[:200], SHORT])) == [(202, "1")]
    assert planned(beside({0: LONG}, 2, [*queue, SHORT])) == []


# --- no GPU


def test_a_job_that_needs_no_gpu_runs_at_once_though_all_gpus_are_taken():
    state = beside({0: LONG}, 1, [LONG, "make  # smartsched: gpus=0"])

    assert planned(state) == [(3, "")]


def test_a_job_that_needs_no_gpu_runs_at_once_where_no_gpu_can_be_read():
    state = a_box(["make  # smartsched: gpus=0"], [unreadable()])

    assert planned(state) == [(1, "")]


@pytest.mark.parametrize(("cores", "cap", "count"), [(2, None, 2), (2, "3", 3), (9, "1", 1)])
def test_jobs_that_need_no_gpu_run_within_the_caps(cores: int, cap: str | None, count: int):
    commands = [f"make {n}  # smartsched: gpus=0" for n in range(5)]
    caps: dict[str, Any] = {} if cap is None else {"most_jobs": parse_cap(cap)}

    state = a_box(commands, free(1), most_gpuless=cores, **caps)

    assert len(planned(state)) == count


# --- caps


@pytest.mark.parametrize(
    ("caps", "count"),
    [
        ({"most_jobs": "2"}, 2),
        ({"most_jobs": "0"}, 0),
        ({"most_gpus": "3"}, 3),
        ({"leave_free": "1"}, 3),
        ({"most_gpus": "3", "leave_free": "2"}, 2),
    ],
)
def test_no_more_is_started_than_the_caps_allow(caps: dict[str, str], count: int):
    parsed: dict[str, Any] = {name: parse_cap(text) for name, text in caps.items()}
    state = a_box(sweep(6), free(4), **parsed)

    assert len(planned(state)) == count
    assert why_wait(state)


def test_packing_goes_on_where_no_other_gpu_may_be_taken():
    state = a_box(sweep(6), free(2), **AUTO, most_gpus=parse_cap("1"))
    know(state, sweep(1)[0], a_footprint(gib=8, percent=30.0))

    assert planned(state) == [(1, "0"), (2, "0"), (3, "0")]


def test_caps_follow_the_hour():
    midnight = T0 - T0 % 86400 + 86400
    cap = parse_cap("1@09-18,3@18-09")

    for hour, count in ((8.99, 3), (9, 1), (17.99, 1), (18, 3)):
        at = midnight + hour * 3600
        assert len(planned(a_box(sweep(4), free(4), at=at, most_gpus=cap), at)) == count


def test_preferred_gpus_are_taken_first():
    state = a_box(sweep(2), free(4), preference=parse_preference("3,1"))

    assert planned(state) == [(1, "3"), (2, "1")]


# --- order


def test_jobs_go_by_priority_and_then_by_the_list():
    commands = ["a", "b  # smartsched: priority=5", "c", "d  # smartsched: priority=5"]

    assert [job for job, _ in planned(a_box(commands, free(3)))] == [2, 4, 1]


def test_a_job_that_fits_nowhere_now_does_not_hold_up_smaller_ones_that_fit_beside():
    packed = used_by(ours(1, 60))
    state = a_box(
        [SHORT, f"{LONG}  # smartsched: mem=50GiB", f"{LONG}  # smartsched: mem=5GiB"],
        [packed, used_by(a_process(gib=90), index=1)],
        *begun(1, a_part(0, gib=60, percent=10.0)),
        jobs_per_gpu=2,
    )

    made = plan(state, NOW)

    assert made.waiting is not None
    assert all(job.id != 2 for job, _ in made.starts)


def test_jobs_that_wait_for_another_try_hold_nobody_up():
    state = a_box(sweep(2), free(1))
    for event in [*begun(1, a_part(5)), exited(1), requeued(1, not_before=T0 + 60)]:
        apply(state, event)

    assert planned(state) == [(2, "0")]


def test_who_gives_way_prefers_jobs_that_end_before_somebody_is_likely_to_come():
    state = a_box([LONG, SHORT], [used_by(a_process(gib=50))], at=T0, **POLITE)
    know(state, LONG, a_footprint(seconds=1000.0))
    know(state, SHORT, a_footprint(seconds=100.0))
    see(state, a_snapshot(a_sample(), at=T0 + 200))

    assert planned(state, T0 + 200)[:1] == [(2, "0")]


def test_who_gives_way_goes_by_the_list_where_nobody_ever_came():
    state = a_box([LONG, SHORT], free(1), **POLITE)
    know(state, LONG, a_footprint(seconds=1000.0))
    know(state, SHORT, a_footprint(seconds=100.0))

    assert planned(state)[:1] == [(1, "0")]


def test_who_gives_way_still_goes_by_priority_first():
    commands = [f"{LONG}  # smartsched: priority=1", SHORT]
    state = a_box(commands, [used_by(a_process(gib=50))], at=T0, **POLITE)
    know(state, LONG, a_footprint(seconds=1000.0))
    know(state, SHORT, a_footprint(seconds=100.0))
    see(state, a_snapshot(a_sample(), at=T0 + 5000))

    assert planned(state, T0 + 5000)[:1] == [(1, "0")]


def test_who_gives_way_begins_nothing_long_where_somebody_has_just_left():
    state = a_box([LONG], [used_by(a_process(gib=50))], at=T0, **POLITE)
    know(state, LONG, a_footprint(seconds=100_000.0))
    see(state, a_snapshot(a_sample(), at=T0 + 1))

    assert planned(state, T0 + 1) == []
    see(state, a_snapshot(a_sample(), at=T0 + 6))
    see(state, a_snapshot(a_sample(), at=T0 + 5000))
    assert planned(state, T0 + 5000) == [(1, "0")]


# --- why something waits

MAKE = "make  # smartsched: gpus=0"
TAKEN = used_by(a_process(gib=60))
BY_WHOM = "GPU 0: memory 60% > 10% (alice: python train.py, 60 GiB)"


@pytest.mark.parametrize("commands", [[MAKE, LONG], [MAKE, MAKE, LONG]], ids=["runs", "waits"])
def test_why_no_gpu_is_free_is_told_whatever_becomes_of_jobs_that_need_none(commands: list[str]):
    state = a_box(commands, [TAKEN], most_gpuless=1)

    assert why_wait(state) == BY_WHOM


def test_a_job_that_needs_no_gpu_is_told_what_it_waits_for_where_no_other_waits():
    assert "as there are cores" in why_wait(a_box([MAKE, MAKE], [TAKEN], most_gpuless=1))


def test_why_no_gpu_is_free_is_told_whatever_a_failed_job_waits_for():
    state = a_box(sweep(2), [TAKEN])
    for event in [*begun(1, a_part(5)), exited(1), requeued(1, not_before=T0 + 60)]:
        apply(state, event)

    assert why_wait(state) == BY_WHOM


def test_a_job_of_several_gpus_is_told_which_are_held_for_it():
    state = beside({0: SHORT}, 3, [gang(3), LONG])

    assert why_wait(state) == (
        "a command needs 3 GPUs at once, and 2 can be had; GPU 1,2 are held for job 2"
    )


def test_what_is_held_is_told_with_the_name_of_the_job():
    state = beside({0: SHORT}, 2, [gang(2, "name=big")])

    assert why_wait(state).endswith("; GPU 1 is held for job 2 (big)")


def test_a_job_of_several_gpus_is_told_why_the_others_cannot_be_had():
    state = a_box([gang(2)], [TAKEN, a_sample(1)])

    assert why_wait(state) == (f"a command needs 2 GPUs at once, and 1 can be had; {BY_WHOM}")


def test_a_job_that_fits_nowhere_is_told_why_the_others_cannot_be_had():
    state = a_box(
        [SHORT, f"{LONG}  # smartsched: mem=50GiB"],
        [TAKEN, used_by(ours(1, 60), index=1)],
        *begun(1, a_part(1, gib=60)),
        jobs_per_gpu=2,
    )

    assert why_wait(state) == (
        "a command needs 50 GiB on a GPU, and none has that left; GPU 1 is held for job 2;"
        f" {BY_WHOM}"
    )


def test_who_gives_way_is_told_where_somebody_has_just_left():
    state = a_box([LONG], [TAKEN], at=T0, **POLITE)
    know(state, LONG, a_footprint(seconds=1000.0))
    see(state, a_snapshot(a_sample(), at=T0 + 20))

    assert why_wait(state, T0 + 20) == "GPU 0: somebody left 20s ago (a long job waits for 2m 00s)"


def test_who_gives_way_is_told_where_somebody_has_just_come():
    state = a_box([LONG], [used_by(a_process(gib=1))], at=T0, **POLITE)

    assert (
        why_wait(state, T0 + 5) == "GPU 0: alice: python train.py, 1 GiB came or took more 5.0s ago"
    )


def test_caps_are_told_without_what_is_the_matter_with_gpus():
    state = a_box(sweep(2), [TAKEN, a_sample(1), a_sample(2)], most_gpus=parse_cap("1"))

    assert why_wait(state) == "as many GPUs are used as --max-gpus 1 allows"


# --- what can never be


@pytest.mark.parametrize(
    ("command", "policy", "why"),
    [
        (gang(3), {}, "it needs 3 GPUs, and there are 2 to choose from"),
        (gang(2), {"most_gpus": "1"}, "it needs 2 GPUs, and --max-gpus allows 1"),
        (gang(2), {"leave_free": "1"}, "it needs 2 of 2 GPUs, and --leave-free keeps 1"),
        (gang(1), {"leave_free": "2"}, "it needs 1 of 2 GPUs, and --leave-free keeps 2"),
        (
            "a  # smartsched: mem=101GiB",
            {},
            "it needs 101 GiB on a GPU, and the largest has 100 GiB",
        ),
    ],
)  # fmt: skip
def test_a_job_that_no_gpu_will_ever_do_for_is_told_why(
    command: str, policy: dict[str, str], why: str
):
    caps: dict[str, Any] = {name: parse_cap(text) for name, text in policy.items()}

    made = plan(a_box([command, "b  # smartsched: gpus=0"], free(2), **caps), NOW)

    assert [(job.id, reason) for job, reason in made.impossible] == [(1, why)]
    assert starts(made) == [(2, "")]


@pytest.mark.parametrize(
    ("command", "policy"),
    [
        (gang(2), {}),
        (gang(2), {"most_gpus": "1@09-18"}),
        (gang(2), {"most_gpus": "1@09-18,2@18-09"}),
        (gang(2), {"leave_free": "1@09-18"}),
        ("a  # smartsched: mem=100GiB", {}),
        ("a  # smartsched: gpus=0", {"most_gpus": "0"}),
    ],
)
def test_a_job_that_some_hour_may_do_for_is_not_given_up(command: str, policy: dict[str, str]):
    caps: dict[str, Any] = {name: parse_cap(text) for name, text in policy.items()}

    assert plan(a_box([command], free(2), **caps), NOW).impossible == []


def test_before_any_gpu_was_read_nothing_is_given_up():
    state = replay(a_policy(), listed(gang(9)))

    assert plan(state, NOW).impossible == []


def test_a_gpu_that_cannot_be_read_may_be_the_one_that_is_large_enough():
    state = a_box(["a  # smartsched: mem=101GiB"], [a_sample(0), unreadable(1)])

    assert plan(state, NOW).impossible == []


def test_what_was_learned_gives_no_job_up():
    state = a_box(sweep(1), free(1), **AUTO)
    know(state, sweep(1)[0], a_footprint(gib=99.0))

    assert planned(state) == [(1, "0")]


# --- what a second look at the rules has found


def test_the_caps_hold_though_several_kinds_of_jobs_wait():
    jobs = [accepted_as(n, f"python {'ab'[n > 9]}.py") for n in range(1, 19)]
    state = a_state(*map(a_sample, range(8)), events=jobs, most_gpus=parse_cap("2"))

    assert len(plan(state, T0).starts) == 2


def test_so_many_gpus_stay_free_though_several_kinds_of_jobs_wait():
    jobs = [accepted_as(n, f"python {'ab'[n > 9]}.py") for n in range(1, 19)]
    state = a_state(*map(a_sample, range(8)), events=jobs, leave_free=parse_cap("3"))

    assert len(plan(state, T0).starts) == 5


def test_a_job_that_waits_for_gpus_of_others_holds_nothing():
    jobs = [accepted_as(1, "python wide.py", gpus=2), accepted_as(2, "python small.py")]
    state = a_state(a_sample(0), used_by(a_process(gib=60), index=1), events=jobs)

    assert [job.id for job, _ in plan(state, T0).starts] == [2]


def test_no_gpu_is_needed_by_jobs_of_a_run_that_needs_none():
    state = a_state(used_by(a_process(gib=60)), queued=1, gpus_per_job=0)

    assert [placement.gpus for _, placement in plan(state, T0).starts] == [()]


def test_a_job_that_only_one_of_its_gpus_is_large_enough_for_fails():
    wide = accepted_as(1, "python wide.py", gpus=2, memory_bytes=40 * GIB)
    small = a_sample(1, memory_total_bytes=24 * GIB, memory_free_bytes=24 * GIB)

    state = a_state(a_sample(0), small, events=[wide])

    ((_, why),) = plan(state, T0).impossible
    assert why == "it needs 2 GPUs of 40 GiB, and there are 1"


def test_polite_runs_use_the_only_gpu_there_is():
    state = a_state(a_sample(), queued=1, leave_free=parse_cap("1"), is_polite=True)

    assert len(plan(state, T0).starts) == 1


def accepted_as(number: int, command: str, **wishes: Any) -> JobAccepted:
    spec = JobSpec(command, f"list:{number}", "", Wishes(**wishes))
    return JobAccepted(T0, JobId(number), spec)
