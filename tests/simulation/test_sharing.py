"""Whole batches on a shared box in virtual time: packing, gangs, manners, giving way."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from smartsched.core.events import JobFinished, JobRequeued, RunExited, RunStopping
from smartsched.core.footprint import RAMP_SECONDS
from smartsched.core.freeness import Share, Thresholds
from smartsched.core.hours import parse_cap
from smartsched.core.model import Exited
from smartsched.core.policy import Policy
from smartsched.core.state import State
from smartsched.simulation.box import NO_GPU, PretendBox, PretendJob, commands_at_once
from smartsched.simulation.colleagues import GIB
from tests.builders import INSTANT, a_policy
from tests.simulation.witness import Witness

HOUR = 3600.0
WINDOW = Thresholds(Share(10.0), 10.0, free_for_seconds=5.0)
SMALL = PretendJob(300.0, memory_bytes=5 * GIB, utilization_percent=30)


def sweep(count: int) -> list[str]:
    return [f"python train.py --lr 0.{n:03}" for n in range(1, count + 1)]


def a_box(
    jobs: Callable[[str], PretendJob] | PretendJob,
    commands: list[str],
    gpus: int,
    limits: Thresholds = INSTANT,
) -> PretendBox:
    """A box of cards of 24 GiB that is watched."""
    job_of = (lambda _: jobs) if isinstance(jobs, PretendJob) else jobs
    box = PretendBox(gpus, job_of, commands_at_once(commands))
    Witness(box, limits)
    return box


def auto(limits: Thresholds = INSTANT, **more: Any) -> Policy:
    return a_policy(**{"thresholds": limits, "jobs_per_gpu": "auto", "most_gpuless": 4} | more)


def polite(**more: Any) -> Policy:
    return auto(WINDOW, **{"on_contention": "requeue"} | more)


def seconds_of_starts(box: PretendBox) -> list[float]:
    return [round(at - (box.began_at or 0), 2) for at, *_ in box.launched]


def runs_per_gpu(box: PretendBox) -> list[int]:
    """The most at once, on each GPU; to be asked before the box runs."""
    most = [0] * box.gpu_count

    def look(_: State, __: float) -> None:
        there = Counter(index for run in box.living.values() for index in run.gpu_indices)
        for index, count in there.items():
            most[index] = max(most[index], count)

    box.observers.append(look)
    return most


def ran_once_each(box: PretendBox, state: State) -> bool:
    """Every job has one good end."""
    good = [e.run.job for e in box.events if isinstance(e, JobFinished) and e.outcome == "ok"]
    return sorted(good) == list(range(1, state.totals.accepted + 1))


# --- packing


def test_siblings_are_packed_once_the_first_has_shown_what_it_needs():
    box = a_box(SMALL, sweep(12), gpus=2)
    most = runs_per_gpu(box)

    state = box.run(auto()).state

    starts = seconds_of_starts(box)
    assert [start < 1 for start in starts[:3]] == [True, True, False]
    assert starts[2] == pytest.approx(RAMP_SECONDS, abs=3)
    assert most == [3, 3]
    assert state.totals.ok == 12
    assert box.clock.time - (box.began_at or 0) < 12 / 2 * 300 / 2


def test_memory_is_never_given_away_twice():
    box = a_box(PretendJob(300.0, 9 * GIB, utilization_percent=10), sweep(12), gpus=2)
    most = runs_per_gpu(box)

    state = box.run(auto()).state

    assert most == [2, 2]
    assert state.totals.ok == 12


def test_jobs_that_fill_a_gpu_run_alone():
    box = a_box(PretendJob(60.0, 20 * GIB, utilization_percent=95), sweep(6), gpus=2)
    most = runs_per_gpu(box)

    box.run(auto())

    assert most == [1, 1]


def test_in_a_container_nothing_is_packed():
    unseen = PretendJob(120.0, 5 * GIB, utilization_percent=20, seen_by_driver=False)
    box = a_box(unseen, sweep(4), gpus=1, limits=WINDOW)
    most = runs_per_gpu(box)

    state = box.run(auto(WINDOW)).state

    assert most == [1]
    assert state.totals.ok == 4
    assert state.footprints == {}


def test_jobs_that_the_driver_does_not_list_make_nobody_give_way_to_themselves():
    seen, hidden = PretendJob(9.0), PretendJob(120.0, 20 * GIB, seen_by_driver=False)
    jobs = {"seen": seen, "hidden": hidden}
    box = PretendBox(1, jobs.__getitem__, [(0.0, "seen"), (0.0, "hidden")])

    loop = box.run(a_policy(jobs_per_gpu=2, on_contention="requeue"), seconds=600)

    assert loop.state.totals.ok == 2
    assert len(box.launched) == 2


def test_so_many_as_the_user_said_share_a_gpu_from_the_start():
    box = a_box(SMALL, sweep(4), gpus=2)
    most = runs_per_gpu(box)

    box.run(a_policy(jobs_per_gpu=2))

    assert max(seconds_of_starts(box)) < 1
    assert most == [2, 2]


def test_a_box_that_is_packed_is_taken_over_by_another_dispatcher():
    box = a_box(SMALL, sweep(12), gpus=2)
    box.run(auto(), seconds=200)
    living = set(box.living)
    assert len(living) == 6

    state = box.resume(auto()).state

    assert state.totals.ok == 12
    assert len(box.launched) == 12
    assert ran_once_each(box, state)


def test_a_gpu_of_ours_that_somebody_claimed_meanwhile_is_asked_for_once_a_second():
    box = a_box(SMALL, sweep(3), gpus=1)
    box.run(auto(claims=True), seconds=10)
    box.claimed_by_others[0] = [(0.0, box.clock.time + 120)]
    began = box.clock.time

    state = box.resume(auto(claims=True)).state

    assert [at - began for at, *_ in box.launched[1:]] == pytest.approx([120, 120], abs=1.5)
    assert state.totals.ok == 3


# --- several GPUs, and none


def test_a_job_of_several_gpus_does_not_starve_among_single_ones():
    big = "torchrun big.py  # smartsched: gpus=2"
    singles = sweep(20)
    lengths = {command: 50.0 + 7 * number for number, command in enumerate(singles)}
    box = a_box(
        lambda command: PretendJob(lengths.get(command, 100.0)),
        [*singles[:4], big, *singles[4:]],
        gpus=2,
    )

    state = box.run(a_policy()).state

    assert [command for _, _, command, _ in box.launched].index(big) <= 6
    assert state.totals.ok == 21


def test_jobs_that_need_no_gpu_run_beside_all_others():
    commands = ["python train.py", *(f"make {n}  # smartsched: gpus=0" for n in range(4))]
    box = a_box(PretendJob(100.0), commands, gpus=1)

    state = box.run(a_policy(most_gpuless=2)).state

    assert seconds_of_starts(box) == pytest.approx([0, 0, 0, 100, 100], abs=1)
    assert [gpu for *_, gpu in box.launched] == [0, *[NO_GPU] * 4]
    assert state.totals.ok == 5


def test_a_job_that_no_gpu_will_ever_do_for_fails_at_once_and_the_others_run():
    commands = ["a  # smartsched: gpus=3", "b  # smartsched: mem=99GiB", "c"]
    box = a_box(PretendJob(10.0), commands, gpus=2)

    state = box.run(a_policy(retries=2)).state

    assert (state.totals.ok, state.totals.failed) == (1, 2)
    assert len(box.launched) == 1


# --- other dispatchers


def test_gpus_that_another_dispatcher_has_claimed_are_used_when_it_lets_go():
    box = a_box(PretendJob(10.0), sweep(3), gpus=2)
    until = box.clock.time + 60
    box.claimed_by_others = {index: [(0.0, until)] for index in (0, 1)}

    state = box.run(a_policy(claims=True)).state

    assert seconds_of_starts(box)[:2] == pytest.approx([60, 60], abs=1.5)
    assert state.totals.ok == 3


def test_nothing_runs_on_a_gpu_that_is_not_claimed():
    box = a_box(PretendJob(10.0), sweep(9), gpus=2)
    most = runs_per_gpu(box)

    def look(_: State, __: float) -> None:
        for run in box.living.values():
            assert box.claimed.issuperset(gpu.key for gpu in run.launch.placement.gpus)

    box.observers.append(look)

    state = box.run(a_policy(claims=True)).state

    assert most == [1, 1]
    assert state.totals.ok == 9


def test_what_is_no_longer_used_is_no_longer_claimed():
    box = a_box(lambda name: PretendJob(500.0 if name.endswith("1") else 10.0), sweep(2), gpus=2)

    box.run(a_policy(claims=True), seconds=100)

    assert len(box.living) == len(box.claimed) == 1


# --- giving way


def test_runs_give_way_to_a_visitor_and_finish_elsewhere_once():
    box = a_box(SMALL, sweep(4), gpus=2, limits=WINDOW)
    box.visit(0, begins=100, ends=2 * HOUR, gib=20)
    began = box.clock.time

    state = box.run(polite()).state

    yielded = [e for e in box.events if isinstance(e, RunStopping) and e.why == "contention"]
    assert yielded
    assert all(100 <= event.at - began <= 102 for event in yielded)
    assert state.totals.yields == len(yielded)
    assert state.totals.failed == 0
    assert ran_once_each(box, state)
    assert not [at for at, *_, gpu in box.launched if gpu == 0 and at > began + 100]


def test_who_gives_way_is_queued_again_at_the_head():
    box = a_box(PretendJob(100.0, 5 * GIB), sweep(6), gpus=2, limits=WINDOW)
    box.visit(0, begins=50, ends=HOUR, gib=20)

    box.run(a_policy(thresholds=WINDOW, on_contention="requeue"))

    assert [run.job for _, run, *_ in box.launched] == [1, 2, 1, 3, 4, 5, 6]


def test_by_default_runs_stay_and_nothing_more_is_started_beside_a_visitor():
    box = a_box(SMALL, sweep(6), gpus=1, limits=WINDOW)
    box.visit(0, begins=60, ends=1000, gib=10)
    began = box.clock.time

    state = box.run(auto(WINDOW)).state

    assert not any(isinstance(event, RunStopping) for event in box.events)
    assert not [at for at, *_ in box.launched if began + 61 <= at < began + 1000]
    assert state.totals.ok == 6


def test_a_visitor_is_noticed_in_time_however_seldom_samples_are_taken():
    box = a_box(PretendJob(600.0, 5 * GIB), sweep(1), gpus=1, limits=WINDOW)
    box.interval_seconds = 10.0
    box.visit(0, begins=103.3, ends=200, gib=20)
    began = box.clock.time

    box.run(a_policy(thresholds=WINDOW, on_contention="requeue", interval_seconds=10.0))

    (stop, *_) = [e for e in box.events if isinstance(e, RunStopping)]
    assert 103.3 <= stop.at - began <= 105.3


def test_runs_are_asked_to_save_their_state_if_the_user_says_so():
    saves = PretendJob(300.0, 5 * GIB, saves_when_told=True, ending_when_asked=Exited(0))
    box = a_box(saves, sweep(2), gpus=2, limits=WINDOW)
    box.visit(0, begins=100, ends=HOUR, gib=20)

    state = box.run(polite(asks_for_checkpoints=True)).state

    assert [run.job for run in box.checkpoints] == [1]
    assert [run.job for _, run, *_ in box.launched] == [1, 2, 1]
    assert state.totals.ok == 2


def test_a_stubborn_run_makes_room_within_its_own_short_grace():
    box = a_box(PretendJob(300.0, 5 * GIB, ignores_sigterm=True), sweep(1), 1, WINDOW)
    box.visit(0, begins=100, ends=200, gib=20)
    began = box.clock.time

    state = box.run(polite(grace_seconds=60.0, yield_grace_seconds=2.0)).state

    first = next(e for e in box.events if isinstance(e, RunExited))
    assert first.at - began <= 100 + 2 + 2 + 0.1
    assert state.totals.ok == 1


def test_who_left_gets_nobody_to_give_way_again():
    box = a_box(PretendJob(100.0, 5 * GIB), sweep(1), gpus=1, limits=WINDOW)
    box.visit(0, begins=20, ends=80, gib=20)
    box.visit(0, begins=150, ends=200, gib=20)

    state = box.run(a_policy(thresholds=WINDOW, on_contention="requeue")).state

    assert state.totals.yields == 2
    assert state.totals.ok == 1


def test_the_last_free_gpu_is_left_to_others():
    box = a_box(PretendJob(60.0), sweep(8), gpus=3)
    most = runs_per_gpu(box)

    state = box.run(a_policy(leave_free=parse_cap("1"))).state

    assert sum(count > 0 for count in most) == 2
    assert state.totals.ok == 8


def test_caps_by_the_hour_hold_when_their_hour_comes_though_nothing_happens():
    box = a_box(PretendJob(HOUR / 4), sweep(4), gpus=4)
    box.interval_seconds = 10.0
    box.clock.time = 20 * 86400.0 + 8.9 * HOUR

    box.run(a_policy(most_gpus=parse_cap("1@00-09,3@09-24"), interval_seconds=10.0))

    assert seconds_of_starts(box) == pytest.approx([0, HOUR / 10, HOUR / 10, HOUR / 4], abs=1)


def test_under_a_cap_on_gpus_the_next_job_follows_at_once():
    box = a_box(PretendJob(100.0), sweep(3), gpus=2)

    box.run(a_policy(most_gpus=parse_cap("1")))

    assert seconds_of_starts(box) == pytest.approx([0, 100, 200], abs=0.1)


# --- out of memory


def test_a_job_that_runs_out_of_memory_beside_others_gets_more_and_then_a_gpu_for_itself():
    tries: Counter[str] = Counter()

    def job_of(command: str) -> PretendJob:
        tries[command] += 1
        if not command.endswith("002"):
            return PretendJob(600.0, 4 * GIB, utilization_percent=20)
        if tries[command] == 3:
            return PretendJob(60.0, 20 * GIB)
        return PretendJob(60.0, 4 * GIB, Exited(1), out_of_memory="CUDA out of memory")

    box = a_box(job_of, sweep(3), gpus=1)

    state = box.run(a_policy(jobs_per_gpu=3, job_memory=5 * GIB)).state

    again = [e for e in box.events if isinstance(e, JobRequeued)]
    assert [(e.why, e.alone) for e in again] == [
        ("packed_too_tightly", False),
        ("packed_too_tightly", True),
    ]
    assert (state.totals.ok, state.totals.failed) == (3, 0)
    assert seconds_of_starts(box)[-1] >= 600


def test_a_job_that_runs_out_of_memory_alone_has_failed():
    out = PretendJob(60.0, 23 * GIB, Exited(1), out_of_memory="CUDA out of memory")
    box = a_box(out, sweep(1), gpus=1)

    state = box.run(auto(retries=3)).state

    assert state.totals.failed == 1
    assert len(box.launched) == 1


def test_a_job_that_strangers_left_no_memory_is_tried_again_for_nothing():
    tries: Counter[str] = Counter()

    def job_of(command: str) -> PretendJob:
        tries[command] += 1
        fails = tries[command] == 1
        says = "CUDA out of memory" if fails else ""
        return PretendJob(60.0, 9 * GIB, Exited(1) if fails else Exited(0), out_of_memory=says)

    box = a_box(job_of, sweep(1), gpus=1, limits=WINDOW)
    box.visit(0, begins=30, ends=90, gib=15)

    state = box.run(a_policy(thresholds=WINDOW, oom_retries=0)).state

    assert [e.why for e in box.events if isinstance(e, JobRequeued)] == ["strangers_grew"]
    assert state.totals.ok == 1
