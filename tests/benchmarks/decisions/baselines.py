"""What people do without a scheduler that gives way; a baseline is a class with `play`.

All of them start jobs in the order of the list and queue a job again that ran out of memory. None
ever stops a job.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.decisions.fleet import Attempt
from tests.benchmarks.decisions.jobs import Job
from tests.benchmarks.decisions.play import Game, Player
from tests.benchmarks.decisions.readings import utilization


@dataclass(slots=True)
class Queue:
    """What is left to do, and who does it."""

    game: Game
    left: list[Job]
    running: list[Attempt]

    def start(self, cards: Sequence[int], job: Job | None = None) -> None:
        """The next one, if it is not said which."""
        job = self.left[0] if job is None else job
        self.left.remove(job)
        self.running.append(self.game.fleet.start(job, cards))

    def settle(self) -> None:
        for attempt in self.game.fleet.take():
            self.running.remove(attempt)
            if attempt.end != "done":
                self.left.append(attempt.job)

    def busy_cards(self) -> set[int]:
        """Those where a run of ours is."""
        return {card for attempt in self.running for card in attempt.cards}


def queue_of(game: Game) -> Queue:
    return Queue(game, list(game.jobs), [])


@dataclass(frozen=True, slots=True)
class FixedList:
    """`CUDA_VISIBLE_DEVICES=$i` in a loop: all cards are taken, one job each."""

    def play(self, game: Game, deadline: float) -> None:
        world, queue = game.world, queue_of(game)
        while queue.left or queue.running:
            busy = queue.busy_cards()
            idle = [card.index for card in world.cards if card.index not in busy]
            while queue.left and len(idle) >= (gpus := queue.left[0].gpus):
                queue.start(idle[:gpus])
                del idle[:gpus]
            while not game.fleet.ended and world.next_time() <= deadline:
                world.step()
            if not game.fleet.ended:
                return
            queue.settle()


@dataclass(frozen=True, slots=True)
class Poll:
    """One look now and then: a card below both limits gets a job."""

    limit_percent: float  # of memory, and of utilisation
    every_seconds: float
    one_per_card: bool  # whether it remembers where its own are

    def play(self, game: Game, deadline: float) -> None:
        world, queue = game.world, queue_of(game)
        while (queue.left or queue.running) and world.time < deadline:
            self._start(game, queue)
            if queue.left:
                world.pass_until(world.time + self.every_seconds)
            else:
                while not game.fleet.ended and world.next_time() <= deadline:
                    world.step()
                if not game.fleet.ended:
                    return
            queue.settle()

    def _start(self, game: Game, queue: Queue) -> None:
        taken = queue.busy_cards() if self.one_per_card else set()
        idle = [
            card.index
            for card in game.world.cards
            if card.index not in taken
            and 100 * card.used_bytes <= self.limit_percent * card.memory_bytes
            and utilization(game.world, card) <= self.limit_percent
        ]
        while queue.left and len(idle) >= (gpus := queue.left[0].gpus):
            queue.start(idle[:gpus])
            del idle[:gpus]


BASELINES: dict[str, Player] = {
    "fixed list, all": FixedList(),
    "naive poll 10 %": Poll(10.0, 10.0, one_per_card=False),
    "loose poll 50 %": Poll(50.0, 10.0, one_per_card=False),
    "one per GPU": Poll(10.0, 1.0, one_per_card=True),
}
