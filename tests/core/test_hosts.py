"""Decisions over several hosts: what is started where, what is stopped, and what is waited for."""

from collections.abc import Iterable
from typing import Any

import pytest

from smartsched.core import sight
from smartsched.core.actions import Checkpoint, Kill, Launch, Terminate
from smartsched.core.apply import apply, replay
from smartsched.core.decide import UNKILLABLE_AFTER_SECONDS, Decision, decide, is_given_up
from smartsched.core.events import (
    Event,
    GpuReleased,
    Halted,
    JobFinished,
    JobRequeued,
    RunCleared,
    RunExited,
    RunKilled,
    RunLaunched,
    RunPlaced,
    RunPostponed,
    RunResumed,
    RunStopping,
    StopRequested,
)
from smartsched.core.impossible import impossible
from smartsched.core.model import (
    Asked,
    Ending,
    Exited,
    GpuReading,
    GpuUnreadable,
    HostAway,
    HostHere,
    HostName,
    JobId,
    Killed,
    Lost,
    PilotsStand,
    PlacedGpu,
    Placement,
    Run,
    SamplerTrouble,
    Unwanted,
)
from smartsched.core.settle import settle
from smartsched.core.standing import BEING_STARTED
from smartsched.core.state import FIRST_POSTPONE_SECONDS, State, is_out_of_reach
from smartsched.core.status import status
from tests.builders import (
    GIB,
    T0,
    a_key,
    a_policy,
    a_process,
    a_process_id,
    a_run,
    a_sample,
    a_snapshot,
    exited,
    listed,
    see,
    used_by,
)

GPU1, GPU2 = HostName("gpu1"), HostName("gpu2")


def a_cluster(*commands: str, more: Iterable[Event] = (), **policy: Any) -> State:
    """Of which nobody has seen a host yet."""
    events = [*listed(*commands), *more]
    return replay(a_policy(**{"spans_hosts": True, "hosts_may_come": False} | policy), events)


def on(index: int = 0, host: HostName = GPU1, **fields: Any) -> GpuReading:
    return a_sample(index, key=a_key(index, host), **fields)


def here(state: State, host: HostName, *gpus: GpuReading, at: float = 0.0, cores: int = 2) -> None:
    """Its agent is, with these GPUs."""
    see(state, HostHere(host, f"node-{host}", cores), T0 + at)
    if gpus:
        see(state, a_snapshot(*gpus, at=T0 + at, host=host))


def away(state: State, host: HostName, *, at: float = 0.0, for_good: bool = False) -> None:
    see(state, HostAway(host, "out of reach", for_good), T0 + at)


def begun(
    job: int = 1, host: HostName = GPU1, index: int = 0, at: float = 0.0, attempt: int = 1
) -> list[Event]:
    given = PlacedGpu(a_key(index, host), f"{host}/{index}", str(index))
    return [
        RunPlaced(T0 + at, a_run(job, attempt), Placement((given,))),
        RunLaunched(T0 + at, a_run(job, attempt), a_process_id(), None),
    ]


def starts(decision: Decision) -> list[tuple[int, str]]:
    """Which job starts where."""
    return [
        (action.run.job, action.placement.labels or action.placement.host)
        for action in decision.actions
        if isinstance(action, Launch)
    ]


def decided(state: State, at: float = 0.0) -> Decision:
    return decide(state, T0 + at)


def happened(decision: Decision, *kinds: type) -> list[Event]:
    return [event for event in decision.events if isinstance(event, kinds)]


def settled(state: State, at: float = 0.0) -> Event | None:
    """What is to be recorded next."""
    return next(settle(state, T0 + at), None)


def why_stopped(decision: Decision) -> list[str]:
    return [event.why for event in decision.events if isinstance(event, RunStopping)]


def stopping(job: int = 1, at: float = 0.0, why: Any = "asked") -> RunStopping:
    return RunStopping(T0 + at, a_run(job), why)


# --- where jobs start


def test_jobs_start_on_the_gpus_of_all_hosts_and_these_are_called_by_their_hosts():
    state = a_cluster("a", "b", "c")
    here(state, GPU1, on(0, GPU1))
    here(state, GPU2, on(0, GPU2))

    assert starts(decided(state)) == [(1, "gpu1/0"), (2, "gpu2/0")]


def test_a_job_of_which_an_attempt_lives_that_was_taken_for_lost_waits_for_its_end():
    state = a_cluster("a", "b")
    here(state, GPU1, on(0, GPU1), on(1, GPU1))

    sight.see(state, Unwanted(frozenset({JobId(1)})), T0)

    decision = decided(state)
    assert starts(decision) == [(2, "gpu1/0")]
    assert decision.waiting is not None
    assert "job 1 left processes behind" in str(decision.waiting.why)
    sight.see(state, Unwanted(frozenset()), T0)
    assert (1, "gpu1/0") in starts(decided(state))


def test_a_job_on_several_gpus_is_on_one_host():
    state = a_cluster("a  # smartsched: gpus=2")
    here(state, GPU1, on(0, GPU1))
    here(state, GPU2, on(0, GPU2), on(1, GPU2))

    assert starts(decided(state)) == [(1, "gpu2/0,gpu2/1")]


def test_a_job_on_several_gpus_waits_for_a_host_that_has_them_free():
    state = a_cluster("a  # smartsched: gpus=2")
    here(state, GPU1, on(0, GPU1))
    stranger = a_process(gib=50.0)
    here(state, GPU2, on(0, GPU2), used_by(stranger, index=1, key=a_key(1, GPU2)))

    decision = decided(state)

    assert starts(decision) == []
    assert decision.waiting is not None
    assert "on one host" in decision.waiting.why


def four_small_jobs_on_gpu2(*queued: str) -> State:
    """GPU1 has three of its four GPUs free, and a colleague on the last."""
    more = [event for n in range(4) for event in begun(n + 1, GPU2, n)]
    state = a_cluster(*(f"small {n}" for n in range(4)), *queued, more=more)
    stranger = used_by(a_process(gib=50.0), index=3, key=a_key(3, GPU1))
    here(state, GPU1, *(on(index, GPU1) for index in range(3)), stranger)
    here(state, GPU2, *(on(index, GPU2) for index in range(4)))
    return state


def test_gpus_are_held_for_a_job_of_several_on_the_one_host_that_will_have_them():
    state = four_small_jobs_on_gpu2("big  # smartsched: gpus=4", "c", "d", "e", "f", "g")

    decision = decided(state)

    assert starts(decision) == [(6, "gpu1/0"), (7, "gpu1/1"), (8, "gpu1/2")]
    for event in (*decision.events, exited(1, at=T0 + 1)):
        apply(state, event)
    see(state, a_snapshot(*(on(index, GPU2) for index in range(4)), at=T0 + 1, host=GPU2))
    apply(state, GpuReleased(T0 + 1, a_key(0, GPU2), a_run(1)))
    assert starts(decided(state, 1.0)) == []


def test_nothing_is_held_for_a_job_of_several_on_a_host_that_is_out_of_reach():
    state = four_small_jobs_on_gpu2("big  # smartsched: gpus=4", "c")
    away(state, GPU2)

    assert starts(decided(state)) == [(6, "gpu1/0")]


def test_where_nobody_knows_when_they_come_free_gpus_are_held_where_most_of_them_are():
    more = [*begun(1, GPU1, 0), *begun(2, GPU1, 1), *begun(3, GPU2, 0)]
    commands = ["a", "b", "c", "big  # smartsched: gpus=3", "d", "e"]
    state = a_cluster(*commands, more=more)
    for host in (GPU1, GPU2):
        here(state, host, *(on(index, host) for index in range(3)))

    assert starts(decided(state)) == [(5, "gpu1/2")]


def test_nothing_starts_on_a_host_of_which_only_gpus_were_seen():
    """What its agent has to tell of runs is not known yet."""
    state = a_cluster("a")
    see(state, a_snapshot(on(0, GPU1), host=GPU1))

    assert starts(decided(state)) == []


def test_nothing_starts_on_a_host_that_is_away_though_its_gpus_were_just_seen():
    state = a_cluster("a")
    here(state, GPU1, on(0, GPU1))
    away(state, GPU1)

    assert starts(decided(state)) == []


def test_nothing_starts_on_a_host_that_is_about_to_leave():
    state = a_cluster("a", "b  # smartsched: gpus=0")
    here(state, GPU1, on(0, GPU1))
    see(state, HostHere(GPU1, "node", 2, leaves=True))

    assert starts(decided(state)) == []


def test_nothing_starts_on_a_gpu_that_was_not_just_seen_there_though_the_report_has_just_come():
    state = a_cluster("a")
    here(state, GPU1)
    sight.see(state, a_snapshot(on(0, GPU1), at=T0, host=GPU1), T0)

    assert starts(decided(state, 1.0)) == []
    assert starts(decided(state, 0.04)) == [(1, "gpu1/0")]


def test_gpus_of_all_hosts_are_filled_before_any_is_shared():
    state = a_cluster(*"abcdefg", jobs_per_gpu=3)
    for host in (GPU1, GPU2):
        here(state, host, *(on(index, host) for index in range(2)))

    assert starts(decided(state)) == [
        (1, "gpu1/0"), (2, "gpu1/1"), (3, "gpu2/0"), (4, "gpu2/1"),
        (5, "gpu1/0"), (6, "gpu1/1"), (7, "gpu2/0"),
    ]  # fmt: skip


# --- where starts fail for now

NO_SPACE = "No space left on device"


def postponed(job: int = 1, attempt: int = 1, at: float = 0.0) -> RunPostponed:
    return RunPostponed(T0 + at, a_run(job, attempt), NO_SPACE)


def where_starts_fail(*commands: str, **policy: Any) -> State:
    """Job 1 could not be started on GPU1; GPU2 is well."""
    start, _ = begun()
    state = a_cluster(*commands, more=[start, postponed(at=1.0)], **policy)
    for host in (GPU1, GPU2):
        here(state, host, on(0, host), at=1.0)
    return state


def test_where_a_start_failed_nothing_starts_for_a_while_and_elsewhere_at_once():
    state = where_starts_fail("a", "b")

    decision = decided(state, 1.0)

    assert starts(decision) == [(1, "gpu2/0")]
    assert decision.wake_at == T0 + 1 + FIRST_POSTPONE_SECONDS
    for event in decision.events:
        apply(state, event)
    see(state, a_snapshot(on(0, GPU1), at=T0 + 2, host=GPU1))
    assert starts(decided(state, 2.0)) == [(2, "gpu1/0")]


def test_a_host_where_starts_fail_is_tried_less_and_less_often_until_one_succeeds():
    state = where_starts_fail("a")
    pauses = []
    for attempt in range(2, 10):
        at = state.postponed[GPU1].until
        apply(state, begun(1, GPU1, attempt=attempt, at=at - T0)[0])
        apply(state, postponed(1, attempt, at=at - T0))
        pauses.append(state.postponed[GPU1].until - at)

    assert pauses == [2, 4, 8, 16, 30, 30, 30, 30]
    for event in begun(1, GPU1, attempt=10, at=300.0):
        apply(state, event)
    assert state.postponed[GPU1].next_seconds == FIRST_POSTPONE_SECONDS


def test_why_nothing_starts_names_the_host_where_starts_fail():
    state = where_starts_fail("a")
    away(state, GPU2)

    waiting = decided(state, 1.5).waiting

    assert waiting is not None
    assert f"GPU gpu1/0: could not start a command there: {NO_SPACE}; trying again" in waiting.why


def test_jobs_without_a_gpu_keep_away_from_a_host_where_starts_fail():
    state = where_starts_fail("a", "b  # smartsched: gpus=0")
    away(state, GPU2)

    assert starts(decided(state, 1.5)) == []
    here(state, GPU2, on(0, GPU2), at=1.5)
    assert starts(decided(state, 1.5)) == [(1, "gpu2/0"), (2, "gpu2")]


def test_a_dispatcher_that_is_resumed_tries_at_once_where_starts_failed():
    state = where_starts_fail("a")

    apply(state, RunResumed(T0 + 1.5, GPU1, "{}"))

    assert state.postponed == {}


# --- jobs without a GPU


def test_jobs_without_a_gpu_are_spread_by_the_cores_of_hosts():
    state = a_cluster(*(f"{n}  # smartsched: gpus=0" for n in range(5)))
    here(state, GPU1, cores=1)
    here(state, GPU2, cores=3)

    assert starts(decided(state)) == [(1, "gpu2"), (2, "gpu2"), (3, "gpu1"), (4, "gpu2")]


def test_those_that_run_already_count_where_they_are():
    placed = RunPlaced(T0, a_run(1), Placement((), GPU2))
    state = a_cluster("a  # smartsched: gpus=0", "b  # smartsched: gpus=0", more=[placed])
    here(state, GPU1, cores=1)
    here(state, GPU2, cores=1)

    assert starts(decided(state)) == [(2, "gpu1")]


def test_without_a_host_a_job_without_a_gpu_waits():
    state = a_cluster("a  # smartsched: gpus=0")
    away(state, GPU1)

    decision = decided(state)

    assert starts(decision) == []
    assert decision.waiting is not None
    assert decision.waiting.why == "no host is there for a job without a GPU"


def test_jobs_without_a_gpu_keep_away_from_hosts_where_no_command_can_run():
    state = a_cluster("a  # smartsched: gpus=0")
    here(state, GPU1, cores=1)
    see(state, HostHere(GPU2, "node", 64, is_unfit=True))
    see(state, SamplerTrouble(GPU2, "there is no folder /home/me: name one that is there"))

    assert starts(decided(state)) == [(1, "gpu1")]


def test_a_job_without_a_gpu_runs_on_a_host_whose_gpus_cannot_be_read():
    state = a_cluster("a  # smartsched: gpus=0")
    here(state, GPU1)
    see(state, SamplerTrouble(GPU1, "there is no NVIDIA driver"))

    assert starts(decided(state)) == [(1, "gpu1")]


# --- hosts that leave


def leaving(**policy: Any) -> State:
    state = a_cluster("a", more=begun(), **policy)
    here(state, GPU1, on(0, GPU1))
    see(state, HostHere(GPU1, "node", 2, leaves=True))
    return state


@pytest.mark.parametrize(("asks", "action"), [(False, Terminate), (True, Checkpoint)])
def test_runs_of_a_host_that_leaves_are_told_to_save_their_state(asks: bool, action: Any):
    decision = decided(leaving(asks_for_checkpoints=asks), 1.0)

    assert happened(decision, RunStopping) == [stopping(at=1.0, why="leaving")]
    assert action(a_run()) in decision.actions


@pytest.mark.parametrize("ending", [Exited(0), Exited(1), Killed(15)])
def test_what_a_host_that_leaves_has_stopped_is_started_anew_however_it_ended(ending: Ending):
    state = leaving()
    for event in (stopping(at=1.0, why="leaving"), exited(at=T0 + 2, ending=ending)):
        apply(state, event)

    assert settled(state, 2.0) == JobRequeued(T0 + 2, a_run(), "leaving", T0 + 2)


def test_to_save_its_state_a_run_has_the_longer_of_both_graces():
    state = leaving(grace_seconds=5.0, yield_grace_seconds=20.0)
    apply(state, stopping(at=1.0, why="leaving"))

    assert happened(decided(state, 20.9), RunKilled) == []
    assert happened(decided(state, 21.0), RunKilled) == [RunKilled(T0 + 21, a_run())]


def test_a_host_that_is_gone_for_good_is_forgotten():
    state = a_cluster("a")
    here(state, GPU1, on(0, GPU1))
    here(state, GPU2, on(0, GPU2))

    away(state, GPU1, for_good=True)

    assert list(state.hosts) == [GPU2]
    assert list(state.gpus) == [a_key(0, GPU2)]
    assert not state.troubles
    assert list(state.cards) == [GPU2]


def test_what_was_held_on_a_host_that_is_gone_for_good_is_given_back():
    state = a_cluster("a", more=[*begun(), exited(at=T0 + 1)])
    here(state, GPU1, on(0, GPU1), at=0.5)
    away(state, GPU1, at=2.0, for_good=True)

    decision = decided(state, 2.0)

    assert happened(decision, GpuReleased) == [GpuReleased(T0 + 2, a_key(0, GPU1), a_run())]
    apply(state, decision.events[0])
    assert not state.holds


def test_what_is_held_on_a_host_that_may_come_back_is_not_given_back():
    state = a_cluster("a", more=[*begun(), exited(at=T0 + 1)])
    here(state, GPU1, on(0, GPU1), at=0.5)
    away(state, GPU1, at=2.0)

    assert happened(decided(state, 2.0), GpuReleased) == []


def test_what_may_still_run_on_a_host_that_is_gone_for_good_is_held():
    state = a_cluster("a", more=begun())
    here(state, GPU1, on(0, GPU1))
    away(state, GPU1, for_good=True)

    assert happened(decided(state, 2.0), GpuReleased) == []


def test_a_host_that_comes_back_after_all_is_used_again():
    state = a_cluster("a")
    here(state, GPU1, on(0, GPU1))
    away(state, GPU1, at=1.0, for_good=True)
    here(state, GPU1, on(0, GPU1), at=2.0)

    assert starts(decided(state, 2.0)) == [(1, "gpu1/0")]


# --- what cannot be reached


def out_of_reach(*more: Event, **policy: Any) -> State:
    """Job 1 runs on a host that is away since T0 + 5."""
    state = a_cluster("a", "b", more=[*begun(), *more], **policy)
    here(state, GPU1, on(0, GPU1))
    away(state, GPU1, at=5.0)
    return state


def back(state: State, at: float) -> State:
    here(state, GPU1, on(0, GPU1), at=at)
    return state


def run_in(state: State) -> Run:
    (run,) = state.runs.values()
    return run


def test_a_host_is_out_of_reach_until_its_agent_is_here():
    state = a_cluster("a")
    assert is_out_of_reach(state, GPU1)

    here(state, GPU1)
    assert not is_out_of_reach(state, GPU1)
    away(state, GPU1)

    assert is_out_of_reach(state, GPU1)


def test_on_one_box_nothing_is_out_of_reach():
    assert not is_out_of_reach(replay(a_policy(), []), GPU1)


def test_a_run_out_of_reach_is_not_said_to_have_taken_too_long():
    """It may have ended by itself long ago."""
    state = out_of_reach(timeout_seconds=10.0)

    assert decided(state, 60.0).events == []
    assert happened(decided(back(state, 70.0), 70.0), RunStopping) == [
        stopping(at=70.0, why="timeout")
    ]


def test_a_run_out_of_reach_does_not_give_way():
    state = out_of_reach(on_contention="requeue")
    met = used_by(a_process(gib=50.0), key=a_key(0, GPU1))
    see(state, a_snapshot(met, at=T0 + 5, host=GPU1))  # its last words
    assert happened(decided(state, 5.0), RunStopping) == []

    here(state, GPU1, met, at=60.0)

    assert why_stopped(decided(state, 60.0)) == ["contention"]


def test_a_run_out_of_reach_is_not_killed_and_has_its_grace_when_it_is_back():
    state = out_of_reach(stopping(at=1.0, why="timeout"), grace_seconds=10.0)

    assert decided(state, 60.0).events == []
    back(state, 70.0)
    assert happened(decided(state, 79.9), RunKilled) == []
    assert happened(decided(state, 80.0), RunKilled) == [RunKilled(T0 + 80, a_run())]


def test_a_run_out_of_reach_is_not_given_up_as_one_that_cannot_be_killed():
    state = out_of_reach(stopping(at=1.0), RunKilled(T0 + 4.0, a_run()))

    assert not is_given_up(state, run_in(state), T0 + 1000)
    assert not decided(state, 1000.0).over
    back(state, 1000.0)
    assert not is_given_up(state, run_in(state), T0 + 1000 + UNKILLABLE_AFTER_SECONDS - 0.1)
    assert is_given_up(state, run_in(state), T0 + 1000 + UNKILLABLE_AFTER_SECONDS)


def test_a_job_waits_until_what_its_failed_run_left_behind_out_of_reach_is_gone():
    left = exited(at=T0 + 2, ending=Exited(1), leftovers=1)
    state = out_of_reach(left, stopping(at=2.0), RunKilled(T0 + 3.0, a_run()), retries=1)

    assert settled(state, 1000.0) is None
    apply(state, RunCleared(T0 + 1001, a_run()))

    assert isinstance(settled(state, 1001.0), JobRequeued)


def test_who_wants_to_end_does_not_wait_for_a_host_that_is_out_of_reach():
    state = out_of_reach(grace_seconds=10.0)
    apply(state, StopRequested(T0 + 20, "ctrl-c"))

    decision = decided(state, 20.0)
    assert happened(decision, RunStopping) == [stopping(at=20.0)]
    apply(state, stopping(at=20.0))
    decision = decided(state, 30.0)
    assert decision.actions == [Kill(a_run())]
    apply(state, RunKilled(T0 + 30, a_run()))

    assert not decided(state, 30.0).over
    assert decided(state, 30.0 + UNKILLABLE_AFTER_SECONDS).over


def test_who_ends_it_leaves_open_what_becomes_of_a_job_that_has_left_something_out_of_reach():
    """That may be gone by then: he who resumes the run finds out, and tries the job again."""
    left = exited(at=T0 + 2, ending=Exited(1), leftovers=1)
    state = out_of_reach(left, stopping(at=2.0), RunKilled(T0 + 3.0, a_run()), retries=1)
    apply(state, StopRequested(T0 + 20, "ctrl-c"))

    assert settled(state, 1000.0) is None
    assert decided(state, 1000.0).over

    apply(state, RunResumed(T0 + 2000, HostName("desk"), "{}"))
    assert not decided(state, 2000.0).over
    back(state, 2001.0)
    apply(state, RunCleared(T0 + 2002, a_run()))
    assert isinstance(settled(state, 2002.0), JobRequeued)


def test_what_is_claimed_on_a_host_that_is_away_is_ours_no_more():
    state = a_cluster("a", claims=True)
    here(state, GPU1, on(0, GPU1))
    state.claimed |= {a_key(0, GPU1): T0, a_key(0, GPU2): T0}

    away(state, GPU1)

    assert list(state.claimed) == [a_key(0, GPU2)]


# --- what is lost with its host


def lost_with_its_host(losses: int, **policy: Any) -> State:
    state = a_cluster("a", **policy)
    for attempt in range(1, losses + 1):
        life: list[Event] = [
            RunPlaced(T0, a_run(1, attempt), Placement((), GPU1)),
            RunLaunched(T0, a_run(1, attempt), a_process_id(), None),
            RunExited(T0, a_run(1, attempt), Lost("its host was out of reach"), 0),
        ]
        for event in life:
            apply(state, event)
        if attempt < losses:
            for settled in settle(state, T0):
                apply(state, settled)
    return state


@pytest.mark.parametrize(("losses", "kind"), [(1, JobRequeued), (5, JobRequeued), (6, JobFinished)])
def test_jobs_whose_host_is_lost_are_started_anew_a_few_times(losses: int, kind: type):
    assert isinstance(settled(lost_with_its_host(losses)), kind)


def test_a_loss_says_nothing_of_the_gpu():
    state = a_cluster("a", more=[*begun(), exited(ending=Lost("out of reach"))])

    for event in settle(state, T0):
        apply(state, event)

    assert state.records == {}


# --- where everything fails

PILOT1, PILOT2 = HostName("slurm-1"), HostName("slurm-2")
ONE_COMES = PilotsStand("1 pilot waits (Resources)", may_bring=True, hopeless="")
NONE_COMES = PilotsStand("1 pilot runs", may_bring=False, hopeless="")


def failed(job: int, host: HostName, index: int = 0, at: float = 0.0) -> list[Event]:
    end = RunExited(T0 + at + 1, a_run(job), Exited(1), 0)
    done = JobFinished(T0 + at + 1, a_run(job), "failed")
    released = GpuReleased(T0 + at + 1, a_key(index, host), a_run(job))
    return [*begun(job, host, index, at), end, released, done]


def three_failed(host: HostName = PILOT1, index: int = 0, first: int = 1) -> list[Event]:
    return [event for n in range(3) for event in failed(first + n, host, index, at=n)]


def where_three_failed(*more: Event, **policy: Any) -> State:
    commands = [f"train {number}" for number in range(20)]
    policy = {"gpus_per_pilot": 1} | policy
    state = a_cluster(*commands, more=[*three_failed(), *more], **policy)
    here(state, PILOT1, on(0, PILOT1), at=5.0)
    return state


def halted(state: State, at: float = 5.0) -> list[str]:
    return [event.why for event in decided(state, at).events if isinstance(event, Halted)]


def test_where_all_fails_on_all_that_may_come_it_is_the_command():
    state = where_three_failed()
    see(state, NONE_COMES)

    assert halted(state) == ["the command itself fails: 3 in a row failed at once on 1 GPU"]


def test_where_all_fails_on_one_pilot_the_next_one_may_show_that_it_was_that_gpu():
    state = where_three_failed()
    see(state, ONE_COMES)

    assert halted(state) == []
    assert starts(decided(state, 5.0)) == []


def test_where_all_fails_on_more_gpus_than_a_pilot_has_the_next_one_is_not_waited_for():
    state = where_three_failed(*three_failed(PILOT2, 1, first=4))
    see(state, ONE_COMES)

    assert len(halted(state)) == 1


def test_pilots_that_none_are_submitted_of_any_more_are_not_waited_for():
    state = where_three_failed()
    see(state, PilotsStand("no pilots", may_bring=True, hopeless="none are submitted"))

    assert len(halted(state)) == 1


def test_what_failed_on_gpus_that_are_gone_says_nothing_where_there_is_no_other():
    state = where_three_failed()
    away(state, PILOT1, for_good=True)
    see(state, NONE_COMES)

    assert halted(state) == []


def test_while_an_agent_is_being_started_nothing_is_halted():
    state = where_three_failed()
    see(state, HostAway(GPU2, BEING_STARTED))
    assert halted(state) == []

    see(state, HostAway(GPU2, "ssh does not reach it"))
    assert len(halted(state)) == 1


def test_a_gpu_that_is_suspect_is_so_under_the_name_of_the_next_pilot_too():
    state = where_three_failed()
    away(state, PILOT1, for_good=True)
    here(state, PILOT2, on(0, PILOT2), on(1, PILOT2), at=6.0)

    assert starts(decided(state, 6.0)) == [(4, "slurm-2/1")]


def test_pilots_that_come_and_go_leave_no_more_behind_than_there_are_gpus():
    state = a_cluster(*(f"train {number}" for number in range(60)))
    for number in range(60):
        host = HostName(f"slurm-{number}")
        here(state, host, on(number % 2, host), at=number)
        for event in failed(number + 1, host, number % 2, at=number):
            apply(state, event)
        away(state, host, for_good=True)

    assert len(state.records) == 2


# --- what can never be


def asked(state: State) -> list[str]:
    return list(impossible(state).values())


def test_a_job_needs_no_more_gpus_than_one_host_has():
    state = a_cluster("a  # smartsched: gpus=2")
    here(state, GPU1, on(0, GPU1))
    here(state, GPU2, on(0, GPU2))

    assert asked(state) == ["it needs 2 GPUs on one host, and none has more than 1"]


def test_nothing_is_impossible_while_a_host_has_not_been_seen():
    state = a_cluster("a  # smartsched: gpus=2")
    here(state, GPU1, on(0, GPU1))
    away(state, GPU2)

    assert asked(state) == []


def test_a_host_that_was_seen_and_is_away_counts_as_it_was():
    state = a_cluster("a  # smartsched: gpus=2", "b  # smartsched: gpus=3")
    here(state, GPU1, on(0, GPU1), on(1, GPU1))
    away(state, GPU1)

    assert impossible(state).keys() == {Asked(3, None)}


def test_nothing_is_impossible_where_other_hosts_may_come():
    state = a_cluster("a  # smartsched: gpus=9", hosts_may_come=True)
    here(state, GPU1, on(0, GPU1))

    assert asked(state) == []


# --- what people are told


def row(state: State, host: HostName) -> Any:
    found = status(state, None, T0)["hosts"]
    return next(each for each in found if each["host"] == host)


def test_the_status_has_a_line_for_each_host():
    state = a_cluster("a", more=begun())
    here(state, GPU1, on(0, GPU1), on(1, GPU1))
    away(state, GPU2)

    assert row(state, GPU1) == {
        "host": "gpu1",
        "node": "node-gpu1",
        "cores": 2,
        "standing": "here",
        "why": "",
        "gpus": 2,
        "gpus_in_use": 1,
        "running": [1],
    }
    assert (row(state, GPU2)["standing"], row(state, GPU2)["why"]) == ("away", "out of reach")


def test_the_status_says_who_leaves():
    assert row(leaving(), GPU1)["standing"] == "leaving"


def test_one_box_has_no_hosts_in_its_status():
    state = replay(a_policy(), [])
    see(state, HostHere(GPU1, "node", 8))

    assert status(state, None, T0)["hosts"] == []


def test_why_nothing_starts_names_the_hosts_of_which_nothing_was_seen():
    state = a_cluster("a")
    away(state, GPU1)

    waiting = decided(state).waiting

    assert waiting is not None
    assert "gpu1: out of reach" in waiting.why


# --- the user's choice of GPUs


def test_the_choice_of_gpus_is_made_for_good_when_a_host_is_seen_first():
    from smartsched.core.selection import Selection, parse_ids

    state = a_cluster("a", selection=Selection(parse_ids("1")))
    here(state, GPU1, on(0, GPU1), on(1, GPU1))
    assert list(state.gpus) == [a_key(1, GPU1)]

    moved = a_sample(0, key=a_key(1, GPU1), memory_total_bytes=100 * GIB)
    see(state, a_snapshot(moved, at=T0 + 1, host=GPU1))

    assert state.gpus[a_key(1, GPU1)].latest.index == 0


def test_a_gpu_that_cannot_be_read_on_one_host_says_nothing_of_another():
    state = a_cluster("a")
    broken = GpuUnreadable(a_key(0, GPU1), 0, None, "?", "GPU is lost")
    here(state, GPU1, broken)
    here(state, GPU2, on(0, GPU2))

    assert starts(decided(state)) == [(1, "gpu2/0")]


# --- GPUs that a host does not offer


def test_where_a_card_that_is_not_offered_is_out_of_reach_the_others_go_by_their_uuids():
    state = a_cluster("a")
    lost = GpuUnreadable(a_key(0, GPU1), 0, None, "Test GPU", "GPU is lost")
    see(state, HostHere(GPU1, "node", 2))

    see(state, a_snapshot(lost, on(1), host=GPU1, withheld=[lost]))

    [launch] = [action for action in decided(state).actions if isinstance(action, Launch)]
    assert [gpu.visible for gpu in launch.placement.gpus] == [a_key(1, GPU1).uuid]


def test_nothing_is_started_on_a_gpu_that_is_not_offered():
    state = a_cluster("a", "b")
    see(state, HostHere(GPU1, "node", 2))

    see(state, a_snapshot(on(0), on(1), host=GPU1, withheld=[on(0)]))

    assert starts(decided(state)) == [(1, "gpu1/1")]
    assert list(state.gpus) == [a_key(1, GPU1)]
