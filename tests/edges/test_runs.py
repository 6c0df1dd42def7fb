"""Where runs are remembered: who may have a name, who holds it, and what is refused."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smartsched.core.model import HostName
from smartsched.edges.runs import JOURNAL, NewRun, Runs, parse_run_name
from smartsched.errors import SmartschedError, StateError, UsageError

HOST = HostName("here")
ROOT = Path(__file__).parents[2]
LOCK = "lock"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "smartsched"


@pytest.fixture
def runs(state: Path) -> Runs:
    return Runs(state, HOST)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def fill(new: NewRun, journal: bytes = b"first\nlast\n") -> NewRun:
    fd = new.folder.open_file(JOURNAL, os.O_RDWR | os.O_CREAT)
    os.write(fd, journal)
    os.close(fd)
    return new


def made(runs: Runs, name: str, journal: bytes = b"first\nlast\n") -> Path:
    """A run that nobody holds any more."""
    new = fill(runs.create(name), journal)
    new.publish()
    new.folder.close()
    return new.folder.path


def modes(folder: Path) -> set[tuple[bool, int]]:
    """Of all that is in it: whether it is a folder, and who may use it."""
    paths = [folder, *folder.rglob("*")]
    return {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths}


def everything_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


class Holder:
    """Another dispatcher, which holds a run until it is told to let go."""

    CODE = """
import sys
from pathlib import Path
from smartsched.core.model import HostName
from smartsched.edges.runs import Runs
folder = Runs(Path(sys.argv[1]), HostName("here")).open(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""

    def __init__(self, state: Path, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(state), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def die(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("name", ["a", "20260101-120000", "A_b.c+d-1", "x" * 64, "_"])
def test_a_name_that_can_be_a_folder_s_is_taken_as_it_is(name: str):
    assert parse_run_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a/b", "a b", "a\n", "\u00e4", "x" * 65, "+a", "a\0"]
)
def test_a_name_that_cannot_be_a_folder_s_is_a_usage_error(name: str):
    with pytest.raises(UsageError, match="cannot be the name"):
        parse_run_name(name)


@pytest.mark.usefixtures("open_umask")
def test_only_we_may_read_or_write_what_we_keep(runs: Runs, state: Path):
    new = fill(runs.create("one"))
    jobs = new.folder.make_folder("jobs")
    new.publish()

    assert jobs.is_dir()
    assert modes(state) == {(True, 0o700), (False, 0o600)}
    new.folder.close()


def test_a_folder_that_others_could_enter_is_closed_to_them(runs: Runs, state: Path):
    path = made(runs, "one")
    path.chmod(0o755)
    path.parent.chmod(0o777)

    runs.open("one").close()

    assert modes(state) == {(True, 0o700), (False, 0o600)}


def test_a_run_has_no_name_until_it_can_be_resumed(runs: Runs):
    new = fill(runs.create("one"))
    assert runs.names() == []

    new.publish()

    assert runs.names() == ["one"]
    assert everything_in(new.folder.path) == [JOURNAL, LOCK]
    new.folder.close()


def test_what_was_not_filled_leaves_nothing(runs: Runs, state: Path):
    new = fill(runs.create("one"))
    new.folder.make_folder("jobs")
    before = len(os.listdir("/proc/self/fd"))

    new.discard()

    assert everything_in(state) == ["runs"]
    assert len(os.listdir("/proc/self/fd")) == before - 3
    made(runs, "one")


def test_a_run_that_never_began_can_be_erased(runs: Runs, state: Path):
    new = fill(runs.create("one"))
    new.folder.make_folder("jobs")
    new.publish()

    new.folder.erase()
    new.folder.close()

    assert everything_in(state) == ["runs"]


def test_the_names_of_runs_are_told_the_latest_first(runs: Runs):
    for name in ("20260101", "20260103", "20260102"):
        made(runs, name)
    unfinished = runs.create("20260104")

    assert runs.names() == ["20260103", "20260102", "20260101"]
    unfinished.discard()


def test_without_a_state_folder_there_are_no_runs(runs: Runs, state: Path):
    assert runs.names() == []
    assert runs.first_and_last_record("one") is None
    assert not state.exists()


@pytest.mark.parametrize("name", ["two", "", "..", "../runs/one", "/etc", ".one", "one/"])
def test_a_run_that_there_is_not_cannot_be_opened(runs: Runs, name: str):
    made(runs, "one")

    with pytest.raises(StateError, match="there is no run"):
        runs.open(name)


def test_a_name_in_use_is_refused_with_what_to_do(runs: Runs):
    made(runs, "one")

    with pytest.raises(SmartschedError, match=r"one already.*--resume one"):
        runs.create("one")


def test_a_living_dispatcher_keeps_its_run_and_is_named(runs: Runs, state: Path):
    made(runs, "one")
    holder = Holder(state, "one")
    who = rf"one is alive: pid {holder.process.pid}\b.* on here since \d{{4}}-\d\d-\d\d \d\d:\d\d"

    with pytest.raises(StateError, match=who):
        runs.open("one")
    with pytest.raises(StateError, match=who):
        runs.create("one")

    holder.die()


def test_a_killed_dispatcher_s_run_can_be_taken_up(runs: Runs, state: Path):
    made(runs, "one")
    Holder(state, "one").die()

    folder = runs.open("one")

    assert folder.name == "one"
    folder.close()


def test_a_run_is_held_only_once_even_by_ourselves(runs: Runs):
    made(runs, "one")
    folder = runs.open("one")

    with pytest.raises(StateError, match=f"alive: pid {os.getpid()}"):
        runs.open("one")

    folder.close()
    runs.open("one").close()


def test_whoever_leaves_a_run_says_so(runs: Runs):
    path = made(runs, "one")
    folder = runs.open("one")
    assert json.loads((path / LOCK).read_text())["pid"] == os.getpid()

    folder.close()

    assert (path / LOCK).read_bytes() == b""


@pytest.mark.parametrize(
    "content",
    [
        b'{"host": "elsewhere", "pid": 7, "since": 1.0, "uid": 0}\n',
        b'{"pid": 7}\n',
        b"torn {",
        b"[]\n",
        b'{"host": null, "pid": null, "since": null, "uid": "x"}',
    ],
)
def test_a_run_that_was_held_elsewhere_may_live_there(runs: Runs, content: bytes):
    path = made(runs, "one")
    (path / LOCK).write_bytes(content)

    with pytest.raises(StateError, match=r"was left by.*lock"):
        runs.open("one")

    assert (path / LOCK).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\n", b'{"host": "here", "pid": 7}\n'])
def test_a_run_that_was_held_here_by_somebody_who_is_gone_is_free(runs: Runs, content: bytes):
    path = made(runs, "one")
    (path / LOCK).write_bytes(content)

    runs.open("one").close()


def no_locks(fd: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_where_nothing_can_be_locked_no_run_is_opened(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    made(runs, "one")
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.raises(StateError, match=r"cannot lock.*--state DIR"):
        runs.open("one")

    assert len(os.listdir("/proc/self/fd")) == before


def test_where_nothing_can_be_locked_no_run_is_made_and_nothing_stays(
    runs: Runs, state: Path, monkeypatch: pytest.MonkeyPatch
):
    made(runs, "one")
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.raises(StateError, match=r"cannot lock.*--state DIR"):
        runs.create("two")

    assert os.listdir(state / "runs") == ["one"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_killed_dispatcher_was_still_filling_is_no_obstacle(runs: Runs, state: Path):
    """Pids come again, in a container at every start."""
    made(runs, "one")
    (state / "runs" / f".two.{os.getpid()}").mkdir(0o700)

    made(runs, "two")

    assert runs.names() == ["two", "one"]


@pytest.mark.parametrize("what", ["runs", "one", JOURNAL, LOCK, "jobs"])
def test_nothing_is_reached_through_a_link(runs: Runs, state: Path, tmp_path: Path, what: str):
    new = fill(runs.create("one"))
    new.folder.make_folder("jobs")
    new.publish()
    new.folder.close()
    places = {"runs": state / "runs", "one": state / "runs" / "one"}
    place = places.get(what, state / "runs" / "one" / what)
    moved = tmp_path / "moved"
    place.rename(moved)
    place.symlink_to(moved)

    with pytest.raises((StateError, OSError)):
        use(runs)


def use(runs: Runs) -> None:
    folder = runs.open("one")
    try:
        folder.make_folder("jobs")
        os.close(folder.open_file(JOURNAL, os.O_RDWR | os.O_CREAT))
    finally:
        folder.close()


def test_a_run_that_is_a_link_cannot_be_made_over(runs: Runs, state: Path, tmp_path: Path):
    made(runs, "one")
    (tmp_path / "precious").mkdir()
    (state / "runs" / "two").symlink_to(tmp_path / "precious")

    with pytest.raises(StateError, match="two"):
        runs.create("two")

    assert list((tmp_path / "precious").iterdir()) == []


@pytest.mark.parametrize("what", [JOURNAL, LOCK])
def test_a_file_with_a_second_name_is_not_ours_alone(runs: Runs, tmp_path: Path, what: str):
    path = made(runs, "one")
    os.link(path / what, tmp_path / "second")

    with pytest.raises((StateError, OSError), match="no plain file of yours alone"):
        use(runs)


@pytest.mark.parametrize("what", [JOURNAL, LOCK])
def test_a_pipe_in_place_of_a_file_makes_nobody_wait(runs: Runs, what: str):
    path = made(runs, "one")
    (path / what).unlink()
    os.mkfifo(path / what)

    with pytest.raises((StateError, OSError), match="no plain file"):
        use(runs)


@pytest.mark.parametrize("what", [".", "runs", "runs/one", f"runs/one/{JOURNAL}", "runs/one/lock"])
def test_what_belongs_to_somebody_else_is_refused(runs: Runs, state: Path, what: str):
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    made(runs, "one")
    os.chown(state / what, 12345, 12345)

    with pytest.raises((StateError, OSError), match=r"somebody else|yours alone"):
        use(runs)


@pytest.mark.parametrize("use", ["create", "open", "names"])
def test_below_a_file_there_is_no_place_for_runs(tmp_path: Path, use: str):
    (tmp_path / "file").touch()
    runs = Runs(tmp_path / "file" / "state", HOST)
    uses: dict[str, Callable[[], object]] = {
        "create": lambda: runs.create("one"),
        "open": lambda: runs.open("one"),
        "names": runs.names,
    }

    with pytest.raises(StateError, match=r"file.*--state DIR"):
        uses[use]()


def test_a_state_folder_that_cannot_be_written_is_refused_with_advice(runs: Runs, state: Path):
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    state.mkdir(parents=True)
    state.chmod(0o500)

    with pytest.raises(StateError, match=r"Permission denied.*--state DIR"):
        runs.create("one")

    state.chmod(0o700)


CREATOR = """
import os, sys
from pathlib import Path
from smartsched.core.model import HostName
from smartsched.edges.runs import Runs
from smartsched.errors import SmartschedError
runs = Runs(Path(sys.argv[1]), HostName("here"))
print("ready", flush=True)
for name in sys.stdin:
    try:
        new = runs.create(name.strip())
        os.write(new.folder.open_file("events.jsonl", os.O_RDWR | os.O_CREAT), b"mine")
        new.publish()
        print("won", flush=True)
    except SmartschedError as error:
        print(error, flush=True)
"""


def test_of_two_who_want_the_same_name_at_once_just_one_gets_it(state: Path):
    creators = [
        subprocess.Popen(
            [sys.executable, "-c", CREATOR, str(state)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    answers: list[list[str]] = []
    for name in ["ready", *[f"run-{number}" for number in range(40)]]:
        for creator in creators:
            assert creator.stdin is not None
            if name != "ready":
                creator.stdin.write(f"{name}\n")
        answers.append([c.stdout.readline().strip() for c in creators if c.stdout is not None])

    for creator in creators:
        creator.kill()
        creator.communicate()
    assert answers.pop(0) == ["ready", "ready"]
    assert [pair.count("won") for pair in answers] == [1] * 40
    losers = [answer for pair in answers for answer in pair if answer != "won"]
    assert [answer for answer in losers if "run-" not in answer] == []
    assert sorted(os.listdir(state / "runs")) == sorted(f"run-{number}" for number in range(40))


@pytest.mark.parametrize(
    ("journal", "expected"),
    [
        (b"", None),
        (b"torn", None),
        (b"first\n", (b"first", b"first")),
        (b"first\nlast\n", (b"first", b"last")),
        (b"first\nlast\ntorn", (b"first", b"last")),
        (b"first\ntorn", (b"first", b"first")),
        (b"x" * 9000 + b"\n" + b"y" * 100 + b"\n", (b"x" * 9000, b"y" * 100)),
        (b"first\n" + b"z\n" * 9000 + b"last\n", (b"first", b"last")),
    ],
)
def test_a_run_s_first_and_last_record_are_its_whole_lines(
    runs: Runs, journal: bytes, expected: tuple[bytes, bytes] | None
):
    made(runs, "one", journal)

    assert runs.first_and_last_record("one") == expected


def test_a_run_that_is_held_can_still_be_looked_at(runs: Runs):
    new = fill(runs.create("one"))
    new.publish()

    assert runs.first_and_last_record("one") == (b"first", b"last")
    new.folder.close()


def test_a_folder_without_a_journal_has_no_records(runs: Runs, state: Path):
    made(runs, "one")
    (state / "runs" / "empty").mkdir()

    assert runs.first_and_last_record("empty") is None
    assert runs.first_and_last_record("missing") is None


def unfinished(runs: Runs, state: Path, *, minutes_ago: int) -> tuple[NewRun, Path]:
    """A folder that its dispatcher has begun to fill."""
    new = fill(runs.create("first"))
    [building] = (state / "runs").glob(".*")
    then = building.stat().st_mtime - 60 * minutes_ago
    os.utime(building, (then, then))
    return new, building


def test_what_a_killed_dispatcher_began_to_fill_is_tidied_away(runs: Runs, state: Path):
    new, building = unfinished(runs, state, minutes_ago=2)
    new.folder.close()
    before = len(os.listdir("/proc/self/fd"))

    made(runs, "second")

    assert not building.exists()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("minutes_ago", "is_held"), [(2, True), (0, False)])
def test_what_a_living_dispatcher_may_be_filling_is_left_alone(
    runs: Runs, state: Path, minutes_ago: int, is_held: bool
):
    new, building = unfinished(runs, state, minutes_ago=minutes_ago)
    if not is_held:
        new.folder.close()
    before = len(os.listdir("/proc/self/fd"))

    made(runs, "second")

    assert (building / JOURNAL).exists()
    assert len(os.listdir("/proc/self/fd")) == before
