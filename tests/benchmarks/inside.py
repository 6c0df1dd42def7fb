"""What parts of it cost by themselves: a sample of many GPUs, a day in virtual time, one more job
after many others, and one decision where there is much to decide about. No dispatcher is started
here.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from smartsched.core.apply import apply, replay
from smartsched.core.decide import decide
from smartsched.core.freeness import Share, Thresholds
from smartsched.core.model import HostHere, HostName, PlacedGpu, Snapshot, Timestamp
from smartsched.core.state import State
from smartsched.loop import QUEUE_WINDOW
from smartsched.simulation.box import PretendBox, PretendJob, commands_at_once
from tests.builders import (
    INSTANT,
    T0,
    a_key,
    a_policy,
    a_sample,
    a_snapshot,
    begun,
    listed,
    see,
)
from tests.stub_nvml import GIB, StubGpu, StubMachine, build, has_compiler

GPUS, PROCESSES = 16, 64
DAY_SECONDS = 86400.0
_CHILD = "from tests.benchmarks.inside import sample; sample()"
_ROUNDS = 50
_ROOT = Path(__file__).parents[2]
_STEP = 50  # jobs, of which the cost is looked at
_LOOK_EVERY_SECONDS = 10.0


def sampler() -> dict[str, float]:
    """Of one sample, what is not the driver's own time, with a stub in the driver's place."""
    if not has_compiler():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        machine = StubMachine(
            Path(folder) / "machine", build(Path(folder)), [StubGpu(n) for n in range(GPUS)]
        )
        sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(PROCESSES)]
        try:
            for number, sleeper in enumerate(sleepers):
                machine.add_stranger(number % GPUS, GIB, sleeper.pid)
            environment = os.environ | machine.env
            argv = [sys.executable, "-c", _CHILD]
            said = subprocess.check_output(argv, env=environment, cwd=_ROOT)
        finally:
            for sleeper in sleepers:
                sleeper.kill()
                sleeper.wait()
    found: dict[str, float] = json.loads(said)
    return found


class _Timed:
    """The driver, and how long its calls have taken."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if not name.startswith("nvml") or not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return found(*args, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return call


def sample() -> None:
    """In a process of its own, which finds the stub."""
    ours, theirs = reading_ms(_ROUNDS)
    name = f"a sample of {GPUS} GPUs, {PROCESSES} processes"
    print(json.dumps({f"{name}: ours, ms": ours, f"{name}: the stub driver's, ms": theirs}))


def reading_ms(rounds: int) -> tuple[float, float]:
    """Of one sample in this process: what is ours, and the driver's own time. The least of many:
    the rest is others'."""
    from smartsched.cli.host import this_host
    from smartsched.core import codec
    from smartsched.edges import nvml
    from smartsched.edges.nvml_processes import ProcessReader
    from smartsched.edges.who import Register

    driver, people, host = _Timed(nvml.load()), Register(), this_host()
    reader = nvml.NvmlReader(driver, host, ProcessReader(driver, people.describe))
    ours, theirs = [], []
    for _ in range(rounds):
        driver.seconds, began = 0.0, time.perf_counter()
        snapshot = Snapshot(host, 0.0, reader.read(None), whole=True)
        codec.encode(snapshot, wall_time=0.0, monotonic_s=0.0)
        people.forget_all_but(snapshot.pids())
        ours.append(time.perf_counter() - began - driver.seconds)
        theirs.append(driver.seconds)
    return 1000 * min(ours), 1000 * min(theirs)


def virtual_day(jobs: int) -> dict[str, float]:
    """8 GPUs that are looked at every ten seconds, colleagues on half of them now and then."""
    names = [f"train --n {n}" for n in range(jobs)]
    arrivals = [(n * DAY_SECONDS / 2 / jobs, name) for n, name in enumerate(names)]
    box = PretendBox(8, lambda _: PretendJob(600.0), arrivals, interval_seconds=_LOOK_EVERY_SECONDS)
    for gpu in range(4):
        for hour in range(gpu, 24, 4):
            box.visit(gpu, hour * 3600.0, hour * 3600.0 + 1800.0, gib=12)
    began = time.perf_counter()
    limits = Thresholds(Share(10.0), 10.0, free_for_seconds=30.0)
    loop = box.run(a_policy(thresholds=limits, interval_seconds=_LOOK_EVERY_SECONDS), DAY_SECONDS)
    took = time.perf_counter() - began
    name = f"a day in virtual time, {jobs} jobs, 8 GPUs"
    return {f"{name}: s": took, "  of these jobs, done": float(loop.state.totals.ok)}


def growth(most: int) -> dict[str, float]:
    """What one more job costs in the loop and its core, early and late."""
    box = PretendBox(8, lambda _: PretendJob(0.5), commands_at_once(f"x {n}" for n in range(most)))
    stamps: list[float] = []

    def look(state: State, _: Timestamp) -> None:
        while len(stamps) * _STEP <= state.totals.ok:
            stamps.append(time.perf_counter())

    box.observers.append(look)
    box.run(a_policy(thresholds=INSTANT))
    steps = [1000 * (b - a) / _STEP for a, b in pairwise(stamps)]
    tenth = max(1, len(steps) // 10)
    early, late = min(steps[:tenth]), min(steps[-tenth:])
    return {
        f"a job, the first of {most}: ms": early,
        f"a job, the last of {most}: ms": late,
        "  the last over the first": late / early,
    }


def decisions(hosts: int, gpus: int, shared_by: int) -> dict[str, float]:
    """Of one decision with a whole window of jobs that wait, on GPUs that take so many each. The
    least of many."""
    everything, name = hosts * gpus * shared_by, f"{hosts} x {gpus} GPUs"
    cases = {
        f"a decision, {name}, {shared_by} on each: ms": a_lab(hosts, gpus, shared_by),
        f"  {name}, a job waits for a whole host: ms": a_lab(hosts, gpus, shared_by, wide=True),
        f"  {name}, with room for one more: ms": a_lab(hosts, gpus, shared_by, room=1),
        f"  {name}, before anything runs: ms": a_lab(hosts, gpus, shared_by, room=everything),
    }
    return {name: _decision_ms(state) for name, state in cases.items()}


def a_lab(hosts: int, gpus: int, shared_by: int, *, room: int = 0, wide: bool = False) -> State:
    """Jobs run wherever they can, but for so many. `wide`: the first that waits needs all GPUs of
    a host."""
    names = [HostName(f"gpu{number}") for number in range(hosts)]
    keys = [a_key(number, names[number // gpus]) for number in range(hosts * gpus)]
    given = (keys * shared_by)[room:]
    commands = [f"train --n {number}" for number in range(len(given) + QUEUE_WINDOW)]
    commands[len(given)] += f"  # smartsched: gpus={gpus}" if wide else ""
    state = replay(
        a_policy(spans_hosts=hosts > 1, jobs_per_gpu=shared_by, job_memory=GIB), listed(*commands)
    )
    for number, key in enumerate(given, start=1):
        part = PlacedGpu(key, f"{key.host}/{key.uuid}", "0", reserved_bytes=GIB)
        for event in begun(number, part):
            apply(state, event)
    for name in names:
        see(state, HostHere(name, name, cores=64))
        there = [a_sample(n % gpus, key=key) for n, key in enumerate(keys) if key.host == name]
        see(state, a_snapshot(*there, host=name))
    return state


def _decision_ms(state: State) -> float:
    found = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        decide(state, T0)
        found.append(time.perf_counter() - began)
    return 1000 * min(found)
