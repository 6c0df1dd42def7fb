"""What to do in the world. Carried out at most once, after its event was recorded."""

from typing import TypeAlias

from msgspec import Struct

from smartsched.core.model import (
    EndedRun,
    GpuKey,
    JobSpec,
    Outcome,
    Placement,
    RunKey,
    Timestamp,
)


class Launch(Struct, frozen=True):
    run: RunKey
    spec: JobSpec
    placement: Placement


class Terminate(Struct, frozen=True):
    """Ask politely: SIGTERM to every process of the run."""

    run: RunKey


class Checkpoint(Struct, frozen=True):
    """Ask to save its state and end: the user's signal to those of its processes that wait for it;
    if there is none, ask politely."""

    run: RunKey


class Kill(Struct, frozen=True):
    """Insist: SIGKILL to every process of the run."""

    run: RunKey


class Refresh(Struct, frozen=True):
    """Read this GPU now. Saying so again while the answer is under way changes nothing."""

    gpu: GpuKey
    after: Timestamp  # an answer that was begun earlier does not count


class Claim(Struct, frozen=True):
    """Tell other dispatchers that we are about to use these GPUs, and how many bytes of each (0:
    all): all of them or none."""

    gpus: tuple[tuple[GpuKey, int], ...]


class Release(Struct, frozen=True):
    """Tell other dispatchers that we are done with these GPUs."""

    gpus: tuple[GpuKey, ...]


class Tell(Struct, frozen=True):
    """Run the user's command for a job that is finished. At most once: it is not remembered."""

    ended: EndedRun
    outcome: Outcome


Action: TypeAlias = Launch | Terminate | Checkpoint | Kill | Refresh | Claim | Release | Tell
