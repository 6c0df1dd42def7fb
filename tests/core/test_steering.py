"""What comes of requests, from their text to their answers."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from smartsched.core.apply import apply, replay
from smartsched.core.decide import decide
from smartsched.core.events import (
    DrainRequested,
    Event,
    InputEnded,
    JobAccepted,
    JobRecalled,
    JobsAdded,
    JobsCancelled,
    JobsRetried,
    ListReplaced,
    RequestRefused,
    RunCleared,
    RunContinued,
    RunPaused,
    RunPostponed,
    RunResumed,
    RunStopping,
)
from smartsched.core.ledger import ledger_of
from smartsched.core.model import Exited, GivenUp, JobId, JobSpec, Killed, Wishes
from smartsched.core.requests import (
    VERSION,
    Add,
    Answer,
    Ask,
    Cancel,
    Continue,
    Pause,
    Retry,
    SetOptions,
    Unusable,
    request_of,
)
from smartsched.core.settle import settle
from smartsched.core.state import MOST_GIVEN_UP, State, give_up
from smartsched.core.status import status
from smartsched.core.steering import MOST_QUEUED, Steering, steer
from tests.builders import (
    HOST,
    T0,
    a_policy,
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
    see,
)

ENDED = InputEnded(T0)
TERMINATED = Killed(15)


def after(events: Iterable[Event], **policy: Any) -> State:
    return replay(a_policy(**policy), events)


def running(count: int = 1, of: int | None = None) -> list[Event]:
    """The first jobs run, one on each GPU; the others wait."""
    events = accepted(of or count)
    for job in range(1, count + 1):
        events += [placed(job, job - 1), launched(job)]
    return events


def asked(state: State, request: Steering) -> Answer:
    """It is done, and what its user is told."""
    event, answer = steer(state, request, T0 + 1)
    apply(state, event)
    return answer


def waiting(state: State) -> list[int]:
    return [job.id for job in state.queue]


def settled(state: State, seconds: float = 2.0) -> list[Event]:
    events = []
    for event in settle(state, T0 + seconds):
        apply(state, event)
        events.append(event)
    return events


# --- what a request says


def text_of(verb: str, **fields: Any) -> bytes:
    return json.dumps({"smartsched_request": VERSION, "verb": verb, **fields}).encode()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (text_of("pause"), Pause("7")),
        (text_of("continue"), Continue("7")),
        (text_of("status"), Ask("7")),
        (text_of("cancel", jobs=["1", "big"]), Cancel("7", ("1", "big"))),
        (text_of("cancel", jobs=[], all=True), Cancel("7", (), everything=True)),
        (text_of("retry", jobs=[], failed=True), Retry("7", (), all_failed=True)),
        (text_of("set", options={"max_mem": "30%"}), SetOptions("7", {"max_mem": "30%"})),
        (
            text_of("add", commands=[["echo a  # smartsched: gpus=2", "-:1"]], directory="/wd"),
            Add(
                "7",
                (JobSpec("echo a  # smartsched: gpus=2", "-:1", "/wd", Wishes(gpus=2)),),
            ),
        ),
    ],
)
def test_a_request_is_what_its_text_says(text: bytes, meant: object):
    assert request_of("7", text) == meant


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"smartsched_request": 2, "verb": "pause"}',
        text_of("explode"),
        text_of("cancel"),
        text_of("cancel", jobs=[1]),
        text_of("cancel", jobs=7),
        text_of("add", commands=[["echo"]], directory="/"),
        text_of("add", commands=[["echo", 5]], directory="/"),
        text_of("add", commands=[["echo", "-:1"]], directory=None),
        text_of("add", commands=[["a # smartsched: gpu=1", "-:1"]], directory="/"),
        text_of("set", options=["max_mem"]),
        b"[" * 100_000,
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(text: bytes):
    request = request_of("7", text)

    assert isinstance(request, Unusable)
    event, answer = steer(after([]), request, T0)
    assert isinstance(event, RequestRefused)
    assert not answer.done
    assert answer.words


# --- more jobs


def test_added_jobs_come_behind_all_others_and_run_like_them():
    state = after(accepted(2))

    answer = asked(state, Add("r", (a_spec(8), a_spec(9))))

    assert waiting(state) == [1, 2, 3, 4]
    assert state.queue[-1].spec == a_spec(9)
    assert (answer.done, answer.words) == (True, "added as jobs 3-4")
    assert answer.facts == {"jobs": [3, 4]}
    assert state.totals.accepted == 4


def test_jobs_may_be_added_when_the_list_has_ended_while_something_runs():
    state = after([*running(1), ENDED])

    assert asked(state, Add("r", (a_spec(8),))).done

    assert not decide(state, T0 + 1).over


def test_added_jobs_are_counted_on_from_the_list():
    state = after(accepted(1))
    asked(state, Add("r", (a_spec(8),)))

    apply(state, JobAccepted(T0, state.next_job(), a_spec(2)))

    assert waiting(state) == [1, 2, 3]


def test_no_more_are_added_than_fit_into_memory():
    state = after([])

    answer = asked(state, Add("r", (a_spec(),) * (MOST_QUEUED + 1)))

    assert not answer.done
    assert waiting(state) == []
    assert "20,000" in answer.words


def test_a_run_that_is_ending_takes_no_more_jobs():
    state = after([*running(1), DrainRequested(T0, "ctrl-c")])

    for request in (Add("r", (a_spec(),)), Retry("r", ("1",)), Pause("r"), Continue("r")):
        answer = asked(state, request)
        assert not answer.done
        assert "--resume" in answer.words


def test_a_list_that_is_given_later_knows_what_was_added():
    events = [*accepted(1), JobsAdded(T0, "r", JobId(2), (a_spec(8),))]
    ledger = ledger_of(events)

    ledger.replace_list()

    assert ledger.next_occurrence(a_spec(8)) == 2


# --- fewer jobs


def test_a_job_that_waits_is_taken_out():
    state = after(accepted(3))

    answer = asked(state, Cancel("r", ("2",)))

    assert waiting(state) == [1, 3]
    assert state.totals.cancelled == 1
    assert answer.words == "cancelled job 2"


def test_a_job_that_runs_is_stopped_and_does_not_count_as_failed():
    state = after(running(1), retries=3)

    answer = asked(state, Cancel("r", ("1",)))
    decision = decide(state, T0 + 1)
    assert RunStopping(T0 + 1, a_run(1), "cancelled") in decision.events
    for event in [*decision.events, exited(1, ending=TERMINATED, at=T0 + 2)]:
        apply(state, event)

    assert [event.outcome for event in settled(state)] == ["cancelled"]  # type: ignore[union-attr]
    assert (state.totals.cancelled, state.totals.failed) == (1, 0)
    assert not state.queue
    assert "stopping 1 running job" in answer.words


@pytest.mark.parametrize("ending", [Exited(0), Exited(1), TERMINATED])
def test_however_a_run_ends_that_was_stopped_for_it_its_job_is_cancelled(ending: Exited | Killed):
    state = after(running(1))
    asked(state, Cancel("r", ("1",)))
    apply(state, RunStopping(T0 + 1, a_run(1), "cancelled"))
    apply(state, exited(1, ending=ending, at=T0 + 2))

    settled(state)

    assert (state.totals.ok, state.totals.failed, state.totals.cancelled) == (0, 0, 1)


def test_a_job_that_ended_well_before_it_could_be_cancelled_is_ok():
    state = after([*running(1), exited(1, ending=Exited(0))])

    asked(state, Cancel("r", ("1",)))
    settled(state)

    assert (state.totals.ok, state.totals.cancelled) == (1, 0)
    assert not state.cancelled


def test_a_job_that_failed_just_then_is_not_tried_again():
    state = after([*running(1), exited(1, ending=Exited(1))], retries=5)

    asked(state, Cancel("r", ("1",)))
    settled(state)

    assert (state.totals.failed, state.totals.cancelled) == (0, 1)
    assert not state.queue


def test_a_job_that_gives_way_does_not_come_back_when_it_is_cancelled():
    state = after([*running(1), RunStopping(T0, a_run(1), "contention", "alice")])

    asked(state, Cancel("r", ("1",)))
    apply(state, exited(1, ending=TERMINATED))
    settled(state)

    assert not state.queue
    assert state.totals.cancelled == 1


def test_a_start_that_comes_to_nothing_is_not_tried_again_when_it_is_cancelled():
    state = after([*accepted(1), placed(1, 0)])
    asked(state, Cancel("r", ("1",)))

    apply(state, RunPostponed(T0 + 1, a_run(1), "no room"))

    assert not state.queue
    assert state.totals.cancelled == 1


def test_what_a_finished_job_left_behind_is_no_job_to_be_cancelled():
    state = after([*running(1), exited(1, ending=Exited(1), leftovers=1)])
    settled(state)

    answer = asked(state, Cancel("r", ("1",)))

    assert answer == Answer(False, "job 1 is over; nothing was cancelled")
    apply(state, RunStopping(T0 + 3, a_run(1)))
    apply(state, RunCleared(T0 + 3, a_run(1)))


def test_everything_is_cancelled_with_what_is_still_to_be_read():
    state = after(running(1, of=3))

    answer = asked(state, Cancel("r", (), everything=True))

    assert not state.queue
    assert not state.input_open
    assert state.cancelled == {1}
    assert "what is still to be read is left out" in answer.words


@pytest.mark.parametrize(
    ("wanted", "left"),
    [(("2-3",), [1, 4]), (("3-99",), [1, 2]), (("big",), [1, 2, 3]), (("1", "2-2"), [3, 4])],
)
def test_jobs_are_named_by_number_range_or_name(wanted: tuple[str, ...], left: list[int]):
    big = JobAccepted(T0, JobId(4), JobSpec("a", "list:4", wishes=Wishes(name="big")))
    state = after([*accepted(3), big])

    assert asked(state, Cancel("r", wanted)).done

    assert waiting(state) == left


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("9", "there is no job 9, or it was not read from the list yet; nothing was cancelled"),
        ("0", "there is no job 0, or it was not read from the list yet; nothing was cancelled"),
        ("big", "there is no job big: smartsched status lists them; nothing was cancelled"),
        ("1", "job 1 is over; nothing was cancelled"),
        ("7-9", "none of jobs 7-9 can be: smartsched status lists them; nothing was cancelled"),
    ],
)
def test_nothing_is_cancelled_where_one_of_the_jobs_cannot_be(wanted: str, why: str):
    state = after([*running(1, of=3), exited(1, ending=Exited(0)), finished(1, "ok")])

    answer = asked(state, Cancel("r", ("2", wanted)))

    assert answer == Answer(False, why)
    assert waiting(state) == [2, 3]


def test_a_job_is_not_cancelled_twice():
    state = after(running(1))
    asked(state, Cancel("r", ("1",)))

    assert "already" in asked(state, Cancel("s", ("1",))).words


# --- once more


def failed(job: int = 1, of: int = 1) -> list[Event]:
    return [*running(1, of=of), exited(job, ending=Exited(1)), finished(job, "failed")]


def test_a_job_that_failed_is_queued_again_behind_the_others_with_all_its_retries():
    state = after(failed(of=2), retries=1)

    answer = asked(state, Retry("r", ("1",)))

    assert waiting(state) == [2, 1]
    assert (state.queue[-1].attempts, state.queue[-1].failures) == (1, 0)
    assert (state.totals.failed, state.totals.accepted) == (0, 2)
    assert answer.words == "queued again: job 1"


def test_all_that_failed_are_queued_again():
    state = after([*failed(of=2), placed(2, 0), launched(2), exited(2, ending=Exited(1))])
    settled(state)

    asked(state, Retry("r", (), all_failed=True))

    assert waiting(state) == [1, 2]


def test_a_cancelled_job_may_be_tried_again_but_is_not_among_the_failed():
    state = after(accepted(1))
    asked(state, Cancel("r", ("1",)))

    assert asked(state, Retry("s", (), all_failed=True)).words == "no job has failed"
    asked(state, Retry("t", ("1",)))

    assert waiting(state) == [1]
    assert state.totals.cancelled == 0


@pytest.mark.parametrize(
    ("events", "word"),
    [(accepted(1), "waits"), (running(1), "runs"), ([*running(1), exited(1)], "runs")],
)
def test_what_waits_or_runs_is_not_queued_again(events: list[Event], word: str):
    assert word in asked(after(events), Retry("r", ("1",))).words


def test_what_ended_well_is_not_run_again():
    state = after([*running(1), exited(1, ending=Exited(0)), finished(1, "ok")])

    answer = asked(state, Retry("r", ("1",)))

    assert not answer.done
    assert "smartsched add" in answer.words
    assert not state.queue


LEFT_SOMETHING_BEHIND = [
    [*running(1), exited(1, ending=Exited(1), leftovers=1), finished(1, "failed"),
     JobsRetried(T0, "r", (JobId(1),))],
    [*running(1), RunStopping(T0, a_run(1)), exited(1, ending=TERMINATED, leftovers=1),
     finished(1, "stopped"), RunResumed(T0, HOST, "{}")],
]  # fmt: skip


@pytest.mark.parametrize("events", LEFT_SOMETHING_BEHIND, ids=["retried", "resumed"])
def test_two_attempts_at_one_job_do_not_meet(events: list[Event]):
    state = after(events)
    see(state, a_snapshot(a_sample(0), a_sample(1), at=T0 + 6))

    decision = decide(state, T0 + 6)

    assert launches(decision) == []
    assert decision.waiting is not None
    assert "job 1 left processes behind" in decision.waiting.why
    for event in (RunStopping(T0 + 6, a_run(1)), RunCleared(T0 + 6, a_run(1))):
        apply(state, event)
    assert [job for job, _ in launches(decide(state, T0 + 6))] == [1]


def test_failures_of_an_earlier_dispatcher_no_longer_count_when_they_are_tried_again():
    state = after([*failed(), RunResumed(T0 + 5, HOST, "{}")])

    asked(state, Retry("r", ("1",)))

    assert (state.totals.failed, state.before.failed) == (0, 0)


def test_what_was_recalled_cannot_be_tried_again_as_well():
    events = [*failed(), RunResumed(T0, HOST, "{}", failed_too=True)]
    state = after([*events, JobRecalled(T0, JobId(1), a_spec(), 1, None)])

    assert not asked(state, Retry("r", ("1",))).done
    assert waiting(state) == [1]


def test_only_so_many_that_were_given_up_are_remembered():
    state = after(accepted(1))
    job = state.queue[0]
    for number in range(MOST_GIVEN_UP + 5):
        give_up(state, GivenUp(type(job)(JobId(number + 1), job.spec), "failed"))

    assert len(state.given_up) == MOST_GIVEN_UP
    assert 1 not in state.given_up
    assert MOST_GIVEN_UP + 5 in state.given_up


# --- pausing


def test_a_paused_run_starts_nothing_and_lets_what_runs_go_on():
    state = after(running(1, of=2))
    see(state, a_snapshot(a_sample(0), a_sample(1), at=T0 + 1))

    answer = asked(state, Pause("r"))
    decision = decide(state, T0 + 1)

    assert answer.words == "paused: nothing more is started; 1 running job may finish"
    assert not decision.events
    assert decision.waiting is not None
    assert "smartsched continue" in decision.waiting.why
    assert not decision.over


def test_a_run_that_is_continued_starts_jobs_again():
    state = after([*accepted(1), RunPaused(T0, "r")])
    see(state, a_snapshot(a_sample(0), at=T0 + 1))

    asked(state, Continue("s"))

    assert decide(state, T0 + 1).events


def test_who_goes_on_with_a_run_has_continued_it():
    state = after([*accepted(1), RunPaused(T0, "r"), RunResumed(T0 + 5, HOST, "{}")])

    assert not state.paused


def test_a_run_is_over_though_it_is_paused_when_nothing_is_left():
    assert decide(after([ENDED, RunPaused(T0, "r")]), T0 + 1).over


def test_continuing_what_was_not_paused_changes_nothing():
    state = after(accepted(1))

    event, answer = steer(state, Continue("r"), T0)

    assert event == RunContinued(T0, "r")
    assert answer.words == "it was not paused"


# --- staying open


def test_a_run_that_is_kept_open_waits_for_more_jobs():
    state = after([ENDED], keeps_open=True)

    decision = decide(state, T0 + 1)

    assert not decision.over
    assert decision.waiting is not None
    assert "smartsched add" in decision.waiting.why


def test_a_run_that_is_kept_open_ends_when_it_is_told_to():
    assert decide(after([ENDED, DrainRequested(T0, "ctrl-c")], keeps_open=True), T0 + 1).over


# --- how it stands


def test_the_status_says_what_runs_waits_and_was_given_up():
    state = after([*failed(of=4), placed(2, 0), launched(2), JobsCancelled(T0, "r", (JobId(3),))])
    see(state, a_snapshot(a_sample(0), at=T0 + 1))

    found = status(state, None, T0 + 9)

    json.dumps(found)
    assert found["phase"] == "running"
    assert [run["job"] for run in found["running"]] == [2]
    assert found["running"][0]["gpus"] == ["0"]
    assert found["running"][0]["seconds"] == 9
    assert [job["job"] for job in found["waiting"]] == [4]
    assert {job["job"]: job["outcome"] for job in found["given_up"]} == {
        1: "failed",
        3: "cancelled",
    }
    assert found["jobs"]["failed"] == found["jobs"]["cancelled"] == 1
    assert [gpu["jobs"] for gpu in found["gpus"]] == [[2]]


@pytest.mark.parametrize(
    ("event", "phase"),
    [(RunPaused(T0, "r"), "paused"), (DrainRequested(T0, "ctrl-c"), "draining")],
)
def test_the_status_says_in_a_word_whether_it_goes_on(event: Event, phase: str):
    assert status(after([event]), None, T0)["phase"] == phase


def test_retried_jobs_that_came_to_nothing_are_queued_as_the_journal_says():
    state = after([*failed(), JobsRetried(T0 + 5, "r", (JobId(1),))])

    assert waiting(state) == [1]


# --- what a review has found


def test_a_number_that_nobody_can_count_to_is_no_job():
    answer = asked(after(accepted(1)), Cancel("r", ("9" * 5000,)))

    assert not answer.done


@pytest.mark.parametrize("text", ["echo \ud800", "echo \0"])
def test_what_no_shell_can_take_is_no_command(text: str):
    request = request_of("7", text_of("add", commands=[[text, "-:1"]], directory="/"))

    assert isinstance(request, Unusable)


def test_what_was_added_stays_when_the_list_is_replaced():
    events = [*accepted(1), JobsAdded(T0, "r", JobId(2), (a_spec(8),))]

    state = after([*events, RunResumed(T0 + 5, HOST, "{}"), ListReplaced(T0 + 5, ("list",))])

    assert waiting(state) == [2]
    assert set(state.set_aside) == {1}


def test_an_added_job_that_failed_is_not_dropped_for_want_of_a_line():
    events: list[Event] = [
        JobsAdded(T0, "r", JobId(1), (a_spec(8),)),
        placed(1, 0),
        launched(1),
        exited(1, ending=Exited(1)),
        finished(1, "failed"),
        ListReplaced(T0, ("list",)),
    ]

    assert ledger_of(events).failed_before() == set()


def test_a_cancelled_job_is_no_evidence_against_its_gpu():
    state = after([*running(1), exited(1, ending=Exited(1))])

    asked(state, Cancel("r", ("1",)))
    settled(state)

    assert not state.records


def test_cancelling_all_ends_a_run_that_is_kept_open():
    state = after([ENDED], keeps_open=True)

    asked(state, Cancel("r", (), everything=True))

    assert decide(state, T0 + 1).over


def test_who_goes_on_with_a_run_whose_jobs_were_all_cancelled_keeps_it_open_again():
    cancelled = JobsCancelled(T0, "r", (), rest=True)
    events: list[Event] = [ENDED, cancelled, RunResumed(T0 + 5, HOST, "{}")]

    assert not decide(after(events, keeps_open=True), T0 + 6).over
