"""Other people come to a GPU where runs of ours are: who is there, and who of ours gives way.

Giving way has to be faster than the newcomer's allocation, which begins a second or four after its
process appears. What threatens is judged by the strangers alone: their use above the thresholds, or
memory that runs out while they still grow.
"""

from collections.abc import Collection, Iterator

from msgspec import Struct

from smartsched.core.capacity import has_somebody_new
from smartsched.core.footprint import CONTEXT_BYTES
from smartsched.core.freeness import Watch, culprits
from smartsched.core.model import (
    GpuKey,
    GpuProcess,
    GpuSample,
    Run,
    RunKey,
    Running,
    Stopping,
    Timestamp,
)
from smartsched.core.newcomers import Manners
from smartsched.core.standing import is_stale
from smartsched.core.state import State

# Of a GPU's memory, what a stranger that grows is to find free at any time.
_KEPT_FREE = 0.15
# And over what it holds by then: a training first takes less than half of what it will have.
_MAY_GROW_BY = 1.6
# So many have to have come and begun small before it is taken for granted that others do: of those
# who run the same program, or of all; and no more than so few may have done otherwise, since each
# of them who is met is harmed.
_FEW = 3
_MANY = 12
_EXCEPTIONS = 0.02
_CONTEXT_AT_MOST_BYTES = 2 * CONTEXT_BYTES
_COMES_BACK_WITHIN_SECONDS = 3.0  # mostly the memory of a process that has ended


class Yield(Struct, frozen=True):
    """A run of ours that gives way, and to whom."""

    run: RunKey
    who: str
    has_time: bool  # to save its state: nobody is there who may take all memory at once


def who_gives_way(
    state: State, now: Timestamp, stopped: Collection[RunKey] = ()
) -> Iterator[Yield]:
    """The runs to be stopped now. Those that are being stopped count as gone, so that nobody is
    stopped twice for the same stranger. `stopped`: in this very moment, for another reason."""
    if state.policy.on_contention != "requeue":
        return
    chosen = set(stopped)
    for gpu in state.holds:
        watch = state.gpus.get(gpu)
        if watch is None or is_stale(state, watch, now):
            continue
        for run in _too_many(state, gpu, watch, chosen, now):
            chosen.add(run.key)
            who = culprits(strangers_at(state, watch))
            yield Yield(run.key, who, _has_time_to_save(state, run))


def strangers_at(state: State, watch: Watch) -> tuple[GpuProcess, ...]:
    """Processes there that are no run's of this dispatcher, wherever it was to be."""
    ours = f"{state.policy.run_id}/"
    compute = watch.use.compute if watch.use is not None else ()
    return tuple(p for p in compute if p.run_tag is None or not p.run_tag.startswith(ours))


def _too_many(
    state: State, gpu: GpuKey, watch: Watch, chosen: set[RunKey], now: Timestamp
) -> list[Run]:
    sample = watch.latest
    if not isinstance(sample, GpuSample) or watch.is_unattributed:
        return []
    there = {process.pid for process in strangers_at(state, watch)}
    if not there and not (watch.is_partly_hidden and _are_all_listed(state, gpu, sample)):
        return []
    ours = [run for run in _runs_on(state, gpu) if run.key not in chosen]
    if _is_crossed(watch) or _may_take_all(state, gpu, watch):
        return [run for run in ours if _is_news_to(run, watch, there)]
    if not has_somebody_new(watch, now) or _comes_back(state, gpu, now):
        return []
    return _to_make_room(state, gpu, watch, sample, ours)


def _are_all_listed(state: State, gpu: GpuKey, sample: GpuSample) -> bool:
    """Whether the driver lists every run of ours there: memory that nobody seems to use may be that
    of one which it does not list, and would be met again wherever that one goes."""
    return all(
        any(hold.owns(process) for process in sample.processes) for hold in state.holds_on(gpu)
    )


def _may_take_all(state: State, gpu: GpuKey, watch: Watch) -> bool:
    """Whether somebody is there who has made no more than a context yet, and is not known to begin
    small: in a second he may take what frameworks preallocate, and dies if it is not there."""
    fresh = [p for p in strangers_at(state, watch) if watch.newcomers.is_undecided(p.pid)]
    contexts = [p for p in fresh if (p.memory_bytes or 0) <= _CONTEXT_AT_MOST_BYTES]
    return bool(contexts) and not _are_trusted(state, gpu)


def _comes_back(state: State, gpu: GpuKey, now: Timestamp) -> bool:
    """Whether a run has just gone whose memory the samples may still show."""
    gone = (hold.cleared_at for hold in state.holds_on(gpu) if hold.cleared_at is not None)
    return any(now - at < _COMES_BACK_WITHIN_SECONDS for at in gone)


def _runs_on(state: State, gpu: GpuKey) -> list[Run]:
    """Youngest first."""
    runs = (state.runs.get(hold.run) for hold in state.holds_on(gpu))
    going = [run for run in runs if run is not None and isinstance(run.status, Running)]
    return sorted(going, key=_began, reverse=True)


def _is_crossed(watch: Watch) -> bool:
    """Whether strangers are above a threshold by the last sample."""
    return any(
        breach.at >= watch.taken_at and breach.test not in ("health", "compute mode")
        for breach in watch.breaches.values()
    )


def _is_news_to(run: Run, watch: Watch, there: set[int]) -> bool:
    """A run that was started beside somebody to whom another has given way already stays, unless
    somebody there has taken more since."""
    return (
        not there
        or watch.grown_at > run.status.since
        or any(
            watch.strangers[pid] > run.status.since or pid not in watch.given_way_to
            for pid in there
        )
    )


def _to_make_room(
    state: State, gpu: GpuKey, watch: Watch, sample: GpuSample, ours: list[Run]
) -> list[Run]:
    """Youngest first, only as many as needed."""
    assert watch.use is not None
    free, wanted = sample.memory_free_bytes, _wanted(sample, watch.use.memory_bytes)
    staying = {run.key for run in ours}
    for hold in state.holds_on(gpu):
        used = _used(state, hold.run, gpu)
        if hold.run in staying:
            free -= max(0, (hold.reserved_bytes or 0) - used)
        else:
            free += used
    leaving = []
    for run in ours:
        if free >= wanted:
            break
        free += max(_used(state, run.key, gpu), _reserved(state, run.key, gpu))
        leaving.append(run)
    return leaving


def _used(state: State, run: RunKey, gpu: GpuKey) -> int:
    meter = state.meters.get(run)
    return meter.used_bytes.get(gpu, 0) if meter is not None else 0


def _reserved(state: State, run: RunKey, gpu: GpuKey) -> int:
    return state.holds[gpu][run].reserved_bytes or 0


def memory_allows_more_time(state: State, run: Run) -> bool:
    """Whether a run that gives way may take its time to save its state, once those that are
    younger have gone."""
    return all(_has_time(state, run, gpu.key) for gpu in run.status.placement.gpus)


def _has_time(state: State, run: Run, gpu: GpuKey) -> bool:
    watch = state.gpus.get(gpu)
    if watch is None or watch.use is None or not isinstance(watch.latest, GpuSample):
        return False
    if not _are_trusted(state, gpu):
        return False
    younger = (
        _used(state, other.key, gpu)
        for other in state.runs.values()
        if isinstance(other.status, Stopping) and _began(other) > _began(run)
    )
    free = watch.latest.memory_free_bytes + sum(younger)
    return free >= _wanted(watch.latest, watch.use.memory_bytes)


def _began(run: Run) -> tuple[Timestamp, RunKey]:
    status = run.status
    return (status.started_at if isinstance(status, Stopping) else status.since), run.key


def _has_time_to_save(state: State, run: Run) -> bool:
    """Whether nobody is on its GPUs who may take most of the memory at once."""
    return all(_are_trusted(state, gpu.key) for gpu in run.status.placement.gpus)


def _are_trusted(state: State, gpu: GpuKey) -> bool:
    watch = state.gpus.get(gpu)
    if watch is None or not isinstance(watch.latest, GpuSample):
        return False
    return all(_begins_small(state, p) for p in set(watch.newcomers.undecided(watch.latest)))


def _begins_small(state: State, program: str) -> bool:
    """Whether those who ran this program began small; of one that is hardly known, whether
    everybody did who came."""
    known, everybody = Manners(), Manners()
    for watch in state.gpus.values():
        everybody.add(watch.newcomers.all)
        if (manners := watch.newcomers.programs.get(program)) is not None:
            known.add(manners)
    if known.calm + known.grabs >= _FEW:
        return _are_calm(known)
    return _are_calm(known) and _are_calm(everybody) and everybody.calm >= _MANY


def _are_calm(seen: Manners) -> bool:
    return seen.grabs <= _EXCEPTIONS * seen.calm


def _wanted(sample: GpuSample, strangers_bytes: int) -> float:
    """What strangers that grow are to find free."""
    usable = sample.memory_used_bytes + sample.memory_free_bytes
    return max(_KEPT_FREE * usable, _MAY_GROW_BY * strangers_bytes)
