"""What was learned of command shapes, on disk: shared by dispatchers, and never in a run's way."""

import errno
import fcntl
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from smartsched.core.apply import MOST_SHAPES
from smartsched.core.decide import Decision
from smartsched.core.events import RunMeasured
from smartsched.core.footprint import NO_RUNS, Footprint
from smartsched.core.model import HostName
from smartsched.core.shapes import LONGEST
from smartsched.core.state import State
from smartsched.edges.beside import Beside
from smartsched.edges.footprints import FootprintFile
from smartsched.edges.runs import open_own_file
from smartsched.errors import StateError, UsageError
from tests.builders import GIB, T0, a_policy, a_run, finished
from tests.waiting import wait_until

HOST = HostName("box")
ROOT = Path(__file__).parents[2]
TRAIN = "python train.py --lr *"
LAST_USED = 1_700_000_000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


def measured(shape: str = TRAIN, *, at: float = T0, **fields: Any) -> RunMeasured:
    values = {"peak_bytes": GIB, "utilization_percent": 50.0, "seconds": 100.0} | fields
    return RunMeasured(at, a_run(), shape, **values)


def footprint(runs: int = 1) -> Footprint:
    """Of so many runs as above."""
    known = NO_RUNS
    for _ in range(runs):
        known = known.with_run(GIB, 50.0, 100.0)
    return known


@dataclass
class Dispatcher:
    """One that keeps what it learns, and the warnings that its user reads."""

    state: Path
    host: HostName = HOST
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.file = FootprintFile(
            self.state, self.host, open_own_file, self.warnings.append, Beside
        )

    def learns(self, *runs: RunMeasured) -> None:
        for run in runs:
            self.file.recorded(run, State(a_policy()), T0)

    def ticks(self, seconds: float = 0.0, *, wait: bool = True) -> None:
        """The loop's, and the one in which it is known what has become of it."""
        self.file.decided(Decision(), State(a_policy()), T0 + seconds)
        if not wait:
            return
        wait_until(lambda: not self.file.is_saving())
        self.file.decided(Decision(), State(a_policy()), T0 + seconds)

    def keeps(self, *runs: RunMeasured) -> None:
        """From the first to the last of its life."""
        self.learns(*runs)
        self.file.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The user's, as a run that has begun leaves it."""
    folder = tmp_path / "state" / "smartsched"
    folder.mkdir(0o700)
    return folder


@pytest.fixture
def dispatcher(state: Path) -> Dispatcher:
    return Dispatcher(state)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def known(state: Path, host: HostName = HOST) -> dict[str, Footprint]:
    """To the next dispatcher, which has nothing to complain of."""
    other = Dispatcher(state, host)
    found = other.file.load()
    assert other.warnings == []
    return found


def put(state: Path, content: bytes) -> Path:
    """Where the file belongs."""
    path = FootprintFile(state, HOST, open_own_file, print).path
    path.parent.mkdir(0o700, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def a_file(shapes: object, version: object = 1) -> bytes:
    return json.dumps({"smartsched_shapes": version, "shapes": shapes}).encode()


def some_fields(**changes: Any) -> dict[str, object]:
    """Of a shape, as they are written."""
    fields = {
        "runs": 3,
        "peak_bytes": GIB,
        "utilization_percent": 50.0,
        "mean_seconds": 90.0,
        "longest_seconds": 100.0,
        "last_used": LAST_USED,
    }
    return fields | changes


@contextmanager
def locked(state: Path) -> Iterator[Callable[[], None]]:
    """Somebody else writes, until told to let go."""
    fd = os.open(state / "shapes" / "box.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield lambda: fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


@contextmanager
def no_room(size: int = 10) -> Iterator[None]:
    """No file of ours can become larger than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- what is kept


def test_what_one_dispatcher_learns_the_next_one_knows(state: Path, dispatcher: Dispatcher):
    dispatcher.keeps(measured(), measured("python eval.py", utilization_percent=None), measured())

    assert known(state) == {
        TRAIN: footprint(2),
        "python eval.py": NO_RUNS.with_run(GIB, None, 100.0),
    }
    assert dispatcher.warnings == []


def test_what_is_learned_adds_to_what_was_known_in_the_order_in_which_it_happened(state: Path):
    peaks = [GIB, 3 * GIB, 2 * GIB, GIB]
    for peak in peaks[:2]:
        Dispatcher(state).keeps(measured(peak_bytes=peak))
    Dispatcher(state).keeps(*(measured(peak_bytes=peak) for peak in peaks[2:]))

    expected = NO_RUNS
    for peak in peaks:
        expected = expected.with_run(peak, 50.0, 100.0)
    assert known(state) == {TRAIN: expected}


def test_where_nothing_is_learned_nothing_is_made(state: Path, dispatcher: Dispatcher):
    assert dispatcher.file.load() == {}

    dispatcher.file.recorded(finished(), State(a_policy()), T0)
    dispatcher.ticks()
    dispatcher.file.close()

    assert list(state.iterdir()) == []
    assert dispatcher.file.wake_at() == float("inf")
    assert dispatcher.warnings == []


def test_nothing_is_known_where_there_is_no_state_folder(tmp_path: Path):
    assert known(tmp_path / "none") == {}


def test_of_a_command_nothing_is_written_but_its_shape(state: Path, dispatcher: Dispatcher):
    dispatcher.keeps(measured(at=LAST_USED + 0.4))

    [path] = (state / "shapes").glob("*.json")
    assert json.loads(path.read_text()) == {
        "smartsched_shapes": 1,
        "shapes": {TRAIN: some_fields(runs=1, mean_seconds=100.0)},
    }


def test_what_was_used_last_comes_last(state: Path):
    Dispatcher(state).keeps(measured("a", at=T0), measured("b", at=T0 + 1), measured("c", at=T0))
    Dispatcher(state).keeps(measured("a", at=T0 + 2))

    assert list(known(state)) == ["c", "b", "a"]


def test_of_more_shapes_than_are_kept_those_used_last_stay(state: Path):
    shapes = [f"{number:04}" for number in range(MOST_SHAPES + 10)]
    later = [measured(shape, at=T0 + 100) for shape in shapes[MOST_SHAPES:]]
    Dispatcher(state).keeps(*(measured(shape, at=T0) for shape in shapes[:MOST_SHAPES]))

    Dispatcher(state).keeps(measured(shapes[0], at=T0 + 50), *later)

    assert list(known(state)) == [*shapes[11:MOST_SHAPES], shapes[0], *shapes[MOST_SHAPES:]]


def test_the_most_shapes_at_their_longest_can_be_read_again(state: Path):
    long = "\N{GRINNING FACE}" * (LONGEST - 4)  # twelve bytes each
    shapes = [f"{number:04}{long}" for number in range(MOST_SHAPES)]

    Dispatcher(state).keeps(*(measured(shape) for shape in shapes))

    assert list(known(state)) == shapes


def test_every_host_has_a_file_of_its_own(state: Path, dispatcher: Dispatcher):
    dispatcher.keeps(measured("here"))
    Dispatcher(state, HostName("other")).keeps(measured("there"))

    assert (known(state), known(state, HostName("other"))) == (
        {"here": footprint()},
        {"there": footprint()},
    )


@pytest.mark.parametrize("name", ["../../there", "/etc", "a b\n", "..", "", "\udcff"])
def test_a_host_of_any_name_has_its_file_in_the_folder(state: Path, name: str):
    Dispatcher(state, HostName(name)).keeps(measured())

    assert known(state, HostName(name)) == {TRAIN: footprint()}
    assert os.listdir(state) == ["shapes"]
    assert len(os.listdir(state / "shapes")) == 2


# --- when it is written


def test_it_is_written_at_once_and_then_twice_a_minute_while_something_is_new(
    state: Path, dispatcher: Dispatcher
):
    dispatcher.learns(measured())
    assert dispatcher.file.wake_at() <= T0
    dispatcher.ticks()
    assert known(state)[TRAIN].runs == 1

    dispatcher.learns(measured())
    dispatcher.ticks(29)
    assert known(state)[TRAIN].runs == 1
    assert dispatcher.file.wake_at() == T0 + 30

    dispatcher.ticks(30)
    assert known(state)[TRAIN].runs == 2
    assert dispatcher.file.wake_at() == float("inf")


def test_what_was_not_written_yet_is_written_at_the_end(state: Path, dispatcher: Dispatcher):
    dispatcher.learns(measured())
    dispatcher.ticks()

    dispatcher.keeps(measured())

    assert known(state)[TRAIN].runs == 2


def test_while_somebody_else_writes_it_is_tried_again_a_moment_later(
    state: Path, dispatcher: Dispatcher
):
    Dispatcher(state).keeps(measured("other"))
    dispatcher.learns(measured())
    with locked(state):
        dispatcher.ticks()
        assert TRAIN not in known(state)
        assert T0 < dispatcher.file.wake_at() <= T0 + 5

    dispatcher.ticks(5)

    assert known(state) == {"other": footprint(), TRAIN: footprint()}
    assert dispatcher.warnings == []


def test_nobody_waits_for_a_slow_disk_but_at_the_end(
    state: Path, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
):
    let, sync = threading.Semaphore(0), os.fsync

    def slow(fd: int) -> None:
        assert let.acquire(timeout=60)
        sync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    dispatcher.learns(measured())
    dispatcher.ticks(wait=False)
    dispatcher.learns(measured("later"))
    dispatcher.ticks(40, wait=False)

    assert known(state) == {}
    assert T0 + 40 < dispatcher.file.wake_at() <= T0 + 42
    let.release(2)
    dispatcher.file.close()
    assert known(state) == {TRAIN: footprint(), "later": footprint()}


def test_at_the_end_somebody_else_is_waited_for(state: Path, dispatcher: Dispatcher):
    Dispatcher(state).keeps(measured("other"))
    dispatcher.learns(measured())
    with locked(state) as let_go:
        timer = threading.Timer(0.2, let_go)
        timer.start()
        dispatcher.file.close()
        timer.join()

    assert known(state).keys() == {"other", TRAIN}
    assert dispatcher.warnings == []


def test_at_the_end_somebody_else_is_not_waited_for_for_ever(state: Path, dispatcher: Dispatcher):
    Dispatcher(state).keeps(measured("other"))
    with locked(state):
        dispatcher.keeps(measured())

    assert known(state).keys() == {"other"}
    [warning] = dispatcher.warnings
    assert "not kept for later runs" in warning
    assert "is being written by somebody else" in warning


MANY_RUNS = """
import sys
from pathlib import Path
from tests.edges.test_footprints import Dispatcher, measured

state, name = Path(sys.argv[1]), sys.argv[2]
dispatcher = Dispatcher(state)
print("ready", flush=True)
sys.stdin.read()
seconds = 0
for number in range(25):
    dispatcher.learns(measured("shared", seconds=10.0), measured(name))
    while dispatcher.file.wake_at() < float("inf"):
        seconds += 30
        dispatcher.ticks(seconds)
assert dispatcher.warnings == [], dispatcher.warnings
"""


def test_dispatchers_that_write_at_once_lose_nothing_of_each_other(state: Path):
    argv = [sys.executable, "-c", MANY_RUNS, str(state)]
    writers = [
        subprocess.Popen(
            [*argv, f"of {name}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        for name in "abcde"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    wait_until(
        lambda: known(state) is not None and all(w.poll() is not None for w in writers),
        "all of them have written, and whatever is there meanwhile can be read",
    )

    assert [writer.wait() for writer in writers] == [0] * 5
    shared = known(state).pop("shared")
    assert (shared.runs, shared.mean_seconds, shared.longest_seconds) == (125, 10.0, 10.0)
    assert known(state) == {"shared": shared} | {f"of {name}": footprint(25) for name in "abcde"}
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()


def test_what_one_that_was_killed_had_half_written_is_in_nobody_s_way(
    state: Path, dispatcher: Dispatcher
):
    path = put(state, a_file({TRAIN: some_fields()}))
    path.with_suffix(".new").write_bytes(b'{"smartsched_shapes": 1, "sha')

    dispatcher.keeps(measured())

    assert known(state)[TRAIN].runs == 4
    assert sorted(os.listdir(path.parent)) == ["box.json", "box.lock"]


# --- what may be wrong with it


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 4096,
        b"\xff\xfe\xfd",
        b"[]",
        b"null",
        b"1",
        b"[" * 200_000,
        b"9" * 10_000,
        a_file({TRAIN: some_fields()})[:-20],
        a_file([TRAIN]),
        a_file(None),
        a_file({TRAIN: some_fields()}, version=0),
        a_file({TRAIN: some_fields()}, version="1"),
        a_file({TRAIN: some_fields()}, version=None),
        json.dumps({"shapes": {TRAIN: some_fields()}}).encode(),
        a_file({TRAIN: some_fields()}) + b" " * 9 * 2**20,
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_damaged_file_is_said_to_be_so_once_and_begun_anew(
    state: Path, dispatcher: Dispatcher, content: bytes
):
    path = put(state, content)

    assert dispatcher.file.load() == {}
    dispatcher.keeps(measured())

    [warning] = dispatcher.warnings
    assert str(path) in warning
    assert len(warning.splitlines()) == 1
    assert known(state) == {TRAIN: footprint()}


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        some_fields(runs=0),
        some_fields(runs=-1),
        some_fields(runs=1.5),
        some_fields(runs="1"),
        some_fields(runs=10**400),
        some_fields(peak_bytes=-1),
        some_fields(peak_bytes=1e9),
        some_fields(peak_bytes=None),
        some_fields(peak_bytes=10**400),
        some_fields(utilization_percent=-1),
        some_fields(utilization_percent=101),
        some_fields(utilization_percent="50"),
        some_fields(utilization_percent=float("nan")),
        some_fields(mean_seconds=-0.1),
        some_fields(mean_seconds=float("nan")),
        some_fields(mean_seconds=float("inf")),
        some_fields(longest_seconds=float("-inf")),
        some_fields(longest_seconds=[1]),
        some_fields(last_used=float("inf")),
        some_fields(last_used=float("nan")),
        some_fields(last_used=None),
        {name: value for name, value in some_fields().items() if name != "runs"},
    ],
    ids=lambda fields: repr(fields)[:60],
)
def test_a_shape_that_cannot_be_is_left_out(state: Path, dispatcher: Dispatcher, fields: object):
    put(state, a_file({"wrong": fields, TRAIN: some_fields()}))

    found = dispatcher.file.load()

    assert found == {TRAIN: Footprint(3, GIB, 50.0, 90.0, 100.0)}
    [warning] = dispatcher.warnings
    assert "has 1 shape that cannot be" in warning


@pytest.mark.parametrize("shape", ["x" * (LONGEST + 1), "a\nb", "a\x1b[31m", "\ud800", "\u202e"])
def test_what_is_no_shape_is_left_out(state: Path, dispatcher: Dispatcher, shape: str):
    put(state, a_file({shape: some_fields(), TRAIN: some_fields()}))

    assert dispatcher.file.load().keys() == {TRAIN}
    assert len(dispatcher.warnings) == 1


def test_whole_numbers_and_unknown_fields_are_taken(state: Path):
    fields = some_fields(mean_seconds=90, utilization_percent=None, last_used=1e9, more=1)
    put(state, a_file({TRAIN: fields}))

    assert known(state) == {TRAIN: Footprint(3, GIB, None, 90.0, 100.0)}


def test_what_a_newer_smartsched_has_written_is_left_as_it_is(state: Path, dispatcher: Dispatcher):
    content = a_file({TRAIN: {"of": "the future"}}, version=2)
    path = put(state, content)

    assert dispatcher.file.load() == {}
    dispatcher.keeps(measured())

    assert path.read_bytes() == content
    assert len(dispatcher.warnings) == 2
    assert all("a newer smartsched" in warning for warning in dispatcher.warnings)


# --- who may read and write it


@pytest.mark.usefixtures("open_umask")
def test_nobody_else_may_read_what_is_kept(state: Path, dispatcher: Dispatcher):
    dispatcher.keeps(measured())

    paths = [state / "shapes", *(state / "shapes").iterdir()]
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths}
    assert modes == {(True, 0o700), (False, 0o600)}


def test_a_folder_that_others_could_enter_is_closed_to_them(state: Path, dispatcher: Dispatcher):
    folder = put(state, a_file({})).parent
    folder.chmod(0o777)

    dispatcher.file.load()

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def is_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def has_another_name(path: Path) -> None:
    path.with_name("elsewhere").hardlink_to(path)


def is_somebody_else_s(path: Path) -> None:
    os.chown(path, 12345, 12345)


def is_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def is_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def has_a_linked_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to("elsewhere")


def has_somebody_else_s_folder(path: Path) -> None:
    os.chown(path.parent, 12345, 12345)


def has_no_folder(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    "spoil",
    [
        is_link,
        has_another_name,
        pytest.param(is_somebody_else_s, marks=needs_root),
        is_folder,
        is_pipe,
        has_a_linked_folder,
        pytest.param(has_somebody_else_s_folder, marks=needs_root),
        has_no_folder,
    ],
)
def test_what_is_not_a_plain_file_of_ours_is_neither_read_nor_written(
    state: Path, dispatcher: Dispatcher, spoil: Callable[[Path], None]
):
    path = put(state, a_file({TRAIN: some_fields()}))
    spoil(path)
    before = everything_in(state)

    assert dispatcher.file.load() == {}
    dispatcher.learns(measured())
    dispatcher.ticks()
    dispatcher.keeps(measured())

    after = everything_in(state)
    assert {name: after[name] for name in before} == before
    reading, writing = dispatcher.warnings
    assert "what earlier runs used is not known" in reading
    assert "what jobs use is not kept for later runs" in writing
    assert str(path) in reading
    assert str(path) in writing


def everything_in(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What each is, whose, and what is in it."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (stat.S_IFMT(status.st_mode), status.st_uid, content)
    return found


# --- when there is no room


def test_a_full_disk_is_said_to_be_so_once_and_nothing_is_lost(state: Path, dispatcher: Dispatcher):
    Dispatcher(state).keeps(measured())
    dispatcher.learns(measured())
    with no_room():
        dispatcher.ticks()
        dispatcher.learns(measured())
        dispatcher.ticks(30)
    assert sorted(os.listdir(state / "shapes")) == ["box.json", "box.lock"]
    assert known(state) == {TRAIN: footprint()}
    [warning] = dispatcher.warnings
    assert os.strerror(errno.EFBIG) in warning
    assert dispatcher.file.wake_at() == T0 + 60

    dispatcher.ticks(60)

    assert known(state) == {TRAIN: footprint(3)}
    assert len(dispatcher.warnings) == 1


def test_a_state_folder_that_is_gone_is_one_warning(state: Path, dispatcher: Dispatcher):
    state.rmdir()

    dispatcher.keeps(measured())

    [warning] = dispatcher.warnings
    assert "not kept for later runs" in warning


# --- what is to be forgotten


def test_what_is_forgotten_is_not_known_any_more_and_the_rest_is(state: Path):
    Dispatcher(state).keeps(measured("a *"), measured("b *"), measured("c *"))

    Dispatcher(state).file.forget(["a *", "c *"])

    assert known(state) == {"b *": footprint()}


def test_a_command_stands_for_its_shape(state: Path):
    Dispatcher(state).keeps(measured(TRAIN))

    Dispatcher(state).file.forget(["python train.py --lr 0.25"])

    assert known(state) == {}


def test_a_shape_that_is_not_known_is_said_to_be_so_and_nothing_is_forgotten(state: Path):
    Dispatcher(state).keeps(measured("a *"))

    with pytest.raises(UsageError, match="nothing was learned of b") as refused:
        Dispatcher(state).file.forget(["a *", "b \x1b[31m*\n"])

    assert str(refused.value).isprintable()
    assert known(state) == {"a *": footprint()}


def test_what_is_learned_after_it_was_forgotten_begins_anew(state: Path, dispatcher: Dispatcher):
    dispatcher.learns(measured())
    dispatcher.ticks()
    Dispatcher(state).file.forget([TRAIN])

    dispatcher.keeps(measured())

    assert known(state) == {TRAIN: footprint(1)}


@pytest.mark.parametrize("content", [b"garbage", a_file({}, version=2)])
def test_everything_can_be_forgotten_whatever_it_is(state: Path, content: bytes):
    put(state, content)

    Dispatcher(state).file.forget_all()

    assert known(state) == {}


def test_where_nothing_was_learned_everything_is_forgotten_already(state: Path):
    Dispatcher(state).file.forget_all()

    assert list(state.iterdir()) == []


def test_nothing_is_forgotten_behind_the_back_of_one_who_writes(state: Path):
    Dispatcher(state).keeps(measured())

    with locked(state):
        with pytest.raises(StateError, match="is being written by somebody else"):
            Dispatcher(state).file.forget([TRAIN])
        with pytest.raises(StateError, match="is being written by somebody else"):
            Dispatcher(state).file.forget_all()

    assert known(state) == {TRAIN: footprint()}
