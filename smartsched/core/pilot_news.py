"""What is heard of pilots from Slurm."""

from typing import TypeAlias

from msgspec import Struct

from smartsched.core.model import Timestamp
from smartsched.core.slurm import PilotId


class Submitted(Struct, frozen=True):
    """Slurm has it; or it was found there, submitted by an earlier dispatcher of this run."""

    pilot: PilotId


class Refused(Struct, frozen=True):
    """One submission: there is no pilot of it."""

    why: str


class Waits(Struct, frozen=True):
    pilot: PilotId
    reason: str  # Slurm's word; "": it gives none


class Runs(Struct, frozen=True):
    """It has begun, or its end has moved."""

    pilot: PilotId
    node: str
    ends_at: Timestamp | None  # its time limit; None: it has none


class Ends(Struct, frozen=True):
    """Its processes are being ended."""

    pilot: PilotId


class Ended(Struct, frozen=True):
    pilot: PilotId
    how: str  # Slurm's words


class Silent(Struct, frozen=True):
    """Slurm does not answer. It is asked again, and what runs goes on."""

    why: str


class Answers(Struct, frozen=True):
    """Again, or for the first time: all pilots that there are were told of before this."""


PilotNews: TypeAlias = Submitted | Refused | Waits | Runs | Ends | Ended | Silent | Answers
