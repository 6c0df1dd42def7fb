"""A run that is steered from other terminals: real dispatchers, real jobs."""

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.harness import MOMENT, Box, Session
from tests.waiting import wait_until

GATED = "echo {0} >> began; until test -e go; do sleep 0.01; done; echo {0} >> done"


def gated(name: str) -> str:
    """Runs until the file `go` is there."""
    return GATED.format(name)


def started(box: Box, *commands: str, options: tuple[str, ...] = ("--gpus", "0")) -> Session:
    """A living run with one GPU, whose first command runs."""
    session = box.start(*MOMENT, *options, str(box.list_of(commands)))
    session.says("started on GPU")
    return session


def let_go(box: Box) -> None:
    (box.folder / "go").touch()


def status(box: Box, *args: str) -> dict[str, object]:
    done = box.run("status", "--json", *args)
    assert done.status == 0, done.err
    found: dict[str, object] = json.loads(done.out)
    return found


def numbers(found: dict[str, object], what: str) -> list[int]:
    listed = found[what]
    assert isinstance(listed, list)
    return [job["job"] for job in listed]


def test_status_says_what_runs_waits_and_why(box: Box):
    session = started(box, gated("a"), f"{gated('b')}  # smartsched: name=big", "false")

    found = status(box)
    told = box.run("status")

    assert (found["phase"], numbers(found, "running"), numbers(found, "waiting")) == (
        "running",
        [1],
        [2, 3],
    )
    assert "running: 0 jobs ok, 0 failed, 1 running, 2 waiting" in told.out
    assert "2 (big)" in told.out
    let_go(box)
    assert session.end().status == 1
    assert status(box)["phase"] == "ended"
    assert "has ended; all is done: 2 jobs ok, 1 failed" in box.run("status").out


def test_watching_a_status_ends_with_the_run(box: Box):
    session = started(box, gated("a"))
    watching = box.start("status", "--watch", "--json")
    wait_until(lambda: "running" in watching.out, "the first picture")

    let_go(box)
    session.end()

    assert watching.end().status == 0
    assert json.loads(watching.out.splitlines()[-1])["phase"] == "ended"


def test_commands_are_added_cancelled_and_tried_again(box: Box):
    session = started(box, gated("a"), gated("b"), "exit 3")

    added = box.run("add", "--", "sh", "-c", "echo 'more  than' one >> done")
    listed = box.run("add", commands=["echo c >> done", "# a comment", "echo d >> done"])
    cancelled = box.run("cancel", "2", "6")
    let_go(box)
    session.says("job 3 failed")
    wait_until(lambda: "d" in box.lines("done") or "c" in box.lines("done"), "what was added ran")

    assert "added as job 4" in added.out
    assert "added as jobs 5-6" in listed.out
    assert "cancelled jobs 2, 6" in cancelled.out
    done = session.end()
    assert box.lines("done") == ["a", "more  than one", "c"]
    assert "3 jobs ok, 1 failed, 2 cancelled" in done.err
    assert done.status == 1


def test_a_job_that_runs_is_cancelled_by_its_name_and_tried_again(box: Box):
    session = started(box, f"{gated('a')}  # smartsched: name=big", options=("--keep-open",))

    cancelled = box.run("cancel", "big")
    session.says("job 1 (big) cancelled after")
    let_go(box)
    again = box.run("retry", "1")
    session.says("job 1 (big) ok")
    session.signal(signal.SIGINT)

    assert "stopping 1 running job" in cancelled.out
    assert "queued again: job 1" in again.out
    assert session.end().status == 0
    assert box.lines("began") == ["a", "a"]
    assert box.lines("done") == ["a"]


def test_failed_jobs_are_tried_again_while_the_run_lives(box: Box):
    once = "test -e twice || { touch twice; exit 1; }; echo b >> done"
    session = started(box, gated("a"), once, options=("--gpus", "0,1"))
    session.says("job 2 failed")

    again = box.run("retry", "--failed")
    session.says("job 2 ok")
    let_go(box)

    assert "queued again: job 2" in again.out
    assert session.end().status == 0


def test_a_paused_run_starts_nothing_until_it_is_continued(box: Box):
    session = started(box, gated("a"), "echo b >> done")

    paused = box.run("pause")
    let_go(box)
    session.says("job 1 ok")
    session.says("waiting: the run is paused")
    assert status(box)["phase"] == "paused"
    assert box.lines("done") == ["a"]
    box.run("continue")

    assert "1 running job may finish" in paused.out
    assert session.end().status == 0
    assert box.lines("done") == ["a", "b"]


def test_new_thresholds_and_caps_count_at_once_and_stay_with_the_run(box: Box):
    session = started(box, gated("a"), gated("b"), options=("--max-gpus", "1"))

    changed = box.run("set", "--max-gpus", "2", "--max-mem", "30%")
    session.says("job 2 started")
    refused = box.run("set", "--max-mem", "lots")

    assert "--max-gpus 1 -> 2" in changed.out
    assert "--max-mem 10% -> 30%" in changed.out
    assert refused.status == 2
    assert "'lots' is neither a share such as 20% nor a size" in refused.err
    assert "nothing was changed" in refused.err
    [record] = box.events("options_set")
    assert json.loads(record["options"])["max_gpus"] == "2"
    session.crash()
    resumed = box.start("--resume")
    resumed.says("still runs")
    assert "--max-gpus 2 -> 3" in box.run("set", "--max-gpus", "3").out
    let_go(box)
    assert resumed.end().status == 0


def test_a_jobs_log_is_printed_and_followed_to_its_end(box: Box):
    started(box, f"echo hello; {gated('a')}; echo bye; exit 4", "true")
    printed = box.run("log", "1")
    following = box.start("log", "-f", "1")
    wait_until(lambda: "hello" in following.out, "what there is")

    waits = box.run("log", "2")
    let_go(box)
    followed = following.end()

    assert printed.out == "hello\n"
    assert followed.out == "hello\nbye\n"
    assert "job 1 ended: exit status 4" in followed.err
    assert (waits.status, waits.out) == (2, "")
    assert "job 2 of run" in waits.err
    assert "has not started: -f waits for it" in waits.err


def test_a_run_that_is_kept_open_waits_for_more_until_it_is_told_to_end(box: Box):
    session = started(box, "true", options=("--keep-open",))
    session.says("there is no job left: smartsched add gives it more")

    box.run("add", "--", "true")
    session.says("job 2 ok")
    box.run("set", "--no-keep-open")

    assert session.end().status == 0


def test_all_is_cancelled_with_the_rest_of_the_list(box: Box):
    session = started(box, gated("a"), *(f"echo {n} >> done" for n in range(200)))

    done = box.run("cancel", "--all")

    assert "what is still to be read is left out" in done.out
    assert session.end().status == 0
    assert not box.lines("done")
    assert status(box)["phase"] == "ended"


def test_what_is_asked_of_a_run_that_is_down_is_done_once_it_goes_on(box: Box):
    session = started(box, gated("a"), "echo b >> done")
    session.crash()
    name = box.run_folder().name

    told = box.run("add", "--name", name, "--", "sh", "-c", "echo c >> done")
    box.run("cancel", "--name", name, "2")
    assert "(requests wait)" in box.run("runs").out
    let_go(box)
    done = box.run("--resume")

    assert told.status == 0
    assert f"smartsched --resume {name}" in told.err
    assert done.status == 0
    assert box.lines("done") == ["a", "c"]


def test_a_complete_run_goes_on_with_what_was_asked_for_since(box: Box):
    box.run(*MOMENT, "--name", "night", commands=["echo a >> done"])
    box.run("add", "--name", "night", "--", "sh", "-c", "echo b >> done")

    done = box.run("--resume", "night")

    assert done.status == 0
    assert box.lines("done") == ["a", "b"]


def test_a_request_that_was_on_record_when_the_dispatcher_died_is_not_done_again(box: Box):
    session = started(box, gated("a"))
    box.run("add", "--", "sh", "-c", "echo b >> done")
    [record] = box.events("jobs_added")
    session.crash()
    again = box.run_folder() / "requests" / f"{record['request']}.request"
    commands = [["echo b >> done", "-:1"]]
    asked = {"smartsched_request": 1, "verb": "add", "commands": commands, "directory": "/"}
    again.write_text(json.dumps(asked))
    again.chmod(0o600)

    let_go(box)
    done = box.run("--resume")

    assert done.status == 0
    assert box.lines("done") == ["a", "b"]
    assert not again.exists()


def test_a_job_may_give_its_own_run_more_to_do(box: Box):
    program = f"{sys.executable} -m smartsched"

    done = box.run(*MOMENT, commands=[f"{program} add -- touch from-within"])

    assert done.status == 0, done.err
    assert (box.folder / "from-within").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("cancel", "1"), "no run lives"),
        (("pause", "nosuch"), "there is no run nosuch"),
        (("status",), "there is no run yet"),
        (("log", "1"), "there is no run yet"),
        (("cancel",), "say which jobs, or --all"),
        (("cancel", "--all", "3"), "say which jobs, or --all"),
        (("retry",), "say which jobs, or --failed"),
        (("set",), "say what to change, such as --max-mem 30%"),
        (("set", "--gpus", "1"), "unrecognized arguments: --gpus"),
        (("add", "--"), "there is no command after --"),
        (("add",), "there is no command on standard input"),
        (("runs", "--remove", "nosuch"), "there is no run nosuch"),
        (("runs", "--prune", "soon"), "--prune: 'soon'"),
    ],
)
def test_what_makes_no_sense_gets_one_line(box: Box, words: tuple[str, ...], why: str):
    done = box.run(*words)

    assert done.status == 2
    assert why in done.err
    assert len(done.err.splitlines()) == 1
    assert not done.out


def test_a_line_that_cannot_be_meant_adds_nothing(box: Box):
    session = started(box, gated("a"))

    done = box.run("add", commands=["echo b >> done", "echo c  # smartsched: gpu=1"])
    let_go(box)

    assert done.status == 2
    assert "-:2: # smartsched: 'gpu' cannot be asked for" in done.err
    assert "nothing was added" in done.err
    session.end()
    assert box.lines("done") == ["a"]


def test_runs_lists_all_and_forgets_those_that_are_over(box: Box):
    box.run(*MOMENT, "--name", "first", commands=["true", "false"])
    session = started(box, gated("a"), options=("--name", "second"))

    listed = json.loads(box.run("runs", "--json").out)["runs"]
    alive = box.run("runs", "--remove", "second")
    forgotten = box.run("runs", "--remove", "first")
    let_go(box)
    session.end()

    stands = {row["run"]: (row["stands"], row["ok"], row["failed"]) for row in listed}
    assert stands == {"second": ("alive", 0, 0), "first": ("complete", 1, 1)}
    assert alive.status == 2
    assert "run second is alive" in alive.err
    assert forgotten.out == "forgot run first\n"
    assert "no complete run is older than 30d" in box.run("runs", "--prune", "30d").out
    assert "forgot run second" in box.run("runs", "--prune", "0s").out
    assert "there is no run yet" in box.run("runs").out


def test_of_several_living_runs_one_has_to_be_named(box: Box):
    first = started(box, gated("a"), options=("--name", "first", "--gpus", "0"))
    second = started(box, gated("b"), options=("--name", "second", "--gpus", "1"))

    done = box.run("pause")
    named = box.run("pause", "first")
    let_go(box)

    assert done.status == 2
    assert "several runs live: name one of second, first" in done.err
    assert named.status == 0
    assert (first.end().status, second.end().status) == (0, 0)


def test_whoever_only_looks_keeps_nobody_from_going_on(box: Box):
    session = started(box, gated("a"))
    session.crash()
    let_go(box)
    looking = [box.start("runs", "--json") for _ in range(3)]

    done = box.run("--resume")

    assert done.status == 0, done.err
    assert [each.end().status for each in looking] == [0, 0, 0]


def test_a_request_is_acted_on_within_two_tenths_of_a_second(box: Box):
    """By the journal: from when it lay there to when it was on record."""
    session = started(box, gated("a"), options=("--gpus", "0", "--interval", "20s"))
    box.run("status")
    box.run("pause")
    [record] = box.events("run_paused")
    let_go(box)
    box.run("continue")
    session.end()

    made_at = int(record["request"].partition("-")[0]) / 1e9
    assert record["at"] - made_at < 0.2 * slowness()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--max-gpus", "0"), "no job could start any more: it needs 1 GPUs, and --max-gpus"),
        (("--max-gpus", "1"), "jobs that wait could never start then: it needs 2 GPUs"),
        (("--gpus-per-job", "99"), "no job could start any more: it needs 99 GPUs"),
    ],
)
def test_no_cap_is_set_that_would_make_what_waits_fail(
    box: Box, options: tuple[str, ...], why: str
):
    pair = f"{gated('b')}  # smartsched: gpus=2"
    session = started(box, gated("a"), pair, options=("--gpus", "0,1"))

    done = box.run("set", *options)
    let_go(box)

    assert done.status == 2
    assert why in done.err
    assert session.end().status == 0
    assert sorted(box.lines("done")) == ["a", "b"]


def test_a_job_of_a_run_that_is_remembered_elsewhere_steers_no_other(box: Box):
    session = started(box, gated("a"))

    done = box.run("cancel", "--all", SMARTSCHED_RUN="elsewhere")
    let_go(box)

    assert done.status == 2
    assert "this is a job of run elsewhere, which is remembered elsewhere" in done.err
    assert session.end().status == 0


def test_nobody_waits_for_a_log_that_will_never_be(box: Box):
    session = started(box, gated("a"), "true")
    box.run("cancel", "2")

    cancelled = box.run("log", "-f", "2")
    let_go(box)
    session.end()
    ended = box.run("log", "-f", "7")

    assert (cancelled.status, ended.status) == (2, 2)
    assert "has not started, and will not: it was cancelled" in cancelled.err
    assert "has no job 7 so far" in ended.err


def test_a_run_whose_jobs_go_on_without_it_is_not_forgotten(box: Box):
    session = started(box, gated("a"), options=("--name", "mine"))
    session.crash()

    done = box.run("runs", "--remove", "mine")
    let_go(box)

    assert done.status == 2
    assert "jobs of run mine may still run" in done.err
    assert box.run("--resume", "mine").status == 0


def slowness() -> float:
    """How much longer than usual a moment takes here, where others compute too."""
    running = Path("/proc/loadavg").read_text().split()[0]
    return max(1.0, float(running))
