"""What runs teach their successors, and `smartsched shapes`, which shows it."""

import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from smartsched.cli.host import this_host
from smartsched.core.shapes import shape_of
from tests.cli.harness import MOMENT, PROGRAM, Box, Session, a_pipe
from tests.stub_nvml import GIB
from tests.waiting import wait_until

SECRET = "hunter2-of-mine"
ONE_GPU = (*MOMENT, "--gpus", "0")
PACKED = ("--jobs-per-gpu", "auto", "--job-util", "20%")


def trains(box: Box, name: str, *options: str, gib: int = 4) -> str:
    """For long enough to be seen at it several times."""
    use = ("--mem", str(gib * GIB), "--util", "20", "--seconds", "1.5")
    return box.training(name, *use, *options)


def shapes(box: Box, *options: str) -> list[dict[str, Any]]:
    done = box.run("shapes", "--json", *options)
    assert (done.status, done.err) == (0, "")
    told: list[dict[str, Any]] = json.loads(done.out)["shapes"]
    return told


def kept(box: Box) -> Path:
    return box.state / "shapes" / f"{this_host()}.json"


def keep(box: Box, *names: str, content: bytes | None = None) -> None:
    """As if so many shapes had been learned, each a minute after the other."""
    kept(box).parent.mkdir(0o700, parents=True)
    fields = {
        "runs": 1200,
        "peak_bytes": 3 * GIB // 2,
        "utilization_percent": None,
        "mean_seconds": 75.0,
        "longest_seconds": 7300.0,
    }
    at = {name: 1_700_000_000 + 60 * number for number, name in enumerate(names)}
    known = {name: fields | {"last_used": at[name]} for name in names}
    written = json.dumps({"smartsched_shapes": 1, "shapes": known}).encode()
    kept(box).write_bytes(written if content is None else content)


# --- what a run teaches


def test_runs_of_one_command_with_other_values_teach_about_one_shape(box: Box):
    began = time.time()
    first = trains(box, "first", "--lr", "0.1", gib=4)
    second = trains(box, "second", "--lr", "0.25", gib=6)

    assert box.run(*ONE_GPU, commands=[first]).status == 0
    assert [row["runs"] for row in shapes(box)] == [1]
    assert box.run(*ONE_GPU, commands=[second]).status == 0

    [row] = shapes(box)
    assert row["shape"] == shape_of(first) == shape_of(second)
    assert row["runs"] == 2
    assert row["peak_bytes"] == 6 * GIB
    assert row["utilization_percent"] == pytest.approx(20, abs=1)
    assert 1.5 <= row["mean_seconds"] <= row["longest_seconds"] < 60
    assert began - 1 <= row["last_used"] <= time.time() + 1


def test_no_value_of_a_command_is_written_and_nobody_else_may_read_what_is(box: Box):
    command = f"TOKEN={SECRET} {trains(box, 'x', '--api-key', SECRET)} # {SECRET}"

    assert box.run(*ONE_GPU, commands=[command]).status == 0

    assert "--api-key *" in shapes(box)[0]["shape"]
    folder = kept(box).parent
    for path in folder.iterdir():
        assert SECRET not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_job_that_fails_or_uses_no_gpu_teaches_nothing(box: Box):
    commands = [trains(box, "fails", "--exit", "3"), "sleep 1"]

    assert box.run(*MOMENT, "--gpus", "0,1", commands=commands).status == 1

    assert shapes(box) == []


def idler(box: Box, name: str, until: str = "never") -> str:
    """Its first run has the GPU for itself until it computes, which it never does: nothing but a
    run that has ended can teach what its siblings will use."""
    seconds = "1.5" if until == "never" else "600"
    use = ("--mem", str(4 * GIB), "--util", "0", "--seconds", seconds, "--until", until)
    return box.training(name, *use)


def idle_at_once(box: Box, session: Session, *names: str) -> None:
    wait_until(
        lambda: {name for name, *_ in box.trained()} >= set(names), "all are there", session.dump
    )
    (box.folder / "go").touch()
    assert session.end().status == 0


def test_what_one_run_has_learned_the_next_one_places_its_jobs_by(box: Box):
    assert box.run(*ONE_GPU, commands=[idler(box, "teacher")]).status == 0

    commands = [idler(box, name, until="go") for name in "ab"]
    session = box.start(*ONE_GPU, *PACKED, str(box.list_of(commands)))

    idle_at_once(box, session, "a", "b")


def test_a_run_that_is_resumed_knows_what_others_have_learned_meanwhile(box: Box):
    commands = ["touch began; until test -e go-on; do sleep 0.01; done"]
    commands += [idler(box, name, until="go") for name in "ab"]
    listing = str(box.list_of(commands))
    session = box.start(*ONE_GPU, *PACKED, "--name", "resumed", listing)
    wait_until((box.folder / "began").exists, "it runs", session.dump)
    session.crash()
    assert box.run(*MOMENT, "--gpus", "1", commands=[idler(box, "teacher")]).status == 0

    session = box.start("--resume", "resumed")
    session.says("job 1 still runs")
    (box.folder / "go-on").touch()

    idle_at_once(box, session, "a", "b")


def test_a_run_that_stops_its_jobs_keeps_what_the_others_taught(box: Box):
    commands = [trains(box, "teacher"), "sleep 600"]
    session = box.start(*ONE_GPU, str(box.list_of(commands)))
    session.says("job 2 started")

    session.signal(signal.SIGTERM)

    assert session.end().status == 130
    assert [row["runs"] for row in shapes(box)] == [1]


@pytest.mark.parametrize("source", ["--simulate", "--replay"])
def test_pretended_gpus_teach_nothing_and_are_taught_nothing(box: Box, source: str):
    keep(box, content=b"garbage")
    recording = box.folder / "day.jsonl"
    recording.write_text(box.run("sample", "--once").out)
    given = "2,seed=2" if source == "--simulate" else str(recording)

    done = box.run(*MOMENT, source, given, commands=["sleep 1"])

    assert done.status == 0
    assert "earlier runs" not in done.err
    assert kept(box).read_bytes() == b"garbage"


def test_a_damaged_file_is_one_line_and_the_run_goes_on_and_learns(box: Box):
    keep(box, content=b"garbage")

    done = box.run(*ONE_GPU, commands=[trains(box, "a")])

    assert done.status == 0
    assert done.err.count("what earlier runs used is not known") == 1
    assert [row["runs"] for row in shapes(box)] == [1]


def test_a_file_that_is_no_file_is_one_line_and_the_run_goes_on(box: Box):
    kept(box).mkdir(parents=True)

    done = box.run(*ONE_GPU, commands=[trains(box, "a")])

    assert done.status == 0
    assert done.err.count("what jobs use is not kept for later runs") == 1
    assert kept(box).is_dir()


# --- what the user sees of it


def test_what_is_known_is_told_with_what_was_used_last_at_the_top(box: Box):
    keep(box, "python old.py", "python train.py --lr *")

    done = box.run("shapes", TZ="UTC")

    assert (done.status, done.err) == (0, "")
    head, first, second, where = done.out.splitlines()
    assert head.split() == [
        "command", "shape", "runs", "peak", "memory", "util", "mean", "/", "longest",
        "last", "used",
    ]  # fmt: skip
    assert first.startswith("python train.py --lr *  ")
    assert first.split()[4:] == [
        "1,200", "1.5", "GiB", "-", "1m", "15s", "/", "2h", "01m", "2023-11-14", "22:14",
    ]  # fmt: skip
    assert second.startswith("python old.py  ")
    assert where == f"2 shapes, kept in {kept(box)}"


def test_all_numbers_are_told_to_programs(box: Box):
    keep(box, "a", "b *")

    done = box.run("shapes", "--json")

    told = json.loads(done.out)
    assert (told["smartsched_shapes"], told["file"]) == (1, str(kept(box)))
    assert told["shapes"][0] == {
        "shape": "b *",
        "runs": 1200,
        "peak_bytes": 3 * GIB // 2,
        "utilization_percent": None,
        "mean_seconds": 75.0,
        "longest_seconds": 7300.0,
        "last_used": 1_700_000_060,
    }
    assert [row["shape"] for row in told["shapes"]] == ["b *", "a"]


def test_a_long_shape_is_told_whole(box: Box):
    shape = "python train.py " + " ".join(["--option *"] * 25)
    keep(box, shape)

    assert shape in box.run("shapes").out


def test_where_nothing_was_learned_that_is_said_and_nothing_is_made(box: Box):
    done = box.run("shapes")

    assert (done.status, done.err) == (0, "")
    assert "nothing was learned yet" in done.out
    assert str(kept(box)) in done.out
    assert shapes(box) == []
    assert not box.state.exists()


def test_a_damaged_file_is_told_from_one_in_which_nothing_is(box: Box):
    keep(box, content=b"garbage")

    done = box.run("shapes")

    assert (done.status, done.out) == (0, "")
    assert len(done.err.splitlines()) == 1
    assert f"{kept(box)} is no JSON" in done.err


def test_another_state_folder_has_shapes_of_its_own(box: Box):
    keep(box, "a")
    (box.folder / "home").mkdir()
    box.state.rename(box.folder / "home" / "other")

    assert [row["shape"] for row in shapes(box, "--state", "home/other")] == ["a"]
    there = {"HOME": str(box.folder / "home")}
    assert "kept in" in box.run("shapes", "--state", "~/other", **there).out
    assert shapes(box) == []


# --- what is forgotten


def test_shapes_are_forgotten_one_by_one(box: Box):
    keep(box, "a --x *", "b", "c", "d")

    done = box.run("shapes", "--forget", "a --x 17", "b", "--forget", "c")

    assert (done.status, done.err) == (0, "")
    assert [row["shape"] for row in shapes(box)] == ["d"]


@pytest.mark.parametrize("options", [["--forget", "a", "b"], ["--forget-all"]])
def test_all_shapes_are_forgotten(box: Box, options: list[str]):
    keep(box, "a", "b")

    done = box.run("shapes", *options)

    assert (done.status, done.err) == (0, "")
    assert done.out == "nothing is left of what was learned\n"
    assert shapes(box, "--forget-all") == []


def test_a_shape_that_is_not_known_is_one_line(box: Box):
    keep(box, "a")

    done = box.run("shapes", "--forget", "a", "python \x1b[31m--lr")

    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "smartsched: --forget: nothing was learned of python \\x1b[31m--lr; `smartsched shapes`"
        " shows what is known\n"
    )
    assert [row["shape"] for row in shapes(box)] == ["a"]


@pytest.mark.parametrize(
    "options",
    [
        ["--forget"],
        ["--forget", "a", "--forget-all"],
        ["--forget-al"],
        ["--jso"],
        ["--state"],
        ["--state", ""],
        ["a"],
    ],
    ids=" ".join,
)
def test_options_that_cannot_be_meant_are_one_line(box: Box, options: list[str]):
    keep(box, "a")

    done = box.run("shapes", *options)

    assert (done.status, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("smartsched: ")
    assert [row["shape"] for row in shapes(box)] == ["a"]


def test_help_tells_of_it(box: Box):
    assert "smartsched shapes" in box.run("--help").out
    assert "--forget-all" in box.run("shapes", "--help").out


def test_a_reader_that_is_gone_is_no_error_worth_a_word(box: Box):
    keep(box, *(f"python {name}.py" for name in "abcdefgh"))
    with a_pipe() as (reading, writing):
        os.close(reading)
        process = subprocess.run(
            [*PROGRAM, "shapes"], env=box.env, stdout=writing, stderr=subprocess.PIPE, check=False
        )

    assert process.stderr == b""
