"""What a run came to, by its journal."""

from collections.abc import Sequence

from smartsched.core.account import Account, account_of
from smartsched.core.events import (
    Event,
    FailuresDropped,
    Halted,
    RunBegan,
    RunClosed,
    RunMeasured,
    RunResumed,
    RunStopping,
)
from smartsched.core.model import Exited, JobId, Killed
from tests.builders import (
    GIB,
    HOST,
    T0,
    a_part,
    a_run,
    accepted,
    begun,
    exited,
    finished,
    listed,
    requeued,
)

BEGAN = RunBegan(T0, "sweep", HOST, "/home/me", ("list",), None, '{"jobs": "3"}', "sweep.1")


def account(*events: Event | Sequence[Event]) -> Account:
    flat = [each for one in events for each in (one if isinstance(one, list) else [one])]
    found = account_of([BEGAN, *flat])  # type: ignore[list-item]
    assert found is not None
    return found


def test_of_no_event_there_is_no_account():
    assert account_of([]) is None


def test_every_attempt_is_a_bar_with_its_gpus_its_times_and_what_became_of_it():
    told = account(
        accepted(2),
        begun(1, a_part(0), a_part(3), at=T0 + 1),
        exited(1, at=T0 + 5),
        finished(1, at=T0 + 5),
        begun(2, a_part(1), at=T0 + 2),
        exited(2, at=T0 + 4, ending=Exited(7)),
        requeued(2, at=T0 + 4),
    )

    bars = [
        (b.run.job, b.placement.labels, b.begin - T0, b.end, b.became, b.how) for b in told.bars
    ]
    assert bars == [
        (1, "0,3", 1, T0 + 5, "ok", ""),
        (2, "1", 2, T0 + 4, "tried again", "exit status 7"),
    ]


def test_what_still_runs_is_a_bar_without_an_end():
    told = account(accepted(1), begun(1))

    assert [(bar.end, bar.became) for bar in told.bars] == [(None, "running")]
    assert told.jobs[0].status == "running"


def test_who_gave_way_says_to_whom():
    told = account(
        accepted(1),
        begun(1),
        RunStopping(T0 + 3, a_run(1), "contention", "alice: python train.py"),
        exited(1, at=T0 + 4, ending=Killed(15)),
        requeued(1, "contention", at=T0 + 4),
    )

    [bar] = told.bars
    assert (bar.became, bar.to_whom) == ("gave way", "alice: python train.py")
    assert told.totals.yields == 1
    assert (told.jobs[0].status, told.jobs[0].how) == ("waiting", "gave way to other people")


def test_a_job_that_was_tried_twice_is_one_row_of_its_last_try():
    told = account(
        listed("python train.py"),
        begun(1, a_part(0), at=T0 + 1),
        exited(1, at=T0 + 2, ending=Exited(1)),
        requeued(1, at=T0 + 2),
        begun(1, a_part(1), attempt=2, at=T0 + 3),
        exited(1, attempt=2, at=T0 + 13),
        finished(1, attempt=2, at=T0 + 13),
    )

    [row] = told.jobs
    assert (row.status, row.attempts, row.gpus, row.seconds) == ("ok", 2, "1", 10)
    assert (row.began_at, row.ended_at) == (T0 + 1, T0 + 13)
    assert [bar.became for bar in told.bars] == ["tried again", "ok"]


def test_a_failure_says_how():
    told = account(accepted(1), begun(1), exited(1, ending=Killed(9)), finished(1, "failed"))

    assert (told.jobs[0].status, told.jobs[0].how) == ("failed", "killed by SIGKILL")


def test_failures_that_the_new_list_has_not_are_left_out():
    told = account(
        accepted(1),
        begun(1),
        exited(1, ending=Exited(1)),
        finished(1, "failed"),
        FailuresDropped(T0 + 9, (JobId(1),)),
    )

    assert told.jobs[0].status == "left out"


def test_runs_of_a_shape_are_summed_up():
    def measured(job: int, gib: int, percent: float | None, seconds: float) -> list[Event]:
        return [
            *begun(job, a_part(job)),
            exited(job),
            RunMeasured(T0, a_run(job), "train *", gib * GIB, percent, seconds),
            finished(job),
        ]

    told = account(accepted(2), measured(1, 4, None, 10.0), measured(2, 6, 35.0, 20.0))

    [shape] = told.shapes
    assert (shape.shape, shape.runs, shape.peak_bytes) == ("train *", 2, 6 * GIB)
    assert (shape.utilization_percent, shape.mean_seconds, shape.longest_seconds) == (35, 15, 20)
    assert told.jobs[1].peak_bytes == 6 * GIB


def test_whether_its_last_dispatcher_said_that_it_ends_is_known():
    closed = RunClosed(T0 + 9, complete=True, failed=0)

    assert account(accepted(1)).ended_at is None
    assert account(closed).ended_at == T0 + 9
    resumed = account(closed, RunResumed(T0 + 20, HOST, "{}"))
    assert (resumed.ended_at, resumed.options, resumed.last_at) == (None, "{}", T0 + 20)


def test_what_happened_is_told_in_printable_words():
    told = account(Halted(T0 + 1, "\x1b[31m3 failed", stop=False))

    assert told.remarks == [(T0 + 1, "\\x1b[31m3 failed: nothing more is started")]
