"""One tick: observe, decide, record, act. Knows the order; knows no device or file."""

from collections.abc import Iterable
from dataclasses import dataclass

from smartsched.core.actions import Action, Kill, Launch, Refresh, Terminate
from smartsched.core.decide import Decision, decide
from smartsched.core.events import Event, InputEnded, JobAccepted, LineRejected, RunLaunched
from smartsched.core.model import JobSpec, Snapshot, Timestamp
from smartsched.core.policy import Policy
from smartsched.core.sight import see
from smartsched.core.state import Closing, State, apply
from smartsched.ports import (
    Clock,
    GpuSource,
    Intake,
    Launcher,
    Observer,
    Requests,
    Waiter,
)

# Commands read ahead of their start. Enough to fill every GPU of a large box at once; the rest of
# the list stays where it is, so that its length costs nothing.
QUEUE_WINDOW = 64
# Lines looked at in one tick, commands or not: bad ones must not keep us from everything else.
LINES_A_TICK = 256


@dataclass(frozen=True, slots=True)
class World:
    clock: Clock
    waiter: Waiter
    gpus: GpuSource
    launcher: Launcher
    intake: Intake
    requests: Requests
    observer: Observer


# Later than that we were stopped (SIGSTOP), or the machine was.
OVERSLEPT_SECONDS = 1.0


class Loop:
    def __init__(self, world: World, policy: Policy) -> None:
        self._world = world
        self.state = State(policy)
        self._slept_until: Timestamp = float("inf")
        self._more_input = False

    def run(self) -> State:
        """Tick until every command has its end or the user wants no more. The state at the end."""
        while not (decision := self.tick()).over:
            self._slept_until = self.wake_at(decision)
            self._world.waiter.wait(self._slept_until)
        return self.state

    def tick(self) -> Decision:
        now = self._world.clock.now()
        self._observe(now)
        decision = decide(self.state, now)
        self._record(decision.events, now)  # before anything happens in the world
        if not self._act(decision.actions, now):
            decision.wake_by(now)
        self._world.observer.decided(decision, self.state, now)
        return decision

    def _observe(self, now: Timestamp) -> None:
        world = self._world
        self._record(world.requests.take(now), now)
        self._record(world.launcher.take(now), now)
        overslept = now > self._slept_until + OVERSLEPT_SECONDS
        for observation in world.gpus.take(now):
            heard_at = now
            if overslept and isinstance(observation, Snapshot):
                heard_at = observation.taken_at  # it lay about while we were stopped
            see(self.state, observation, heard_at)
        self._more_input = False
        if self.state.closing is Closing.NO and self.state.input_open:
            self._accept(now)

    def _accept(self, now: Timestamp) -> None:
        intake = self._world.intake
        budget = LINES_A_TICK
        while (room := min(QUEUE_WINDOW - len(self.state.queue), budget)) > 0:
            arrived = intake.take(room)
            if not arrived:
                break
            budget -= len(arrived)
            for line in arrived:
                if isinstance(line, JobSpec):
                    self._record([JobAccepted(now, self.state.next_job(), line)], now)
                else:
                    self._record([LineRejected(now, line.source, line.why)], now)
        self._more_input = budget == 0 or intake.has_more()
        if intake.ended():
            self._record([InputEnded(now)], now)

    def _act(self, actions: Iterable[Action], now: Timestamp) -> bool:
        """Whether all of it went as decided; if not, there is something new to decide."""
        world = self._world
        looks, as_decided = [], True
        for action in actions:
            match action:
                case Launch():
                    outcome = world.launcher.launch(action, now)
                    as_decided = as_decided and isinstance(outcome, RunLaunched)
                    self._record([outcome], now)
                case Terminate(run):
                    world.launcher.terminate(run)
                case Kill(run):
                    world.launcher.kill(run)
                case Refresh(gpu, after):
                    looks.append((gpu, after))
        if looks:
            world.gpus.refresh(looks, now)
        return as_decided

    def _record(self, events: Iterable[Event], now: Timestamp) -> None:
        for event in events:
            apply(self.state, event)
            self._world.observer.recorded(event, self.state, now)

    def wake_at(self, decision: Decision) -> Timestamp:
        """How long it may sleep if nothing happens."""
        if self._more_input and len(self.state.queue) < QUEUE_WINDOW:
            return self._world.clock.now()
        world = self._world
        return min(
            decision.wake_at,
            world.gpus.wake_at(),
            world.launcher.wake_at(),
            world.observer.wake_at(),
        )
