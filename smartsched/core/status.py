"""How a run stands, for people and for machines: one object."""

from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

from smartsched.core.model import (
    HostName,
    Job,
    Lingering,
    Run,
    Running,
    Stopping,
    Timestamp,
    Wait,
)
from smartsched.core.state import Closing, State
from smartsched.core.survey import gpu_rows

# Of those that wait, so many are listed.
_MOST_LISTED = 200


def status(state: State, waiting: Wait | None, now: Timestamp) -> Mapping[str, Any]:
    """README describes the fields. Times are in seconds, of the dispatcher's clock."""
    totals = state.totals
    return {
        "smartsched_status": 1,
        "phase": phase(state),
        "at": now,
        "jobs": {
            "accepted": totals.accepted,
            "ok": totals.ok,
            "failed": totals.failed,
            "cancelled": totals.cancelled,
            "stopped": totals.stopped,
            "running": len(state.runs),
            "waiting": len(state.queue) + len(state.interrupted),
            "lines_left_out": totals.rejected,
        },
        "more_to_come": state.input_open or state.stays_open,
        "waiting_because": waiting.why if waiting is not None and state.queue else None,
        "gpu_seconds": totals.gpu_seconds,
        "running": [_run(run, now) for run in state.runs.values()],
        "waiting": [
            _job(job) for job in islice(chain(state.interrupted, state.queue), _MOST_LISTED)
        ],
        "given_up": [
            _job(each.job) | {"outcome": each.outcome}
            for each in list(state.given_up.values())[-_MOST_LISTED:]
        ],
        "hosts": [_host(state, name) for name in sorted({*state.hosts, *state.troubles})]
        if state.policy.spans_hosts
        else [],
        "pilots": None if state.pilots is None else state.pilots.words,
        "gpus": [
            {
                "gpu": row.label,
                "uuid": row.key.uuid,
                "host": row.key.host,
                "verdict": row.word,
                "reasons": list(row.reasons),
                "others_memory_bytes": row.strangers_memory_bytes,
                "memory_total_bytes": row.memory_total_bytes,
                "utilization_percent": row.utilization_mean_percent,
                "jobs": [
                    hold.run.job for hold in state.holds_on(row.key) if hold.cleared_at is None
                ],
            }
            for row in gpu_rows(state, now)
        ],
    }


def _host(state: State, name: HostName) -> dict[str, Any]:
    host, trouble = state.hosts.get(name), state.troubles.get(name)
    standing = "away"
    if host is not None and host.here:
        standing = "leaving" if host.leaves else "here"
    runs = [run for run in state.runs.values() if run.status.placement.host == name]
    gpus = [key for key in state.gpus if key.host == name]
    return {
        "host": name,
        "node": host.node if host is not None else None,
        "cores": host.cores if host is not None else None,
        "standing": standing,
        "why": trouble.why if trouble is not None else "",
        "gpus": len(gpus),
        "gpus_in_use": sum(1 for key in gpus if key in state.holds),
        "running": sorted(run.key.job for run in runs),
    }


def phase(state: State) -> str:
    """In one word."""
    if state.halted:
        return "halted"
    match state.closing:
        case Closing.DRAIN:
            return "draining"
        case Closing.STOP | Closing.KILL:
            return "stopping"
        case _:
            return "paused" if state.paused else "running"


def _job(job: Job) -> dict[str, Any]:
    return {
        "job": job.id,
        "name": job.spec.wishes.name or None,
        "priority": job.spec.wishes.priority,
        "attempts": job.attempts,
        "command": job.spec.command,
        "directory": job.spec.directory,
        "source": job.spec.source,
    }


def _run(run: Run, now: Timestamp) -> dict[str, Any]:
    status = run.status
    facts = _job(run.job) | {"gpus": [gpu.label for gpu in status.placement.gpus]}
    since = status.started_at if isinstance(status, Stopping) else status.since
    facts["seconds"] = max(0.0, now - since)
    facts["doing"] = type(status).__name__.lower()
    if isinstance(status, Running | Stopping):
        facts |= {"pid": status.process.pid, "log": status.log}
    elif isinstance(status, Lingering):
        facts["seconds"] = None
    return facts
