"""What is heard of pilots from Slurm."""

from dataclasses import dataclass
from typing import TypeAlias

from smartsched.core.model import Timestamp
from smartsched.core.slurm import PilotId


@dataclass(frozen=True, slots=True)
class Submitted:
    """Slurm has it; or it was found there, submitted by an earlier dispatcher of this run."""

    pilot: PilotId


@dataclass(frozen=True, slots=True)
class Refused:
    """One submission: there is no pilot of it."""

    why: str


@dataclass(frozen=True, slots=True)
class Waits:
    pilot: PilotId
    reason: str  # Slurm's word; "": it gives none


@dataclass(frozen=True, slots=True)
class Runs:
    """It has begun, or its end has moved."""

    pilot: PilotId
    node: str
    ends_at: Timestamp | None  # its time limit; None: it has none


@dataclass(frozen=True, slots=True)
class Ends:
    """Its processes are being ended."""

    pilot: PilotId


@dataclass(frozen=True, slots=True)
class Ended:
    pilot: PilotId
    how: str  # Slurm's words


@dataclass(frozen=True, slots=True)
class Silent:
    """Slurm does not answer. It is asked again, and what runs goes on."""

    why: str


@dataclass(frozen=True, slots=True)
class Answers:
    """Again, or for the first time: all pilots that there are were told of before this."""


PilotNews: TypeAlias = Submitted | Refused | Waits | Runs | Ends | Ended | Silent | Answers
