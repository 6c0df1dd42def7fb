"""The loop's ports over the world: what a real box would tell it, and what it would do to it.

Virtual time skips. Whole snapshots come every few seconds only. In between, a card is seen on the
grid of the interval when others came, went or changed their memory, a window after these went (it
may have come free), and at every point while only the others' utilisation tells that it is not
free. What our own do is not looked at more closely: they would seem to use what they use while they
start. `every_second` leaves nothing out, and shows that this makes no difference.
"""

# ruff: noqa: ARG002  # a port's methods have the port's arguments

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from smartsched.core.actions import Launch, Tell
from smartsched.core.decide import Decision
from smartsched.core.events import (
    DrainRequested,
    Event,
    InputRead,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    StopRequested,
)
from smartsched.core.freeness import Share, Size
from smartsched.core.model import (
    ClaimAnswer,
    Ending,
    Exited,
    GpuKey,
    JobSpec,
    Killed,
    Observation,
    ProcessId,
    Run,
    RunKey,
    Snapshot,
    Timestamp,
    Wishes,
)
from smartsched.core.policy import Policy
from smartsched.core.requests import Answer
from smartsched.core.state import State
from smartsched.ports import Arrived, Request
from tests.benchmarks.decisions.fleet import Attempt, Fleet
from tests.benchmarks.decisions.jobs import Job
from tests.benchmarks.decisions.readings import read
from tests.benchmarks.decisions.world import FOREVER, HOST, START, Card, World

LOOK_TAKES_SECONDS = 0.001
# Below what a dispatcher allows for: it takes a GPU for unknown that it has not seen for longer.
LONGEST_SKIP_SECONDS = 5.0
_SIGTERM, _SIGKILL = 15, 9
_OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory."


@dataclass(slots=True)
class Clock:
    world: World

    def now(self) -> Timestamp:
        return self.world.time

    def local_offset(self) -> float:
        return 0.0


@dataclass(slots=True)
class Gpus:
    world: World
    interval: float
    window: float  # after which a card that came free counts as free
    unnoticed_bytes: int  # up to which others' memory alone does not make a card busy
    every_second: bool = False
    whole_due: float = START
    last: float = float("-inf")  # point of the grid at which something was told
    looks: list[tuple[float, int]] = field(default_factory=list)  # when to see which card; a heap
    followed: set[int] = field(default_factory=set)  # cards that are seen at every point
    held: dict[int, int] = field(default_factory=dict)  # others' memory by card, as of `notice`

    def take(self, now: Timestamp) -> Sequence[Observation]:
        whole, indices = now >= self.whole_due, set()
        while self.looks and self.looks[0][0] <= now:
            indices.add(heapq.heappop(self.looks)[1])
        if whole:
            self._plan_next(now)
        elif not indices:
            return []
        cards = self.world.cards
        seen = cards if whole else [cards[index] for index in sorted(indices)]
        if self._on_grid(now) == now:
            self.last = now
            self._follow(now)
        return [Snapshot(HOST, now, read(self.world, seen), whole)]

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        for key, _ in gpus:
            look = (now + LOOK_TAKES_SECONDS, int(key.uuid[4:12], 16))
            if look not in self.looks:
                heapq.heappush(self.looks, look)

    def wake_at(self) -> Timestamp:
        return min(self.whole_due, self.looks[0][0]) if self.looks else self.whole_due

    def notice(self) -> None:
        """What has changed by now is seen at the next point of the grid."""
        world = self.world
        if not world.changed:
            return
        point = self._on_grid(world.time)
        if point == self.last:  # it happened just after we looked
            point += self.interval
        for index in world.changed:
            self._notice(world.cards[index], point)
        world.changed.clear()

    def _notice(self, card: Card, point: float) -> None:
        held, before = card.strangers_bytes(), self.held.get(card.index, 0)
        only_computes = 0 < held <= self.unnoticed_bytes
        self.followed.discard(card.index)
        if held == before and not only_computes:
            return
        self.held[card.index] = held
        if point < self.whole_due:
            heapq.heappush(self.looks, (point, card.index))
        if only_computes and card.strangers_load:
            self.followed.add(card.index)
        elif held <= before:
            heapq.heappush(self.looks, (self._on_grid(point + self.window), card.index))

    def _follow(self, now: float) -> None:
        if now + self.interval < self.whole_due:
            for index in self.followed:
                heapq.heappush(self.looks, (now + self.interval, index))

    def _plan_next(self, now: float) -> None:
        skipped = 1 if self.every_second else max(1, int(LONGEST_SKIP_SECONDS / self.interval))
        self.whole_due = now + skipped * self.interval

    def _on_grid(self, time: float) -> float:
        points = -((START - time) // self.interval)
        return START + points * self.interval


@dataclass(slots=True)
class Waiter:
    world: World
    gpus: Gpus
    fleet: Fleet

    def wait(self, until: Timestamp) -> None:
        world = self.world
        while not self.fleet.ended:
            wake = min(until, self.gpus.wake_at())
            if world.next_time() > wake:
                world.time = max(world.time, wake)
                return
            world.step()
            self.gpus.notice()


@dataclass(slots=True)
class Launcher:
    fleet: Fleet
    jobs: Mapping[str, Job]  # by their commands
    runs: dict[RunKey, Attempt] = field(default_factory=dict)
    keys: dict[int, RunKey] = field(default_factory=dict)  # by pid
    signals: dict[int, int] = field(default_factory=dict)  # of what they were stopped, by pid

    def launch(self, launch: Launch, now: Timestamp) -> RunLaunched | RunPostponed | RunExited:
        assert launch.run not in self.runs, "launched twice"
        cards = [int(gpu.label) for gpu in launch.placement.gpus]
        attempt = self.fleet.start(self.jobs[launch.spec.command], cards)
        pid = attempt.process.pid
        self.runs[launch.run], self.keys[pid] = attempt, launch.run
        return RunLaunched(now, launch.run, ProcessId(pid, int(now), "boot"), None)

    def adopt(self, run: Run, now: Timestamp) -> Sequence[RunLaunched]:
        raise NotImplementedError  # one dispatcher sees it through

    def terminate(self, run: RunKey) -> None:
        self._signal(run, _SIGTERM)

    def kill(self, run: RunKey) -> None:
        self._signal(run, _SIGKILL)

    def checkpoint(self, run: RunKey) -> None:
        attempt = self.runs[run]
        self.signals[attempt.process.pid] = _SIGTERM
        self.fleet.checkpoint(attempt)

    def take(self, now: Timestamp) -> Sequence[RunExited | RunCleared | RunPostponed]:
        return [self._exited(attempt, now) for attempt in self.fleet.take()]

    def noted(self) -> None: ...
    def kept(self) -> None: ...

    def wake_at(self) -> Timestamp:
        return self.fleet.world.time if self.fleet.ended else FOREVER

    def _signal(self, run: RunKey, signum: int) -> None:
        attempt = self.runs[run]
        if attempt.ended is None:
            self.signals[attempt.process.pid] = signum
            self.fleet.stop(attempt)

    def _exited(self, attempt: Attempt, now: Timestamp) -> RunExited:
        pid = attempt.process.pid
        ending: Ending
        said = ""
        match attempt.end:
            case "oom":
                ending, said = Exited(1), _OUT_OF_MEMORY
            case "stopped":
                ending = Killed(self.signals[pid])
            case _:  # what was saved looks like what is done, as with most handlers of the signal
                ending = Exited(0)
        return RunExited(now, self.keys.pop(pid), ending, leftovers=0, out_of_memory=said)


@dataclass(slots=True)
class Intake:
    left: list[Job]  # the next one last

    def take(self, most: int) -> Sequence[Arrived]:
        taken = [self.left.pop() for _ in range(min(most, len(self.left)))]
        return [Arrived(_spec(job)) for job in taken]

    def finished(self, now: Timestamp) -> Sequence[InputRead]:
        return []

    def has_more(self) -> bool:
        return False  # there is only more once there is room for it

    def ended(self) -> bool:
        return not self.left

    def close(self) -> None: ...


def _spec(job: Job) -> JobSpec:
    return JobSpec(job.command, "list", wishes=Wishes(gpus=job.gpus if job.gpus != 1 else None))


class Claims:
    """Nobody else has a dispatcher here."""

    def ask(self, gpus: Sequence[tuple[GpuKey, int]], now: Timestamp) -> None:
        raise NotImplementedError  # --simulate goes without claims

    def release(self, gpus: Collection[GpuKey], now: Timestamp) -> None: ...

    def take(self, now: Timestamp) -> Sequence[ClaimAnswer]:
        return []

    def wake_at(self) -> Timestamp:
        return FOREVER


class Journal:
    """On a disk that has done it by the time that anybody asks."""

    _begun = False

    def write(self, events: Sequence[Event], *, durable: bool = True) -> str | None:
        self._begun = self._begun and not durable
        return None

    def begin_sync(self) -> None:
        self._begun = True

    def synced(self) -> str | None:
        begun, self._begun = self._begun, False
        return "" if begun else None


class Teller:
    def tell(self, what: Tell) -> None: ...


class Inbox:
    """Nobody asks for anything."""

    def take(self, now: Timestamp) -> Sequence[Request]:
        return ()

    def answer(self, request: str, answer: Answer) -> None:
        raise AssertionError(request)


class Requests:
    def take(self, now: Timestamp) -> Sequence[DrainRequested | StopRequested]:
        return []


class Observer:
    def recorded(self, event: Event, state: State, now: Timestamp) -> None: ...
    def decided(self, decision: Decision, state: State, now: Timestamp) -> None: ...
    def wake_at(self) -> Timestamp:
        return FOREVER


def gpus_for(world: World, policy: Policy, *, every_second: bool) -> Gpus:
    limits = policy.thresholds
    match limits.max_memory:
        case Share(percent):
            unnoticed = int(world.cards[0].memory_bytes * percent / 100)
        case Size(amount_bytes):
            unnoticed = amount_bytes
    return Gpus(world, policy.interval_seconds, limits.free_for_seconds, unnoticed, every_second)
