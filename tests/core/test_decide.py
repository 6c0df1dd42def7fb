"""What is done next, given what we believe."""

from copy import deepcopy
from typing import Any

import pytest
from msgspec.structs import replace

from smartsched.core.actions import Claim, Kill, Launch, Refresh, Release, Terminate
from smartsched.core.apply import apply
from smartsched.core.capacity import ASK_AGAIN_SECONDS, offers
from smartsched.core.decide import (
    UNKILLABLE_AFTER_SECONDS,
    Decision,
    decide,
)
from smartsched.core.events import (
    DrainRequested,
    Event,
    GpuReleased,
    InputEnded,
    RunCleared,
    RunExited,
    RunKilled,
    RunPlaced,
    RunPostponed,
    RunStopping,
    StopRequested,
    WaitTimedOut,
)
from smartsched.core.freeness import Free, Thresholds, Unknown
from smartsched.core.hours import parse_cap
from smartsched.core.model import (
    ClaimGranted,
    ClaimRefused,
    Exited,
    GpuReading,
    NotStarted,
    SamplerTrouble,
    StopReason,
    Wait,
)
from smartsched.core.placement import NO_GPU
from smartsched.core.planning import WAIT_FOR_ANOTHER_GPU_SECONDS
from smartsched.core.selection import Selection, parse_ids
from smartsched.core.sight import hear
from smartsched.core.standing import (
    REMEMBERED_SECONDS,
    current_verdict,
    why_none_is_free,
    why_not,
    withheld_because,
)
from smartsched.core.state import FIRST_POSTPONE_SECONDS, State
from tests.builders import (
    GIB,
    HOST,
    T0,
    a_key,
    a_part,
    a_process,
    a_run,
    a_sample,
    a_snapshot,
    a_state,
    accepted,
    begun,
    decided,
    exited,
    finished,
    launched,
    launches,
    listed,
    ours,
    placed,
    requeued,
    see,
    unreadable,
    used_by,
)

DRAIN = DrainRequested(T0, "ctrl-c")
STOP = StopRequested(T0, "ctrl-c")
RUNNING: list[Event] = [*accepted(1), InputEnded(T0), placed(), launched()]
LINGERING = [*RUNNING, exited(at=T0 + 10, leftovers=1), finished(at=T0 + 10)]
ASKED = [*LINGERING, RunStopping(T0 + 10, a_run())]
KILLED = [*ASKED, RunKilled(T0 + 20, a_run())]
ENDED = [*RUNNING, exited(at=T0 + 10), finished(at=T0 + 10)]


def running_with(*more: Event, **policy: Any) -> State:
    return a_state(events=[*RUNNING, *more], **policy)


def ended_with(gpu: GpuReading, *, at: float) -> State:
    """A run of GPU 0 ended at T0 + 10, and the GPU was read so long after T0."""
    return a_state(gpu, events=ENDED, at=T0 + at)


def settled(decision: Decision) -> bool:
    """Whether it can wait now for something to happen."""
    return not decision.events and not decision.actions


# --- giving GPUs away


def test_a_queued_job_starts_on_a_free_gpu():
    state = a_state(a_sample(), queued=1)

    decision = decided(state)

    (event,) = decision.events
    assert event == placed()
    assert decision.actions == [Launch(a_run(), state.queue[0].spec, placed().placement)]
    assert decision.waiting is None
    assert not decision.over


def test_the_emptiest_gpu_comes_first():
    gpus = [used_by(a_process(gib=gib), index=n) for n, gib in enumerate([5, 1, 9, 3])]

    decision = decided(a_state(*gpus, queued=4))

    assert launches(decision) == [(1, "1"), (2, "3"), (3, "0"), (4, "2")]


def test_ties_go_by_index():
    decision = decided(a_state(a_sample(10), a_sample(9), a_sample(2), queued=3))

    assert launches(decision) == [(1, "2"), (2, "9"), (3, "10")]


def test_only_strangers_memory_decides_which_comes_first():
    ours_was_here = a_sample(0, used_gib=0.1)
    state = a_state(ours_was_here, a_sample(1), queued=2)

    assert launches(decided(state)) == [(1, "1"), (2, "0")]


def test_a_gpu_takes_one_job_at_a_time():
    state = a_state(a_sample(), queued=3)

    assert launches(decided(state)) == [(1, "0")]
    apply(state, placed())
    apply(state, launched())
    assert launches(decided(state)) == []


@pytest.mark.parametrize(
    "gpu",
    [unreadable(), used_by(a_process(gib=50)), a_sample(ailment="reset required")],
    ids=["unreadable", "busy", "ill"],
)
def test_a_gpu_that_is_not_free_takes_no_work(gpu: GpuReading):
    decision = decided(a_state(gpu, queued=1))

    assert settled(decision)
    assert decision.waiting is not None


def test_a_gpu_not_yet_watched_for_the_window_takes_no_work():
    state = a_state(a_sample(), queued=1, thresholds=Thresholds(free_for_seconds=10))

    assert settled(decided(state))
    assert decided(state).waiting is not None


def test_no_gpu_takes_work_before_any_was_read():
    decision = decided(a_state(queued=1))

    assert decision.waiting is not None
    assert decision.waiting.why == "the GPUs have not been read yet"


def test_no_gpu_takes_work_while_the_sampler_is_in_trouble():
    state = a_state(a_sample(), queued=1)
    see(state, SamplerTrouble(HOST, "the driver has not answered for 5s"))

    decision = decided(state)

    assert settled(decision)
    assert decision.waiting is not None
    assert decision.waiting.why == "GPU 0: the driver has not answered for 5s"


def test_trouble_on_one_host_leaves_the_others_alone():
    far = a_sample(0, key=a_key(0, "far"))
    state = a_state(a_sample(), queued=1)
    see(state, a_snapshot(far, host="far"))
    see(state, SamplerTrouble(HOST, "hangs"))

    (event,) = decided(state).events

    assert event.placement.gpus[0].key == far.key  # type: ignore[union-attr]


@pytest.mark.parametrize(("age", "starts"), [(0.0, True), (6.0, True), (6.1, False), (3600, False)])
def test_a_gpu_last_seen_too_long_ago_takes_no_work(age: float, starts: bool):
    state = a_state(a_sample(), queued=1)

    decision = decided(state, age)

    assert bool(launches(decision) or decision.actions) == starts


def test_a_stale_gpu_says_since_when():
    state = a_state(a_sample(), queued=1)

    found = current_verdict(state, state.gpus[a_key()], T0 + 90)

    assert found == Unknown("not seen for 1m 30s")


def test_the_age_allowed_grows_with_the_interval():
    state = a_state(a_sample(), queued=1, interval_seconds=60.0)

    assert isinstance(current_verdict(state, state.gpus[a_key()], T0 + 64), Free)
    assert isinstance(current_verdict(state, state.gpus[a_key()], T0 + 66), Unknown)


def test_a_gpu_is_looked_at_once_more_before_a_start():
    """Between samples a colleague may have come."""
    state = a_state(a_sample(0), a_sample(1), queued=3)

    looks = decided(state, 0.5)
    see(state, a_snapshot(a_sample(0), used_by(a_process(gib=50), index=1), at=T0 + 0.51))
    then = decided(state, 0.51)

    assert {action.gpu for action in looks.actions if isinstance(action, Refresh)} == {
        a_key(0),
        a_key(1),
    }
    assert not looks.events
    assert launches(then) == [(1, "0")]


def test_a_look_that_took_the_driver_long_counts_when_it_arrives():
    state = a_state(a_sample(), queued=1)

    see(state, a_snapshot(a_sample(), at=T0 + 1), T0 + 5.5)

    assert launches(decided(state, 5.5)) == [(1, "0")]


def test_the_list_keeps_its_order_where_only_a_later_gpu_was_just_seen():
    state = a_state(a_sample(0), a_sample(1), queued=2)
    see(state, a_snapshot(a_sample(1), at=T0 + 0.5, whole=False))

    decision = decided(state, 0.5)

    assert launches(decision) == []
    assert [a.gpu for a in decision.actions if isinstance(a, Refresh)] == [a_key(0)]
    see(state, a_snapshot(a_sample(0), at=T0 + 0.51, whole=False))
    assert launches(decided(state, 0.51)) == [(1, "0"), (2, "1")]


def test_a_reason_to_wait_names_gpus_with_the_same_reason_together():
    state = a_state(unreadable(0), a_sample(1, ailment="sick"), unreadable(2), queued=1)

    assert why_none_is_free(state, T0) == "GPU 0,2: GPU is lost · GPU 1: health sick"


def test_a_reason_to_wait_is_given_whenever_something_waits():
    state = a_state(a_sample(), queued=2)

    decision = decided(state)

    assert launches(decision) == [(1, "0")]
    assert decision.waiting is not None
    assert decision.waiting.why


def test_a_gpu_that_runs_a_job_of_ours_says_so():
    state = a_state(a_sample(), queued=2, events=[placed(), launched()])

    decision = decided(state)

    assert decision.waiting is not None
    assert decision.waiting.why == "GPU 0: runs job 1"


def test_without_a_queue_nothing_waits():
    assert decided(a_state(unreadable())).waiting is None


# --- under which name


def launched_as(state: State) -> str:
    (action,) = decided(state).actions
    assert isinstance(action, Launch)
    return action.placement.gpus[0].visible


def test_a_job_sees_its_gpu_by_index():
    assert launched_as(a_state(a_sample(3), queued=1)) == "3"


def test_a_job_sees_its_gpu_by_uuid_on_request():
    assert launched_as(a_state(a_sample(3), queued=1, visible_by="uuid")) == "GPU-0003"


def test_a_job_sees_a_mig_instance_by_uuid():
    assert launched_as(a_state(a_sample(3, slot=1), queued=1)) == "GPU-0003"


def test_a_job_above_an_unreadable_gpu_sees_its_own_by_uuid():
    assert launched_as(a_state(unreadable(0), a_sample(1), queued=1)) == "GPU-0001"


def test_a_job_above_a_vanished_gpu_sees_its_own_by_uuid():
    state = a_state(a_sample(0), a_sample(1), queued=1)
    see(state, a_snapshot(a_sample(1), at=T0 + 1))

    assert launched_as(state) == "GPU-0001"


def test_an_unreadable_gpu_makes_indices_unsure_even_if_it_may_not_be_used():
    # CUDA skips a lost card and numbers the rest anew, whatever we chose to look at
    only_the_second = Selection(parse_ids("1"))

    state = a_state(unreadable(0), a_sample(1), queued=1, selection=only_the_second)

    assert launched_as(state) == "GPU-0001"


def test_an_unreadable_gpu_of_another_host_does_not_matter():
    state = a_state(a_sample(1), queued=1)
    lost = replace(unreadable(0), key=a_key(0, "far"))
    see(state, a_snapshot(lost, host="far"))

    assert launched_as(state) == "1"


# --- taking GPUs back


def test_a_gpu_is_looked_at_once_its_run_has_ended():
    state = ended_with(a_sample(), at=9.9)

    assert decided(state, 10).actions == [Refresh(a_key(), T0 + 10)]


def test_a_gpu_is_released_when_its_memory_is_back():
    state = ended_with(a_sample(), at=10.001)

    decision = decided(state, 10.001)

    assert decision.events == [GpuReleased(T0 + 10.001, a_key(), a_run())]
    assert decision.actions == []


def test_a_released_gpu_is_given_to_the_next_job_at_once():
    state = a_state(
        a_sample(), queued=2, events=[placed(), launched(), exited(at=T0 + 10)], at=T0 + 10.001
    )

    decision = decided(state, 10.001)

    assert [type(event).__name__ for event in decision.events] == ["GpuReleased", "RunPlaced"]
    for event in decision.events:
        apply(state, event)  # legal in this order


def test_a_gpu_is_held_until_its_memory_is_back():
    state = ended_with(a_sample(used_gib=20), at=10.001)

    decision = decided(state, 10.002)

    assert decision.events == []
    assert decision.wake_at == pytest.approx(T0 + 10.021)
    assert withheld_because(state, a_key(), T0 + 12) == (
        "memory of job 1 has not come back for 2.0s"
    )


def test_memory_not_back_is_looked_at_again_when_it_is_time():
    state = ended_with(a_sample(used_gib=20), at=10.001)

    decision = decided(state, 10.03)

    (action,) = decision.actions
    assert isinstance(action, Refresh)
    assert action.after == pytest.approx(T0 + 10.021)


@pytest.mark.parametrize(
    ("seen_after", "next_look_after"), [(0.0, 0.02), (0.1, 0.05), (1.0, 0.5), (4.0, 1.0), (60, 1.0)]
)
def test_looks_for_memory_grow_rarer(seen_after: float, next_look_after: float):
    state = ended_with(a_sample(used_gib=20), at=10 + seen_after)

    decision = decided(state, 10 + seen_after)

    assert decision.wake_at == pytest.approx(T0 + 10 + seen_after + next_look_after)


def test_an_unreadable_gpu_is_not_released():
    decision = decided(ended_with(unreadable(), at=10.001), 10.001)

    assert settled(decision)


def test_memory_that_stays_away_for_long_is_said_to_be_withheld():
    state = ended_with(a_sample(used_gib=20), at=45)

    why = why_not(state, a_key(), state.gpus[a_key()], T0 + 45)

    assert why == "withheld: memory of job 1 has not come back for 35s"
    assert not any(isinstance(event, GpuReleased) for event in decided(state, 45).events)


def test_memory_that_comes_back_late_still_frees_the_gpu():
    state = ended_with(a_sample(), at=500)

    assert decided(state, 500).events == [GpuReleased(T0 + 500, a_key(), a_run())]


def test_memory_a_stranger_took_meanwhile_frees_us_of_the_gpu_but_it_is_not_free():
    state = a_state(
        used_by(a_process(900, gib=50)),
        queued=2,
        events=[placed(), launched(), exited(at=T0 + 10)],
        at=T0 + 10.001,
    )

    decision = decided(state, 10.001)

    assert [type(event) for event in decision.events] == [GpuReleased]
    assert decision.waiting is not None


# --- ending runs


def test_nothing_is_stopped_that_nobody_asked_to():
    assert settled(decided(running_with(), 1e6))
    assert settled(decided(running_with(DRAIN), 1e6))


def test_stopping_asks_every_run_politely():
    decision = decided(running_with(STOP), 5)

    assert decision.events == [RunStopping(T0 + 5, a_run())]
    assert decision.actions == [Terminate(a_run())]


def test_a_run_that_was_asked_has_the_grace_period():
    state = running_with(STOP, RunStopping(T0 + 5, a_run()), grace_seconds=7.0)

    decision = decided(state, 11.9)

    assert settled(decision)
    assert decision.wake_at == T0 + 12


def test_a_run_that_does_not_end_in_time_is_killed():
    state = running_with(STOP, RunStopping(T0 + 5, a_run()), grace_seconds=7.0)

    decision = decided(state, 12)

    assert decision.events == [RunKilled(T0 + 12, a_run())]
    assert decision.actions == [Kill(a_run())]


def test_a_run_is_killed_once():
    state = running_with(STOP, RunStopping(T0, a_run()), RunKilled(T0 + 10, a_run()))

    assert settled(decided(state, 1000))


def test_asked_to_stop_again_nobody_waits_for_the_grace_period():
    state = running_with(STOP, RunStopping(T0 + 5, a_run()), STOP)

    assert decided(state, 5).actions == [Kill(a_run())]


def test_asked_twice_at_once_runs_are_asked_before_they_are_killed():
    state = running_with(STOP, STOP)

    decision = decided(state, 5)

    assert decision.actions == [Terminate(a_run())]
    assert decision.wake_at <= T0 + 5


def test_leftovers_are_asked_to_end():
    decision = decided(a_state(events=LINGERING), 10)

    assert decision.actions == [Terminate(a_run())]
    assert decision.events == [RunStopping(T0 + 10, a_run())]


def test_leftovers_that_do_not_end_in_time_are_killed():
    state = a_state(events=ASKED)

    assert settled(decided(state, 19.9))
    assert decided(state, 19.9).wake_at == T0 + 20
    assert decided(state, 20).actions == [Kill(a_run())]


def test_leftovers_hold_their_gpu_while_they_live():
    left: list[Event] = [placed(), launched(), exited(at=T0 + 10, leftovers=1)]
    state = a_state(a_sample(), queued=2, events=left)

    decision = decided(state, 5)

    assert launches(decision) == []
    assert decision.waiting is not None
    assert decision.waiting.why == ("GPU 0: processes that job 1 left behind are being stopped")


def test_leftovers_that_even_a_kill_does_not_end_are_given_up():
    state = a_state(events=KILLED)

    waiting = decided(state, 20 + UNKILLABLE_AFTER_SECONDS - 0.1)
    given_up = decided(state, 20 + UNKILLABLE_AFTER_SECONDS)

    assert not waiting.over
    assert waiting.wake_at == T0 + 20 + UNKILLABLE_AFTER_SECONDS
    assert given_up.over


def test_leftovers_that_were_given_up_still_hold_their_gpu():
    state = a_state(a_sample(), events=KILLED, at=T0 + 1000)

    assert not offers(state, T0 + 1000)
    assert withheld_because(state, a_key(), T0 + 1000) == (
        "processes that job 1 left behind cannot be killed"
    )


def test_leftovers_that_were_given_up_wake_nobody():
    still_fed = [event for event in KILLED if not isinstance(event, InputEnded)]
    now = 20 + UNKILLABLE_AFTER_SECONDS + 5

    decision = decided(a_state(events=still_fed), now)

    assert not decision.over
    assert decision.wake_at > T0 + now


def test_a_gpu_is_looked_at_once_the_leftovers_are_gone():
    state = a_state(a_sample(), events=[*KILLED, RunCleared(T0 + 21, a_run())])

    assert decided(state, 21).actions == [Refresh(a_key(), T0 + 21)]


@pytest.mark.parametrize("events", [LINGERING, ASKED, KILLED], ids=["left", "asked", "killed"])
def test_it_is_not_over_while_leftovers_may_still_end(events: list[Event]):
    assert not decided(a_state(events=events), 21).over


# --- how it ends


def test_it_is_over_when_all_is_done_and_nothing_more_can_come():
    assert decided(a_state(a_sample(), events=[InputEnded(T0)])).over


@pytest.mark.parametrize(
    "state",
    [
        a_state(a_sample()),
        a_state(unreadable(), queued=1, events=[InputEnded(T0)]),
        a_state(a_sample(), queued=1, events=[InputEnded(T0)]),
        running_with(),
        running_with(DRAIN),
        running_with(STOP),
    ],
    ids=["input open", "queued", "starting now", "running", "draining", "stopping"],
)
def test_it_is_not_over_while_something_is_left_to_do(state: State):
    assert not decided(state, 1).over


@pytest.mark.parametrize("request_", [DRAIN, STOP, WaitTimedOut(T0)])
def test_asked_to_end_it_is_over_once_nothing_runs_though_commands_wait(request_: Event):
    decision = decided(a_state(a_sample(), queued=3, events=[request_]))

    assert launches(decision) == []
    assert decision.over


def test_it_does_not_wait_for_memory_when_all_is_done():
    assert decided(ended_with(a_sample(used_gib=90), at=10.001), 10.001).over


def test_a_wait_has_a_limit_if_the_user_gave_one():
    state = a_state(unreadable(), queued=1, wait_timeout_seconds=60.0)

    early, late = decided(state, 59), decided(state, 60)

    assert settled(early)
    assert early.wake_at == T0 + 60
    assert late.events == [WaitTimedOut(T0 + 60)]


def test_without_a_limit_it_waits_for_ever():
    assert settled(decided(a_state(unreadable(), queued=1), 1e9))


def test_once_something_was_launched_the_limit_is_off():
    events: list[Event] = [placed(), launched(), exited()]
    state = a_state(unreadable(), queued=2, events=events, wait_timeout_seconds=60.0)

    decision = decided(state, 1e6)

    assert not any(isinstance(event, WaitTimedOut) for event in decision.events)


def test_the_limit_is_off_when_something_starts_at_the_last_moment():
    state = a_state(a_sample(), queued=2, at=T0 + 60, wait_timeout_seconds=60.0)

    decision = decided(state, 60)

    assert launches(decision) == [(1, "0")]
    assert WaitTimedOut(T0 + 60) not in decision.events


# --- when the system has no room for another process


def test_nothing_starts_for_a_while_after_a_start_was_postponed():
    events: list[Event] = [placed(), RunPostponed(T0 + 3, a_run(), "cannot fork")]
    state = a_state(a_sample(), queued=2, events=events, at=T0 + 3)

    soon = decided(state, 3.5)
    see(state, a_snapshot(a_sample(), at=T0 + 3 + FIRST_POSTPONE_SECONDS))
    later = decided(state, 3 + FIRST_POSTPONE_SECONDS)

    assert settled(soon)
    assert soon.wake_at == T0 + 3 + FIRST_POSTPONE_SECONDS
    assert soon.waiting is not None
    assert soon.waiting.why == "could not start a command: cannot fork; trying again"
    assert launches(later) == [(1, "0")]
    assert later.events[0].run == a_run(attempt=2)  # type: ignore[union-attr]


# --- attempts that take too long


def test_a_run_whose_time_is_up_is_asked_to_end():
    state = running_with(timeout_seconds=60.0)

    early, late = decided(state, 59.9), decided(state, 60)

    assert settled(early)
    assert early.wake_at == T0 + 60
    assert late.events == [RunStopping(T0 + 60, a_run(), "timeout")]
    assert late.actions == [Terminate(a_run())]


def test_a_run_whose_time_is_up_has_the_grace_period_and_no_more():
    overdue = RunStopping(T0 + 60, a_run(), "timeout")
    state = running_with(overdue, timeout_seconds=60.0, grace_seconds=7.0)

    assert settled(decided(state, 66.9))
    assert decided(state, 66.9).wake_at == T0 + 67
    assert decided(state, 67).actions == [Kill(a_run())]


def test_without_a_limit_a_run_may_take_for_ever():
    assert decided(running_with(), 1e6).wake_at == float("inf")


def test_a_run_is_stopped_for_the_user_rather_than_for_its_time():
    state = running_with(STOP, timeout_seconds=60.0)

    assert decided(state, 60).events == [RunStopping(T0 + 60, a_run(), "asked")]


def test_a_limit_holds_while_nothing_more_is_started():
    state = running_with(DRAIN, timeout_seconds=60.0)

    assert decided(state, 60).events == [RunStopping(T0 + 60, a_run(), "timeout")]


def test_it_wakes_for_the_first_run_whose_time_is_up():
    events: list[Event] = [
        placed(1, 0),
        launched(1),
        placed(2, 1, at=T0 + 5),
        launched(2, at=T0 + 5),
    ]
    state = a_state(queued=2, events=events, timeout_seconds=60.0)

    assert decided(state, 10).wake_at == T0 + 60


# --- attempts after the first


def failed_once(
    *gpus: GpuReading, queued: int = 1, not_before: float = 0.0, at: float = 0.0, **policy: Any
) -> State:
    """The first job failed on GPU 0 at T0, and is to be tried again, not before a while."""
    events: list[Event] = [
        placed(),
        launched(),
        exited(ending=Exited(1)),
        GpuReleased(T0, a_key(), a_run()),
        requeued(not_before=T0 + not_before),
    ]
    return a_state(*gpus, queued=queued, events=events, at=T0 + at, **policy)


def test_a_job_is_tried_again_on_another_gpu():
    state = failed_once(a_sample(0), a_sample(1))

    assert launches(decided(state)) == [(1, "1")]


def test_a_job_is_tried_again_where_it_failed_if_there_is_no_other_gpu():
    decision = decided(failed_once(a_sample(0)))

    assert launches(decision) == [(1, "0")]
    assert decision.events[0].run == a_run(attempt=2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "other", [unreadable(1), used_by(a_process(gib=50), index=1)], ids=["unreadable", "busy"]
)
def test_a_job_does_not_wait_for_a_gpu_that_others_have(other: GpuReading):
    assert launches(decided(failed_once(a_sample(0), other))) == [(1, "0")]


def waits_for_gpu_1(at: float) -> State:
    state = failed_once(a_sample(0), a_sample(1), queued=2, at=at)
    apply(state, placed(2, 1))
    apply(state, launched(2))
    return state


def test_a_job_waits_for_another_gpu_that_a_run_of_ours_holds():
    decision = decided(waits_for_gpu_1(at=10), 10)

    assert launches(decision) == []
    assert decision.waiting is not None
    assert decision.waiting.why == "a command that failed waits for another GPU than it failed on"
    assert decision.wake_at == T0 + WAIT_FOR_ANOTHER_GPU_SECONDS


def test_a_job_does_not_wait_for_another_gpu_for_ever():
    state = waits_for_gpu_1(at=WAIT_FOR_ANOTHER_GPU_SECONDS)

    assert launches(decided(state, WAIT_FOR_ANOTHER_GPU_SECONDS)) == [(1, "0")]


def test_a_job_that_waits_for_another_gpu_blocks_nobody():
    state = failed_once(a_sample(0), a_sample(1), queued=3)
    apply(state, placed(2, 1))
    apply(state, launched(2))

    assert launches(decided(state)) == [(3, "0")]


def test_a_job_that_failed_on_every_gpu_is_tried_on_any():
    state = failed_once(a_sample(0), a_sample(1))
    second: list[Event] = [
        placed(gpu=1, attempt=2),
        launched(attempt=2),
        exited(attempt=2, ending=Exited(1)),
        GpuReleased(T0, a_key(1), a_run(attempt=2)),
        requeued(attempt=2),
    ]
    for event in second:
        apply(state, event)

    assert launches(decided(state)) == [(1, "0")]


def test_a_job_is_not_tried_again_before_its_delay():
    state = failed_once(a_sample(0), a_sample(1), not_before=30.0)

    early = decided(state, 0)
    see(state, a_snapshot(a_sample(0), a_sample(1), at=T0 + 30))

    assert launches(early) == []
    assert early.waiting is not None
    assert early.waiting.why == "commands that failed are tried again later"
    assert early.wake_at == T0 + 30
    assert not early.over
    assert launches(decided(state, 30)) == [(1, "1")]


def test_a_job_whose_delay_is_not_over_blocks_nobody():
    state = failed_once(a_sample(0), a_sample(1), queued=3, not_before=30.0)

    assert launches(decided(state)) == [(2, "0"), (3, "1")]


def test_it_is_not_over_while_a_job_waits_for_another_try():
    state = failed_once(a_sample(0), not_before=30.0)
    apply(state, InputEnded(T0))

    assert not decided(state).over


def test_it_is_not_over_while_a_job_is_not_settled():
    state = a_state(a_sample(), events=[*RUNNING, exited()])

    assert not decided(state).over


def test_asked_to_end_it_does_not_wait_for_another_try():
    state = failed_once(a_sample(0), not_before=30.0)
    apply(state, DRAIN)

    decision = decided(state)

    assert decision.over
    assert decision.wake_at == float("inf")


def test_a_job_that_waits_for_another_try_does_not_time_out_the_wait_for_a_first_gpu():
    state = failed_once(a_sample(0), not_before=90.0, wait_timeout_seconds=60.0)

    assert not any(isinstance(event, WaitTimedOut) for event in decided(state, 61).events)


# --- a pure function


@pytest.mark.parametrize(
    "state",
    [
        a_state(),
        a_state(a_sample(0), used_by(a_process(gib=50), index=1), unreadable(2), queued=5),
        running_with(STOP),
        a_state(a_sample(), events=LINGERING),
        a_state(a_sample(), events=KILLED),
        ended_with(a_sample(), at=11),
        ended_with(a_sample(used_gib=9), at=11),
        a_state(unreadable(), queued=1, wait_timeout_seconds=1.0),
    ],
    ids=["new", "queued", "stopping", "lingering", "killed", "back", "not back", "timed out"],
)
def test_deciding_changes_nothing(state: State):
    before = deepcopy(state)

    first = decide(state, T0 + 30)

    assert state == before
    assert decide(state, T0 + 30) == first


@pytest.mark.parametrize("seconds", [0.0, 1.0, 15.0, 1000.0])
@pytest.mark.parametrize(
    "state",
    [
        a_state(a_sample(), queued=3),
        a_state(unreadable(), queued=1, wait_timeout_seconds=1.0),
        running_with(STOP),
        a_state(a_sample(), events=LINGERING),
        ended_with(a_sample(), at=11),
    ],
    ids=["queued", "timed out", "stopping", "lingering", "back"],
)
def test_what_is_decided_is_legal(state: State, seconds: float):
    believed = deepcopy(state)

    for event in decide(believed, T0 + seconds).events:
        apply(believed, event)

    assert believed is not state


# --- claims


def claiming(*events: Event, gpus: int = 1, queued: int = 1, **policy: Any) -> State:
    """Other dispatchers are on this box too."""
    samples = [a_sample(index) for index in range(gpus)]
    return a_state(*samples, queued=queued, events=events, **({"claims": True} | policy))


def granted(state: State, *indices: int, at: float = T0) -> None:
    hear(state, ClaimGranted(at, tuple(a_key(index) for index in indices)))


def refused(state: State, *indices: int, at: float = T0) -> None:
    keys = tuple(a_key(index) for index in indices)
    hear(state, ClaimRefused(at, keys, tuple((key, "claimed by bob") for key in keys)))


def test_a_gpu_is_claimed_and_looked_at_before_anything_starts_there():
    decision = decided(claiming())

    assert decision.events == []
    assert decision.actions == [Claim(((a_key(), 0),)), Refresh(a_key(), T0)]


def test_a_claim_says_how_much_of_a_gpu_is_wanted():
    state = claiming(jobs_per_gpu=2, job_memory=7 * GIB)

    (claim, *_) = decided(state).actions

    assert claim == Claim(((a_key(), 7 * GIB),))


def test_all_gpus_of_a_job_are_claimed_at_once():
    state = claiming(gpus=2, gpus_per_job=2)

    (claim, *_) = decided(state).actions

    assert claim == Claim(((a_key(0), 0), (a_key(1), 0)))


def test_a_sample_from_before_the_claim_starts_nothing():
    """Whoever held it until then may have started something meanwhile."""
    state = claiming()
    granted(state, 0, at=T0 + 0.01)

    before = decided(state, 0.02)
    see(state, a_snapshot(a_sample(), at=T0 + 0.015))
    after = decided(state, 0.02)

    assert [type(action) for action in before.actions] == [Refresh]
    assert before.events == []
    assert launches(after) == [(1, "0")]


def test_a_gpu_that_a_sample_after_the_claim_shows_busy_is_let_go():
    state = claiming()
    granted(state, 0)
    see(state, a_snapshot(used_by(a_process(gib=50)), at=T0 + 0.01))

    decision = decided(state, 0.01)

    assert launches(decision) == []
    assert decision.actions == [Release((a_key(),))]


def test_a_gpu_that_is_refused_is_asked_for_again_after_a_second():
    state = claiming()
    refused(state, 0)

    soon = decided(state, 0.5)
    see(state, a_snapshot(a_sample(), at=T0 + ASK_AGAIN_SECONDS))
    later = decided(state, ASK_AGAIN_SECONDS)

    assert ASK_AGAIN_SECONDS == 1
    assert (soon.actions, soon.wake_at) == ([], T0 + ASK_AGAIN_SECONDS)
    assert soon.waiting == Wait("GPU 0: claimed by bob")
    assert Claim(((a_key(), 0),)) in later.actions


def test_while_one_gpu_is_refused_another_is_claimed():
    state = claiming(gpus=2)
    refused(state, 0)

    assert decided(state).actions[0] == Claim(((a_key(1), 0),))


def test_a_claim_is_kept_while_a_run_of_ours_is_there():
    state = claiming(placed(), launched(), queued=1)
    granted(state, 0)

    assert decided(state).actions == []


def test_a_claim_that_nothing_is_to_be_started_for_is_given_up():
    state = claiming(queued=0)
    granted(state, 0)

    assert decided(state).actions == [Release((a_key(),))]


def test_claims_are_given_up_when_nothing_more_is_to_be_started():
    state = claiming()
    granted(state, 0)
    apply(state, DRAIN)

    assert decided(state).actions == [Release((a_key(),))]


def test_a_gpu_that_is_ours_already_is_not_claimed_again_for_another_job():
    state = claiming(*begun(1, a_part(gib=5)), queued=2, jobs_per_gpu=2, job_memory=5 * GIB)
    granted(state, 0, at=T0 - 100)
    see(state, a_snapshot(used_by(ours()), at=T0 + 1))

    decision = decided(state, 1)

    assert launches(decision) == [(2, "0")]
    assert not any(isinstance(action, Claim) for action in decision.actions)


def test_jobs_behind_one_whose_gpus_are_being_claimed_wait_for_their_turn():
    state = claiming(gpus=2, queued=2)
    granted(state, 1)
    see(state, a_snapshot(a_sample(0), a_sample(1), at=T0 + 0.01))

    decision = decided(state, 0.01)

    assert launches(decision) == []
    assert decision.actions[0] == Claim(((a_key(0), 0),))
    assert not any(isinstance(action, Release) for action in decision.actions)


def test_a_gpu_that_was_the_last_but_for_what_others_claim_is_let_go():
    state = claiming(gpus=2, leave_free=parse_cap("1"))
    assert decided(state).actions[0] == Claim(((a_key(0), 0),))

    hear(state, ClaimGranted(T0, (a_key(0),), ((a_key(1), "claimed by bob"),)))
    see(state, a_snapshot(a_sample(0), a_sample(1), at=T0 + 0.01))

    decision = decided(state, 0.01)
    assert decision.actions == [Release((a_key(0),))]
    assert decision.waiting == Wait("as many GPUs are used as --leave-free 1 allows")
    assert decision.wake_at <= T0 + REMEMBERED_SECONDS


def test_without_other_dispatchers_nothing_is_claimed():
    decision = decided(claiming(claims=False))

    assert launches(decision) == [(1, "0")]
    assert not any(isinstance(action, Claim | Release) for action in decision.actions)


def test_a_job_that_needs_no_gpu_claims_none():
    state = a_state(a_sample(), events=listed("make  # smartsched: gpus=0"), claims=True)

    assert launches(decided(state)) == [(1, "")]


# --- how long one command may take


@pytest.mark.parametrize(
    ("wish", "limit", "stops_after"),
    [("", 30.0, 30.0), ("timeout=5s", 30.0, 5.0), ("timeout=60s", 30.0, 60.0),
     ("timeout=60s", None, 60.0)],
)  # fmt: skip
def test_the_time_limit_of_a_command_goes_before_that_of_all(
    wish: str, limit: float | None, stops_after: float
):
    command = f"a  # smartsched: {wish}" if wish else "a"
    state = a_state(events=[*listed(command), *begun(1)], timeout_seconds=limit)

    assert decided(state, stops_after - 0.1).wake_at == T0 + stops_after
    assert decided(state, stops_after).events == [RunStopping(T0 + stops_after, a_run(), "timeout")]


# --- how long who gives way may take


def giving_way(gib: float, why: StopReason = "contention", **policy: Any) -> State:
    """A run that is asked to end at T0 + 20, beside somebody who came a while ago."""
    patient: dict[str, Any] = {"grace_seconds": 60.0, "yield_grace_seconds": 2.0}
    state = a_state(events=[*listed("a"), *begun(1)], **(patient | policy))
    for at, held in ((0, 0), (1, gib), (20, gib)):
        others = [a_process(gib=held)] if held else []
        see(state, a_snapshot(used_by(ours(), *others), at=T0 + at))
    apply(state, RunStopping(T0 + 20, a_run(), why))
    return state


@pytest.mark.parametrize(
    ("state", "grace"),
    [
        (giving_way(20), 2.0),
        (giving_way(20, asks_for_checkpoints=True), 60.0),
        (giving_way(80, asks_for_checkpoints=True), 2.0),
        (giving_way(20, asks_for_checkpoints=True, grace_seconds=1.0), 2.0),
        (giving_way(20, why="timeout"), 60.0),
        (giving_way(20, why="asked", asks_for_checkpoints=True), 60.0),
    ],
    ids=["at once", "with time", "memory is short", "more than the grace", "timeout", "asked"],
)
def test_who_gives_way_is_quick_unless_it_saves_its_state_and_memory_allows_it(
    state: State, grace: float
):
    before, then = decided(state, 20 + grace - 0.1), decided(state, 20 + grace)

    assert not any(isinstance(action, Kill) for action in before.actions)
    assert before.wake_at <= T0 + 20 + grace
    assert Kill(a_run()) in then.actions


def test_who_was_given_time_has_none_any_more_once_memory_runs_short():
    state = giving_way(20, asks_for_checkpoints=True)
    assert Kill(a_run()) not in decided(state, 25).actions

    see(state, a_snapshot(used_by(ours(), a_process(gib=80)), at=T0 + 25))

    assert Kill(a_run()) in decided(state, 25).actions


# --- what no GPU will ever do for


def test_a_job_that_no_gpu_will_ever_do_for_fails_at_once_without_a_start():
    state = a_state(a_sample(), events=listed("a  # smartsched: gpus=2", "b"))

    decision = decided(state)

    refused_, ended_, started = decision.events
    assert refused_ == RunPlaced(T0, a_run(1), NO_GPU)
    assert isinstance(ended_, RunExited)
    assert isinstance(ended_.ending, NotStarted)
    assert "it needs 2 GPUs" in ended_.ending.why
    assert isinstance(started, RunPlaced)
    assert [action.run for action in decision.actions if isinstance(action, Launch)] == [a_run(2)]
    assert decision.wake_at == T0


def test_a_job_that_no_gpu_will_ever_do_for_fails_though_all_gpus_are_taken():
    commands = listed("a", "b  # smartsched: gpus=2")
    state = a_state(used_by(ours()), events=[*commands, *begun(1)])

    assert [type(event) for event in decided(state).events] == [RunPlaced, RunExited]


def test_a_job_that_no_gpu_will_ever_do_for_fails_though_no_more_jobs_may_run():
    commands = listed("a", "b  # smartsched: gpus=9")
    state = a_state(used_by(ours()), events=[*commands, *begun(1)], most_jobs=parse_cap("1"))

    assert [type(event) for event in decided(state).events] == [RunPlaced, RunExited]


def test_what_was_given_up_is_not_given_up_again():
    commands = listed("a", "b  # smartsched: gpus=2", "c")
    state = a_state(used_by(ours()), events=[*commands, *begun(1)])
    for event in [*decided(state).events, finished(2, "failed")]:
        apply(state, event)

    assert decided(state).events == []


# --- caps by the hour


def test_it_wakes_when_a_cap_changes_while_something_waits():
    midnight = T0 - T0 % 86400 + 86400
    at_eight = midnight + 8 * 3600 - T0
    policy: dict[str, Any] = {"most_gpus": parse_cap("0@00-09,1@09-24")}
    waits = a_state(a_sample(), queued=1, at=T0 + at_eight, **policy)
    idle = a_state(a_sample(), at=T0 + at_eight, **policy)

    assert decided(waits, at_eight).wake_at == midnight + 9 * 3600
    assert decided(idle, at_eight).wake_at == float("inf")


def test_a_run_that_is_out_of_time_is_not_asked_to_give_way_as_well():
    state = a_state(a_sample(), queued=1, on_contention="requeue", timeout_seconds=5.0)
    apply(state, placed())
    apply(state, launched())
    see(state, a_snapshot(used_by(a_process(gib=60)), at=T0 + 10))

    stopping = [event for event in decided(state, 10).events if isinstance(event, RunStopping)]

    assert [event.why for event in stopping] == ["timeout"]


def test_an_adopted_run_is_claimed_as_soon_as_it_can_be():
    state = a_state(a_sample(), queued=1, claims=True)
    apply(state, placed())
    apply(state, launched())
    hear(state, ClaimRefused(T0, (a_key(),), ((a_key(), "locked"),)))

    early, later = decided(state, 0.5), decided(state, ASK_AGAIN_SECONDS)

    assert Claim(((a_key(), 0),)) not in early.actions
    assert early.wake_at <= T0 + ASK_AGAIN_SECONDS
    assert Claim(((a_key(), 0),)) in later.actions
