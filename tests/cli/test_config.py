"""`smartsched config`, and what is set for good, as users and administrators meet it."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from smartsched.config import SET_BY_US
from tests.cli.harness import MOMENT, Box

ETC = Path("/etc/smartsched")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The user's own file, which is not there yet."""
    path = tmp_path / "home/.config/smartsched/config.toml"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def administered(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """A command that goes before another, which then sees a folder of the test's as
    /etc/smartsched. Nobody else does."""
    inside = f'mount --bind {tmp_path}/etc {ETC} && exec "$@"'
    become = ("unshare", "-m", "sh", "-c", inside, "sh")
    if os.geteuid() != 0:
        pytest.skip("takes root to see another /etc")
    (tmp_path / "etc").mkdir()
    ETC.mkdir(exist_ok=True)
    if subprocess.run([*become, "true"], capture_output=True, check=False).returncode != 0:
        with suppress(OSError):
            ETC.rmdir()
        pytest.skip("mount namespaces cannot be made here")
    yield become
    with suppress(OSError):  # another worker may be at it, or it was there before
        ETC.rmdir()


def test_config_says_where_each_value_is_from(box: Box, mine: Path):
    mine.write_text('\nmax-mem = "20%"\nignore-user = ["bob"]\n')
    (box.folder / "smartsched.toml").write_text("retries = 2\n")

    done = box.run("config", "--json", "--max-gpus", "3", SMARTSCHED_POLITE="1")

    assert (done.status, done.err) == (0, "")
    options = json.loads(done.out)["options"]
    told = {key: (o["value"], o["source"], o["place"]) for key, o in options.items()}
    assert told["max-mem"] == ("20%", "file", f"{mine}:2")
    assert told["ignore-user"] == (["bob"], "file", f"{mine}:3")
    assert told["retries"] == ("2", "file", "./smartsched.toml:1")
    assert told["polite"] == (True, "environment", "SMARTSCHED_POLITE")
    assert told["max-gpus"] == ("3", "flag", None)
    assert told["grace"] == ("10s", "default", None)
    assert told["timeout"] == (None, "default", None)
    assert not {"dry-run", "resume", "files", "help"} & told.keys()


def test_what_config_says_is_such_a_file_itself(box: Box, mine: Path):
    mine.write_text('max-mem = "20%"\non-finish = "printf \'\\u001b\\u009b\\u007f\'"\n')
    first = box.run("config")
    mine.write_text(first.out)

    second = box.run("config")

    assert tomllib.loads(second.out) == tomllib.loads(first.out)
    assert f'max-mem = "20%"  # {mine}:1' in " ".join(first.out.split()).replace(" # ", "  # ")
    assert not {"\x1b", "\x7f", "\x9b"} & set(first.out)


def test_config_takes_options_and_nothing_else(box: Box):
    done = box.run("config", "list.txt")

    assert (done.status, done.out) == (2, "")
    assert done.err == "smartsched: smartsched config runs nothing: give it options only\n"


@pytest.mark.parametrize("words", [(), ("config",), ("--dry-run",)])
def test_a_wrong_setting_ends_in_one_line(box: Box, mine: Path, words: tuple[str, ...]):
    mine.write_text('max-mem = "20$"\n')

    done = box.run(*words, commands=["true"])

    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"smartsched: {mine}:1: --max-mem: '20$' is neither")
    assert len(done.err.splitlines()) == 1


def test_a_gpu_that_is_not_there_is_named_with_its_line(box: Box, mine: Path):
    """That is known only once the driver has answered."""
    mine.write_text("gpus = 7\n")

    done = box.run("--dry-run", commands=[])

    assert done.status == 2
    assert done.err.startswith(f"smartsched: {mine}:1: --gpus: ")


def test_state_is_found_by_all_verbs_where_it_is_set(box: Box, mine: Path):
    mine.write_text(f'state = "{box.folder}/elsewhere"\n')

    done = box.run("shapes")

    assert f"{box.folder}/elsewhere/shapes" in done.out


def test_jobs_and_commands_for_finished_ones_are_told_nothing_that_is_taken_for_an_option(
    box: Box,
):
    environment = "env | sed -n 's/^\\(SMARTSCHED_[^=]*\\)=.*/\\1/p' >> told.txt"
    before = {name for name in box.env if name.startswith("SMARTSCHED_")}

    done = box.run(
        *MOMENT, "--on-finish", environment, commands=[f"{environment} # smartsched: name=big"]
    )

    assert done.status == 0
    told = set(box.lines("told.txt"))
    assert {"SMARTSCHED_JOB", "SMARTSCHED_OUTCOME", "SMARTSCHED_NAME"} <= told
    assert told <= SET_BY_US | before


def test_a_job_may_run_smartsched(box: Box):
    inner = f"{sys.executable} -m smartsched config --json > inner.json"

    done = box.run(*MOMENT, commands=[f"{inner} # smartsched: name=big"])

    assert done.status == 0
    options = json.loads((box.folder / "inner.json").read_text())["options"]
    assert {key for key, told in options.items() if told["source"] != "default"} == {"claims"}


def test_what_the_administrator_allows_is_said_when_it_bites(
    box: Box, tmp_path: Path, administered: tuple[str, ...]
):
    (tmp_path / "etc/config.toml").write_text(
        'max-mem = "30%"\n[limits]\nmax-gpus = 2\nleave-free = 1\n'
    )

    done = box.start("--dry-run", "--json", "--max-gpus", "3", become=administered).end()
    within = box.start(
        "--dry-run", "--json", "--max-gpus=1", "--leave-free=2", become=administered
    ).end()

    survey = json.loads(done.out)
    assert survey["notes"] == [
        "the administrator of this box wants at most --max-gpus 2 (/etc/smartsched/config.toml:3)"
        " and at least --leave-free 1 (/etc/smartsched/config.toml:4)"
    ]
    assert json.loads(within.out)["notes"] == []


def test_limits_hold_for_a_run_that_is_resumed(
    box: Box, tmp_path: Path, administered: tuple[str, ...]
):
    one_by_one = (*MOMENT, "--jobs", "1", "--max-gpus", "3", "--halt", "soon,fail=1")
    assert box.run(*one_by_one, commands=["false", "true"]).status == 1
    (tmp_path / "etc/config.toml").write_text("[limits]\nmax-gpus = 1\n")

    resumed = box.start("--resume", become=administered).end()

    assert "wants at most --max-gpus 1 (/etc/smartsched/config.toml:2)" in resumed.err
