"""The guard against black holes: GPUs on which one job after the other fails at once.

What fails everywhere is the command, what fails on one GPU alone is that GPU. Until it is known, a
suspect GPU takes no more.
"""

from collections import deque

from msgspec.structs import replace

from smartsched.core import words
from smartsched.core.events import GpuWithheld
from smartsched.core.model import (
    EndedRun,
    GpuKey,
    GpuSample,
    GpuUuid,
    JobId,
    Lost,
    Running,
    Timestamp,
)
from smartsched.core.needs import asked_of
from smartsched.core.state import (
    FAILURES_IN_A_ROW,
    QUICK_SECONDS,
    Failure,
    Record,
    State,
    enqueue,
)
from smartsched.errors import IllegalTransitionError

THE_COMMAND_FAILS = "the command itself fails"


def closed(state: State) -> set[GpuUuid]:
    """GPUs on which nothing is started, free or not: broken ones, and those that may be."""
    return state.withheld | suspects(state) if state.policy.guard else state.withheld


def suspects(state: State) -> set[GpuUuid]:
    """On each, so many jobs in a row failed at once that it may be the GPU."""
    return {uuid for uuid, record in state.records.items() if record.is_suspect}


def to_be_withheld(state: State, now: Timestamp) -> GpuWithheld | None:
    """A suspect GPU that is to blame, since runs started elsewhere do well."""
    for uuid, record in state.records.items():
        if not record.is_suspect:
            continue
        runs = tuple(failure.key for failure in record.quick_failures)
        if any(run in state.runs for run in runs):
            continue  # what a failed run left behind has to go before its job is tried elsewhere
        if _others_do_well(state, uuid, now):
            return GpuWithheld(now, record.gpu, runs)
    return None


def _others_do_well(state: State, suspect: GpuUuid, now: Timestamp) -> bool:
    """Whether a run that was started elsewhere since the failures began has done well, or has at
    least lasted longer than they did. What does well on a GPU that is withheld by now, or on none,
    says nothing: were all GPUs withheld, their jobs would wait for ever."""
    since, no_proof = state.records[suspect].since, state.withheld | {suspect}
    if any(r.proved_at >= since for uuid, r in state.records.items() if uuid not in no_proof):
        return True
    return any(
        isinstance(run.status, Running)
        and since <= run.status.since <= now - QUICK_SECONDS
        and run.status.placement.gpus
        and no_proof.isdisjoint(gpu.key.uuid for gpu in run.status.placement.gpus)
        for run in state.runs.values()
    )


def why_all_fail(state: State) -> str | None:
    """Where no job that is left can wait for other GPUs of those that are there, since there are
    too few: why nothing more is started. Else None."""
    there = {key.uuid for key in _usable(state)}
    shut = closed(state) & {key.uuid for key in state.gpus}
    least = min((asked_of(state.policy, asked)[0] for asked in state.asked), default=0)
    if not shut or len(there - shut) >= max(least, 1) or least == 0:
        return None
    if among := suspects(state) & shut:
        gpus = words.count(len(among), "GPU")
        return f"{THE_COMMAND_FAILS}: {FAILURES_IN_A_ROW} in a row failed at once on {gpus}"
    return f"what is left needs {words.count(least, 'GPU')}, and too many are withheld"


def _usable(state: State) -> list[GpuKey]:
    """Those that are in order, whoever may use them just now."""
    samples = ((key, watch.latest) for key, watch in state.gpus.items())
    return [
        key
        for key, latest in samples
        if isinstance(latest, GpuSample)
        and latest.ailment is None
        and latest.compute_mode != "prohibited"
    ]


def keep_record(state: State, ended: EndedRun, *, final: bool) -> None:
    """What its end says about its GPUs. Whatever was stopped, or vanished, says nothing."""
    if ended.why_stopped is not None or isinstance(ended.ending, Lost):
        return
    for gpu in ended.placement.gpus:
        record = state.records.setdefault(gpu.key.uuid, Record(gpu.key, ended.started_at))
        record.gpu = gpu.key
        if ended.succeeded or ended.seconds >= QUICK_SECONDS:
            record.quick_failures = ()
            record.proved_at = max(record.proved_at, ended.started_at)
        else:
            if not record.quick_failures:
                record.since = ended.started_at
            # one command that fails again and again says nothing of the GPU
            others = [f for f in record.quick_failures if f.job.id != ended.job.id]
            failures = (*others, Failure(ended.job, ended.key, final))
            record.quick_failures = failures[-FAILURES_IN_A_ROW:]


def withhold(state: State, event: GpuWithheld) -> None:
    record = state.records.get(event.gpu.uuid)
    if record is None or tuple(f.key for f in record.quick_failures) != event.runs:
        raise IllegalTransitionError(event, record)
    state.withheld.add(event.gpu.uuid)
    for failure in record.quick_failures:
        job = failure.job
        if failure.final:
            state.totals.failed -= 1
            state.given_up.pop(job.id, None)
            failed_on = tuple(sorted({*job.failed_on, event.gpu}))
            enqueue(state, replace(job, failed_on=failed_on, requeued_at=event.at))
        else:
            _forgive(state, job.id)
    for each in state.records.values():  # of jobs on several GPUs, the others know them as well
        kept = (failure for failure in each.quick_failures if failure.key not in event.runs)
        each.quick_failures = tuple(kept)


def _forgive(state: State, job_id: JobId) -> None:
    """A failure is not held against a job that is to be tried again, or is already."""
    state.queue = deque(
        replace(job, failures=job.failures - 1) if job.id == job_id else job for job in state.queue
    )
    for key, run in state.runs.items():
        if key.job == job_id:
            job = replace(run.job, failures=run.job.failures - 1)
            state.runs[key] = replace(run, job=job)
    for key, ended in state.ended.items():
        if key.job == job_id:
            job = replace(ended.job, failures=ended.job.failures - 1)
            state.ended[key] = replace(ended, job=job)
