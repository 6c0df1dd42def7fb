"""A list of thousands of jobs on a bad day: everything that can fail does, again and again, and at
the end every job is accounted for and nothing is left. `make soak`; SOAK_JOBS says how many,
SOAK_SEED on which day."""

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cli.harness import MOMENT, Box, Session
from tests.stub_nvml import GIB
from tests.waiting import wait_until

COUNT = int(os.environ.get("SOAK_JOBS", "10000"))
SEED = int(os.environ.get("SOAK_SEED", "5"))
MIB = 2**20
GPU_IS_LOST, UNKNOWN = 15, 999
# Beside what is open all the time, each job that runs may have some.
MOST_MORE_FDS = 24
MOST_MORE_BYTES = 24 * MIB

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system that is full when a test wants it; None where none can be made."""
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={max(COUNT // 100, 8)}m"
    command = ["mount", "-t", "tmpfs", "-o", size, "smartsched-test", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    yield place if mounted else None
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


class BadDay:
    """A run that goes on, whatever is done to it."""

    def __init__(self, box: Box, disk: Path | None, session: Session, state: Path) -> None:
        self.box = box
        self.disk = disk
        self.session = session
        self.state = state
        self.pick = random.Random(SEED)
        self.happened: Counter[str] = Counter()
        self.seen: list[tuple[int, int, int]] = []  # jobs that are done, bytes, descriptors
        self.faults = [
            self.kill_a_sampler,
            self.lose_a_gpu,
            self.hide_a_gpu,
            self.fail_a_call,
            self.hang_the_driver,
            self.break_the_driver,
            self.bring_a_colleague,
            self.kill_the_dispatcher,
        ]
        if disk is not None:
            self.faults.append(self.fill_the_disk)

    def go_on_to_the_end(self) -> None:
        while not self.has_ended(self.pick.uniform(0.2, 1.2)):
            self.look()
            fault = self.pick.choice(self.faults)
            fault()
            self.happened[fault.__name__] += 1
            self.wait_for_progress()

    def has_ended(self, within_seconds: float = 0.0) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.session.process.wait(within_seconds)
        return self.session.process.poll() is not None

    def wait_for_progress(self) -> None:
        """One fault at a time: what is tested is not that two of them at once do no harm."""
        before = done(self.box)
        wait_until(
            lambda: done(self.box) > before or self.has_ended(), "it goes on", self.session.dump
        )

    def look(self) -> None:
        process = psutil.Process(self.session.process.pid)
        with suppress(psutil.Error):
            self.seen.append((done(self.box), process.memory_info().rss, process.num_fds()))

    def pause(self) -> None:
        self.has_ended(0.3)

    def kill_a_sampler(self) -> None:
        with suppress(psutil.Error):
            for child in psutil.Process(self.session.process.pid).children():
                if "sample" in child.cmdline():
                    child.kill()

    def lose_a_gpu(self) -> None:
        index = self.pick.randrange(4)
        self.box.machine.set(index, error=GPU_IS_LOST)
        self.pause()
        self.box.machine.set(index, error=0)

    def hide_a_gpu(self) -> None:
        index = self.pick.randrange(4)
        self.box.machine.set(index, handle_error=GPU_IS_LOST)
        self.pause()
        self.box.machine.set(index, handle_error=0)

    def fail_a_call(self) -> None:
        calls = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCount", "nvmlDeviceGetUtilizationRates")
        self.box.machine.fail(self.pick.choice(calls), UNKNOWN)
        self.pause()
        self.box.machine.clear_faults()

    def hang_the_driver(self) -> None:
        self.box.machine.hang("nvmlDeviceGetMemoryInfo", seconds=1)
        self.pause()
        self.box.machine.clear_faults()

    def break_the_driver(self) -> None:
        self.box.machine.init_error(UNKNOWN)
        self.kill_a_sampler()
        self.pause()
        self.box.machine.init_error(0)

    def bring_a_colleague(self) -> None:
        index = self.pick.randrange(4)
        self.box.machine.set(index, used_bytes=40 * GIB)
        self.pause()
        self.box.machine.set(index, used_bytes=0)

    def fill_the_disk(self) -> None:
        assert self.disk is not None
        filler = self.disk / "filler"
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        self.pause()
        filler.unlink()

    def kill_the_dispatcher(self) -> None:
        if self.has_ended():
            return
        self.session.crash()
        self.session = self.box.start("--resume", "-q", "--state", str(self.state))


def done(box: Box) -> int:
    path = box.folder / "done"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def command(number: int) -> str:
    """Most are over at once, some take their time, and some fail."""
    work = f"sleep 0.0{number % 7}; " if number % 5 == 0 else ""
    return f"{work}echo {number} >> done{'; exit 3' if number % 50 == 7 else ''}"


def test_on_a_bad_day_every_job_is_accounted_for_and_nothing_is_left(
    box: Box, disk: Path | None, tmp_path: Path
):
    state, scratch = disk or tmp_path / "runs", tmp_path / "scratch"
    scratch.mkdir()
    box.env["TMPDIR"] = str(scratch)
    listing = box.list_of([command(number) for number in range(COUNT)])
    session = box.start(*MOMENT, "-q", "--name", "day", "--state", str(state), str(listing))
    wait_until(lambda: done(box), "it has begun", session.dump)
    day = BadDay(box, disk, session, state)
    began = time.monotonic()

    day.go_on_to_the_end()

    print(f"{COUNT} jobs in {time.monotonic() - began:.0f}s: {dict(day.happened)}")
    print(
        "done, MiB, descriptors:",
        [(n, b // MIB, fds) for n, b, fds in day.seen[:: len(day.seen) // 12 or 1]],
    )
    failing = sum("exit 3" in command(number) for number in range(COUNT))
    folder = state / "runs" / "day"
    assert day.session.process.returncode == min(failing, 101), day.session.dump()
    assert Counter(box.lines("done")) == {str(number): 1 for number in range(COUNT)}
    closed = last_event(folder, "run_closed")
    assert (closed["ok"], closed["failed"]) == (COUNT - failing, failing), day.session.dump()
    assert_is_flat(day.seen)
    assert_nothing_is_left(box, folder, scratch)


def last_event(folder: Path, kind: str) -> dict[str, int]:
    import json

    lines = (folder / "events.jsonl").read_bytes().splitlines()
    record: dict[str, int] = next(r for r in map(json.loads, reversed(lines)) if r["event"] == kind)
    return record


def assert_is_flat(seen: list[tuple[int, int, int]]) -> None:
    early = [(size, fds) for count, size, fds in seen if count < COUNT // 4]
    late = [(size, fds) for count, size, fds in seen if count >= COUNT // 2]
    assert early
    assert late
    assert max(size for size, _ in late) < max(size for size, _ in early) + MOST_MORE_BYTES
    assert max(fds for _, fds in late) <= min(fds for _, fds in early) + MOST_MORE_FDS


def assert_nothing_is_left(box: Box, folder: Path, scratch: Path) -> None:
    wait_until(box.is_quiet, "nobody is left")
    assert list(scratch.iterdir()) == []
    # what was revoked stays so: nobody knows when a wrapper comes that is late
    records = [path for path in (folder / "jobs").rglob("*") if path.is_file()]
    assert [path for path in records if path.read_bytes() != b"revoked\n"] == []
    assert [path for path in folder.rglob("*") if path.name.startswith(".")] == []
    assert list(folder.glob("requests/*.request")) == []
    claims = Path(box.env["SMARTSCHED_CLAIMS"])
    assert [path.name for path in claims.iterdir() if path.name.endswith(".claim")] == []
