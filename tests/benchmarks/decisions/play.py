"""One game: a scenario, a seed, a kind of colleagues and a policy, played to the end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from smartsched.cli.parser import build_parser
from smartsched.config import configure
from smartsched.core.policy import Policy
from smartsched.core.state import State
from smartsched.loop import Loop
from smartsched.loop import World as Ports
from tests.benchmarks.decisions import ports
from tests.benchmarks.decisions.colleagues import WARM_UP_SECONDS, Colleagues, Habit
from tests.benchmarks.decisions.fleet import Fleet
from tests.benchmarks.decisions.jobs import Job, make_jobs
from tests.benchmarks.decisions.scenarios import Scenario
from tests.benchmarks.decisions.world import START, Physics, World, make_cards


@dataclass(frozen=True, slots=True)
class Setting:
    """What a policy is let loose on."""

    scenario: Scenario
    seed: int
    looking: bool
    checkpointable: bool = False
    physics: Physics = Physics()
    every_second: bool = False
    habit: Habit = "any"


@dataclass(slots=True)
class Game:
    setting: Setting
    world: World
    colleagues: Colleagues
    fleet: Fleet
    jobs: list[Job]
    given_up: list[Job] = field(default_factory=list)  # by the policy, as failed
    cpu_seconds: float = 0.0
    ticks: int = 0

    @property
    def seconds(self) -> float:
        return self.world.time - START


class Player(Protocol):
    """A policy: sees to it that all jobs are done, until the deadline at the latest."""

    def play(self, game: Game, deadline: float) -> None: ...


def new_game(setting: Setting, choices: dict[tuple[int, int], int] | None = None) -> Game:
    """Its time is that at which we come. `choices`: see Colleagues."""
    scenario, seed = setting.scenario, setting.seed
    cards = make_cards(scenario.cards, scenario.card_bytes)
    noise = Random(f"{scenario.name}/{seed}/noise")
    world = World(cards, setting.physics, noise, START - WARM_UP_SECONDS)
    colleagues = Colleagues(world, scenario, seed, setting.looking, setting.habit, choices)
    world.pass_until(START)
    jobs = make_jobs(scenario, seed, checkpointable=setting.checkpointable)
    return Game(setting, world, colleagues, Fleet(world), jobs)


def play(game: Game, player: Player, deadline: float) -> Game:
    began = time.process_time()
    player.play(game, deadline)
    game.cpu_seconds = time.process_time() - began
    return game


@dataclass(frozen=True, slots=True)
class Smartsched:
    """The real loop and core, with the user's own flags."""

    flags: Sequence[str]

    def policy(self, cards: int) -> Policy:
        # --simulate, and no settings: so that nothing depends on whoever measures.
        args = build_parser().parse_args([*self.flags, "--simulate", str(cards)])
        args.command = None
        return configure(args, "bench").policy

    def play(self, game: Game, deadline: float) -> None:
        world, fleet, policy = game.world, game.fleet, self.policy(len(game.world.cards))
        gpus = ports.gpus_for(world, policy, every_second=game.setting.every_second)
        waiter = ports.Waiter(world, gpus, fleet)
        launcher = ports.Launcher(fleet, {job.command: job for job in game.jobs})
        loop = Loop(
            Ports(
                clock=ports.Clock(world),
                waiter=waiter,
                gpus=gpus,
                launcher=launcher,
                intake=ports.Intake(game.jobs[::-1]),
                requests=ports.Requests(),
                inbox=ports.Inbox(),
                claims=ports.Claims(),
                journal=ports.Journal(),
                teller=ports.Teller(),
                observer=ports.Observer(),
            ),
            State(policy),
        )
        while not (decision := loop.tick()).over and world.time < deadline:
            game.ticks += 1
            waiter.wait(loop.wake_at(decision))
        if decision.over:
            game.given_up = [job for job in game.jobs if not job.done_at]
