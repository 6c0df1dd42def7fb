"""What may still be given away: room on each GPU, and the user's caps on all of them together."""

from collections import Counter
from collections.abc import Collection

from msgspec import Struct

from smartsched.core.footprint import Meter, with_growth
from smartsched.core.freeness import Busy, Free, Verdict, Watch
from smartsched.core.guard import closed
from smartsched.core.metering import strays_bytes
from smartsched.core.model import GpuKey, GpuSample, HostName, PlacedGpu, RunKey, Timestamp
from smartsched.core.needs import Need
from smartsched.core.selection import label, visible_as
from smartsched.core.standing import current_verdict, is_claimed_by_others
from smartsched.core.state import State, position, takes_work
from smartsched.core.strangers import Hold, unexplained_before, unexplained_bytes

# Of a GPU's memory, for what nobody foresees: fragmentation, page tables, a context that grows.
MARGIN = 0.02
# Together, of a GPU's time: two jobs that need less than that each run at nearly full speed.
MOST_PERCENT = 125.0
# A stranger that came or grew so lately may be about to take more.
GROWS_FOR_SECONDS = 60.0
# How soon a GPU is asked for again that another dispatcher had claimed.
ASK_AGAIN_SECONDS = 1.0
_SECONDS_A_DAY = 86400.0
_UNLIMITED = float("inf")


class Offer(Struct):
    """A GPU on which another run of ours may be started, and how much of it is left."""

    sample: GpuSample
    visible: str
    strangers_bytes: int
    rank: tuple[float, float]  # by the user's preference
    runs: int  # of ours there
    usable_bytes: int  # of its memory, whoever uses it
    left_bytes: int
    percent: float  # of its time that runs of ours need
    unexplained_bytes: int  # before any run of ours
    strays_bytes: int = 0  # of the strangers', what is used by runs of ours that are elsewhere
    with_host: bool = False  # people call it by its host, too

    @property
    def key(self) -> GpuKey:
        return self.sample.key

    def take(self, need: Need) -> PlacedGpu:
        """Give the need its part."""
        reserved = self.part_of(need)
        given = PlacedGpu(
            self.key,
            label(self.sample, with_host=self.with_host),
            self.visible,
            self.unexplained_bytes,
            reserved,
            need.percent,
            self.strangers_bytes - self.strays_bytes,
        )
        self.runs += 1
        self.percent += need.percent
        self.left_bytes -= self.usable_bytes if reserved is None else reserved
        return given

    def part_of(self, need: Need) -> int | None:
        """The memory to be promised; None: all of it."""
        if need.shares is None:
            return need.memory_bytes
        everything = self.usable_bytes - self.strangers_bytes
        return int((1 - 2 * MARGIN) * everything / need.shares)


def spoken_for(state: State, hold: Hold, gpu: GpuKey, usable_bytes: int, now: Timestamp) -> int:
    """What a run of ours has of a GPU's memory, or was promised: the more of both."""
    meter = state.meters.get(hold.run)
    used = meter.used_bytes.get(gpu, 0) if meter is not None else 0
    return max(used, _reserved(state, hold, meter, usable_bytes, now))


def _reserved(
    state: State, hold: Hold, meter: Meter | None, usable_bytes: int, now: Timestamp
) -> int:
    if hold.reserved_bytes is not None:
        return hold.reserved_bytes
    job = state.runs[hold.run].job if hold.run in state.runs else None
    may_share = state.policy.packs_by_learning and job is not None and not job.alone
    if may_share and meter is not None and meter.teaches and meter.has_ramped(now):
        return with_growth(meter.peak_bytes)
    return usable_bytes


def offers(
    state: State, now: Timestamp, released: Collection[tuple[GpuKey, RunKey]] = ()
) -> list[Offer]:
    """In the order in which they are given away: those without a run of ours first."""
    shut, most = closed(state), state.policy.most_per_gpu
    found = []
    for key, watch in state.gpus.items():
        holds = list(state.holds_on(key))
        if holds and released:
            holds = [hold for hold in holds if (key, hold.run) not in released]
        if holds and (len(holds) >= most or watch.is_unattributed):
            continue
        if key.uuid in shut or _is_kept_back(state, key, watch, holds, now):
            continue
        sample, use = watch.latest, watch.use
        verdict = current_verdict(state, watch, now)
        ignores = state.policy.on_contention == "ignore" and bool(holds)
        if not isinstance(verdict, Free) and not (ignores and _only_strangers(verdict)):
            continue
        assert isinstance(sample, GpuSample)
        assert use is not None
        found.append(_offer(state, sample, use.memory_bytes, holds, now))
    return sorted(found, key=_order)


def _is_kept_back(
    state: State, key: GpuKey, watch: Watch, holds: list[Hold], now: Timestamp
) -> bool:
    """Whatever its samples say."""
    if any(hold.cleared_at is not None for hold in holds) or not takes_work(state, key.host, now):
        return True
    if state.policy.loses_work and has_somebody_new(watch, now):
        return True  # what is started there would have to give way at once
    return key not in state.claimed and is_refused(state, key, now)


def _order(offer: Offer) -> tuple[object, ...]:
    return (offer.runs, offer.rank, offer.percent, position(offer.sample))


def _offer(
    state: State, sample: GpuSample, strangers_bytes: int, holds: list[Hold], now: Timestamp
) -> Offer:
    key = sample.key
    out_of_reach = state.out_of_reach.get(key.host, frozenset())
    usable = sample.memory_used_bytes + sample.memory_free_bytes
    ours = sum(spoken_for(state, hold, key, usable, now) for hold in holds)
    left = usable - int(MARGIN * usable) - strangers_bytes - ours
    return Offer(
        sample=sample,
        visible=visible_as(sample, out_of_reach, state.policy.visible_by),
        strangers_bytes=strangers_bytes,
        rank=_rank(state, sample, strangers_bytes, now),
        runs=len(holds),
        usable_bytes=usable,
        left_bytes=left,
        percent=sum(_percent(state, hold) for hold in holds),
        unexplained_bytes=unexplained_before(holds) if holds else unexplained_bytes(sample),
        strays_bytes=strays_bytes(state, state.gpus[key]),
        with_host=state.policy.spans_hosts,
    )


def _rank(
    state: State, sample: GpuSample, strangers_bytes: int, now: Timestamp
) -> tuple[float, float]:
    """By the user's wish; where runs give way and lose their work, next by where nobody has come
    for longest."""
    place, order = state.policy.preference.rank(sample, strangers_bytes)
    if state.policy.loses_work and state.policy.preference.order == "emptiest":
        return place, -quiet_for(state, sample.key, now)
    return place, order


def quiet_for(state: State, gpu: GpuKey, now: Timestamp) -> float:
    """Seconds since strangers were last above a threshold there; inf: they never were."""
    breaches = state.gpus[gpu].breaches.values()
    return now - max((breach.at for breach in breaches), default=float("-inf"))


def _percent(state: State, hold: Hold) -> float:
    meter = state.meters.get(hold.run)
    seen = meter.utilization_percent if meter is not None else None
    return hold.percent if seen is None else seen


def _only_strangers(verdict: Verdict) -> bool:
    """Whether it is other people's use alone that keeps a GPU from being free."""
    if not isinstance(verdict, Busy):
        return False
    return all(breach.test not in ("health", "compute mode") for breach in verdict.breaches)


def has_somebody_new(watch: Watch, now: Timestamp) -> bool:
    """Whether strangers are there that came or grew lately, and so may be about to take more."""
    return bool(watch.strangers) and now - watch.grown_at <= GROWS_FOR_SECONDS


def is_refused(state: State, key: GpuKey, now: Timestamp) -> bool:
    """Whether another dispatcher has claimed it, by all that was said lately."""
    refusal = state.refused.get(key)
    return refusal is not None and now < refusal.at + ASK_AGAIN_SECONDS


class Budget(Struct):
    """How many more runs and GPUs the user's caps allow."""

    runs: float
    gpus: float  # on which there is no run of ours
    gpuless: dict[HostName, float]  # by the hosts where they may be
    why: str  # what limits the GPUs, for people


def budget_of(state: State, offered: Collection[Offer], now: Timestamp) -> Budget:
    policy, at = state.policy, time_of_day(state, now)
    most_jobs, most_gpus = policy.most_jobs.at(at), policy.most_gpus.at(at)
    keep = kept_free(state, policy.leave_free.at(at))
    empty = {offer.key for offer in offered if offer.runs == 0}  # also what was just given back
    by_cap = _left(most_gpus, len(state.holds.keys() - empty))
    # who has claimed one is about to use it: it is not left for anybody
    left = sum(1 for key in empty if not is_claimed_by_others(state, key, now))
    by_manners = max(0.0, left - keep) if keep else _UNLIMITED
    why = f"--max-gpus {most_gpus}" if by_cap <= by_manners else f"--leave-free {keep}"
    return Budget(
        runs=_left(most_jobs, len(state.runs)),
        gpus=min(by_cap, by_manners),
        gpuless=_left_without_gpus(state, most_jobs, now),
        why=why,
    )


def _left_without_gpus(
    state: State, most_jobs: int | None, now: Timestamp
) -> dict[HostName, float]:
    """As many as there are cores; where the user says how many jobs there may be, his word counts
    on a box, and on several they are spread by their cores all the same."""
    running = Counter(
        run.status.placement.elsewhere
        for run in state.runs.values()
        if not run.status.placement.gpus
    )
    if not state.policy.spans_hosts:
        most = state.policy.most_gpuless if most_jobs is None else None
        return {HostName(""): _left(most, running.total())}
    here = {name: host for name, host in state.hosts.items() if takes_work(state, name, now)}
    return {name: _left(host.cores, running[name]) for name, host in here.items()}


def kept_free(state: State, asked: int | None) -> int:
    """Of the GPUs; where --polite asks for it, never all there are."""
    keep = asked or 0
    return min(keep, len(state.gpus) - 1) if state.policy.is_polite else keep


def _left(most: int | None, so_far: int) -> float:
    return _UNLIMITED if most is None else max(0, most - so_far)


def time_of_day(state: State, now: Timestamp) -> float:
    """Seconds since midnight by the clock on the wall."""
    return (now + state.local_offset) % _SECONDS_A_DAY


def caps_change_at(state: State, now: Timestamp) -> Timestamp:
    """When one of the caps may be another than it is now."""
    caps = [state.policy.most_jobs, state.policy.most_gpus, state.policy.leave_free]
    caps += [cap for host in state.hosts.values() for cap in (host.most_gpus, host.leave_free)]
    if not any(cap.parts for cap in caps):
        return float("inf")
    at = time_of_day(state, now)
    changes = [change for cap in caps if (change := cap.next_change(at)) is not None]
    return now + min(changes) if changes else float("inf")
