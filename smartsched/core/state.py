"""What we believe: values only, changed by `apply` (apply.py).

Nothing here grows with the number of finished jobs. What was seen of the GPUs is kept here too, but
taken in elsewhere (sight.py).
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Collection
from enum import IntEnum

from msgspec import Struct, field

from smartsched.core.footprint import Footprint, Meter
from smartsched.core.freeness import Watch
from smartsched.core.hours import NO_CAP, Cap
from smartsched.core.model import (
    Asked,
    EndedRun,
    Ending,
    GivenUp,
    GpuKey,
    GpuReading,
    GpuUuid,
    HostName,
    Job,
    JobId,
    Lingering,
    PilotsStand,
    Position,
    Run,
    RunKey,
    SamplerTrouble,
    Timestamp,
)
from smartsched.core.policy import Policy
from smartsched.core.strangers import Hold
from smartsched.core.totals import Totals

FIRST_POSTPONE_SECONDS = 1.0
LONGEST_POSTPONE_SECONDS = 30.0
# A failure within this time has computed nothing; so many in a row on one GPU make it suspect.
QUICK_SECONDS = 10.0
FAILURES_IN_A_ROW = 3
# Beyond so many, the first of those that were given up are forgotten.
MOST_GIVEN_UP = 10_000
# What no host is called.
EVERYWHERE = HostName("")


class Closing(IntEnum):
    """How far the end has been asked for; it only ever rises."""

    NO = 0
    DRAIN = 1
    STOP = 2
    KILL = 3


class Failure(Struct, frozen=True):
    """A run that failed quickly."""

    job: Job  # as it was then
    key: RunKey
    final: bool  # whether its job was given up


class Postponed(Struct):
    """Where a start failed for no fault of the job's, none is tried for a while."""

    until: Timestamp
    why: str
    next_seconds: float  # for which it would be postponed if the next one failed, too


class Refusal(Struct, frozen=True):
    """A GPU that another dispatcher has claimed."""

    at: Timestamp
    why: str


class Host(Struct):
    """One of several."""

    node: str  # what the machine calls itself
    cores: int
    leaves: bool = False  # soon, and for good
    is_unfit: bool = False  # no command can run there
    here: bool = True  # somebody answers for it
    since: Timestamp = float("-inf")  # he does, or did
    most_gpus: Cap = NO_CAP  # of a run there, as its administrator allows
    leave_free: Cap = NO_CAP  # GPUs there that stay free, as he wants it

    @property
    def takes_work(self) -> bool:
        return self.here and not self.leaves and not self.is_unfit


class Record(Struct):
    """How runs end on a GPU; the evidence by which a broken one is known. Kept by its UUID: with
    pilots it may come back on a host of another name."""

    gpu: GpuKey  # as it was called when the last of them ended
    since: Timestamp  # when the first of the failures in a row was started
    quick_failures: tuple[Failure, ...] = ()  # in a row, the last few
    proved_at: Timestamp = float("-inf")  # when a run was last started that did well there

    @property
    def is_suspect(self) -> bool:
        """Whether so many jobs in a row failed at once there that it may be the GPU."""
        return len(self.quick_failures) >= FAILURES_IN_A_ROW


class State(Struct):
    policy: Policy
    queue: deque[Job] = field(default_factory=deque)
    asked: Counter[Asked] = field(
        default_factory=Counter
    )  # by how many jobs of the queue; no zeros
    runs: dict[RunKey, Run] = field(default_factory=dict)
    ended: dict[RunKey, EndedRun] = field(default_factory=dict)  # not settled yet
    holds: dict[GpuKey, dict[RunKey, Hold]] = field(default_factory=dict)  # no empty ones
    totals: Totals = field(default_factory=Totals)
    input_open: bool = True
    read_to: Position | None = None  # None: nothing was read from the present inputs
    whole_inputs: dict[int, int] = field(default_factory=dict)  # their sizes in bytes
    # Of a run that was given another list: what waits for that list to name it, what goes on but is
    # not tried again unless the list names it, and what the list does not name.
    set_aside: dict[JobId, Job] = field(default_factory=dict)
    unnamed: set[JobId] = field(default_factory=set)
    dropped: dict[JobId, Job] = field(default_factory=dict)
    # What may be tried again if the user says so: the last ones, in the order of their ends.
    given_up: dict[JobId, GivenUp] = field(default_factory=dict)
    cancelled: set[JobId] = field(default_factory=set)  # whose runs have not ended yet
    paused: bool = False
    all_cancelled: bool = False  # and nothing is to come
    interrupted: list[Job] = field(default_factory=list)  # stopped; they run when resumed
    next_rank: int = 0
    place: str = ""  # of the last dispatcher
    closing: Closing = Closing.NO
    halted: bool = False
    before: Totals = field(default_factory=Totals)  # of the dispatchers before this one
    waiting_since: Timestamp | None = None  # None: no command accepted so far
    ever_launched: bool = False
    wait_timed_out: bool = False
    last_ending: Ending | None = None  # None: no job has ended so far
    postponed: dict[HostName, Postponed] = field(default_factory=dict)  # or EVERYWHERE
    held: str = ""  # why nothing is started until that has changed
    records: dict[GpuUuid, Record] = field(default_factory=dict)
    withheld: set[GpuUuid] = field(default_factory=set)
    gpus: dict[GpuKey, Watch] = field(default_factory=dict)
    # Selected or not: where the cards of a host were listed last, and which are out of reach.
    cards: dict[HostName, dict[GpuKey, int]] = field(default_factory=dict)
    out_of_reach: dict[HostName, frozenset[int]] = field(default_factory=dict)
    troubles: dict[HostName, SamplerTrouble] = field(default_factory=dict)
    hosts: dict[HostName, Host] = field(default_factory=dict)  # that were here; a box has none
    pilots: PilotsStand | None = None  # None: there are none
    # Attempts at these live somewhere, and nobody wants them.
    unwanted: frozenset[JobId] = frozenset()
    meters: dict[RunKey, Meter] = field(default_factory=dict)
    # By command shape: what this run has learned, and that with what earlier ones had.
    learned: dict[str, Footprint] = field(default_factory=dict)
    footprints: dict[str, Footprint] = field(default_factory=dict)
    # Of the GPUs, what dispatchers tell each other: ours, and whose they are as far as we know.
    claimed: dict[GpuKey, Timestamp] = field(default_factory=dict)
    refused: dict[GpuKey, Refusal] = field(default_factory=dict)
    local_offset: float = 0.0  # seconds from our time to the time on the wall

    @property
    def stays_open(self) -> bool:
        """Whether more jobs may come when all are done."""
        return self.policy.keeps_open and not self.all_cancelled

    def holds_on(self, gpu: GpuKey) -> Collection[Hold]:
        """Of our runs there, oldest first."""
        return self.holds[gpu].values() if gpu in self.holds else ()

    def next_job(self) -> JobId:
        return JobId(self.totals.accepted + 1)

    def in_order(self) -> list[tuple[GpuKey, Watch]]:
        """The GPUs as people list them."""
        return sorted(self.gpus.items(), key=lambda item: position(item[1].latest))


def is_out_of_reach(state: State, host: HostName) -> bool:
    """Whether nobody there can be told anything, nor tell what has happened."""
    known = state.hosts.get(host)
    return state.policy.spans_hosts and (known is None or not known.here)


def takes_work(state: State, host: HostName, now: Timestamp) -> bool:
    """Whether anything may be started there, whatever its GPUs look like."""
    if not state.policy.spans_hosts:
        return True
    known = state.hosts.get(host)
    return known is not None and known.takes_work and not why_postponed(state, host, now)


def position(reading: GpuReading) -> tuple[str, int, int]:
    slot = -1 if reading.slot is None else reading.slot
    return (reading.key.host, reading.index, slot)


def enqueue(state: State, job: Job) -> None:
    """In its place."""
    state.asked[job.spec.asked] += 1
    if not state.queue or state.queue[-1].order <= job.order:
        state.queue.append(job)
    else:
        insort(state.queue, job, key=lambda queued: queued.order)


def unsettled(state: State) -> set[JobId]:
    """Jobs of which a run goes on, or has ended while nobody has decided what comes of it."""
    going = {key.job for key, run in state.runs.items() if not isinstance(run.status, Lingering)}
    return going | {key.job for key in state.ended}


def over(state: State, attempts: Collection[RunKey], *, rebooted: bool) -> set[RunKey]:
    """Of these, the attempts that had been placed and have ended. Of jobs that are not known here
    any more, all have; and so has every attempt that was before the machine was `rebooted`, though
    the loss of power took with it what the journal had on it."""
    if rebooted:
        return set(attempts) - state.runs.keys()
    jobs = [*state.queue, *state.interrupted, *state.set_aside.values(), *state.dropped.values()]
    jobs += [each.job for each in state.given_up.values()]
    jobs += [run.job for run in state.runs.values()]
    jobs += [ended.job for ended in state.ended.values()]
    placed = {job.id: job.attempts for job in jobs}
    return {
        run
        for run in attempts
        if run not in state.runs
        and run.job <= state.totals.accepted
        and run.attempt <= placed.get(run.job, run.attempt)
    }


def give_up(state: State, given_up: GivenUp) -> None:
    state.given_up.pop(given_up.job.id, None)
    state.given_up[given_up.job.id] = given_up
    if len(state.given_up) > MOST_GIVEN_UP:
        del state.given_up[next(iter(state.given_up))]


def dequeue(state: State, job: Job) -> None:
    state.queue.remove(job)
    state.asked[job.spec.asked] -= 1
    if not state.asked[job.spec.asked]:
        del state.asked[job.spec.asked]


def postpone(state: State, host: HostName, at: Timestamp, why: str) -> None:
    """Nothing is started there for a while; several that fail in one tick count as one failure."""
    known = state.postponed.get(host)
    if known is not None and at < known.until:
        known.why = why
        return
    for name, each in list(state.postponed.items()):  # a host may be gone for good
        if at >= each.until + LONGEST_POSTPONE_SECONDS:
            del state.postponed[name]
    seconds = FIRST_POSTPONE_SECONDS if known is None else known.next_seconds
    longer = min(2 * seconds, LONGEST_POSTPONE_SECONDS)
    state.postponed[host] = Postponed(at + seconds, why, longer)


def note_start(state: State, host: HostName) -> None:
    """It can be done there."""
    for name in (host, EVERYWHERE):
        if name in state.postponed:
            state.postponed[name].next_seconds = FIRST_POSTPONE_SECONDS


def why_postponed(state: State, host: HostName, now: Timestamp) -> str:
    """Why nothing is started there for now; "" if that is no reason."""
    known = state.postponed.get(host)
    return known.why or "it failed" if known is not None and now < known.until else ""
