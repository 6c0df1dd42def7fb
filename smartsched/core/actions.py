"""What to do in the world. Carried out at most once, after its event was recorded."""

from dataclasses import dataclass
from typing import TypeAlias

from smartsched.core.model import (
    EndedRun,
    GpuKey,
    JobSpec,
    Outcome,
    Placement,
    RunKey,
    Timestamp,
)


@dataclass(frozen=True, slots=True)
class Launch:
    run: RunKey
    spec: JobSpec
    placement: Placement


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask politely: SIGTERM to every process of the run."""

    run: RunKey


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Ask to save its state and end: the user's signal to those of its processes that wait for it;
    if there is none, ask politely."""

    run: RunKey


@dataclass(frozen=True, slots=True)
class Kill:
    """Insist: SIGKILL to every process of the run."""

    run: RunKey


@dataclass(frozen=True, slots=True)
class Refresh:
    """Read this GPU now. Saying so again while the answer is under way changes nothing."""

    gpu: GpuKey
    after: Timestamp  # an answer that was begun earlier does not count


@dataclass(frozen=True, slots=True)
class Claim:
    """Tell other dispatchers that we are about to use these GPUs, and how many bytes of each (0:
    all): all of them or none."""

    gpus: tuple[tuple[GpuKey, int], ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Tell other dispatchers that we are done with these GPUs."""

    gpus: tuple[GpuKey, ...]


@dataclass(frozen=True, slots=True)
class Tell:
    """Run the user's command for a job that is finished. At most once: it is not remembered."""

    ended: EndedRun
    outcome: Outcome


Action: TypeAlias = Launch | Terminate | Checkpoint | Kill | Refresh | Claim | Release | Tell
