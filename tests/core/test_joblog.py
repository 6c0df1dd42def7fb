"""A row for a finished job, as GNU parallel would write it."""

from typing import Any

import pytest

from smartsched.core.joblog import HEADER, names, row
from smartsched.core.model import (
    EndedRun,
    Ending,
    Exited,
    Job,
    JobId,
    JobSpec,
    Killed,
    Lost,
    NotStarted,
)
from tests.builders import a_placement, a_run

DONE = Exited(0)


def an_ended_run(ending: Ending = DONE, command: str = "true", **times: Any) -> EndedRun:
    return EndedRun(
        key=a_run(12, 2),
        job=Job(JobId(12), JobSpec(command, "list:1")),
        placement=a_placement(3),
        started_at=times.get("started_at", 1000.25),
        ended_at=times.get("ended_at", 1002.5),
        ending=ending,
        why_stopped=None,
        log=None,
    )


def columns(line: str) -> dict[str, str]:
    return dict(zip(HEADER.rstrip("\n").split("\t"), line.rstrip("\n").split("\t"), strict=True))


def test_a_row_has_the_columns_of_gnu_parallel():
    assert HEADER.split() == [
        "Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command",
    ]  # fmt: skip

    assert columns(row(an_ended_run(), 77)) == {
        "Seq": "12",
        "Host": "3",
        "Starttime": "1000.250",
        "JobRuntime": "2.250",
        "Send": "0",
        "Receive": "77",
        "Exitval": "0",
        "Signal": "0",
        "Command": "true",
    }


@pytest.mark.parametrize(
    ("ending", "exit_status", "signal"),
    [
        (Exited(0), "0", "0"),
        (Exited(3), "3", "0"),
        (Killed(9), "0", "9"),
        (NotStarted("no such shell"), "-1", "0"),
        (Lost(), "-1", "0"),
    ],
)
def test_how_it_ended(ending: Ending, exit_status: str, signal: str):
    found = columns(row(an_ended_run(ending), 0))

    assert (found["Exitval"], found["Signal"]) == (exit_status, signal)


def test_no_job_took_less_than_no_time():
    """The wall clock may have been set back meanwhile."""
    assert columns(row(an_ended_run(started_at=50.0, ended_at=3.0), 0))["JobRuntime"] == "0.000"


@pytest.mark.parametrize("command", ["a\nb", "cat <<X\nX\n", "\n"])
def test_a_command_of_many_lines_is_one_row(command: str):
    line = row(an_ended_run(command=command), 0)

    assert line.count("\n") == 1
    assert line.endswith("\n")


def test_a_row_is_known_by_its_number_and_its_start():
    assert names(row(an_ended_run(), 0)) == ("12", "1000.250")
    assert names(row(an_ended_run(command="a\tb\tc"), 0)) == ("12", "1000.250")


@pytest.mark.parametrize("line", ["", "\n", "12\t3\t1000.250", "some text"])
def test_what_is_no_row(line: str):
    assert names(line) is None
