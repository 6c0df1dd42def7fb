"""Which commands of a list a run knows already."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.apply import replay
from smartsched.core.events import (
    Event,
    GpuWithheld,
    InputEnded,
    JobAccepted,
    JobRecalled,
    ListReplaced,
)
from smartsched.core.ledger import Ledger, ledger_of
from smartsched.core.model import Exited, JobId, JobSpec
from tests.builders import (
    T0,
    a_key,
    a_policy,
    a_run,
    exited,
    finished,
    launched,
    placed,
    requeued,
)

REPLACED = ListReplaced(T0, ("other.txt",))


def spec(command: str, directory: str = "/work", source: str = "list:1") -> JobSpec:
    return JobSpec(command, source, directory)


def given_as(commands: str, first: int = 1) -> list[Event]:
    """One command a letter."""
    return [
        JobAccepted(T0, JobId(number), spec(command))
        for number, command in enumerate(commands, start=first)
    ]


def known_in(ledger: Ledger, commands: str) -> list[int | None]:
    return [ledger.next_occurrence(spec(command)) for command in commands]


def found(first: str, second: str) -> list[int | None]:
    """Which jobs of a first list the lines of a second one are."""
    return known_in(ledger_of([*given_as(first), REPLACED]), second)


@pytest.mark.parametrize(
    ("first", "second", "jobs"),
    [
        ("abc", "abc", [1, 2, 3]),
        ("abc", "axbc", [1, None, 2, 3]),
        ("abc", "xabcy", [None, 1, 2, 3, None]),
        ("abc", "ac", [1, 3]),
        ("abc", "", []),
        ("abc", "cba", [3, 2, 1]),
        ("aa", "a", [1]),
        ("a", "aaa", [1, None, None]),
        ("aba", "aab", [1, 3, 2]),
        ("abab", "bbaa", [2, 4, 1, 3]),
        ("", "ab", [None, None]),
    ],
    ids=["same", "inserted", "around", "deleted", "emptied", "reordered", "once less", "more often",
         "between", "repeated", "nothing before"],
)  # fmt: skip
def test_a_line_is_known_by_its_text_and_its_occurrence(
    first: str, second: str, jobs: list[int | None]
):
    assert found(first, second) == jobs


@given(st.text("abc", max_size=12), st.data())
def test_a_list_in_any_order_names_every_job_once(first: str, data: st.DataObject):
    second = "".join(data.draw(st.permutations(first)))

    assert sorted(map(int, filter(None, found(first, second)))) == list(range(1, len(first) + 1))


def test_where_a_line_stands_does_not_matter_where_it_runs_does():
    ledger = ledger_of([JobAccepted(T0, JobId(1), spec("a", source="list:1")), REPLACED])

    assert ledger.next_occurrence(spec("a", directory="/other")) is None
    assert ledger.next_occurrence(spec("a", source="new:99")) == 1


def test_folder_and_command_do_not_run_into_each_other():
    ledger = ledger_of([JobAccepted(T0, JobId(1), spec("c", directory="/a/b")), REPLACED])

    assert ledger.next_occurrence(spec("/bc", directory="/a")) is None


def test_a_command_that_is_not_utf8_is_known():
    raw = b"echo \xff\xe9".decode("utf-8", "surrogateescape")
    ledger = ledger_of([JobAccepted(T0, JobId(1), spec(raw)), REPLACED])

    assert ledger.next_occurrence(spec(raw)) == 1
    assert ledger.next_occurrence(spec("echo \ufffd\ufffd")) is None


def test_lines_of_the_present_list_are_no_earlier_ones():
    ledger = ledger_of(given_as("ab"))

    assert known_in(ledger, "ab") == [None, None]


def test_a_third_list_knows_the_commands_of_both_before_it():
    events = [*given_as("ab"), REPLACED, *given_as("c", first=3), REPLACED]

    assert known_in(ledger_of(events), "cabx") == [3, 1, 2, None]


def test_new_occurrences_of_a_second_list_are_the_later_ones_in_a_third():
    events = [*given_as("a"), REPLACED, *given_as("a", first=2), REPLACED]

    assert known_in(ledger_of(events), "aaa") == [1, 2, None]


def test_a_new_list_is_counted_from_its_beginning():
    ledger = ledger_of([*given_as("ab"), REPLACED])
    known_in(ledger, "ab")

    ledger.replace_list()

    assert known_in(ledger, "ab") == [1, 2]


def test_what_a_list_dropped_is_run_when_a_later_one_has_it_again():
    """It was never run: nothing that a list names may be taken for done."""
    recalled = JobRecalled(T0, JobId(1), spec("a"), 0, None)
    events = [*given_as("ab"), REPLACED, recalled, InputEnded(T0), REPLACED]
    state = replay(a_policy(), events)

    _, job = known_in(ledger_of(events), "ab")

    assert job in state.set_aside


# --- what has failed


def end(job: int, *, attempt: int = 1, gpu: int = 0) -> list[Event]:
    return [
        placed(job, gpu, attempt),
        launched(job, attempt),
        exited(job, attempt, ending=Exited(1)),
    ]


def failures_after(*events: Event) -> dict[JobId, tuple[JobSpec, int]]:
    return ledger_of([*given_as("abc"), *events]).failed


def test_failed_jobs_are_known_with_their_attempts():
    assert failures_after(*end(2), requeued(2), *end(2, attempt=2), finished(2, "failed", 2)) == {
        JobId(2): (spec("b"), 2)
    }


@pytest.mark.parametrize(
    "last", [finished(1, "ok"), finished(1, "stopped"), requeued(1)], ids=["ok", "stopped", "again"]
)
def test_what_has_not_failed_for_good_is_not_among_them(last: Event):
    assert failures_after(*end(1), last) == {}


def test_a_failed_job_that_was_recalled_has_not_failed_until_it_fails_again():
    failed = [*end(1), finished(1, "failed")]
    recalled = JobRecalled(T0, JobId(1), spec("a"), 1, None)
    again = [*end(1, attempt=2), finished(1, "failed", 2)]

    assert failures_after(*failed, recalled) == {}
    assert failures_after(*failed, recalled, *again) == {JobId(1): (spec("a"), 2)}


def withheld(*runs: tuple[int, int]) -> GpuWithheld:
    return GpuWithheld(T0, a_key(), tuple(a_run(*run) for run in runs))


def test_what_failed_on_a_gpu_that_was_withheld_has_not_failed():
    failed: list[Event] = [finished(job, "failed") for job in (1, 2, 3)]

    assert failures_after(*failed, withheld((1, 1), (3, 1))) == {JobId(2): (spec("b"), 1)}


def test_what_failed_on_a_withheld_gpu_and_again_elsewhere_has_failed():
    first, last = requeued(1), finished(1, "failed", 2)

    assert failures_after(first, last, withheld((1, 1))) == {JobId(1): (spec("a"), 2)}


def test_what_fails_once_more_after_its_gpu_was_withheld_has_failed():
    events: list[Event] = [finished(1, "failed"), withheld((1, 1)), finished(1, "failed", 2)]

    assert failures_after(*events) == {JobId(1): (spec("a"), 2)}


# --- what commands wish for themselves


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("a", "a  # smartsched: gpus=2"),
        ("a  # smartsched: gpus=2", "a"),
        ("a  # smartsched: gpus=2 mem=4GiB", "a # smartsched: priority=9"),
    ],
    ids=["added", "taken away", "changed"],
)
def test_a_command_is_the_same_whatever_it_wishes_for_itself(before: str, now: str):
    ledger = ledger_of([JobAccepted(T0, JobId(1), spec(before)), REPLACED])

    assert ledger.next_occurrence(spec(now)) == 1


def test_any_other_comment_is_part_of_the_command():
    ledger = ledger_of([JobAccepted(T0, JobId(1), spec("a  # once")), REPLACED])

    assert ledger.next_occurrence(spec("a  # twice")) is None


def test_lines_that_differ_only_in_their_wishes_are_told_apart_by_their_order():
    lines = ["a  # smartsched: priority=1", "a  # smartsched: priority=2"]
    accepted = [JobAccepted(T0, JobId(n), spec(line)) for n, line in enumerate(lines, start=1)]
    ledger = ledger_of([*accepted, REPLACED])

    assert [ledger.next_occurrence(spec(line)) for line in reversed(lines)] == [1, 2]
