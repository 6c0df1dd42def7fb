"""The list of a resumed run: what of it is left to be done."""

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from smartsched.core.events import Event, InputRead, JobAccepted, JobFinished
from smartsched.core.ledger import Ledger, ledger_of
from smartsched.core.model import BadLine, JobId, JobSpec, Outcome, Position, RunKey
from smartsched.edges.continued import Continued
from smartsched.edges.intake import open_inputs
from smartsched.edges.spool import Spool
from smartsched.ports import Arrived, Recall
from tests.builders import T0

MakeContinued = Callable[..., Continued]


def known(*commands: str, failed: Collection[int] = ()) -> Ledger:
    """Of a run whose jobs these were; a new list was given since."""
    events: list[Event] = []
    for number, command in enumerate(commands, start=1):
        events.append(JobAccepted(T0, JobId(number), JobSpec(command, f"old:{number}", "/wd")))
        outcome: Outcome = "failed" if number in failed else "ok"
        events.append(JobFinished(T0, RunKey(JobId(number), 2), outcome))
    ledger = ledger_of(events)
    ledger.replace_list()
    return ledger


@pytest.fixture
def continued(tmp_path: Path) -> MakeContinued:
    """Makes one of real lists."""

    def make(
        data: bytes,
        ledger: Ledger,
        waiting: Collection[int] = (),
        *,
        failed_too: bool = False,
        failed_first: bool = False,
        read_to: Position | None = None,
    ) -> Continued:
        (tmp_path / "list").write_bytes(data)
        copies = Path(tempfile.mkdtemp(dir=tmp_path))
        spool = Spool(
            lambda number, flags: os.open(copies / f"copy-{number}", flags, 0o600),
            open_inputs([str(tmp_path / "list")]),
            ["list"],
            "/wd",
        )
        return Continued(
            spool,
            ledger,
            is_waiting=lambda job: job in waiting,
            failed_too=failed_too,
            failed_first=failed_first,
            read_to=read_to,
        )

    return make


def everything(lines: Continued, most: int = 2) -> list[Arrived]:
    found: list[Arrived] = []
    while not lines.ended():
        found += lines.take(most)
    lines.close()
    return found


def in_short(found: list[Arrived]) -> list[str]:
    """New commands as they are, known ones by their number."""
    short = []
    for arrived in found:
        match arrived.what:
            case Recall(job, spec):
                short.append(f"{job}: {spec.command}")
            case JobSpec(command):
                short.append(command)
            case BadLine(_, why):
                short.append(why)
    return short


def test_what_the_run_does_not_know_is_new(continued: MakeContinued):
    lines = continued(b"a\nnew\nb\n", known("a", "b"))

    assert everything(lines) == [Arrived(JobSpec("new", "list:2", "/wd"), Position(0, 6, 2))]


def test_what_was_done_is_not_done_again_wherever_it_stands(continued: MakeContinued):
    lines = continued(b"c\nnew\nb\na\n", known("a", "b", "c"))

    assert in_short(everything(lines)) == ["new"]


def test_the_same_command_counts_as_often_as_it_stands_there(continued: MakeContinued):
    lines = continued(b"a\n" * 5, known("a", "a", "a"))

    assert in_short(everything(lines)) == ["a", "a"]


def test_what_has_still_to_run_is_queued_as_the_job_that_it_is(continued: MakeContinued):
    lines = continued(b"b\na\n", known("a", "b", "c"), waiting=[1, 3])

    assert everything(lines) == [
        Arrived(Recall(JobId(1), JobSpec("a", "list:2", "/wd"), 0), Position(0, 4, 2))
    ]


def test_a_failed_job_runs_again_only_if_asked_for(continued: MakeContinued):
    lines = continued(b"a\nb\n", known("a", "b", failed=[2]))

    assert in_short(everything(lines)) == []


def test_a_failed_job_that_the_new_list_names_runs_again(continued: MakeContinued):
    lines = continued(b"b\na\n", known("a", "b", "c", failed=[2, 3]), failed_too=True)

    assert everything(lines) == [
        Arrived(Recall(JobId(2), JobSpec("b", "list:1", "/wd"), 2), Position(0, 2, 1))
    ]


def test_failed_jobs_come_first_and_once_when_the_list_is_the_old_one(continued: MakeContinued):
    ledger = known("a", "b", "c", failed=[3, 1])
    lines = continued(b"c\nnew\na\n", ledger, failed_too=True, failed_first=True)

    assert in_short(everything(lines)) == ["1: a", "3: c", "new"]


def test_a_recalled_failed_job_keeps_its_number_of_attempts(continued: MakeContinued):
    lines = continued(b"", known("a", failed=[1]), failed_too=True, failed_first=True)

    assert everything(lines) == [Arrived(Recall(JobId(1), JobSpec("a", "old:1", "/wd"), 2), None)]


def test_of_a_list_that_is_read_once_more_what_was_read_is_only_counted(continued: MakeContinued):
    ledger = known("a")
    lines = continued(b"a\na\nb\na\n", ledger, read_to=Position(0, 4, 2))

    # the first `a` is the known one, the second came with this list and was accepted then
    assert in_short(everything(lines)) == ["b", "a"]


def test_a_bad_line_is_told_once(continued: MakeContinued):
    bad = "holds a NUL byte, which no shell can take"

    assert in_short(everything(continued(b"\0\na\n", known("a")))) == [bad]
    again = continued(b"\0\na\n", known("a"), read_to=Position(0, 4, 2))
    assert in_short(everything(again)) == []


def test_no_more_is_handed_out_than_was_wanted(continued: MakeContinued):
    ledger = known("a", "b", failed=[1, 2])
    lines = continued(b"c\nd\n", ledger, failed_too=True, failed_first=True)

    taken = [in_short(list(lines.take(most))) for most in (0, 1, 1, 1)]

    assert taken == [[], ["1: a"], ["2: b"], ["c"]]
    assert (lines.has_more(), lines.ended()) == (True, False)
    assert in_short(list(lines.take(9))) == ["d"]


def test_an_input_s_end_is_told(continued: MakeContinued):
    lines = continued(b"a\n", known("a"))

    assert lines.take(1) == []
    assert lines.finished(T0) == [InputRead(T0, 0, 2)]
    assert lines.ended()


@pytest.mark.parametrize("length", [2, 128, 256])
def test_however_much_is_passed_over_whoever_asks_is_told_to_ask_again(
    continued: MakeContinued, length: int
):
    command = "x" * (length - 1)
    lines = continued(f"{command}\n".encode() * 1024 + b"new\n", known(*[command] * 1024))

    found: list[Arrived] = []
    for _ in range(1000):
        found += lines.take(1)
        if not lines.has_more():
            break

    assert in_short(found) == ["new"]
