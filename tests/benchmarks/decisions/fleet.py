"""Our runs in the world, whoever decides on them: started, stopped, and what came of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.benchmarks.decisions.jobs import Job
from tests.benchmarks.decisions.phases import Phase
from tests.benchmarks.decisions.world import Fate, Process, World

End = Literal["done", "oom", "stopped", "saved"]


@dataclass(slots=True, eq=False)
class Attempt:
    job: Job
    cards: tuple[int, ...]
    started: float
    is_first_of_family: bool
    process: Process
    slowed_down: float = 1.0  # for want of GPUs
    saves: tuple[int, float] | None = None  # while it does: what it will have saved
    ended: float | None = None
    end: End | None = None
    kept_seconds: float = 0.0  # of its work, which the next attempt need not do

    @property
    def gpu_seconds(self) -> float:
        """Zero while it runs."""
        return 0.0 if self.ended is None else (self.ended - self.started) * len(self.cards)

    @property
    def wasted_gpu_seconds(self) -> float:
        if self.end in (None, "done"):
            return 0.0
        return max(0.0, self.gpu_seconds - self.kept_seconds * len(self.cards))


@dataclass(slots=True, eq=False)
class Fleet:
    world: World
    attempts: list[Attempt] = field(default_factory=list)
    ended: list[Attempt] = field(default_factory=list)  # that nobody has taken note of yet
    families: set[str] = field(default_factory=set)  # of which one was started

    def start(self, job: Job, cards: Sequence[int]) -> Attempt:
        world = self.world
        slower = max(1.0, job.gpus / len(cards)) if cards else 1.0
        phases = [*job.starting, *job.left_to_do()]
        if slower > 1:
            phases = [phase._replace(seconds=phase.seconds * slower) for phase in phases]
        if not cards:
            phases = [Phase(phase.seconds, 0, on_gpu=False) for phase in phases]
        on = tuple(world.cards[index] for index in cards)

        def ended(process: Process, fate: Fate) -> None:
            self._end(attempt, "saved" if attempt.saves is not None else fate)

        process = Process(world.new_pid(), True, "me", job.command, on, phases, ended)
        first = job.family not in self.families
        attempt = Attempt(job, tuple(cards), world.time, first, process, slower)
        self.families.add(job.family)
        self.attempts.append(attempt)
        world.start(process)
        return attempt

    def stop(self, attempt: Attempt) -> None:
        """It dies at once, and what it has not saved is lost."""
        if attempt.ended is None:
            self.world.remove(attempt.process)
            attempt.saves = None
            self._end(attempt, "stopped")

    def checkpoint(self, attempt: Attempt) -> None:
        """What can save its state does, and exits; of anything else the signal is the end."""
        job, process = attempt.job, attempt.process
        if attempt.ended is not None or attempt.saves is not None:
            return
        begun = process.number - len(job.starting)
        if not job.is_checkpointable or begun < 0:
            self.stop(attempt)
            return
        self.world.account(process)
        number, already = job.saved
        did = (process.phase.seconds - process.remaining) / attempt.slowed_down
        attempt.saves = (number + begun, did + (already if begun == 0 else 0.0))
        saving = Phase(job.saving_seconds, process.phase.memory_bytes)
        self.world.replace_rest(process, [saving])

    def take(self) -> list[Attempt]:
        """Those that ended since the last call."""
        ended, self.ended = self.ended, []
        return ended

    def _end(self, attempt: Attempt, end: End) -> None:
        attempt.ended, attempt.end = self.world.time, end
        job = attempt.job
        if end == "done":
            job.done_at.append(self.world.time)
        elif end == "saved":
            assert attempt.saves is not None
            before = job.saved_seconds()
            job.saved = attempt.saves
            attempt.kept_seconds = job.saved_seconds() - before
        self.ended.append(attempt)
