"""Colleagues: who comes to which card when, and what they run there. The same with and without us.

Everything about a visit is drawn from the seed alone, in the order in which a card's colleagues
come; only when it ends, and so when the next one comes, depends on what else goes on in the world.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from tests.benchmarks.decisions.phases import (
    CONTEXT_BYTES,
    Demand,
    LogNormal,
    Phase,
    exact,
    on_cpu,
    seconds_of,
    starting,
    training,
)
from tests.benchmarks.decisions.scenarios import Scenario
from tests.benchmarks.decisions.world import START, Card, Fate, Process, World

SHORT_GAP_SHARE = 0.35  # survey: between two visits to a card
SHORT_GAP_SECONDS = 30.0  # survey
# Assumed: nights and meetings. Were long gaps without memory instead, a job of two hours would find
# none in a box that is busy.
LONG_GAP_SIGMA = 1.4
LOOKING_SHARE = 0.7  # survey: of colleagues where they look at all, who take the emptiest card
WARM_UP_SECONDS = 3600.0  # before we come: assumed, so that the box is as full as it will be
NAMES = ("alice", "bob", "chen", "dana", "emre", "fay")


Habit = Literal["any", "first", "own"]
"""Which of several empty cards a looking colleague takes: any; the first that nvidia-smi lists; the
one that was this seat's before, if it is among them, else the first."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to use a card. `memory`: as a share of the card."""

    command: str
    seconds: LogNormal
    memory: LogNormal
    phases: Callable[[Random, Demand], list[Phase]]


@dataclass(slots=True, eq=False)
class Visit:
    """What one colleague did, or is doing."""

    seat: int  # whose successors come after it; also the card that is hard-coded
    number: int  # among the seat's
    kind: str
    card: int
    arrives: float
    solo_seconds: float
    process: Process
    gpu_since: float  # alone; when its context appears
    ends: float | None = None  # None: not yet
    fate: Fate | None = None
    beside_us: bool = False  # whether a run of ours was on its card when it ended

    @property
    def id(self) -> tuple[int, int]:
        return (self.seat, self.number)


@dataclass(slots=True)
class Colleagues:
    """All of a world's. `choices`: the card of each visit, where that was decided before."""

    world: World
    scenario: Scenario
    seed: int
    looking: bool
    habit: Habit = "any"
    choices: dict[tuple[int, int], int] | None = None
    visits: dict[tuple[int, int], Visit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        begin = START - WARM_UP_SECONDS
        for card in self.world.cards:
            name = f"{self.scenario.name}/{self.seed}/{card.index}"
            seat = _Seat(self, card.index, Random(name), Random(f"{name}/looks"))
            if seat.pick.random() < self.scenario.load:
                first = seat.pick.uniform(0.0, WARM_UP_SECONDS / 4)
            else:
                first = seat.pick.random() * _long_gap(seat.pick, self.scenario, by_length=True)
            self.world.at(begin + first, seat.arrive)


@dataclass(slots=True, eq=False)
class _Seat:
    """One colleague after the other, each after a gap."""

    of: Colleagues
    index: int
    pick: Random
    eye: Random  # of its own: how many cards are empty is not the same with and without us
    count: int = 0

    def arrive(self) -> None:
        of, pick, world = self.of, self.pick, self.of.world
        self.count += 1
        name = pick.choices(*zip(*of.scenario.colleagues, strict=True))[0]
        kind = KINDS[name]
        demand = Demand(
            kind.seconds.draw(pick),
            int(kind.memory.draw(pick) * of.scenario.card_bytes),
            draw_utilization(pick),
        )
        phases = kind.phases(pick, demand)
        looks = of.looking and pick.random() < LOOKING_SHARE
        gap, user = self._draw_gap(), pick.choice(NAMES)
        card = self._card(looks=looks)

        def ended(process: Process, fate: Fate) -> None:
            visit.ends, visit.fate = world.time, fate
            visit.beside_us = any(other.is_ours for other in card.processes)
            world.at(world.time + gap, self.arrive)

        process = Process(world.new_pid(), False, user, kind.command, (card,), phases, ended)
        visit = Visit(
            self.index,
            self.count,
            name,
            card.index,
            world.time,
            seconds_of(phases),
            process,
            gpu_since=world.time + phases[0].seconds,
        )
        of.visits[visit.id] = visit
        world.start(process)

    def _card(self, *, looks: bool) -> Card:
        cards, choices = self.of.world.cards, self.of.choices
        if choices is not None:
            return cards[choices.get((self.index, self.count), self.index)]
        if looks:
            least = min(card.used_bytes for card in cards)
            emptiest = [card for card in cards if card.used_bytes == least]
            return self._one_of(emptiest)
        return cards[self.index]

    def _one_of(self, emptiest: Sequence[Card]) -> Card:
        """Of several that are as empty as each other, which one they take (assumed: any; see
        Colleagues.habit)."""
        drawn = emptiest[int(self.eye.random() * len(emptiest))]
        match self.of.habit:
            case "any":
                return drawn
            case "first":
                return emptiest[0]
            case "own":
                own = self.of.world.cards[self.index]
                return own if own in emptiest else emptiest[0]

    def _draw_gap(self) -> float:
        pick = self.pick
        if pick.random() < SHORT_GAP_SHARE:
            return pick.expovariate(1 / SHORT_GAP_SECONDS)
        return _long_gap(pick, self.of.scenario)


def _long_gap(pick: Random, scenario: Scenario, *, by_length: bool = False) -> float:
    """`by_length`: as one finds it who looks at any moment; mostly a longer one."""
    seconds = _mean_gap(scenario) - SHORT_GAP_SHARE * SHORT_GAP_SECONDS
    mean = max(seconds / (1 - SHORT_GAP_SHARE), SHORT_GAP_SECONDS)
    variance = LONG_GAP_SIGMA**2
    mu = math.log(mean) + (variance / 2 if by_length else -variance / 2)
    return pick.lognormvariate(mu, LONG_GAP_SIGMA)


def _mean_gap(scenario: Scenario) -> float:
    """That which makes colleagues be there for the scenario's share of the time."""
    seconds = sum(weight * KINDS[kind].seconds.mean for kind, weight in scenario.colleagues)
    visit = seconds / sum(weight for _, weight in scenario.colleagues)
    return visit * (1 - scenario.load) / scenario.load


def draw_utilization(pick: Random) -> float:
    """Survey: Beta(2, 1.6) within .12 to .98."""
    return exact(0.12 + (0.98 - 0.12) * pick.betavariate(2.0, 1.6))


def _trains(pick: Random, demand: Demand) -> list[Phase]:
    begin = starting(pick, demand)
    return [*begin, *training(pick, demand, demand.seconds - seconds_of(begin))]


def _grabs(pick: Random, demand: Demand) -> list[Phase]:
    """Takes nearly all memory in one go, as frameworks do that preallocate."""
    begin = starting(pick, demand)[:2]
    return [*begin, *training(pick, demand, demand.seconds - seconds_of(begin))]


NOTE_STARTUP_SECONDS = LogNormal(4.0, 0.4, 2.0, 20.0)  # assumed
NOTE_IDLE_SECONDS = LogNormal(240.0, 0.9, 10.0, 3600.0)  # assumed
NOTE_BURST_SECONDS = LogNormal(15.0, 0.8, 2.0, 120.0)  # assumed


def _takes_notes(pick: Random, demand: Demand) -> list[Phase]:
    """A kernel that is left open: it holds its memory, and computes now and then."""
    phases = [on_cpu(NOTE_STARTUP_SECONDS.draw(pick)), Phase(2.0, CONTEXT_BYTES)]
    left = demand.seconds - seconds_of(phases)
    memory = max(demand.memory_bytes, CONTEXT_BYTES)
    while left > 0:
        burst = Phase(NOTE_BURST_SECONDS.draw(pick), memory, demand.utilization, 0.1)
        idle = Phase(NOTE_IDLE_SECONDS.draw(pick), memory)
        phases += [burst, idle]
        left -= burst.seconds + idle.seconds
    return phases


# Medians: survey; the rest is assumed.
KINDS = {
    "train": Kind(
        "python train.py --config base.yaml",
        LogNormal(2400.0, 0.8, 120.0, 6 * 3600.0),
        LogNormal(0.35, 0.8, 0.02, 0.95),
        _trains,
    ),
    "debug": Kind(
        "python debug.py --fast-dev-run",
        LogNormal(90.0, 0.6, 25.0, 900.0),
        LogNormal(0.25, 0.8, 0.02, 0.95),
        _trains,
    ),
    "grab": Kind(
        "python serve.py --preallocate",
        LogNormal(1500.0, 0.8, 120.0, 4 * 3600.0),
        LogNormal(0.93, 0.0, 0.93, 0.93),
        _grabs,
    ),
    "note": Kind(
        "python -m ipykernel_launcher -f kernel.json",
        LogNormal(5400.0, 0.6, 600.0, 8 * 3600.0),
        LogNormal(0.15, 0.7, 0.02, 0.8),
        _takes_notes,
    ),
}
