"""What is on disk of a run is read, whoever may be writing it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from smartsched.core.events import Event, RunBegan
from smartsched.core.records import encode
from smartsched.edges.past import PastRun
from smartsched.edges.runs import open_own_file
from smartsched.errors import JournalDamagedError, StateError
from tests.builders import HOST, T0, accepted

EVENTS: list[Event] = [RunBegan(T0, "sweep", HOST, "/", (), None, "{}"), *accepted(2)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[PastRun]:
    run = PastRun(tmp_path, open_own_file)
    yield run
    run.close()


def lines() -> list[bytes]:
    return [encode(event, seq) for seq, event in enumerate(EVENTS, start=1)]


def test_all_whole_records_are_read_and_the_journal_stays_as_it_is(run: PastRun, tmp_path: Path):
    content = b"".join(lines()) + b'{"seq":4,"torn'
    (tmp_path / "journal").write_bytes(content)

    assert list(run.events("journal")) == EVENTS

    assert (tmp_path / "journal").read_bytes() == content


def test_damage_is_told_with_its_line(run: PastRun, tmp_path: Path):
    first, second, third = lines()
    (tmp_path / "journal").write_bytes(first + second.replace(b"echo", b"rm -") + third)

    with pytest.raises(JournalDamagedError, match="journal is damaged in line 2: its checksum"):
        list(run.events("journal"))


def test_a_journal_that_is_not_there_or_is_a_link_is_one_line(run: PastRun, tmp_path: Path):
    (tmp_path / "real").write_bytes(b"".join(lines()))
    (tmp_path / "link").symlink_to(tmp_path / "real")

    for name in ("missing", "link"):
        with pytest.raises(StateError, match=f"cannot read .*{name}"):
            list(run.events(name))


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(StateError, match=r"cannot read .*nowhere: No such file"):
        PastRun(tmp_path / "nowhere", open_own_file)


def test_a_run_without_a_history_has_an_empty_one(run: PastRun):
    assert run.history("history").seen == []


def test_who_says_that_he_holds_it_here_has_to_live(run: PastRun, tmp_path: Path):
    def held_by(content: object) -> bool:
        (tmp_path / "lock").write_text(json.dumps(content) if content != "" else "")
        return run.is_held_here("lock", "here")

    assert not run.is_held_here("lock", "here")
    assert held_by({"host": "here", "pid": os.getpid()})
    assert not held_by({"host": "there", "pid": os.getpid()})
    assert not held_by({"host": "here", "pid": 2**22 + 1})
    assert not held_by("")
    assert not held_by([])
