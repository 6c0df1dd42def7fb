"""The joblog and the log of events: followed by others, and whole after any crash."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from smartsched.core.apply import apply
from smartsched.core.decide import Decision
from smartsched.core.events import Event, JobAccepted, JobFinished, JobRequeued, RunBegan, RunExited
from smartsched.core.joblog import HEADER
from smartsched.core.model import EndedRun, Ending, Exited, JobId, JobSpec, Killed, Lost, NotStarted
from smartsched.core.state import State
from smartsched.edges.logs import JobLog, JsonLog, open_log
from smartsched.errors import UsageError
from tests.builders import (
    HOST,
    T0,
    a_run,
    a_state,
    accepted,
    decided,
    exited,
    launched,
    placed,
)

BEGAN = RunBegan(T0, "test", HOST, "/somewhere", ("list",), None, "{}")


def finished(job: int, attempt: int = 1) -> JobFinished:
    return JobFinished(T0 + job + 5, a_run(job, attempt), "ok")


def life_of(job: int, ending: Ending = Exited(0)) -> list[Event]:  # noqa: B008  # a frozen value
    """A job's, but for its acceptance."""
    return [
        placed(job, gpu=job, at=T0 + job),
        launched(job, at=T0 + job),
        exited(job, at=T0 + job + 2.5, ending=ending),
        finished(job),
    ]


def nothing_decided(state: State) -> Decision:
    return decided(state)


class Followed:
    """Whoever keeps a log and the state that it follows."""

    def __init__(self, path: Path, *, append: bool = False, jobs: int = 3) -> None:
        self.lost: list[str] = []
        self.state = a_state(queued=jobs)
        fd = open_log(str(path), append=append, option="--joblog")
        self.log = JobLog(fd, self.state, (), self.lost.append)

    def hears(self, *events: Event) -> None:
        for event in events:
            apply(self.state, event)
            self.log.recorded(event, self.state, event.at)
        self.log.decided(nothing_decided(self.state), self.state, T0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def rows(path: Path) -> list[list[str]]:
    header, *lines = path.read_bytes().decode(errors="surrogateescape").split("\n")
    assert header + "\n" == HEADER
    assert lines.pop() == ""
    return [line.split("\t") for line in lines]


def ended_run(job: int, ending: Ending = Exited(0), command: str = "echo") -> EndedRun:  # noqa: B008
    state = a_state(queued=job)
    for event in life_of(job, ending)[:3]:
        apply(state, event)
    ended = state.ended[a_run(job)]
    spec = JobSpec(command, "list:1", "/wd")
    return replace(ended, job=replace(ended.job, spec=spec))


def caught_up(path: Path, *before: EndedRun, append: bool = True) -> None:
    fd = open_log(str(path), append=append, option="--joblog")
    log = JobLog(fd, a_state(), before, lambda _: None)
    log.close()


def test_a_new_joblog_has_just_its_header(path: Path):
    path.write_text("of another day\n")

    Followed(path).log.close()

    assert path.read_text() == HEADER
    assert HEADER.count("\t") == 8


@pytest.mark.parametrize(
    ("ending", "status", "signum"),
    [(Exited(0), "0", "0"), (Exited(7), "7", "0"), (Killed(9), "0", "9"), (Lost(), "-1", "0")],
)
def test_a_finished_job_is_a_row_of_nine_columns(
    path: Path, ending: Ending, status: str, signum: str
):
    follower = Followed(path)

    follower.hears(*life_of(2, ending))

    follower.log.close()
    assert rows(path) == [["2", "2", f"{T0 + 2:.3f}", "2.500", "0", "0", status, signum, "echo 2"]]


def test_what_was_never_started_has_a_row_too(path: Path):
    follower = Followed(path)

    ending = NotStarted("no shell")
    follower.hears(placed(1, at=T0), exited(1, at=T0, ending=ending), finished(1))

    follower.log.close()
    assert [row[6:8] for row in rows(path)] == [["-1", "0"]]


def test_a_row_comes_when_the_job_is_finished_and_not_at_every_attempt(path: Path):
    follower = Followed(path)

    follower.hears(*life_of(1, Exited(1))[:3], JobRequeued(T0 + 4, a_run(1), "failed", T0 + 4))
    assert rows(path) == []
    follower.hears(
        placed(1, gpu=2, attempt=2, at=T0 + 5),
        launched(1, attempt=2, at=T0 + 5),
        exited(1, attempt=2, at=T0 + 6),
        finished(1, attempt=2),
    )

    follower.log.close()
    assert [row[2:4] for row in rows(path)] == [[f"{T0 + 5:.3f}", "1.000"]]


def test_what_is_received_is_the_size_of_the_log(path: Path, tmp_path: Path):
    (tmp_path / "out").write_bytes(b"x" * 1234)

    caught_up(path, replace(ended_run(1), log=str(tmp_path / "out")))

    assert [row[5] for row in rows(path)] == ["1234"]


def test_a_command_of_several_lines_is_one_row(path: Path):
    caught_up(path, ended_run(1, command="a\nb\tc\r\udcff"), ended_run(2))

    data = path.read_bytes()
    assert data.count(b"\n") == 3
    assert b"\ta b\tc\r\xff\n" in data


def test_a_joblog_that_is_added_to_keeps_what_it_holds_and_gets_no_second_header(path: Path):
    caught_up(path, ended_run(1))
    before = path.read_text()

    follower = Followed(path, append=True)
    follower.hears(*life_of(2))
    follower.log.close()

    assert path.read_text().startswith(before)
    assert path.read_text().count("Seq\t") == 1
    assert [row[0] for row in rows(path)] == ["1", "2"]


def test_an_empty_joblog_that_is_added_to_gets_its_header(path: Path):
    path.touch()

    caught_up(path, ended_run(1))

    assert [row[0] for row in rows(path)] == ["1"]


def test_a_row_that_the_last_dispatcher_had_no_time_for_is_added_and_none_twice(path: Path):
    before = [ended_run(job, command="a\r\nb\tc") for job in (1, 2, 3, 4)]
    caught_up(path, before[0], before[2])

    for _ in range(3):
        caught_up(path, *before)

    assert sorted(row[0] for row in rows(path)) == ["1", "2", "3", "4"]


def test_a_job_that_failed_in_an_earlier_life_and_ran_again_has_two_rows(path: Path):
    first = ended_run(1, Exited(1))
    again = replace(first, started_at=T0 + 100, ended_at=T0 + 101)

    caught_up(path, first)
    caught_up(path, first, again)

    assert [row[2] for row in rows(path)] == [f"{T0 + 1:.3f}", f"{T0 + 100:.3f}"]


def test_a_torn_last_row_is_written_anew_wherever_it_was_cut(path: Path):
    before = [ended_run(1), ended_run(2)]
    caught_up(path, *before)
    whole = path.read_bytes()

    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        caught_up(path, *before)
        assert path.read_bytes() == whole, size


def test_a_joblog_of_somebody_s_own_making_loses_nothing_of_it(path: Path):
    """An editor may have left the last line without its end; it is no crash of ours."""
    mine = HEADER + "1\tbox\t1.000\t2.000\t0\t0\t0\t0\tmy own row"
    path.write_text(mine)

    caught_up(path, ended_run(7))

    assert "my own row\n" in path.read_text()


def test_a_job_that_ended_before_the_resume_and_was_not_settled_gets_its_row(path: Path):
    state = a_state(queued=1)
    for event in life_of(1)[:3]:
        apply(state, event)
    fd = open_log(str(path), append=True, option="--joblog")
    log = JobLog(fd, state, (), lambda _: None)
    ends = finished(1)
    apply(state, ends)

    log.recorded(ends, state, T0)
    log.close()

    assert [row[0] for row in rows(path)] == ["1"]


@pytest.mark.parametrize("name", ["missing/log", "."])
def test_a_log_that_cannot_be_written_is_a_usage_error_that_names_its_option(name: str):
    with pytest.raises(UsageError, match=f"--joblog: cannot write {name}"):
        open_log(name, append=False, option="--joblog")


def test_a_log_on_a_full_disk_is_told_once(path: Path):
    follower = Followed(Path("/dev/full"))

    follower.hears(*life_of(1))
    follower.hears(*life_of(2))

    assert follower.lost == [os.strerror(28)]
    follower.log.close()


HISTORY: list[Event] = [BEGAN, *accepted(3), *life_of(1)]


def json_log(path: Path, before: Sequence[Event] = (), run: str = "test") -> JsonLog:
    fd = open_log(str(path), append=True, option="--json-log")
    return JsonLog(fd, run, before, lambda _: None)


def told(log: JsonLog, *events: Event) -> None:
    state = a_state()
    for event in events:
        log.recorded(event, state, event.at)
    log.decided(nothing_decided(state), state, T0)
    log.close()


def objects(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def seqs(path: Path, run: str = "test") -> list[object]:
    return [record["seq"] for record in objects(path) if run in record.values()]


def test_every_event_is_an_object_with_its_run_and_number(path: Path):
    told(json_log(path), *HISTORY)

    records = objects(path)
    assert [record["seq"] for record in records] == list(range(1, len(HISTORY) + 1))
    assert all("test" in record.values() for record in records)
    assert [record["event"] for record in records[:2]] == ["run_began", "job_accepted"]
    assert records[0]["at"] == T0
    assert [1, 1] in records[4].values()


@pytest.mark.parametrize("known", range(len(HISTORY) + 1))
def test_over_a_resume_every_event_is_there_just_once(path: Path, known: int):
    told(json_log(path), *HISTORY[:known])

    log = json_log(path, HISTORY)
    told(log, *accepted(2))

    assert seqs(path) == list(range(1, len(HISTORY) + 3))


def test_a_torn_last_event_is_written_anew_wherever_it_was_cut(path: Path):
    told(json_log(path), *HISTORY[:3])
    whole = path.read_bytes()

    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        json_log(path, HISTORY[:3]).close()
        assert path.read_bytes() == whole, size


def test_several_runs_may_share_a_log_of_events(path: Path):
    told(json_log(path, run="other"), replace(BEGAN, name="other"), *HISTORY[1:])
    told(json_log(path), *HISTORY[:2])

    json_log(path, HISTORY[:3]).close()

    assert seqs(path) == [1, 2, 3]
    assert seqs(path, "other") == list(range(1, len(HISTORY) + 1))


def test_lines_that_are_no_events_are_left_alone(path: Path):
    path.write_text('note\n[]\n{"run": "test"}\n{"run": "test", "seq": null}\n3\n')

    json_log(path, HISTORY[:1]).close()

    lines = path.read_text().splitlines()
    assert lines[:5] == ["note", "[]", '{"run": "test"}', '{"run": "test", "seq": null}', "3"]
    assert json.loads(lines[5])["seq"] == 1


def test_bytes_that_are_no_text_are_told_as_the_journal_tells_them(path: Path):
    odd = JobAccepted(T0, JobId(1), JobSpec("echo \udcff\u2028", "list:1", "/"))

    told(json_log(path), odd)

    assert objects(path)[0]["spec"] == {
        "command": "echo \udcff\u2028",
        "source": "list:1",
        "directory": "/",
    }


def test_a_pipe_gets_what_happens_from_now_on(path: Path):
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = json_log(path, HISTORY)

    told(log, exited())

    [line] = os.read(reader, 1 << 16).splitlines()
    os.close(reader)
    assert json.loads(line)["seq"] == len(HISTORY) + 1


def test_an_exit_is_told_as_such(path: Path):
    told(json_log(path), RunExited(T0, a_run(1), Killed(9), 0))

    assert objects(path)[0]["ending"] == {"killed": 9}
