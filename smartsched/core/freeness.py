"""Which GPUs count as free: thresholds on other people's use, over a window.

Free means steadily free: below every threshold in every sample of the window, and unknown is not
free. What is kept per GPU does not grow with the length of the window: the last time that each test
failed is all that a verdict needs.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from smartsched.core import words
from smartsched.core.model import (
    GpuProcess,
    GpuReading,
    GpuSample,
    GpuUnreadable,
    Timestamp,
)
from smartsched.core.newcomers import Newcomers
from smartsched.core.strangers import (
    SLACK_BYTES,
    Hold,
    Ignored,
    StrangersUse,
    program,
    strangers_use,
    unexplained_before,
    unexplained_bytes,
)

# The driver's utilisation covers the last 1/6 to 1 s (nvml.h, nvmlUtilization_t): for so long after
# a run of ours it may still speak of that run.
UTILIZATION_PERIOD_SECONDS = 1.0
# The driver lists processes and counts memory in two calls; a process that starts or ends between
# them leaves memory unexplained for one sample. What stays so for longer is somebody's.
UNEXPLAINED_FOR_SECONDS = 1.0
# A history that ended longer ago does not reach up to now.
FRESH_HISTORY_SECONDS = 2.0
_UTILIZATION_POINTS_KEPT = 600

Test: TypeAlias = Literal[
    "health", "compute mode", "memory", "free memory", "utilisation", "processes"
]


class Share(Struct, frozen=True):
    """A limit as a part of the GPU's memory."""

    percent: float


class Size(Struct, frozen=True):
    """A limit in bytes."""

    amount_bytes: int


class Thresholds(Struct, frozen=True):
    """Up to which use by other people a GPU counts as free. At the limit is still free."""

    max_memory: Share | Size = Share(10.0)
    max_utilization_percent: float = 10.0
    min_free_bytes: int | None = None  # None: no such limit
    max_processes: int | None = None  # None: no such limit
    free_for_seconds: float = 10.0
    ignored: Ignored = Ignored()


class Breach(Struct, frozen=True):
    """One test that a GPU failed at one moment."""

    at: Timestamp
    test: Test
    value: str
    limit: str  # with the sign between: "> 20%"
    who: str  # "": nobody in particular

    def words(self, now: Timestamp) -> str:
        """ "memory 43% > 20% (alice: python train.py, 10.2 GiB)" """
        ago = f", {words.duration(now - self.at)} ago" if now - self.at >= 1 else ""
        who = f" ({self.who})" if self.who else ""
        return " ".join(part for part in (self.test, self.value, self.limit) if part) + ago + who


def breach_words(breaches: Sequence[Breach], now: Timestamp) -> tuple[str, ...]:
    """In words, those that are to blame for several named once."""
    named: set[str] = set()
    said = []
    for breach in breaches:
        said.append((replace(breach, who="") if breach.who in named else breach).words(now))
        named.add(breach.who)
    return tuple(said)


class Free(Struct, frozen=True):
    strangers_memory_bytes: int


class Busy(Struct, frozen=True):
    breaches: tuple[Breach, ...]


class Unknown(Struct, frozen=True):
    why: str


Verdict: TypeAlias = Free | Busy | Unknown


class Watch(Struct):
    """What a GPU's samples so far say about it."""

    latest: GpuReading
    taken_at: Timestamp
    arrived_at: Timestamp
    since: Timestamp  # watched without a gap since then
    use: StrangersUse | None = None  # None: never readable so far
    breaches: dict[Test, Breach] = field(default_factory=dict)
    utilization: deque[tuple[Timestamp, int]] = field(
        default_factory=lambda: deque(maxlen=_UTILIZATION_POINTS_KEPT)
    )  # oldest first
    ours_until: Timestamp = float("-inf")
    unexplained_since: Timestamp | None = None  # None: all memory is accounted for
    # While runs of ours are there: whether memory is used that none of their processes, which the
    # driver does not list, nor anybody else's accounts for; or that is beside what they use.
    is_unattributed: bool = False
    is_partly_hidden: bool = False
    strangers: dict[int, Timestamp] = field(default_factory=dict)  # by pid: when first seen
    strangers_bytes: int = 0  # the last level that they had reached
    grown_at: Timestamp = float("-inf")  # when they came or grew last
    newcomers: Newcomers = field(default_factory=Newcomers)
    given_way_to: set[int] = field(default_factory=set)  # pids for which a run of ours has left
    # Our runs that the last sample was judged with; None: the next one is to be taken in whole.
    beside: tuple[Hold, ...] | None = ()


def observe(
    watch: Watch | None,
    reading: GpuReading,
    taken_at: Timestamp,
    arrived_at: Timestamp,
    holds: Collection[Hold],
    thresholds: Thresholds,
    max_gap_seconds: float,
) -> Watch:
    """Take in a reading that is not older than the ones before."""
    if watch is None:
        watch = Watch(reading, taken_at, arrived_at, _history_begins(reading, taken_at))
    elif _says_the_same(watch, reading, taken_at, holds, max_gap_seconds):
        _take_in_again(watch, taken_at, arrived_at, thresholds)
        return watch
    elif _was_blind(watch, taken_at, max_gap_seconds):
        watch.since = _history_begins(reading, taken_at)
    watch.latest, watch.taken_at, watch.arrived_at = reading, taken_at, arrived_at
    if isinstance(reading, GpuSample):
        _take_in(watch, reading, holds, thresholds)
    return watch


def _says_the_same(
    watch: Watch,
    reading: GpuReading,
    taken_at: Timestamp,
    holds: Collection[Hold],
    max_gap_seconds: float,
) -> bool:
    """Whether nothing comes of the reading but that what was so still is. Most are like that, of
    most GPUs, and there are very many. Nobody is there of whom has still to be seen what he does,
    and it is as clear as it was whose the utilisation is."""
    return (
        isinstance(reading, GpuSample)
        and reading == watch.latest
        and not reading.utilization_history
        and watch.beside == tuple(holds)
        and (bool(holds) or watch.taken_at > watch.ours_until)
        and watch.unexplained_since is None
        and not watch.newcomers.has_undecided
        and not _was_blind(watch, taken_at, max_gap_seconds)
    )


def _take_in_again(
    watch: Watch, taken_at: Timestamp, arrived_at: Timestamp, limits: Thresholds
) -> None:
    if watch.beside:
        watch.ours_until = taken_at + UTILIZATION_PERIOD_SECONDS
    for test, breach in watch.breaches.items():
        if breach.at == watch.taken_at:
            watch.breaches[test] = replace(breach, at=taken_at)
    watch.taken_at, watch.arrived_at = taken_at, arrived_at
    assert isinstance(watch.latest, GpuSample)
    if watch.latest.utilization_percent is not None:
        watch.utilization.append((taken_at, watch.latest.utilization_percent))
    _forget_utilization(watch, limits)


def _was_blind(watch: Watch, taken_at: Timestamp, max_gap_seconds: float) -> bool:
    return isinstance(watch.latest, GpuUnreadable) or taken_at - watch.taken_at > max_gap_seconds


def _history_begins(reading: GpuReading, taken_at: Timestamp) -> Timestamp:
    if isinstance(reading, GpuUnreadable) or not reading.utilization_history:
        return taken_at
    ages = [point.age_seconds for point in reading.utilization_history]
    return taken_at - max(ages) if min(ages) <= FRESH_HISTORY_SECONDS else taken_at


def _take_in(watch: Watch, sample: GpuSample, holds: Collection[Hold], limits: Thresholds) -> None:
    now = watch.taken_at
    watch.beside = tuple(holds)
    if holds:
        watch.ours_until = now + UTILIZATION_PERIOD_SECONDS
    is_theirs = _unexplained_is_theirs(watch, sample, holds)
    watch.use = strangers_use(sample, holds, limits.ignored, unexplained_is_theirs=is_theirs)
    listed = any(h.owns(p) and p.memory_bytes is not None for h in holds for p in sample.processes)
    watch.is_unattributed = bool(holds) and is_theirs and not listed
    watch.is_partly_hidden = bool(holds) and is_theirs and listed
    _note_arrivals(watch, watch.use)
    watch.newcomers.see(sample, watch.use.compute, now, beside_ours=bool(holds))
    _judge(watch, sample, watch.use, limits)
    _take_in_utilization(watch, sample, watch.use, limits)


def limits_again(watch: Watch, limits: Thresholds) -> None:
    """There are other limits: the last sample, and the utilisation that is remembered, are judged
    by them."""
    sample, watch.beside = watch.latest, None  # others may be ignored now
    if not isinstance(sample, GpuSample) or watch.use is None:
        return
    kept = [breach for breach in watch.breaches.values() if breach.test != "utilisation"]
    watch.breaches = {breach.test: breach for breach in kept if breach.at < watch.taken_at}
    _judge(watch, sample, watch.use, limits)
    for at, percent in watch.utilization:
        _judge_utilization(watch, at, percent, watch.use, limits)


def _judge(watch: Watch, sample: GpuSample, use: StrangersUse, limits: Thresholds) -> None:
    now = watch.taken_at
    for breach in (
        *_standing_breaches(now, sample),
        *_memory_breaches(now, sample, use, limits),
        *_process_breaches(now, use, limits),
    ):
        watch.breaches[breach.test] = breach


def _note_arrivals(watch: Watch, use: StrangersUse) -> None:
    now, there = watch.taken_at, {process.pid for process in use.compute}
    came = there - watch.strangers.keys()
    watch.strangers = {pid: watch.strangers.get(pid, now) for pid in there}
    watch.given_way_to &= there
    if came or use.memory_bytes > watch.strangers_bytes + SLACK_BYTES:
        watch.grown_at, watch.strangers_bytes = now, use.memory_bytes
    watch.strangers_bytes = min(watch.strangers_bytes, use.memory_bytes)


def _unexplained_is_theirs(watch: Watch, sample: GpuSample, holds: Collection[Hold]) -> bool:
    if any(hold.cleared_at is not None for hold in holds):  # it is ours, on its way back
        watch.unexplained_since = None
        return False
    if not holds:
        watch.unexplained_since = None
        return True
    if unexplained_bytes(sample) <= unexplained_before(holds) + SLACK_BYTES:
        watch.unexplained_since = None
        return False
    if watch.unexplained_since is None:
        watch.unexplained_since = watch.taken_at
    return watch.taken_at - watch.unexplained_since >= UNEXPLAINED_FOR_SECONDS


def _standing_breaches(now: Timestamp, sample: GpuSample) -> list[Breach]:
    breaches = []
    if sample.ailment is not None:
        breaches.append(Breach(now, "health", sample.ailment, "", ""))
    if sample.compute_mode == "prohibited":
        breaches.append(Breach(now, "compute mode", "PROHIBITED", "", "set by the administrator"))
    return breaches


def _memory_breaches(
    now: Timestamp, sample: GpuSample, use: StrangersUse, limits: Thresholds
) -> list[Breach]:
    breaches = []
    match limits.max_memory:
        case Share(limit):
            used = 100 * use.memory_bytes / sample.memory_total_bytes
            if used > limit:
                value, bound = words.percent(used, limit), f"> {limit:g}%"
                breaches.append(Breach(now, "memory", value, bound, culprits(use.processes)))
        case Size(amount):
            if use.memory_bytes > amount:
                value, bound = words.size(use.memory_bytes), f"> {words.size(amount)}"
                breaches.append(Breach(now, "memory", value, bound, culprits(use.processes)))
    if limits.min_free_bytes is not None and use.free_bytes < limits.min_free_bytes:
        value, bound = words.size(use.free_bytes), f"< {words.size(limits.min_free_bytes)}"
        breaches.append(Breach(now, "free memory", value, bound, culprits(use.processes)))
    if sample.compute_mode == "exclusive" and use.compute:
        who = culprits(use.compute)
        breaches.append(Breach(now, "compute mode", "EXCLUSIVE_PROCESS and in use", "", who))
    return breaches


def _process_breaches(now: Timestamp, use: StrangersUse, limits: Thresholds) -> list[Breach]:
    if limits.max_processes is None or len(use.compute) <= limits.max_processes:
        return []
    value, bound = str(len(use.compute)), f"> {limits.max_processes}"
    return [Breach(now, "processes", value, bound, culprits(use.compute))]


def _take_in_utilization(
    watch: Watch, sample: GpuSample, use: StrangersUse, limits: Thresholds
) -> None:
    points = sorted(
        (watch.taken_at - point.age_seconds, point.percent)
        for point in sample.utilization_history or ()
    )
    if sample.utilization_percent is not None:
        points.append((watch.taken_at, sample.utilization_percent))
    for at, percent in points:
        watch.utilization.append((at, percent))
        _judge_utilization(watch, at, percent, use, limits)
    _forget_utilization(watch, limits)


def _forget_utilization(watch: Watch, limits: Thresholds) -> None:
    """Of before the window."""
    begins = watch.taken_at - limits.free_for_seconds
    while len(watch.utilization) > 1 and watch.utilization[0][0] <= begins:
        watch.utilization.popleft()


def _judge_utilization(
    watch: Watch, at: Timestamp, percent: int, use: StrangersUse, limits: Thresholds
) -> None:
    if use.only_ignored:
        return
    theirs = _percent_of(use.compute) if at <= watch.ours_until else None
    if theirs is not None and theirs <= limits.max_utilization_percent:
        return  # the rest was ours
    if percent > limits.max_utilization_percent:
        _blame_utilization(watch, at, percent if theirs is None else theirs, use, limits)


def _percent_of(processes: Collection[GpuProcess]) -> int | None:
    """That they cause together; None: the driver does not say."""
    known = [p.utilization_percent for p in processes if p.utilization_percent is not None]
    return sum(known) if known and len(known) == len(processes) else None


def _blame_utilization(
    watch: Watch, at: Timestamp, percent: int, use: StrangersUse, limits: Thresholds
) -> None:
    value = words.percent(percent, limits.max_utilization_percent)
    bound, who = f"> {limits.max_utilization_percent:g}%", culprits(use.compute)
    if at <= watch.ours_until:
        if not use.compute:
            return  # nobody else is there who could have used it
        if _percent_of(use.compute) is None:
            who = f"ours or theirs: {who}"
    last = watch.breaches.get("utilisation")
    if last is None or at >= last.at:
        watch.breaches["utilisation"] = Breach(at, "utilisation", value, bound, who)


def verdict(watch: Watch, free_for_seconds: float) -> Verdict:
    """What the samples so far say, as of the last one."""
    if isinstance(watch.latest, GpuUnreadable):
        return Unknown(watch.latest.why)
    recent = tuple(
        breach
        for breach in watch.breaches.values()
        if breach.at >= watch.taken_at or watch.taken_at - breach.at < free_for_seconds
    )
    if recent:
        return Busy(recent)
    watched = watch.taken_at - watch.since
    if watched < free_for_seconds:
        return Unknown(
            f"watched for {words.duration(watched)} of {words.duration(free_for_seconds)}"
        )
    assert watch.use is not None
    return Free(watch.use.memory_bytes)


def utilization_over_window(watch: Watch) -> tuple[float, int] | None:
    """Mean and maximum of what the device reported, in percent; None: nothing."""
    if not watch.utilization:
        return None
    values = [percent for _, percent in watch.utilization]
    return sum(values) / len(values), max(values)


def culprits(processes: tuple[GpuProcess, ...]) -> str:
    """The two that hold most, and how many more: "alice: python train.py, 10.2 GiB"."""
    most_first = sorted(processes, key=lambda p: (-(p.memory_bytes or 0), p.pid))
    named = [describe(process) for process in most_first[:2]]
    if len(processes) > len(named):
        named.append(f"{len(processes) - len(named)} more")
    return "; ".join(named) if named else "by no visible process"


def describe(process: GpuProcess) -> str:
    """ "alice: python train.py, 10.2 GiB" """
    user = words.printable(process.user or f"pid {process.pid}")
    command = words.shortened(words.printable(_without_path(process)), 40)
    held = "" if process.memory_bytes is None else words.size(process.memory_bytes)
    return ": ".join(part for part in (user, ", ".join(p for p in (command, held) if p)) if part)


def _without_path(process: GpuProcess) -> str:
    _, _, arguments = (process.command or "").partition(" ")
    return f"{program(process)} {arguments}".strip()
