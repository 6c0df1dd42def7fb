"""What agents leave behind, and who forgets it."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smartsched.cli.hosting import forget_old, runs_of_agents
from smartsched.edges.runs import JOBS, RunFolder
from tests.cli.harness import Box

DAY_SECONDS = 86_400


@pytest.fixture
def leave(tmp_path: Path) -> Callable[..., RunFolder]:
    """The folder of an agent, of so many days ago."""

    def folder(name: str, days: float, *, record: bool = False, is_held: bool = False) -> RunFolder:
        new = runs_of_agents(tmp_path).create(name)
        new.publish()
        path = new.folder.path
        (path / "join").write_text("a key")
        jobs = new.folder.make_folder(JOBS)
        if record:
            (jobs / "0001").mkdir()
        if not is_held:
            new.folder.close()
        then = time.time() - days * DAY_SECONDS
        for each in (*path.iterdir(), path):
            os.utime(each, (then, then))
        return new.folder

    return folder


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "agents" / "runs").iterdir())


def test_what_nobody_came_back_to_is_forgotten(tmp_path: Path, leave: Callable[..., RunFolder]):
    for name, days in (("old", 31), ("late", 29)):
        leave(name, days)
    held = leave("held", 31, is_held=True)

    assert forget_old(runs_of_agents(tmp_path)) == 1

    assert left(tmp_path) == ["held", "late"]
    held.close()


def test_how_runs_ended_is_kept_for_whoever_goes_on_with_them_but_not_the_key(
    tmp_path: Path, leave: Callable[..., RunFolder]
):
    folder = leave("old", 31, record=True)

    assert forget_old(runs_of_agents(tmp_path)) == 0
    assert sorted(path.name for path in folder.path.iterdir()) == [JOBS, "lock"]


def test_agents_on_other_hosts_are_left_alone(tmp_path: Path, leave: Callable[..., RunFolder]):
    folder = leave("old", 31)
    (folder.path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": 0}))
    os.utime(folder.path / "lock", (0, 0))

    assert forget_old(runs_of_agents(tmp_path)) == 0
    assert left(tmp_path) == ["old"]


def test_who_tidies_up_forgets_them_too(box: Box):
    new = runs_of_agents(box.state).create("old")
    new.publish()
    new.folder.close()
    for each in (*new.folder.path.iterdir(), new.folder.path):
        os.utime(each, (0, 0))

    done = box.run("runs", "--prune", "1d")

    assert done.out == "forgot what 1 agent on this host left behind\n"
    assert not new.folder.path.exists()
