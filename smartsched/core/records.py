"""Events as lines of JSON: what the journal holds.

One object a line: `seq` (1, 2, 3 ... without a gap), `event` (a name from the table below), the
event's fields, and last `crc`: the CRC-32 of the line's bytes before `,"crc"`, as eight hexadecimal
digits. The first line is a `run_began` and says the version of all, as `smartsched_journal`.

Version 1 is what this table says. A journal is read for ever: a field may be added with a default,
and an event; whatever else changes is a new version beside the old one.
"""

import json
import typing
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from smartsched.core import events
from smartsched.core.events import Event
from smartsched.core.model import (
    Ending,
    Exited,
    GpuKey,
    GpuUuid,
    HostName,
    JobId,
    JobSpec,
    Killed,
    Lost,
    NotStarted,
    Outcome,
    PlacedGpu,
    Placement,
    Position,
    ProcessId,
    RequeueReason,
    RunKey,
    StopReason,
    Wishes,
)
from smartsched.errors import JournalDamagedError

VERSION = 1
_CRC = b',"crc":"'
_CRC_BYTES = len(_CRC) + 8 + len(b'"}')


class _Form(NamedTuple):
    """How a value is written and read; reading raises for what cannot be one."""

    to_json: Callable[[Any], Any]
    of_json: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _exactly(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return value

    return check


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e15:
        raise TypeError(f"{value!r} is no time")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError(f"{value!r} is no count")
    return value


def _optional(form: _Form) -> _Form:
    return _Form(
        lambda value: None if value is None else form.to_json(value),
        lambda value: None if value is None else form.of_json(value),
    )


def _list_of(form: _Form) -> _Form:
    return _Form(
        lambda values: [form.to_json(value) for value in values],
        lambda values: tuple(form.of_json(value) for value in _exactly(list)(values)),
    )


def _one_of(*words: str) -> _Form:
    def check(value: Any) -> Any:
        if value not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return value

    return _Form(_same, check)


_TEXT = _Form(_same, _exactly(str))
_FLAG = _Form(_same, _exactly(bool))
_COUNT = _Form(_same, _count)
_TIME = _Form(_same, _number)
_INTEGER = _Form(_same, _exactly(int))
_WISHES: dict[str, _Form] = {
    "gpus": _COUNT,
    "memory_bytes": _COUNT,
    "utilization_percent": _TIME,
    "priority": _INTEGER,
    "timeout_seconds": _TIME,
    "name": _TEXT,
}


def _spec_to_json(spec: JobSpec) -> dict[str, Any]:
    wishes = {
        name: form.to_json(value)
        for name, form in _WISHES.items()
        if (value := getattr(spec.wishes, name)) != getattr(_NO_WISHES, name)
    }
    plain = {"command": spec.command, "source": spec.source, "directory": spec.directory}
    return plain | {"wishes": wishes} if wishes else plain


def _spec_of_json(value: Any) -> JobSpec:
    wishes = value.get("wishes", {})
    return JobSpec(
        _exactly(str)(value["command"]),
        _exactly(str)(value["source"]),
        _exactly(str)(value["directory"]),
        Wishes(**{name: _WISHES[name].of_json(wish) for name, wish in wishes.items()}),
    )


_NO_WISHES = Wishes()
_SPEC = _Form(_spec_to_json, _spec_of_json)
_POSITION = _Form(list, lambda value: Position(*map(_count, _exactly(list)(value))))
_RUN = _Form(list, lambda value: _run_key(*_exactly(list)(value)))
_GPU = _Form(list, lambda value: _gpu_key(*_exactly(list)(value)))
_PROCESS = _Form(list, lambda value: _process_id(*_exactly(list)(value)))


def _run_key(job: Any, attempt: Any) -> RunKey:
    return RunKey(JobId(_count(job)), _count(attempt))


def _gpu_key(host: Any, uuid: Any) -> GpuKey:
    return GpuKey(HostName(_exactly(str)(host)), GpuUuid(_exactly(str)(uuid)))


def _process_id(pid: Any, start_ticks: Any, boot: Any) -> ProcessId:
    return ProcessId(_count(pid), _count(start_ticks), _exactly(str)(boot))


def _placement_to_json(placement: Placement) -> list[dict[str, Any]]:
    return [
        {
            "gpu": list(gpu.key),
            "label": gpu.label,
            "visible": gpu.visible,
            "unexplained_bytes": gpu.unexplained_bytes,
            "reserved_bytes": gpu.reserved_bytes,
            "percent": gpu.percent,
            "strangers_bytes": gpu.strangers_bytes,
        }
        for gpu in placement.gpus
    ]


def _placement_of_json(value: Any) -> Placement:
    return Placement(
        tuple(
            PlacedGpu(
                _GPU.of_json(gpu["gpu"]),
                _exactly(str)(gpu["label"]),
                _exactly(str)(gpu["visible"]),
                _count(gpu["unexplained_bytes"]),
                _optional(_COUNT).of_json(gpu.get("reserved_bytes")),
                _number(gpu.get("percent", 100.0)),
                _count(gpu.get("strangers_bytes", 0)),
            )
            for gpu in _exactly(list)(value)
        )
    )


_PLACEMENT = _Form(_placement_to_json, _placement_of_json)


def _ending_to_json(ending: Ending) -> dict[str, Any]:
    match ending:
        case Exited(code):
            return {"exited": code}
        case Killed(signum):
            return {"killed": signum}
        case NotStarted(why, for_good):
            return {"not_started": why, **({"for_good": True} if for_good else {})}
        case Lost():
            return {"lost": True}


def _ending_of_json(value: Any) -> Ending:
    match value:
        case {"exited": code}:
            return Exited(_exactly(int)(code))
        case {"killed": signum}:
            return Killed(_exactly(int)(signum))
        case {"not_started": str(why)}:
            return NotStarted(why, for_good="for_good" in value)
        case {"lost": True}:
            return Lost()
        case _:
            raise ValueError(f"{value!r} is no ending")


_ENDING = _Form(_ending_to_json, _ending_of_json)
_STOP_REASON = _one_of(*typing.get_args(StopReason))

_Table = dict[str, tuple[type[Any], dict[str, _Form]]]
_TABLE: _Table = {
    "run_began": (
        events.RunBegan,
        {
            "at": _TIME,
            "name": _TEXT,
            "host": _TEXT,
            "directory": _TEXT,
            "inputs": _list_of(_TEXT),
            "command": _optional(_TEXT),
            "options": _TEXT,
            "id": _TEXT,
            "place": _TEXT,
        },
    ),
    "run_resumed": (
        events.RunResumed,
        {"at": _TIME, "host": _TEXT, "options": _TEXT, "failed_too": _FLAG, "place": _TEXT},
    ),
    "list_replaced": (events.ListReplaced, {"at": _TIME, "inputs": _list_of(_TEXT)}),
    "failures_dropped": (events.FailuresDropped, {"at": _TIME, "jobs": _list_of(_COUNT)}),
    "input_read": (events.InputRead, {"at": _TIME, "number": _COUNT, "size_bytes": _COUNT}),
    "job_accepted": (
        events.JobAccepted,
        {"at": _TIME, "job": _COUNT, "spec": _SPEC, "read_to": _optional(_POSITION)},
    ),
    "job_recalled": (
        events.JobRecalled,
        {
            "at": _TIME,
            "job": _COUNT,
            "spec": _SPEC,
            "attempts": _COUNT,
            "read_to": _optional(_POSITION),
        },
    ),
    "line_rejected": (
        events.LineRejected,
        {"at": _TIME, "source": _TEXT, "why": _TEXT, "read_to": _optional(_POSITION)},
    ),
    "input_ended": (events.InputEnded, {"at": _TIME}),
    "jobs_added": (
        events.JobsAdded,
        {"at": _TIME, "request": _TEXT, "first": _COUNT, "specs": _list_of(_SPEC)},
    ),
    "jobs_cancelled": (
        events.JobsCancelled,
        {"at": _TIME, "request": _TEXT, "jobs": _list_of(_COUNT), "rest": _FLAG},
    ),
    "jobs_retried": (
        events.JobsRetried,
        {"at": _TIME, "request": _TEXT, "jobs": _list_of(_COUNT)},
    ),
    "run_paused": (events.RunPaused, {"at": _TIME, "request": _TEXT}),
    "run_continued": (events.RunContinued, {"at": _TIME, "request": _TEXT}),
    "options_set": (events.OptionsSet, {"at": _TIME, "request": _TEXT, "options": _TEXT}),
    "request_refused": (events.RequestRefused, {"at": _TIME, "request": _TEXT, "why": _TEXT}),
    "drain_requested": (events.DrainRequested, {"at": _TIME, "why": _TEXT}),
    "stop_requested": (events.StopRequested, {"at": _TIME, "why": _TEXT}),
    "wait_timed_out": (events.WaitTimedOut, {"at": _TIME}),
    "run_placed": (events.RunPlaced, {"at": _TIME, "run": _RUN, "placement": _PLACEMENT}),
    "run_launched": (
        events.RunLaunched,
        {"at": _TIME, "run": _RUN, "process": _PROCESS, "log": _optional(_TEXT)},
    ),
    "run_adopted": (events.RunAdopted, {"at": _TIME, "run": _RUN, "since": _TIME}),
    "run_postponed": (events.RunPostponed, {"at": _TIME, "run": _RUN, "why": _TEXT}),
    "run_revoked": (events.RunRevoked, {"at": _TIME, "run": _RUN}),
    "run_stopping": (
        events.RunStopping,
        {"at": _TIME, "run": _RUN, "why": _STOP_REASON, "who": _TEXT},
    ),
    "run_killed": (events.RunKilled, {"at": _TIME, "run": _RUN}),
    "run_exited": (
        events.RunExited,
        {
            "at": _TIME,
            "run": _RUN,
            "ending": _ENDING,
            "leftovers": _COUNT,
            "out_of_memory": _TEXT,
        },
    ),
    "run_measured": (
        events.RunMeasured,
        {
            "at": _TIME,
            "run": _RUN,
            "shape": _TEXT,
            "peak_bytes": _COUNT,
            "utilization_percent": _optional(_TIME),
            "seconds": _TIME,
        },
    ),
    "job_finished": (
        events.JobFinished,
        {"at": _TIME, "run": _RUN, "outcome": _one_of(*typing.get_args(Outcome))},
    ),
    "job_requeued": (
        events.JobRequeued,
        {
            "at": _TIME,
            "run": _RUN,
            "why": _one_of(*typing.get_args(RequeueReason)),
            "not_before": _TIME,
            "needs_bytes": _optional(_COUNT),
            "alone": _FLAG,
        },
    ),
    "gpu_withheld": (events.GpuWithheld, {"at": _TIME, "gpu": _GPU, "runs": _list_of(_RUN)}),
    "halted": (events.Halted, {"at": _TIME, "why": _TEXT, "stop": _FLAG}),
    "run_cleared": (events.RunCleared, {"at": _TIME, "run": _RUN}),
    "gpu_released": (events.GpuReleased, {"at": _TIME, "gpu": _GPU, "run": _RUN}),
    "run_closed": (
        events.RunClosed,
        {
            "at": _TIME,
            "complete": _FLAG,
            "failed": _COUNT,
            "ok": _COUNT,
            "cancelled": _COUNT,
            "left": _COUNT,
        },
    ),
}
_NAMES = {kind: name for name, (kind, _) in _TABLE.items()}


def as_object(event: Event) -> dict[str, Any]:
    """The event as JSON would have it, `event` first."""
    name = _NAMES[type(event)]
    record: dict[str, Any] = {"event": name}
    for field, form in _TABLE[name][1].items():
        record[field] = form.to_json(getattr(event, field))
    return record


def encode(event: Event, seq: int) -> bytes:
    """One line, its end included."""
    record: dict[str, Any] = {"seq": seq}
    if isinstance(event, events.RunBegan):
        record["smartsched_journal"] = VERSION
    record |= as_object(event)
    body = json.dumps(record, separators=(",", ":")).encode()[:-1]
    return b'%s%s%08x"}\n' % (body, _CRC, zlib.crc32(body))


def decode_line(line: bytes, seq: int) -> Event:
    """The event in a line, without its end, that should have this number. Raises
    JournalDamagedError."""
    body, crc = line[:-_CRC_BYTES], line[-_CRC_BYTES:]
    if crc != b'%s%08x"}' % (_CRC, zlib.crc32(body)):
        raise JournalDamagedError("its checksum does not match")
    try:
        record = json.loads(body + b"}")
        if record["seq"] != seq:
            raise JournalDamagedError(f"it is record {record['seq']}, not {seq}: some are missing")
        _check_version(record, first=seq == 1)
        return _event(record)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise JournalDamagedError(f"not what this version of smartsched writes: {why}") from error


def _check_version(record: Mapping[str, Any], *, first: bool) -> None:
    if first != (record["event"] == "run_began"):
        raise JournalDamagedError("a journal begins with run_began, which comes just once")
    if first and record["smartsched_journal"] != VERSION:
        raise JournalDamagedError(
            f"it is of version {record['smartsched_journal']!r}, not {VERSION}:"
            " another version of smartsched wrote it"
        )


def _event(record: Mapping[str, Any]) -> Event:
    kind, forms = _TABLE[record["event"]]
    values = {}
    for name, form in forms.items():
        if name in record:
            values[name] = form.of_json(record[name])
    event: Event = kind(**values)
    return event
