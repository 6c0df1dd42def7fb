"""Dispatchers that die, and those that go on with what they left."""

import json
import os
import random
import shlex
import shutil
import signal
import stat
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.harness import MOMENT, PROGRAM, Box, Session, a_pipe, alive
from tests.waiting import wait_until

KILLS = 10


def gated(name: str, end: str = "exit 0") -> str:
    """Says on which pid it began, then waits for the file `go` and writes down that it is done."""
    wait = "until test -e go; do sleep 0.01; done"
    return f"echo {name} $$ >> began; {wait}; echo {name} >> done; {end}"


def began(box: Box, name: str, times: int = 1) -> list[int]:
    """The pids under which a gated job began, once it has done so that often."""

    def pids() -> list[int]:
        words = [line.split() for line in box.lines("began")]
        return [int(word[1]) for word in words if word[0] == name]

    wait_until(lambda: len(pids()) >= times, f"{name} began {times} times")
    return pids()


def crashed(box: Box, *commands: str, options: tuple[str, ...] = ("--gpus", "0")) -> Session:
    """A dispatcher that died while its first command, `a`, ran."""
    session = box.start(*MOMENT, *options, str(box.list_of(commands)))
    began(box, "a")
    session.says("job 1 started")
    session.crash()
    return session


def let_go(box: Box) -> None:
    (box.folder / "go").touch()


@pytest.mark.parametrize(
    ("end", "said", "status"),
    [
        ("exit 0", "job 1 ok after", 0),
        ("exit 7", "job 1 failed: exit status 7 after", 1),
        ("kill -9 $$", "job 1 failed: killed by SIGKILL after", 1),
    ],
)
def test_a_job_trains_on_without_its_dispatcher_and_the_next_one_adopts_it(
    box: Box, end: str, said: str, status: int
):
    crashed(box, gated("a", end), "echo b >> done")
    [pid] = began(box, "a")

    session = box.start("--resume", "-v")
    session.says("job 1 still runs on GPU 0")
    session.says("GPU 0 OURS")
    assert alive(pid)
    assert "job 2 started" not in session.err
    let_go(box)

    done = session.end()
    assert done.status == status
    assert said in done.err
    assert began(box, "a") == [pid]
    assert box.lines("done") == ["a", "b"]
    wait_until(box.is_quiet, "nobody is left")


@pytest.mark.parametrize(
    ("end", "said", "status"),
    [
        ("exit 0", "job 1 ok after", 0),
        ("exit 7", "job 1 failed: exit status 7 after", 1),
        ("kill -9 $$", "job 1 failed: killed by SIGKILL after", 1),
    ],
)
def test_how_a_job_ended_while_nobody_watched_is_known(box: Box, end: str, said: str, status: int):
    crashed(box, gated("a", end), "echo b >> done")
    let_go(box)
    wait_until(box.is_quiet, "the job has ended")

    done = box.run("--resume")

    assert done.status == status
    assert said in done.err
    assert box.lines("done") == ["a", "b"]
    assert len(began(box, "a")) == 1


def test_a_job_that_was_killed_while_nobody_watched_is_lost_and_run_again(box: Box):
    crashed(box, gated("a"), "echo b >> done")
    os.killpg(os.getpgid(began(box, "a")[0]), signal.SIGKILL)
    wait_until(box.is_quiet, "the job is gone")
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert "job 1 is lost: it vanished without a record of its end; it is queued again" in done.err
    assert "job 1 started on GPU 0 (try 2)" in done.err
    assert len(began(box, "a")) == 2
    assert Counter(box.lines("done")) == {"a": 1, "b": 1}


def test_a_job_that_is_lost_each_time_is_given_up(box: Box):
    crashed(box, gated("a"))
    for times in (1, 2):
        os.killpg(os.getpgid(began(box, "a", times)[-1]), signal.SIGKILL)
        wait_until(box.is_quiet, "the job is gone")
        session = box.start("--resume")
        if times == 1:
            began(box, "a", 2)
            session.says("job 1 started")
            session.crash()

    done = session.end()
    assert done.status == 1
    assert "job 1 failed: it vanished without a record of its end" in done.err
    assert len(began(box, "a")) == 2


def test_a_job_that_is_adopted_may_be_killed_meanwhile(box: Box):
    crashed(box, gated("a"))
    session = box.start("--resume")
    session.says("job 1 still runs")

    os.killpg(os.getpgid(began(box, "a")[0]), signal.SIGKILL)
    began(box, "a", 2)
    let_go(box)

    done = session.end()
    assert done.status == 0
    assert "job 1 is lost" in done.err


def test_survivors_are_stopped_and_started_anew_where_that_is_wanted(box: Box):
    crashed(box, gated("a"), "echo b >> done")

    session = box.start("--resume", "--no-adopt")
    first, second = began(box, "a", 2)
    session.says("job 1 was stopped; it is queued again")
    assert not alive(first)
    assert alive(second)
    let_go(box)

    assert session.end().status == 0
    assert Counter(box.lines("done")) == {"a": 1, "b": 1}


def test_what_ended_well_meanwhile_is_not_started_anew(box: Box):
    session = crashed(box, gated("a"), "echo b >> done")
    let_go(box)
    wait_until(box.is_quiet, "the job has ended")

    session = box.start("--resume", "--no-adopt")

    assert session.end().status == 0
    assert box.lines("done") == ["a", "b"]


def test_an_adopted_job_is_stopped_with_all_that_it_started(box: Box):
    crashed(box, f"sleep 600 & {gated('a')}")
    session = box.start("--resume")
    session.says("job 1 still runs")

    session.signal(signal.SIGTERM)

    assert session.end().status == 130
    wait_until(box.is_quiet, "nobody is left")


def test_an_adopted_job_that_ignores_sigterm_is_killed(box: Box):
    crashed(box, f"trap '' TERM; {gated('a')}")
    session = box.start("--resume", "--grace", "300ms")
    session.says("job 1 still runs")

    session.signal(signal.SIGTERM)

    done = session.end()
    assert done.status == 130
    assert "killing it" in done.err
    wait_until(box.is_quiet, "nobody is left")


def test_forty_jobs_and_ten_dispatchers_killed_at_random_moments(box: Box):
    pick = random.Random(40)
    listing = box.list_of([f"sleep 0.2; echo {number} >> done" for number in range(40)])
    session = box.start(*MOMENT, str(listing))
    wait_until(lambda: box.events("run_placed"), "it has begun", session.dump)

    for _ in range(KILLS):
        with suppress(subprocess.TimeoutExpired):
            session.process.wait(pick.uniform(0.0, 0.8))
        session.crash()
        session = box.start("--resume")

    done = session.end()
    assert done.status == 0
    assert Counter(box.lines("done")) == {str(number): 1 for number in range(40)}
    wait_until(box.is_quiet, "nobody is left")


def test_what_of_a_long_list_was_not_read_ahead_runs_too(box: Box):
    numbers = [str(number) for number in range(150)]
    crashed(box, gated("a"), *[f"echo {number} >> done" for number in numbers])
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert sorted(box.lines("done")) == sorted(["a", *numbers])


def test_a_list_that_came_through_a_pipe_is_whole_once_it_was_read_to_its_end(box: Box):
    numbers = [str(number) for number in range(150)]
    with a_pipe() as (reading, writing):
        session = box.start(*MOMENT, "--gpus", "0", stdin=reading)
        lines = [gated("a"), *[f"echo {number} >> done" for number in numbers]]
        os.write(writing, "\n".join(lines).encode())
        os.close(writing)
        wait_until(lambda: box.events("input_read"), "it was read", session.dump)
        session.crash()
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert "had not been read to its end" not in done.err
    assert sorted(box.lines("done")) == sorted(["a", *numbers])


def test_of_a_pipe_that_was_broken_off_its_whole_lines_run_and_that_is_said(box: Box):
    with a_pipe() as (reading, writing):
        session = box.start(*MOMENT, "--gpus", "0", "--name", "piped", stdin=reading)
        lines = [gated("a"), "echo b >> done", "echo c >> done-and-n"]
        os.write(writing, "\n".join(lines).encode())
        began(box, "a")
        session.says("job 1 started")
        wait_until(lambda: len(box.events("job_accepted")) == 2, "both are known", session.dump)
        session.crash()
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert "stdin had not been read to its end when the last dispatcher ended" in done.err
    assert "for the rest, smartsched --resume piped FILE" in done.err
    assert box.lines("done") == ["a", "b"]
    assert not (box.folder / "done-and-n").exists()


def test_the_rest_of_a_broken_off_list_comes_with_the_whole_of_it(box: Box):
    lines = [gated("a"), "echo b >> done", "echo c >> done"]
    with a_pipe() as (reading, writing):
        session = box.start(*MOMENT, "--gpus", "0", stdin=reading)
        os.write(writing, "\n".join(lines)[:-3].encode())
        began(box, "a")
        session.says("job 1 started")
        session.crash()
    let_go(box)

    done = box.run("--resume", str(box.list_of(lines)))

    assert done.status == 0
    assert Counter(box.lines("done")) == {"a": 1, "b": 1, "c": 1}


def test_an_edited_list_says_what_is_left_to_be_done(box: Box):
    """Lines are known by their text and occurrence, wherever they stand."""
    do = {name: f"echo {name} >> did" for name in "bdefx"}
    fail = "echo c >> did; false"
    session = box.start(
        *MOMENT, "--gpus", "0",
        str(box.list_of([do["b"], fail, gated("a"), do["d"], do["e"], do["f"]])),
    )  # fmt: skip
    session.says("job 3 started")
    session.crash()
    let_go(box)
    edited = box.list_of([do["x"], do["f"], do["d"], do["b"], do["b"], fail, gated("a")])

    done = box.run("--resume", str(edited))

    assert done.status == 1
    assert "1 no longer on the list" in done.err
    assert box.lines("did") == ["b", "c", "x", "f", "d", "b"]
    assert box.lines("done") == ["a"]
    assert len(began(box, "a")) == 1


def test_a_list_may_be_given_on_stdin_as_a_file(box: Box):
    crashed(box, gated("a"), "echo b >> done")
    let_go(box)

    done = box.run("--resume", commands=["echo c >> done", gated("a")])

    assert done.status == 0
    assert Counter(box.lines("done")) == {"a": 1, "c": 1}


def test_a_list_that_replaced_another_is_gone_on_with_after_one_more_crash(box: Box):
    crashed(box, gated("a"), "echo b >> done")
    second = box.start(
        "--resume", str(box.list_of(["echo c >> done", gated("a"), "echo d >> done"]))
    )
    second.says("job 1 still runs")
    wait_until(lambda: len(box.events("input_read")) == 2, "the list is read", second.dump)
    second.crash()
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert Counter(box.lines("done")) == {"a": 1, "c": 1, "d": 1}


def test_failed_jobs_run_again_only_where_that_is_asked_for(box: Box):
    commands = ["test -e mended && echo a >> did", "echo b >> did", "exit 3"]
    first = box.run(*MOMENT, "--no-guard", commands=commands)

    nothing = box.run("--resume")
    (box.folder / "mended").touch()
    again = box.run("--resume-failed")

    assert first.status == 2
    assert nothing.status == 2
    assert "nothing is left of run" in nothing.err
    assert again.status == 1
    assert "2 jobs ok, 1 failed" in again.err
    assert box.lines("did") == ["b", "a"]


def test_failed_jobs_that_an_edited_list_names_run_again_where_asked_for(box: Box):
    commands = ["test -e mended && echo a >> did", "echo b >> did", "echo c >> did; exit 3"]
    box.run(*MOMENT, "--gpus", "0", "--no-guard", commands=commands)
    (box.folder / "mended").touch()

    done = box.run("--resume-failed", str(box.list_of(commands[:2])))

    assert done.status == 0  # the one that is not on the list any more is not of the run
    assert box.lines("did") == ["b", "c", "a"]


def test_after_a_drain_the_rest_runs(box: Box):
    session = box.start(
        *MOMENT, "--gpus", "0", str(box.list_of([gated("a"), *["echo b >> done"] * 100]))
    )
    session.says("job 1 started")
    session.signal(signal.SIGINT)
    session.says("starting nothing more")
    let_go(box)
    drained = session.end()

    done = box.run("--resume")

    assert drained.status == 130
    assert "to go on with what is left: smartsched --resume" in drained.err
    assert done.status == 0
    assert "101 jobs ok" in done.err
    assert Counter(box.lines("done")) == {"a": 1, "b": 100}


def test_jobs_that_were_stopped_run_again(box: Box):
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([gated("a"), "echo b >> done"])))
    began(box, "a")
    session.says("job 1 started")
    session.signal(signal.SIGTERM)
    stopped = session.end()
    let_go(box)

    done = box.run("--resume")

    assert stopped.status == 130
    assert "1 stopped" in stopped.err
    assert done.status == 0
    assert len(began(box, "a")) == 2
    assert box.lines("done") == ["a", "b"]


def test_a_single_command_is_adopted_and_its_status_is_ours(box: Box):
    session = box.start(*MOMENT, "--", "sh", "-c", gated("a", "exit 42"))
    session.says("job 1 started")
    began(box, "a")
    session.crash()
    let_go(box)

    done = box.run("--resume")

    assert done.status == 42
    assert box.lines("done") == ["a"]


def test_by_default_the_latest_run_of_this_folder_goes_on_and_no_abandoned_one(box: Box):
    crashed(box, gated("a"), "echo first >> done", options=("--name", "zz-first"))
    crashed(box, gated("a"), "echo second >> done", options=("--name", "middle"))
    last = box.run(*MOMENT, "--name", "finished", commands=["true"])
    (box.folder / "elsewhere").mkdir()
    other = box.start(*MOMENT, "--name", "zzz", "--", "sleep", "600", cwd=box.folder / "elsewhere")
    other.says("job 1 started")
    other.crash()
    let_go(box)

    latest = box.run("--resume")
    second = box.run("--resume", "middle")

    assert last.status == latest.status == 0
    assert "nothing is left of run finished" in latest.err
    assert "earlier runs of this folder have something left: middle, zz-first" in latest.err
    assert "going on with run middle:" in second.err
    assert sorted(box.lines("done")) == ["a", "a", "first", "second"]


def test_in_another_folder_one_line_says_that_there_is_nothing_to_go_on_with(box: Box):
    crashed(box, gated("a"), options=("--name", "here"))
    (box.folder / "elsewhere").mkdir()

    done = box.start("--resume", cwd=box.folder / "elsewhere").end()
    nothing = box.start("--resume", "--state", str(box.folder / "empty")).end()

    assert (done.status, nothing.status) == (2, 2)
    assert "no run was begun in this folder; there are here: name one" in done.err
    assert "no run was begun in this folder" in nothing.err
    assert len(done.err.splitlines()) == len(nothing.err.splitlines()) == 1


def test_a_run_is_gone_on_with_from_anywhere_in_its_own_folder(box: Box):
    crashed(box, gated("a"), "pwd >> done", options=("--name", "here"))
    (box.folder / "elsewhere").mkdir()
    let_go(box)

    done = box.start("--resume", "here", cwd=box.folder / "elsewhere").end()

    assert done.status == 0
    assert sorted(box.lines("done")) == sorted(["a", str(box.folder)])
    assert len(box.job_logs()) == 2


def test_a_list_for_another_folders_run_is_found_where_the_user_stands(box: Box):
    crashed(box, gated("a"), options=("--name", "here"))
    (box.folder / "elsewhere").mkdir()
    (box.folder / "elsewhere" / "more.txt").write_text("pwd >> done\n")
    let_go(box)

    done = box.start("--resume", "here", "more.txt", cwd=box.folder / "elsewhere").end()

    assert done.status == 0
    assert sorted(box.lines("done")) == sorted(["a", str(box.folder)])


def test_a_run_that_does_not_exist_is_one_line(box: Box):
    done = box.run("--resume", "no-such-run")

    assert done.status == 2
    assert "there is no run no-such-run" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("how", [("--resume",), ("--resume", "mine"), ("--name", "mine")])
def test_a_living_run_is_refused_with_who_holds_it_since_when(box: Box, how: tuple[str, ...]):
    session = box.start(*MOMENT, "--name", "mine", str(box.list_of([gated("a")])))
    session.says("job 1 started")

    done = box.run(*how, commands=None)

    assert done.status == 255
    assert f"run mine is alive: pid {session.process.pid}" in done.err
    assert " since 20" in done.err
    assert len(done.err.splitlines()) == 1
    let_go(box)
    assert session.end().status == 0
    assert box.lines("done") == ["a"]


def test_options_are_remembered(box: Box):
    crashed(box, gated("a"), "echo b >> done", options=("--gpus", "1", "--logs", "elsewhere"))
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert "job 2 started on GPU 1" in done.err
    assert [log.name for log in sorted(box.folder.glob("elsewhere/*/*"))] == [
        "0001.log",
        "0002.log",
    ]


def test_options_may_be_given_anew_and_that_is_remembered_too(box: Box):
    crashed(box, gated("a"), "echo b >> done", options=("--gpus", "1"))
    second = box.start("--resume", "--gpus", "2")
    second.says("job 2 started on GPU 2")
    second.crash()
    let_go(box)

    done = box.run("--resume", str(box.list_of(["echo c >> done"])))

    assert done.status == 0
    assert "job 3 started on GPU 2" in done.err


@pytest.mark.parametrize("what", ["/dev/null", "an empty pipe", "an empty file", "closed"])
def test_nothing_on_stdin_is_never_an_empty_list(box: Box, what: str):
    crashed(box, gated("a"), "echo b >> done")
    let_go(box)

    if what == "an empty pipe":
        with a_pipe() as (reading, writing):
            os.close(writing)
            done = box.start("--resume", stdin=reading).end()
    elif what == "an empty file":
        done = box.run("--resume", commands=[])
    else:
        done = box.run("--resume")

    assert done.status == 0
    assert box.lines("done") == ["a", "b"]


@pytest.mark.parametrize("ended", [True, False])
def test_a_name_in_use_is_refused(box: Box, ended: bool):
    if ended:
        box.run(*MOMENT, "--name", "mine", commands=["true"])
    else:
        crashed(box, gated("a"), options=("--name", "mine"))

    done = box.run(*MOMENT, "--name", "mine", commands=["touch started"])

    assert done.status == 2
    assert "there is a run mine already: go on with it (--resume mine)" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (box.folder / "started").exists()


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x=", "a/b", "a b", "x" * 65, "gr\xfcn"])
def test_what_cannot_be_a_folders_name_cannot_be_a_runs(box: Box, name: str):
    done = box.run(*MOMENT, f"--name={name}", commands=["touch started"])

    assert done.status == 2
    assert "cannot be the name of a run" in done.err
    assert not (box.folder / "started").exists()
    assert not list(box.state.glob("runs/*"))


def test_runs_may_be_remembered_elsewhere(box: Box):
    crashed(
        box,
        gated("a"),
        "echo b >> done",
        options=("--gpus", "0", "--state", "there", "--name", "mine"),
    )
    let_go(box)

    done = box.run("--resume", "--state", str(box.folder / "there"))

    assert done.status == 0
    assert box.lines("done") == ["a", "b"]
    assert (box.folder / "there/runs/mine/events.jsonl").exists()
    assert not box.state.exists()


def test_nobody_else_may_read_what_is_remembered(box: Box):
    long = f"{gated('a')} # {'x' * 200_000}"
    before = os.umask(0)
    try:
        session = crashed(box, long, "echo b >> done", options=("--output", "tag"))
        while_running = _modes_below(box.state)
        session = box.start("--resume")
        let_go(box)
        assert session.end().status == 0
    finally:
        os.umask(before)

    kinds = {path.name.split(".")[0] for path in while_running}
    assert {"runs", "jobs", "events", "lock", "output"} <= kinds
    assert {"0001.1", "0001.1.script"} <= {path.name for path in while_running}
    for path, mode in (while_running | _modes_below(box.state)).items():
        assert mode in (0o40700, 0o100600, 0o10600), path


def _modes_below(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mode for path in (folder, *folder.rglob("*"))}


def test_no_secret_of_the_environment_is_written_down(box: Box):
    secret = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG"}
    options = ("--json-log", "log.jsonl", "--joblog", "jobs.tsv", "--on-finish", "true")
    session = box.start(*MOMENT, *options, str(box.list_of([gated("a"), "exit 3"])), env=secret)
    session.says("job 2 failed")
    began(box, "a")
    while_running = _bytes_below(box.state)
    session.crash()
    let_go(box)

    done = box.run("--resume", **secret)

    assert done.status == 1
    written = while_running + _bytes_below(box.state)
    written += b"".join((box.folder / name).read_bytes() for name in ("log.jsonl", "jobs.tsv"))
    assert b"run_launched" in written
    assert secret["AWS_SECRET_ACCESS_KEY"].encode() not in written


def _bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("what", ["file", "not ours", "not writable", "link", "runs is a link"])
def test_a_state_folder_that_cannot_be_used_is_one_line_and_nothing_starts(box: Box, what: str):
    place = box.folder / "there"
    match what:
        case "file":
            place.touch()
        case "not ours":
            place = _somebody_elses(place)
        case "not writable":
            place = _not_writable(place)
        case "link":
            place.symlink_to(box.folder / "nowhere")
        case _:
            (box.folder / "victim").mkdir()
            place.mkdir()
            (place / "runs").symlink_to(box.folder / "victim")

    done = box.run(*MOMENT, "--state", str(place), commands=["touch started"])

    assert done.status == 255, done.err
    assert str(place) in done.err
    assert "--state DIR" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (box.folder / "started").exists()
    assert not list(box.folder.glob("victim/*"))


def _somebody_elses(place: Path) -> Path:
    if os.geteuid() != 0:
        return Path("/usr")
    place.mkdir()
    os.chown(place, 12345, 12345)
    return place


def _not_writable(place: Path) -> Path:
    if os.geteuid() == 0:  # whom no mode keeps out
        return Path("/proc/sys/kernel")
    place.mkdir()
    place.chmod(0o500)
    return place


def test_every_line_of_the_journal_is_json_for_whoever_wants_to_read_it(box: Box):
    crashed(box, gated("a"), "exit 3", "echo '\xfc \u2603'; kill -9 $$", options=("--no-guard",))
    let_go(box)
    box.run("--resume")

    text = (box.run_folder() / "events.jsonl").read_text(encoding="ascii")
    records = [json.loads(line) for line in text.splitlines()]

    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert records[0]["event"] == "run_began"
    assert records[0]["smartsched_journal"] == 1
    assert records[-1]["event"] == "run_closed"
    finished = [r["outcome"] for r in records if r["event"] == "job_finished"]
    assert sorted(finished) == ["failed", "failed", "ok"]


def test_a_torn_last_line_of_the_journal_is_left_out_and_said(box: Box):
    crashed(box, gated("a"), "echo b >> done")
    with (box.run_folder() / "events.jsonl").open("ab") as journal:
        journal.write(b'{"seq":99,"event":"job_fin')
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert "the journal's last 26 bytes were no whole record" in done.err
    assert box.lines("done") == ["a", "b"]


def test_a_damaged_journal_is_one_line_that_names_the_place_and_nothing_starts(box: Box):
    crashed(box, gated("a"), "echo b >> done")
    journal = box.run_folder() / "events.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"e", b"E", 1)
    journal.write_bytes(b"".join(lines))

    done = box.run("--resume")

    assert done.status == 255
    assert "events.jsonl is damaged in line 3" in done.err
    assert len(done.err.splitlines()) == 1
    assert box.lines("done") == []


def test_tagged_output_goes_on_where_a_dead_dispatcher_stopped(box: Box):
    wait = "until test -e {}; do sleep 0.01; done"
    command = "; ".join(
        ["echo one", wait.format("crashed"), "echo two", wait.format("resumed"), "echo three"]
    )
    first = box.start(
        *MOMENT, "--gpus", "0", "--output", "tag", str(box.list_of([command, "echo next"]))
    )
    wait_until(lambda: first.out == "[1 gpu 0] one\n", "it shows the first line", first.dump)
    shown = box.run_folder() / "output" / "0001.1.shown"
    wait_until(lambda: shown.read_text().startswith(f"{4:020d}"), "it knows that it did")
    first.says("job 1 started")
    first.crash()
    (box.folder / "crashed").touch()

    second = box.start("--resume")
    second.says("two")
    (box.folder / "resumed").touch()
    done = second.end()

    assert done.status == 0
    assert done.out == "[1 gpu 0] two\n[1 gpu 0] three\n[2 gpu 0] next\n"
    assert not list((box.run_folder() / "output").iterdir())


def test_tagged_output_of_a_job_that_ended_meanwhile_is_shown(box: Box):
    command = "echo one; until test -e go; do sleep 0.01; done; echo two; printf three"
    first = box.start(*MOMENT, "--output", "tag", str(box.list_of([command])))
    wait_until(lambda: "one" in first.out, "it shows the first line", first.dump)
    first.says("job 1 started")
    first.crash()
    let_go(box)
    wait_until(box.is_quiet, "the job has ended")

    done = box.run("--resume")

    assert done.status == 0
    assert done.out == "[1 gpu 0] two\n[1 gpu 0] three\n"


def test_a_log_goes_on_where_it_was(box: Box):
    command = "echo one; until test -e go; do sleep 0.01; done; echo two"
    first = box.start(*MOMENT, str(box.list_of([command])))
    wait_until(lambda: [log.read_text() for log in box.job_logs()] == ["one\n"], "it speaks")
    first.says("job 1 started")
    first.crash()
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert [log.read_text() for log in box.job_logs()] == ["one\ntwo\n"]


def test_a_run_without_anything_left_says_so_and_its_totals_are_the_status(box: Box):
    commands = ["true", "exit 3", "true", "exit 4"]
    box.run(*MOMENT, "--no-guard", "--name", "mine", commands=commands)

    done = box.run("--resume", "mine")

    assert done.status == 2
    assert "nothing is left of run mine: 2 jobs ok, 2 failed" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_hangup_of_the_terminal_is_a_drain_from_which_to_go_on(box: Box):
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([gated("a"), "echo b >> done"])))
    session.says("job 1 started")
    session.signal(signal.SIGHUP)
    session.says("starting nothing more")
    session.crash()
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert box.lines("done") == ["a", "b"]


def test_a_crash_while_jobs_are_being_stopped_does_not_lose_them(box: Box):
    session = box.start(
        *MOMENT, "--gpus", "0", "--grace", "1h",
        str(box.list_of([f"trap '' TERM; {gated('a')}", "echo b >> done"])),
    )  # fmt: skip
    began(box, "a")
    session.says("job 1 started")
    session.signal(signal.SIGTERM)
    wait_until(lambda: box.events("run_stopping"), "it is stopped", session.dump)
    session.crash()

    second = box.start("--resume", "--grace", "300ms")
    began(box, "a", 2)
    let_go(box)

    assert second.end().status == 0
    assert Counter(box.lines("done")) == {"a": 1, "b": 1}


def test_a_folder_of_runs_that_was_opened_to_others_is_closed_again(box: Box):
    crashed(box, gated("a"))
    (box.state / "runs").chmod(0o755)
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0
    assert stat.S_IMODE((box.state / "runs").stat().st_mode) == 0o700


def test_another_run_of_the_same_name_elsewhere_is_left_alone(box: Box):
    """It has the same name, and its own id."""
    other = box.start(
        *MOMENT, "--gpus", "1", "--name", "same", "--state", "other", "--", "sleep", "600"
    )
    other.says("job 1 started")
    crashed(box, gated("a"), options=("--name", "same", "--gpus", "0"))
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0, done.err
    assert other.process.poll() is None
    assert "behind" not in done.err


def test_a_run_that_was_limited_by_its_shell_stays_so_in_another_shell(box: Box):
    commands = [gated("a"), *["echo $SMARTSCHED_GPUS >> gpus"] * 4]
    session = box.start(*MOMENT, str(box.list_of(commands)), env={"CUDA_VISIBLE_DEVICES": "1"})
    session.says("job 1 started")
    session.crash()
    let_go(box)

    done = box.run("--resume")

    assert done.status == 0, done.err
    assert set(box.lines("gpus")) == {"1"}


def test_the_rest_of_a_script_is_no_list(box: Box):
    """bash reads a script from its standard input line by line, and hands that on."""
    crashed(box, gated("a"), "echo rest >> done")
    let_go(box)
    script = box.folder / "script"
    script.write_text(f"{shlex.join([*PROGRAM, '--resume'])}\necho script >> done\n")

    with script.open("rb") as stdin:
        ended = subprocess.run(["bash"], stdin=stdin, env=box.env, cwd=box.folder, check=False)

    assert ended.returncode == 0
    assert sorted(box.lines("done")) == ["a", "rest", "script"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a PID namespace everywhere")
def test_jobs_in_another_container_are_not_taken_for_gone(box: Box):
    crashed(box, gated("a"))
    inside = ["unshare", "--pid", "--fork", "--mount-proc", *PROGRAM, "--resume"]

    refused = subprocess.run(
        inside, env=box.env, cwd=box.folder, capture_output=True, text=True, check=False
    )
    let_go(box)
    done = box.run("--resume")

    if "unshare" in refused.stderr:
        pytest.skip(refused.stderr)
    assert refused.returncode == 255
    assert "--assume-gone" in refused.stderr
    assert done.status == 0
    assert box.lines("done") == ["a"]


def test_hosts_are_not_added_while_jobs_may_run_that_no_agent_would_look_after(box: Box):
    crashed(box, gated("a"))

    refused = box.run("--resume", "--hosts", "localhost", "--lease", "10s")
    let_go(box)
    done = box.run("--resume")

    assert refused.status == 255
    assert "1 job of run " in refused.err
    assert "where no agent would look after them: let them end first" in refused.err
    assert done.status == 0, done.err
    assert box.lines("done") == ["a"]


def test_running_jobs_are_adopted_though_the_driver_is_gone(box: Box):
    crashed(box, gated("a"), "echo never >> done", options=("--gpus", "0"))
    broken = {"LD_LIBRARY_PATH": str(box.folder / "nowhere")}

    session = box.start("--resume", env=broken)
    session.says("still runs")
    session.says("nothing new is started")
    let_go(box)
    session.says("job 1 ok")
    session.signal(signal.SIGTERM)

    assert session.end().status == 130
    assert box.lines("done") == ["a"]


def test_a_failure_that_was_mended_in_the_list_does_not_count_for_ever(box: Box):
    first = box.run(*MOMENT, "--name", "r", commands=["echo ok >> done", "exit 9"])
    mended = box.list_of(["echo ok >> done", "echo mended >> done"])

    done = box.run("--resume", "r", str(mended))
    again = box.run("--resume", "r")

    assert (first.status, done.status, again.status) == (1, 0, 0), done.err
    assert box.lines("done") == ["ok", "mended"]
    assert "1 no longer on the list" in done.err


def test_a_failure_that_the_list_still_has_still_counts(box: Box):
    box.run(*MOMENT, "--name", "r", commands=["exit 9", "true"])

    done = box.run("--resume", "r", str(box.list_of(["true", "exit 9", "echo new >> done"])))

    assert done.status == 1
    assert box.lines("done") == ["new"]


def test_what_to_type_for_the_rest_can_be_typed(box: Box):
    (box.folder / "a place").mkdir(0o700)
    session = box.start(
        *MOMENT, "--gpus", "0", "--state", "a place", str(box.list_of(["sleep 600", "true"]))
    )
    session.says("job 1 started")
    session.signal(signal.SIGTERM)
    said = session.end().err

    line = next(line for line in said.splitlines() if "to go on with what is left: " in line)
    words = shlex.split(line.partition("left: ")[2])

    assert words[:2] == ["smartsched", "--resume"]
    resumed = box.start(*words[1:])
    resumed.says("going on with run")
    resumed.signal(signal.SIGTERM)
    assert resumed.end().status == 130


def test_a_run_whose_folder_is_gone_ends_and_its_job_goes_on(box: Box):
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([gated("a"), "echo b >> done"])))
    began(box, "a")
    session.says("job 1 started")
    shutil.rmtree(box.run_folder())
    let_go(box)

    done = session.end()

    assert done.status == 255
    assert "is gone" in done.err
    assert box.lines("done") == ["a"]
