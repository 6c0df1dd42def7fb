"""The order of things in a tick: observe, decide, record, act."""

# ruff: noqa: ARG002  # a fake has the arguments of its port

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from smartsched.core.actions import Launch
from smartsched.core.decide import Decision
from smartsched.core.events import (
    DrainRequested,
    Event,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    StopRequested,
)
from smartsched.core.model import (
    BadLine,
    Exited,
    GpuKey,
    JobSpec,
    NotStarted,
    Observation,
    RunKey,
    Timestamp,
)
from smartsched.core.state import Closing, State
from smartsched.loop import LINES_A_TICK, QUEUE_WINDOW, Loop, World
from tests.builders import T0, a_policy, a_run, a_sample, a_snapshot, a_spec, exited

NEVER = float("inf")
Outcome = RunLaunched | RunPostponed | RunExited


@dataclass
class FakeClock:
    time: float = T0

    def now(self) -> Timestamp:
        return self.time


@dataclass
class FakeWaiter:
    waits: list[Timestamp] = field(default_factory=list)
    when_waiting: Callable[[], None] = lambda: None

    def wait(self, until: Timestamp) -> None:
        self.waits.append(until)
        self.when_waiting()


@dataclass
class FakeGpus:
    diary: list[str]
    told: list[Observation] = field(default_factory=list)
    wake: Timestamp = NEVER

    def take(self, now: Timestamp) -> Sequence[Observation]:
        self.diary.append("take gpus")
        told, self.told = self.told, []
        return told

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        self.diary.append(f"refresh {len(gpus)}")

    def wake_at(self) -> Timestamp:
        return self.wake


@dataclass
class FakeLauncher:
    diary: list[str]
    ended: list[RunExited | RunCleared] = field(default_factory=list)
    start: Callable[[RunKey, Timestamp], Outcome] = lambda run, now: RunLaunched(now, run, 77, None)
    wake: Timestamp = NEVER

    def launch(self, launch: Launch, now: Timestamp) -> Outcome:
        self.diary.append(f"launch {launch.run.job}/{launch.run.attempt}")
        return self.start(launch.run, now)

    def terminate(self, run: RunKey) -> None:
        self.diary.append(f"terminate {run.job}")

    def kill(self, run: RunKey) -> None:
        self.diary.append(f"kill {run.job}")

    def take(self, now: Timestamp) -> Sequence[RunExited | RunCleared]:
        self.diary.append("take exits")
        ended, self.ended = self.ended, []
        return ended

    def wake_at(self) -> Timestamp:
        return self.wake


@dataclass
class FakeIntake:
    lines: list[JobSpec | BadLine] = field(default_factory=list)
    open: bool = False
    asked_for: list[int] = field(default_factory=list)

    def take(self, most: int) -> Sequence[JobSpec | BadLine]:
        self.asked_for.append(most)
        taken, self.lines = self.lines[:most], self.lines[most:]
        return taken

    def has_more(self) -> bool:
        return False

    def ended(self) -> bool:
        return not self.lines and not self.open


@dataclass
class FakeRequests:
    made: list[DrainRequested | StopRequested] = field(default_factory=list)

    def take(self, now: Timestamp) -> Sequence[DrainRequested | StopRequested]:
        made, self.made = self.made, []
        return made


@dataclass
class FakeObserver:
    diary: list[str]
    events: list[Event] = field(default_factory=list)
    wake: Timestamp = NEVER

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        self.diary.append(f"record {type(event).__name__}")
        self.events.append(event)

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        self.diary.append("decided")

    def wake_at(self) -> Timestamp:
        return self.wake


class FakeWorld:
    """All ports, and one diary of what was asked of them."""

    def __init__(self, *lines: JobSpec | BadLine, gpus: int = 1) -> None:
        self.diary: list[str] = []
        self.clock = FakeClock()
        self.waiter = FakeWaiter()
        self.gpus = FakeGpus(self.diary, [a_snapshot(*map(a_sample, range(gpus)))])
        self.launcher = FakeLauncher(self.diary)
        self.intake = FakeIntake(list(lines))
        self.requests = FakeRequests()
        self.observer = FakeObserver(self.diary)
        self.loop = Loop(
            World(
                self.clock,
                self.waiter,
                self.gpus,
                self.launcher,
                self.intake,
                self.requests,
                self.observer,
            ),
            a_policy(),
        )

    def jobs_end(self) -> None:
        """Every run ends well, and its memory is back."""
        self.clock.time += 1
        now, state = self.clock.time, self.loop.state
        self.launcher.ended += [RunExited(now, run, Exited(0), 0) for run in state.runs]
        self.gpus.told.append(a_snapshot(*(w.latest for w in state.gpus.values()), at=now))


def commands(count: int) -> list[JobSpec]:
    return [a_spec(number) for number in range(1, count + 1)]


def test_a_launch_is_recorded_before_it_happens():
    world = FakeWorld(*commands(1))

    world.loop.tick()

    happened = world.diary[world.diary.index("record RunPlaced") :]
    assert happened == ["record RunPlaced", "launch 1/1", "record RunLaunched", "decided"]


def test_everything_decided_is_recorded_before_anything_is_done():
    world = FakeWorld(*commands(2), gpus=2)

    world.loop.tick()

    order = [entry for entry in world.diary if entry.startswith(("record Run", "launch"))]
    assert order[:4] == ["record RunPlaced", "record RunPlaced", "launch 1/1", "record RunLaunched"]


def test_a_signal_is_recorded_before_it_is_sent():
    world = FakeWorld(*commands(1))
    world.loop.tick()
    world.requests.made = [StopRequested(T0, "ctrl-c")]

    world.loop.tick()

    assert world.diary.index("record RunStopping") < world.diary.index("terminate 1")


def test_exits_are_taken_in_before_what_was_seen_of_the_gpus():
    world = FakeWorld()

    world.loop.tick()

    assert world.diary.index("take exits") < world.diary.index("take gpus")


def test_gpus_are_looked_at_together():
    world = FakeWorld(*commands(3), gpus=3)
    world.loop.tick()
    world.clock.time += 5
    world.launcher.ended = [exited(job, at=T0 + 5) for job in (1, 2, 3)]

    world.loop.tick()

    assert [entry for entry in world.diary if entry.startswith("refresh")] == ["refresh 3"]


def test_no_more_is_read_ahead_than_the_window():
    world = FakeWorld(*commands(10 * QUEUE_WINDOW), gpus=0)

    for _ in range(5):
        world.loop.tick()

    assert len(world.loop.state.queue) == QUEUE_WINDOW
    assert len(world.intake.lines) == 9 * QUEUE_WINDOW
    assert all(0 < most <= QUEUE_WINDOW for most in world.intake.asked_for)


def test_what_was_started_makes_room_for_more():
    world = FakeWorld(*commands(2 * QUEUE_WINDOW), gpus=3)
    world.loop.tick()
    world.loop.tick()

    assert len(world.loop.state.queue) == QUEUE_WINDOW
    assert world.loop.state.totals.accepted == QUEUE_WINDOW + 3


def test_a_list_longer_than_the_window_runs_to_its_end_in_order():
    count = 3 * QUEUE_WINDOW + 7
    world = FakeWorld(*commands(count), gpus=2)
    world.waiter.when_waiting = world.jobs_end

    state = world.loop.run()

    assert state.totals.ok == count
    started = [entry for entry in world.diary if entry.startswith("launch")]
    assert started == [f"launch {number}/1" for number in range(1, count + 1)]


def test_lines_that_cannot_be_commands_are_counted_and_the_others_run():
    bad = BadLine("list:2", "holds a NUL byte")
    world = FakeWorld(a_spec(1), bad, a_spec(3))

    world.loop.tick()

    assert (world.loop.state.totals.accepted, world.loop.state.totals.rejected) == (2, 1)


def test_any_number_of_bad_lines_takes_no_room():
    bad = [BadLine(f"list:{number}", "holds a NUL byte") for number in range(5 * QUEUE_WINDOW)]
    world = FakeWorld(*bad, a_spec(), gpus=0)

    decision = world.loop.tick()
    assert world.loop.state.totals.rejected == LINES_A_TICK
    assert world.loop.wake_at(decision) <= world.clock.now()
    world.loop.tick()

    assert world.loop.state.totals.rejected == 5 * QUEUE_WINDOW
    assert len(world.loop.state.queue) == 1


def test_nothing_is_read_once_the_end_was_asked_for():
    world = FakeWorld(*commands(3))
    world.requests.made = [DrainRequested(T0, "ctrl-c")]

    decision = world.loop.tick()

    assert world.intake.asked_for == []
    assert decision.over


def test_the_end_of_the_input_is_noted_once():
    world = FakeWorld(*commands(1), gpus=0)

    for _ in range(3):
        world.loop.tick()

    assert world.diary.count("record InputEnded") == 1


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        (lambda run, now: RunPostponed(now, run, "cannot fork"), 0),
        (lambda run, now: RunExited(now, run, NotStarted("no such shell"), 0), 1),
    ],
    ids=["postponed", "not started"],
)
def test_a_start_that_failed_is_thought_about_at_once(
    outcome: Callable[[RunKey, Timestamp], Outcome], failed: int
):
    world = FakeWorld(*commands(1))
    world.launcher.start = outcome

    decision = world.loop.tick()

    assert decision.wake_at <= T0
    assert (world.loop.state.runs, world.loop.state.totals.failed) == ({}, failed)


def test_postponed_commands_start_in_the_order_of_the_list():
    world = FakeWorld(*commands(3), gpus=3)
    world.launcher.start = lambda run, now: RunPostponed(now, run, "cannot fork")
    world.loop.tick()
    world.launcher.start = lambda run, now: RunLaunched(now, run, 77, None)
    world.clock.time += 5
    world.gpus.told = [a_snapshot(*(a_sample(n) for n in range(3)), at=world.clock.time)]

    world.loop.tick()

    started = [entry for entry in world.diary if entry.endswith("/2")]
    assert started == ["launch 1/2", "launch 2/2", "launch 3/2"]


def test_it_sleeps_until_the_first_of_all_who_want_to_be_woken():
    world = FakeWorld()
    world.intake.open = True
    decision = world.loop.tick()

    assert world.loop.wake_at(decision) == NEVER
    world.observer.wake = T0 + 9
    assert world.loop.wake_at(decision) == T0 + 9
    world.launcher.wake = T0 + 7
    assert world.loop.wake_at(decision) == T0 + 7
    world.gpus.wake = T0 + 5
    assert world.loop.wake_at(decision) == T0 + 5
    decision.wake_by(T0 + 3)
    assert world.loop.wake_at(decision) == T0 + 3


def test_it_does_not_sleep_when_it_is_over():
    world = FakeWorld()

    state = world.loop.run()

    assert world.waiter.waits == []
    assert (state.closing, state.totals.finished) == (Closing.NO, 0)


def test_whoever_watches_sees_every_event():
    world = FakeWorld(*commands(1))
    world.waiter.when_waiting = world.jobs_end

    world.loop.run()

    names = [type(event).__name__ for event in world.observer.events]
    assert names == [
        "JobAccepted",
        "InputEnded",
        "RunPlaced",
        "RunLaunched",
        "RunExited",
        "GpuReleased",
    ]
    assert world.observer.events[3] == RunLaunched(T0, a_run(), 77, None)


def test_what_was_seen_while_we_were_stopped_is_old_news():
    world = FakeWorld(*commands(1), gpus=1)
    world.gpus.told = [a_snapshot(a_sample(), at=T0)]
    world.loop._slept_until = T0
    world.clock.time = T0 + 3

    world.loop.tick()

    assert not any(entry.startswith("launch") for entry in world.diary)
