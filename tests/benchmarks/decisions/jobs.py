"""Our jobs: families of commands that differ in their numbers only."""

from dataclasses import dataclass, field
from random import Random

from tests.benchmarks.decisions.colleagues import draw_utilization
from tests.benchmarks.decisions.phases import (
    CONTEXT_BYTES,
    Demand,
    LogNormal,
    Phase,
    exact,
    seconds_of,
    starting,
    training,
)
from tests.benchmarks.decisions.scenarios import Scenario

SECONDS = LogNormal(900.0, 0.8, 120.0, 4 * 3600.0)  # survey: of a family, times its scale
SECONDS_SIGMA = 0.15  # survey: within a family
MEMORY = LogNormal(0.14, 0.8, 0.02, 0.7)  # survey: share of the card, of a family
MEMORY_SIGMA = 0.03  # survey: within a family
GROWING_SHARE = 0.2  # survey: of the families
GROWTH = (1.08, 1.20)  # survey: after the first epoch
SAVING_SECONDS = LogNormal(3.0, 0.6, 0.5, 15.0)  # survey; spread assumed
NAMES = (
    "resnet", "bert", "unet", "vit", "wav2vec", "gnn", "diffusion", "lstm", "yolo", "detr",
)  # fmt: skip


@dataclass(slots=True, eq=False)
class Job:
    command: str
    family: str
    gpus: int
    utilization: float
    peak_bytes: int
    starting: list[Phase]
    training: list[Phase]
    saving_seconds: float
    is_checkpointable: bool
    saved: tuple[int, float] = (0, 0.0)  # phases of the training that are done, seconds of the next
    done_at: list[float] = field(default_factory=list)  # more than one: it was run twice

    @property
    def solo_seconds(self) -> float:
        return seconds_of(self.starting) + seconds_of(self.training)

    def left_to_do(self) -> list[Phase]:
        """From the last checkpoint on."""
        number, seconds = self.saved
        first, *rest = self.training[number:]
        return [first._replace(seconds=first.seconds - seconds), *rest]

    def saved_seconds(self) -> float:
        number, seconds = self.saved
        return seconds_of(self.training[:number]) + seconds


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    gpus: int
    seconds: float
    memory: float  # share of the card
    utilization: float
    growth: float


def make_jobs(scenario: Scenario, seed: int, *, checkpointable: bool) -> list[Job]:
    """In the order of the list, families mixed."""
    pick = Random(f"{scenario.name}/{seed}/jobs")
    families = [_family(pick, scenario, number) for number in range(scenario.families)]
    jobs = [
        _job(pick, scenario, families[number % len(families)], number, checkpointable)
        for number in range(scenario.jobs)
    ]
    pick.shuffle(jobs)
    return jobs


def _family(pick: Random, scenario: Scenario, number: int) -> _Family:
    with_two = round(scenario.two_gpu_share * scenario.families)
    if scenario.two_gpu_share:
        with_two = max(1, with_two)
    name = NAMES[number % len(NAMES)] + (str(number) if number >= len(NAMES) else "")
    return _Family(
        name=name,
        gpus=2 if number < with_two else 1,
        seconds=SECONDS._replace(median=SECONDS.median * scenario.scale).draw(pick),
        memory=MEMORY.draw(pick) * scenario.memory_scale,
        utilization=exact(draw_utilization(pick) * scenario.utilization_scale),
        growth=pick.uniform(*GROWTH) if pick.random() < GROWING_SHARE else 1.0,
    )


def _job(
    pick: Random, scenario: Scenario, family: _Family, number: int, checkpointable: bool
) -> Job:
    seconds = SECONDS._replace(median=family.seconds, sigma=SECONDS_SIGMA).draw(pick)
    share = family.memory * pick.lognormvariate(0.0, MEMORY_SIGMA)
    memory = max(int(min(share, MEMORY.most) * scenario.card_bytes), CONTEXT_BYTES)
    demand = Demand(seconds, memory, family.utilization, family.growth)
    begin = starting(pick, demand)
    epochs = training(pick, demand, seconds - seconds_of(begin))
    return Job(
        command=f"python train_{family.name}.py --lr {pick.uniform(1e-4, 0.1):.4f} --seed {number}",
        family=family.name,
        gpus=family.gpus,
        utilization=family.utilization,
        peak_bytes=max(phase.memory_bytes for phase in epochs),
        starting=begin,
        training=epochs,
        saving_seconds=SAVING_SECONDS.draw(pick),
        is_checkpointable=checkpointable,
    )
