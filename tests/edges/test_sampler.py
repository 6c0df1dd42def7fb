"""The dispatcher's side of the sampler, with children that say what they should, or do not."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsched.cli.sampling import begin
from smartsched.core.model import (
    GpuKey,
    GpuUuid,
    HostName,
    Observation,
    SamplerTrouble,
    Snapshot,
    Timestamp,
)
from smartsched.edges.clock import SteadyClock
from smartsched.edges.sampler import Sampler
from smartsched.edges.waiter import Waiter
from tests.waiting import wait_until

HOST = HostName("here")
PATIENCE_SECONDS = 30.0
FOR_EVER = 1e6

SAYING = """
import json, os, signal, sys, time

def say(*uuids, whole=True, at=None, **more):
    gpus = [
        {"uuid": uuid, "index": 0, "slot": None, "name": "GPU", "unreadable": "test"}
        for uuid in uuids
    ]
    now = time.monotonic() if at is None else at
    line = {"smartsched_sample": 1, "time": 1.0, "monotonic_s": now, "host": "here"}
    os.write(1, json.dumps(line | {"whole": whole, "gpus": gpus} | more).encode() + b"\\n")
"""
STEADY = "say('GPU-0', 'GPU-1')\nos.read(0, 1)\n"


def gpu(number: int) -> GpuKey:
    return GpuKey(HOST, GpuUuid(f"GPU-{number}"))


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Box:
    """A real Sampler and Waiter. Time is real, and may be skipped ahead."""

    def __init__(
        self,
        code: str,
        folder: Path,
        *,
        patience_seconds: float = FOR_EVER,
        first_patience_seconds: float | None = None,
        argv: Sequence[str] | None = None,
        run_id: str | None = None,
    ) -> None:
        self.clock = SteadyClock()
        self.waiter = Waiter(self.clock)
        self.waiter.on_signal(signal.SIGCHLD, self._reap)
        self.script = folder / "child.py"
        self.script.write_text(SAYING + code)
        self.closed = False
        self.skipped = 0.0
        self.seen: list[Observation] = []
        self.pids: list[int] = []
        self.argv = list(argv or [sys.executable, "-I", "-S", str(self.script)])
        self.sampler = Sampler(
            self.waiter,
            lambda: begin(self.argv),
            HOST,
            at_monotonic=self.clock.at_monotonic,
            patience_seconds=patience_seconds,
            first_patience_seconds=first_patience_seconds or patience_seconds,
            run_id=run_id,
            now=self.now(),
        )
        self._note_pids()

    def now(self) -> Timestamp:
        return self.clock.now() + self.skipped

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"still not so; seen: {self.seen}"
            self.turn()

    def turn(self) -> None:
        self.waiter.wait(min(self.clock.now() + 0.02, self.sampler.wake_at() - self.skipped))
        self.seen += self.sampler.take(self.now())
        self._note_pids()

    def skip_to_restart(self) -> None:
        """As if the backoff had passed."""
        assert self.sampler.pids() == []
        self.skipped += max(self.sampler.wake_at() - self.now(), 0) + 0.001

    def snapshots(self) -> list[Snapshot]:
        return [seen for seen in self.seen if isinstance(seen, Snapshot)]

    def troubles(self) -> list[str]:
        return [seen.why for seen in self.seen if isinstance(seen, SamplerTrouble)]

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.sampler.close()
        self.waiter.close()
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue

    def _note_pids(self) -> None:
        self.pids += [pid for pid in self.sampler.pids() if pid not in self.pids]

    def _reap(self) -> None:
        for pid in self.pids:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


MakeBox = Callable[..., Box]


@pytest.fixture
def box_of(tmp_path: Path) -> Iterator[MakeBox]:
    boxes: list[Box] = []

    def make(code: str = "", **options: Any) -> Box:
        boxes.append(Box(code, tmp_path, **options))
        return boxes[-1]

    yield make
    for box in boxes:
        box.close()


def requests_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def answering(path: Path, before: str = "") -> str:
    """A child that notes what it is asked, and answers after the lines `before`."""
    return f"""
say("GPU-0", "GPU-1")
for line in sys.stdin:
    open({str(path)!r}, "a").write(line)
    {before}
    say(*json.loads(line), whole=False)
"""


def test_a_snapshot_is_taken_once_at_the_time_it_was_begun(box_of: MakeBox):
    box = box_of("say('GPU-0', 'GPU-1', at=100.0); os.read(0, 1)")

    box.until(box.snapshots)

    [snapshot] = box.snapshots()
    assert snapshot.host == HOST
    assert [reading.key for reading in snapshot.gpus] == [gpu(0), gpu(1)]
    assert snapshot.taken_at == box.clock.at_monotonic(100.0)
    assert snapshot.whole
    assert box.sampler.take(box.now()) == []


def test_a_line_in_pieces_is_one_snapshot(box_of: MakeBox):
    box = box_of(
        """
line = b'{"smartsched_sample":1,"time":1.0,"monotonic_s":%f,"host":"here",' % time.monotonic()
os.write(1, line); time.sleep(0.1)
os.write(1, b'"whole":true,"gpus":[]}'); time.sleep(0.1)
os.write(1, b'\\n')
os.read(0, 1)
"""
    )

    box.until(box.snapshots)

    assert (len(box.snapshots()), box.troubles()) == (1, [])


def test_a_request_goes_through_and_is_answered(box_of: MakeBox, tmp_path: Path):
    box = box_of(answering(tmp_path / "asked"))
    box.until(box.snapshots)

    box.sampler.refresh([(gpu(1), box.now())], box.now())
    box.until(lambda: len(box.snapshots()) == 2)

    answer = box.snapshots()[1]
    assert [reading.key for reading in answer.gpus] == [gpu(1)]
    assert not answer.whole
    assert requests_of(tmp_path / "asked") == [["GPU-1"]]


def test_a_request_under_way_is_not_sent_again(box_of: MakeBox, tmp_path: Path):
    asked, gate = tmp_path / "asked", tmp_path / "gate"
    waiting = f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    box = box_of(answering(asked, before=waiting))
    box.until(box.snapshots)
    after = box.now()

    for _ in range(5):
        box.sampler.refresh([(gpu(0), after), (gpu(1), after)], box.now())
    box.until(lambda: requests_of(asked))
    box.sampler.refresh([(gpu(0), after)], box.now())
    box.sampler.refresh([(gpu(0), box.now())], box.now())  # for what happened since
    gate.touch()
    box.until(lambda: len(box.snapshots()) == 3)

    assert requests_of(asked) == [["GPU-0", "GPU-1"], ["GPU-0"]]
    box.sampler.refresh([(gpu(0), box.now())], box.now())
    box.until(lambda: len(requests_of(asked)) == 3)


def test_an_answer_begun_before_the_request_does_not_count(box_of: MakeBox, tmp_path: Path):
    box = box_of("say('GPU-0', at=1.0)\n" + answering(tmp_path / "asked"))
    box.until(lambda: len(box.snapshots()) == 2)
    after = box.now()
    box.sampler.refresh([(gpu(0), after)], box.now())
    box.sampler.refresh([(gpu(0), after)], box.now())

    box.until(lambda: len(box.snapshots()) == 3)

    assert requests_of(tmp_path / "asked") == [["GPU-0"]]


def listening(path: Path) -> str:
    """A child that notes what it is told."""
    return f"""
say("GPU-0", "GPU-1")
for line in sys.stdin:
    open({str(path)!r}, "a").write(line)
"""


def test_what_to_watch_is_said_once_and_to_the_next_child_too(box_of: MakeBox, tmp_path: Path):
    told = tmp_path / "told"
    box = box_of(listening(told), run_id="run")
    box.until(box.snapshots)

    box.sampler.watch([gpu(1), gpu(0)])
    box.sampler.watch({gpu(0), gpu(1)})
    box.sampler.watch([gpu(1)])
    box.until(lambda: len(requests_of(told)) == 2)
    os.kill(box.pids[0], signal.SIGKILL)
    box.until(box.troubles)
    box.skip_to_restart()
    box.until(lambda: len(requests_of(told)) == 3)

    both, one = ({"watch": names, "run": "run"} for names in (["GPU-0", "GPU-1"], ["GPU-1"]))
    assert requests_of(told) == [both, one, one]


def test_what_to_watch_is_said_again_when_it_could_not_be_heard(box_of: MakeBox, tmp_path: Path):
    """Of whoever does not read for long, the pipe is full."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    waits = f"say('GPU-0')\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    box = box_of(waits + listening(told), run_id="run")
    box.until(box.snapshots)
    many = [gpu(number) for number in range(500)]
    for _ in range(200):
        box.sampler.refresh([(each, box.now()) for each in many], box.now())

    box.sampler.watch(many)
    box.sampler.watch([gpu(1)])
    gate.touch()
    box.until(lambda: told.exists() and '"watch": ["GPU-1"]' in told.read_text())

    *asked, watched = requests_of(told)
    assert watched == {"watch": ["GPU-1"], "run": "run"}
    assert all(len(names) == len(many) for names in asked)


def test_where_samples_are_due_often_nothing_is_to_be_watched(box_of: MakeBox, tmp_path: Path):
    told = tmp_path / "told"
    box = box_of(listening(told))
    box.until(box.snapshots)

    box.sampler.watch([gpu(0)])
    box.sampler.refresh([(gpu(0), box.now())], box.now())
    box.until(lambda: requests_of(told))

    assert requests_of(told) == [["GPU-0"]]


def test_a_request_to_a_child_that_does_not_read_blocks_nobody(box_of: MakeBox):
    box = box_of("say('GPU-0'); signal.pause()")
    box.until(box.snapshots)

    for _ in range(20_000):
        box.sampler.refresh([(gpu(number), box.now()) for number in range(8)], box.now())

    assert box.troubles() == []


def test_a_request_to_a_dying_child_is_no_error(box_of: MakeBox):
    box = box_of("say('GPU-0'); os.close(0); signal.pause()")
    box.until(box.snapshots)
    os.kill(box.pids[0], signal.SIGKILL)

    for _ in range(3):
        box.sampler.refresh([(gpu(0), box.now())], box.now())

    box.until(box.troubles)
    box.sampler.refresh([(gpu(0), box.now())], box.now())


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"other": 1}',
        '{"smartsched_sample": 99}',
        '{"smartsched_sample": 1, "time": 1, "monotonic_s": 1, "host": "here"}',
        '{"smartsched_sample": 1, "time": 1, "monotonic_s": null, "host": "here", "gpus": []}',
        "",
        "\\xff",
    ],
)
def test_an_unreadable_line_is_trouble_and_the_child_is_replaced(box_of: MakeBox, line: str):
    box = box_of(f"os.write(1, b'''{line}\\n'''); say('GPU-0'); signal.pause()")

    box.until(lambda: not box.sampler.pids())

    assert len(box.troubles()) == 1
    assert "unreadable" in box.troubles()[0]
    assert box.snapshots() == []
    wait_until(lambda: not alive(box.pids[0]))
    box.script.write_text(SAYING + STEADY)
    box.skip_to_restart()
    box.until(box.snapshots)
    assert len(box.pids) == 2


def test_what_came_before_an_unreadable_line_counts(box_of: MakeBox):
    box = box_of("say('GPU-0'); os.write(1, b'oops\\n'); signal.pause()")

    box.until(box.troubles)

    assert [type(seen) for seen in box.seen] == [Snapshot, SamplerTrouble]


def test_a_line_without_end_is_trouble(box_of: MakeBox):
    box = box_of("while True: os.write(1, b'x' * 65536)")

    box.until(lambda: not box.sampler.pids())

    assert box.troubles() == ["the sampler said something unreadable: a line without end"]


def test_the_driver_s_trouble_is_passed_on_in_its_words(box_of: MakeBox):
    box = box_of(
        """
os.write(1, b'{"smartsched_sample":1,"time":1,"monotonic_s":1,"host":"here","trouble":"no GPU"}\\n')
"""
    )

    box.until(box.troubles)

    box.until(lambda: not box.sampler.pids())
    assert box.troubles() == ["no GPU"]


def test_a_child_that_dies_is_trouble_in_its_last_words(box_of: MakeBox):
    box = box_of("os.write(2, b'Traceback\\nRuntimeError: no luck\\n'); sys.exit(1)")

    box.until(box.troubles)

    assert box.troubles() == ["RuntimeError: no luck"]


def test_a_child_that_dies_without_a_word_is_trouble(box_of: MakeBox):
    box = box_of("os.kill(os.getpid(), 9)")

    box.until(box.troubles)

    assert len(box.troubles()) == 1
    assert "unexpectedly" in box.troubles()[0]


def test_a_child_that_complains_at_length_is_not_held_up(box_of: MakeBox):
    box = box_of(f"os.write(2, b'warning\\n' * 100_000)\n{STEADY}")

    box.until(box.snapshots)

    assert box.troubles() == []


def test_restarts_come_later_and_later_and_at_once_again_after_a_success(box_of: MakeBox):
    box = box_of("sys.exit(1)")
    waits: list[float] = []
    for count in range(1, 8):
        box.until(lambda count=count: len(box.troubles()) == count)  # type: ignore[misc]
        waits.append(box.sampler.wake_at() - box.now())
        box.skip_to_restart()
    assert all(later > 0.9 * earlier for earlier, later in pairwise(waits))
    assert 0 < waits[0] <= 0.5
    assert 5 < waits[-1] <= 10

    box.script.write_text(SAYING + STEADY)
    box.until(box.snapshots)
    os.kill(box.sampler.pids()[0], signal.SIGKILL)
    box.until(lambda: not box.sampler.pids())

    assert box.sampler.wake_at() - box.now() <= 0.5


def test_after_a_long_sleep_the_backoff_still_counts_from_the_death(box_of: MakeBox):
    box = box_of(STEADY)
    box.until(box.snapshots)
    os.kill(box.pids[0], signal.SIGKILL)
    wait_until(lambda: not alive(box.pids[0]))
    box.skipped = 60.0  # nobody asked for a minute

    box.until(box.troubles)

    assert box.sampler.pids() == []


def test_a_silent_child_is_trouble_after_the_patience_and_killed(box_of: MakeBox):
    began = time.monotonic()
    box = box_of("signal.signal(15, signal.SIG_IGN); signal.pause()", patience_seconds=0.2)

    box.until(box.troubles)

    assert time.monotonic() - began >= 0.2
    assert "not answered" in box.troubles()[0]
    wait_until(lambda: not alive(box.pids[0]))
    box.until(lambda: not box.sampler.pids())
    assert len(box.troubles()) == 1


def test_a_child_that_stops_answering_is_replaced_and_all_is_well_again(box_of: MakeBox):
    box = box_of("say('GPU-0'); signal.pause()", patience_seconds=1.0)
    box.until(box.snapshots)
    box.script.write_text(SAYING + "while True: say('GPU-0'); time.sleep(0.1)")

    box.until(lambda: len(box.pids) == 2 and len(box.snapshots()) > 5)

    assert len(box.troubles()) == 1
    assert not alive(box.pids[0])
    assert box.sampler.pids() == [box.pids[1]]


def test_a_first_answer_may_take_longer_than_the_later_ones(box_of: MakeBox):
    code = "time.sleep(0.6); say('GPU-0'); signal.pause()"

    box = box_of(code, patience_seconds=0.3, first_patience_seconds=20.0)

    box.until(box.troubles)
    assert [type(seen) for seen in box.seen] == [Snapshot, SamplerTrouble]


def test_a_recording_plays_on_after_a_trouble_in_it(box_of: MakeBox, tmp_path: Path):
    def line(at: float, **what: object) -> str:
        record = {"smartsched_sample": 1, "time": at, "monotonic_s": at, "host": "here"}
        return json.dumps(record | what) + "\n"

    recording = tmp_path / "day.jsonl"
    recording.write_text(
        line(0, whole=True, gpus=[])
        + line(0.2, trouble="driver upgraded")
        + line(0.6, whole=True, gpus=[{"uuid": "GPU-9", "index": 9, "slot": None, "name": "GPU",
                                       "unreadable": "test"}])
    )  # fmt: skip
    options = ["sample", "--interval", "100ms", "--replay", str(recording)]

    box = box_of(argv=[sys.executable, "-m", "smartsched", *options])

    box.until(lambda: any(snapshot.gpus for snapshot in box.snapshots()))
    assert "driver upgraded" in box.troubles()


def test_patience_is_renewed_by_every_snapshot(box_of: MakeBox):
    box = box_of("while True: say('GPU-0'); time.sleep(0.1)", patience_seconds=3.0)

    box.until(lambda: len(box.snapshots()) >= 45)

    assert box.troubles() == []


def test_a_child_that_will_not_die_is_never_joined_by_another(box_of: MakeBox):
    # Whoever holds its output open stands for a process that a hung driver call keeps alive.
    box = box_of(
        "child = os.fork()\n"
        "if child == 0: os.setsid(); signal.pause()\n"
        "say('GPU-0', str(child)); signal.pause()",
        patience_seconds=0.3,
    )
    box.until(box.snapshots)
    survivor = int(box.snapshots()[0].gpus[1].key.uuid)
    box.until(box.troubles)

    box.skipped += 3600.0
    for _ in range(20):
        box.turn()
    assert box.sampler.pids() == box.pids[:1]
    assert len(box.troubles()) == 1

    os.kill(survivor, signal.SIGKILL)
    box.until(lambda: not box.sampler.pids())
    box.skip_to_restart()
    box.until(lambda: len(box.pids) == 2)


def test_a_child_that_cannot_be_started_again_is_trouble_and_tried_later(
    box_of: MakeBox, tmp_path: Path
):
    box = box_of("sys.exit(1)")
    box.until(lambda: not box.sampler.pids())
    python = tmp_path / "python"  # as if the environment were upgraded under us
    box.argv[0] = str(python)
    fds_before = os.listdir("/proc/self/fd")
    box.skip_to_restart()

    box.until(lambda: len(box.troubles()) == 2)
    assert str(python) in box.troubles()[1]
    assert box.sampler.wake_at() > box.now()
    assert os.listdir("/proc/self/fd") == fds_before

    box.script.write_text(SAYING + STEADY)
    box.argv[0] = sys.executable
    box.skip_to_restart()
    box.until(box.snapshots)


def test_closing_leaves_no_process_and_no_descriptor(box_of: MakeBox):
    fds_before = os.listdir("/proc/self/fd")
    box = box_of(STEADY)
    box.until(box.snapshots)

    box.close()

    assert not alive(box.pids[0])
    assert os.listdir("/proc/self/fd") == fds_before


def test_closing_kills_a_child_that_hangs(box_of: MakeBox):
    box = box_of("say(); signal.signal(15, signal.SIG_IGN); signal.pause()")
    box.until(box.snapshots)

    box.close()

    wait_until(lambda: not alive(box.pids[0]))


def test_closing_after_its_death_is_no_error(box_of: MakeBox):
    box = box_of("sys.exit(1)")
    box.until(lambda: not box.sampler.pids())

    box.close()


def test_twenty_restarts_leak_nothing(box_of: MakeBox):
    box = box_of("say('GPU-0'); sys.exit(1)")
    box.until(lambda: not box.sampler.pids())
    fds_before = os.listdir("/proc/self/fd")

    for count in range(2, 22):
        box.skip_to_restart()
        box.until(lambda count=count: len(box.snapshots()) == count and not box.sampler.pids())  # type: ignore[misc]

    assert os.listdir("/proc/self/fd") == fds_before
    assert len(box.pids) == 21
    box.turn()
    wait_until(lambda: not any(map(alive, box.pids)))


def test_a_child_hears_nothing_of_the_terminal_s_ctrl_c(box_of: MakeBox):
    box = box_of("say(str(os.getsid(0)), str(os.getpid())); os.read(0, 1)")
    box.until(box.snapshots)

    session, pid = (reading.key.uuid for reading in box.snapshots()[0].gpus)
    assert session == pid


def test_a_child_inherits_only_its_three_pipes(box_of: MakeBox):
    # what whoever started these tests has left open for everybody
    foreign = {fd for fd in range(4, 1024) if _is_inheritable(fd)}
    before = os.pipe()
    box = box_of("say(*os.listdir('/proc/self/fd')); os.read(0, 1)")
    box.until(box.snapshots)

    fds = {int(reading.key.uuid) for reading in box.snapshots()[0].gpus}
    for fd in before:
        os.close(fd)
    assert fds - foreign == {0, 1, 2, 3}  # 3 is the folder being listed


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


GOOD_LINE = (
    b'{"smartsched_sample": 1, "time": 1.0, "monotonic_s": 1.0, "host": "here", "whole": true,'
    b' "gpus": []}\n'
)
PIECES = st.sampled_from(
    [GOOD_LINE, GOOD_LINE[:-1], GOOD_LINE[20:], b"\n", b"{}\n", b"NaN", b"\xff"]
)


@given(st.lists(PIECES | st.binary(max_size=20), max_size=6).map(b"".join))
@settings(max_examples=30)
def test_whatever_a_child_says_is_seen_up_to_there_and_then_nothing_is_known(
    tmp_path: Path, data: bytes
):
    (tmp_path / "said").write_bytes(data)
    box = Box("", tmp_path, argv=["/bin/cat", str(tmp_path / "said")])
    try:
        box.until(lambda: not box.sampler.pids())
    finally:
        box.close()

    *before, last = box.seen
    lines = data.split(b"\n")[:-1]
    good = next((n for n, line in enumerate(lines) if line + b"\n" != GOOD_LINE), len(lines))
    assert len(before) == good
    assert all(isinstance(each, Snapshot) for each in before)
    assert isinstance(last, SamplerTrouble)


@pytest.mark.parametrize("character", ["x", "\0", "["])
def test_a_line_without_end_is_given_up_before_it_fills_the_memory(box_of: MakeBox, character: str):
    box = box_of(f"while True: os.write(1, {character!r}.encode() * 65536)")

    box.until(box.troubles)

    assert "the sampler said something unreadable: a line without end" in box.troubles()[0]


def test_what_was_wrong_with_a_line_is_said_in_short(box_of: MakeBox):
    box = box_of("say(whole='x' * 100_000)")

    box.until(box.troubles)

    assert len(box.troubles()[0]) < 300
