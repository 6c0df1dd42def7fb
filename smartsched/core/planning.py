"""What goes where now, and what has to wait: the queue against what may be given away.

Jobs go in their order. The first one that does not fit yet is sure of its turn: the GPUs where it
will fit first are held for it, and those behind it may only use what is not held, or what they will
have given back by then.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, islice

from msgspec import Struct, field

from smartsched.core import words
from smartsched.core.capacity import (
    Offer,
    budget_of,
    has_somebody_new,
    offers,
    quiet_for,
)
from smartsched.core.freeness import Watch, culprits
from smartsched.core.guard import closed
from smartsched.core.house_rules import forbidden
from smartsched.core.impossible import impossible, usable_bytes
from smartsched.core.model import (
    Asked,
    GpuKey,
    HostName,
    Job,
    Placement,
    RunKey,
    Running,
    Starting,
    Timestamp,
    Wait,
)
from smartsched.core.needs import Need, asked_of, footprint_of, need_of
from smartsched.core.placement import fits, place
from smartsched.core.selection import label
from smartsched.core.standing import why_none_is_free, why_not
from smartsched.core.state import State, position, takes_work

NONE_LEFT = "every free GPU is given to an earlier command"
# A job that failed is tried on another GPU; for so long it waits for one that runs of ours hold.
WAIT_FOR_ANOTHER_GPU_SECONDS = 300.0
# Where runs give way: how long a GPU has to have been left alone, as a share of the time that a job
# is expected to take; a third of all gaps between colleagues last for half a minute.
_CALM_SHARE = 0.25
_LONGEST_CALM_SECONDS = 120.0
# Among so many that wait it is chosen; and who was overtaken by so many is overtaken no more.
_MOST_LOOKED_AT = 256
# A run that has taken longer than its siblings is expected to take so much more of its time.
_OVERDUE = 0.1


class Plan(Struct):
    starts: list[tuple[Job, Placement]] = field(default_factory=list)
    impossible: list[tuple[Job, str]] = field(default_factory=list)  # and why
    waiting: Wait | None = None  # None: nothing that is queued has to wait


class _Held(Struct, frozen=True):
    """GPUs for a job that waits, and when it is expected to have them all."""

    gpus: frozenset[GpuKey]
    until: Timestamp


def plan(state: State, now: Timestamp, released: Collection[tuple[GpuKey, RunKey]] = ()) -> Plan:
    """By all that was seen so far. `released`: what is given back in this very moment."""
    if not state.queue:
        return Plan()
    planner = _Planner(state, now, offers(state, now, released))
    planner.give_up(impossible(state))
    for job in in_order(state, planner.left.values(), now):
        if not planner.consider(job):
            break
    return planner.finished()


class _Planner:
    """One look at the queue."""

    def __init__(self, state: State, now: Timestamp, left: list[Offer]) -> None:
        self._state = state
        self._now = now
        self._forbidden = forbidden(state, left, now)
        self.left = {o.key: o for o in left if o.key not in self._forbidden}  # still in order
        self._budget = budget_of(state, left, now)
        self._held: _Held | None = None
        self._needs: dict[str, Need] = {}
        self._unmet: set[str] = set()
        self._waits_elsewhere: Wait | None = None  # what waits, but not for a GPU
        # Two attempts at one job must not meet: what the first left behind has to go before.
        self._lingering = {run.job for run in state.runs} | state.unwanted
        self._hopeless: Mapping[Asked, str] = {}
        self._gpuless = any(asked_of(state.policy, asked)[0] == 0 for asked in state.asked)
        self.made = Plan()

    def give_up(self, hopeless: Mapping[Asked, str]) -> None:
        """At once, whether or not it would be their turn, those that ask for what will never be;
        `hopeless`: why. Without any, the queue is not gone through for it."""
        self._hopeless = hopeless
        for job in self._state.queue if hopeless else ():
            if (why := hopeless.get(job.spec.asked)) is not None:
                self.made.impossible.append((job, why))

    def consider(self, job: Job) -> bool:
        """Find it a place if there is one. False: nor will there be for those behind it."""
        state, made = self._state, self.made
        if self._hopeless and job.spec.asked in self._hopeless:
            return True
        if (not_yet := self._why_not_yet(job)) is not None:
            self._waits_elsewhere = self._waits_elsewhere or Wait(not_yet)
            return True
        if len(self._unmet) >= _MOST_LOOKED_AT:
            return False  # somewhere it has to end, and a list read as usual shows fewer jobs
        if self._budget.runs < 1 or not (self.left or self._gpuless):
            made.waiting = self._why_nothing_goes()
            return False
        kind = job.kind
        if kind in self._unmet:
            return True  # one like it found no room, and there is less by now
        if kind not in self._needs:  # those of a kind need the same
            self._needs[kind] = need_of(state, job, self._now)
        need = self._needs[kind]
        self._place(job, need, kind)
        return True

    def _why_not_yet(self, job: Job) -> str | None:
        """Whatever GPUs there are."""
        if job.not_before > self._now:
            return "commands that failed are tried again later"
        if job.id in self._lingering:
            return f"{job.words} left processes behind, which are being stopped"
        return None

    def _place(self, job: Job, need: Need, kind: str) -> None:
        state, now = self._state, self._now
        allowed = self._allowed(need)
        match place(allowed, need, self._budget, state.policy, _to_avoid(state, job, now)):
            case Placement() as placement:
                self.made.starts.append((job, placement))
                for gpu in placement.gpus:
                    if not _has_room(self.left[gpu.key], state):
                        del self.left[gpu.key]
            case Wait() as wait:
                if not job.failed_on:
                    self._unmet.add(kind)
                    self._hold_for(need)
                if not need.gpus:
                    self._waits_elsewhere = self._waits_elsewhere or wait
                elif self.made.waiting is None:
                    self.made.waiting = self._explained(wait, job, need, allowed=bool(allowed))

    def _allowed(self, need: Need) -> Collection[Offer]:
        """Of what is left, what a job with this need may have."""
        state, now, calm = self._state, self._now, _calm_seconds(self._state, need)
        if self._held is None and not calm:
            return self.left.values()
        return [
            offer
            for offer in self.left.values()
            if _may_use(offer, need, self._held, now) and quiet_for(state, offer.key, now) >= calm
        ]

    def _hold_for(self, need: Need) -> None:
        """Of those that wait, the first one is sure of its turn, and of its part of the caps."""
        if self._held is None and need.gpus:
            self._held = _hold_for(self._state, need, self.left, self._now)
            if self._held is not None:
                self._budget.gpus = max(0, self._budget.gpus - need.gpus)

    def finished(self) -> Plan:
        self.made.waiting = self.made.waiting or self._waits_elsewhere
        return self.made

    def _why_nothing_goes(self) -> Wait:
        if self._budget.runs < 1:
            return Wait("as many jobs run as --jobs allows")
        return self.made.waiting or Wait(lambda: self._why_none_is_free() or NONE_LEFT)

    def _explained(self, wait: Wait, job: Job, need: Need, *, allowed: bool) -> Wait:
        """What the first job that waits has to wait for, and what is kept for it until then.
        `allowed`: whether there are GPUs that it might have had."""
        if not wait.lacks_gpus:
            return wait
        if not allowed:
            return Wait(lambda: self._why_none_is_free(need) or NONE_LEFT)
        why = wait.why  # as it is now: those behind it may be given what is left
        if self._held is not None and (kept := self._labels(self._held.gpus)):
            are = "is" if len(kept) == 1 else "are"
            why += f"; GPU {','.join(kept)} {are} held for {job.words}"
        return Wait(lambda: "; ".join(filter(None, (why, self._why_none_is_free(need)))))

    def _labels(self, gpus: Collection[GpuKey]) -> list[str]:
        """Of those of the GPUs that others might be given."""
        here = (offer.sample for key, offer in self.left.items() if key in gpus)
        return [
            label(sample, with_host=self._state.policy.spans_hosts)
            for sample in sorted(here, key=position)
        ]

    def _why_none_is_free(self, need: Need | None = None) -> str:
        """Also those that are below the thresholds, and why the need does not make do with them."""
        state, now = self._state, self._now
        reasons = {
            key: _who_came(watch, now)
            for key, watch in state.gpus.items()
            if state.policy.loses_work and has_somebody_new(watch, now)
        }
        reasons |= self._forbidden
        calm = 0.0 if need is None else _calm_seconds(state, need)
        for offer in self.left.values():
            if (quiet := quiet_for(state, offer.key, now)) < calm:
                left, waits = words.duration(quiet), words.duration(calm)
                reasons[offer.key] = f"somebody left {left} ago (a long job waits for {waits})"
        return why_none_is_free(state, now, reasons)


def in_order(state: State, left: Collection[Offer], now: Timestamp) -> Iterable[Job]:
    """Where runs give way and lose what they have computed, those go first that are likely to end
    before somebody comes: for so long as a GPU was left alone it is likely to be left alone."""
    if not state.policy.loses_work or not left:
        return state.queue
    quiet = max(quiet_for(state, offer.key, now) for offer in left)
    if quiet == float("inf"):
        return state.queue
    first = list(islice(state.queue, _MOST_LOOKED_AT))
    rest = islice(state.queue, _MOST_LOOKED_AT, None)
    return chain(sorted(first, key=lambda job: _by_fit(state, job, quiet)), rest)


def _by_fit(state: State, job: Job, quiet_seconds: float) -> tuple[float, ...]:
    """The longest that fits first; of those that do not fit, the shortest."""
    known = footprint_of(state, job)
    gpus = state.policy.gpus_per_job if job.spec.wishes.gpus is None else job.spec.wishes.gpus
    was_overtaken = state.next_rank - job.rank > _MOST_LOOKED_AT
    if known is None or gpus > 1 or was_overtaken:  # in the list's order
        return (-job.spec.wishes.priority, 0)
    seconds = known.mean_seconds
    fits_in = seconds <= quiet_seconds
    return (-job.spec.wishes.priority, 1, 0 if fits_in else 1, -seconds if fits_in else seconds)


def _calm_seconds(state: State, need: Need) -> float:
    """How long a GPU has to have been left alone before it is worth while to begin a job there:
    right after somebody left, the next one often follows, and a long job would lose what it has
    done."""
    if not state.policy.loses_work or need.seconds is None:
        return 0.0
    return min(_CALM_SHARE * need.seconds, _LONGEST_CALM_SECONDS)


def _who_came(watch: Watch, now: Timestamp) -> str:
    who = culprits(watch.use.compute) if watch.use is not None else "somebody"
    return f"{who} came or took more {words.duration(now - watch.grown_at)} ago"


def _has_room(offer: Offer, state: State) -> bool:
    return offer.left_bytes > 0 and offer.runs < state.policy.most_per_gpu


def _may_use(offer: Offer, need: Need, held: _Held | None, now: Timestamp) -> bool:
    if held is None or offer.key not in held.gpus:
        return True
    return need.seconds is not None and now + need.seconds <= held.until < float("inf")


def _hold_for(
    state: State, need: Need, left: Mapping[GpuKey, Offer], now: Timestamp
) -> _Held | None:
    """The GPUs of the host where it will fit first, by what the siblings of those that run there
    took. None: it has to wait for GPUs that others use, and nobody knows how long that takes."""
    by_host: dict[HostName, list[tuple[Timestamp, GpuKey]]] = {}
    for key, at in _when_free(state, need, left, now):
        by_host.setdefault(key.host, []).append((at, key))
    soonest = [sorted(there)[: need.gpus] for there in by_host.values() if len(there) >= need.gpus]
    if not soonest:
        return None
    # of hosts where nobody knows the end, the one where most of it is over
    chosen = min(soonest, key=lambda gpus: [at for at, _ in reversed(gpus)])
    return _Held(frozenset(key for _, key in chosen), chosen[-1][0])


def _when_free(
    state: State, need: Need, left: Mapping[GpuKey, Offer], now: Timestamp
) -> Iterator[tuple[GpuKey, Timestamp]]:
    """Of all that will do: those that may be had now, and those where runs of ours are."""
    shut = closed(state)
    for key in state.gpus:
        offer = left.get(key)
        if offer is not None and fits(offer, need, state.policy):
            yield key, now
        elif key not in state.holds or key.uuid in shut or not takes_work(state, key.host, now):
            continue
        elif _is_large_enough(state, key, need):
            yield key, max(_expected_end(state, hold.run, now) for hold in state.holds_on(key))


def _expected_end(state: State, key: RunKey, now: Timestamp) -> Timestamp:
    run = state.runs.get(key)
    if run is None:
        return now  # its memory is about to come back
    known = footprint_of(state, run.job)
    if not isinstance(run.status, Starting | Running):
        return now  # it is about to end
    if known is None:
        return float("inf")
    return max(run.status.since + known.mean_seconds, now + _OVERDUE * known.mean_seconds)


def _is_large_enough(state: State, gpu: GpuKey, need: Need) -> bool:
    size = usable_bytes(state, gpu) if gpu in state.gpus else None
    return size is not None and size >= (need.asked_bytes or 0)


def _to_avoid(state: State, job: Job, now: Timestamp) -> Collection[GpuKey]:
    """Where it failed, as long as there is somewhere else where it may soon be tried."""
    if not job.failed_on or now >= job.requeued_at + WAIT_FOR_ANOTHER_GPU_SECONDS:
        return ()
    shut = closed(state)
    others = (key for key in state.gpus if key not in job.failed_on and key.uuid not in shut)
    if any(key in state.holds or not why_not(state, key, state.gpus[key], now) for key in others):
        return job.failed_on
    return ()
