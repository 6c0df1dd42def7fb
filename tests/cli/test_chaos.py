"""Everything at random: dispatchers that die again and again, and at the end every job, once."""

import os
import random
import signal
import subprocess
from collections import Counter
from contextlib import suppress

import pytest

from tests.cli.harness import MOMENT, Box, Session, alive
from tests.stub_nvml import GIB
from tests.waiting import wait_until

# One that the machine took may be tried again so often.
RETRIES = ("--retries", "9", "--retry-delay", "0")


def jobs(box: Box, count: int) -> list[str]:
    """Each appends its number once it is done; some hold memory on their GPU meanwhile."""
    commands = []
    for number in range(count):
        work = f"sleep 0.0{number % 10}"
        if number % 20 == 7:
            work = box.training(str(number), "--mem", str(30 * GIB), "--seconds", "0.05")
        commands.append(f"echo {number} $$ >> began; {work}; echo {number} >> done")
    return commands


def die_again_and_again(box: Box, session: Session, kills: int, seed: int) -> Session:
    """At moments from before the first look at the GPUs to long after it."""
    pick = random.Random(seed)
    for _ in range(kills):
        with suppress(subprocess.TimeoutExpired):
            session.process.wait(pick.uniform(0.0, 0.9))
        session.crash()
        session = box.start("--resume", "-q")
    return session


def test_every_job_is_done_once_however_often_the_dispatcher_dies(box: Box):
    session = box.start(*MOMENT, "-q", str(box.list_of(jobs(box, 200))))
    wait_until(lambda: box.events("run_placed"), "it has begun", session.dump)

    session = die_again_and_again(box, session, kills=25, seed=1)

    done = session.end()
    assert done.status == 0, done.err
    assert Counter(box.lines("done")) == {str(number): 1 for number in range(200)}
    assert len(box.lines("began")) == 200
    assert_nothing_is_left(box)


def assert_nothing_is_left(box: Box) -> None:
    """No process, no memory on a GPU, nothing of an attempt that began; and whoever asks is told
    so."""
    wait_until(box.is_quiet, "nobody is left")
    again = box.run("--resume")
    assert "nothing is left of run" in again.err
    # what was revoked stays so: nobody knows when a wrapper comes that is late
    records = (path.read_bytes() for path in (box.run_folder() / "jobs").iterdir())
    assert [record for record in records if record != b"revoked\n"] == []
    registered = (path.name for path in (box.folder.parent / "machine" / "procs").iterdir())
    # who was killed could not take his name off the list
    assert [name for name in registered if name[0] != "." and alive(int(name.split("-")[0]))] == []


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_job_is_done_though_the_machine_takes_some_of_them(box: Box):
    count = 2000
    session = box.start(*MOMENT, *RETRIES, "-q", "--no-guard", str(box.list_of(jobs(box, count))))
    wait_until(lambda: box.events("run_placed"), "it has begun", session.dump)
    taken: set[str] = set()

    for round_number in range(250):
        session = die_again_and_again(box, session, kills=1, seed=round_number)
        if round_number % 5 == 0:
            taken |= _take_one(box)

    done = session.end()
    assert done.status == 0, done.err
    counts = Counter(box.lines("done"))
    assert set(counts) == {str(number) for number in range(count)}
    assert {number for number, times in counts.items() if times > 1} <= taken
    starts = Counter(line.split()[0] for line in box.lines("began"))
    assert {number for number, times in starts.items() if times > 1} <= taken
    assert_nothing_is_left(box)


def _take_one(box: Box) -> set[str]:
    """Kill the latest job's whole group, as a machine that is out of memory may."""
    lines = box.lines("began")
    if not lines:
        return set()
    number, pid = lines[-1].split()
    with suppress(OSError):
        group = os.getpgid(int(pid))
        if group in box.processes():  # else it has ended, and the number may be somebody else's
            os.killpg(group, signal.SIGKILL)
            return {number}
    return set()
