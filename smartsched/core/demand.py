"""What there is to do for pilots, and who of them and of other hosts is there to do it."""

from collections.abc import Collection, Iterator, Mapping
from itertools import islice

from smartsched.core.capacity import time_of_day
from smartsched.core.freeness import Busy
from smartsched.core.model import GpuKey, GpuUnreadable, HostName, Timestamp
from smartsched.core.needs import asked_of
from smartsched.core.pilots import SURPLUS_SECONDS, Demand, PilotHost
from smartsched.core.slurm import PilotId
from smartsched.core.standing import (
    BEING_STARTED,
    current_verdict,
    is_claimed_by_others,
    is_in_use,
    why_closed,
)
from smartsched.core.state import Closing, State

# More than any number of pilots will be filled with.
_MOST_LOOKED_AT = 256
# Of a host whose GPUs nobody has seen yet, though it is about to be here.
_ANY_NUMBER = 1 << 16


def demand_of(
    state: State,
    pilots: Mapping[HostName, PilotId],
    now: Timestamp,
    *,
    ending: Collection[HostName],
    blind: Collection[HostName],
) -> Demand:
    """`pilots`: those whose agents are here, by their hosts. `ending`: of these, who takes no new
    work; `blind`: where no GPU has been seen though there was time enough."""
    needs = tuple(islice(_needs(state, now), _MOST_LOOKED_AT))
    waits = state.closing is Closing.NO and (state.queue or state.input_open or state.stays_open)
    joined = {
        pilot: _as_pilot(state, host, now, is_ending=host in ending, is_blind=host in blind)
        for host, pilot in pilots.items()
    }
    return Demand(
        needs=needs,
        more_to_come=bool(waits) and (state.input_open or state.stays_open or not needs),
        has_runs=bool(state.runs or state.ended),
        joined=joined,
        elsewhere=tuple(_elsewhere(state, pilots, now)),
    )


def _needs(state: State, now: Timestamp) -> Iterator[int]:
    """As far as the user's caps allow them to be met; of jobs that share a GPU, one for all."""
    if state.closing is not Closing.NO or state.paused:
        return
    at, policy = time_of_day(state, now), state.policy
    most_jobs, most_gpus = policy.most_jobs.at(at), policy.most_gpus.at(at)
    jobs = None if most_jobs is None else max(0, most_jobs - len(state.runs))
    left = float("inf") if most_gpus is None else most_gpus - len(state.holds)
    beside = 0  # so many more fit on the GPU of the last one
    for job in islice(state.queue, jobs):
        if job.not_before > now + SURPLUS_SECONDS:
            continue
        gpus, _ = asked_of(policy, job.spec.asked)
        if gpus == 1 and beside:
            beside -= 1
            continue
        if gpus > left:
            return
        if gpus == 1 and policy.jobs_per_gpu != "auto":
            beside = policy.jobs_per_gpu - 1
        left -= gpus
        yield gpus


def _as_pilot(
    state: State, host: HostName, now: Timestamp, *, is_ending: bool, is_blind: bool
) -> PilotHost:
    gpus = _gpus_of(state, host)
    is_idle = not any(run.status.placement.host == host for run in state.runs.values())
    if not gpus and not is_blind:  # it has just come
        granted = state.policy.gpus_per_pilot
        return PilotHost(granted, granted, is_idle, is_ending)
    return PilotHost(len(gpus), _open_gpus(state, gpus, now), is_idle, is_ending)


def _elsewhere(state: State, pilots: Mapping[HostName, PilotId], now: Timestamp) -> Iterator[int]:
    for host, trouble in state.troubles.items():
        if trouble.why == BEING_STARTED and host not in pilots:
            yield _ANY_NUMBER
    for name, found in state.hosts.items():
        if found.takes_work and name not in pilots:
            yield _open_gpus(state, _gpus_of(state, name), now)


def _gpus_of(state: State, host: HostName) -> list[GpuKey]:
    return [key for key in state.gpus if key.host == host]


def _open_gpus(state: State, gpus: Collection[GpuKey], now: Timestamp) -> int:
    """How many can be given a job now, or soon."""
    return sum(1 for key in gpus if _is_open(state, key, now))


def _is_open(state: State, key: GpuKey, now: Timestamp) -> bool:
    watch = state.gpus[key]
    if key.host in state.troubles or isinstance(watch.latest, GpuUnreadable):
        return False
    if is_in_use(state, key) or why_closed(state, key) or is_claimed_by_others(state, key, now):
        return False
    return not isinstance(current_verdict(state, watch, now), Busy)
