"""The journal on disk: cut, damaged, full and long."""

import errno
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from smartsched.core.events import Event, JobAccepted, RunBegan, RunClosed
from smartsched.core.model import HostName, JobId, JobSpec
from smartsched.core.records import encode, name_of
from smartsched.edges.beside import Beside
from smartsched.edges.journal import FileJournal
from smartsched.edges.runs import JOURNAL, Runs
from smartsched.errors import JournalDamagedError, StateError
from tests.builders import HOST, T0, accepted, exited, launched, placed
from tests.waiting import wait_until

BEGAN = RunBegan(T0, "test", HOST, "/somewhere", ("list",), None, "{}")
HISTORY: list[Event] = [BEGAN, *accepted(2), placed(), launched(), exited()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def opened(path: Path) -> FileJournal:
    journal = FileJournal(lambda flags: os.open(path, flags, 0o600), str(path))
    journal.sync_by(Beside)
    return journal


def read(path: Path) -> list[Event]:
    journal = opened(path)
    try:
        return list(journal.replay())
    finally:
        journal.close()


def written(path: Path, *batches: list[Event]) -> bytes:
    """What these batches come to on disk."""
    journal = opened(path)
    for batch in batches:
        assert journal.write(batch) is None
    journal.close()
    return path.read_bytes()


def put(path: Path, data: bytes) -> None:
    """As a new file: to write over an old one makes some filesystems wait for the disk."""
    path.unlink()
    path.write_bytes(data)


def many(first: int, count: int) -> list[Event]:
    return [
        JobAccepted(T0, JobId(job), JobSpec(f"echo {job} " + "x" * 200, f"list:{job}", "/"))
        for job in range(first, first + count)
    ]


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """As a full disk: what goes beyond is refused. Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mounting, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Until there is no room for anything else."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_what_was_written_is_read_back_in_its_order(path: Path):
    written(path, HISTORY[:1], HISTORY[1:4], [], HISTORY[4:])

    journal = opened(path)
    assert list(journal.replay()) == HISTORY
    assert (journal.seq, journal.cut_off_bytes) == (len(HISTORY), 0)
    journal.close()


def test_lines_are_numbered_without_a_gap_over_several_dispatchers(path: Path):
    written(path, HISTORY[:2])
    journal = opened(path)
    assert len(list(journal.replay())) == 2

    assert journal.write(HISTORY[2:]) is None
    journal.close()

    assert path.read_bytes() == b"".join(encode(e, n) for n, e in enumerate(HISTORY, 1))
    assert read(path) == HISTORY


def test_a_record_is_on_disk_when_write_returns(path: Path):
    journal = opened(path)

    journal.write(HISTORY[:2])

    assert path.read_bytes().count(b"\n") == 2
    journal.write(HISTORY[2:3])
    assert path.read_bytes().count(b"\n") == 3
    journal.close()


def test_what_a_disk_has_refused_once_is_given_to_it_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Some find out that there is no room when all is written, and forget what they had."""
    journal = opened(path)
    journal.write(HISTORY[:2])
    kept = path.stat().st_size

    def fail(fd: int) -> None:
        os.pwrite(fd, bytes(os.fstat(fd).st_size - kept), kept)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", fail)
    assert journal.write(HISTORY[2:4], durable=False) is None
    assert "No space left" in (journal.write(HISTORY[4:5]) or "")
    assert "No space left" in (journal.write(HISTORY[4:5]) or "")
    monkeypatch.undo()

    assert journal.write(HISTORY[4:]) is None

    journal.close()
    assert read(path) == HISTORY


class SlowDisk:
    """fdatasync ends when it is let, as often as it is let, and fails if it is told so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let = threading.Semaphore(0)
        self.begun = self.done = 0
        self.fails = False
        self._sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, fd: int) -> None:
        self.begun += 1
        assert self.let.acquire(timeout=60)
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync(fd)
        self.done += 1


def when_synced(journal: FileJournal) -> str:
    said: list[str] = []

    def is_told() -> bool:
        if (why_not := journal.synced()) is not None:
            said.append(why_not)
        return bool(said)

    wait_until(is_told)
    assert journal.synced() is None  # it is told once
    return said[0]


def test_records_are_written_while_a_slow_disk_is_at_work(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal, disk = opened(path), SlowDisk(monkeypatch)
    journal.write(HISTORY[:2], durable=False)

    journal.begin_sync()
    assert journal.synced() is None
    assert journal.write(HISTORY[2:], durable=False) is None
    assert disk.done == 0
    disk.let.release()

    assert when_synced(journal) == ""
    assert disk.done == 1
    journal.close()
    assert read(path) == HISTORY


def test_what_is_to_be_durable_at_once_waits_for_what_was_begun(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal, disk = opened(path), SlowDisk(monkeypatch)
    journal.write(HISTORY[:2], durable=False)
    journal.begin_sync()
    disk.let.release(2)

    assert journal.write(HISTORY[2:]) is None

    assert disk.done == 2
    assert journal.synced() is None
    journal.close()


@pytest.mark.parametrize("somebody_waits", [True, False])
def test_what_could_not_be_made_durable_meanwhile_is_given_to_the_disk_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, somebody_waits: bool
):
    journal, disk = opened(path), SlowDisk(monkeypatch)
    disk.let.release(2)
    journal.write(HISTORY[:2])
    kept = path.stat().st_size
    journal.write(HISTORY[2:4], durable=False)
    disk.fails = True
    journal.begin_sync()
    assert os.strerror(errno.EIO) in when_synced(journal)
    with path.open("r+b") as file:  # as the system may: it takes them for written
        file.seek(kept)
        file.write(bytes(path.stat().st_size - kept))
    disk.fails = False
    disk.let.release()

    if somebody_waits:
        assert journal.write(HISTORY[4:]) is None
    else:
        assert journal.write(HISTORY[4:], durable=False) is None
        journal.begin_sync()
        assert when_synced(journal) == ""

    journal.close()
    assert read(path) == HISTORY


def test_what_the_disk_has_kept_is_not_written_again_and_what_came_since_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal, disk = opened(path), SlowDisk(monkeypatch)
    disk.let.release(2)
    journal.write(HISTORY[:2])
    journal.write(HISTORY[2:4], durable=False)
    journal.begin_sync()
    journal.write(HISTORY[4:], durable=False)
    assert when_synced(journal) == ""
    disk.fails = True
    disk.let.release()
    assert journal.write([]) is not None
    kept = len(b"".join(encode(event, n) for n, event in enumerate(HISTORY[:4], start=1)))
    with path.open("r+b") as file:  # the system has dropped it
        file.seek(kept)
        file.write(bytes(path.stat().st_size - kept))
    disk.fails = False
    disk.let.release()
    written: list[int] = []
    pwrite = os.pwrite

    def noting(fd: int, data: bytes, at: int) -> int:
        written.append(at)
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", noting)

    assert journal.write([]) is None

    assert written == [kept]
    journal.close()
    assert read(path) == HISTORY


def test_that_it_is_gone_is_noticed_when_it_is_to_be_made_durable(path: Path):
    journal = opened(path)
    journal.write(HISTORY[:2])
    path.unlink()

    assert journal.write(HISTORY[2:], durable=False) is None
    journal.begin_sync()

    with pytest.raises(StateError, match="is gone"):
        wait_until(lambda: journal.synced() is not None)
    journal.close()


def test_nothing_is_closed_under_a_disk_at_work(path: Path, monkeypatch: pytest.MonkeyPatch):
    journal, disk = opened(path), SlowDisk(monkeypatch)
    journal.write(HISTORY, durable=False)
    journal.begin_sync()
    threading.Timer(0.1, disk.let.release).start()

    journal.close()

    assert disk.done == 1


def test_writing_nothing_changes_nothing(path: Path):
    before = written(path, HISTORY)
    journal = opened(path)
    list(journal.replay())

    assert journal.write([]) is None

    journal.close()
    assert path.read_bytes() == before


def test_what_is_behind_a_mark_is_read_alone(path: Path):
    journal = opened(path)
    marks = [journal.mark]
    for event in HISTORY:
        assert journal.write([event]) is None
        marks.append(journal.mark)

    for records, mark in enumerate(marks):
        assert journal.has_come_by(mark)
        assert list(journal.replay(after=mark)) == HISTORY[records:]
        assert journal.mark == marks[-1]
    journal.close()


def test_a_mark_of_another_journal_or_of_more_of_it_is_told(path: Path, tmp_path: Path):
    written(path, HISTORY)
    journal, longer = opened(path), opened(tmp_path / "longer")
    other = opened(tmp_path / "other")
    longer.write([*HISTORY, *many(3, 1)])
    other.write([BEGAN, *many(1, 5)])

    assert not journal.has_come_by(longer.mark)
    assert not journal.has_come_by(other.mark)
    for each in (journal, longer, other):
        each.close()


def test_of_some_kinds_only_those_are_read(path: Path):
    written(path, HISTORY)
    journal = opened(path)

    only = list(journal.replay(only={name_of(JobAccepted)}))

    assert only == [event for event in HISTORY if isinstance(event, JobAccepted)]
    assert journal.seq == len(HISTORY)
    journal.close()


def test_that_something_was_cut_off_is_still_known_when_it_is_read_again(path: Path):
    path.write_bytes(written(path, HISTORY) + b"torn")
    journal = opened(path)
    for _ in range(2):
        list(journal.replay())

    assert journal.cut_off_bytes == 4
    journal.close()


def test_the_past_can_be_read_again_while_it_is_being_added_to(path: Path):
    journal = opened(path)
    journal.write(HISTORY[:3])

    assert list(journal.replay()) == HISTORY[:3]
    assert journal.write(HISTORY[3:]) is None
    assert list(journal.replay()) == HISTORY

    journal.close()
    assert read(path) == HISTORY


def test_a_journal_cut_at_any_byte_holds_its_whole_records_and_goes_on(path: Path):
    data = written(path, HISTORY)
    ends = [at + 1 for at, byte in enumerate(data) if byte == 0x0A]

    for size in range(ends[0], len(data) + 1):
        put(path, data[:size])
        whole = sum(end <= size for end in ends)
        journal = opened(path)

        assert list(journal.replay()) == HISTORY[:whole], size
        assert journal.cut_off_bytes == size - max(end for end in ends if end <= size)
        assert journal.write(HISTORY[whole:], durable=False) is None
        journal.close()
        assert path.read_bytes() == data


def test_a_journal_without_one_whole_record_is_damaged(path: Path):
    data = written(path, HISTORY)

    for size in range(data.index(b"\n") + 1):
        put(path, data[:size])
        with pytest.raises(JournalDamagedError, match=r"events\.jsonl"):
            read(path)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_a_flipped_byte_anywhere_is_never_believed(path: Path, mask: int):
    data = written(path, HISTORY)

    for at in range(len(data) - 1):
        put(path, data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
        line = data[:at].count(b"\n") + 1
        with pytest.raises(JournalDamagedError, match=rf"events\.jsonl.* line {line}\b"):
            read(path)


def test_a_record_without_its_end_is_one_that_was_being_written(path: Path):
    data = written(path, HISTORY)
    path.write_bytes(data[:-1] + b"\x0b")
    journal = opened(path)

    assert list(journal.replay()) == HISTORY[:-1]

    assert journal.cut_off_bytes == len(data) - data.rindex(b"\n", 0, -1) - 1
    journal.close()
    assert data.startswith(path.read_bytes())


def test_a_byte_turned_into_a_line_s_end_is_never_believed(path: Path):
    data = written(path, HISTORY)

    for at in range(0, len(data) - 1, 7):
        put(path, data[:at] + b"\n" + data[at + 1 :])
        if data[at : at + 1] != b"\n":
            with pytest.raises(JournalDamagedError):
                read(path)


@pytest.mark.parametrize("garbage", [b"\0" * 4096, b"garbage", b"{", b"\xff", b'{"seq":7'])
def test_what_a_crash_left_behind_the_last_record_is_cut_off(path: Path, garbage: bytes):
    data = written(path, HISTORY)
    path.write_bytes(data + garbage)
    journal = opened(path)

    assert list(journal.replay()) == HISTORY
    assert journal.cut_off_bytes == len(garbage)

    journal.close()
    assert path.read_bytes() == data


@pytest.mark.parametrize("garbage", [b"garbage\n", b"\n", b"{}\n", b"\0\n", b"\0" * 9 + b"\n{"])
def test_a_whole_line_that_is_no_record_is_damage(path: Path, garbage: bytes):
    path.write_bytes(written(path, HISTORY) + garbage)

    with pytest.raises(JournalDamagedError, match=f"line {len(HISTORY) + 1}"):
        read(path)


def test_a_damaged_journal_is_left_as_it_is(path: Path):
    damaged = written(path, HISTORY) + b"garbage\ntorn"
    path.write_bytes(damaged)

    with pytest.raises(JournalDamagedError):
        read(path)

    assert path.read_bytes() == damaged


@pytest.mark.parametrize("lines", [[0, 2], [0, 1, 1], [1, 2], [0, 2, 1], [0, 0]])
def test_lines_that_are_missing_doubled_or_moved_are_damage(path: Path, lines: list[int]):
    whole = written(path, HISTORY).splitlines(keepends=True)
    path.write_bytes(b"".join(whole[line] for line in lines))

    with pytest.raises(JournalDamagedError):
        read(path)


def test_of_another_run_s_journal_no_line_fits(path: Path, tmp_path: Path):
    other = [BEGAN, *many(1, 3)]
    ours = written(path, HISTORY).splitlines(keepends=True)
    theirs = written(tmp_path / "other", other).splitlines(keepends=True)
    path.write_bytes(ours[0] + theirs[2])

    with pytest.raises(JournalDamagedError, match="some are missing"):
        read(path)


@pytest.mark.parametrize("room_bytes", [0, 1, 100, 1000, 4095])
def test_without_room_nothing_is_written_and_later_it_goes_on(path: Path, room_bytes: int):
    journal = opened(path)
    journal.write(HISTORY)
    before = path.read_bytes()

    with largest_file(len(before) + room_bytes):
        why = [journal.write(many(3, 20)) for _ in range(3)]

    assert [reason is not None and "events.jsonl" in reason for reason in why] == [True] * 3
    assert path.read_bytes() == before
    assert journal.seq == len(HISTORY)
    assert journal.write(many(3, 20)) is None
    journal.close()
    assert read(path) == [*HISTORY, *many(3, 20)]


def test_what_still_fits_is_written(path: Path):
    journal = opened(path)
    journal.write(HISTORY)
    closed = RunClosed(T0, complete=False, failed=0)

    with largest_file(path.stat().st_size + 200):
        assert journal.write(many(3, 20)) is not None
        assert journal.write([closed]) is None

    journal.close()
    assert read(path) == [*HISTORY, closed]


def test_on_a_disk_that_is_full_nothing_is_written_and_later_it_goes_on(small_disk: Path):
    path = small_disk / "events.jsonl"
    journal = opened(path)
    journal.write(HISTORY)
    before = path.read_bytes()
    ballast = small_disk / "ballast"
    fill(ballast)

    why = journal.write(many(3, 100))

    assert why is not None
    assert "No space left" in why
    assert path.read_bytes() == before
    ballast.unlink()
    assert journal.write(many(3, 100)) is None
    journal.close()
    assert read(path) == [*HISTORY, *many(3, 100)]


def test_two_runs_that_write_by_turns_do_not_mix(tmp_path: Path):
    runs = Runs(tmp_path / "state", HostName("here"))
    new = [runs.create(name) for name in ("one", "two")]
    journals = [
        FileJournal(partial(each.folder.open_file, JOURNAL), each.folder.name) for each in new
    ]
    for number in range(1, 50):
        for journal, each in zip(journals, new, strict=True):
            batch = many(number, 1) if number > 1 else [BEGAN, *many(1, 1)]
            assert journal.write(batch) is None
            assert each.folder.name in ("one", "two")
    for each in new:
        each.publish()

    for journal, each in zip(journals, new, strict=True):
        assert list(journal.replay()) == [BEGAN, *many(1, 49)]
        journal.close()
        each.folder.close()


def test_a_long_history_is_read_line_by_line(path: Path):
    history = [BEGAN, *many(1, 5000)]
    written(path, history)

    journal = opened(path)
    replay = journal.replay()
    assert next(replay) == BEGAN
    assert sum(1 for _ in replay) == 5000
    assert journal.seq == 5001
    journal.close()
