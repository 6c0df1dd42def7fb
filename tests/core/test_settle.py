"""What becomes of a job when a run of it has ended."""

from collections.abc import Iterable
from typing import Any

import pytest

from smartsched.core.apply import apply, replay
from smartsched.core.decide import UNKILLABLE_AFTER_SECONDS, decide
from smartsched.core.events import (
    DrainRequested,
    Event,
    GpuReleased,
    GpuWithheld,
    Halted,
    InputEnded,
    JobAccepted,
    JobFinished,
    JobRecalled,
    JobRequeued,
    JobsCancelled,
    RunCleared,
    RunKilled,
    RunMeasured,
    RunPlaced,
    RunResumed,
    RunStopping,
    StopRequested,
)
from smartsched.core.guard import THE_COMMAND_FAILS
from smartsched.core.halt import parse_halt
from smartsched.core.model import (
    Ending,
    Exited,
    JobId,
    Killed,
    Lost,
    NotStarted,
    Placement,
    RequeueReason,
    SamplerTrouble,
    StopReason,
)
from smartsched.core.placement import NO_GPU
from smartsched.core.settle import settle
from smartsched.core.state import QUICK_SECONDS, State
from tests.builders import (
    HOST,
    T0,
    a_command,
    a_key,
    a_placement,
    a_policy,
    a_process,
    a_run,
    a_sample,
    a_snapshot,
    a_spec,
    accepted,
    exited,
    finished,
    launched,
    launches,
    placed,
    requeued,
    see,
    used_by,
)

FAILED = Exited(1)
STOP = StopRequested(T0, "ctrl-c")
RESUMED = RunResumed(T0, HOST, "{}")


def after(events: Iterable[Event], **policy: Any) -> State:
    return replay(a_policy(**policy), events)


def settled(state: State, seconds: float = 0.0) -> list[Event]:
    """What is recorded so long after T0, and has become of the state."""
    events = []
    for event in settle(state, T0 + seconds):
        apply(state, event)
        events.append(event)
    return events


def ended(
    ending: Ending, *more: Event, why: StopReason | None = None, **policy: Any
) -> tuple[State, list[Event]]:
    """A job whose first run ended so, and what was made of it."""
    stopping: list[Event] = [] if why is None else [RunStopping(T0, a_run(), why)]
    events = [*accepted(2), placed(), launched(), *more, *stopping, exited(ending=ending)]
    state = after(events, **policy)
    return state, settled(state)


def ran(
    job: int, gpu: int = 0, *, attempt: int = 1, at: float = T0, seconds: float = 1.0, code: int = 1
) -> list[Event]:
    """From its start on a GPU to its end; the GPU is free again."""
    return [
        placed(job, gpu, attempt, at),
        launched(job, attempt, at),
        exited(job, attempt, at + seconds, Exited(code)),
        GpuReleased(at + seconds, a_key(gpu), a_run(job, attempt)),
    ]


# --- without anything asked for


@pytest.mark.parametrize(
    ("ending", "event"),
    [
        (Exited(0), finished(outcome="ok")),
        (Exited(3), finished(outcome="failed")),
        (Killed(9), finished(outcome="failed")),
        (NotStarted("no such shell"), finished(outcome="failed")),
    ],
)
def test_a_job_is_done_or_has_failed(ending: Ending, event: Event):
    state, events = ended(ending)

    assert events == [event]
    assert (state.ended, state.totals.finished) == ({}, 1)


def test_a_shell_that_could_not_be_started_has_failed():
    state = after([*accepted(1), placed(), exited(ending=NotStarted("no such shell"))])

    assert settled(state) == [finished(outcome="failed")]


def test_nothing_is_settled_twice():
    state, _ = ended(Exited(0))

    assert settled(state) == []


def test_settling_yields_one_event_at_a_time():
    """The next follows from what was recorded, so that whoever stops in between loses nothing."""
    state = after([*accepted(2), placed(1, 0), placed(2, 1), launched(1), launched(2)])
    apply(state, exited(1))
    apply(state, exited(2))

    first = next(settle(state, T0))

    assert first == finished(1)
    assert list(state.ended) == [a_run(1), a_run(2)]


@pytest.mark.parametrize("ending", [Killed(15), Exited(1), NotStarted("x"), Lost()])
def test_what_ended_because_the_user_asked_is_stopped(ending: Ending):
    state, events = ended(ending, STOP, why="asked", retries=5)

    assert events == [finished(outcome="stopped")]
    assert [job.id for job in state.interrupted] == [1]


def test_what_finished_though_it_was_asked_to_end_is_done():
    _, events = ended(Exited(0), STOP, why="asked")

    assert events == [finished(outcome="ok")]


def test_what_failed_while_others_are_drained_has_failed():
    _, events = ended(FAILED, DrainRequested(T0, "ctrl-c"))

    assert events == [finished(outcome="failed")]


# --- retries


def attempts_of(state: State) -> list[Event]:
    """Fails again and again until nothing more is tried."""
    events: list[Event] = []
    for attempt in range(1, 50):
        for event in ran(1, attempt=attempt):
            apply(state, event)
        events += settled(state)
        if not any(job.id == 1 for job in state.queue):
            break
    return events


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_job_that_fails_has_so_many_more_tries(retries: int):
    state = after(accepted(1), retries=retries)

    events = attempts_of(state)

    assert len(events) == retries + 1
    assert events[-1] == finished(outcome="failed", attempt=retries + 1)
    assert (state.totals.failed, state.totals.ok) == (1, 0)


def test_a_job_that_does_well_at_last_is_done():
    state = after([*accepted(1), *ran(1)], retries=2)
    settled(state)

    for event in ran(1, attempt=2, code=0):
        apply(state, event)

    assert settled(state) == [finished(attempt=2)]
    assert (state.totals.ok, state.totals.failed) == (1, 0)


def delays(**policy: Any) -> list[float]:
    return [
        event.not_before - T0
        for event in attempts_of(after(accepted(1), **policy))
        if isinstance(event, JobRequeued)
    ]


def test_the_delay_doubles_with_every_failure():
    assert delays(retries=5, retry_delay_seconds=3.0) == [3, 6, 12, 24, 48]


def test_the_delay_grows_to_an_hour_at_most():
    assert max(delays(retries=40, retry_delay_seconds=1.0)) == 3600


def test_a_delay_longer_than_an_hour_that_was_asked_for_does_not_grow():
    assert delays(retries=3, retry_delay_seconds=7200.0) == [7200, 7200, 7200]


def test_without_a_delay_it_is_tried_again_at_once():
    assert delays(retries=3, retry_delay_seconds=0.0) == [0, 0, 0]


def test_the_delay_begins_when_the_failure_is_known():
    state = after([*accepted(1), *ran(1)], retries=1, retry_delay_seconds=5.0)

    assert settled(state, 100) == [requeued(at=T0 + 100, not_before=T0 + 105)]


def test_a_failure_is_tried_again_though_nothing_more_is_to_be_started():
    """It is queued, so that the run when it is resumed goes on with it."""
    state, events = ended(FAILED, DrainRequested(T0, "ctrl-c"), retries=1)

    assert [type(event) for event in events] == [JobRequeued]
    assert [job.id for job in state.queue] == [1, 2]


# --- time limits


@pytest.mark.parametrize("ending", [Exited(0), Exited(1), Killed(15)])
def test_what_took_too_long_has_failed_however_it_ended(ending: Ending):
    _, events = ended(ending, why="timeout")

    assert events == [finished(outcome="failed")]


def test_what_took_too_long_is_tried_again_as_any_failure():
    state, events = ended(Exited(0), why="timeout", retries=1, retry_delay_seconds=4.0)

    assert events == [requeued(not_before=T0 + 4)]
    assert state.queue[0].failures == 1


def test_what_took_too_long_has_failed_also_when_the_end_is_asked_for_meanwhile():
    _, events = ended(Killed(15), STOP, why="timeout")

    assert events == [finished(outcome="failed")]


# --- lost and left over from an earlier dispatcher


@pytest.mark.parametrize(("retries", "tries"), [(0, 2), (1, 2), (2, 3), (5, 6)])
def test_a_job_that_vanishes_is_tried_again_at_least_once(retries: int, tries: int):
    state = after(accepted(1), retries=retries)
    events: list[Event] = []

    for attempt in range(1, tries + 1):
        for event in (placed(attempt=attempt), launched(attempt=attempt)):
            apply(state, event)
        apply(state, exited(attempt=attempt, ending=Lost()))
        apply(state, GpuReleased(T0, a_key(), a_run(attempt=attempt)))
        events += settled(state)

    assert [type(event) for event in events] == [JobRequeued] * (tries - 1) + [JobFinished]
    assert events[-1] == finished(outcome="failed", attempt=tries)


def test_a_job_that_vanished_is_tried_at_once_and_anywhere():
    state, events = ended(Lost(), retries=3, retry_delay_seconds=60.0)

    assert events == [requeued(why="lost")]
    assert (state.queue[0].failures, state.queue[0].failed_on) == (0, ())


def test_a_loss_does_not_use_up_a_retry():
    state, _ = ended(Lost(), retries=1)
    apply(state, GpuReleased(T0, a_key(), a_run()))

    for event in ran(1, attempt=2):
        apply(state, event)

    assert [type(event) for event in settled(state)] == [JobRequeued]


@pytest.mark.parametrize("ending", [Exited(0), Exited(1), Killed(15), Lost()])
def test_a_survivor_that_was_stopped_is_started_anew_and_it_counts_as_nothing(ending: Ending):
    state, events = ended(ending, why="survivor")

    assert events == [requeued(why="survivor")]
    assert (state.queue[0].failures, state.queue[0].losses) == (0, 0)


@pytest.mark.parametrize("ending", [Exited(1), Killed(15), Lost()])
def test_what_an_earlier_dispatcher_asked_to_end_is_started_anew(ending: Ending):
    stopping = RunStopping(T0, a_run(), "asked")
    events = [*accepted(1), placed(), launched(), STOP, stopping, RESUMED, exited(ending=ending)]
    state = after(events)

    assert settled(state) == [requeued(why="survivor")]


def test_what_an_earlier_dispatcher_asked_to_end_and_ended_well_is_done():
    stopping = RunStopping(T0, a_run(), "asked")
    state = after([*accepted(1), placed(), launched(), STOP, stopping, RESUMED, exited()])

    assert settled(state) == [finished(outcome="ok")]


# --- leftovers


@pytest.mark.parametrize(
    ("ending", "why"), [(FAILED, "failed"), (Lost(), "lost")], ids=["failed", "lost"]
)
def test_two_attempts_do_not_meet(ending: Ending, why: RequeueReason):
    state = after(
        [*accepted(1), placed(), launched(), exited(ending=ending, leftovers=1)],
        retries=1,
        retry_delay_seconds=0.0,
    )

    meanwhile = settled(state, 5)
    apply(state, RunCleared(T0 + 6, a_run()))
    then = settled(state, 6)

    assert meanwhile == []
    assert state.queue[0].attempts == 1
    assert then == [requeued(why=why, at=T0 + 6, not_before=T0 + 6)]


def test_leftovers_do_not_delay_what_is_certain():
    for code, outcome in ((0, "ok"), (1, "failed")):
        events = [*accepted(1), placed(), launched(), exited(ending=Exited(code), leftovers=1)]
        assert settled(after(events)) == [finished(outcome=outcome)]  # type: ignore[arg-type]


def test_a_job_whose_leftovers_cannot_be_killed_has_failed_whatever_retries_are_left():
    events = [*accepted(1), placed(), launched(), exited(ending=FAILED, leftovers=1)]
    events += [RunStopping(T0, a_run()), RunKilled(T0 + 10, a_run())]
    given_up = 10 + UNKILLABLE_AFTER_SECONDS
    state = after(events, retries=5)

    assert settled(state, given_up - 0.1) == []
    assert settled(state, given_up) == [finished(outcome="failed", at=T0 + given_up)]


# --- --halt


def halts(outcomes: str, when: str, before: str = "") -> list[Event]:
    """What is halted when jobs end so, one after the other, + well and - not; `before` by an
    earlier dispatcher."""
    everything = before + outcomes
    state = after(accepted(len(everything)), halt=parse_halt(when), guard=False)
    events: list[Event] = []
    for number, sign in enumerate(everything, start=1):
        if number == len(before) + 1 and before:
            apply(state, RESUMED)
            events.clear()
        for event in ran(number, code=0 if sign == "+" else 1):
            apply(state, event)
        events += settled(state)
    return [event for event in events if isinstance(event, Halted)]


@pytest.mark.parametrize(
    ("outcomes", "when", "why"),
    [
        ("-", "soon,fail=1", "1 job failed"),
        ("+-+-+-", "soon,fail=3", "3 jobs failed"),
        ("--+", "now,fail=50%", "2 of 3 finished jobs failed"),
        ("---", "now,fail=100%", "3 of 3 finished jobs failed"),
        ("+++++++++-", "now,fail=10%", "1 of 10 finished jobs failed"),
    ],
)
def test_it_is_halted_once_so_many_have_failed(outcomes: str, when: str, why: str):
    assert halts(outcomes, when) == [Halted(T0, why, stop=when.startswith("now"))]


@pytest.mark.parametrize(
    ("outcomes", "when"),
    [
        ("+-+-+++", "soon,fail=3"),
        ("--", "now,fail=1%"),
        ("+++", "now,fail=1%"),
        ("++++++++++-", "now,fail=10%"),
        ("++-", "now,fail=100%"),
    ],
)
def test_it_is_not_halted_before(outcomes: str, when: str):
    assert halts(outcomes, when) == []


def test_it_is_halted_once():
    assert len(halts("-----", "soon,fail=2")) == 1


def test_what_failed_under_an_earlier_dispatcher_does_not_count():
    assert halts("-", "soon,fail=2", before="-") == []
    assert len(halts("--", "soon,fail=2", before="-")) == 1
    assert halts("++-", "now,fail=50%", before="---") == []


def test_failures_that_are_tried_again_do_not_count_until_the_last():
    state = after(accepted(1), halt=parse_halt("soon,fail=1"), retries=2)

    events = attempts_of(state)

    assert [type(event).__name__ for event in events] == [
        "JobRequeued",
        "JobRequeued",
        "JobFinished",
        "Halted",
    ]


def test_stopped_jobs_are_no_failures():
    state, events = ended(Killed(15), STOP, why="asked", halt=parse_halt("soon,fail=1"))

    assert events == [finished(outcome="stopped")]
    assert not state.halted


def test_jobs_stopped_by_a_halt_run_again_when_the_run_is_resumed():
    state = after([*accepted(2), placed(2, 1), launched(2), *ran(1)], halt=parse_halt("now,fail=1"))
    settled(state)

    (stopping,) = decide(state, T0).events
    apply(state, stopping)
    apply(state, exited(2, ending=Killed(15)))

    assert stopping == RunStopping(T0, a_run(2))
    assert settled(state) == [finished(2, "stopped")]


def test_failed_jobs_that_are_tried_again_upon_request_count_anew():
    state = after([*accepted(2), *ran(1), finished(1, "failed"), *ran(2), finished(2, "failed")])
    state.policy = a_policy(halt=parse_halt("soon,fail=2"), guard=False)
    apply(state, RunResumed(T0, HOST, "{}", failed_too=True))
    for job in (1, 2):
        apply(state, JobRecalled(T0, JobId(job), a_spec(job), 1, None))

    events: list[Event] = []
    for job in (1, 2):
        for event in ran(job, attempt=2):
            apply(state, event)
        events += settled(state)

    assert [type(event).__name__ for event in events] == ["JobFinished", "JobFinished", "Halted"]


# --- the guard


def black_hole(*others: Event, jobs: int = 3, **policy: Any) -> State:
    """Jobs fail at once on GPU 0, one after the other, while others run on GPU 1."""
    state = after(accepted(9), **policy)
    for job in range(1, jobs + 1):
        for event in ran(job, 0, at=T0 + job):
            apply(state, event)
        settled(state, job + 1)
    for event in others:
        apply(state, event)
    return state


def withheld(*jobs: int, at: float) -> GpuWithheld:
    return GpuWithheld(at, a_key(), tuple(a_run(job) for job in jobs))


def seen(state: State, seconds: float, gpus: int = 2) -> State:
    see(state, a_snapshot(*map(a_sample, range(gpus)), at=T0 + seconds))
    return state


def test_a_gpu_on_which_all_fail_is_withheld_once_another_job_does_well_elsewhere():
    state = black_hole(*ran(4, 1, at=T0 + 2, seconds=3, code=0))

    events = settled(state, 5)

    assert events == [finished(4, at=T0 + 5), withheld(1, 2, 3, at=T0 + 5)]
    assert [job.id for job in state.queue] == [1, 2, 3, 5, 6, 7, 8, 9]
    assert (state.totals.ok, state.totals.failed) == (1, 0)


def test_a_gpu_on_which_all_fail_is_withheld_once_another_job_has_lasted_elsewhere():
    state = black_hole(placed(4, 1, at=T0 + 2), launched(4, at=T0 + 2))

    assert settled(state, 2 + QUICK_SECONDS - 0.1) == []
    assert settled(state, 2 + QUICK_SECONDS) == [withheld(1, 2, 3, at=T0 + 2 + QUICK_SECONDS)]


def test_what_failed_elsewhere_after_a_while_shows_as_well_that_commands_can_run():
    state = black_hole(*ran(4, 1, at=T0 + 2, seconds=QUICK_SECONDS, code=1))

    assert withheld(1, 2, 3, at=T0 + 12) in settled(state, 12)


def test_what_began_before_the_failures_shows_nothing():
    """The commands of then may have been others."""
    state = after([*accepted(9), *ran(4, 1, at=T0 - 99, code=0), finished(4)])
    for job in (1, 2, 3):
        for event in ran(job, 0, at=T0 + job):
            apply(state, event)
    apply(state, placed(5, 1, at=T0 - 50))
    apply(state, launched(5, at=T0 - 50))

    assert not any(isinstance(event, GpuWithheld) for event in settled(state, 60))


def test_two_failures_in_a_row_show_nothing():
    state = black_hole(*ran(4, 1, at=T0 + 2, code=0), jobs=2)

    assert settled(state, 5) == [finished(4, at=T0 + 5)]


def test_failures_that_a_success_divides_show_nothing():
    state = black_hole(*ran(4, 0, at=T0 + 6, code=0), jobs=2)
    settled(state, 7)
    for job, gpu in ((5, 0), (6, 0), (7, 1)):
        for event in ran(job, gpu, at=T0 + 8, code=int(gpu == 0)):
            apply(state, event)

    assert not any(isinstance(event, GpuWithheld) for event in settled(state, 9))


def test_one_command_that_fails_again_and_again_shows_nothing():
    state = after(accepted(2), retries=9, retry_delay_seconds=0.0)
    for attempt in range(1, 6):
        for event in ran(1, 0, attempt=attempt, at=T0 + attempt):
            apply(state, event)
        settled(state, attempt + 1)
    for event in ran(2, 1, at=T0 + 3, code=0):
        apply(state, event)

    assert settled(state, 7) == [finished(2, at=T0 + 7)]


def test_jobs_that_fail_everywhere_withhold_nothing():
    state = after(accepted(6))
    for job in range(1, 7):
        for event in ran(job, job % 2, at=T0 + job):
            apply(state, event)

    assert not any(isinstance(event, GpuWithheld) for event in settled(state, 60))


def test_jobs_that_wait_for_another_try_keep_it_when_their_gpu_is_withheld():
    state = black_hole(*ran(4, 1, at=T0 + 2, code=0), retries=1, retry_delay_seconds=60.0)

    settled(state, 5)

    assert [job.failures for job in state.queue] == [0] * 8


def test_jobs_on_two_gpus_that_failed_at_once_are_queued_again_once():
    state = after(accepted(9))
    both = Placement((*a_placement(0).gpus, *a_placement(1).gpus))
    for job in (1, 2, 3):
        _, *begins_and_ends = ran(job, at=T0 + job)
        for event in (RunPlaced(T0 + job, a_run(job), both), *begins_and_ends):
            apply(state, event)
        settled(state, job + 1)

    for event in ran(4, 2, at=T0 + 4, seconds=3, code=0):
        apply(state, event)
    events = settled(state, 9)

    assert [type(event).__name__ for event in events] == ["JobFinished", "GpuWithheld"]
    assert [job.id for job in state.queue] == [1, 2, 3, 5, 6, 7, 8, 9]
    assert state.totals.failed == 0


def test_what_did_well_on_a_gpu_that_is_withheld_by_now_says_nothing_of_the_last_one():
    state = black_hole(*ran(4, 1, at=T0 + 2, code=0))
    settled(state, 5)
    for job in (1, 2, 3):
        for event in ran(job, 1, attempt=2, at=T0 + 10 + job):
            apply(state, event)
        settled(state, 12 + job)

    assert state.withheld == {a_key(0).uuid}
    assert not launches(decide(seen(state, 20), T0 + 20))


@pytest.mark.parametrize("wish", ["gpus=2", "gpus=3"])
def test_nothing_more_is_started_where_too_many_gpus_are_withheld_for_what_is_left(wish: str):
    state = black_hole(*ran(4, 1, at=T0 + 2, code=0))
    settled(state, 5)
    apply(state, JobsCancelled(T0 + 6, "r", tuple(job.id for job in state.queue)))
    apply(state, JobAccepted(T0 + 6, JobId(10), a_command(f"train  # smartsched: {wish}")))

    events = decide(seen(state, 10, gpus=3), T0 + 10).events

    halted = [event for event in events if isinstance(event, Halted)]
    assert bool(halted) == (wish == "gpus=3")


def test_jobs_on_several_gpus_do_not_wait_for_a_suspect_one_for_ever():
    state = after(accepted(3))
    for job in (1, 2, 3):
        for event in ran(job, 0, at=T0 + job):
            apply(state, event)
        settled(state, job + 1)
    apply(state, JobAccepted(T0 + 6, JobId(4), a_command("train  # smartsched: gpus=2")))

    events = decide(seen(state, 10), T0 + 10).events

    assert [event.why for event in events if isinstance(event, Halted)] == [
        f"{THE_COMMAND_FAILS}: 3 in a row failed at once on 1 GPU"
    ]


def test_a_job_without_a_gpu_says_nothing_of_gpus():
    state = black_hole()
    on_none = RunPlaced(T0 + 2, a_run(4), NO_GPU)
    for event in (on_none, launched(4, at=T0 + 2)):
        apply(state, event)

    assert settled(state, 2 + QUICK_SECONDS) == []


def test_a_suspect_gpu_takes_no_work():
    state = seen(black_hole(), 10)

    assert launches(decide(state, T0 + 10)) == [(4, "1")]


def test_a_withheld_gpu_takes_no_work_and_its_jobs_go_elsewhere():
    state = black_hole(*ran(4, 1, at=T0 + 2, code=0))
    settled(state, 5)

    assert launches(decide(seen(state, 10), T0 + 10)) == [(1, "1")]


def test_without_the_guard_every_free_gpu_takes_work():
    state = black_hole(*ran(4, 1, at=T0 + 2, code=0), guard=False)

    events = settled(state, 5)

    assert events == [finished(4, at=T0 + 5)]
    assert launches(decide(seen(state, 10), T0 + 10)) == [(5, "0"), (6, "1")]


def fails_everywhere(gpus: int = 2, **policy: Any) -> State:
    state = after(accepted(9), **policy)
    for number in range(3 * gpus):
        for event in ran(number + 1, number % gpus, at=T0 + number):
            apply(state, event)
        settled(state, number + 1)
    return state


@pytest.mark.parametrize("gpus", [1, 2])
def test_where_all_fails_on_every_gpu_it_is_the_command(gpus: int):
    state = seen(fails_everywhere(gpus), 10, gpus)

    (event,) = decide(state, T0 + 10).events

    assert isinstance(event, Halted)
    assert event.why.startswith(THE_COMMAND_FAILS)
    assert not event.stop


def test_where_all_fails_the_jobs_have_failed():
    state = fails_everywhere()

    assert state.totals.failed == 6
    assert len(state.queue) == 3


def test_without_the_guard_it_goes_on_though_all_fails():
    state = seen(fails_everywhere(guard=False), 10)

    assert launches(decide(state, T0 + 10)) == [(7, "0"), (8, "1")]


def test_nothing_is_halted_while_something_runs_that_may_clear_the_commands():
    state = black_hole(placed(4, 1, at=T0 + 6), launched(4, at=T0 + 6))

    decision = decide(seen(state, 10), T0 + 10)

    assert decision.events == []
    assert decision.wake_at == T0 + 6 + QUICK_SECONDS


def test_nothing_is_halted_when_nothing_is_left_to_start():
    state = after([*accepted(3), InputEnded(T0)])
    for job in (1, 2, 3):
        for event in ran(job, 0, at=T0 + job):
            apply(state, event)
    settled(state, 5)

    decision = decide(seen(state, 10, 1), T0 + 10)

    assert decision.events == []
    assert decision.over


def test_nothing_is_halted_because_the_gpus_are_unknown_for_a_moment():
    state = seen(black_hole(), 10)
    see(state, SamplerTrouble(HOST, "the driver has not answered for 5s"), T0 + 10)

    assert decide(state, T0 + 10).events == []


def test_a_job_does_not_start_elsewhere_while_processes_of_its_failed_run_live():
    state = after(accepted(4))
    for job in (1, 2):
        for event in ran(job, 0, at=T0 + job):
            apply(state, event)
    for event in (
        placed(3, 0, at=T0 + 3),
        launched(3, at=T0 + 3),
        exited(3, at=T0 + 4, ending=FAILED, leftovers=1),
        *ran(4, 1, at=T0 + 2, code=0),
    ):
        apply(state, event)
    settled(state, 5)

    decision = decide(seen(state, 10), T0 + 10)

    assert (3, "1") not in launches(decision)
    assert not [job for job in state.queue if a_run(job.id, job.attempts) in state.runs]


# --- giving way


@pytest.mark.parametrize("ending", [Killed(15), Killed(9), Exited(1)])
@pytest.mark.parametrize("retries", [0, 3])
def test_what_gave_way_is_queued_again_at_the_head_and_it_is_no_failure(
    ending: Ending, retries: int
):
    state, events = ended(ending, why="contention", retries=retries)

    assert events == [requeued(why="contention")]
    assert [job.id for job in state.queue] == [1, 2]
    assert (state.queue[0].failures, state.totals.failed, state.totals.yields) == (0, 0, 1)


def test_what_gave_way_and_saved_its_state_has_not_done_its_work():
    state, events = ended(Exited(0), why="contention")

    assert events == [requeued(why="contention")]
    assert state.totals.ok == 0


def test_what_gave_way_again_and_again_is_tried_again_and_again():
    state = after(accepted(1))
    for attempt in range(1, 30):
        for event in (
            placed(attempt=attempt),
            launched(attempt=attempt),
            RunStopping(T0, a_run(attempt=attempt), "contention"),
            exited(attempt=attempt, ending=Killed(15)),
            GpuReleased(T0, a_key(), a_run(attempt=attempt)),
        ):
            apply(state, event)
        assert settled(state) == [requeued(why="contention", attempt=attempt)]

    assert (len(state.queue), state.totals.yields) == (1, 29)


def test_what_gave_way_says_nothing_of_its_gpu():
    state, _ = ended(Killed(15), why="contention")

    assert state.records == {}


def test_what_was_asked_to_give_way_before_all_was_stopped_is_started_anew():
    state, events = ended(Killed(15), STOP, why="contention")

    assert [type(event) for event in events] == [JobRequeued]
    assert state.totals.stopped == 0


def test_what_gave_way_does_not_run_again_while_something_of_it_lives():
    stopping = RunStopping(T0, a_run(), "contention")
    end = exited(ending=Killed(15), leftovers=1)
    state = after([*accepted(1), placed(), launched(), stopping, end])

    assert settled(state) == []
    apply(state, RunCleared(T0 + 1, a_run()))
    assert settled(state, 1) == [requeued(why="contention", at=T0 + 1, not_before=T0 + 1)]


# --- what a run teaches


def measured_run(*more: Event, ending: Ending, **policy: Any) -> list[Event]:
    state = after([*accepted(1), placed(), launched()], **policy)
    for at in (1, 2):
        see(state, a_snapshot(used_by(a_process(77, 5), utilization_percent=50), at=T0 + at))
    for event in (*more, exited(at=T0 + 60, ending=ending)):
        apply(state, event)
    return settled(state, 60)


def test_what_ended_well_teaches_before_it_is_done():
    events = measured_run(ending=Exited(0))

    assert [type(event) for event in events] == [RunMeasured, JobFinished]


@pytest.mark.parametrize(
    ("ending", "why"), [(Exited(1), None), (Killed(9), None), (Exited(0), "contention")]
)
def test_what_did_not_get_to_its_end_teaches_nothing(ending: Ending, why: Any):
    stopping: list[Event] = [] if why is None else [RunStopping(T0 + 9, a_run(), why)]

    events = measured_run(*stopping, ending=ending)

    assert not any(isinstance(event, RunMeasured) for event in events)


# --- what no GPU could ever do for


def test_a_job_that_no_gpu_will_ever_do_for_has_failed_whatever_retries_are_left():
    refused = RunPlaced(T0, a_run(), NO_GPU)
    end = exited(ending=NotStarted("it needs 9 GPUs", for_good=True))

    state = after([*accepted(1), refused, end], retries=5)

    assert settled(state) == [finished(outcome="failed")]


def test_a_job_without_a_gpu_that_could_not_be_started_is_tried_again():
    placed_nowhere = RunPlaced(T0, a_run(), NO_GPU)
    end = exited(ending=NotStarted("no such shell"))

    state = after([*accepted(1), placed_nowhere, end], retries=1)

    assert [type(event) for event in settled(state)] == [JobRequeued]
