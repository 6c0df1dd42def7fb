"""Jobs that fail: tried again, stopped in time, told of, and what that says of GPUs and lists."""

import json
import re
import signal
from collections import Counter

import pytest

from tests.cli.harness import MOMENT, Box
from tests.waiting import wait_until

WAIT = "until test -e go; do sleep 0.01; done"
COLUMNS = [
    "Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command",
]  # fmt: skip


def joblog(box: Box, name: str = "jobs.tsv") -> list[dict[str, str]]:
    header, *rows = [line.split("\t", 8) for line in box.lines(name)]
    assert header == COLUMNS
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def test_a_job_that_failed_is_tried_again_on_another_gpu_and_each_try_keeps_its_log(box: Box):
    command = 'echo "try $SMARTSCHED_ATTEMPT on $SMARTSCHED_GPUS"; test $SMARTSCHED_ATTEMPT = 3'

    done = box.run(*MOMENT, "--retries", "2", "--retry-delay", "10ms", commands=[command])

    assert done.status == 0
    assert "1 job ok, 0 failed" in done.err
    logs = {log.name: log.read_text().split() for log in box.job_logs()}
    assert {name: words[:2] for name, words in logs.items()} == {
        "0001.log": ["try", "1"],
        "0001.2.log": ["try", "2"],
        "0001.3.log": ["try", "3"],
    }
    assert len({words[-1] for words in logs.values()}) == 3


def test_a_job_that_failed_for_good_is_one_failure_however_often_it_was_tried(box: Box):
    done = box.run(*MOMENT, "--retries", "2", "--retry-delay", "0", commands=["exit 7", "true"])

    assert done.status == 1
    assert done.err.count("exit status 7") == 4  # two tries again, the failure, the summary
    assert done.err.count("trying again in") == 2
    assert "job 1 started on GPU" in done.err
    assert "(try 3)" in done.err
    assert len(box.events("run_launched")) == 4


def test_tries_keep_their_distance_and_it_doubles(box: Box):
    done = box.run(*MOMENT, "--retries", "2", "--retry-delay", "400ms", commands=["exit 7"])

    placed = [record["at"] for record in box.events("run_placed")]
    exited = [record["at"] for record in box.events("run_exited")]
    assert done.status == 1
    assert placed[1] - exited[0] >= 0.4
    assert placed[2] - exited[1] >= 0.8


def test_tries_survive_a_crash(box: Box):
    command = "echo try >> did; test $SMARTSCHED_ATTEMPT = 3"
    session = box.start(
        *MOMENT, "--retries", "2", "--retry-delay", "1h", str(box.list_of([command]))
    )
    session.says("trying again in")
    session.crash()

    done = box.run("--resume", "--retry-delay", "0")

    assert done.status == 0
    assert box.lines("did") == ["try"] * 3


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exec sleep 600", "out of time, killed by SIGTERM"),
        ("trap '' TERM; while :; do sleep 0.01; done", "out of time, killed by SIGKILL"),
        ("trap 'exit 0' TERM; while :; do sleep 0.01; done", "out of time, exit status 0"),
    ],
)
def test_an_attempt_that_takes_too_long_is_stopped_and_has_failed(
    box: Box, command: str, said: str
):
    done = box.run(
        *MOMENT, "--timeout", "500ms", "--grace", "300ms", commands=[command, "echo quick"]
    )

    assert done.status == 1
    assert "job 1 has run for 0.5s; stopping it" in done.err
    assert f"job 1 failed: {said}" in done.err
    assert "1 job ok, 1 failed" in done.err
    wait_until(box.is_quiet, "nobody is left")


def test_the_time_of_an_adopted_attempt_counts_from_its_start(box: Box):
    session = box.start(
        *MOMENT, "--timeout", "1s", str(box.list_of(["touch began; exec sleep 600"]))
    )
    wait_until((box.folder / "began").exists, "it began", session.dump)
    session.says("job 1 started")
    session.crash()

    done = box.run("--resume")

    assert done.status == 1
    assert "job 1 failed: out of time" in done.err


def test_an_attempt_out_of_time_is_tried_again_like_any_other(box: Box):
    command = "test $SMARTSCHED_ATTEMPT = 2 || exec sleep 600"

    done = box.run(
        *MOMENT, "--timeout", "500ms", "--retries", "1", "--retry-delay", "0", commands=[command]
    )

    assert done.status == 0


@pytest.mark.parametrize(
    ("when", "said"),
    [("soon,fail=2", "2 jobs failed"), ("soon,fail=60%", "2 of 3 finished jobs failed")],
)
def test_after_too_many_failures_nothing_more_starts_and_what_runs_may_finish(
    box: Box, when: str, said: str
):
    at_once = [f"until test -e runs; do sleep 0.01; done; exit {status}" for status in (0, 1, 1)]
    # each GPU that comes free before the second failure takes one more, and keeps it
    lasting = ["touch runs; " + WAIT, WAIT, WAIT]
    commands = [*at_once, *(f"{each}; echo end >> did" for each in lasting), "touch never"]
    session = box.start(*MOMENT, "--no-guard", "--halt", when, str(box.list_of(commands)))
    session.says(f"{said}: starting nothing more; waiting for")
    (box.folder / "go").touch()

    done = session.end()

    assert done.status == 2
    assert set(box.lines("did")) == {"end"}
    assert not (box.folder / "never").exists()


def test_after_too_many_failures_what_runs_is_stopped_where_that_is_wanted(box: Box):
    commands = [
        "touch runs; exec sleep 600",
        "until test -e runs; do sleep 0.01; done; exit 1",
        "touch never",
    ]

    done = box.run(*MOMENT, "--gpus", "0,1", "--halt", "now,fail=1", commands=commands)

    assert done.status == 1
    assert "1 job failed: starting nothing more; stopping 1 running job" in done.err
    assert "0 jobs ok, 1 failed, 1 stopped, 1 not started" in done.err
    assert not (box.folder / "never").exists()
    wait_until(box.is_quiet, "nobody is left")


def test_a_halted_run_goes_on_when_it_is_resumed(box: Box):
    commands = ["exit 1", "echo b >> did", "echo c >> did"]
    halted = box.run(*MOMENT, "--gpus", "0", "--halt", "soon,fail=1", commands=commands)

    done = box.run("--resume")

    assert halted.status == 1
    assert "2 not started" in halted.err
    assert "smartsched --resume" in halted.err
    assert done.status == 1
    assert box.lines("did") == ["b", "c"]


def test_jobs_that_fail_at_once_on_one_gpu_are_done_by_the_others(box: Box):
    """A GPU that fails at once is free first, and would eat the whole list."""
    command = "test $SMARTSCHED_GPUS = 2 && exit 1; sleep 0.2; echo $SMARTSCHED_JOB >> did"

    done = box.run(*MOMENT, commands=[command] * 30)

    assert done.status == 0, done.err
    assert "GPU 2 is withheld: jobs" in done.err
    assert "30 jobs ok, 0 failed" in done.err
    assert Counter(box.lines("did")) == {str(job): 1 for job in range(1, 31)}
    on_the_broken_one = [r for r in box.events("run_placed") if r["placement"][0]["label"] == "2"]
    assert len(on_the_broken_one) == 3


def test_a_command_that_fails_at_once_everywhere_halts_the_list_and_says_why(box: Box):
    commands = ["echo 'No module named numpi' >&2; exit 1"] * 100

    done = box.run(*MOMENT, commands=commands)

    assert "the command itself fails: 3 in a row failed at once on" in done.err
    assert "starting nothing more" in done.err
    assert "  | No module named numpi" in done.err
    assert re.search(r"smartsched --resume \S+ --no-guard", done.err)
    started = len(box.events("run_launched"))
    assert 3 <= started <= 12
    assert done.status == started


def test_a_list_that_fails_goes_on_to_its_end_where_nobody_is_to_guard_it(box: Box):
    done = box.run(*MOMENT, "--no-guard", commands=["exit 1"] * 30)

    assert done.status == 30
    assert "the command itself fails" not in done.err


def test_the_rest_of_a_list_that_failed_runs_when_it_is_resumed(box: Box):
    command = "test -e mended && echo $SMARTSCHED_JOB >> did"
    halted = box.run(*MOMENT, "--gpus", "0", commands=[command] * 10)
    (box.folder / "mended").touch()

    rest = box.run("--resume")
    failed = box.run("--resume-failed")

    assert halted.status == 3
    assert rest.status == 3
    assert failed.status == 0
    assert Counter(box.lines("did")) == {str(job): 1 for job in range(1, 11)}


def test_the_users_command_is_told_of_every_finished_job(box: Box):
    (box.folder / "tell").write_text(
        'echo "$SMARTSCHED_JOB|$SMARTSCHED_OUTCOME|$SMARTSCHED_EXIT_STATUS|$SMARTSCHED_SIGNAL'
        "|$SMARTSCHED_ATTEMPTS|$SMARTSCHED_GPUS|$SMARTSCHED_RUN|$SMARTSCHED_COMMAND"
        '|$SMARTSCHED_LOG|$SMARTSCHED_DIRECTORY|$SMARTSCHED_STARTED_AT|$SMARTSCHED_SECONDS" >> told'
    )
    commands = ["true", "exit 7", "kill -9 $$"]

    done = box.run(
        *MOMENT, "--gpus", "1", "--name", "mine", "--retries", "1", "--retry-delay", "0",
        "--on-finish", "sh ./tell", commands=commands,
    )  # fmt: skip

    assert done.status == 2
    told = {line.split("|")[0]: line.split("|")[1:] for line in box.lines("told")}
    logs = f"{box.folder}/smartsched-logs/mine"
    here = str(box.folder)
    assert {job: fields[:-2] for job, fields in told.items()} == {
        "1": ["ok", "0", "", "1", "1", "mine", "true", f"{logs}/0001.log", here],
        "2": ["failed", "7", "", "2", "1", "mine", "exit 7", f"{logs}/0002.2.log", here],
        "3": ["failed", "", "9", "2", "1", "mine", "kill -9 $$", f"{logs}/0003.2.log", here],
    }
    for fields in told.values():
        assert re.fullmatch(r"\d+\.\d{3}", fields[-2])
        assert re.fullmatch(r"\d+\.\d{3}", fields[-1])
    assert len(box.lines("told")) == 3


def test_what_the_users_command_does_is_no_concern_of_the_jobs(box: Box):
    done = box.run(
        *MOMENT, "--on-finish", "echo chatter; exit 3", "--output", "raw", commands=["echo out"] * 9
    )

    assert done.status == 0
    assert done.out == "out\n" * 9
    assert "9 jobs ok, 0 failed" in done.err


def test_the_joblog_is_gnu_parallels(box: Box):
    commands = ["echo 12345", "exit 7", "kill -9 $$", "printf 'a\\tb'  # tab\there"]

    done = box.run(*MOMENT, "--gpus", "3", "--joblog", "jobs.tsv", "--no-guard", commands=commands)

    assert done.status == 2
    table = joblog(box)
    assert [(row["Seq"], row["Exitval"], row["Signal"]) for row in table] == [
        ("1", "0", "0"),
        ("2", "7", "0"),
        ("3", "0", "9"),
        ("4", "0", "0"),
    ]
    assert [row["Command"] for row in table] == commands
    assert {row["Host"] for row in table} == {"3"}
    assert [row["Receive"] for row in table] == ["6", "0", "0", "3"]
    starts = [float(row["Starttime"]) for row in table]
    assert starts == sorted(starts)
    assert all(float(row["JobRuntime"]) >= 0 for row in table)


def test_a_joblog_is_begun_anew_or_appended_to(box: Box):
    (box.folder / "jobs.tsv").write_text("old\n")

    box.run(*MOMENT, "--joblog", "jobs.tsv", commands=["true"])
    anew = joblog(box)
    box.run(*MOMENT, "--joblog", "+jobs.tsv", commands=["exit 3"])
    appended = joblog(box)

    assert [row["Command"] for row in anew] == ["true"]
    assert [row["Command"] for row in appended] == ["true", "exit 3"]


def test_after_any_number_of_crashes_every_job_is_in_the_joblog_once(box: Box):
    commands = [f"sleep 0.1; exit {number % 2}" for number in range(30)]
    session = box.start(
        *MOMENT, "--no-guard", "--joblog", "jobs.tsv", "--json-log", "log.jsonl",
        str(box.list_of(commands)),
    )  # fmt: skip
    for count in (3, 9, 17, 25):
        _wait_for_lines(box, "jobs.tsv", count + 1)
        session.crash()
        session = box.start("--resume")

    done = session.end()

    assert done.status == 15
    rows = joblog(box)
    assert sorted(int(row["Seq"]) for row in rows) == list(range(1, 31))
    assert sum(row["Exitval"] == "1" for row in rows) == 15
    events = [json.loads(line) for line in box.lines("log.jsonl")]
    assert [(event["seq"], event["event"]) for event in events] == [
        (record["seq"], record["event"]) for record in box.journal()
    ]


def _wait_for_lines(box: Box, name: str, count: int) -> None:
    wait_until(lambda: len(box.lines(name)) >= count, f"there are {count} lines in {name}")


def test_a_joblog_that_was_torn_by_a_crash_is_mended(box: Box):
    session = box.start(
        *MOMENT, "--gpus", "0", "--joblog", "jobs.tsv", str(box.list_of(["true", "exit 3", WAIT]))
    )
    session.says("job 3 started")
    wait_until(lambda: len(box.lines("jobs.tsv")) == 3, "two are written", session.dump)
    session.crash()
    whole = (box.folder / "jobs.tsv").read_bytes()
    (box.folder / "jobs.tsv").write_bytes(whole[:-4])
    (box.folder / "go").touch()

    done = box.run("--resume")

    assert done.status == 1
    assert [(row["Seq"], row["Exitval"]) for row in joblog(box)] == [
        ("1", "0"),
        ("2", "3"),
        ("3", "0"),
    ]


def test_the_json_log_says_what_the_journal_says(box: Box):
    done = box.run(
        *MOMENT, "--name", "mine", "--json-log", "log.jsonl", commands=["true", "exit 3"]
    )

    assert done.status == 1
    said = [json.loads(line) for line in box.lines("log.jsonl")]
    known = box.journal()
    for record in known:
        record.pop("crc")
        record.pop("smartsched_journal", None)
    assert all("mine" in event.values() for event in said)  # logs of several runs may be one file
    assert [event["event"] for event in said] == [record["event"] for record in known]
    assert [event["seq"] for event in said] == [record["seq"] for record in known]


def test_a_log_that_cannot_be_opened_is_one_line_before_anything_starts(box: Box):
    for option in ("--joblog", "--json-log"):
        done = box.run(*MOMENT, option, "no/such/folder", commands=["touch started"])

        assert done.status == 2
        assert option in done.err
        assert len(done.err.splitlines()) == 1
    assert not (box.folder / "started").exists()
    assert not list(box.state.glob("runs/*"))


@pytest.mark.parametrize(
    "wrong",
    [
        ("--retries", "-1"),
        ("--retries", "x"),
        ("--retry-delay", "soon"),
        ("--timeout", "0"),
        ("--halt", "now"),
        ("--halt", "later,fail=1"),
        ("--halt", "soon,fail=0"),
        ("--halt", "soon,fail=101%"),
        ("--no-adopt",),
        ("--resume", "--name", "x"),
        ("--resume", "--dry-run"),
        ("--resume", "--", "true"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(box: Box, wrong: tuple[str, ...]):
    done = box.run(*MOMENT, *wrong)

    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert wrong[0] in done.err or "--name" in done.err or "COMMAND" in done.err


def test_statuses_are_those_that_are_documented(box: Box):
    fine = box.run(*MOMENT, commands=["true"])
    one = box.run(*MOMENT, commands=["true", "exit 9"])
    rejected = box.run(*MOMENT, commands=["true", "nul \0"])
    box.machine.set(0, used_bytes=40 << 30)
    waited = box.run(*MOMENT, "--gpus", "0", "--wait-timeout", "300ms", commands=["true"])
    box.machine.set(0, used_bytes=0)
    session = box.start(*MOMENT, str(box.list_of([WAIT])))
    session.says("job 1 started")
    session.signal(signal.SIGTERM)

    assert [fine.status, one.status, rejected.status, waited.status] == [0, 1, 1, 124]
    assert session.end().status == 130


def test_a_halted_run_has_not_succeeded(box: Box):
    """Its jobs wait for another try: none has failed for good."""
    done = box.run(*MOMENT, "--gpus", "0", "--retries", "2", commands=["exit 3"] * 6)

    assert "the command itself fails" in done.err
    assert done.status == 1
