"""What was seen of the GPUs: taken into State beside its account of the jobs, and never journaled,
since it is stale the moment we restart."""

from collections.abc import Iterable
from typing import assert_never

from msgspec.structs import replace

from smartsched.core.freeness import limits_again, observe
from smartsched.core.metering import find_strays, measure
from smartsched.core.model import (
    UNREAD,
    ClaimAnswer,
    Claimed,
    ClaimGranted,
    ClaimRefused,
    GpuKey,
    GpuReading,
    GpuUnreadable,
    HostAway,
    HostHere,
    HostName,
    Observation,
    PilotsStand,
    SamplerTrouble,
    Snapshot,
    Timestamp,
    Unwanted,
)
from smartsched.core.state import Host, Refusal, State


def see(state: State, observation: Observation, now: Timestamp) -> None:
    """Take in what a host says about its GPUs, or that it says nothing."""
    match observation:
        case SamplerTrouble(host):
            state.troubles[host] = observation
        case HostHere(host, node, cores, leaves, is_unfit, most_gpus, leave_free):
            known = state.hosts.get(host)
            since = known.since if known is not None and known.here else now
            state.hosts[host] = Host(
                node, cores, leaves, is_unfit, True, since, most_gpus, leave_free
            )
        case HostAway():
            _lose_sight(state, observation)
        case PilotsStand():
            state.pilots = observation
        case Unwanted(jobs):
            state.unwanted = jobs
        case Snapshot():
            _see_gpus(state, observation, now)
        case _:
            assert_never(observation)


def _see_gpus(state: State, snapshot: Snapshot, now: Timestamp) -> None:
    if not snapshot.whole and snapshot.host not in state.cards:
        return  # as long as nobody has said how many there are, some would pass for all
    state.troubles.pop(snapshot.host, None)
    if snapshot.whole:
        _pin(state, snapshot)
        _see_cards(state, snapshot)
    for reading in snapshot.gpus:
        if reading.key.uuid in snapshot.withheld:
            continue
        if state.policy.selection.admits(reading):
            _see_gpu(state, reading, snapshot.taken_at, now)
    if snapshot.whole:
        _miss_vanished(state, snapshot, now)
        find_strays(state, snapshot)


def _lose_sight(state: State, away: HostAway) -> None:
    """What is claimed there may be so no more."""
    let_go(state, [gpu for gpu in state.claimed if gpu.host == away.host])
    if away.host in state.hosts:
        state.hosts[away.host].here = False
    state.troubles[away.host] = SamplerTrouble(away.host, away.why)
    if away.for_good:
        _forget(state, away.host)


def _forget(state: State, host: HostName) -> None:
    """Of a host that is gone for good. What is held there is given back by decisions."""
    for gpus in (state.gpus, state.refused):
        for gpu in [key for key in gpus if key.host == host]:
            del gpus[gpu]
    for known in (state.hosts, state.troubles, state.cards, state.out_of_reach):
        known.pop(host, None)


def _pin(state: State, snapshot: Snapshot) -> None:
    """The user's choice of GPUs is made for good when a host is seen for the first time."""
    policy = state.policy
    if policy.spans_hosts and snapshot.host not in state.cards:
        state.policy = replace(policy, selection=policy.selection.pinned_also(snapshot.gpus))


def judge_again(state: State) -> None:
    """By other thresholds: what was just seen counts from the beginning of the window if it
    would be above them. What was seen to be free by narrower ones stays so."""
    for watch in state.gpus.values():
        limits_again(watch, state.policy.thresholds)


def hear(state: State, answer: ClaimAnswer) -> None:
    """Take in what came of a claim."""
    match answer:
        case ClaimGranted(at, gpus, others):
            _hear_of_others(state, others, at)
            for gpu in gpus:
                state.refused.pop(gpu, None)
                state.claimed.setdefault(gpu, at)
        case ClaimRefused(at, _, why, others):
            _hear_of_others(state, others, at)
            for gpu, _ in why:
                state.claimed.pop(gpu, None)
            state.refused |= {gpu: Refusal(at, words) for gpu, words in why}
        case _:
            assert_never(answer)


def _hear_of_others(state: State, others: Claimed | None, at: Timestamp) -> None:
    """What was refused before and is nobody's now may be had; but a GPU where a run of ours is and
    that is not claimed for us yet is known by its refusal."""
    if others is None:
        return
    there = {gpu: Refusal(at, why) for gpu, why in others if gpu in state.gpus}
    ours = {gpu: refusal for gpu, refusal in state.refused.items() if gpu in state.holds}
    state.refused = ours | there


def let_go(state: State, gpus: Iterable[GpuKey]) -> None:
    """Of claims that are no longer ours."""
    for gpu in gpus:
        state.claimed.pop(gpu, None)


def _see_cards(state: State, snapshot: Snapshot) -> None:
    """Below which indices CUDA may count otherwise than the driver: of cards that cannot be read,
    are cut into MIG instances, or are listed no more."""
    cards = state.cards.setdefault(snapshot.host, {})
    listed = {gpu.key for gpu in snapshot.gpus}
    sliced = {gpu.index for gpu in snapshot.gpus if gpu.slot is not None}
    missing = {index for key, index in cards.items() if key not in listed}
    unreadable = {gpu.index for gpu in snapshot.gpus if isinstance(gpu, GpuUnreadable)}
    state.out_of_reach[snapshot.host] = frozenset(missing | unreadable | sliced)
    cards.update(
        (gpu.key, gpu.index) for gpu in snapshot.gpus if gpu.slot is None and _is_lasting(gpu.key)
    )


def _see_gpu(state: State, reading: GpuReading, taken_at: Timestamp, now: Timestamp) -> None:
    watch = state.gpus.get(reading.key)
    if watch is not None and taken_at < watch.taken_at:
        return  # an answer that was overtaken by a later one
    state.gpus[reading.key] = observe(
        watch,
        reading,
        taken_at,
        now,
        state.holds_on(reading.key),
        state.policy.thresholds,
        state.policy.stale_after_seconds,
    )
    measure(state, reading.key, state.gpus[reading.key])


def _miss_vanished(state: State, snapshot: Snapshot, now: Timestamp) -> None:
    """A card that fell off the bus is missed until it is back. MIG instances come and go, and a
    GPU that could not be read at first had no UUID yet: those are forgotten, if no run is there."""
    listed = {reading.key for reading in snapshot.gpus}
    for key, watch in list(state.gpus.items()):
        if key.host == snapshot.host and key not in listed:
            last = watch.latest
            if key not in state.holds and (last.slot is not None or not _is_lasting(key)):
                del state.gpus[key]
                continue
            gone = GpuUnreadable(
                key, last.index, last.slot, last.name, "the driver no longer lists it"
            )
            _see_gpu(state, gone, snapshot.taken_at, now)


def _is_lasting(key: GpuKey) -> bool:
    """Whether the key is the GPU's own, and no stand-in for a UUID that nobody could read."""
    return not key.uuid.startswith(UNREAD)
