"""Ctrl-C, hangups and terminations of the real program."""

import os
import signal
import subprocess
import time

import pytest

from tests.cli.harness import MOMENT, PROGRAM, Box, alive
from tests.waiting import PATIENCE_SECONDS, wait_until

SLEEPER = "echo $$ >> pids; exec sleep 600"


def running(box: Box, count: int) -> list[int]:
    path = box.folder / "pids"
    wait_until(lambda: path.exists() and path.read_text().count("\n") == count, "jobs run")
    return [int(word) for word in path.read_text().split()]


def test_the_first_ctrl_c_drains(box: Box):
    session = box.start(
        *MOMENT,
        "--gpus",
        "0",
        str(box.list_of(["until test -e go; do sleep 0.01; done", "echo 2"])),
    )
    session.says("job 1 started")

    session.signal(signal.SIGINT)
    session.says("starting nothing more")
    (box.folder / "go").touch()

    done = session.end()
    assert done.status == 130
    assert "1 job ok, 0 failed, 1 not started" in done.err


def test_a_drain_that_left_nothing_undone_is_no_interruption(box: Box):
    session = box.start(
        *MOMENT, str(box.list_of(["until test -e go; do sleep 0.01; done; exit 1"]))
    )
    session.says("job 1 started")

    session.signal(signal.SIGHUP)
    session.says("starting nothing more")
    (box.folder / "go").touch()

    assert session.end().status == 1


def test_the_second_ctrl_c_stops_the_jobs(box: Box):
    session = box.start(*MOMENT, str(box.list_of([SLEEPER] * 3)))
    pids = running(box, 3)

    session.signal(signal.SIGINT)
    session.says("starting nothing more")
    session.signal(signal.SIGINT)

    assert session.end().status == 130
    assert not any(map(alive, pids))


def test_sigterm_stops_jobs_and_what_they_started(box: Box):
    session = box.start(*MOMENT, str(box.list_of([f"sleep 600 & echo $! >> pids; {SLEEPER}"])))
    pids = running(box, 2)

    session.signal(signal.SIGTERM)

    assert session.end().status == 130
    assert not any(map(alive, pids))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_a_single_command_is_stopped_by_the_first(box: Box, signum: signal.Signals):
    session = box.start(*MOMENT, "--", "sh", "-c", SLEEPER)
    pids = running(box, 1)

    session.signal(signum)

    assert session.end().status == 128 + signal.SIGTERM
    assert not any(map(alive, pids))


def test_a_job_that_ignores_sigterm_is_killed_after_the_grace_period(box: Box):
    stubborn = "trap '' TERM; echo $$ >> pids; while :; do sleep 0.05; done"
    session = box.start(*MOMENT, "--grace", "300ms", str(box.list_of([stubborn])))
    pids = running(box, 1)

    session.signal(signal.SIGTERM)

    done = session.end()
    assert done.status == 130
    assert "killing it" in done.err
    assert not any(map(alive, pids))


def test_asking_a_third_time_does_not_wait_for_the_grace_period(box: Box):
    stubborn = "trap '' TERM; echo $$ >> pids; while :; do sleep 0.05; done"
    session = box.start(*MOMENT, "--grace", "1h", str(box.list_of([stubborn])))
    pids = running(box, 1)

    for text in ("starting nothing more", "stopping 1 running job", "killing it"):
        session.signal(signal.SIGINT)
        session.says(text)

    assert session.end().status == 130
    assert not any(map(alive, pids))


def test_a_stopped_job_notices_that_it_is_to_end(box: Box):
    session = box.start(*MOMENT, "--grace", "1h", str(box.list_of([SLEEPER])))
    pids = running(box, 1)
    (box.folder / "pids").unlink()
    os.kill(pids[0], signal.SIGSTOP)
    session.signal(signal.SIGTERM)

    assert session.end().status == 130


def test_jobs_of_a_stopped_and_continued_dispatcher_are_not_concerned(box: Box):
    session = box.start(
        *MOMENT, "--gpus", "0", str(box.list_of(["sleep 0.2; echo a", "echo b", "echo c"]))
    )
    session.says("job 1 started")
    session.signal(signal.SIGSTOP)
    deadline = time.monotonic() + 0.6
    wait_until(lambda: time.monotonic() > deadline, "time has passed")
    session.signal(signal.SIGCONT)

    done = session.end()
    assert done.status == 0
    assert "3 jobs ok" in done.err


def test_nohup_keeps_its_meaning(box: Box):
    listing = box.list_of(["until test -e go; do sleep 0.01; done", "touch second"])
    process = subprocess.Popen(
        ["nohup", *PROGRAM, *MOMENT, "--gpus", "0", str(listing)],
        env=box.env,
        cwd=box.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(box.job_logs, "job 1 runs")

    process.send_signal(signal.SIGHUP)
    (box.folder / "go").touch()

    assert process.wait(PATIENCE_SECONDS) == 0
    assert (box.folder / "second").exists()
