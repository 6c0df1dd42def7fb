"""`smartsched gpus`: verdicts, and whose use it is."""

import json
import os
import signal
import subprocess

import pytest

from tests.cli.harness import MOMENT, PROGRAM, Box
from tests.cli.test_dry_run import row
from tests.stub_nvml import GIB, stranger_process
from tests.waiting import wait_until

WAIT = "until test -e go; do sleep 0.01; done"


def test_it_says_who_uses_each_gpu_and_whether_it_is_free(box: Box):
    with stranger_process() as stranger:
        box.machine.add_stranger(0, 34 * GIB, stranger.pid)
        done = box.run("gpus", *MOMENT, "--max-mem", "20%", "--gpus", "0", "1")

    assert done.status == 0
    assert "memory 42% > 20% (" in row(done.out, 0)
    assert f"(pid {stranger.pid})" in done.out
    assert "FREE" in row(done.out, 1)
    assert len(done.out.splitlines()) == 4


def test_jobs_of_one_s_own_runs_and_their_claims_are_named(box: Box):
    train = box.training("seen", "--mem", str(20 * GIB), "--until", "go")
    session = box.start(*MOMENT, "--gpus", "0", "--name", "night", str(box.list_of([train])))
    wait_until(lambda: box.trained(), "it trains", session.dump)

    table = box.run("gpus", *MOMENT)
    [gpu, *_] = json.loads(box.run("gpus", "--json", *MOMENT).out)["gpus"]
    (box.folder / "go").touch()

    assert "job 1 of run night)" in table.out
    assert "claimed by" in table.out
    assert gpu["processes"][0]["job"] == "job 1 of run night"
    assert "(run night)" in gpu["claim"]
    assert session.end().status == 0


def test_watched_through_a_pipe_it_adds_a_line_for_each_gpu_at_every_look(box: Box):
    session = box.start("gpus", "--watch", *MOMENT)
    wait_until(lambda: session.out.count("GPU 3 FREE") >= 2, "it has looked twice", session.dump)
    box.machine.set(2, used_bytes=40 * GIB)
    session.says("GPU 2 BUSY, memory 40 GiB / 80 GiB")

    session.signal(signal.SIGINT)

    done = session.end()
    assert done.status == 0
    assert "\x1b" not in done.out
    assert done.err == ""


def test_watched_as_json_it_is_an_object_a_line(box: Box):
    session = box.start("gpus", "--watch", "--json", *MOMENT)
    wait_until(lambda: session.out.count("\n") >= 2, "it has looked twice", session.dump)
    session.signal(signal.SIGINT)

    first, second, *_ = map(json.loads, session.end().out.splitlines())

    assert (first["smartsched_survey"], len(second["gpus"])) == (1, 4)


def test_a_driver_that_hangs_while_it_is_watched_is_said(box: Box):
    session = box.start("gpus", "--watch", *MOMENT)
    session.says("GPU 3 FREE")

    box.machine.hang("nvmlDeviceGetMemoryInfo", 600)

    session.says("GPU 0 UNKNOWN")
    session.says("the driver has not answered")
    session.signal(signal.SIGINT)
    assert session.end().status == 0


def test_claims_that_cannot_be_read_are_said_once_and_watching_goes_on(box: Box):
    folder = box.folder / "open-to-all"
    folder.mkdir()
    folder.chmod(0o777)
    session = box.start("gpus", "--watch", *MOMENT, "--claims", str(folder))
    wait_until(lambda: session.out.count("GPU 3 FREE") >= 3, "it has looked", session.dump)
    session.signal(signal.SIGINT)

    done = session.end()

    assert done.status == 0
    assert len(done.err.splitlines()) == 1
    assert f"cannot use the claims in {folder}" in done.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--gpus", "7"), "there is no GPU 7"),
        (("--watch", "--history", "0"), "--history: '0' leaves no time"),
        (("--history", "1m"), "--history goes with --watch"),
        (("--max-mem", "much"), "--max-mem"),
        (("--polite",), "unrecognized arguments: --polite"),
        (("--simulate", "0"), "--simulate: '0'"),
    ],
)
def test_what_cannot_be_is_one_clear_line(box: Box, args: tuple[str, ...], words: str):
    done = box.run("gpus", *args)

    assert done.status == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_a_reader_who_has_seen_enough_ends_it_without_a_word(box: Box):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PROGRAM, "gpus", "--watch", *MOMENT], env=box.env, stdout=writing, stderr=subprocess.PIPE,
        check=False, timeout=60, cwd=box.folder,
    )  # fmt: skip
    os.close(writing)

    assert done.stderr == b""
