"""All the games that were asked for, on all cores."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache

from tests.benchmarks.decisions.harm import Score, score
from tests.benchmarks.decisions.oracle import Alone, OraclePack, lower_bound
from tests.benchmarks.decisions.play import Game, Player, Setting, new_game, play
from tests.benchmarks.decisions.world import START

ORACLE = "oracle_pack"
# By then a policy has shown that it does not get anywhere.
DEADLINE_BY_LOWER_BOUND = 10.0


@dataclass(frozen=True, slots=True)
class Entrant:
    """A policy under its name."""

    name: str
    player: Player


@dataclass(frozen=True, slots=True)
class Reference:
    """What the games of a setting are measured against."""

    alone: Alone
    lower_bound: float
    oracle: Score


@lru_cache(maxsize=1)
def reference(setting: Setting) -> Reference:
    alone = Alone(setting)
    bound = lower_bound(alone, new_game(setting).jobs)
    deadline = START + DEADLINE_BY_LOWER_BOUND * bound
    # Colleagues who look would shun us: these do what they did when we were not there.
    alone.extend(deadline)
    game = play(new_game(setting, alone.choices()), OraclePack(alone), deadline)
    return Reference(alone, bound, score(ORACLE, game, alone, bound))


def game_of(setting: Setting, entrant: Entrant) -> tuple[Score, Game]:
    known = reference(setting)
    deadline = START + DEADLINE_BY_LOWER_BOUND * known.lower_bound
    game = play(new_game(setting), entrant.player, deadline)
    found = score(entrant.name, game, known.alone, known.lower_bound)
    return _beside_oracle(found, known), game


def oracle_score(setting: Setting) -> Score:
    known = reference(setting)
    return _beside_oracle(known.oracle, known)


def measure(
    settings: Sequence[Setting],
    entrants: Sequence[Entrant],
    processes: int,
    tell: Callable[[int, int], None],
) -> list[Score]:
    """The oracle's own games come with them. `tell`: how many settings are done, of how many."""
    scores: list[Score] = []
    for done, found in enumerate(_each(settings, entrants, processes), start=1):
        scores += found
        tell(done, len(settings))
    return scores


def _each(
    settings: Sequence[Setting], entrants: Sequence[Entrant], processes: int
) -> Iterator[list[Score]]:
    if processes == 1:
        yield from (_scores(setting, entrants) for setting in settings)
        return
    with ProcessPoolExecutor(processes) as pool:
        # The long ones first, so that none is left over.
        ordered = sorted(settings, key=_size, reverse=True)
        futures = [pool.submit(_scores, setting, entrants) for setting in ordered]
        for future in as_completed(futures):
            yield future.result()


def _scores(setting: Setting, entrants: Sequence[Entrant]) -> list[Score]:
    return [oracle_score(setting), *(game_of(setting, entrant)[0] for entrant in entrants)]


def _size(setting: Setting) -> float:
    scenario = setting.scenario
    return scenario.cards * scenario.jobs * scenario.scale / (1 - scenario.load)


def _beside_oracle(found: Score, known: Reference) -> Score:
    found.oracle_makespan = known.oracle.makespan
    found.oracle_mean_completion = known.oracle.mean_completion
    return found
