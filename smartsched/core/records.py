"""Events as lines of JSON: what the journal holds.

One object a line: `seq` (1, 2, 3 ... without a gap), `event` (a name from the table below), the
event's fields, and last `crc`: the CRC-32 of the line's bytes before `,"crc"`, as eight hexadecimal
digits. The first line is a `run_began` and says the version of all, as `smartsched_journal`.

Version 1 is what this table says. A journal is read for ever: a field may be added with a default,
and an event; whatever else changes is a new version beside the old one.
"""

import json
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
from msgspec.structs import fields

from smartsched.core import events
from smartsched.core.events import Event
from smartsched.core.forms import (
    COUNT,
    ENDING,
    FLAG,
    GPU,
    PLACEMENT,
    POSITION,
    PROCESS,
    RUN,
    SPEC,
    TEXT,
    TIME,
    Form,
    list_of,
    one_of,
    optional,
)
from smartsched.core.model import Outcome, RequeueReason, StopReason
from smartsched.core.sealed import seal, unseal
from smartsched.errors import JournalDamagedError

VERSION = 1
_ENCODER = msgspec.json.Encoder()
_NAME_WITHIN_BYTES = 120


STOP_REASON = one_of(*typing.get_args(StopReason))

_Table = dict[str, tuple[type[Any], dict[str, Form]]]
_TABLE: _Table = {
    "run_began": (
        events.RunBegan,
        {
            "at": TIME,
            "name": TEXT,
            "host": TEXT,
            "directory": TEXT,
            "inputs": list_of(TEXT),
            "command": optional(TEXT),
            "options": TEXT,
            "id": TEXT,
            "place": TEXT,
            "lost_after_seconds": optional(TIME),
        },
    ),
    "run_resumed": (
        events.RunResumed,
        {
            "at": TIME,
            "host": TEXT,
            "options": TEXT,
            "failed_too": FLAG,
            "place": TEXT,
            "lost_after_seconds": optional(TIME),
        },
    ),
    "list_replaced": (events.ListReplaced, {"at": TIME, "inputs": list_of(TEXT)}),
    "failures_dropped": (events.FailuresDropped, {"at": TIME, "jobs": list_of(COUNT)}),
    "input_read": (events.InputRead, {"at": TIME, "number": COUNT, "size_bytes": COUNT}),
    "job_accepted": (
        events.JobAccepted,
        {"at": TIME, "job": COUNT, "spec": SPEC, "read_to": optional(POSITION)},
    ),
    "job_recalled": (
        events.JobRecalled,
        {
            "at": TIME,
            "job": COUNT,
            "spec": SPEC,
            "attempts": COUNT,
            "read_to": optional(POSITION),
        },
    ),
    "line_rejected": (
        events.LineRejected,
        {"at": TIME, "source": TEXT, "why": TEXT, "read_to": optional(POSITION)},
    ),
    "input_ended": (events.InputEnded, {"at": TIME}),
    "jobs_added": (
        events.JobsAdded,
        {"at": TIME, "request": TEXT, "first": COUNT, "specs": list_of(SPEC)},
    ),
    "jobs_cancelled": (
        events.JobsCancelled,
        {"at": TIME, "request": TEXT, "jobs": list_of(COUNT), "rest": FLAG},
    ),
    "jobs_retried": (
        events.JobsRetried,
        {"at": TIME, "request": TEXT, "jobs": list_of(COUNT)},
    ),
    "run_paused": (events.RunPaused, {"at": TIME, "request": TEXT}),
    "run_continued": (events.RunContinued, {"at": TIME, "request": TEXT}),
    "options_set": (events.OptionsSet, {"at": TIME, "request": TEXT, "options": TEXT}),
    "request_refused": (events.RequestRefused, {"at": TIME, "request": TEXT, "why": TEXT}),
    "drain_requested": (events.DrainRequested, {"at": TIME, "why": TEXT}),
    "stop_requested": (events.StopRequested, {"at": TIME, "why": TEXT}),
    "wait_timed_out": (events.WaitTimedOut, {"at": TIME}),
    "run_placed": (events.RunPlaced, {"at": TIME, "run": RUN, "placement": PLACEMENT}),
    "run_launched": (
        events.RunLaunched,
        {"at": TIME, "run": RUN, "process": PROCESS, "log": optional(TEXT)},
    ),
    "run_adopted": (events.RunAdopted, {"at": TIME, "run": RUN, "since": TIME}),
    "run_postponed": (events.RunPostponed, {"at": TIME, "run": RUN, "why": TEXT}),
    "run_revoked": (events.RunRevoked, {"at": TIME, "run": RUN}),
    "run_stopping": (
        events.RunStopping,
        {"at": TIME, "run": RUN, "why": STOP_REASON, "who": TEXT},
    ),
    "run_killed": (events.RunKilled, {"at": TIME, "run": RUN}),
    "run_exited": (
        events.RunExited,
        {
            "at": TIME,
            "run": RUN,
            "ending": ENDING,
            "leftovers": COUNT,
            "out_of_memory": TEXT,
        },
    ),
    "run_measured": (
        events.RunMeasured,
        {
            "at": TIME,
            "run": RUN,
            "shape": TEXT,
            "peak_bytes": COUNT,
            "utilization_percent": optional(TIME),
            "seconds": TIME,
        },
    ),
    "job_finished": (
        events.JobFinished,
        {"at": TIME, "run": RUN, "outcome": one_of(*typing.get_args(Outcome))},
    ),
    "job_requeued": (
        events.JobRequeued,
        {
            "at": TIME,
            "run": RUN,
            "why": one_of(*typing.get_args(RequeueReason)),
            "not_before": TIME,
            "needs_bytes": optional(COUNT),
            "alone": FLAG,
        },
    ),
    "gpu_withheld": (events.GpuWithheld, {"at": TIME, "gpu": GPU, "runs": list_of(RUN)}),
    "halted": (events.Halted, {"at": TIME, "why": TEXT, "stop": FLAG}),
    "run_cleared": (events.RunCleared, {"at": TIME, "run": RUN}),
    "gpu_released": (events.GpuReleased, {"at": TIME, "gpu": GPU, "run": RUN}),
    "run_closed": (
        events.RunClosed,
        {
            "at": TIME,
            "complete": FLAG,
            "failed": COUNT,
            "ok": COUNT,
            "cancelled": COUNT,
            "left": COUNT,
        },
    ),
}
_NAMES = {kind: name for name, (kind, _) in _TABLE.items()}
# By name: what makes the event, and its fields in the order in which that takes them.
_READERS = {
    name: (kind, [(each.name, forms[each.name].of_json) for each in fields(kind)])
    for name, (kind, forms) in _TABLE.items()
}


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
    return seal(_to_json(record))


def decode_line(line: bytes, seq: int) -> Event:
    """The event in a line, without its end, that should have this number. Raises
    JournalDamagedError."""
    text = unseal(line + b"\n")
    if text is None:
        raise JournalDamagedError("its checksum does not match")
    try:
        record = _of_json(text)
        if record["seq"] != seq:
            raise JournalDamagedError(f"it is record {record['seq']}, not {seq}: some are missing")
        _check_version(record, first=seq == 1)
        return event_of(record)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise JournalDamagedError(f"not what this version of smartsched writes: {why}") from error


def _to_json(record: dict[str, Any]) -> bytes:
    """In ASCII. msgspec takes a tenth of the time, but writes other letters as they are, and has no
    way to write what is no Unicode, such as a command in another encoding."""
    with suppress(UnicodeEncodeError):
        if (text := _ENCODER.encode(record)).isascii():
            return text
    return json.dumps(record, separators=(",", ":")).encode()


def _of_json(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.loads(str(text, "utf-8"))


def _check_version(record: Mapping[str, Any], *, first: bool) -> None:
    if first != (record["event"] == "run_began"):
        raise JournalDamagedError("a journal begins with run_began, which comes just once")
    if first and record["smartsched_journal"] != VERSION:
        raise JournalDamagedError(
            f"it is of version {record['smartsched_journal']!r}, not {VERSION}:"
            " another version of smartsched wrote it"
        )


def event_of(record: Mapping[str, Any]) -> Event:
    """What `as_object` was made of. Raises what forms do."""
    kind, readers = _READERS[record["event"]]
    event: Event
    if all(name in record for name, _ in readers):
        event = kind(*[of_json(record[name]) for name, of_json in readers])
    else:
        event = kind(**{n: of_json(record[n]) for n, of_json in readers if n in record})
    return event


def name_of(kind: type[Event]) -> bytes:
    """Under which a journal has this kind of event."""
    return _NAMES[kind].encode()


def name_in(line: bytes) -> bytes:
    """Of the event in a line; b"": it is none of ours. Nothing else is looked at."""
    _, _, rest = line[:_NAME_WITHIN_BYTES].partition(b'"event":"')
    return rest.partition(b'"')[0]
