"""The nouns every layer shares: GPUs as sampled, jobs as asked for, runs as they stand.

Values only. Nothing here reads a clock, a device or a file. Every GPU, run and exit names the host
it belongs to, so that several hosts are more of the same.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Literal, NamedTuple, NewType, TypeAlias

from msgspec import Struct

from smartsched.core.hours import NO_CAP, Cap
from smartsched.core.shapes import shape_of

HostName = NewType("HostName", str)
GpuUuid = NewType("GpuUuid", str)
JobId = NewType("JobId", int)
Timestamp: TypeAlias = float
"""Seconds on the dispatcher's own timeline: starts at the wall clock, never steps back."""


UNREAD = "unreadable-"
"""With an index behind it: stands in for the UUID of a GPU of which not even that can be read."""


class GpuKey(NamedTuple):
    """Which GPU: indices move when a card falls off the bus, UUIDs do not."""

    host: HostName
    uuid: GpuUuid


class RunKey(NamedTuple):
    """One attempt at one job. Launching the same key twice must be impossible."""

    job: JobId
    attempt: int


class GpuProcess(Struct, frozen=True):
    """A process with a context on a GPU, and what the host says about it."""

    pid: int
    kind: Literal["compute", "graphics"]
    memory_bytes: int | None  # None: the driver does not say
    user: str | None  # None: gone already, or not visible from here
    command: str | None  # None: likewise
    run_tag: str | None  # None: carries no tag of a smartsched run that we may read
    session: int | None  # None: gone already, or not visible from here
    ancestors: tuple[int, ...] = ()
    utilization_percent: int | None = None  # None: the driver does not say


class ProcessId(NamedTuple):
    """A process, told apart from any other there ever was: pids recycle, the three together do
    not."""

    pid: int
    start_ticks: int  # when it started, in clock ticks since the boot (proc(5): stat, field 22)
    boot: str  # the kernel's random id of this boot; behind a "/", which machine it is

    @property
    def machine(self) -> str:
        """ "": nobody knows."""
        return self.boot.partition("/")[2]


class Position(NamedTuple):
    """How far a run's inputs have been read."""

    number: int  # which of them, from 0
    offset: int  # bytes of it
    line: int  # lines of it


class Shell(NamedTuple):
    """The first process of a run. It leads the run's group and session."""

    pid: int
    tag: str  # what the run's processes carry in their environment
    is_known: bool = True  # False: it may be gone, and its number and session somebody else's


class UtilizationPoint(NamedTuple):
    """One entry of the driver's own history of the device's utilisation."""

    age_seconds: float
    percent: int


ComputeMode: TypeAlias = Literal["default", "exclusive", "prohibited"]


class GpuSample(Struct, frozen=True):
    """What the driver said about one GPU (a card or a MIG instance) at one moment."""

    key: GpuKey
    index: int
    slot: int | None  # None: a whole card; else which MIG instance of card `index`
    name: str
    memory_total_bytes: int
    memory_used_bytes: int  # without what the driver reserves, where it can tell (NVML's v2)
    memory_free_bytes: int
    utilization_percent: int | None  # None: this GPU does not report it
    utilization_history: tuple[UtilizationPoint, ...] | None  # new since the last; None: no history
    compute_mode: ComputeMode
    ailment: str | None  # None: healthy; else why nothing should be started on it
    processes: tuple[GpuProcess, ...]


class GpuUnreadable(Struct, frozen=True):
    """The driver failed for this GPU. Unknown is not free: it takes no new work."""

    key: GpuKey
    index: int
    slot: int | None
    name: str
    why: str


GpuReading: TypeAlias = GpuSample | GpuUnreadable


class Snapshot(Struct, frozen=True):
    """GPUs of a host at one moment: all of them, or only those that were asked for."""

    host: HostName
    taken_at: Timestamp  # when reading began: nothing in it is older
    gpus: tuple[GpuReading, ...]
    whole: bool
    arrived_at: Timestamp | None = None  # when reading had ended; None: just now
    withheld: frozenset[GpuUuid] = frozenset()  # not for us: only the numbering needs them

    def pids(self) -> set[int]:
        """Of every process on them."""
        samples = (gpu for gpu in self.gpus if isinstance(gpu, GpuSample))
        return {process.pid for sample in samples for process in sample.processes}


class SamplerTrouble(Struct, frozen=True):
    """Nobody can tell us about this host's GPUs now. Running jobs are not concerned."""

    host: HostName
    why: str


class HostHere(Struct, frozen=True):
    """An agent answers for this host: there is somebody to tell what to start."""

    host: HostName
    node: str  # what the machine calls itself
    cores: int
    leaves: bool = False  # soon, and for good: nothing more is to be started there
    is_unfit: bool = False  # no command can run there
    most_gpus: Cap = NO_CAP  # of a run there, as its administrator allows
    leave_free: Cap = NO_CAP  # GPUs there that stay free, as he wants it


class HostAway(Struct, frozen=True):
    """Nobody answers for this host. What runs there may go on."""

    host: HostName
    why: str
    for_good: bool = False  # it will not come back, and nothing runs there


Seen: TypeAlias = Snapshot | SamplerTrouble
"""What a sampler says."""


class PilotsStand(Struct, frozen=True):
    """How those stand that are to bring hosts: jobs in the queue of a batch system."""

    words: str  # "2 pilots run, 1 waits (Resources)"
    may_bring: bool  # more than what is here
    hopeless: str  # why no host is to be had by them or otherwise; "": one may be


class Unwanted(Struct, frozen=True):
    """Jobs of which attempts live somewhere that were taken for lost, all of them."""

    jobs: frozenset[JobId]


Observation: TypeAlias = Seen | HostHere | HostAway | PilotsStand | Unwanted


class ClaimGranted(Struct, frozen=True):
    """These GPUs are ours, as far as other dispatchers are concerned."""

    at: Timestamp
    gpus: tuple[GpuKey, ...]
    others: "Claimed | None" = None  # of all GPUs; None: nobody has looked


class ClaimRefused(Struct, frozen=True):
    """None of these GPUs became ours by this: some are somebody else's."""

    at: Timestamp
    gpus: tuple[GpuKey, ...]
    why: "Claimed"  # of those that are not to be had
    others: "Claimed | None" = None  # of all GPUs; None: nobody could look


ClaimAnswer: TypeAlias = ClaimGranted | ClaimRefused
Claimed: TypeAlias = tuple[tuple[GpuKey, str], ...]
"""GPUs that other dispatchers have claimed, and whose they are: "claimed by alice"."""


class Wishes(Struct, frozen=True):
    """What one command asks for itself; None: what is asked for all of them."""

    gpus: int | None = None  # 0: it needs none
    memory_bytes: int | None = None  # that it will use on each of its GPUs, at most
    utilization_percent: float | None = None  # that it will cause on each of its GPUs
    priority: int = 0  # larger ones go first
    timeout_seconds: float | None = None
    name: str = ""  # what to call it, for people


class Asked(NamedTuple):
    """By a command for itself; None: what is asked for all of them. It tells whether any GPU will
    ever do."""

    gpus: int | None
    memory_bytes: int | None


class JobSpec(Struct, frozen=True, dict=True):
    """What the user asked for. Never changes after it was accepted."""

    command: str  # shell text; bytes that are not UTF-8 travel as surrogate escapes
    source: str  # where it came from, for messages: "commands.txt:12"
    directory: str = ""  # where it runs, absolute; "": where the dispatcher is
    wishes: Wishes = Wishes()

    @property
    def asked(self) -> Asked:
        return Asked(self.wishes.gpus, self.wishes.memory_bytes)

    @cached_property
    def shape(self) -> str:
        """Of the command. Kept once it is worked out: it is asked for with every look at a queue
        that may be long, but never for most of a list that was done long ago."""
        return shape_of(self.command)


class BadLine(Struct, frozen=True):
    """A line of the input that cannot be a command. `may_be_mended`: the user is told before
    anything runs, where the line is there by then."""

    source: str
    why: str
    may_be_mended: bool = False


class PlacedGpu(Struct, frozen=True):
    """A GPU given to a run, and the name under which the run will see it."""

    key: GpuKey
    label: str  # for people: "3", or "0:2" for a MIG instance; of several hosts, "gpu1/3"
    visible: str  # for CUDA_VISIBLE_DEVICES
    unexplained_bytes: int = 0  # used by no visible process, before any run of ours was there
    reserved_bytes: int | None = None  # promised to the run; None: all of it
    percent: float = 100.0  # of its time that the run is expected to need
    strangers_bytes: int = 0  # that other people used when it was given


class Placement(Struct, frozen=True):
    """Which GPUs a run holds, all on one host. `elsewhere`: the host of a run that needs none; "":
    the only one that there is."""

    gpus: tuple[PlacedGpu, ...]
    elsewhere: HostName = HostName("")

    @property
    def host(self) -> HostName:
        """ "": the only one that there is."""
        return self.gpus[0].key.host if self.gpus else self.elsewhere

    @property
    def labels(self) -> str:
        """The GPUs for people, "0,3"; "": none."""
        return ",".join(gpu.label for gpu in self.gpus)

    @property
    def words(self) -> str:
        """ "on GPU 0,3" """
        if self.gpus:
            return f"on GPU {self.labels}"
        return f"without a GPU on {self.elsewhere}" if self.elsewhere else "without a GPU"


class Wait:
    """Why nothing is placed now, in words a user can act on."""

    __match_args__ = ("why", "lacks_gpus")
    __slots__ = ("_why", "lacks_gpus")

    def __init__(self, why: str | Callable[[], str], lacks_gpus: bool = False) -> None:
        """`why`: or what finds the words, as things stand when somebody wants to know: while all
        GPUs are at work nobody does, and that is when it is asked most often. `lacks_gpus`: why
        each of those that are not to be had is not is worth a word, too."""
        self._why = why
        self.lacks_gpus = lacks_gpus

    @property
    def why(self) -> str:
        if not isinstance(self._why, str):
            self._why = self._why()
        return self._why

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Wait):
            return NotImplemented
        return (self.why, self.lacks_gpus) == (other.why, other.lacks_gpus)

    def __hash__(self) -> int:
        return hash((self.why, self.lacks_gpus))

    def __repr__(self) -> str:
        return f"Wait({self.why!r}, lacks_gpus={self.lacks_gpus})"


class Exited(Struct, frozen=True):
    """The command ended by itself; 0 is success."""

    code: int


class Killed(Struct, frozen=True):
    """The command was ended by a signal."""

    signal: int


class NotStarted(Struct, frozen=True):
    """The system would not start the command at all. `for_good`: no GPU can ever do for it."""

    why: str
    for_good: bool = False


class Lost(Struct, frozen=True):
    """It vanished while nobody watched, and left no record of how it ended. `why`: what is known of
    that; "": nothing."""

    why: str = ""


Ending: TypeAlias = Exited | Killed | NotStarted | Lost
StopReason: TypeAlias = Literal[
    "asked", "timeout", "survivor", "contention", "cancelled", "leaving"
]
"""Why a run is stopped: the user wants no more; it took too long; it outlived a dispatcher, and the
user wants such runs started anew; other people came to its GPU; the user does not want its job; its
host is about to be gone."""
Outcome: TypeAlias = Literal["ok", "failed", "stopped", "cancelled"]
"""What came of a job. Stopped ones have not had their chance: they run when the run is resumed."""
RequeueReason: TypeAlias = Literal[
    "failed", "lost", "survivor", "contention", "strangers_grew", "packed_too_tightly", "leaving"
]
"""Why a job is queued again. `strangers_grew`, `packed_too_tightly`: it ran out of memory beside
strangers that took more of it, or beside other runs of ours."""


class Starting(Struct, frozen=True):
    """Placed and recorded; the launch is being tried."""

    since: Timestamp
    placement: Placement


class Running(Struct, frozen=True):
    """Its shell lives, and nobody asked it to end."""

    since: Timestamp
    placement: Placement
    process: ProcessId  # leads its own session and process group
    log: str | None  # None: its output goes somewhere else than to a file


class Stopping(Struct, frozen=True):
    """Its shell lives and was asked to end."""

    since: Timestamp
    placement: Placement
    process: ProcessId
    log: str | None
    started_at: Timestamp
    why: StopReason
    killed_at: Timestamp | None  # None: so far only asked


class Lingering(Struct, frozen=True):
    """Its shell has ended, processes that it left behind have not; they are being stopped."""

    since: Timestamp
    placement: Placement
    asked: bool
    killed_at: Timestamp | None  # None: so far asked at most


RunStatus: TypeAlias = Starting | Running | Stopping | Lingering


class Job(Struct, frozen=True, dict=True):
    """An accepted command."""

    id: JobId
    spec: JobSpec
    attempts: int = 0  # runs of it so far
    failures: int = 0  # of them that count against --retries
    losses: int = 0  # of them that vanished while nobody watched
    rank: int = 0  # its place in the queue: smaller ones go first
    not_before: Timestamp = float("-inf")
    failed_on: tuple[GpuKey, ...] = ()  # tried elsewhere first
    requeued_at: Timestamp = float("-inf")
    ooms: int = 0  # runs of it that ran out of memory for no fault of other people
    needs_bytes: int | None = None  # on each GPU, by how it ran out; None: it has not
    is_added: bool = False  # by a request: it was never on a list
    alone: bool = False  # with all of its GPUs for itself it may do what it could not beside others

    @cached_property
    def kind(self) -> str:
        """What is the same for jobs that need the same. A text, which remembers its hash, and kept
        as the shape is."""
        return repr((self.spec.shape, self.spec.wishes, self.needs_bytes, self.alone))

    @property
    def order(self) -> tuple[int, int]:
        """In which jobs are started: smaller ones go first."""
        return -self.spec.wishes.priority, self.rank

    @property
    def words(self) -> str:
        """ "job 3"; with the name that the user gave it, "job 3 (big)" """
        name = self.spec.wishes.name
        return f"job {self.id} ({name})" if name else f"job {self.id}"


class GivenUp(Struct, frozen=True):
    """A job that failed for good or was cancelled, and may be tried again if the user says so."""

    job: Job
    outcome: Literal["failed", "cancelled"]
    earlier: bool = False  # before the present dispatcher


class Run(Struct, frozen=True):
    """A run that still has processes, or is about to."""

    key: RunKey
    job: Job
    status: RunStatus


class EndedRun(Struct, frozen=True):
    """A run that has its ending, while it is not settled what becomes of its job."""

    key: RunKey
    job: Job
    placement: Placement
    started_at: Timestamp
    ended_at: Timestamp
    ending: Ending
    why_stopped: StopReason | None  # None: nobody asked it to end
    log: str | None
    out_of_memory: str = ""  # what its log says of it; "": nothing

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended_at - self.started_at)

    @property
    def was_refused(self) -> bool:
        """No GPU could ever do: it never was to be started."""
        return isinstance(self.ending, NotStarted) and self.ending.for_good

    @property
    def succeeded(self) -> bool:
        """What ends well after its time was up may have saved its state; it has not done its
        work."""
        return self.ending == Exited(0) and self.why_stopped in (None, "asked")
