"""What a report says of a run, in words and numbers, ready to be shown."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from smartsched.core import words
from smartsched.core.account import Account, JobRow, ShapeRow, account_of
from smartsched.core.advice import advice_on_time, what_would_fit
from smartsched.core.chart_data import GpuLine, Scene
from smartsched.core.events import Event
from smartsched.core.history import History
from smartsched.core.model import Timestamp
from smartsched.core.shares import Span, gpu_seconds, total

ShowTime: TypeAlias = Callable[[Timestamp], str]
Cell: TypeAlias = tuple[str, float | str | None]
"""What is shown, and by what it is sorted; None: unknown, comes last."""
_UNKNOWN: Cell = ("", None)
_MOST_REMARKS = 200


class Table(Struct, frozen=True):
    columns: Sequence[dict[str, Any]]
    rows: Sequence[Sequence[Cell]]

    def as_object(self) -> dict[str, Any]:
        return {"columns": list(self.columns), "rows": [list(row) for row in self.rows]}


class Told(Struct, frozen=True):
    title: str
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]
    advice: Sequence[str]
    remarks: Sequence[tuple[str, str]]
    jobs: Table
    shapes: Table
    scene: Scene


def tell(
    events: Iterable[Event],
    history: History,
    *,
    now: Timestamp | None,
    local_offset: float,
    show_time: ShowTime,
) -> Told | None:
    """`now`: None: nobody dispatches the run at present. `local_offset`: from the times here to
    those on the wall, in seconds; `show_time` writes one of them. None: there is no event."""
    account = account_of(events)
    if account is None:
        return None
    span = _span(account, history, now)
    gpus = _gpus(account, history)
    seconds = gpu_seconds([gpu.key for gpu in gpus], account.bars, history, span)
    commands = {row.job: row.spec.command for row in account.jobs}
    scene = Scene(gpus, account.bars, commands, history, span, seconds, local_offset)
    return Told(
        title=f"smartsched run {account.began.name}",
        facts=_facts(account, span, len(gpus), show_time),
        notes=_notes(account, history, now),
        advice=_advice(account, scene),
        remarks=[(show_time(at), text) for at, text in account.remarks[:_MOST_REMARKS]],
        jobs=_jobs(account.jobs, span, show_time),
        shapes=_shapes(account.shapes),
        scene=scene,
    )


def _span(account: Account, history: History, now: Timestamp | None) -> Span:
    begin = account.began.at
    ends = [account.last_at, *(bar.end for bar in account.bars if bar.end is not None)]
    if account.ended_at is None:
        ends += [at for at in (now, history.until) if at is not None]
    return begin, max(begin, *ends)


def _gpus(account: Account, history: History) -> list[GpuLine]:
    labels = {key: gpu.label for key, gpu in history.gpus.items()} | account.labels
    sizes = {key: gpu.memory_total_bytes for key, gpu in history.gpus.items()}
    in_order = sorted(labels, key=lambda key: (key.host, _place(labels[key]), key.uuid))
    return [GpuLine(key, words.printable(labels[key]), sizes.get(key)) for key in in_order]


def _place(label: str) -> tuple[int, ...]:
    return tuple(int(part) for part in label.rpartition("/")[2].split(":") if part.isdecimal())


def _facts(account: Account, span: Span, gpus: int, show_time: ShowTime) -> list[tuple[str, str]]:
    totals, rows = account.totals, account.jobs
    running = sum(1 for row in rows if row.status == "running")
    waiting = sum(1 for row in rows if row.status in ("waiting", "stopped"))
    facts = [
        ("began", show_time(span[0])),
        ("lasted", words.duration(span[1] - span[0])),
        ("host", words.printable(account.began.host)),
        ("GPUs", str(gpus)),
        ("jobs", f"{len(rows):,}"),
        ("ok", f"{totals.ok:,}"),
        ("failed", f"{totals.failed:,}"),
    ]
    facts += [(name, f"{number:,}") for name, number in _more(running, waiting) if number]
    if totals.yields:
        facts.append(("gave way", f"{totals.yields:,}"))
    facts.append(("GPU-hours", f"{totals.gpu_seconds / 3600:.2f}"))
    facts.append(("folder", words.printable(account.began.directory)))
    return facts


def _more(running: int, waiting: int) -> list[tuple[str, int]]:
    return [("running", running), ("to be done", waiting)]


def _notes(account: Account, history: History, now: Timestamp | None) -> list[str]:
    notes = []
    if now is not None and account.ended_at is None:
        notes.append("The run still goes on: this is how it stood.")
    elif account.ended_at is None:
        notes.append(
            "The last dispatcher of this run did not say that it ended; its jobs may still run:"
            f" smartsched --resume {account.began.name} goes on with it."
        )
    if not history.seen:
        notes.append(
            "What other people did meanwhile was not kept, so nobody can say what the time went to"
            " that was not ours."
        )
    return notes


def _advice(account: Account, scene: Scene) -> list[str]:
    seconds = total({key: dict(of) for key, of in scene.shares.items()})
    sizes = [gpu.memory_total_bytes for gpu in scene.gpus if gpu.memory_total_bytes]
    fits = what_would_fit(sizes, account.measured) if _had_gpus_alone(account) else None
    sentences = [] if fits is None else [fits]
    sentences += advice_on_time(seconds, jobs_wanted=any(q.why for q in scene.history.queue))
    return [text[0].upper() + text[1:] + "." for text in sentences]


def _had_gpus_alone(account: Account) -> bool:
    try:
        return bool(json.loads(account.options).get("jobs_per_gpu", "1") == "1")
    except (ValueError, AttributeError):
        return False


# --- tables


def _column(title: str, **kind: Any) -> dict[str, Any]:
    return {"title": title, **kind}


def _jobs(rows: Sequence[JobRow], span: Span, show_time: ShowTime) -> Table:
    columns = [
        _column("job", number=True),
        _column("command", kind="command"),
        _column("state", state=True),
        _column("GPU", kind="short"),
        _column("waited", number=True),
        _column("began", kind="short"),
        _column("took", number=True),
        _column("tries", number=True),
        _column("peak memory", number=True),
        _column("util", number=True),
        _column("how it ended"),
    ]
    return Table(columns, [_job(row, span, show_time) for row in rows])


def _job(row: JobRow, span: Span, show_time: ShowTime) -> list[Cell]:
    name = row.spec.wishes.name
    command = words.printable(row.spec.command)
    waited = (span[1] if row.began_at is None else row.began_at) - row.accepted_at
    return [
        (f"{row.job} {words.printable(name)}" if name else str(row.job), row.job),
        (command, command),
        (row.status, row.status),
        (row.gpus, row.gpus or None),
        (words.duration(waited), round(waited, 3)),
        _UNKNOWN if row.began_at is None else (show_time(row.began_at), round(row.began_at, 3)),
        _took(row, span),
        (str(row.attempts) if row.attempts else "", row.attempts),
        _size(row.peak_bytes),
        _percent(row.utilization_percent),
        (row.how, row.how or None),
    ]


def _took(row: JobRow, span: Span) -> Cell:
    seconds = row.seconds
    if row.status == "running" and row.began_at is not None:
        seconds = span[1] - row.began_at
    return _UNKNOWN if seconds is None else (words.duration(seconds), round(seconds, 3))


def _shapes(rows: Sequence[ShapeRow]) -> Table:
    columns = [
        _column("command shape", kind="command"),
        _column("runs", number=True),
        _column("peak memory", number=True),
        _column("util", number=True),
        _column("mean time", number=True),
        _column("longest", number=True),
    ]
    return Table(
        columns,
        [
            [
                (words.printable(row.shape), row.shape),
                (f"{row.runs:,}", row.runs),
                _size(row.peak_bytes),
                _percent(row.utilization_percent),
                (words.duration(row.mean_seconds), round(row.mean_seconds, 3)),
                (words.duration(row.longest_seconds), round(row.longest_seconds, 3)),
            ]
            for row in rows
        ],
    )


def _size(amount_bytes: int | None) -> Cell:
    return _UNKNOWN if amount_bytes is None else (words.size(amount_bytes), amount_bytes)


def _percent(percent: float | None) -> Cell:
    return _UNKNOWN if percent is None else (words.percent(percent), round(percent, 2))
