"""Other people on the box: no command is ever put where they work."""

import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

from smartsched.core.decide import JUST_SEEN_SECONDS
from tests.cli.harness import MOMENT, Box, a_pipe
from tests.stub_nvml import GIB, stranger_process
from tests.waiting import wait_until


def test_a_gpu_above_a_threshold_is_left_alone_and_taken_when_it_is_free(box: Box):
    box.machine.set(0, used_bytes=40 * GIB)
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of(["echo done"])))
    session.says("waiting: GPU 0: memory 50% > 10% (by no visible process)")

    box.machine.set(0, used_bytes=8 * GIB)

    assert session.end().status == 0


def test_the_emptiest_gpu_comes_first(box: Box):
    for index, gib in enumerate([6, 2, 4, 8]):
        box.machine.set(index, used_bytes=gib * GIB)

    done = box.run(
        *MOMENT,
        "--output",
        "raw",
        commands=["until test -e go; do sleep 0.01; done"] * 3 + ["touch go"],
    )

    started = [line.split("GPU ")[1][0] for line in done.err.splitlines() if "started" in line]
    assert started == ["1", "2", "0", "3"]


def test_a_visitor_within_the_window_counts_though_he_is_gone(box: Box):
    box.machine.set(0, history=[(90.0, 0), (3.0, 95), *((t / 10, 0) for t in range(28, 0, -1))])

    done = box.run("--dry-run", "--gpus", "0", "--free-for", "80s")

    assert done.status == 3
    assert "utilisation 95% > 10%" in done.out


def test_ignored_people_do_not_count(box: Box):
    with stranger_process() as stranger:
        box.machine.add_stranger(0, 40 * GIB, stranger.pid)

        busy = box.run("--dry-run", "--gpus", "0", *MOMENT)
        free = box.run("--dry-run", "--gpus", "0", *MOMENT, "--ignore-pid", str(stranger.pid))

    assert (busy.status, free.status) == (3, 0)
    assert "sleep" in busy.out


def test_nothing_waits_for_our_own_use_to_calm_down(box: Box):
    """After a job that kept its GPU busy, the next one starts without another window."""
    commands = [box.training(str(n), "--mem", str(30 * GIB), "--seconds", "0.2") for n in range(5)]
    box.machine.set(0, history_seconds=90)
    began = time.monotonic()

    done = box.run("--gpus", "0", "--interval", "100ms", "--free-for", "60s", commands=commands)

    assert done.status == 0
    assert len(box.trained()) == 5
    assert time.monotonic() - began < 60


FREE_FOR_SECONDS = 0.5
INTERVAL_SECONDS = 0.1
# From a visitor's coming to the last moment at which a command may start beside him: the last look
# and the start of the command, with a busy machine in mind.
START_TAKES_SECONDS = 1.0


@dataclass(frozen=True)
class Visit:
    uuid: str
    came: float
    left: float


class Colleagues(threading.Thread):
    """Come to random GPUs with much memory or high utilisation, and leave after a while."""

    def __init__(self, box: Box, seed: int) -> None:
        super().__init__()
        self.visits: list[Visit] = []
        self.over = threading.Event()
        self._machine = box.machine
        self._pick = random.Random(seed)

    def run(self) -> None:
        while not self.over.is_set():
            index = self._pick.randrange(4)
            came = time.monotonic()
            with stranger_process() as stranger:
                by_memory = self._pick.random() < 0.7
                self._machine.add_stranger(index, (40 if by_memory else 4) * GIB, stranger.pid)
                self._machine.set(index, util_percent=0 if by_memory else 80)
                self.over.wait(self._pick.uniform(0.2, 5.0))
                self._machine.set(index, util_percent=0)
                self._machine.remove_stranger(stranger.pid)
            self.visits.append(Visit(self._machine.gpu(index).uuid, came, time.monotonic()))
            self.over.wait(self._pick.uniform(0, 0.3))


def test_jobs_next_to_colleagues_who_come_and_go_run_once_and_never_on_a_busy_gpu(box: Box):
    """The main job on real input: a list of trainings while strangers arrive and leave."""
    for index in range(4):
        box.machine.set(index, history_seconds=-1)
    names = [str(number) for number in range(60)]
    colleagues = Colleagues(box, seed=7)
    colleagues.start()
    try:
        done = box.run(
            "--max-mem", "20%",
            "--free-for", f"{FREE_FOR_SECONDS}s",
            "--interval", f"{INTERVAL_SECONDS}s",
            commands=[box.training(n, "--mem", str(30 * GIB), "--seconds", "0.5") for n in names],
        )  # fmt: skip
    finally:
        colleagues.over.set()
        colleagues.join()

    assert done.status == 0, done.err
    assert Counter(name for name, _, _ in box.trained()) == Counter(names)
    assert len({uuid for _, uuid, _ in box.trained()}) == 4
    for name, uuid, started in box.trained():
        for visit in colleagues.visits:
            if visit.uuid == uuid:
                beside = visit.came + START_TAKES_SECONDS < started < visit.left
                too_soon = 0 <= started - visit.left < FREE_FOR_SECONDS - 2 * INTERVAL_SECONDS
                assert not beside, (name, started, visit)
                assert not too_soon or visit.left - visit.came < INTERVAL_SECONDS, (
                    name,
                    started,
                    visit,
                )


def test_a_colleague_who_came_since_the_last_sample_is_seen_before_a_start(box: Box):
    with a_pipe() as (reading, writing):
        session = box.start(
            "--free-for", "0", "--interval", "1h", "--gpus", "0", "-v", stdin=reading
        )
        session.says("GPU 0 FREE")
        aged = time.monotonic() + 4 * JUST_SEEN_SECONDS
        wait_until(lambda: time.monotonic() > aged, "the first look has aged")
        box.machine.set(0, used_bytes=40 * GIB)

        os.write(writing, b"echo started\n")

        session.says("waiting: GPU 0: memory 50%")
        session.process.terminate()
        assert "started on" not in session.end().err
