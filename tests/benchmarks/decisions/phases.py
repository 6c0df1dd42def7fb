"""What a process does from its start to its end: phases, drawn from published measurements.

Constants marked "survey" are fitted on published measurements of training jobs on shared clusters;
those marked "assumed" fill in what was not published.
"""

import math
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

MIB = 2**20
GIB = 2**30


class LogNormal(NamedTuple):
    """How a quantity is spread: by factors around its median, within bounds."""

    median: float
    sigma: float
    least: float
    most: float

    def draw(self, pick: Random) -> float:
        drawn = self.median * math.exp(self.sigma * pick.gauss(0.0, 1.0))
        return min(max(drawn, self.least), self.most)

    @property
    def mean(self) -> float:
        """As if there were no bounds."""
        return self.median * math.exp(self.sigma**2 / 2)


class Phase(NamedTuple):
    """A stretch of a process's life in which nothing about it changes."""

    seconds: float  # at full speed
    memory_bytes: int  # asked for when it begins, on each of its cards
    utilization: float = 0.0  # 0..1; what is at 0 is not slowed down by others
    zero_share: float = 1.0  # of the samples that read 0 nevertheless
    on_gpu: bool = True  # False: it has no context yet, so the driver does not list it


class Demand(NamedTuple):
    """What the phases of a process are drawn for."""

    seconds: float  # all of them, alone on its cards
    memory_bytes: int
    utilization: float
    growth: float = 1.0  # of the memory, after the first epoch


STARTUP_SECONDS = LogNormal(8.2, 0.45, 3.0, 60.0)  # survey: imports and data, on the CPU only
CONTEXT_BYTES = 500 * MIB  # survey
CONTEXT_SECONDS = (1.0, 4.0)  # survey
RAMP_SECONDS = 6  # survey: allocation of the model and its first batches
RAMP_SHARE = 0.45  # survey: of the memory that it comes to
STALL_SECONDS = LogNormal(12.0, 0.5, 2.0, 60.0)  # survey: median; spread assumed
EPOCH_SECONDS = LogNormal(150.0, 0.6, 20.0, 900.0)  # assumed
EVALUATION_SHARE = 0.08  # assumed: of the epoch before
EVALUATION_UTILIZATION = 0.6  # survey: of that of training
TRAINING_ZERO_SHARE = 0.05  # assumed
RAMP_UTILIZATION = 1 / 16  # assumed
LEAST_TRAINING_SECONDS = 20.0  # assumed: who asked for less than the start takes


def starting(pick: Random, demand: Demand) -> list[Phase]:
    """From the first import to the moment before the first full batch."""
    context = Phase(pick.uniform(*CONTEXT_SECONDS), CONTEXT_BYTES)
    target = max(RAMP_SHARE * demand.memory_bytes, CONTEXT_BYTES)
    step = (target - CONTEXT_BYTES) / RAMP_SECONDS
    ramp = [
        Phase(1.0, int(CONTEXT_BYTES + step * second), RAMP_UTILIZATION, 0.5)
        for second in range(1, RAMP_SECONDS + 1)
    ]
    return [on_cpu(STARTUP_SECONDS.draw(pick)), context, *ramp]


def on_cpu(seconds: float) -> Phase:
    return Phase(seconds, 0, on_gpu=False)


def training(pick: Random, demand: Demand, seconds: float) -> list[Phase]:
    """Epochs, each followed by a stall and a short evaluation, until the time is up."""
    epoch_seconds = EPOCH_SECONDS.draw(pick)
    phases: list[Phase] = []
    memory = demand.memory_bytes
    left = max(seconds, LEAST_TRAINING_SECONDS)
    while left > 0:
        for phase in _epoch(pick, demand.utilization, memory, epoch_seconds):
            if left > 0:
                phases.append(phase._replace(seconds=min(phase.seconds, left)))
                left -= phase.seconds
        memory = int(demand.memory_bytes * demand.growth)
    return phases


def _epoch(pick: Random, utilization: float, memory: int, seconds: float) -> Iterator[Phase]:
    yield Phase(seconds, memory, utilization, TRAINING_ZERO_SHARE)
    yield Phase(STALL_SECONDS.draw(pick), memory)
    evaluation = exact(EVALUATION_UTILIZATION * utilization)
    yield Phase(EVALUATION_SHARE * seconds, memory, evaluation, TRAINING_ZERO_SHARE)


def exact(utilization: float) -> float:
    """Near enough, and such that sums of them have no rounding errors: loads go up and down."""
    return round(utilization * 1024) / 1024


def seconds_of(phases: list[Phase]) -> float:
    return sum(phase.seconds for phase in phases)
