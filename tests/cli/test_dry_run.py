"""--dry-run: which GPUs count as free, why the others do not, and what would start."""

import json
import time

import pytest

from tests.cli.harness import MOMENT, Box, a_pipe
from tests.stub_nvml import GIB, stranger_process


def row(out: str, gpu: int) -> str:
    return next(line for line in out.splitlines() if line.split()[:1] == [str(gpu)])


def test_one_row_a_gpu_says_what_it_is_who_uses_it_and_whether_it_is_free(box: Box):
    with stranger_process() as stranger:
        box.machine.add_stranger(0, 34 * GIB, stranger.pid)
        box.machine.set(1, util_percent=80, history_util_percent=80)
        box.machine.set(2, error=15)

        done = box.run("--dry-run", "--max-mem", "20%")

    assert done.status == 0
    assert "Stub A100" in row(done.out, 0)
    assert "34 GiB / 80 GiB" in row(done.out, 0)
    assert "BUSY" in row(done.out, 0)
    assert "memory 42% > 20% (" in row(done.out, 0)
    assert "sleep" in row(done.out, 0)
    assert "utilisation 80% > 10%" in row(done.out, 1)
    assert "UNKNOWN" in row(done.out, 2)
    assert "lost" in row(done.out, 2)
    assert "FREE" in row(done.out, 3)


def test_every_failed_test_is_named(box: Box):
    with stranger_process() as stranger:
        box.machine.add_stranger(0, 70 * GIB, stranger.pid)
        box.machine.set(0, util_percent=50)

        done = box.run(
            "--dry-run", "--gpus", "0", "--max-procs", "0", "--min-free-mem", "20GiB", *MOMENT
        )

    assert done.status == 3
    for words in ("memory 88% > 10%", "free memory 10 GiB < 20 GiB", "utilisation 50% > 10%",
                  "processes 1 > 0"):  # fmt: skip
        assert words in done.out


def test_it_answers_at_once_where_the_driver_keeps_a_history(box: Box):
    for index in range(4):
        box.machine.set(index, history_seconds=90)
    began = time.monotonic()

    done = box.run("--dry-run", "--free-for", "60s")

    assert done.status == 0
    assert done.err == ""
    assert time.monotonic() - began < 60


def test_it_observes_for_the_window_and_says_so_where_there_is_no_history(box: Box):
    for index in range(4):
        box.machine.set(index, history_seconds=-1)
    began = time.monotonic()

    done = box.run("--dry-run", "--free-for", "1s", "--interval", "100ms")

    assert done.status == 0
    assert time.monotonic() - began >= 1
    assert "watching the GPUs for 1.0s" in done.err


def test_a_driver_that_hangs_meanwhile_is_not_waited_for_for_ever(box: Box):
    for index in range(4):
        box.machine.set(index, history_seconds=-1)
    session = box.start("--dry-run", "--free-for", "1s", "--interval", "100ms")
    session.says("watching the GPUs")

    box.machine.hang("nvmlDeviceGetMemoryInfo", 600)

    done = session.end()
    assert done.status == 3
    assert "the driver has not answered" in done.out


def test_of_a_long_list_the_beginning_is_looked_at_and_that_is_said(box: Box):
    done = box.run("--dry-run", *MOMENT, commands=["true"] * 3000)

    assert "would wait: 996 commands" in done.out
    assert "looked at the first 1,000 commands" in done.out


def test_a_recording_cannot_write_to_our_terminal(box: Box):
    recording = box.run("sample", "--once").out.replace(
        '"ailment":null', '"ailment":"\\u001b]0;owned\\u0007"'
    )
    (box.folder / "evil").write_text(recording)

    dry = box.run("--dry-run", *MOMENT, "--replay", "evil")
    run = box.run(*MOMENT, "--replay", "evil", "--wait-timeout", "3s", commands=["true"])

    assert "owned" in dry.out
    assert "owned" in run.err
    assert "\x1b" not in dry.out + run.err


def test_it_does_not_observe_where_the_answer_is_known(box: Box):
    for index in range(4):
        box.machine.set(index, history_seconds=-1, used_bytes=40 * GIB)

    done = box.run("--dry-run", "--free-for", "1h")

    assert done.status == 3


def test_commands_are_listed_with_what_would_start_and_what_would_wait(box: Box):
    box.machine.set(0, used_bytes=40 * GIB)
    box.machine.set(1, used_bytes=4 * GIB)

    done = box.run("--dry-run", *MOMENT, commands=["one", "two", "three", "four"])

    assert "would start on GPU 2: one" in done.out
    assert "would start on GPU 3: two" in done.out
    assert "would start on GPU 1: three" in done.out
    assert "would wait: 1 command" in done.out
    assert "GPU 0: memory 50% > 10%" in done.out
    assert not (box.folder / "smartsched-logs").exists()


def test_a_single_command_would_start_too(box: Box):
    done = box.run("--dry-run", *MOMENT, "--", "python", "train.py")

    assert "would start on GPU 0: python train.py" in done.out


def test_json_is_one_object_with_the_same_facts(box: Box):
    with stranger_process() as stranger:
        box.machine.add_stranger(0, 34 * GIB, stranger.pid)
        done = box.run(
            "--dry-run", "--json", "--gpus", "0,1", *MOMENT, commands=["one", "two", "nul\0"]
        )

    found = json.loads(done.out)
    busy, free = found["gpus"]
    assert done.status == 0
    assert (found["smartsched_survey"], found["any_free"]) == (1, True)
    assert (busy["gpu"], busy["verdict"], free["verdict"]) == ("0", "BUSY", "FREE")
    assert busy["uuid"] == box.machine.gpu(0).uuid
    assert busy["memory_used_bytes"] == 34 * GIB
    assert busy["failed_tests"][0]["test"] == "memory"
    assert busy["failed_tests"][0]["threshold"] == "> 10%"
    assert busy["processes"][0]["pid"] == stranger.pid
    assert [entry["command"] for entry in found["would_start"]] == ["one"]
    assert [entry["command"] for entry in found["would_wait"]] == ["two"]
    assert "GPU 0: memory" in found["would_wait_because"]
    assert found["thresholds"]["max_memory"] == {"percent": 10.0}


def test_a_silent_pipe_does_not_keep_it_waiting(box: Box):
    import os

    with a_pipe() as (reading, writing):
        os.write(writing, b"one\n")

        done = box.start("--dry-run", *MOMENT, stdin=reading).end()

    assert done.status == 0
    assert "would start on GPU 0: one" in done.out
    assert "stdin is still open; looking at 1 command" in done.err


def test_an_inherited_choice_of_gpus_is_respected_and_said(box: Box):
    done = box.run("--dry-run", *MOMENT, CUDA_VISIBLE_DEVICES="1,3")

    rows = [line.split()[0] for line in done.out.splitlines() if "Stub" in line]
    assert rows == ["1", "3"]
    assert "CUDA_VISIBLE_DEVICES=1,3" in done.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--gpus", "7"), "there is no GPU 7 (there are: 0, 1, 2, 3)"),
        (("--gpus", "GPU-0000"), "names 4 GPUs"),
        (("--exclude", "0-3"), "leave no GPU"),
        (("--gpus", "0-3,2"), "names GPU 2 twice"),
        (("--replay", "no-such-file"), "cannot read"),
        (("--simulate", "0"), "--simulate: '0'"),
        (("--interval", "0"), "too short"),
        (("--free-for", "-1s"), "--free-for"),
        (("--shell", "/no/such/shell"), "--shell"),
    ],
)
def test_what_cannot_be_is_one_clear_line(box: Box, args: tuple[str, ...], words: str):
    done = box.run("--dry-run", *args)

    assert done.status == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_others_cannot_write_to_our_terminal_by_their_command_lines(box: Box):
    import subprocess
    import sys

    evil = [sys.executable, "-c", "import time; time.sleep(600)", "\x1b]0;owned\x07[red]"]
    process = subprocess.Popen(evil)
    try:
        box.machine.add_stranger(0, 34 * GIB, process.pid)
        done = box.run("--dry-run", *MOMENT)
    finally:
        process.kill()
        process.wait()

    assert "\x1b" not in done.out
    assert "\x07" not in done.out
    assert "[red]" in done.out or "…" in done.out


def test_who_will_join_by_hand_cannot_be_seen_before(box: Box):
    done = box.run("--dry-run", "--listen", "127.0.0.1")

    assert (done.status, done.out) == (2, "")
    assert "leave out --listen" in done.err
