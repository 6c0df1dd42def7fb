"""What a game came to: the harm that we did, against the same world without us, and our speed."""

from dataclasses import asdict, dataclass

from tests.benchmarks.decisions.fleet import Attempt
from tests.benchmarks.decisions.oracle import Alone
from tests.benchmarks.decisions.play import Game
from tests.benchmarks.decisions.world import START

NOTICEABLE_DELAY = 0.05  # of a visit's time
# How long the colleagues whom we met may have gone on without us after we were done.
_FOLLOWED_SECONDS = 8 * 3600.0


@dataclass(slots=True)
class Score:
    """Of one game. Everything but the times that it took may be summed over games."""

    policy: str
    scenario: str
    colleagues: str
    seed: int
    # How fast
    makespan: float
    mean_completion: float
    lower_bound: float
    oracle_makespan: float = 0.0
    oracle_mean_completion: float = 0.0
    # Colleagues
    visits: int = 0
    ooms: int = 0
    ooms_beside_us: int = 0  # of these, where a run of ours was on the card
    ooms_alone: int = 0  # of the same visits, in the world without us
    compared: int = 0  # that ended well in both worlds
    solo_seconds: float = 0.0  # theirs, without us
    delay_seconds: float = 0.0  # how much longer they took
    delayed: int = 0  # by more than may be overlooked
    lost_to_us_seconds: float = 0.0  # because they were slower for our jobs on their cards
    # Our own
    launches: int = 0
    later_launches: int = 0  # after the first of a family
    own_ooms: int = 0
    later_own_ooms: int = 0
    stopped: int = 0
    saved: int = 0  # of the stopped
    gpu_seconds: float = 0.0
    wasted_gpu_seconds: float = 0.0
    # What must not be
    unfinished: int = 0  # jobs, when it was over
    done_twice: int = 0
    # What it took to find out
    cpu_seconds: float = 0.0
    ticks: int = 0

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def score(policy: str, game: Game, alone: Alone, lower_bound: float) -> Score:
    setting = game.setting
    times = [job.done_at[0] - START for job in game.jobs if job.done_at]
    found = Score(
        policy=policy,
        scenario=setting.scenario.name,
        colleagues="looking" if setting.looking else "blind",
        seed=setting.seed,
        makespan=game.seconds,
        mean_completion=sum(times) / len(times) if times else game.seconds,
        lower_bound=lower_bound,
        cpu_seconds=game.cpu_seconds,
        ticks=game.ticks,
    )
    found.unfinished = len(game.jobs) - len(times)
    found.done_twice = sum(len(job.done_at) > 1 for job in game.jobs)
    _count_visits(found, game, alone)
    for attempt in game.fleet.attempts:
        _count_attempt(found, attempt)
    return found


def _count_visits(found: Score, game: Game, alone: Alone) -> None:
    alone.extend(game.world.time + _FOLLOWED_SECONDS)
    without_us = alone.game.colleagues.visits
    for key, visit in game.colleagues.visits.items():
        found.visits += 1
        found.ooms += visit.fate == "oom"
        found.ooms_beside_us += visit.fate == "oom" and visit.beside_us
        other = without_us.get(key)
        if other is None:
            continue
        found.ooms_alone += other.fate == "oom"
        if visit.fate == other.fate == "done":
            assert visit.ends is not None
            assert other.ends is not None
            solo = other.ends - other.arrives
            delay = (visit.ends - visit.arrives) - solo
            found.compared += 1
            found.lost_to_us_seconds += visit.process.lost_to_us
            found.solo_seconds += solo
            found.delay_seconds += delay
            found.delayed += delay > NOTICEABLE_DELAY * solo


def _count_attempt(found: Score, attempt: Attempt) -> None:
    later, oom = not attempt.is_first_of_family, attempt.end == "oom"
    found.launches += 1
    found.later_launches += later
    found.own_ooms += oom
    found.later_own_ooms += oom and later
    found.stopped += attempt.end in ("stopped", "saved")
    found.saved += attempt.end == "saved"
    found.gpu_seconds += attempt.gpu_seconds
    found.wasted_gpu_seconds += attempt.wasted_gpu_seconds
