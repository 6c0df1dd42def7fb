"""What machines and jobs do to a dispatcher: full disks, stopped processes, forged pids, floods."""

import os
import resource
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

import pytest
from msgspec.structs import replace

from smartsched.core.events import Event, RunBegan, RunLaunched, RunPlaced
from smartsched.core.model import ProcessId
from smartsched.core.records import decode_line, encode
from smartsched.edges.family import Family
from tests.cli.harness import MOMENT, Box, Session, alive
from tests.stub_nvml import StubGpu, StubMachine, compile_library
from tests.waiting import wait_until

HOUR = 3600.0
MANY = 64
GIB = 1 << 30


def gated(name: str) -> str:
    wait = f"until test -e go-{name} || test -e go; do sleep 0.01; done"
    return f"echo {name} $$ >> began; {wait}; echo {name} >> done"


def let_go(box: Box, name: str = "") -> None:
    (box.folder / (f"go-{name}" if name else "go")).touch()


def pids(box: Box, count: int) -> list[int]:
    """Of the first so many jobs that began."""
    wait_until(lambda: len(box.lines("began")) >= count, f"{count} jobs began")
    return [int(line.split()[1]) for line in box.lines("began")]


def on_record(box: Box, jobs: int, session: Session) -> None:
    """Starts are said before they are written down."""
    wait_until(lambda: len(box.events("run_launched")) >= jobs, "it is written", session.dump)


def rewrite(box: Box, change: Callable[[Event], Event]) -> None:
    """The journal, as if something else had happened."""
    path = box.run_folder() / "events.jsonl"
    lines = path.read_bytes().splitlines()
    events = [decode_line(line, seq) for seq, line in enumerate(lines, start=1)]
    path.write_bytes(b"".join(encode(change(e), seq) for seq, e in enumerate(events, start=1)))


def forget_starts(box: Box, *, machine: str = "", boot: str = "") -> None:
    """The journal, cut off where the first start was noted; as if it were of another machine, or
    of another boot."""
    path = box.run_folder() / "events.jsonl"
    lines = path.read_bytes().splitlines()
    events = [decode_line(line, seq) for seq, line in enumerate(lines, start=1)]
    kept = list(takewhile(lambda event: not isinstance(event, RunPlaced), events))
    began = kept[0]
    assert isinstance(began, RunBegan)
    ours = began.place.split("/")
    kept[0] = replace(began, place=f"{machine or ours[0]}/{boot or ours[1]}/{ours[2]}")
    path.write_bytes(b"".join(encode(event, seq) for seq, event in enumerate(kept, start=1)))


class TestNoRoom:
    """Nothing can be written down: nothing new starts, all else goes on."""

    @pytest.fixture
    def session(self, box: Box) -> Session:
        """Jobs a and b run, c and d wait; no file of the dispatcher's can grow any more."""
        # the journal is the longest of its files: only that one has no room
        padding = f" # {'x' * 2000}"
        commands = [gated(name) + padding for name in "abcd"]
        # CPython before 3.12.8 takes a module that it compiled, and wrote in part, for whole
        # (python/cpython#126606)
        env = {"PYTHONDONTWRITEBYTECODE": "1"}
        session = box.start(*MOMENT, "--gpus", "0,1", str(box.list_of(commands)), env=env)
        session.says("job 2 started")
        pids(box, 2)
        on_record(box, 2, session)
        let_go(box, "c")
        let_go(box, "d")
        self.limit(box, session)
        return session

    @staticmethod
    def limit(box: Box, session: Session) -> None:
        """A little fits, so that a record is written in part."""
        size = (box.run_folder() / "events.jsonl").stat().st_size
        resource.prlimit(
            session.process.pid, resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY)
        )

    @staticmethod
    def make_room(session: Session) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(session.process.pid, resource.RLIMIT_FSIZE, unlimited)

    def test_running_jobs_end_nothing_starts_and_it_goes_on_with_room(
        self, box: Box, session: Session
    ):
        let_go(box, "a")
        session.says("job 1 ok")
        assert "b" not in box.lines("done")
        let_go(box, "b")
        session.says("job 2 ok")
        session.says("nothing is started: cannot write")
        assert "File too large" in session.err
        assert "job 3 started" not in session.err

        self.make_room(session)

        done = session.end()
        assert done.status == 0
        assert "4 jobs ok" in done.err
        assert Counter(box.lines("done")) == dict.fromkeys("abcd", 1)
        assert "nothing is left" in box.run("--resume").err

    def test_what_could_not_be_written_down_before_a_crash_is_found_out_anew(
        self, box: Box, session: Session
    ):
        let_go(box, "a")
        session.says("job 1 ok")
        session.crash()
        let_go(box, "b")

        done = box.run("--resume")

        assert done.status == 0
        assert "4 jobs ok" in done.err
        assert Counter(box.lines("done")) == dict.fromkeys("abcd", 1)

    def test_it_can_be_stopped_meanwhile(self, box: Box, session: Session):
        session.signal(signal.SIGTERM)

        done = session.end()
        assert done.status == 130
        assert not any(map(alive, pids(box, 2)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a run's beginning and not much more."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "smartsched-test", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a small file system, and not everywhere")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def fill(place: Path) -> Path:
    """Take all the room there is."""
    filler = place / "filler"
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    return filler


def test_a_full_disk_holds_new_work_until_there_is_room(box: Box, small_disk: Path):
    # the page that the journal ends in still has room for a few jobs' records, not for all
    commands = [gated("a"), *[f"echo {number} >> done" for number in range(60)]]
    session = box.start(
        *MOMENT, "--gpus", "0", "--state", str(small_disk), str(box.list_of(commands))
    )
    session.says("job 1 started")
    pids(box, 1)
    filler = fill(small_disk)
    let_go(box)
    session.says("No space left on device")
    assert len(box.lines("done")) < 30

    filler.unlink()

    done = session.end()
    assert done.status == 0
    assert Counter(box.lines("done")) == Counter(["a", *map(str, range(60))])


def test_a_run_for_which_there_is_no_room_is_one_line_and_leaves_nothing(
    box: Box, small_disk: Path
):
    filler = fill(small_disk)

    done = box.run(*MOMENT, "--state", str(small_disk), commands=["touch started"])

    assert done.status == 255
    assert "No space left on device" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (box.folder / "started").exists()
    filler.unlink()
    assert not list(small_disk.glob("runs/*"))


class HangingDisk:
    """One that does not answer from `hang` to `answer`."""

    def __init__(self, folder: Path) -> None:
        library, self._hangs = folder / "hanging-disk.so", folder / "hangs"
        compile_library(Path(__file__).with_name("hanging_disk.c"), library)
        self.env = {"LD_PRELOAD": str(library), "DISK_HANGS": str(self._hangs)}

    def hang(self) -> None:
        self._hangs.touch()

    def answer(self) -> None:
        self._hangs.unlink()

    def until(self, what: str, session: Session) -> None:
        """A call by which nobody waits for the disk "waits" or is "done"."""
        log = Path(f"{self._hangs}.log")
        wait_until(
            lambda: log.exists() and what in log.read_text().splitlines(), what, session.dump
        )


@pytest.fixture
def hanging_disk(tmp_path: Path) -> HangingDisk:
    return HangingDisk(tmp_path)


def goes_on_while_it_hangs(box: Box, session: Session, disk: HangingDisk, call: str) -> None:
    """Of jobs a, b and c on one GPU, a runs."""
    disk.hang()
    let_go(box, "a")
    disk.until(f"{call} waits", session)

    let_go(box, "b")
    session.says("job 3 started")

    disk.answer()
    let_go(box, "c")
    done = session.end()
    assert done.status == 0
    assert "3 jobs ok" in done.err


def test_ends_are_acted_on_and_jobs_started_while_the_disk_does_not_answer(
    box: Box, hanging_disk: HangingDisk
):
    """As one that others fill with their checkpoints does, for seconds at a time."""
    commands = [gated(name) for name in "abc"]
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of(commands)), env=hanging_disk.env)
    session.says("job 1 started")
    goes_on_while_it_hangs(box, session, hanging_disk, "fdatasync")
    assert "nothing is left" in box.run("--resume").err


def test_nor_is_it_waited_for_with_what_a_job_has_taught(box: Box, hanging_disk: HangingDisk):
    training = box.training("a", "--seconds", "2", "--mem", str(4 * GIB))
    commands = [f"{training}; {gated('a')}", gated("b"), gated("c")]
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of(commands)), env=hanging_disk.env)
    session.says("job 1 started")
    wait_until(lambda: box.trained("end"), "it has trained", session.dump)
    goes_on_while_it_hangs(box, session, hanging_disk, "fsync")
    assert "1 shape, kept in" in box.run("shapes").out


def test_what_is_not_on_record_is_not_forgotten_because_the_disk_has_kept_something_else(
    box: Box, hanging_disk: HangingDisk
):
    """The end of b could not be written, and there is its own record alone to tell of it."""
    padding = f" # {'x' * 2000}"
    commands = [gated(name) + padding for name in "abcd"]
    env = hanging_disk.env | {"PYTHONDONTWRITEBYTECODE": "1"}
    session = box.start(*MOMENT, "--gpus", "0,1", str(box.list_of(commands)), env=env)
    session.says("job 2 started")
    hanging_disk.until("fdatasync done", session)
    hanging_disk.hang()
    let_go(box, "a")
    session.says("job 3 started")
    on_record(box, 3, session)
    hanging_disk.until("fdatasync waits", session)
    TestNoRoom.limit(box, session)
    let_go(box, "b")
    session.says("nothing is started: cannot write")
    records = box.run_folder() / "jobs"
    assert (records / "0002.1").exists()

    hanging_disk.answer()
    wait_until(lambda: not (records / "0001.1").exists(), "a is kept for good", session.dump)
    session.crash()

    assert (records / "0002.1").exists()
    let_go(box)
    done = box.run("--resume")
    assert done.status == 0
    assert Counter(box.lines("done")) == dict.fromkeys("abcd", 1)


def test_jobs_that_end_while_the_dispatcher_is_stopped_are_not_lost(box: Box):
    commands = [gated(str(number)) for number in range(4)] + ["echo next >> done"] * 4
    session = box.start(*MOMENT, str(box.list_of(commands)))
    jobs = pids(box, 4)
    session.says("job 4 started")

    session.signal(signal.SIGSTOP)
    let_go(box)
    wait_until(lambda: not any(map(alive, jobs)), "they have ended")
    session.signal(signal.SIGCONT)

    done = session.end()
    assert done.status == 0
    assert "8 jobs ok" in done.err
    assert Counter(box.lines("done")) == {"next": 4} | {str(n): 1 for n in range(4)}


@pytest.fixture
def large_box(tmp_path: Path, stub_library: Path) -> Iterator[Box]:
    gpus = [StubGpu(index) for index in range(MANY)]
    folder = tmp_path / "work"
    folder.mkdir()
    box = Box(folder, StubMachine(tmp_path / "machine", stub_library, gpus=gpus))
    yield box
    box.close()


@pytest.mark.parametrize("dies", [False, True])
def test_many_jobs_may_end_at_the_same_moment(large_box: Box, dies: bool):
    box = large_box
    os.mkfifo(box.folder / "gate")
    command = "echo $SMARTSCHED_JOB $$ >> began; read _ < gate; echo $SMARTSCHED_JOB >> done"
    session = box.start(*MOMENT, "-q", str(box.list_of([command] * MANY)))
    jobs = pids(box, MANY)
    if dies:
        session.crash()

    wait_until(lambda: _open_gate(box) and not any(map(alive, jobs)), "they have ended")
    done = box.run("--resume", "-q") if dies else session.end()

    assert done.status == 0
    assert f"{MANY} jobs ok" in done.err
    assert Counter(box.lines("done")) == {str(job): 1 for job in range(1, MANY + 1)}


def _open_gate(box: Box) -> bool:
    """Let everybody through who waits there."""
    with suppress(OSError):
        os.close(os.open(box.folder / "gate", os.O_WRONLY | os.O_NONBLOCK))
    return True


DAEMON = """
import os, signal, time
os.fork() and os._exit(0)
os.setsid()
os.fork() and os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("daemon", "w").write(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.parametrize("dies", [False, True])
def test_a_daemon_that_a_job_leaves_behind_is_stopped_even_if_it_does_not_want_to(
    box: Box, dies: bool
):
    (box.folder / "daemon.py").write_text(DAEMON)
    start = f"{shlex.quote(sys.executable)} daemon.py; until test -s daemon; do sleep 0.01; done"
    session = box.start(
        *MOMENT, "--gpus", "0", "--grace", "300ms",
        str(box.list_of([f"{start}; {gated('a')}", "echo b >> done"])),
    )  # fmt: skip
    pids(box, 1)
    session.says("job 1 started")
    if dies:
        session.crash()
        session = box.start("--resume")
        session.says("job 1 still runs")
    let_go(box)

    done = session.end()
    assert done.status == 0
    assert "job 1 left 1 process behind" in done.err
    assert not alive(int((box.folder / "daemon").read_text()))
    assert box.lines("done") == ["a", "b"]


@pytest.mark.parametrize(
    "size",
    [64 << 20, pytest.param(GIB, marks=pytest.mark.soak)],
)
def test_a_job_that_writes_very_much_fills_its_log_and_stalls_nobody(box: Box, size: int):
    flood = f"dd if=/dev/zero bs=1M count={size >> 20} 2>/dev/null"

    done = box.run(*MOMENT, "--gpus", "0,1", commands=[flood, *["echo said"] * 10])

    assert done.status == 0
    assert [log.stat().st_size for log in box.job_logs()] == [size, *[5] * 10]
    box.job_logs()[0].unlink()


@pytest.mark.parametrize("mode", ["log", "tag", "raw"])
def test_a_job_may_close_its_output(box: Box, mode: str):
    command = "echo said; exec >&- 2>&- <&-; sleep 0.2; echo a >> done; exit 5"

    done = box.run(*MOMENT, "--output", mode, commands=[command, "echo b >> done"])

    assert done.status == 1
    assert "exit status 5" in done.err
    assert sorted(box.lines("done")) == ["a", "b"]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_clock_that_was_set_between_two_dispatchers_confuses_nobody(box: Box, step: float):
    session = box.start(
        *MOMENT, "--gpus", "0", "--joblog", "jobs.tsv",
        str(box.list_of(["true", gated("a"), "echo b >> done"])),
    )  # fmt: skip
    on_record(box, 2, session)
    pids(box, 1)
    wait_until(lambda: len(box.lines("jobs.tsv")) == 2, "one is done", session.dump)
    session.crash()
    rewrite(box, lambda event: replace(event, at=event.at + step))
    (box.folder / "jobs.tsv").unlink()

    session = box.start("--resume")
    session.says("job 2 still runs on GPU 0")
    let_go(box)

    done = session.end()
    assert done.status == 0
    assert "3 jobs ok" in done.err
    assert box.lines("done") == ["a", "b"]
    rows = [line.split("\t") for line in box.lines("jobs.tsv")[1:]]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(float(row[3]) >= 0 for row in rows)


@contextmanager
def bystander() -> Iterator[int]:
    """Somebody's process that leads a group and a session, as our jobs do."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        yield process.pid
        assert process.poll() is None, "the bystander was killed"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("what", ["the pid", "the pid and the start", "all but the boot"])
@pytest.mark.parametrize("then", ["goes on", "is stopped", "does not adopt"])
def test_a_pid_that_somebody_else_has_now_is_not_taken_for_the_jobs(box: Box, what: str, then: str):
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([gated("a"), "echo b >> done"])))
    [job] = pids(box, 1)
    on_record(box, 1, session)
    session.crash()
    os.killpg(os.getpgid(job), signal.SIGKILL)
    wait_until(box.is_quiet, "the job is gone")
    with bystander() as pid:
        true = Family(list).identify(pid)

        def forge(event: Event) -> Event:
            if not isinstance(event, RunLaunched):
                return event
            forged = {
                "the pid": event.process._replace(pid=pid),
                "the pid and the start": ProcessId(pid, true.start_ticks + 1, true.boot),
                "all but the boot": ProcessId(pid, true.start_ticks, "0" * 32),
            }
            return replace(event, process=forged[what])

        rewrite(box, forge)
        options = ["--no-adopt"] if then == "does not adopt" else []
        session = box.start("--resume", *options)
        pids(box, 2)
        assert "job 1 is lost" in session.err
        if then == "is stopped":
            session.signal(signal.SIGTERM)
            assert session.end().status == 130
        else:
            let_go(box)
            assert session.end().status == 0
            assert box.lines("done") == ["a", "b"]


def test_a_start_that_was_lost_with_the_power_is_begun_anew(box: Box):
    """Its own record, which nobody knows any more, is not in the way."""
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([gated("a"), "echo b >> done"])))
    [job] = pids(box, 1)
    session.crash()
    os.killpg(os.getpgid(job), signal.SIGKILL)
    wait_until(box.is_quiet, "the job is gone")
    forget_starts(box, boot="0" * 32)
    let_go(box)

    session = box.start("--resume")

    assert session.end().status == 0
    assert box.lines("done") == ["a", "b"]
    assert [event["run"] for event in box.events("run_placed")] == [[1, 1], [2, 1]]


@pytest.mark.parametrize("then", ["it goes on", "it has ended", "it was killed"])
def test_an_attempt_of_which_the_journal_has_lost_all_word_is_taken_up_by_its_record(
    box: Box, then: str
):
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([f"{gated('a')}; exit 7"])))
    [job] = pids(box, 1)
    session.crash()
    forget_starts(box)
    if then == "it has ended":
        let_go(box)
    elif then == "it was killed":
        os.killpg(os.getpgid(job), signal.SIGKILL)
    if then != "it goes on":
        wait_until(box.is_quiet, "the job is gone")

    session = box.start("--resume")

    let_go(box)
    ended = session.end()
    assert ended.status == 1
    began = len(box.lines("began"))
    assert (began, len(box.lines("done"))) == ((2, 1) if then == "it was killed" else (1, 1))
    assert "exit status 7" in session.err


def test_an_attempt_that_nobody_knows_is_not_begun_anew_where_it_cannot_be_seen(box: Box):
    """Its machine may live, and cannot write the journal."""
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([gated("a")])))
    pids(box, 1)
    session.crash()
    forget_starts(box, machine="f" * 32)
    let_go(box)
    wait_until(box.is_quiet, "the job is gone")

    refused = box.run("--resume")
    assert refused.status == 255
    assert "--assume-gone" in refused.err

    assert box.run("--resume", "--assume-gone").status == 0
    assert len(box.lines("done")) == 2


def test_a_job_that_lives_though_it_cannot_be_told_apart_is_stopped_before_it_runs_again(box: Box):
    """Two attempts at one job must not meet."""
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([gated("a")])))
    [first] = pids(box, 1)
    on_record(box, 1, session)
    session.crash()

    def forge(event: Event) -> Event:
        if not isinstance(event, RunLaunched):
            return event
        start = event.process.start_ticks + 1
        return replace(event, process=event.process._replace(start_ticks=start))

    rewrite(box, forge)
    session = box.start("--resume")
    _, second = pids(box, 2)
    assert not alive(first)
    assert alive(second)
    let_go(box)

    assert session.end().status == 0
    assert box.lines("done") == ["a"]


def test_a_job_whose_wrapper_was_killed_has_failed_and_nothing_of_it_stays(box: Box):
    session = box.start(*MOMENT, str(box.list_of([gated("a")])))
    [command] = pids(box, 1)
    session.says("job 1 started")

    os.kill(os.getpgid(command), signal.SIGKILL)

    done = session.end()
    assert done.status == 1
    assert "job 1 failed: killed by SIGKILL" in done.err
    assert not alive(command)


def test_a_job_whose_wrapper_was_killed_while_nobody_watched_is_not_there_twice(box: Box):
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([gated("a")])))
    [command] = pids(box, 1)
    session.says("job 1 started")
    session.crash()
    os.kill(os.getpgid(command), signal.SIGKILL)
    assert alive(command)

    session = box.start("--resume")
    pids(box, 2)
    assert not alive(command)
    let_go(box)

    assert session.end().status == 0
    assert box.lines("done") == ["a"]


def test_a_sampler_that_dies_with_the_dispatcher_while_a_job_starts_loses_nothing(box: Box):
    """Killed as soon as the first start is on record: the job has begun, or it has not."""
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of(["echo a >> done"] * 3)))
    wait_until(lambda: box.events("run_placed"), "a start is on record", session.dump)
    session.crash()

    done = box.run("--resume")

    assert done.status == 0
    assert box.lines("done") == ["a"] * 3
