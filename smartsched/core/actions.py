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
class Kill:
    """Insist: SIGKILL to every process of the run."""

    run: RunKey


@dataclass(frozen=True, slots=True)
class Refresh:
    """Read this GPU now. Saying so again while the answer is under way changes nothing."""

    gpu: GpuKey
    after: Timestamp  # an answer that was begun earlier does not count


@dataclass(frozen=True, slots=True)
class Tell:
    """Run the user's command for a job that is finished. At most once: it is not remembered."""

    ended: EndedRun
    outcome: Outcome


Action: TypeAlias = Launch | Terminate | Kill | Refresh | Tell
