"""Pretend colleagues: who uses pretend GPUs when, as a function of a seed and the time.

Stands in for the driver behind `--simulate`.
"""

import random
import re
from collections.abc import Collection, Iterable

from msgspec import Struct

from smartsched.core.model import (
    GpuKey,
    GpuProcess,
    GpuReading,
    GpuSample,
    GpuUuid,
    HostName,
    UtilizationPoint,
)
from smartsched.errors import UsageError

GIB = 2**30
_PEOPLE = (
    ("alice", "python train.py --config resnet50.yaml"),
    ("bob", "python -m ipykernel_launcher -f kernel.json"),
    ("chen", "torchrun finetune.py --model 7b"),
    ("dana", "python eval.py --split test"),
)
_MOST_GPUS = 1024
_HISTORY_SECONDS = 20
_FIRST_PRETEND_PID = 4_000_000
_STARTED_BEFORE_SECONDS = 600.0


def parse_simulation(text: str) -> tuple[int, int]:
    """ "4" or "4,seed=7" -> how many GPUs, and the seed. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,4})(?:,seed=(\d{1,18}))?", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= _MOST_GPUS:
        raise UsageError(f"--simulate: {text!r} is not N or N,seed=S with N from 1 to {_MOST_GPUS}")
    return int(found[1]), int(found[2] or 0)


class Visit(Struct, frozen=True):
    """A colleague's process on one GPU, for a while."""

    begins: float
    ends: float
    memory_bytes: int
    utilization_percent: int
    user: str
    command: str
    pid: int


class Colleagues:
    """The use that pretend colleagues make of pretend GPUs: a function of seed and time."""

    def __init__(self, count: int, seed: int, memory_bytes: int = 24 * GIB) -> None:
        self._memory_bytes = memory_bytes
        self._timelines = [_Timeline(seed, index, memory_bytes) for index in range(count)]
        self._told_history = False

    def readings(
        self, host: HostName, seconds: float, only: Collection[str] | None = None
    ) -> tuple[GpuReading, ...]:
        """The GPUs so long after the start; the first time with the history before it."""
        history = () if self._told_history else range(_HISTORY_SECONDS, -1, -1)
        self._told_history = True
        return tuple(
            self._sample(host, index, seconds, history)
            for index in range(len(self._timelines))
            if only is None or pretend_uuid(index) in only
        )

    def _sample(
        self, host: HostName, index: int, seconds: float, history: Iterable[int]
    ) -> GpuSample:
        timeline = self._timelines[index]
        points = [
            UtilizationPoint(float(age), _percent(timeline.at(seconds - age))) for age in history
        ]
        visit = timeline.at(seconds)
        used = visit.memory_bytes if visit else 0
        return GpuSample(
            key=GpuKey(host, GpuUuid(pretend_uuid(index))),
            index=index,
            slot=None,
            name="Pretend GPU",
            memory_total_bytes=self._memory_bytes,
            memory_used_bytes=used,
            memory_free_bytes=self._memory_bytes - used,
            utilization_percent=_percent(visit),
            utilization_history=tuple(points),
            compute_mode="default",
            ailment=None,
            processes=(process_of(visit),) if visit else (),
        )


def pretend_uuid(index: int) -> str:
    return f"GPU-{index:08x}-0000-4000-8000-000000000000"


def _percent(visit: Visit | None) -> int:
    return visit.utilization_percent if visit else 0


def process_of(visit: Visit) -> GpuProcess:
    return GpuProcess(
        visit.pid, "compute", visit.memory_bytes, visit.user, visit.command, None, visit.pid
    )


class _Timeline:
    """Visits to one GPU, made up as time goes on; only the present one is kept."""

    def __init__(self, seed: int, index: int, memory_bytes: int) -> None:
        self._pick = random.Random(f"{seed}/{index}")
        self._memory_bytes = memory_bytes
        self._next_pid = _FIRST_PRETEND_PID + index * 1000
        self._recent: list[Visit] = []
        self._made_until = -_STARTED_BEFORE_SECONDS + self._pick.uniform(0, 120)

    def at(self, seconds: float) -> Visit | None:
        while self._made_until <= seconds:
            self._recent = [*self._recent[-3:], self._another()]
        for visit in self._recent:
            if visit.begins <= seconds < visit.ends:
                return visit
        return None

    def _another(self) -> Visit:
        pick = self._pick
        begins = self._made_until + pick.lognormvariate(4.1, 0.8)  # a minute free, by the median
        ends = begins + pick.lognormvariate(3.7, 0.8)  # 40 seconds of use
        self._made_until = ends
        user, command = pick.choice(_PEOPLE)
        self._next_pid += 1
        return Visit(
            begins,
            ends,
            int(self._memory_bytes * pick.uniform(0.15, 0.95)),
            pick.randint(20, 100),
            user,
            command,
            self._next_pid,
        )
