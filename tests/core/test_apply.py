"""What is kept across attempts, lists and dispatchers, and that what cannot be is loud."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import pytest
from msgspec.structs import replace

from smartsched.core.apply import MOST_SHAPES, apply, replay
from smartsched.core.events import (
    DrainRequested,
    Event,
    GpuReleased,
    GpuWithheld,
    Halted,
    InputEnded,
    InputRead,
    JobAccepted,
    JobRecalled,
    JobRequeued,
    LineRejected,
    ListReplaced,
    RunAdopted,
    RunBegan,
    RunCleared,
    RunClosed,
    RunExited,
    RunKilled,
    RunMeasured,
    RunPlaced,
    RunPostponed,
    RunResumed,
    RunRevoked,
    RunStopping,
    StopRequested,
    WaitTimedOut,
)
from smartsched.core.footprint import NO_RUNS, Meter
from smartsched.core.model import (
    Exited,
    JobId,
    Killed,
    Lingering,
    Lost,
    Placement,
    Position,
    RunKey,
    Running,
    Stopping,
)
from smartsched.core.state import FAILURES_IN_A_ROW, QUICK_SECONDS, Closing, State
from smartsched.core.totals import Totals
from smartsched.errors import IllegalTransitionError
from tests.builders import (
    HOST,
    T0,
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
    placed,
    requeued,
    see,
    used_by,
)

FAILED = Exited(1)
STOP = StopRequested(T0, "ctrl-c")
HOUR = 3600.0


def after(events: Iterable[Event]) -> State:
    return replay(a_policy(), events)


def resumed(at: float = T0, *, failed_too: bool = False) -> RunResumed:
    return RunResumed(at, HOST, "{}", failed_too)


def replaced() -> ListReplaced:
    return ListReplaced(T0, ("other.txt",))


def recalled(job: int, attempts: int = 0, read_to: Position | None = None) -> JobRecalled:
    return JobRecalled(T0, JobId(job), a_spec(job), attempts, read_to)


def ran(
    job: int, *, gpu: int = 0, attempt: int = 1, at: float = T0, seconds: float = 1.0, code: int = 1
) -> list[Event]:
    """From its start on a GPU to its end; the GPU is free again."""
    return [
        placed(job, gpu, attempt, at),
        launched(job, attempt, at),
        exited(job, attempt, at + seconds, Exited(code)),
        GpuReleased(at + seconds, a_key(gpu), a_run(job, attempt)),
    ]


def failed(job: int, *, gpu: int = 0, at: float = T0) -> list[Event]:
    return [*ran(job, gpu=gpu, at=at), finished(job, "failed")]


def order_of(state: State) -> list[int]:
    return [job.id for job in state.queue]


def is_refused(state: State, event: Event) -> bool:
    """Whether it is loud and changes nothing."""
    before = deepcopy(state)
    with pytest.raises(IllegalTransitionError, match="internal error"):
        apply(state, event)
    return state == before


# --- what a dispatcher's death leaves behind


def test_a_revoked_start_is_queued_in_its_place_and_its_attempt_is_used_up():
    state = after([*accepted(3), placed(1), RunRevoked(T0, a_run(1))])

    assert order_of(state) == [1, 2, 3]
    assert (state.runs, state.holds) == ({}, {})
    assert is_refused(state, placed(1, attempt=1))
    apply(state, placed(1, attempt=2))


def test_a_revoked_start_holds_back_nothing_else():
    state = after([*accepted(2), placed(1), RunRevoked(T0, a_run(1))])

    assert state.postponed == {}


@pytest.mark.parametrize("event", [RunRevoked(T0, a_run()), finished(), requeued()])
def test_what_was_never_placed_is_neither_revoked_nor_settled(event: Event):
    assert is_refused(after(accepted(1)), event)


def test_a_job_is_settled_once():
    state = after([*accepted(1), *ran(1), finished(1, "failed")])

    assert is_refused(state, finished(1, "failed"))
    assert is_refused(state, requeued(1))


def test_a_new_dispatcher_has_not_been_asked_to_end():
    ends: list[Event] = [
        DrainRequested(T0, "ctrl-c"),
        STOP,
        WaitTimedOut(T0),
        Halted(T0, "too much", stop=True),
    ]

    state = after([*accepted(1), *ends, RunClosed(T0, False, 0), resumed()])

    assert (state.closing, state.halted, state.wait_timed_out) == (Closing.NO, False, False)


def test_a_new_dispatcher_waits_for_its_own_first_gpu():
    state = after([*accepted(2), *ran(1), finished(1, "failed"), resumed(T0 + 500)])

    assert (state.waiting_since, state.ever_launched) == (T0 + 500, False)


def test_a_new_dispatcher_that_finds_something_running_does_not_wait_for_a_first_gpu():
    assert after([*accepted(2), placed(1), launched(1), resumed(T0 + 500)]).ever_launched


def test_without_a_queue_a_new_dispatcher_does_not_wait_yet():
    assert after([*accepted(1), placed(1), launched(1), resumed(T0 + 500)]).waiting_since is None


def test_a_new_dispatcher_starts_at_once_what_had_to_wait():
    postponed = RunPostponed(T0, a_run(1), "cannot fork")
    events = [*accepted(2), placed(1), postponed, *ran(2), requeued(2, not_before=T0 + HOUR)]

    state = after([*events, resumed(T0 + 1)])

    assert state.postponed == {}
    assert [job.not_before for job in state.queue] == [float("-inf")] * 2


def test_a_new_dispatcher_trusts_every_gpu_again():
    failures = [event for job in (1, 2, 3) for event in failed(job)]
    withheld = GpuWithheld(T0, a_key(), tuple(a_run(job) for job in (1, 2, 3)))

    state = after([*accepted(3), *failures, withheld, resumed()])

    assert (state.records, state.withheld) == ({}, set())


def test_stopped_jobs_are_queued_in_their_places_when_the_run_is_resumed():
    events: list[Event] = [*accepted(3), placed(1), launched(1), STOP, RunStopping(T0, a_run(1))]
    events += [exited(1, ending=Killed(15)), finished(1, "stopped")]

    stopped = after(events)
    on = after([*events, resumed()])

    assert (order_of(stopped), stopped.totals.stopped) == ([2, 3], 1)
    assert (order_of(on), on.totals.stopped) == ([1, 2, 3], 0)
    assert on.interrupted == []
    apply(on, placed(1, gpu=1, attempt=2))


def test_what_failed_before_counts_as_before():
    state = after([*accepted(2), *failed(1), resumed()])

    assert state.before.failed == 1
    apply_all(state, failed(2))
    assert (state.before.failed, state.totals.failed) == (1, 2)


def apply_all(state: State, events: Iterable[Event]) -> None:
    for event in events:
        apply(state, event)


def test_failed_jobs_that_are_tried_again_open_the_input():
    done: list[Event] = [*accepted(1), InputEnded(T0), *failed(1)]

    assert not after([*done, resumed()]).input_open
    assert after([*done, resumed(failed_too=True)]).input_open


@pytest.mark.parametrize("leftovers", [0, 1])
def test_who_was_killed_before_a_resume_is_killed_once_more_and_has_time_once_more(leftovers: int):
    """How long he has been there since, nobody has seen: he is not given up for that."""
    ended = [exited(leftovers=1)] if leftovers else []
    asked: list[Event] = [RunStopping(T0, a_run()), RunKilled(T0 + 5, a_run())]

    state = after([*accepted(1), placed(), launched(), *ended, *asked, resumed(T0 + HOUR)])

    status = state.runs[a_run()].status
    assert isinstance(status, Lingering if leftovers else Stopping)
    assert status.killed_at == T0 + HOUR


# --- a wall clock that was set back


def set_back(*events: Event) -> State:
    """An hour later another dispatcher goes on, by a clock that shows what it showed before."""
    return after([*accepted(2), *events, resumed(T0 - HOUR)])


def test_a_run_has_not_begun_later_than_now():
    state = set_back(placed(), launched())

    status = state.runs[a_run()].status
    assert isinstance(status, Running)
    assert status.since == T0 - HOUR
    assert state.holds[a_key()][a_run()].since == T0 - HOUR


def test_a_run_that_is_being_stopped_was_neither_begun_nor_killed_later_than_now():
    state = set_back(placed(), launched(), RunStopping(T0, a_run()), RunKilled(T0 + 5, a_run()))

    status = state.runs[a_run()].status
    assert isinstance(status, Stopping)
    assert (status.since, status.killed_at) == (T0 - HOUR, T0 - HOUR)
    assert status.started_at == T0 - HOUR


def test_a_run_that_nobody_killed_stays_so():
    status = set_back(placed(), launched(), RunStopping(T0, a_run())).runs[a_run()].status

    assert isinstance(status, Stopping)
    assert status.killed_at is None


def test_leftovers_were_not_killed_later_than_now():
    ended: list[Event] = [placed(), launched(), exited(leftovers=1), RunStopping(T0, a_run())]

    status = set_back(*ended, RunKilled(T0 + 5, a_run())).runs[a_run()].status

    assert isinstance(status, Lingering)
    assert (status.since, status.killed_at) == (T0 - HOUR, T0 - HOUR)


def test_a_gpu_was_not_cleared_later_than_now():
    hold = set_back(placed(), launched(), exited(at=T0 + 5)).holds[a_key()][a_run()]

    assert (hold.since, hold.cleared_at) == (T0 - HOUR, T0 - HOUR)


def test_a_run_that_is_not_settled_yet_neither_began_nor_ended_later_than_now():
    ended = set_back(placed(), launched(), exited(at=T0 + 5)).ended[a_run()]

    assert (ended.started_at, ended.ended_at) == (T0 - HOUR, T0 - HOUR)


def test_a_job_was_not_requeued_later_than_now():
    state = set_back(*ran(1), requeued(1, at=T0 + 5, not_before=T0 + 9))

    assert state.queue[0].requeued_at == T0 - HOUR
    assert state.queue[1].requeued_at == float("-inf")


def test_a_job_of_which_nothing_was_started_after_all_does_not_wait_for_what_the_clock_showed():
    again = RunKey(JobId(1), 2)
    retried: list[Event] = [*ran(1), requeued(1, at=T0 + 5, not_before=T0 + 9)]
    state = set_back(*retried, RunPlaced(T0 + 9, again, a_placement()))

    apply(state, RunRevoked(T0 - HOUR, again))

    assert state.queue[0].id == 1
    assert state.queue[0].not_before == float("-inf")


def test_times_that_are_past_stay_as_they_are():
    state = after([*accepted(2), placed(), launched(), resumed(T0 + 86400)])

    assert state.runs[a_run()].status.since == T0
    assert state.holds[a_key()][a_run()].since == T0


# --- another attempt


@pytest.mark.parametrize(
    ("why", "failures", "losses"),
    [
        ("failed", 1, 0),
        ("lost", 0, 1),
        ("survivor", 0, 0),
        ("contention", 0, 0),
        ("strangers_grew", 0, 0),
        ("packed_too_tightly", 0, 0),
    ],
)
def test_a_requeued_job_counts_why(why: str, failures: int, losses: int):
    state = after([*accepted(1), *ran(1), requeued(1, why)])  # type: ignore[arg-type]

    (job,) = state.queue
    assert (job.attempts, job.failures, job.losses) == (1, failures, losses)
    assert state.totals.finished == 0


def test_only_a_failure_is_held_against_the_gpu():
    for why, gpus in (("failed", (a_key(2),)), ("lost", ()), ("survivor", ())):
        state = after([*accepted(1), *ran(1, gpu=2), requeued(1, why)])  # type: ignore[arg-type]
        assert state.queue[0].failed_on == gpus


def test_a_job_remembers_every_gpu_on_which_it_failed_once():
    state = after(accepted(1))
    for attempt, gpu in ((1, 3), (2, 0), (3, 3)):
        apply_all(state, ran(1, gpu=gpu, attempt=attempt))
        apply(state, requeued(1, attempt=attempt))

    assert state.queue[0].failed_on == (a_key(0), a_key(3))


def test_a_requeued_job_keeps_its_place_before_later_commands():
    state = after([*accepted(4), *ran(3), *ran(1), requeued(3), requeued(1, not_before=T0 + 60)])

    assert order_of(state) == [1, 2, 3, 4]
    assert state.queue[0].not_before == T0 + 60


def test_a_job_is_requeued_while_new_commands_arrive():
    state = after([*accepted(2), *ran(1), JobAccepted(T0, JobId(3), a_spec(3)), requeued(1)])

    assert order_of(state) == [1, 2, 3]


# --- lists


def test_how_far_the_input_was_read_is_known():
    place = Position(0, 120, 7)

    state = after([JobAccepted(T0, JobId(1), a_spec(), place)])
    assert state.read_to == place
    apply(state, LineRejected(T0, "list:9", "holds a NUL byte", Position(1, 8, 1)))
    assert state.read_to == Position(1, 8, 1)


def test_inputs_that_are_whole_are_known_with_their_sizes():
    assert after([InputRead(T0, 0, 50), InputRead(T0, 1, 0)]).whole_inputs == {0: 50, 1: 0}


def test_another_list_sets_aside_what_was_queued_and_is_read_from_its_beginning():
    events: list[Event] = [
        JobAccepted(T0, JobId(1), a_spec(1), Position(0, 9, 1)),
        LineRejected(T0, "list:2", "holds a NUL byte", Position(0, 12, 2)),
        InputRead(T0, 0, 12),
        InputEnded(T0),
        resumed(),
    ]

    state = after([*events, replaced()])

    assert (order_of(state), list(state.set_aside)) == ([], [1])
    assert (state.input_open, state.read_to, state.whole_inputs) == (True, None, {})
    assert (state.totals.rejected, state.before.rejected) == (0, 0)


def test_what_runs_goes_on_though_another_list_is_given():
    state = after([*accepted(2), placed(1), launched(1), resumed(), replaced()])

    assert list(state.runs) == [a_run(1)]
    assert list(state.set_aside) == [2]


def test_jobs_that_the_new_list_names_are_queued_in_its_order():
    state = after([*accepted(3), resumed(), replaced(), recalled(3), recalled(1)])

    assert order_of(state) == [3, 1]
    assert list(state.set_aside) == [2]
    apply(state, JobAccepted(T0, JobId(4), a_spec(4)))
    assert order_of(state) == [3, 1, 4]


def test_a_recalled_job_keeps_what_is_known_of_it_and_says_where_it_stands_now():
    events: list[Event] = [*accepted(2), *ran(1, gpu=2), requeued(1), resumed(), replaced()]
    spec = replace(a_spec(1), source="other:7")

    state = after([*events, JobRecalled(T0, JobId(1), spec, 0, Position(0, 30, 7))])

    (job,) = state.queue
    assert (job.attempts, job.failures, job.failed_on) == (1, 1, (a_key(2),))
    assert job.spec.source == "other:7"
    assert state.read_to == Position(0, 30, 7)


def test_what_the_new_list_does_not_name_is_dropped_at_its_end():
    state = after([*accepted(3), resumed(), replaced(), recalled(2), InputEnded(T0)])

    assert (order_of(state), state.set_aside, state.totals.dropped) == ([2], {}, 2)


def test_a_list_that_is_read_to_its_end_the_first_time_drops_nothing():
    assert after([*accepted(3), InputEnded(T0)]).totals.dropped == 0


def test_a_failed_job_that_is_recalled_starts_afresh_with_its_next_attempt():
    state = after([*accepted(1), *failed(1), resumed(failed_too=True), recalled(1, attempts=1)])

    (job,) = state.queue
    assert (job.attempts, job.failures, state.totals.failed) == (1, 0, 0)
    apply(state, placed(1, attempt=2))


def test_a_failed_job_that_is_recalled_no_longer_counts_as_failed_before():
    state = after([*accepted(1), *failed(1), resumed(failed_too=True), recalled(1, attempts=1)])

    assert state.before.failed == 0


@pytest.mark.parametrize("job", [0, 3, -1])
def test_a_job_that_was_never_accepted_is_not_recalled(job: int):
    assert is_refused(after([*accepted(2), *failed(1)]), recalled(job))


@pytest.mark.parametrize(
    "events",
    [
        accepted(1),
        [*accepted(1), placed(), launched()],
        [*accepted(1), *ran(1)],
        [*accepted(1), *ran(1, code=0), finished()],
        [*accepted(1), *ran(1), finished(outcome="stopped")],
    ],
    ids=["queued", "running", "not settled", "done", "stopped"],
)
def test_only_what_was_set_aside_or_has_failed_is_recalled(events: Sequence[Event]):
    assert is_refused(after(events), recalled(1))


# --- the evidence against a GPU


def three_failures() -> list[Event]:
    return [*accepted(4), *failed(1), *failed(2, at=T0 + 2), *failed(3, at=T0 + 4)]


WITHHELD = GpuWithheld(T0 + 9, a_key(), tuple(a_run(job) for job in (1, 2, 3)))


def test_failures_at_once_are_counted_for_their_gpu():
    record = after(three_failures()).records[a_key().uuid]

    assert [failure.key.job for failure in record.quick_failures] == [1, 2, 3]
    assert all(failure.final for failure in record.quick_failures)
    assert record.since == T0


def test_only_the_last_few_failures_are_kept():
    failures = [event for job in range(1, 21) for event in failed(job)]

    record = after([*accepted(20), *failures]).records[a_key().uuid]

    assert len(record.quick_failures) == FAILURES_IN_A_ROW


@pytest.mark.parametrize(
    ("seconds", "code"), [(1.0, 0), (QUICK_SECONDS, 1)], ids=["success", "one that lasted"]
)
def test_what_does_well_clears_its_gpu(seconds: float, code: int):
    events = [*three_failures(), *ran(4, at=T0 + 50, seconds=seconds, code=code)]

    record = after([*events, finished(4, "ok" if code == 0 else "failed")]).records[a_key().uuid]

    assert (record.quick_failures, record.proved_at) == ((), T0 + 50)


@pytest.mark.parametrize(
    "end",
    [
        [RunStopping(T0, a_run(4)), exited(4, ending=Killed(15)), finished(4, "stopped")],
        [RunStopping(T0, a_run(4), "timeout"), exited(4, at=T0 + 99), finished(4, "failed")],
        [exited(4, ending=Lost()), finished(4, "failed")],
    ],
    ids=["asked", "timeout", "lost"],
)
def test_what_was_stopped_or_vanished_says_nothing_of_its_gpu(end: list[Event]):
    state = after([*three_failures(), placed(4), launched(4)])
    before = deepcopy(state.records)

    apply_all(state, end)

    assert state.records == before


def test_one_command_that_fails_again_and_again_is_one_failure():
    state = after(accepted(1))
    for attempt in (1, 2, 3, 4):
        apply_all(state, ran(1, attempt=attempt))
        apply(state, requeued(1, attempt=attempt))

    (failure,) = state.records[a_key().uuid].quick_failures
    assert (failure.key, failure.final) == (a_run(1, 4), False)


def test_failures_on_a_withheld_gpu_are_not_held_against_the_jobs_given_up():
    state = after([*three_failures(), WITHHELD])

    assert state.withheld == {a_key().uuid}
    assert state.totals.failed == 0
    assert order_of(state) == [1, 2, 3, 4]
    assert [job.failures for job in state.queue] == [0, 0, 0, 0]
    assert state.queue[0].failed_on == (a_key(),)
    assert state.records[a_key().uuid].quick_failures == ()
    apply(state, placed(1, gpu=1, attempt=2))


def test_failures_on_a_withheld_gpu_are_not_held_against_jobs_that_wait_for_another_try():
    events = [event for job in (1, 2, 3) for event in (*ran(job), requeued(job))]

    state = after([*accepted(3), *events, WITHHELD])

    assert [job.failures for job in state.queue] == [0, 0, 0]
    assert order_of(state) == [1, 2, 3]


def test_failures_on_a_withheld_gpu_are_not_held_against_a_job_that_is_tried_elsewhere_by_now():
    events = [event for job in (1, 2, 3) for event in (*ran(job), requeued(job))]
    elsewhere: list[Event] = [placed(1, gpu=1, attempt=2), launched(1, 2)]

    state = after([*accepted(3), *events, *elsewhere, WITHHELD])

    assert state.runs[a_run(1, 2)].job.failures == 0


@pytest.mark.parametrize(
    "event",
    [
        replace(WITHHELD, gpu=a_key(1)),
        replace(WITHHELD, runs=()),
        replace(WITHHELD, runs=(a_run(1), a_run(2))),
        replace(WITHHELD, runs=(a_run(3), a_run(2), a_run(1))),
    ],
    ids=["another", "no runs", "too few", "in another order"],
)
def test_a_gpu_is_withheld_only_for_the_failures_that_are_known(event: Event):
    assert is_refused(after(three_failures()), event)


def test_a_gpu_is_withheld_once():
    assert is_refused(after([*three_failures(), WITHHELD]), WITHHELD)


# --- the end


@pytest.mark.parametrize(("stop", "closing"), [(False, Closing.DRAIN), (True, Closing.STOP)])
def test_halted_nothing_more_is_started_and_what_runs_is_stopped_if_so_asked(
    stop: bool, closing: Closing
):
    state = after([*accepted(1), Halted(T0, "3 jobs failed", stop)])

    assert (state.halted, state.closing) == (True, closing)


def test_a_halt_takes_nothing_back():
    assert after([STOP, STOP, Halted(T0, "3 jobs failed", stop=False)]).closing is Closing.KILL


def test_a_dispatcher_s_begin_and_end_change_nothing():
    began = RunBegan(T0, "test", HOST, "/here", ("list.txt",), None, "{}")

    assert after([began, RunClosed(T0, False, 3)]) == after([])


def test_nothing_grows_with_jobs_that_failed_or_were_retried_stopped_and_dropped():
    state = after([])
    see(state, a_snapshot(a_sample(), at=T0))

    for number in range(1, 301):
        apply(state, JobAccepted(T0, JobId(number), a_spec(number)))
        apply_all(state, ran(number, gpu=number % 2))
        apply(state, requeued(number, "lost" if number % 3 else "failed"))
        apply_all(state, ran(number, gpu=number % 2, attempt=2))
        apply(state, finished(number, "failed", attempt=2))
    apply(state, InputEnded(T0))

    assert (state.totals.failed, state.totals.accepted) == (300, 300)
    assert (len(state.queue), state.runs, state.ended, state.holds) == (0, {}, {}, {})
    assert (state.set_aside, state.interrupted, len(state.records)) == ({}, [], 2)


def test_nothing_is_left_of_a_list_that_was_replaced():
    state = after([])
    for _ in range(20):
        apply(state, JobAccepted(T0, state.next_job(), a_spec()))
        apply_all(state, [resumed(), replaced(), InputEnded(T0)])

    assert (len(state.queue), state.set_aside) == (0, {})
    assert state.totals == Totals(accepted=20, dropped=20)


def test_leftovers_that_are_gone_free_the_gpu_also_when_their_job_is_not_settled():
    state = after([*accepted(1), placed(), launched(), exited(leftovers=1)])

    apply(state, RunCleared(T0 + 3, a_run()))

    assert list(state.ended) == [a_run()]
    assert state.holds[a_key()][a_run()].cleared_at == T0 + 3


def test_how_long_an_adopted_run_has_run_is_known_anew():
    """The clock may have been set since it began."""
    state = after([*accepted(1), placed(), launched(), RunAdopted(T0 + 3600, a_run(), T0 + 3590)])

    [run] = state.runs.values()
    assert run.status.since == T0 + 3590
    assert is_refused(after(accepted(1)), RunAdopted(T0, a_run(), T0))


# --- what was learned of command shapes


def learned(shape: str) -> RunMeasured:
    return RunMeasured(T0, a_run(), shape, 2**30, 50.0, 100.0)


def ended() -> State:
    """A run has ended, and what it teaches can be learned."""
    return after([*accepted(1), placed(), launched(), exited(at=T0 + 100)])


def test_the_runs_of_a_shape_add_up():
    state = ended()

    apply_all(state, [learned("a"), learned("b"), learned("a")])

    once = NO_RUNS.with_run(2**30, 50.0, 100.0)
    assert state.footprints == {"a": once.with_run(2**30, 50.0, 100.0), "b": once}


def test_of_more_shapes_than_are_kept_the_one_learned_longest_ago_goes():
    state = ended()
    apply_all(state, [learned(f"shape {number}") for number in range(MOST_SHAPES)])

    apply_all(state, [learned("shape 0"), learned("another")])

    assert len(state.footprints) == MOST_SHAPES
    assert "shape 1" not in state.footprints
    assert state.footprints["shape 0"].runs == 2
    assert list(state.footprints)[-2:] == ["shape 0", "another"]


def test_what_a_run_that_is_not_there_teaches_is_refused():
    assert is_refused(after(accepted(1)), learned("a"))


def test_what_is_learned_of_a_run_is_its_last_meter():
    state = ended()
    state.meters[a_run()] = Meter()

    apply(state, learned("a"))

    assert state.meters == {}
    apply(state, finished())


# --- why a job is queued again


def test_a_job_that_gave_way_is_queued_at_the_head_and_has_not_failed():
    state = after([*accepted(3), *ran(1), requeued(1, "contention")])

    assert order_of(state) == [1, 2, 3]
    job = state.queue[0]
    assert (job.failures, job.ooms, job.failed_on) == (0, 0, ())
    assert (state.totals.yields, state.totals.yielded_gpu_seconds) == (1, 1.0)


def test_what_gave_way_on_several_gpus_gave_all_of_them():
    two = Placement((*a_placement(0).gpus, *a_placement(1).gpus))
    events: list[Event] = [RunPlaced(T0, a_run(), two), launched(), exited(at=T0 + 60)]

    state = after([*accepted(1), *events, requeued(1, "contention")])

    assert state.totals.yielded_gpu_seconds == 120


def test_a_job_that_strangers_left_no_memory_is_charged_nothing():
    state = after([*accepted(1), *ran(1), requeued(1, "strangers_grew")])

    (job,) = state.queue
    assert (job.failures, job.ooms, job.needs_bytes, job.alone) == (0, 0, None, False)


def test_a_job_that_was_packed_too_tightly_remembers_what_it_is_to_be_given():
    state = after([*accepted(1), *ran(1), too_tight(needs_bytes=9)])

    (job,) = state.queue
    assert (job.ooms, job.needs_bytes, job.alone, job.failures) == (1, 9, False, 0)


def test_a_job_that_is_to_be_alone_forgets_how_much_it_was_to_have():
    events = [*ran(1), too_tight(needs_bytes=9), *ran(1, attempt=2), too_tight(2, alone=True)]

    (job,) = after([*accepted(1), *events]).queue

    assert (job.ooms, job.needs_bytes, job.alone) == (2, None, True)


def too_tight(
    attempt: int = 1, *, needs_bytes: int | None = None, alone: bool = False
) -> JobRequeued:
    again = requeued(1, "packed_too_tightly", attempt)
    return replace(again, needs_bytes=needs_bytes, alone=alone)


def test_a_job_that_fails_later_keeps_what_is_known_of_its_memory():
    events = [*ran(1), too_tight(needs_bytes=9), *ran(1, attempt=2), requeued(1, attempt=2)]

    (job,) = after([*accepted(1), *events]).queue

    assert (job.ooms, job.needs_bytes, job.failures) == (1, 9, 1)


def test_want_of_memory_is_not_held_against_its_gpu():
    for out_of_memory, known in (("CUDA out of memory", 0), ("", 1)):
        end = RunExited(T0 + 1, a_run(), FAILED, 0, out_of_memory)
        state = after([*accepted(1), placed(), launched(), end, requeued(1)])
        assert sum(len(record.quick_failures) for record in state.records.values()) == known


# --- to whom a run gave way


def crowded() -> State:
    """A run of ours beside two strangers."""
    state = after([*accepted(1), placed(), launched()])
    see(state, a_snapshot(used_by(a_process(500), a_process(600)), at=T0 + 1))
    return state


def test_to_whom_a_run_gave_way_is_remembered_while_they_are_there():
    state = crowded()

    apply(state, RunStopping(T0 + 1, a_run(), "contention", "alice"))

    watch = state.gpus[a_key()]
    assert watch.given_way_to == {500, 600}
    see(state, a_snapshot(used_by(a_process(600)), at=T0 + 2))
    assert watch.given_way_to == {600}


@pytest.mark.parametrize("why", ["asked", "timeout", "survivor"])
def test_what_is_stopped_for_any_other_reason_gives_way_to_nobody(why: Any):
    state = crowded()

    apply(state, RunStopping(T0 + 1, a_run(), why))

    assert state.gpus[a_key()].given_way_to == set()


def test_that_a_run_gave_way_is_known_though_no_gpu_was_seen_yet():
    state = after([*accepted(1), placed(), launched(), RunStopping(T0, a_run(), "contention")])

    status = state.runs[a_run()].status
    assert isinstance(status, Stopping)
    assert (status.why, state.gpus) == ("contention", {})


# --- what was measured goes with its run


@pytest.mark.parametrize(
    "end",
    [
        [RunPostponed(T0 + 2, a_run(), "no memory")],
        [exited(at=T0 + 2), finished()],
        [exited(at=T0 + 2), requeued()],
    ],
    ids=["postponed", "finished", "requeued"],
)
def test_nothing_is_left_of_what_was_measured(end: list[Event]):
    state = crowded()
    assert list(state.meters) == [a_run()]

    apply_all(state, end)

    assert state.meters == {}
