"""What one command asks for itself (`# smartsched: ...`), and how many GPUs it is given."""

import os
import time

import pytest

from tests.cli.harness import MOMENT, Box, a_pipe
from tests.waiting import wait_until

RAW = (*MOMENT, "--output", "raw")
WAIT = "until test -e go; do sleep 0.01; done"


def started(box: Box) -> list[int]:
    """The jobs, in the order in which they were started."""
    return [record["run"][0] for record in box.events("run_placed")]


# --- several GPUs


def test_a_job_of_two_gpus_sees_both_in_their_order(box: Box):
    box.machine.set(0, used_bytes=1 << 30)  # the emptiest come first, but are told in order
    show = "echo $CUDA_VISIBLE_DEVICES $SMARTSCHED_GPUS $SMARTSCHED_GPU_UUIDS"

    done = box.run(*RAW, "--gpus", "0,3", "-n", "2", commands=[show])

    both = ",".join(box.machine.gpu(index).uuid for index in (0, 3))
    assert done.out == f"0,3 0,3 {both}\n"
    assert "job 1 started on GPU 0,3: " in done.err


def test_one_command_may_ask_for_more_gpus_than_the_others(box: Box):
    show = "echo $SMARTSCHED_JOB $CUDA_VISIBLE_DEVICES"

    done = box.run(*RAW, "--gpus", "1,2", commands=[show, f"{show}  # smartsched: gpus=2", show])

    assert done.status == 0
    lines = dict(line.split() for line in done.out.splitlines())
    assert lines["2"] == "1,2"
    assert {lines["1"], lines["3"]} <= {"1", "2"}


def test_a_job_of_two_gpus_is_not_starved_by_a_long_list_of_small_ones(box: Box):
    small = [f"sleep 0.{1 + n % 3}" for n in range(12)]
    big = "true  # smartsched: gpus=2"

    done = box.run(*MOMENT, "--gpus", "0,1", commands=[*small[:2], big, *small[2:]])

    assert done.status == 0
    assert started(box)[:3] == [1, 2, 3]


def test_a_job_without_a_gpu_starts_at_once_though_none_is_free(box: Box):
    for index in range(4):
        box.machine.set(index, used_bytes=40 << 30)
    show = "echo [$CUDA_VISIBLE_DEVICES] [$SMARTSCHED_GPUS]  # smartsched: gpus=0"
    commands = ["echo needs one", show]

    session = box.start(*RAW, str(box.list_of(commands)))

    session.says("[] []")
    session.says("job 2 ok after")
    session.says("without a GPU")
    assert session.process.poll() is None
    for index in range(4):
        box.machine.set(index, used_bytes=0)
    assert session.end().status == 0


def test_jobs_without_a_gpu_keep_within_the_limit_of_jobs(box: Box):
    command = "echo + >> there; sleep 0.2; echo - >> there"

    done = box.run(*MOMENT, "-n", "0", "-j", "2", commands=[command] * 6)

    assert done.status == 0
    assert most_at_once(box.lines("there")) == 2


def most_at_once(lines: list[str]) -> int:
    now = most = 0
    for line in lines:
        now += 1 if line == "+" else -1
        most = max(most, now)
    return most


def test_a_job_that_no_gpus_will_ever_do_for_fails_at_once_and_the_others_run(box: Box):
    commands = [WAIT, "true  # smartsched: gpus=5", "touch go"]

    done = box.run(*MOMENT, commands=commands)

    assert done.status == 1
    assert "2 jobs ok, 1 failed" in done.err
    assert "it needs 5 GPUs, and there are 4 to choose from" in done.err
    failed = next(line for line in done.err.splitlines() if "it needs 5 GPUs" in line)
    assert "job 2 failed" in failed


def test_a_job_that_is_larger_than_the_largest_gpu_fails_at_once(box: Box):
    commands = ["true  # smartsched: mem=81GiB", "true"]

    done = box.run(*MOMENT, commands=commands)

    assert done.status == 1
    assert "it needs 81 GiB on a GPU, and the largest has 80 GiB" in done.err


def test_dry_run_tells_what_could_never_run(box: Box):
    done = box.run("--dry-run", *MOMENT, commands=["true  # smartsched: gpus=5", "true"])

    assert done.status == 0
    assert "it needs 5 GPUs, and there are 4 to choose from" in done.out


# --- what cannot be meant


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("gpu=2", "'gpu' cannot be asked for: there are gpus, mem, util, priority, timeout, name"),
        ("gpus=two", "gpus: 'two'"),
        ("mem=24GB8", "mem: '24GB8'"),
        ("priority=high", "priority: 'high'"),
        ("timeout=", "timeout has no value"),
        ("", "asks for nothing"),
    ],
)
def test_a_wish_that_cannot_be_meant_is_told_by_its_line_before_anything_runs(
    box: Box, wrong: str, why: str
):
    listing = box.list_of(["touch ran", "# a comment", f"true  # smartsched: {wrong}"])

    done = box.start(*MOMENT, str(listing)).end()

    assert done.status == 2
    [line] = done.err.splitlines()
    assert f"{listing}:3: # smartsched: {why}" in line
    assert not (box.folder / "ran").exists()
    assert not list(box.state.glob("runs/*"))
    assert box.is_quiet()


def test_a_wish_that_cannot_be_meant_fails_a_dry_run_as_well(box: Box):
    done = box.run("--dry-run", *MOMENT, commands=["true", "true  # smartsched: gpu=2"])

    assert done.status == 2
    assert "stdin:2: # smartsched: 'gpu' cannot be asked for" in done.err


def test_a_wish_that_cannot_be_meant_leaves_out_its_line_of_a_live_pipe(box: Box):
    with a_pipe() as (reading, writing):
        session = box.start(*RAW, stdin=reading)
        os.close(reading)
        os.write(writing, b"echo first\n")
        session.says("first")
        os.write(writing, b"echo wrong # smartsched: gpu=2\necho last\n")
        session.says("last")
        os.close(writing)

        done = session.end()

    assert done.status == 1
    assert "stdin:2: # smartsched: 'gpu' cannot be asked for" in done.err
    assert "this line is left out" in done.err
    assert "wrong" not in done.out
    assert "2 jobs ok, 0 failed, 1 line left out" in done.err


def test_only_a_comment_of_the_shell_s_is_a_wish(box: Box):
    commands = [
        "echo '# smartsched: gpu=2'",
        "echo a#smartsched: gpu=2",
        'echo "${X# smartsched: gpu=2}"',
        "echo b  # not smartsched: gpu=2",
    ]

    assert box.run(*MOMENT, commands=commands).status == 0


# --- going on


def test_a_list_whose_wishes_were_edited_runs_nothing_twice(box: Box):
    mark = "echo $SMARTSCHED_JOB >> did"
    commands = [mark, f"{mark}; exit 3  # smartsched: gpus=1", f"{mark}; {WAIT}", mark]
    session = box.start(
        *MOMENT, "--gpus", "0", "--no-guard", "--name", "mine", str(box.list_of(commands))
    )
    session.says("job 3 started")
    session.crash()
    edited = [
        f"{mark}  # smartsched: priority=2",
        f"{mark}; exit 3",
        f"{mark}; {WAIT} # smartsched: gpus=2 name=slow",
        f"{mark} # smartsched: priority=9",
    ]

    session = box.start("--resume", "mine", str(box.list_of(edited)))
    session.says("job 3 still runs")
    (box.folder / "go").touch()

    assert session.end().status == 1
    assert sorted(box.lines("did")) == ["1", "2", "3", "4"]


def test_a_new_list_with_a_bad_wish_leaves_the_run_as_it_was(box: Box):
    listing = str(box.list_of(["true", WAIT]))
    session = box.start(*MOMENT, "--gpus", "0", "--name", "mine", listing)
    session.says("job 2 started")
    session.crash()

    refused = box.run("--resume", "mine", str(box.list_of(["true", f"{WAIT} # smartsched: gpu=2"])))
    (box.folder / "go").touch()
    resumed = box.run("--resume", "mine")

    assert refused.status == 2
    assert ":2: # smartsched: 'gpu' cannot be asked for" in refused.err
    assert resumed.status == 0, resumed.err
    assert "2 jobs ok, 0 failed" in resumed.err


# --- priority, timeout, name


def test_larger_priorities_go_first_wherever_they_stand_in_the_list(box: Box):
    commands = [
        "true",
        *["true"] * 100,  # more than are read ahead of an ordinary list
        "true  # smartsched: priority=1",
        "true  # smartsched: priority=-1",
        "true  # smartsched: priority=7",
    ]

    done = box.run(*MOMENT, "-n", "0", "-j", "1", "-q", commands=commands)

    assert done.status == 0
    order = started(box)
    assert order[:2] == [104, 102]
    assert order[2:-1] == list(range(1, 102))
    assert order[-1] == 103


def test_one_command_may_have_a_time_limit_of_its_own(box: Box):
    commands = ["sleep 600  # smartsched: timeout=300ms", "sleep 0.6"]
    began = time.monotonic()

    done = box.run(*MOMENT, commands=commands)

    assert done.status == 1
    assert "job 1 has run for 0.3s; stopping it" in done.err
    assert "1 job ok, 1 failed" in done.err
    assert time.monotonic() - began < 30


def test_a_name_is_told_wherever_the_job_is(box: Box):
    show = 'echo "I am $SMARTSCHED_NAME, $SMARTSCHED_JOB"'
    commands = [
        f"{show}  # smartsched: name=big",
        f"{show}; exit 4  # smartsched: name=lr=0.1/wd",
        'echo "[${SMARTSCHED_NAME-none}]"',
    ]

    done = box.run(
        *MOMENT, "--gpus", "0", "--output", "tag", "--json-log", "log.jsonl",
        "--on-finish", 'echo "$SMARTSCHED_JOB=$SMARTSCHED_NAME" >> told', commands=commands,
        SMARTSCHED_NAME="of-a-job-we-run-in",
    )  # fmt: skip

    assert done.status == 1
    assert done.out.splitlines() == [
        "[1 big gpu 0] I am big, 1",
        "[2 lr=0.1/wd gpu 0] I am lr=0.1/wd, 2",
        "[3 gpu 0] [none]",
    ]
    assert "job 1 (big) started on GPU 0" in done.err
    assert "job 1 (big) ok after" in done.err
    assert done.err.count("job 2 (lr=0.1/wd) failed: exit status 4") == 2  # and in the summary
    assert "job 3 started on" in done.err
    assert sorted(box.lines("told")) == ["1=big", "2=lr=0.1/wd", "3="]
    assert '"name":"big"' in (box.folder / "log.jsonl").read_text()


def test_the_output_of_a_job_without_a_gpu_says_so(box: Box):
    done = box.run(*MOMENT, "--output", "tag", "-n", "0", commands=["echo here"])

    assert done.out == "[1 no gpu] here\n"


def test_a_name_is_known_after_a_crash(box: Box):
    session = box.start(*MOMENT, str(box.list_of([f"{WAIT}  # smartsched: name=big"])))
    session.says("job 1 (big) started")
    session.crash()
    (box.folder / "go").touch()

    done = box.run("--resume")

    assert done.status == 0
    assert "job 1 (big) ok after" in done.err


# --- caps


def test_no_more_gpus_are_used_than_allowed(box: Box):
    command = "echo $CUDA_VISIBLE_DEVICES; sleep 0.2"

    done = box.run(*RAW, "--max-gpus", "2", commands=[command] * 6)

    assert done.status == 0
    assert len(set(done.out.split())) == 2


def test_no_more_jobs_run_than_allowed(box: Box):
    command = "echo + >> there; sleep 0.2; echo - >> there"

    done = box.run(*MOMENT, "-j", "3", commands=[command] * 7)

    assert done.status == 0
    assert most_at_once(box.lines("there")) == 3


def test_the_last_free_gpus_are_left_to_others(box: Box):
    box.machine.set(3, used_bytes=40 << 30)  # one that others have is none of them
    command = "echo + >> there; sleep 0.2; echo - >> there"

    done = box.run(*MOMENT, "--leave-free", "1", commands=[command] * 5)

    assert done.status == 0
    assert most_at_once(box.lines("there")) == 2


@pytest.mark.parametrize(
    ("order", "gpus"),
    [("3,1", "3 1 2 0"), ("last", "3 2 1 0"), ("first", "0 1 2 3"), ("fullest", "0 2 1 3")],
)
def test_gpus_are_taken_in_the_preferred_order(box: Box, order: str, gpus: str):
    for index, gib in enumerate([6, 2, 4, 0]):
        box.machine.set(index, used_bytes=gib << 30)

    done = box.run(*MOMENT, "--prefer", order, commands=[WAIT] * 3 + [f"touch go; {WAIT}"])

    placed = [record["placement"][0]["label"] for record in box.events("run_placed")]
    assert done.status == 0
    assert placed == gpus.split()


def test_jobs_run_at_the_niceness_asked_for_and_say_how_they_ended(box: Box):
    here = os.nice(0)

    done = box.run(*RAW, "--nice", "7", commands=["nice", "nice; exit 5"])

    assert done.out.split() == [str(min(here + 7, 19))] * 2
    assert done.status == 1
    assert "exit status 5" in done.err


def test_the_ending_of_a_nice_job_is_known_though_its_dispatcher_died(box: Box):
    session = box.start(*MOMENT, "--nice", "5", str(box.list_of([f"{WAIT}; exit 6"])))
    session.says("job 1 started")
    session.crash()
    (box.folder / "go").touch()
    wait_until(lambda: "exit" in record_of(box), "it has ended", session.dump)

    done = box.run("--resume")

    assert done.status == 1
    assert "exit status 6" in done.err


def record_of(box: Box) -> str:
    """Empty as long as there is none."""
    return "".join(record.read_text() for record in box.run_folder().glob("jobs/*"))
