"""The bookmark beside a journal: whatever becomes of it, a run is what all of its journal says."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from smartsched import __version__
from smartsched.cli.host import this_host
from smartsched.cli.recalling import past_of, recall
from smartsched.core.apply import apply
from smartsched.core.bookmark import NOWHERE, Bookmark, Mark, decode, encode
from smartsched.core.events import Event, JobAccepted, RunBegan, RunClosed
from smartsched.core.model import JobId
from smartsched.core.terms import Past, began
from smartsched.edges.bookmarks import BOOKMARK, MOST_AT_REST, BookmarkFile
from smartsched.edges.journal import FileJournal
from smartsched.edges.runs import JOURNAL, RunFolder, Runs
from smartsched.errors import JournalDamagedError
from tests.builders import HOST, T0, a_spec, accepted, exited, finished, launched, placed
from tests.cli.harness import MOMENT, Box
from tests.cli.test_resume import began as a_job_began
from tests.cli.test_resume import gated, let_go
from tests.waiting import wait_until

NAME = "sweep"
BEGAN = RunBegan(T0, NAME, HOST, "/somewhere", ("list",), None, "{}", "sweep.1")
HISTORY: list[Event] = [
    BEGAN, *accepted(3), placed(), launched(), exited(), finished(), placed(2, gpu=1),
    launched(2), exited(2), finished(2, "failed"), placed(3, gpu=2),
]  # fmt: skip
MIDDLE = 8  # so many records has the bookmark of most tests


@dataclass
class Run:
    """One on disk."""

    runs: Runs

    @property
    def journal(self) -> Path:
        return self.runs.path(NAME) / JOURNAL

    @property
    def bookmark(self) -> Path:
        return self.runs.path(NAME) / BOOKMARK

    @contextmanager
    def held(self) -> Iterator[tuple[RunFolder, FileJournal]]:
        folder = self.runs.open(NAME)
        journal = FileJournal(partial(folder.open_file, JOURNAL), str(self.journal))
        try:
            yield folder, journal
        finally:
            journal.close()
            folder.close()

    def recalled(self) -> Past:
        """As a dispatcher does it; and anybody else comes to the same."""
        by_others = past_of(self.runs, NAME)
        with self.held() as (folder, journal):
            past, _ = recall(folder, journal)
        assert by_others == past
        return past

    def put(self, data: bytes) -> None:
        self.bookmark.unlink(missing_ok=True)
        self.bookmark.write_bytes(data)
        self.bookmark.chmod(0o600)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Whose bookmark is somewhere in its middle."""
    runs = Runs(tmp_path / "state", this_host())
    new = runs.create(NAME)
    journal = FileJournal(partial(new.folder.open_file, JOURNAL), "journal")
    assert journal.write(HISTORY[:MIDDLE]) is None
    mark = journal.mark
    assert journal.write(HISTORY[MIDDLE:]) is None
    journal.close()
    new.publish()
    new.folder.close()
    found = Run(runs)
    found.put(encode(mark, past_at(MIDDLE), __version__))
    return found


def past_at(records: int) -> Past:
    past = began(BEGAN, NAME)
    for event in HISTORY[1:records]:
        past.take(event)
    return past


def marks_of(data: bytes) -> list[int]:
    """Where records end."""
    return [at + 1 for at, byte in enumerate(data) if byte == 0x0A]


# --- it is used


def test_only_what_is_behind_the_bookmark_is_read(run: Run):
    past = past_at(MIDDLE)
    past.state.next_rank = 77  # as no journal says it
    mark = decoded(run).mark
    run.put(encode(mark, past, __version__))

    assert run.recalled().state.next_rank == 77


def decoded(run: Run) -> Bookmark:
    found = decode(run.bookmark.read_bytes(), __version__, NAME)
    assert found is not None
    return found


def test_at_every_record_bookmark_and_rest_come_to_what_all_comes_to(run: Run):
    whole = past_at(len(HISTORY))
    for records in range(1, len(HISTORY) + 1):
        data = run.journal.read_bytes()
        mark = mark_at(data[: marks_of(data)[records - 1]])
        run.put(encode(mark, past_at(records), __version__))

        assert run.recalled() == whole
        with run.held() as (_, journal):
            assert journal.has_come_by(mark)


def mark_at(data: bytes) -> Mark:
    return Mark(data.count(b"\n"), len(data), zlib.crc32(data))


def test_a_journal_goes_on_behind_the_bookmark(run: Run):
    with run.held() as (folder, journal):
        recall(folder, journal)
        assert journal.mark == mark_at(run.journal.read_bytes())
        assert journal.write([RunClosed(T0, complete=False, failed=1)]) is None

    with run.held() as (_, journal):
        assert len(list(journal.replay())) == len(HISTORY) + 1


def test_what_a_crash_left_at_the_end_is_cut_off_all_the_same(run: Run):
    data = run.journal.read_bytes()
    run.journal.write_bytes(data + b'{"seq":')

    with run.held() as (folder, journal):
        past, _ = recall(folder, journal)

        assert journal.cut_off_bytes == 7
    assert run.journal.read_bytes() == data
    assert past == past_at(len(HISTORY))


# --- what may have become of it


def test_without_one_all_is_read(run: Run):
    run.bookmark.unlink()

    assert run.recalled() == past_at(len(HISTORY))


def test_cut_anywhere_it_does_no_harm(run: Run):
    whole, data = past_at(len(HISTORY)), run.bookmark.read_bytes()

    for size in range(0, len(data), 7):
        run.put(data[:size])
        assert run.recalled() == whole


def test_a_flipped_byte_anywhere_does_no_harm(run: Run):
    whole, data = past_at(len(HISTORY)), run.bookmark.read_bytes()

    for at in range(0, len(data), 5):
        run.put(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        assert run.recalled() == whole


@pytest.mark.parametrize("author", ["0.0.1", "99.0"])
def test_of_an_older_or_a_newer_version_it_does_no_harm(run: Run, author: str):
    past = past_at(MIDDLE)
    past.state.next_rank = 77
    run.put(encode(decoded(run).mark, past, author))

    assert run.recalled() == past_at(len(HISTORY))


def test_of_another_run_it_does_no_harm(run: Run):
    other = began(RunBegan(T0, "other", HOST, "/", (), None, "{}", "other.1"), "other")
    theirs = mark_at(run.journal.read_bytes().replace(b"sweep", b"other"))

    for mark in (theirs, Mark(1, 300, 5), theirs._replace(seq=1)):
        run.put(encode(mark, other, __version__))
        assert run.recalled() == past_at(len(HISTORY))


def test_ahead_of_a_journal_that_a_crash_has_cut_it_is_not_believed(run: Run):
    data = run.journal.read_bytes()
    for records, end in enumerate(marks_of(data)[: MIDDLE - 1], start=1):
        run.journal.write_bytes(data[:end])

        assert run.recalled() == past_at(records)


def test_nor_once_that_journal_has_gone_on_otherwise(run: Run):
    data = run.journal.read_bytes()
    run.journal.write_bytes(data[: marks_of(data)[3]])
    with run.held() as (folder, journal):
        recall(folder, journal)
        otherwise = [JobAccepted(T0, JobId(job), a_spec(job)) for job in range(4, 30)]
        assert journal.write(otherwise) is None
    expected = past_at(4)
    for event in otherwise:
        expected.take(event)

    assert run.recalled() == expected


def test_damage_to_the_journal_before_it_is_told_as_ever(run: Run):
    data = bytearray(run.journal.read_bytes())
    data[marks_of(bytes(data))[2] + 30] ^= 1
    run.journal.write_bytes(bytes(data))

    with pytest.raises(JournalDamagedError, match="line 4"):
        run.recalled()


def test_one_that_contradicts_the_rest_is_not_believed(run: Run):
    run.put(encode(decoded(run).mark, past_at(2), __version__))

    assert run.recalled() == past_at(len(HISTORY))


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "second name"])
def test_what_is_no_plain_file_of_ours_is_not_read(run: Run, kind: str, tmp_path: Path):
    past = past_at(MIDDLE)
    past.state.next_rank = 77
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(encode(decoded(run).mark, past, __version__))
    run.bookmark.unlink()
    match kind:
        case "link":
            run.bookmark.symlink_to(elsewhere)
        case "folder":
            run.bookmark.mkdir()
        case "fifo":
            os.mkfifo(run.bookmark)
        case _:
            run.bookmark.hardlink_to(elsewhere)

    assert run.recalled() == past_at(len(HISTORY))


# --- it is written


def keeper(folder: RunFolder, journal: FileJournal, past: Past, every_bytes: int = 1):
    return BookmarkFile(
        folder.fd, folder.open_file, lambda: journal.mark, past, __version__, NOWHERE, every_bytes
    )


@contextmanager
def at_work(run: Run, every_bytes: int = 1) -> Iterator[tuple[FileJournal, Past, BookmarkFile]]:
    """A dispatcher that has read all that there is."""
    with run.held() as (folder, journal):
        past, _ = recall(folder, journal)
        yield journal, past, keeper(folder, journal, past, every_bytes)


def take(past: Past, file: BookmarkFile, event: Event) -> None:
    """As the loop does it."""
    apply(past.state, event)
    file.recorded(event, past.state, T0)


def test_what_is_on_record_is_kept(run: Run):
    with at_work(run) as (journal, past, file):
        take(past, file, launched(3))
        assert journal.write([launched(3)]) is None
        file.keep()

    assert decoded(run).mark == mark_at(run.journal.read_bytes())
    assert decoded(run).past == run.recalled()
    assert not (run.bookmark.parent / "bookmark.new").exists()


def test_what_is_not_on_record_yet_is_not_kept(run: Run):
    before = run.bookmark.read_bytes()
    with at_work(run) as (_, past, file):
        take(past, file, launched(3))
        file.keep()

    assert run.bookmark.read_bytes() == before


def test_it_is_kept_at_the_end_only_if_there_is_a_last_record(run: Run):
    before = run.bookmark.read_bytes()
    with at_work(run) as (journal, past, file):
        file.close()
        assert run.bookmark.read_bytes() == before
        closed = RunClosed(T0, complete=False, failed=1)
        take(past, file, closed)
        assert journal.write([closed]) is None
        file.close()

    assert decoded(run).mark.seq == len(HISTORY) + 1


def test_it_is_kept_as_rarely_as_it_is_large(run: Run):
    sizes = []
    with at_work(run, every_bytes=100) as (journal, past, file):
        for job in range(4, 600):
            event = JobAccepted(T0, JobId(job), a_spec(job))
            take(past, file, event)
            assert journal.write([event], durable=False) is None
            file.keep()
            sizes.append(decoded(run).mark.size_bytes)

    at = sorted(set(sizes))
    assert len(at) < 20
    assert at[-1] - at[-2] > 10 * (at[1] - at[0])


def test_what_is_too_much_is_not_kept(run: Run):
    before = run.bookmark.read_bytes()
    with at_work(run) as (_, past, file):
        past.state.unnamed.update(map(JobId, range(MOST_AT_REST + 1)))
        file.keep()

    assert run.bookmark.read_bytes() == before


def test_on_a_full_disk_there_is_none_and_the_old_one_stays(run: Run):
    before = run.bookmark.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with at_work(run) as (_, _, file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            file.keep()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert run.bookmark.read_bytes() == before
    assert not (run.bookmark.parent / "bookmark.new").exists()


@pytest.mark.parametrize("there", ["none", "old"])
@pytest.mark.parametrize("unfinished", [0.0, 0.5, 1.0])
def test_whoever_dies_while_he_writes_it_does_no_harm(run: Run, there: str, unfinished: float):
    whole, data = past_at(len(HISTORY)), run.bookmark.read_bytes()
    new = run.bookmark.parent / "bookmark.new"
    new.write_bytes(data[: int(unfinished * len(data))])
    if there == "none":
        run.bookmark.unlink()

    assert run.recalled() == whole
    with at_work(run) as (_, _, file):
        file.keep()

    assert decoded(run).past == whole
    assert not new.exists()


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.cli.test_recalling import *
run = Run(Runs(Path(sys.argv[1]), this_host()))
with at_work(run) as (journal, past, file):
    print("writing", flush=True)
    for job in range(past.state.totals.accepted + 1, 10**6):
        event = JobAccepted(T0, JobId(job), a_spec(job))
        take(past, file, event)
        journal.write([event], durable=False)
        file._next_after_bytes = 1
        file.keep()
"""


def test_killed_at_any_moment_it_leaves_one_that_is_whole(run: Run, tmp_path: Path):
    root = str(Path(__file__).parents[2])
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "state"), root],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(random.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()

        past, kept = run.recalled(), decoded(run)
        with run.held() as (_, journal):
            assert journal.has_come_by(kept.mark)
        run.bookmark.unlink()
        assert run.recalled() == past
        run.put(encode(kept.mark, kept.past, __version__))


# --- and a real dispatcher


def test_a_dispatcher_keeps_one_by_which_the_next_goes_on(box: Box):
    """Long lines fill a journal soon."""
    long = [f"echo {number} >> done # {'x' * 8000}" for number in range(200)]
    box_bookmark = box.state / "runs" / NAME / BOOKMARK
    session = box.start(*MOMENT, "--name", NAME, str(box.list_of([*long, gated("a"), "true"])))
    a_job_began(box, "a")
    wait_until(box_bookmark.exists, "there is a bookmark")
    session.crash()
    runs = Runs(box.state, this_host())
    by_bookmark, kept = past_of(runs, NAME), box_bookmark.read_bytes()
    box_bookmark.unlink()
    assert by_bookmark == past_of(runs, NAME)
    assert decode(kept, __version__, NAME) is not None
    box_bookmark.write_bytes(kept)
    box_bookmark.chmod(0o600)

    let_go(box)
    done = box.run("--resume")

    assert done.status == 0
    assert sorted(box.lines("done")) == sorted([*map(str, range(200)), "a"])
