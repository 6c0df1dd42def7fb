"""What has happened. Events are the only way in which State's account of jobs changes."""

from typing import TypeAlias

from msgspec import Struct

from smartsched.core.model import (
    Ending,
    GpuKey,
    HostName,
    JobId,
    JobSpec,
    Outcome,
    Placement,
    Position,
    ProcessId,
    RequeueReason,
    RunKey,
    StopReason,
    Timestamp,
)


class RunBegan(Struct, frozen=True):
    """The first record of every run."""

    at: Timestamp
    name: str
    host: HostName
    directory: str  # where smartsched was started
    inputs: tuple[str, ...]  # names of what commands are read from, for messages
    command: str | None  # None: commands come from `inputs`; else the only one
    options: str  # a JSON object of what the user asked for, other than by default
    id: str = ""  # tells it from all other runs; "": its name has to do
    place: str = ""  # the machine, its boot and its PID namespace
    # so long may go on what it starts on hosts that are out of reach; None: for ever
    lost_after_seconds: float | None = 0.0


class RunResumed(Struct, frozen=True):
    """Another dispatcher goes on where the last one ended or died. `failed_too`: jobs that had
    failed for good are queued again as well."""

    at: Timestamp
    host: HostName
    options: str
    failed_too: bool = False
    place: str = ""
    lost_after_seconds: float | None = 0.0  # as in RunBegan


class ListReplaced(Struct, frozen=True):
    """From here on commands come from another list; what is not on it is not started any more."""

    at: Timestamp
    inputs: tuple[str, ...]


class FailuresDropped(Struct, frozen=True):
    """Jobs that had failed, and that the new list does not have: no longer of this run."""

    at: Timestamp
    jobs: tuple[JobId, ...]


class InputRead(Struct, frozen=True):
    """All of an input lies in the run's folder: its last line is whole."""

    at: Timestamp
    number: int  # which of the inputs, from 0
    size_bytes: int


class JobAccepted(Struct, frozen=True):
    at: Timestamp
    job: JobId
    spec: JobSpec
    read_to: Position | None = None  # None: it was not read from an input


class JobRecalled(Struct, frozen=True):
    """A job that the run knows already is queued: the new list has it, or it had failed."""

    at: Timestamp
    job: JobId
    spec: JobSpec
    attempts: int
    read_to: Position | None


class LineRejected(Struct, frozen=True):
    """A line that cannot be a command; it counts as a failure, the others still run."""

    at: Timestamp
    source: str
    why: str
    read_to: Position | None = None


class InputEnded(Struct, frozen=True):
    at: Timestamp


class JobsAdded(Struct, frozen=True):
    """Commands that somebody gave to the run while it lived; their numbers follow each other.
    `request`: which request it was, here and below, so that it is done once."""

    at: Timestamp
    request: str
    first: JobId
    specs: tuple[JobSpec, ...]


class JobsCancelled(Struct, frozen=True):
    """These are not run, or not to their end. `rest`: nor is what is still to be read."""

    at: Timestamp
    request: str
    jobs: tuple[JobId, ...]
    rest: bool = False


class JobsRetried(Struct, frozen=True):
    """These had failed for good or were cancelled; they are queued again."""

    at: Timestamp
    request: str
    jobs: tuple[JobId, ...]


class RunPaused(Struct, frozen=True):
    """Nothing is started until it is continued; what runs goes on."""

    at: Timestamp
    request: str


class RunContinued(Struct, frozen=True):
    at: Timestamp
    request: str


class OptionsSet(Struct, frozen=True):
    """From here on the run goes by these: a JSON object, as in RunBegan."""

    at: Timestamp
    request: str
    options: str


class RequestRefused(Struct, frozen=True):
    at: Timestamp
    request: str
    why: str


class DrainRequested(Struct, frozen=True):
    """Start nothing more; what runs may finish."""

    at: Timestamp
    why: str


class StopRequested(Struct, frozen=True):
    """Start nothing more and stop what runs. Said again: do not wait for the grace period."""

    at: Timestamp
    why: str


class WaitTimedOut(Struct, frozen=True):
    """Not one GPU came free within the time the user gave."""

    at: Timestamp


class RunPlaced(Struct, frozen=True):
    at: Timestamp
    run: RunKey
    placement: Placement


class RunLaunched(Struct, frozen=True):
    at: Timestamp
    run: RunKey
    process: ProcessId
    log: str | None  # None: its output goes somewhere else than to a file


class RunAdopted(Struct, frozen=True):
    """It outlived its dispatcher, and goes on. `since`: when it began, by the present clock."""

    at: Timestamp
    run: RunKey
    since: Timestamp


class RunPostponed(Struct, frozen=True):
    """The system could not start it for want of something that may come back; queued again."""

    at: Timestamp
    run: RunKey
    why: str


class RunRevoked(Struct, frozen=True):
    """It was placed, but its dispatcher died before anything began; now it never will."""

    at: Timestamp
    run: RunKey


class RunStopping(Struct, frozen=True):
    """Asked to end; of one that lingers, what it left behind. `who`: to whom it gives way."""

    at: Timestamp
    run: RunKey
    why: StopReason = "asked"
    who: str = ""


class RunKilled(Struct, frozen=True):
    at: Timestamp
    run: RunKey


class RunExited(Struct, frozen=True):
    """The run's shell has ended. `leftovers`: processes of it that still live. `out_of_memory`:
    what its log says of a GPU's memory that did not suffice."""

    at: Timestamp
    run: RunKey
    ending: Ending
    leftovers: int
    out_of_memory: str = ""


class RunMeasured(Struct, frozen=True):
    """What a run that ended used; its siblings are placed by it. `shape`: its command with the
    values taken out."""

    at: Timestamp
    run: RunKey
    shape: str
    peak_bytes: int  # on the GPU where it was most
    utilization_percent: float | None  # while it computed; None: nobody could tell
    seconds: float


class JobFinished(Struct, frozen=True):
    """What came of a job, by its last run."""

    at: Timestamp
    run: RunKey
    outcome: Outcome


class JobRequeued(Struct, frozen=True):
    """The job will be tried again, not before some time. `needs_bytes`, `alone`: what it is to be
    given then, since it ran out of memory."""

    at: Timestamp
    run: RunKey
    why: RequeueReason
    not_before: Timestamp
    needs_bytes: int | None = None
    alone: bool = False


class GpuWithheld(Struct, frozen=True):
    """Jobs that ended well elsewhere fail at once on this GPU: it takes no more. The failures in a
    row that showed it are not held against their jobs."""

    at: Timestamp
    gpu: GpuKey
    runs: tuple[RunKey, ...]


class Halted(Struct, frozen=True):
    """Too much has failed, or there will be nothing to run on. `stop`: what runs is stopped too."""

    at: Timestamp
    why: str
    stop: bool


class RunCleared(Struct, frozen=True):
    """The last process that a run had left behind is gone."""

    at: Timestamp
    run: RunKey


class GpuReleased(Struct, frozen=True):
    """The memory of the run that held it has come back."""

    at: Timestamp
    gpu: GpuKey
    run: RunKey


class RunClosed(Struct, frozen=True):
    """The dispatcher ends. `complete`: there is nothing left to be done. The others are numbers of
    jobs; of those that are left, as far as they were read."""

    at: Timestamp
    complete: bool
    failed: int
    ok: int = 0
    cancelled: int = 0
    left: int = 0


Event: TypeAlias = (
    RunBegan
    | RunResumed
    | ListReplaced
    | FailuresDropped
    | InputRead
    | JobAccepted
    | JobRecalled
    | LineRejected
    | InputEnded
    | JobsAdded
    | JobsCancelled
    | JobsRetried
    | RunPaused
    | RunContinued
    | OptionsSet
    | RequestRefused
    | DrainRequested
    | StopRequested
    | WaitTimedOut
    | RunPlaced
    | RunLaunched
    | RunAdopted
    | RunPostponed
    | RunRevoked
    | RunStopping
    | RunKilled
    | RunExited
    | RunMeasured
    | JobFinished
    | JobRequeued
    | GpuWithheld
    | Halted
    | RunCleared
    | GpuReleased
    | RunClosed
)


def is_end_of_all(event: Event) -> bool:
    """Whether nothing of a run lives any more."""
    return isinstance(event, RunCleared) or (isinstance(event, RunExited) and not event.leftovers)
