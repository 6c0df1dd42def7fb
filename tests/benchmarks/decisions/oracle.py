"""How fast it could be: what nobody can beat by far, since it knows what nobody knows.

`lower_bound` and `OraclePack` both go by the world without us: what they leave alone is what
colleagues would have used had we not been there.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.decisions.baselines import Queue, queue_of
from tests.benchmarks.decisions.fleet import Attempt
from tests.benchmarks.decisions.jobs import Job
from tests.benchmarks.decisions.play import Game, Setting, new_game
from tests.benchmarks.decisions.world import FOREVER, START, Physics

MOST_PER_CARD = 3
MOST_UTILIZATION = 1.25
# How much longer than it may have to look ahead a timeline is made in one go.
_MAKE_AHEAD_SECONDS = 20_000.0


@dataclass(slots=True)
class Alone:
    """The world without us, made as far as somebody asks."""

    setting: Setting
    game: Game = field(init=False)
    presence: list[list[tuple[float, float]]] = field(init=False)  # by card, no two overlap

    def __post_init__(self) -> None:
        self.game = new_game(self.setting)
        self.extend(START)

    def extend(self, time: float) -> None:
        world = self.game.world
        if time > world.time or not hasattr(self, "presence"):
            world.pass_until(max(time, world.time) + _MAKE_AHEAD_SECONDS)
            self.presence = [list(_merged(self._spans(card.index))) for card in world.cards]

    def choices(self) -> dict[tuple[int, int], int]:
        return {key: visit.card for key, visit in self.game.colleagues.visits.items()}

    def free_until(self, card: int, time: float) -> float | None:
        """None: somebody is there now."""
        self.extend(time + _MAKE_AHEAD_SECONDS)
        spans = self.presence[card]
        position = bisect_right(spans, (time, FOREVER))
        if position and spans[position - 1][1] > time:
            return None
        return spans[position][0] if position < len(spans) else self.game.world.time

    def next_change(self, time: float) -> float:
        """When somebody comes to a card, or leaves one."""
        self.extend(time + _MAKE_AHEAD_SECONDS)
        edges = (edge for spans in self.presence for span in spans for edge in span)
        return min(edge for edge in edges if edge > time)

    def free_seconds(self, begin: float, end: float) -> float:
        """Of all cards together."""
        self.extend(end)
        return sum(
            (end - begin) - sum(max(0.0, min(end, b) - max(begin, a)) for a, b in spans)
            for spans in self.presence
        )

    def _spans(self, card: int) -> Iterator[tuple[float, float]]:
        for visit in self.game.colleagues.visits.values():
            if visit.card == card:
                ends = FOREVER if visit.ends is None else visit.ends
                if ends > visit.gpu_since:
                    yield visit.gpu_since, ends


def _merged(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    current: tuple[float, float] | None = None
    for begin, end in sorted(spans):
        if current is not None and begin <= current[1]:
            current = (current[0], max(current[1], end))
            continue
        if current is not None:
            yield current
        current = (begin, end)
    if current is not None:
        yield current


def lower_bound(alone: Alone, jobs: Sequence[Job]) -> float:
    """The least time in which the cards that colleagues leave free, one job each, hold all our
    work; and no less than the longest job."""
    needed = sum(job.solo_seconds * job.gpus for job in jobs)
    low = max(job.solo_seconds for job in jobs)
    high = low
    while alone.free_seconds(START, START + high) < needed:
        low, high = high, 2 * high
    while high - low > 1.0:
        middle = (low + high) / 2
        if alone.free_seconds(START, START + middle) < needed:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, slots=True)
class OraclePack:
    """Knows all: starts the longest job that is over before the next colleague comes, up to three
    on a card. To be played in a world whose colleagues do as they did without us."""

    alone: Alone

    def play(self, game: Game, deadline: float) -> None:
        world, queue = game.world, queue_of(game)
        queue.left.sort(key=lambda job: -job.solo_seconds)
        while queue.left or queue.running:
            self._fill(game, queue)
            until = self.alone.next_change(world.time)
            while not game.fleet.ended and world.next_time() <= until:
                world.step()
            if not game.fleet.ended:
                world.time = until
            queue.settle()
            if world.time > deadline:
                return

    def _fill(self, game: Game, queue: Queue) -> None:
        now = game.world.time
        gaps = {
            card.index: until
            for card in game.world.cards
            if (until := self.alone.free_until(card.index, now)) is not None
        }
        plan = _Plan(game, gaps, [_Task.of(attempt, now) for attempt in queue.running])
        for job in list(queue.left):
            cards = plan.find_cards(job)
            if cards is not None:
                queue.start(cards, job)
                plan.tasks.append(_Task.of(queue.running[-1], now))


@dataclass(slots=True, eq=False)
class _Task:
    left: float  # seconds at full speed
    cards: tuple[int, ...]
    utilization: float
    memory_bytes: int

    @staticmethod
    def of(attempt: Attempt, now: float) -> "_Task":
        process, job = attempt.process, attempt.job
        left = process.work_left() - (now - process.since) * process.speed
        return _Task(left, attempt.cards, job.utilization, job.peak_bytes)


@dataclass(slots=True)
class _Plan:
    """What runs, and whether all of it would be over in time."""

    game: Game
    gaps: dict[int, float]
    tasks: list[_Task]

    def find_cards(self, job: Job) -> tuple[int, ...] | None:
        """The least loaded ones; of these, those that are free for the shortest time."""
        now, physics = self.game.world.time, self.game.setting.physics
        on = {card: [task for task in self.tasks if card in task.cards] for card in self.gaps}
        fitting = [
            card
            for card, until in self.gaps.items()
            if now + job.solo_seconds <= until and self._has_room(job, card, on[card])
        ]
        fitting.sort(key=lambda card: (sum(t.utilization for t in on[card]), self.gaps[card]))
        for first in range(len(fitting) - job.gpus + 1):
            cards = tuple(fitting[first : first + job.gpus])
            new = _Task(job.solo_seconds, cards, job.utilization, job.peak_bytes)
            if self._in_time([*self.tasks, new], new, physics):
                return cards
        return None

    def _has_room(self, job: Job, card: int, there: Sequence[_Task]) -> bool:
        return (
            len(there) < MOST_PER_CARD
            and sum(t.utilization for t in there) + job.utilization <= MOST_UTILIZATION
            and sum(t.memory_bytes for t in there) + job.peak_bytes
            <= self.game.world.cards[card].memory_bytes
        )

    def _in_time(self, tasks: list[_Task], new: _Task, physics: Physics) -> bool:
        """Whether all that the new one may slow down still ends before a colleague comes."""
        together = _connected(tasks, new)
        left = {id(task): task.left for task in together}
        now, alive = self.game.world.time, together
        while alive:
            loads: dict[int, float] = {}
            for task in alive:
                for card in task.cards:
                    loads[card] = loads.get(card, 0.0) + task.utilization
            speeds = [
                min(physics.speed(task.utilization, loads[card]) for card in task.cards)
                for task in alive
            ]
            step = min(left[id(task)] / s for task, s in zip(alive, speeds, strict=True))
            now += step
            for task, speed in zip(alive, speeds, strict=True):
                left[id(task)] -= step * speed
            over = [task for task in alive if left[id(task)] <= 1e-6]
            if any(now > self.gaps[card] for task in over for card in task.cards):
                return False
            alive = [task for task in alive if left[id(task)] > 1e-6]
        return True


def _connected(tasks: list[_Task], new: _Task) -> list[_Task]:
    """Those that share a card with it, or with one that does."""
    cards = set(new.cards)
    while True:
        found = [task for task in tasks if cards.intersection(task.cards)]
        more = {card for task in found for card in task.cards}
        if more <= cards:
            return found
        cards |= more
