"""All the games that were asked for, on all cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache

from tests.benchmarks.decisions.harm import Score, score
from tests.benchmarks.decisions.oracle import Alone, OraclePack, lower_bound
from tests.benchmarks.decisions.play import Game, Player, Setting, new_game, play
from tests.benchmarks.decisions.world import START

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


@lru_cache(maxsize=2)
def reference(setting: Setting) -> Reference:
    alone = Alone(setting)
    bound = lower_bound(alone, new_game(setting).jobs)
    deadline = START + DEADLINE_BY_LOWER_BOUND * bound
    # Colleagues who look would shun us: these do what they did when we were not there.
    alone.extend(deadline)
    game = play(new_game(setting, alone.choices()), OraclePack(alone), deadline)
    return Reference(alone, bound, score("oracle_pack", game, alone, bound))


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
    """In the order of settings; the oracle's own games come with them. `tell`: how many are done,
    of how many."""
    games = [(setting, entrant) for setting in settings for entrant in (None, *entrants)]
    if processes == 1:
        return [_told(tell, n, len(games), _score_of(*g)) for n, g in enumerate(games, start=1)]
    games.sort(key=lambda game: -_size(game[0]))  # the long ones first, so that none is left over
    with ProcessPoolExecutor(processes) as pool:
        futures = [pool.submit(_score_of, *game) for game in games]
        for done, _ in enumerate(as_completed(futures), start=1):
            tell(done, len(games))
    return [future.result() for future in futures]


def _told(tell: Callable[[int, int], None], done: int, of: int, score: Score) -> Score:
    tell(done, of)
    return score


def _score_of(setting: Setting, entrant: Entrant | None) -> Score:
    return oracle_score(setting) if entrant is None else game_of(setting, entrant)[0]


def _size(setting: Setting) -> float:
    scenario = setting.scenario
    return scenario.cards * scenario.jobs * scenario.scale / (1 - scenario.load)


def _beside_oracle(found: Score, known: Reference) -> Score:
    found.oracle_makespan = known.oracle.makespan
    found.oracle_mean_completion = known.oracle.mean_completion
    return found
