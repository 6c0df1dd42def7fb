"""What has happened. Events are the only way in which State's account of jobs changes."""

from dataclasses import dataclass
from typing import TypeAlias

from smartsched.core.model import (
    Ending,
    GpuKey,
    JobId,
    JobSpec,
    Placement,
    RunKey,
    Timestamp,
)


@dataclass(frozen=True, slots=True)
class JobAccepted:
    at: Timestamp
    job: JobId
    spec: JobSpec


@dataclass(frozen=True, slots=True)
class LineRejected:
    """A line that cannot be a command; it counts as a failure, the others still run."""

    at: Timestamp
    source: str
    why: str


@dataclass(frozen=True, slots=True)
class InputEnded:
    at: Timestamp


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Start nothing more; what runs may finish."""

    at: Timestamp
    why: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Start nothing more and stop what runs. Said again: do not wait for the grace period."""

    at: Timestamp
    why: str


@dataclass(frozen=True, slots=True)
class WaitTimedOut:
    """Not one GPU came free within the time the user gave."""

    at: Timestamp


@dataclass(frozen=True, slots=True)
class RunPlaced:
    at: Timestamp
    run: RunKey
    placement: Placement


@dataclass(frozen=True, slots=True)
class RunLaunched:
    at: Timestamp
    run: RunKey
    pid: int
    log: str | None  # None: its output goes somewhere else than to a file


@dataclass(frozen=True, slots=True)
class RunPostponed:
    """The system could not start it for want of something that may come back; queued again."""

    at: Timestamp
    run: RunKey
    why: str


@dataclass(frozen=True, slots=True)
class RunStopping:
    at: Timestamp
    run: RunKey


@dataclass(frozen=True, slots=True)
class RunKilled:
    at: Timestamp
    run: RunKey


@dataclass(frozen=True, slots=True)
class RunExited:
    """The job has its end. `leftovers`: processes of it that still live."""

    at: Timestamp
    run: RunKey
    ending: Ending
    leftovers: int


@dataclass(frozen=True, slots=True)
class RunCleared:
    """The last process that a run had left behind is gone."""

    at: Timestamp
    run: RunKey


@dataclass(frozen=True, slots=True)
class GpuReleased:
    """The memory of the run that held it has come back."""

    at: Timestamp
    gpu: GpuKey
    run: RunKey


Event: TypeAlias = (
    JobAccepted
    | LineRejected
    | InputEnded
    | DrainRequested
    | StopRequested
    | WaitTimedOut
    | RunPlaced
    | RunLaunched
    | RunPostponed
    | RunStopping
    | RunKilled
    | RunExited
    | RunCleared
    | GpuReleased
)
