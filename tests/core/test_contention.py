"""Who of ours gives way to people who come to a GPU where our runs are."""

from typing import Any

import pytest

from smartsched.core.actions import Checkpoint, Terminate
from smartsched.core.apply import apply, replay
from smartsched.core.contention import (
    memory_allows_more_time,
    strangers_at,
    who_gives_way,
)
from smartsched.core.decide import decide
from smartsched.core.events import Event, RunStopping, StopRequested
from smartsched.core.freeness import UNEXPLAINED_FOR_SECONDS, Share, Thresholds
from smartsched.core.model import GpuProcess, GpuReading, SamplerTrouble
from smartsched.core.state import State
from tests.builders import (
    HOST,
    T0,
    a_key,
    a_part,
    a_policy,
    a_process,
    a_run,
    a_sample,
    a_snapshot,
    begun,
    listed,
    ours,
    see,
    unreadable,
    used_by,
)

# Of 100 GiB only more than half is a breach, so that want of memory alone can be seen.
WIDE = Thresholds(Share(50.0), 100.0, free_for_seconds=0.0)
NOW = T0 + 100


def a_box(*events: Event, jobs: int = 3, **policy: Any) -> State:
    named: dict[str, Any] = {"jobs_per_gpu": 3, "on_contention": "requeue", "thresholds": WIDE}
    commands = [f"python train.py --lr {n}" for n in range(jobs)]
    return replay(a_policy(**(named | policy)), [*listed(*commands), *events])


def packed(count: int = 3, gib: float = 10, **policy: Any) -> State:
    """So many runs on GPU 0, the first one the oldest, each with what it was promised."""
    state = a_box(jobs=count, **policy)
    for job in range(1, count + 1):
        for event in begun(job, a_part(gib=gib), at=T0 + job):
            apply(state, event)
    return state


def look(state: State, *processes: GpuProcess, at: float = NOW, **fields: Any) -> None:
    see(state, a_snapshot(used_by(*processes, **fields), at=at))


def leaving(state: State, at: float = NOW) -> list[int]:
    """Jobs whose runs give way now."""
    return [giving.run.job for giving in who_gives_way(state, at)]


def give_way(state: State, at: float = NOW) -> list[int]:
    """And they are stopped."""
    jobs: list[int] = []
    for giving in list(who_gives_way(state, at)):
        apply(state, RunStopping(at, giving.run, "contention", giving.who))
        jobs.append(giving.run.job)
    return jobs


def all_of_ours(count: int = 3, gib: float = 10) -> list[GpuProcess]:
    return [ours(job, gib) for job in range(1, count + 1)]


# --- who has to go


def test_alone_nobody_gives_way():
    state = packed()
    look(state, *all_of_ours())

    assert leaving(state) == []


def test_strangers_above_a_threshold_are_given_way_to_and_named():
    state = packed(1)
    look(state, ours(1, 10), a_process(gib=60))

    (giving,) = who_gives_way(state, NOW)

    assert giving.run == a_run(1)
    assert giving.who.startswith("alice: python train.py")


@pytest.mark.parametrize("what", ["drain", "ignore"])
def test_who_was_not_asked_to_give_way_stays(what: Any):
    state = packed(1, on_contention=what)
    look(state, ours(1, 10), a_process(gib=60))

    assert leaving(state) == []


def test_a_stranger_who_needs_little_where_there_is_much_hurts_nobody():
    state = packed(1)
    look(state, ours(1, 10), a_process(gib=2))

    assert leaving(state) == []


def test_a_stranger_who_grows_where_memory_runs_out_is_made_room_for():
    state = packed(3, gib=30)
    look(state, *all_of_ours(3, 30), a_process(gib=4))

    assert leaving(state) != []


def test_the_youngest_goes_first_and_only_as_many_as_needed():
    state = packed(3, gib=30)
    look(state, *all_of_ours(3, 30), a_process(gib=4))

    assert leaving(state) == [3]


def test_the_more_somebody_needs_the_more_of_ours_go():
    little, much = packed(3, gib=25), packed(3, gib=25)
    look(little, *all_of_ours(3, 25), a_process(gib=12))
    look(much, *all_of_ours(3, 25), a_process(gib=24))

    assert leaving(little) == [3]
    assert leaving(much)[:2] == [3, 2]


def test_a_stranger_who_has_not_grown_for_long_is_not_made_room_for():
    state = packed(3, gib=30)
    look(state, *all_of_ours(3, 30), a_process(gib=2), at=T0 + 10)
    look(state, *all_of_ours(3, 30), a_process(gib=2), at=T0 + 3600)

    assert leaving(state, T0 + 3600) == []


def test_what_was_promised_to_runs_that_stay_is_not_free():
    """They hold little so far, and will hold what they were promised."""
    state = packed(3, gib=30)
    look(state, *all_of_ours(3, 1), a_process(gib=4))

    assert leaving(state) == [3]


def test_memory_of_another_gpu_is_not_wanted():
    state = a_box(*begun(1, a_part(0, gib=80)), *begun(2, a_part(1, gib=80)))
    gpus: list[GpuReading] = [
        used_by(ours(1, 80), a_process(gib=19)),
        used_by(ours(2, 80), index=1),
    ]
    see(state, a_snapshot(*gpus, at=NOW))

    assert leaving(state) == [1]


def test_a_run_of_several_gpus_gives_way_once():
    state = a_box(*begun(1, a_part(0), a_part(1)))
    crowded = (used_by(ours(1), a_process(gib=60)), used_by(ours(1), a_process(501, 60), index=1))
    see(state, a_snapshot(*crowded, at=NOW))

    assert leaving(state) == [1]


# --- never twice for the same


def test_those_that_are_being_stopped_count_as_gone():
    state = packed(3, gib=30)
    look(state, *all_of_ours(3, 30), a_process(gib=4))
    assert give_way(state) == [3]

    look(state, *all_of_ours(3, 30), a_process(gib=4.01), at=NOW + 1)

    assert leaving(state, NOW + 1) == []


def test_nobody_is_stopped_twice_for_the_same_arrival():
    state = packed(1)
    look(state, ours(1, 10), a_process(gib=60))
    assert give_way(state) == [1]

    look(state, ours(1, 10), a_process(gib=60), at=NOW + 1)

    assert leaving(state, NOW + 1) == []


def test_a_run_that_was_started_beside_somebody_given_way_to_stays():
    state = a_box(*begun(1, a_part(gib=10)))
    look(state, ours(1, 10), a_process(gib=60))
    give_way(state)
    for event in begun(2, a_part(gib=10), at=NOW + 10):
        apply(state, event)

    look(state, ours(2, 10), a_process(gib=60), at=NOW + 20)

    assert state.gpus[a_key()].given_way_to == {500}
    assert leaving(state, NOW + 20) == []


def test_another_stranger_is_given_way_to_again():
    state = packed(2)
    look(state, *all_of_ours(2), a_process(gib=60))
    apply(state, RunStopping(NOW, a_run(2), "contention"))

    look(state, *all_of_ours(2), a_process(gib=60), a_process(900, 9), at=NOW + 1)

    assert leaving(state, NOW + 1) == [1]


def test_who_left_and_came_back_is_somebody_else():
    state = packed(1)
    look(state, ours(1, 10), a_process(gib=20))
    apply(state, RunStopping(NOW, a_run(1), "contention"))
    assert state.gpus[a_key()].given_way_to == {500}

    look(state, ours(1, 10), at=NOW + 1)

    assert state.gpus[a_key()].given_way_to == set()


def test_to_whom_a_run_gave_way_is_known_only_where_it_gave_way():
    state = packed(1)
    look(state, ours(1, 10), a_process(gib=20))

    apply(state, RunStopping(NOW, a_run(1), "timeout"))

    assert state.gpus[a_key()].given_way_to == set()


# --- where nobody can tell


def test_where_the_driver_attributes_nothing_nobody_gives_way():
    state = packed(1)
    for at in (NOW, NOW + 1 + UNEXPLAINED_FOR_SECONDS):
        see(state, a_snapshot(a_sample(used_gib=90, utilization_percent=100), at=at))

    assert state.gpus[a_key()].is_unattributed
    assert leaving(state, NOW + 1 + UNEXPLAINED_FOR_SECONDS) == []


def test_a_gpu_that_cannot_be_read_makes_nobody_give_way():
    state = packed(1)
    see(state, a_snapshot(unreadable(), at=NOW))

    assert leaving(state) == []


def test_what_was_seen_long_ago_makes_nobody_give_way():
    state = packed(1)
    look(state, ours(1, 10), a_process(gib=60))

    assert leaving(state, NOW + 3600) == []


def test_an_ill_gpu_is_nobody_to_give_way_to():
    state = packed(1)
    look(state, ours(1, 10), ailment="reset required")

    assert leaving(state) == []


def test_what_another_run_of_ours_does_there_is_no_stranger_s():
    """It was given another GPU, and is not where it is to be."""
    state = packed(1)
    stray = a_process(4711, 60, run_tag="test/9/1")
    other = a_process(4712, 1, run_tag="another/9/1")
    look(state, ours(1, 10), stray, other)

    there = strangers_at(state, state.gpus[a_key()])
    assert [process.pid for process in there] == [4712]


def test_while_all_is_being_stopped_nobody_gives_way_as_well():
    state = packed(1)
    apply(state, StopRequested(NOW, "ctrl-c"))
    look(state, ours(1, 10), a_process(gib=60))

    stops = [e for e in decide(state, NOW).events if isinstance(e, RunStopping)]
    assert [event.why for event in stops] == ["asked"]


def test_while_the_driver_hangs_nobody_gives_way_to_what_it_said_before():
    state = packed(1)
    look(state, ours(1, 10), a_process(gib=60))
    see(state, SamplerTrouble(HOST, "the driver hangs"), NOW + 60)

    assert leaving(state, NOW + 60) == []


# --- how


@pytest.mark.parametrize("asks", [False, True])
def test_who_gives_way_is_asked_in_the_way_the_user_said(asks: bool):
    state = packed(1, asks_for_checkpoints=asks)
    look(state, ours(1, 10), a_process(gib=60))

    decision = decide(state, NOW)

    (stopping,) = decision.events
    assert isinstance(stopping, RunStopping)
    assert (stopping.why, stopping.run) == ("contention", a_run(1))
    assert stopping.who.startswith("alice")
    assert decision.actions == [Checkpoint(a_run(1)) if asks else Terminate(a_run(1))]


def being_stopped(*others: GpuProcess) -> State:
    """Two runs that give way."""
    state = packed(2, gib=10)
    look(state, *all_of_ours(2), at=NOW - 2)
    look(state, *all_of_ours(2), *others)
    for job in (1, 2):
        apply(state, RunStopping(NOW, a_run(job), "contention"))
    return state


def test_a_run_that_saves_its_state_has_time_where_there_is_memory_enough_for_the_newcomer():
    state = being_stopped(a_process(gib=20))

    assert memory_allows_more_time(state, state.runs[a_run(1)])


def test_a_run_that_saves_its_state_has_no_time_where_memory_is_short():
    state = being_stopped(a_process(gib=45))

    assert not memory_allows_more_time(state, state.runs[a_run(2)])


def test_a_run_that_saves_its_state_has_no_time_while_nobody_knows_what_the_newcomer_will_take():
    state = being_stopped(a_process(gib=0.5))

    assert not memory_allows_more_time(state, state.runs[a_run(1)])
    state.gpus[a_key()].newcomers.all.calm = 1000
    assert memory_allows_more_time(state, state.runs[a_run(1)])
    state.gpus[a_key()].newcomers.all.grabs = 1000
    assert not memory_allows_more_time(state, state.runs[a_run(1)])


def test_what_younger_runs_give_back_counts_for_the_older():
    boxes = [being_stopped(a_process(gib=gib)) for gib in range(20, 60)]

    times = {tuple(memory_allows_more_time(s, s.runs[a_run(n)]) for n in (1, 2)) for s in boxes}

    assert times == {(True, True), (True, False), (False, False)}
