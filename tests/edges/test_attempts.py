"""What attempts leave behind, with real wrappers that race for their records."""

import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smartsched.core.model import JobId, RunKey
from smartsched.edges.attempts import NO_RECORD, WRAPPER, AttemptRecord, Attempts

RUN = RunKey(JobId(1), 1)
SHELLS = pytest.mark.parametrize("shell", [["/bin/sh"], ["bash", "-p"]], ids=["sh", "bash"])
ROUNDS = 150
LONGEST_DELAY_SECONDS = 0.006


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "jobs"
    folder.mkdir()
    return folder


@pytest.fixture
def attempts(folder: Path) -> Attempts:
    return Attempts(folder)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def start_wrapper(
    attempts: Attempts, command: str, shell: list[str], run: RunKey = RUN
) -> subprocess.Popen[bytes]:
    """As the dispatcher does it, but for the session."""
    arguments = [attempts.record_path(run), "022", "/bin/sh", "-c", command]
    return subprocess.Popen(
        [*shell, "-c", WRAPPER, "smartsched", *arguments], stderr=subprocess.PIPE
    )


def status_of(wrapper: subprocess.Popen[bytes]) -> int:
    wrapper.communicate(timeout=60)
    return wrapper.returncode


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def begun(attempts: Attempts, record: bytes) -> Path:
    """An attempt with this record; the record's path."""
    attempts.prepare(RUN, None)
    path = Path(attempts.record_path(RUN))
    path.write_bytes(record)
    return path


@pytest.mark.usefixtures("open_umask")
def test_a_record_is_the_wrapper_s_to_make_and_only_we_may_read_it(
    attempts: Attempts, folder: Path
):
    assert attempts.prepare(RUN, None) is None
    assert names_in(folder) == []

    assert status_of(start_wrapper(attempts, "true", ["/bin/sh"])) == 0

    record = Path(attempts.record_path(RUN))
    assert (record.parent, mode_of(record)) == (folder, 0o600)


@pytest.mark.usefixtures("open_umask")
def test_a_long_command_becomes_a_script_that_only_we_may_read(attempts: Attempts):
    command = b"echo \xff" + b"x" * 200_000

    path = attempts.prepare(RUN, command)

    assert path is not None
    script = Path(path)
    assert script.read_bytes() == command + b"\n"
    assert mode_of(script) == 0o600


def test_before_it_began_there_is_no_record(attempts: Attempts):
    assert attempts.read(RUN) is None
    attempts.prepare(RUN, b"true")

    assert attempts.read(RUN) is None


@pytest.mark.parametrize(
    ("record", "pid", "status"),
    [
        (b"", None, None),
        (b"12", None, None),
        (b"12\n", 12, None),
        (b"12\nexit 0\n", 12, 0),
        (b"4194304\nexit 255\n", 4194304, 255),
        (b"\0\0\0\0", None, None),
        (b"-1\n", None, None),
        (b"\xd9\xa1\n", None, None),
        (b"12\nexit 0\nexit 1\n", None, None),
        (b"1" * 10_000, None, None),
    ],
)
def test_of_a_record_only_what_is_whole_counts(
    attempts: Attempts, record: bytes, pid: int | None, status: int | None
):
    path = begun(attempts, record)

    assert attempts.read(RUN) == AttemptRecord(pid, status, path.stat().st_mtime)


@pytest.mark.parametrize("torn", [b"12\ne", b"12\nexit ", b"12\nexit 1"])
def test_a_status_that_was_cut_off_does_not_hide_whose_record_it_is(
    attempts: Attempts, torn: bytes
):
    path = begun(attempts, torn)

    assert attempts.read(RUN) == AttemptRecord(12, None, path.stat().st_mtime)


def test_that_the_lease_has_ended_it_is_no_status(attempts: Attempts):
    path = begun(attempts, b"12\nlease\n")

    assert attempts.read(RUN) == AttemptRecord(12, None, path.stat().st_mtime, by_lease=True)


def test_an_attempt_s_time_is_when_its_record_was_last_written(attempts: Attempts):
    path = begun(attempts, b"12\nexit 0\n")
    os.utime(path, (1_000.0, 2_000.25))

    record = attempts.read(RUN)

    assert record is not None
    assert record.changed_at == 2_000.25


@SHELLS
@pytest.mark.parametrize(
    ("command", "status"),
    [("true", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
)
def test_the_wrapper_records_its_pid_and_the_command_s_status(
    attempts: Attempts, shell: list[str], command: str, status: int
):
    attempts.prepare(RUN, None)

    wrapper = start_wrapper(attempts, command, shell)

    assert status_of(wrapper) == status
    record = attempts.read(RUN)
    assert record is not None
    assert (record.pid, record.status) == (wrapper.pid, status)


@SHELLS
def test_a_wrapper_that_is_killed_leaves_its_pid_and_no_status(
    attempts: Attempts, shell: list[str]
):
    attempts.prepare(RUN, None)

    wrapper = start_wrapper(attempts, "kill -KILL $PPID", shell)

    assert status_of(wrapper) == -signal.SIGKILL
    record = attempts.read(RUN)
    assert record is not None
    assert (record.pid, record.status) == (wrapper.pid, None)


@SHELLS
def test_what_was_revoked_never_begins(attempts: Attempts, shell: list[str], tmp_path: Path):
    attempts.prepare(RUN, None)
    assert attempts.revoke(RUN)

    wrapper = start_wrapper(attempts, f"touch {tmp_path / 'ran'}", shell)

    assert status_of(wrapper) == NO_RECORD
    assert not (tmp_path / "ran").exists()


def test_what_was_revoked_is_not_among_those_that_may_be_tidied_up(attempts: Attempts):
    other = RunKey(JobId(2), 1)
    attempts.prepare(other, b"long")
    attempts.revoke(RUN)

    assert attempts.all() == [other]


@SHELLS
def test_what_has_begun_cannot_be_revoked(attempts: Attempts, shell: list[str]):
    attempts.prepare(RUN, None)
    status_of(start_wrapper(attempts, "exit 3", shell))

    assert not attempts.revoke(RUN)

    record = attempts.read(RUN)
    assert record is not None
    assert record.status == 3


def test_what_was_never_prepared_can_be_revoked(attempts: Attempts):
    assert attempts.revoke(RUN)


def test_what_was_revoked_stays_so_for_whoever_asks_again(attempts: Attempts):
    """Whoever revoked it may have died before it could say so."""
    attempts.revoke(RUN)

    assert attempts.revoke(RUN)


def test_what_cannot_be_decided_is_an_error(folder: Path):
    attempts = Attempts(folder / "no" / "such" / "folder")

    with pytest.raises(OSError, match="No such file"):
        attempts.revoke(RUN)


@SHELLS
def test_of_a_wrapper_and_who_revokes_it_exactly_one_wins(
    attempts: Attempts, shell: list[str], tmp_path: Path
):
    revoked = 0
    for number in range(1, ROUNDS + 1):
        run, ran = RunKey(JobId(number), 1), tmp_path / f"ran-{number}"
        attempts.prepare(run, None)
        wrapper = start_wrapper(attempts, f": > {ran}", shell, run)
        spin(LONGEST_DELAY_SECONDS * (number % 30) / 30)

        won = attempts.revoke(run)
        status_of(wrapper)

        assert ran.exists() is not won, f"round {number}"
        revoked += won
    assert revoked > 0  # a race that only one side can win shows nothing


@SHELLS
def test_of_two_wrappers_of_one_attempt_exactly_one_runs(
    attempts: Attempts, shell: list[str], tmp_path: Path
):
    for number in range(1, ROUNDS // 3):
        run, ran = RunKey(JobId(number), 1), tmp_path / f"ran-{number}"
        attempts.prepare(run, None)

        wrappers = [start_wrapper(attempts, f"echo >> {ran}", shell, run) for _ in range(2)]

        assert [status_of(wrapper) for wrapper in wrappers].count(0) == 1
        assert ran.read_text() == "\n"


def spin(seconds: float) -> None:
    """Shorter than any sleep: it only moves one racer's start."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@pytest.mark.parametrize("record", [b"", b"12\n", b"12\nexit 0\n"])
def test_an_attempt_that_has_begun_is_never_prepared_again(attempts: Attempts, record: bytes):
    path = begun(attempts, record)

    with pytest.raises(FileExistsError):
        attempts.prepare(RUN, b"again")

    assert path.read_bytes() == record


def test_an_attempt_that_was_prepared_and_did_not_begin_is_prepared_anew(
    attempts: Attempts, folder: Path
):
    attempts.prepare(RUN, b"before")
    attempts.revoke(RUN)

    path = attempts.prepare(RUN, b"after")

    assert path is not None
    assert Path(path).read_bytes() == b"after\n"
    assert names_in(folder) == ["0001.1.script"]


@SHELLS
def test_without_room_for_a_record_nothing_begins(
    attempts: Attempts, folder: Path, shell: list[str], tmp_path: Path
):
    folder.rmdir()
    attempts.prepare(RUN, None)

    wrapper = start_wrapper(attempts, f"touch {tmp_path / 'ran'}", shell)

    assert status_of(wrapper) == NO_RECORD
    assert not (tmp_path / "ran").exists()
    with pytest.raises(OSError, match="No such file"):
        attempts.prepare(RUN, b"long")


def test_what_is_over_leaves_nothing(attempts: Attempts, folder: Path):
    attempts.prepare(RUN, b"long")
    attempts.revoke(RUN)

    attempts.remove(RUN)

    assert names_in(folder) == []
    attempts.remove(RUN)


def test_of_other_attempts_nothing_is_removed(attempts: Attempts, folder: Path):
    for attempt in (1, 2, 11):
        run = RunKey(JobId(1), attempt)
        attempts.prepare(run, b"long")
        attempts.revoke(run)

    attempts.remove(RUN)

    assert names_in(folder) == ["0001.11", "0001.11.script", "0001.2", "0001.2.script"]


def test_a_script_that_an_earlier_dispatcher_left_is_removed_with_its_record(
    attempts: Attempts, folder: Path
):
    attempts.prepare(RUN, b"long")

    Attempts(folder).remove(RUN)

    assert names_in(folder) == []


def test_all_of_which_something_is_there_are_known_and_nothing_else_is_taken_for_one(
    attempts: Attempts, folder: Path
):
    runs = [RUN, RunKey(JobId(1), 12), RunKey(JobId(123_456), 1)]
    for run in runs:
        attempts.prepare(run, b"long")
    Path(attempts.record_path(RUN)).write_bytes(b"12\n")
    for name in ("0002", "0002.", ".1", "x.1", "1.x", "0002.1.2", "0002.1.x"):
        (folder / name).touch()

    assert sorted(attempts.all()) == runs


def test_a_record_that_is_a_link_is_neither_read_nor_written(attempts: Attempts, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("12\nexit 0\n")
    attempts.prepare(RUN, None)
    os.symlink(precious, attempts.record_path(RUN))

    assert attempts.read(RUN) is None
    assert not attempts.revoke(RUN)
    assert status_of(start_wrapper(attempts, "true", ["/bin/sh"])) != 0
    attempts.remove(RUN)

    assert precious.read_text() == "12\nexit 0\n"


def test_a_link_in_place_of_a_script_is_not_written_through(attempts: Attempts, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    attempts.prepare(RUN, None)
    script = Path(attempts.record_path(RUN) + ".script")
    script.symlink_to(precious)

    path = attempts.prepare(RUN, b"long")

    assert path == str(script)
    assert script.read_bytes() == b"long\n"
    assert not script.is_symlink()
    assert precious.read_text() == "precious"


def test_a_pipe_in_place_of_a_record_makes_nobody_wait(attempts: Attempts):
    attempts.prepare(RUN, None)
    os.mkfifo(attempts.record_path(RUN))

    record = attempts.read(RUN)

    assert record is not None
    assert (record.pid, record.status) == (None, None)


@pytest.fixture
def old_folder(folder: Path) -> Path:
    """Of the attempt, as earlier versions made it."""
    old = folder / "0001.1"
    old.mkdir()
    (old / "script").write_bytes(b"long\n")
    return old


def test_what_an_earlier_version_left_is_read_and_removed(
    attempts: Attempts, folder: Path, old_folder: Path
):
    assert attempts.read(RUN) is None
    (old_folder / "record").write_bytes(b"12\nexit 3\n")

    record = attempts.read(RUN)

    assert record is not None
    assert (record.pid, record.status) == (12, 3)
    assert not attempts.revoke(RUN)
    assert attempts.all() == [RUN]
    attempts.remove(RUN)
    assert names_in(folder) == []


@SHELLS
def test_what_an_earlier_version_has_begun_does_not_begin_again(
    attempts: Attempts, old_folder: Path, shell: list[str]
):
    (old_folder / "record").write_bytes(b"12\n")

    with pytest.raises(FileExistsError):
        attempts.prepare(RUN, None)

    assert status_of(start_wrapper(attempts, "true", shell)) == NO_RECORD


def test_what_an_earlier_version_was_about_to_begin_can_be_revoked(
    attempts: Attempts, folder: Path, old_folder: Path
):
    """Its wrapper makes the record in that folder, if it is first."""
    assert attempts.revoke(RUN)

    assert (old_folder / "record").exists()
    assert attempts.all() == []
    assert names_in(folder) == ["0001.1", "record", "script"]
