"""The file of what was seen of the GPUs."""

import os
import resource
import signal
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from smartsched.core.decide import Decision
from smartsched.core.history import History, read_history
from smartsched.core.model import Wait
from smartsched.edges.history import HISTORY, HistoryFile
from smartsched.edges.runs import open_own_file
from tests.builders import (
    T0,
    a_process,
    a_sample,
    a_snapshot,
    a_state,
    see,
    used_by,
)


class Watcher:
    """A run's folder, and a history that is kept there of one GPU."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / HISTORY
        self.lost: list[str] = []
        self.now = T0
        self._fd = os.open(folder, os.O_RDONLY)

    def file(self, **options: int) -> HistoryFile:
        opener = partial(open_own_file, self._fd)
        return HistoryFile(self._fd, opener, lambda: self.now, self.lost.append, **options)

    def watch(self, file: HistoryFile, seconds: int, *, busy_every: int = 2) -> None:
        """A second at a time; the GPU is busy in turns."""
        for _ in range(seconds):
            self.now += 1
            busy = busy_every and int(self.now) % busy_every == 0
            state = a_state(used_by(a_process(gib=30)) if busy else a_sample(), at=self.now)
            see(state, a_snapshot(*[w.latest for w in state.gpus.values()], at=self.now))
            file.decided(Decision(waiting=Wait("GPU 0: x") if busy else None), state, self.now)

    def read(self) -> History:
        with self.path.open("rb") as lines:
            return read_history(lines)

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    watcher = Watcher(tmp_path)
    yield watcher
    watcher.close()


def test_what_is_seen_can_be_read_while_it_is_kept_and_by_nobody_else(watcher: Watcher):
    file = watcher.file()
    watcher.watch(file, 20)

    uses = {seen.use for seen in watcher.read().seen}

    assert uses == {"strangers", "idle"}
    assert stat.S_IMODE(watcher.path.stat().st_mode) == 0o600
    file.close()
    assert watcher.read().until == watcher.now


def test_another_dispatcher_goes_on_behind_a_line_that_a_crash_has_torn(watcher: Watcher):
    file = watcher.file()
    watcher.watch(file, 20)
    with watcher.path.open("ab") as torn:
        torn.write(b"[10000")
    before = len(watcher.read().seen)

    file = watcher.file()
    watcher.watch(file, 20)
    file.close()

    assert len(watcher.read().seen) >= 2 * before
    assert watcher.lost == []


def test_however_long_a_run_lasts_the_file_stays_small(watcher: Watcher):
    file = watcher.file(largest_bytes=20_000)

    watcher.watch(file, 3000)
    file.close()

    history = watcher.read()
    assert watcher.path.stat().st_size < 20_000
    assert sum(seen.until - seen.at for seen in history.seen) == pytest.approx(3000, abs=300)
    assert stat.S_IMODE(watcher.path.stat().st_mode) == 0o600
    assert [path.name for path in watcher.path.parent.glob("history*")] == [HISTORY]


def test_the_next_dispatcher_keeps_to_the_resolution_that_was_reached(watcher: Watcher):
    file = watcher.file(largest_bytes=4_000)
    watcher.watch(file, 1000)
    file.close()
    lines = len(watcher.path.read_bytes().splitlines())

    file = watcher.file(largest_bytes=4_000)
    watcher.watch(file, 60, busy_every=0)
    file.close()

    assert len(watcher.path.read_bytes().splitlines()) < lines + 12


def test_where_it_cannot_be_written_the_run_is_told_once_and_goes_on(watcher: Watcher):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    caught = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        file = watcher.file()
        watcher.watch(file, 300)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, caught)
    watcher.watch(file, 100)
    file.close()

    assert watcher.lost == ["File too large"]
    assert sum(seen.until - seen.at for seen in watcher.read().seen) == pytest.approx(400, abs=9)


def test_a_link_in_its_place_is_not_followed(watcher: Watcher, tmp_path: Path):
    target = tmp_path / "precious"
    target.write_text("mine")
    watcher.path.symlink_to(target)

    file = watcher.file()
    watcher.watch(file, 20)
    file.close()

    assert len(watcher.lost) == 1
    assert target.read_text() == "mine"
