"""Where the output of jobs goes, with real jobs and slow, fast and vanishing readers."""

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smartsched.core.model import Exited, JobId, RunKey
from smartsched.edges.outputs import LogFiles, Untouched, log_name, tail
from smartsched.edges.tagged import Tagged
from smartsched.edges.waiter import Waiter
from smartsched.errors import UsageError
from tests.edges.jobs import Dispatcher, launch_of

MakeDispatcher = Callable[..., Dispatcher]


class Listener:
    """Reads what a pipe brings, from when it is told to."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.heard = bytearray()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def listen(self) -> None:
        self._thread.start()

    def all(self) -> bytes:
        """To be asked for once nobody writes any more."""
        os.close(self.write_fd)
        self._thread.join(30)
        assert not self._thread.is_alive()
        os.close(self.read_fd)
        return bytes(self.heard)

    def _listen(self) -> None:
        while data := os.read(self.read_fd, 1 << 16):
            self.heard += data


def output_folder() -> Path:
    """The run's own, for what is not shown yet."""
    folder = Path.cwd().parent / "output"
    folder.mkdir(0o700, exist_ok=True)
    return folder


def tagged_to(waiter: Waiter, fd: int, gone: list[str] | None = None) -> Tagged:
    """Notes in `gone` that the reader is."""
    told = [] if gone is None else gone
    return Tagged(output_folder(), waiter, fd, lambda _: told.append("gone"))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def gone() -> list[str]:
    return []


@pytest.fixture
def tagged(dispatcher_of: MakeDispatcher, listener: Listener, gone: list[str]) -> Dispatcher:
    return dispatcher_of(
        output=lambda waiter: Tagged(
            output_folder(), waiter, listener.write_fd, lambda _: gone.append("gone")
        )
    )


def close_output(dispatcher: Dispatcher) -> None:
    """As at the end of an invocation: the reader takes what he has not taken so far."""
    output = dispatcher.output
    assert isinstance(output, Tagged)
    dispatcher.until(output.is_settled)
    output.close()


def everything(dispatcher: Dispatcher, listener: Listener) -> list[str]:
    close_output(dispatcher)
    return listener.all().decode().splitlines()


def test_names_of_logs_sort_as_their_numbers_do():
    numbers = [*range(1, 20), *range(990, 1010), *range(9_990, 10_010), *range(99_990, 100_002)]

    names = [log_name(RunKey(JobId(number), 1)) for number in numbers]

    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert names[0] == "0001.log"


def test_a_further_attempt_has_a_log_of_its_own():
    attempts = [log_name(RunKey(JobId(7), attempt)) for attempt in (1, 2, 10)]

    assert attempts == ["0007.log", "0007.2.log", "0007.10.log"]
    assert log_name(RunKey(JobId(12345), 2)) == "a12345.2.log"


def test_paths_of_logs_stay_right_whatever_folder_the_dispatcher_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    logs = LogFiles(Path("logs"))
    path = logs.path(RunKey(JobId(1), 1))

    monkeypatch.chdir("/")

    assert path == str(tmp_path / "here" / "logs" / "0001.log")
    assert logs.path(RunKey(JobId(1), 1)) == path
    logs.close()
    assert not (tmp_path / "here" / "logs").exists()


def test_the_folder_of_a_resumed_run_is_there_already_and_a_new_run_s_is_not(tmp_path: Path):
    (tmp_path / "logs").mkdir()

    LogFiles(tmp_path / "logs", resumed=True).close()

    with pytest.raises(UsageError, match="--logs"):
        LogFiles(tmp_path / "logs")


def test_a_folder_for_logs_that_cannot_be_made_is_a_usage_error(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match=r"file.*--logs"):
        LogFiles(tmp_path / "file" / "run")


def test_folders_in_which_nothing_was_logged_are_removed(tmp_path: Path):
    logs = LogFiles(tmp_path / "logs" / "run")

    logs.close()

    assert not (tmp_path / "logs").exists()


def test_folders_with_logs_are_kept(tmp_path: Path):
    earlier = tmp_path / "logs" / "earlier"
    earlier.mkdir(parents=True)
    logs, used = LogFiles(tmp_path / "logs" / "run"), LogFiles(tmp_path / "logs" / "used")
    Path(used.path(RunKey(JobId(1), 1))).touch()

    logs.close()
    used.close()

    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["earlier", "used"]


def test_a_folder_that_the_user_made_is_kept_even_if_empty(tmp_path: Path):
    (tmp_path / "logs").mkdir()

    LogFiles(tmp_path / "logs" / "run").close()

    assert list((tmp_path / "logs").iterdir()) == []


def test_untouched_output_is_ours(dispatcher_of: MakeDispatcher, capfd: pytest.CaptureFixture[str]):
    dispatcher_of(output=lambda _: Untouched()).run("echo out; echo err >&2")

    assert capfd.readouterr() == ("out\n", "err\n")


def test_lines_of_two_jobs_come_whole_behind_their_tags(tagged: Dispatcher, listener: Listener):
    listener.listen()
    half_lines = "for i in $(seq 40); do printf 'be%s' $i; sleep 0.002; echo gin; done"

    first = tagged.start(half_lines, 1, 1, "0")
    second = tagged.start(f"({half_lines}) >&2", 2, 1, "1", "2")
    tagged.exit_of(first)
    tagged.exit_of(second)

    lines = everything(tagged, listener)
    expected = [f"be{i}gin" for i in range(1, 41)]
    assert [line for line in lines if line.startswith("[1")] == [f"[1 gpu 0] {e}" for e in expected]
    assert [line for line in lines if line.startswith("[2")] == [
        f"[2 gpu 1,2] {e}" for e in expected
    ]
    assert len(lines) == 80


def test_a_last_line_without_its_end_is_not_lost(tagged: Dispatcher, listener: Listener):
    listener.listen()

    tagged.run("printf 'a\\nb'")

    assert everything(tagged, listener) == ["[1 gpu 3] a", "[1 gpu 3] b"]


def test_of_a_progress_bar_the_last_state_is_shown(tagged: Dispatcher, listener: Listener):
    listener.listen()

    tagged.run("printf '1%%\\r2%%\\r'; sleep 0.1; printf '3%%\\r'; sleep 0.1; echo done")

    assert everything(tagged, listener) == ["[1 gpu 3] done"]


def test_a_progress_bar_that_stops_short_is_shown_where_it_stopped(
    tagged: Dispatcher, listener: Listener
):
    listener.listen()

    tagged.run("printf '1%%\\r'; sleep 0.1; printf '2%%\\r'")

    assert everything(tagged, listener) == ["[1 gpu 3] 2%"]


def test_a_crlf_that_comes_in_two_pieces_ends_its_line(tagged: Dispatcher, listener: Listener):
    listener.listen()
    path = Path("gate")
    run = tagged.start("printf 'whole line\\r'; touch gate; sleep 0.2; printf '\\nnext\\r\\n'")
    tagged.until(path.exists)
    tagged.exit_of(run)

    assert everything(tagged, listener) == ["[1 gpu 3] whole line", "[1 gpu 3] next"]


def test_a_line_without_end_is_cut_and_nothing_of_it_lost(tagged: Dispatcher, listener: Listener):
    listener.listen()

    tagged.run("head -c 3000000 /dev/zero | tr '\\0' x")

    lines = everything(tagged, listener)
    assert sum(line.count("x") for line in lines) == 3_000_000
    assert all(line.startswith("[1 gpu 3] ") for line in lines)


def test_bytes_that_are_no_text_pass(tagged: Dispatcher, listener: Listener):
    listener.listen()

    tagged.run("printf '\\377\\000\\n'")
    close_output(tagged)

    assert listener.all() == b"[1 gpu 3] \xff\x00\n"


def test_a_slow_reader_blocks_nobody_and_misses_nothing(tagged: Dispatcher, listener: Listener):
    noisy = tagged.start("seq -f 'line %.0f' 400000", 1)
    began = time.monotonic()
    tagged.run("exit 0", 2)
    assert time.monotonic() - began < 10

    listener.listen()
    assert tagged.exit_of(noisy).ending == Exited(0)

    lines = everything(tagged, listener)
    assert lines == [f"[1 gpu 3] line {number}" for number in range(1, 400_001)]


def test_a_reader_who_starts_after_all_jobs_ended_misses_nothing(
    tagged: Dispatcher, listener: Listener
):
    jobs = [tagged.start("head -c 50000 /dev/zero | tr '\\0' x", job) for job in range(1, 9)]
    for run in jobs:
        tagged.exit_of(run)

    listener.listen()

    assert sum(line.count("x") for line in everything(tagged, listener)) == 8 * 50_000


def test_a_reader_with_a_pipe_that_never_blocks_misses_nothing(
    tagged: Dispatcher, listener: Listener
):
    # whoever shares our stdout may have made it so: ssh and node do
    os.set_blocking(listener.write_fd, False)
    jobs = [tagged.start("head -c 50000 /dev/zero | tr '\\0' x", job) for job in range(1, 9)]
    for run in jobs:
        tagged.exit_of(run)
    late = threading.Timer(0.2, listener.listen)
    late.start()

    close_output(tagged)
    late.join()

    assert listener.all().count(b"x") == 8 * 50_000


def test_when_the_reader_is_gone_it_is_said_once_and_jobs_go_on(
    tagged: Dispatcher, listener: Listener, gone: list[str]
):
    os.close(listener.read_fd)
    runs = [tagged.start("seq 100000; touch done-$SMARTSCHED_JOB", job) for job in (1, 2)]

    endings = [tagged.exit_of(run).ending for run in runs]

    assert endings == [Exited(0), Exited(0)]
    assert gone == ["gone"]
    assert sorted(path.name for path in Path().iterdir()) == ["done-1", "done-2"]
    close_output(tagged)
    os.close(listener.write_fd)


@pytest.mark.parametrize("name", ["file", "/dev/null"])
def test_stdout_may_be_what_epoll_does_not_know(dispatcher_of: MakeDispatcher, name: str):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
    dispatcher = dispatcher_of(
        output=lambda waiter: Tagged(output_folder(), waiter, fd, lambda _: None)
    )

    assert dispatcher.run("seq 50000") == Exited(0)

    close_output(dispatcher)
    os.close(fd)
    if name == "file":
        assert Path(name).read_text() == "".join(f"[1 gpu 3] {n}\n" for n in range(1, 50_001))


def test_a_full_disk_ends_the_output_and_not_the_jobs(
    dispatcher_of: MakeDispatcher, gone: list[str]
):
    fd = os.open("/dev/full", os.O_WRONLY)
    dispatcher = dispatcher_of(
        output=lambda w: Tagged(output_folder(), w, fd, lambda _: gone.append("gone"))
    )

    assert dispatcher.run("seq 50000") == Exited(0)
    assert dispatcher.run("seq 50000", 2) == Exited(0)

    assert gone == ["gone"]
    close_output(dispatcher)
    os.close(fd)


def test_no_descriptor_stays_open_whether_or_not_a_job_starts(
    dispatcher_of: MakeDispatcher, listener: Listener
):
    listener.listen()
    waiters: list[Waiter] = []

    def output(waiter: Waiter) -> Tagged:
        waiters.append(waiter)
        return tagged_to(waiter, listener.write_fd)

    dispatcher = dispatcher_of(output=output, shell="/no/such/shell")
    before = os.listdir("/proc/self/fd")

    for job in range(1, 20):
        dispatcher.launch(launch_of("true", job))

    assert os.listdir("/proc/self/fd") == before
    listener.all()


def test_what_was_shown_is_tidied_away(tagged: Dispatcher, listener: Listener):
    listener.listen()

    tagged.run("seq 1000")
    close_output(tagged)

    assert list(output_folder().iterdir()) == []
    assert len(listener.all().splitlines()) == 1000


def test_another_dispatcher_goes_on_where_the_reading_stopped(
    dispatcher_of: MakeDispatcher, listener: Listener
):
    """The first one dies without a word; its job does not notice."""
    path, run = output_folder() / "0001.1", launch_of("").run
    path.write_bytes(b"shown\nhalf")
    path.with_name("0001.1.shown").write_bytes(b"%020d\n[1 gpu 3] " % len(b"shown\n"))
    dispatcher = dispatcher_of(output=lambda waiter: tagged_to(waiter, listener.write_fd))
    listener.listen()
    assert isinstance(dispatcher.output, Tagged)

    dispatcher.output.adopt(run, launch_of("").placement)
    with path.open("ab") as job:
        job.write(b" a line\n")
    dispatcher.until(lambda: listener.heard)
    dispatcher.output.closed(run)

    assert everything(dispatcher, listener) == ["[1 gpu 3] half a line"]


def test_where_the_kernel_tells_of_no_changes_output_is_looked_for(
    dispatcher_of: MakeDispatcher, listener: Listener, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("smartsched.edges.tagged._inotify", lambda _: -1)
    dispatcher = dispatcher_of(output=lambda waiter: tagged_to(waiter, listener.write_fd))
    listener.listen()

    run = dispatcher.start("echo first; until test -e go; do sleep 0.05; done")
    dispatcher.until(lambda: listener.heard)
    Path("go").touch()

    assert dispatcher.exit_of(run).ending == Exited(0)
    assert everything(dispatcher, listener) == ["[1 gpu 3] first"]


def test_a_process_left_behind_does_not_hold_up_the_output(tagged: Dispatcher, listener: Listener):
    listener.listen()
    run = tagged.start("sleep 600 & echo here")
    assert tagged.exit_of(run).leftovers >= 1
    tagged.until(lambda: listener.heard)

    tagged.processes.kill(run)
    tagged.cleared(run)

    assert everything(tagged, listener) == ["[1 gpu 3] here"]


def test_the_end_of_a_log_is_its_last_lines(tmp_path: Path):
    path = tmp_path / "log"
    path.write_bytes(b"1\n2\n\n3\r\n40%\r80%\r\n\n\n")

    assert tail(str(path), 3) == ["2", "3", "80%"]
    assert tail(str(path), 99) == ["1", "2", "3", "80%"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\r\r"])
def test_of_an_empty_log_there_is_no_end(tmp_path: Path, content: bytes):
    (tmp_path / "log").write_bytes(content)

    assert tail(str(tmp_path / "log"), 5) == []


def test_of_a_missing_log_there_is_no_end(tmp_path: Path):
    assert tail(str(tmp_path / "missing"), 5) == []
    assert tail(str(tmp_path), 5) == []


def test_the_end_of_a_log_of_bytes_is_text(tmp_path: Path):
    path = tmp_path / "log"
    path.write_bytes(bytes(range(256)) * 4 + b"\nlast\xff\n")

    assert tail(str(path), 1) == ["last\udcff"]
    assert len(tail(str(path), 3)) == 3


def test_the_end_of_a_huge_log_is_found_at_once(tmp_path: Path):
    path = tmp_path / "log"
    with path.open("wb") as log:
        log.truncate(1 << 40)
        log.seek(0, os.SEEK_END)
        log.write(b"\nlast\n")

    began = time.monotonic()
    assert tail(str(path), 1) == ["last"]
    assert time.monotonic() - began < 5


def test_pipes_hold_what_the_tests_think_they_do(listener: Listener):
    """Tests above rely on more than a pipeful of output."""
    assert fcntl.fcntl(listener.read_fd, fcntl.F_GETPIPE_SZ) <= 1 << 20
    listener.listen()
    assert listener.all() == b""
