"""Holds what is seen on the GPUs against the runs that were given them."""

from collections.abc import Iterator

from smartsched.core.events import RunMeasured
from smartsched.core.footprint import RAMP_SECONDS, Meter
from smartsched.core.freeness import Watch
from smartsched.core.model import (
    EndedRun,
    GpuKey,
    GpuProcess,
    GpuSample,
    HostName,
    RunKey,
    Running,
    Snapshot,
    Stopping,
    Timestamp,
)
from smartsched.core.state import State
from smartsched.core.strangers import Hold, is_known
from smartsched.core.tag import tag_of


def measure(state: State, gpu: GpuKey, watch: Watch) -> None:
    """What each run of ours on this GPU uses of it, by the sample that has just been taken in."""
    sample = watch.latest
    living = [hold for hold in state.holds_on(gpu) if hold.cleared_at is None]
    if not living or not isinstance(sample, GpuSample) or watch.use is None:
        return
    strays = strays_at(state, watch)
    for hold in living:
        if not isinstance(state.runs[hold.run].status, Running | Stopping):
            continue
        meter = state.meters.setdefault(hold.run, Meter())
        if meter.watched_since is None:
            meter.watched_since = watch.taken_at
        is_alone = len(state.holds_on(gpu)) == 1
        meter.was_alone = meter.was_alone and is_alone and not strays
        meter.is_blind = meter.is_blind or watch.is_unattributed
        own = [process for process in sample.processes if hold.owns(process)]
        used = sum(process.memory_bytes or 0 for process in own)
        if is_alone:  # also what no process accounts for
            used = max(used, watch.use.free_bytes - sample.memory_free_bytes)
        percent = _percent(sample, own, is_alone=is_alone and not watch.use.compute)
        meter.take_in(gpu, used, percent, watch.taken_at)


def _percent(sample: GpuSample, own: list[GpuProcess], *, is_alone: bool) -> float | None:
    known = [p.utilization_percent for p in own if p.utilization_percent is not None]
    if own and len(known) == len(own):
        return float(min(sum(known), 100))
    return sample.utilization_percent if is_alone else None


def measured_event(state: State, ended: EndedRun, now: Timestamp) -> RunMeasured | None:
    """What a run that ended well teaches; None: nothing, or it has taught it already."""
    meter = state.meters.get(ended.key)
    if meter is None or not meter.teaches or not ended.placement.gpus:
        return None
    if (meter.watched_since or ended.ended_at) > ended.started_at + RAMP_SECONDS:
        return None  # its dispatcher before this one saw most of it
    shape = ended.job.spec.shape
    percent = meter.utilization_percent
    return RunMeasured(now, ended.key, shape, meter.peak_bytes, percent, ended.seconds)


def find_strays(state: State, snapshot: Snapshot) -> None:
    """Processes of ours on GPUs that their runs were not given."""
    holds = {hold.run: hold for hold in _held_on(state, snapshot.host)}
    living = [hold for hold in holds.values() if hold.run in state.meters]
    living += _without_a_gpu(state, snapshot.host)
    for reading in snapshot.gpus if living else ():
        if isinstance(reading, GpuSample):
            for process in reading.processes:
                run = _owner(process, living)
                if run is not None and run not in state.holds.get(reading.key, {}):
                    meter = state.meters.setdefault(run, Meter())
                    meter.elsewhere.setdefault(reading.key, snapshot.taken_at)


def strays_at(state: State, watch: Watch) -> list[GpuProcess]:
    """Of the processes there that belong to no run that was given this GPU, those that belong to
    another run of ours."""
    if watch.use is None or not watch.use.processes:
        return []
    tag, host = f"{state.policy.run_id}/", watch.latest.key.host
    holds = [*_held_on(state, host), *_without_a_gpu(state, host)]
    return [
        process
        for process in watch.use.processes
        if (process.run_tag or "").startswith(tag) or _owner(process, holds) is not None
    ]


def strays_bytes(state: State, watch: Watch) -> int:
    """What counts as strangers' use and is ours."""
    known = (process for process in strays_at(state, watch) if is_known(process))
    return sum(process.memory_bytes or 0 for process in known)


def _held_on(state: State, host: HostName) -> Iterator[Hold]:
    """Of that host's runs alone: another host's pids are other processes."""
    for gpu, held in state.holds.items():
        if gpu.host == host:
            yield from held.values()


def _without_a_gpu(state: State, host: HostName) -> Iterator[Hold]:
    """What would be known of runs there that were given none, had they been given one."""
    for key, run in state.runs.items():
        status = run.status
        if not isinstance(status, Running) or status.placement.gpus:
            continue
        if status.placement.host in ("", host):
            tag = tag_of(state.policy.run_id, key)
            yield Hold(key, tag, status.since, 0, status.process.pid, cleared_at=None)


def _owner(process: GpuProcess, holds: list[Hold]) -> RunKey | None:
    return next((hold.run for hold in holds if hold.owns(process)), None)
