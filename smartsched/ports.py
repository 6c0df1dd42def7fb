"""What the loop needs from the outside world; the edges provide it, the simulation fakes it.

Nothing here waits but `Waiter.wait`: everything else answers with what there is by now.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

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
from smartsched.core.model import BadLine, GpuKey, JobSpec, Observation, RunKey, Timestamp
from smartsched.core.state import State


class Clock(Protocol):
    def now(self) -> Timestamp: ...


class Waiter(Protocol):
    """Sleeps until something happened, at the latest until the given time."""

    def wait(self, until: Timestamp) -> None: ...


class FdWatcher(Protocol):
    """Where edges say which file descriptors and signals wake the loop."""

    def watch(self, fd: int, when_ready: Callable[[], None], *, writable: bool = False) -> None: ...
    def forget(self, fd: int) -> None: ...
    def on_signal(self, signum: int, when_caught: Callable[[], None]) -> None: ...


class GpuSource(Protocol):
    def take(self, now: Timestamp) -> Sequence[Observation]:
        """What was seen since the last call, oldest first."""
        ...

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        """Read these GPUs at once; answers that were begun before the given times do not count."""
        ...

    def wake_at(self) -> Timestamp:
        """When it wants `take` to be called at the latest, though nothing was seen."""
        ...


class Launcher(Protocol):
    def launch(self, launch: Launch, now: Timestamp) -> RunLaunched | RunPostponed | RunExited:
        """Start it, or say why not: RunExited with NotStarted, or RunPostponed."""
        ...

    def terminate(self, run: RunKey) -> None: ...
    def kill(self, run: RunKey) -> None: ...

    def take(self, now: Timestamp) -> Sequence[RunExited | RunCleared]:
        """What ended since the last call."""
        ...

    def wake_at(self) -> Timestamp: ...


class Intake(Protocol):
    def take(self, most: int) -> Sequence[JobSpec | BadLine]:
        """Up to `most` commands that have arrived."""
        ...

    def has_more(self) -> bool:
        """Whether another call would find more at once."""
        ...

    def ended(self) -> bool:
        """Whether nothing will come any more."""
        ...


class Requests(Protocol):
    def take(self, now: Timestamp) -> Sequence[DrainRequested | StopRequested]: ...


class Observer(Protocol):
    """Whoever tells people about it. Must not fail and must not take long."""

    def recorded(self, event: Event, state: State, now: Timestamp) -> None: ...
    def decided(self, decision: Decision, state: State, now: Timestamp) -> None: ...
    def wake_at(self) -> Timestamp: ...
