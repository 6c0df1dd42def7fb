"""What `--dry-run` and the live view say about the GPUs: facts and verdicts, ready to be shown."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from smartsched.core import words
from smartsched.core.freeness import (
    Busy,
    Free,
    Share,
    Size,
    Unknown,
    Watch,
    breach_words,
    utilization_over_window,
)
from smartsched.core.model import GpuKey, GpuProcess, GpuSample, Job, Placement, Timestamp
from smartsched.core.planning import plan
from smartsched.core.policy import Policy
from smartsched.core.selection import label
from smartsched.core.standing import current_verdict, is_claimed_by_others, why_not
from smartsched.core.state import State
from smartsched.core.users import job_of, users_words

Word = Literal["FREE", "BUSY", "UNKNOWN", "OURS"]


class GpuRow(Struct, frozen=True):
    key: GpuKey
    label: str
    name: str
    word: Word
    reasons: tuple[str, ...]  # why it is not FREE
    failed: tuple[dict[str, object], ...]  # the tests it failed, for machines
    memory_used_bytes: int | None  # None: unreadable
    memory_total_bytes: int | None
    strangers_memory_bytes: int | None
    utilization_mean_percent: float | None  # None: not reported
    utilization_max_percent: int | None
    utilization_now_percent: int | None  # in its last sample
    processes: tuple[GpuProcess, ...]
    claim: str  # whose, other than our own: "claimed by alice (run night)"; "": nobody's

    @property
    def memory_words(self) -> str:
        if self.memory_used_bytes is None or self.memory_total_bytes is None:
            return "?"
        return f"{words.size(self.memory_used_bytes)} / {words.size(self.memory_total_bytes)}"


class Survey(Struct, frozen=True):
    rows: tuple[GpuRow, ...]
    starts: tuple[tuple[Job, Placement], ...]
    impossible: tuple[tuple[Job, str], ...]  # and why
    waits: tuple[Job, ...]
    waits_because: str  # "": nothing waits

    @property
    def any_free(self) -> bool:
        return any(row.word == "FREE" for row in self.rows)


def survey(state: State, now: Timestamp) -> Survey:
    """The GPUs as they stand, and what would start on them now."""
    planned = plan(state, now)
    settled = {job.id for job, _ in (*planned.starts, *planned.impossible)}
    return Survey(
        rows=gpu_rows(state, now),
        starts=tuple(planned.starts),
        impossible=tuple(planned.impossible),
        waits=tuple(job for job in state.queue if job.id not in settled),
        waits_because=planned.waiting.why if planned.waiting is not None else "",
    )


def gpu_rows(state: State, now: Timestamp) -> tuple[GpuRow, ...]:
    return tuple(_row(state, key, watch, now) for key, watch in state.in_order())


def who_and_why_not(row: GpuRow) -> tuple[str, str]:
    """Who uses it and has claimed it, and why it is not free; "" where there is nothing to say."""
    who = [users_words(row.processes)] if row.processes else []
    if row.claim and row.claim not in row.reasons:
        who.append(words.printable(row.claim))
    return ", ".join(who), words.printable("; ".join(row.reasons))


def _row(state: State, key: GpuKey, watch: Watch, now: Timestamp) -> GpuRow:
    latest = watch.latest
    sample = latest if isinstance(latest, GpuSample) else None
    over_window = utilization_over_window(watch) if sample is not None else None
    why = why_not(state, key, watch, now)
    verdict = current_verdict(state, watch, now)
    is_claimed = is_claimed_by_others(state, key, now)
    breaches = verdict.breaches if isinstance(verdict, Busy) else ()
    reasons = breach_words(breaches, watch.taken_at)
    refusal = state.refused.get(key)
    return GpuRow(
        key=key,
        label=label(latest, with_host=state.policy.spans_hosts),
        name=latest.name,
        word=_word(state, key, verdict, is_claimed=is_claimed),
        reasons=reasons if reasons and key not in state.holds else (why,) if why else (),
        failed=tuple(
            {
                "test": breach.test,
                "value": breach.value,
                "threshold": breach.limit,
                "who": breach.who,
                "seconds_ago": round(watch.taken_at - breach.at, 1),
            }
            for breach in breaches
        ),
        memory_used_bytes=sample.memory_used_bytes if sample else None,
        memory_total_bytes=sample.memory_total_bytes if sample else None,
        strangers_memory_bytes=watch.use.memory_bytes if sample and watch.use else None,
        utilization_mean_percent=over_window[0] if over_window else None,
        utilization_max_percent=over_window[1] if over_window else None,
        utilization_now_percent=watch.utilization[-1][1] if over_window else None,
        processes=sample.processes if sample else (),
        claim=refusal.why if refusal is not None else "",
    )


def _word(state: State, key: GpuKey, verdict: Free | Busy | Unknown, *, is_claimed: bool) -> Word:
    if key in state.holds:
        return "OURS"
    match verdict:
        case Free():
            return "BUSY" if is_claimed else "FREE"
        case Busy():
            return "BUSY"
        case Unknown():
            return "UNKNOWN"


def as_json(found: Survey, policy: Policy, notes: Sequence[str]) -> dict[str, object]:
    """The survey as one object; README describes its fields."""
    return {
        "smartsched_survey": 1,
        "any_free": found.any_free,
        "thresholds": _thresholds(policy),
        "gpus": [_gpu_json(row) for row in found.rows],
        "would_start": [
            {"command": job.spec.command, "source": job.spec.source, "gpus": placement.labels}
            for job, placement in found.starts
        ],
        "would_wait": [
            {"command": job.spec.command, "source": job.spec.source} for job in found.waits
        ],
        "would_wait_because": found.waits_because or None,
        "would_fail": [
            {"command": job.spec.command, "source": job.spec.source, "why": why}
            for job, why in found.impossible
        ],
        "notes": list(notes),
    }


def _thresholds(policy: Policy) -> dict[str, object]:
    limits = policy.thresholds
    match limits.max_memory:
        case Share(percent):
            max_memory: dict[str, object] = {"percent": percent}
        case Size(amount_bytes):
            max_memory = {"bytes": amount_bytes}
    return {
        "max_memory": max_memory,
        "max_utilization_percent": limits.max_utilization_percent,
        "min_free_memory_bytes": limits.min_free_bytes,
        "max_processes": limits.max_processes,
        "free_for_seconds": limits.free_for_seconds,
    }


def _gpu_json(row: GpuRow) -> dict[str, object]:
    return {
        "host": row.key.host,
        "gpu": row.label,
        "uuid": row.key.uuid,
        "name": row.name,
        "verdict": row.word,
        "reasons": list(row.reasons),
        "failed_tests": list(row.failed),
        "memory_used_bytes": row.memory_used_bytes,
        "memory_total_bytes": row.memory_total_bytes,
        "strangers_memory_bytes": row.strangers_memory_bytes,
        "utilization_mean_percent": row.utilization_mean_percent,
        "utilization_max_percent": row.utilization_max_percent,
        "utilization_now_percent": row.utilization_now_percent,
        "claim": row.claim or None,
        "processes": [
            {
                "pid": process.pid,
                "kind": process.kind,
                "user": process.user,
                "command": process.command,
                "memory_bytes": process.memory_bytes,
                "job": job_of(process),
            }
            for process in row.processes
        ],
    }
