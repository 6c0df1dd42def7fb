"""The box: cards, the processes on them, and what these do to each other. Knows no scheduler.

Time jumps from one happening to the next. What is between two happenings is linear: a process in a
phase goes on at its present speed.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple

from smartsched.core.model import GpuKey, GpuProcess, GpuSample, GpuUuid, HostName
from tests.benchmarks.decisions.phases import Phase

HOST = HostName("box")
# When our dispatcher starts. Not 0, so that nobody takes it for no time at all.
START = 1_000_000.0
FOREVER = float("inf")

Fate = Literal["done", "oom"]


class Physics(NamedTuple):
    """How processes on one card slow each other down, and what a sample shows of it."""

    crowding: float = 0.04  # survey: per unit of the others' utilisation
    k2: float = 0.6  # survey: per unit of utilisation beyond the whole card; .45 to 1.0
    noise: float = 0.08  # survey: of a process's utilisation in one sample
    per_process_utilization: bool = False  # whether the driver tells it: many do not

    def speed(self, own: float, total: float) -> float:
        return 1.0 / (1.0 + self.crowding * (total - own) + self.k2 * max(0.0, total - 1.0))


@dataclass(slots=True, eq=False)
class Card:
    index: int
    memory_bytes: int
    key: GpuKey
    processes: list["Process"] = field(default_factory=list)  # those with a context
    used_bytes: int = 0
    load: float = 0.0  # sum of their utilisations
    strangers_load: float = 0.0  # of that, the colleagues'
    unused: GpuSample | None = None  # its sample while nobody is there

    def strangers_bytes(self) -> int:
        return sum(p.phase.memory_bytes for p in self.processes if not p.is_ours)


@dataclass(slots=True, eq=False)
class Process:
    pid: int
    is_ours: bool
    user: str
    command: str
    cards: tuple[Card, ...]
    phases: list[Phase]
    on_end: Callable[["Process", Fate], None]
    number: int = -1  # of the phase that it is in
    phase: Phase = Phase(0.0, 0, on_gpu=False)
    remaining: float = 0.0  # seconds at full speed
    speed: float = 1.0
    speed_without_us: float = 1.0
    since: float = 0.0  # up to when `remaining` is accounted for
    version: int = 0  # tells what is planned for it from what was
    lost_to_us: float = 0.0  # seconds that it would have been faster without us
    gone: bool = False
    listed: GpuProcess | None = None  # what the driver says of it, while its memory stays

    def work_left(self) -> float:
        """Seconds at full speed, as of `since`."""
        return self.remaining + sum(phase.seconds for phase in self.phases[self.number + 1 :])


@dataclass(slots=True, eq=False)
class World:
    cards: list[Card]
    physics: Physics
    noise: Random
    time: float
    # Cards that others have begun to use differently; whoever looks clears it.
    changed: set[int] = field(default_factory=set)
    plan: list[tuple[float, int, Callable[[], None] | Process, int]] = field(default_factory=list)
    _planned: int = 0
    _last_pid: int = 10_000

    def at(self, time: float, what: Callable[[], None]) -> None:
        self._push(time, what, 0)

    def next_time(self) -> float:
        """Of the next happening; it may turn out that nothing happens."""
        return self.plan[0][0] if self.plan else FOREVER

    def step(self) -> None:
        """Let the next thing happen."""
        time, _, what, version = heapq.heappop(self.plan)
        if isinstance(what, Process):
            if version == what.version and not what.gone:
                self.time = time
                self._next_phase(what)
        else:
            self.time = time
            what()

    def pass_until(self, time: float) -> None:
        while self.next_time() <= time:
            self.step()
        self.time = max(self.time, time)

    def new_pid(self) -> int:
        self._last_pid += 1
        return self._last_pid

    def start(self, process: Process) -> None:
        process.since = self.time
        self._next_phase(process)

    def remove(self, process: Process) -> None:
        """It ends; its memory is free at once."""
        self.account(process)
        process.gone = True
        if process.phase.on_gpu:
            self._leave_phase(process)
            for card in process.cards:
                card.processes.remove(process)
            self._adjust(process.cards)
            self._note(process)

    def replace_rest(self, process: Process, phases: Sequence[Phase]) -> None:
        """From now on it does something else."""
        self.account(process)
        process.phases[process.number + 1 :] = phases
        self._next_phase(process)

    def account(self, process: Process) -> None:
        elapsed = self.time - process.since
        process.remaining -= elapsed * process.speed
        if process.speed != process.speed_without_us:
            process.lost_to_us += elapsed * (1.0 - process.speed / process.speed_without_us)
        process.since = self.time

    def _push(self, time: float, what: Callable[[], None] | Process, version: int) -> None:
        self._planned += 1
        heapq.heappush(self.plan, (time, self._planned, what, version))

    def _next_phase(self, process: Process) -> None:
        self.account(process)
        process.number += 1
        if process.number == len(process.phases):
            self._end(process, "done")
            return
        phase = process.phases[process.number]
        asked = phase.memory_bytes - process.phase.memory_bytes
        if any(card.used_bytes + asked > card.memory_bytes for card in process.cards):
            process.number -= 1
            self._end(process, "oom")
            return
        self._enter(process, phase, asked)

    def _end(self, process: Process, fate: Fate) -> None:
        self.remove(process)
        process.on_end(process, fate)

    def _enter(self, process: Process, phase: Phase, asked: int) -> None:
        before = process.phase
        if before.on_gpu:
            self._leave_phase(process)
        elif phase.on_gpu:
            for card in process.cards:
                card.processes.append(process)
        process.phase, process.remaining = phase, phase.seconds
        for card in process.cards:
            card.used_bytes += phase.memory_bytes
            card.load += phase.utilization
            card.strangers_load += 0.0 if process.is_ours else phase.utilization
        if asked:
            process.listed = None
        if phase.utilization != before.utilization:
            self._adjust(process.cards, but=process)
        self._set_speed(process)
        self._replan(process)
        if asked or phase.utilization != before.utilization:
            self._note(process)

    def _leave_phase(self, process: Process) -> None:
        phase = process.phase
        for card in process.cards:
            card.used_bytes -= phase.memory_bytes
            card.load -= phase.utilization
            card.strangers_load -= 0.0 if process.is_ours else phase.utilization

    def _note(self, process: Process) -> None:
        if not process.is_ours:
            self.changed.update(card.index for card in process.cards)

    def _adjust(self, cards: Iterable[Card], but: Process | None = None) -> None:
        """Somebody's use of these has changed: the others' speeds do."""
        for card in cards:
            for process in card.processes:
                if process is not but and process.phase.utilization:
                    self.account(process)
                    if self._set_speed(process):
                        self._replan(process)

    def _set_speed(self, process: Process) -> bool:
        """Whether it is another one. Of several cards the slowest counts."""
        own, before = process.phase.utilization, process.speed
        process.speed = process.speed_without_us = 1.0
        if own:
            speed = self.physics.speed
            for card in process.cards:
                process.speed = min(process.speed, speed(own, card.load))
            if not process.is_ours:
                for card in process.cards:
                    alone = speed(own, card.strangers_load)
                    process.speed_without_us = min(process.speed_without_us, alone)
        return process.speed != before

    def _replan(self, process: Process) -> None:
        process.version += 1
        ends = self.time + max(0.0, process.remaining) / process.speed
        self._push(ends, process, process.version)


def make_cards(count: int, memory_bytes: int) -> list[Card]:
    return [
        Card(i, memory_bytes, GpuKey(HOST, GpuUuid(f"GPU-{i:08x}-0000-4000-8000-000000000000")))
        for i in range(count)
    ]
