"""Snapshots as lines of JSON: what the sampler says to the dispatcher, and what recordings hold.

One object a line. Version 1:

    {"smartsched_sample": 1, "time": UNIX_SECONDS, "monotonic_s": SECONDS, "host": NAME,
     "whole": BOOL, "gpus": [GPU, ...]}

or, when the driver cannot be asked,

    {"smartsched_sample": 1, "time": ..., "monotonic_s": ..., "host": ...,
     "trouble": WORDS}

GPU: uuid, index, slot (null: a whole card), name, and either `unreadable` (why) or
memory_total_bytes, memory_used_bytes, memory_free_bytes, utilization_percent (null: not reported),
utilization_history (null: none kept; else pairs of age in seconds and percent, new since the last
line), compute_mode ("default", "exclusive", "prohibited"), ailment (null: healthy) and processes:
pid, kind ("compute", "graphics"), memory_bytes, utilization_percent (null or missing: unknown),
user, command, run_tag, session (null: unknown) and ancestors (pids). Readers ignore fields they do
not know; an incompatible change is a new version.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from smartsched.core.model import (
    GpuKey,
    GpuProcess,
    GpuReading,
    GpuSample,
    GpuUnreadable,
    GpuUuid,
    HostName,
    SamplerTrouble,
    Seen,
    Snapshot,
    UtilizationPoint,
)
from smartsched.errors import BadSnapshotError

VERSION = 1
_COMPUTE_MODES = ("default", "exclusive", "prohibited")
_KINDS = ("compute", "graphics")

T = TypeVar("T")
Fields = Mapping[str, Any]


def encode(observation: Seen, *, wall_time: float, monotonic_s: float) -> str:
    """One line, without its end. `monotonic_s` is when the reading began."""
    fields = as_object(observation, wall_time=wall_time, monotonic_s=monotonic_s)
    return json.dumps(fields, separators=(",", ":"))


def as_object(observation: Seen, *, wall_time: float, monotonic_s: float) -> dict[str, object]:
    """What is in the line."""
    record: dict[str, object] = {
        "smartsched_sample": VERSION,
        "time": round(wall_time, 3),
        "monotonic_s": monotonic_s,
        "host": observation.host,
    }
    if isinstance(observation, SamplerTrouble):
        record["trouble"] = observation.why
    else:
        record["whole"] = observation.whole
        record["gpus"] = [_encode_gpu(gpu) for gpu in observation.gpus]
    return record


def _encode_gpu(gpu: GpuReading) -> dict[str, object]:
    record: dict[str, object] = {
        "uuid": gpu.key.uuid,
        "index": gpu.index,
        "slot": gpu.slot,
        "name": gpu.name,
    }
    if isinstance(gpu, GpuUnreadable):
        record["unreadable"] = gpu.why
        return record
    history = gpu.utilization_history
    record |= {
        "memory_total_bytes": gpu.memory_total_bytes,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_free_bytes": gpu.memory_free_bytes,
        "utilization_percent": gpu.utilization_percent,
        "utilization_history": None
        if history is None
        else [[round(p.age_seconds, 3), p.percent] for p in history],
        "compute_mode": gpu.compute_mode,
        "ailment": gpu.ailment,
        "processes": [_encode_process(process) for process in gpu.processes],
    }
    return record


def _encode_process(process: GpuProcess) -> dict[str, object]:
    return {
        "pid": process.pid,
        "kind": process.kind,
        "memory_bytes": process.memory_bytes,
        "user": process.user,
        "command": process.command,
        "run_tag": process.run_tag,
        "session": process.session,
        "ancestors": list(process.ancestors),
        "utilization_percent": process.utilization_percent,
    }


def parse(line: str | bytes) -> Fields:
    """The object in a line, if it is one of ours. Raises BadSnapshotError with the reason."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadSnapshotError(f"not JSON: {error}") from error
    if not isinstance(record, dict) or "smartsched_sample" not in record:
        raise BadSnapshotError("not a sample of smartsched")
    if record["smartsched_sample"] != VERSION:
        raise BadSnapshotError(
            f"sample version {record['smartsched_sample']!r} is not {VERSION};"
            " it was made by another version of smartsched"
        )
    return record


def monotonic_seconds(fields: Fields) -> float:
    return _number(fields, "monotonic_s")


def wall_seconds(fields: Fields) -> float:
    return _number(fields, "time")


def decode(fields: Fields, *, taken_at: float, host: HostName | None = None) -> Seen:
    """What the fields say, with `taken_at` as its time, and of `host` whatever they say of that
    (recordings travel). Raises BadSnapshotError."""
    host = host or HostName(_text(fields, "host"))
    if "trouble" in fields:
        return SamplerTrouble(host, _text(fields, "trouble"))
    gpus = tuple(_decode_gpu(host, gpu) for gpu in _objects(fields, "gpus"))
    return Snapshot(host, taken_at, gpus, whole=_typed(fields, "whole", bool))


def _decode_gpu(host: HostName, fields: Fields) -> GpuReading:
    key = GpuKey(host, GpuUuid(_text(fields, "uuid")))
    index, slot = _count(fields, "index"), _optional(fields, "slot", _count)
    name = _text(fields, "name")
    if "unreadable" in fields:
        return GpuUnreadable(key, index, slot, name, _text(fields, "unreadable"))
    total = _count(fields, "memory_total_bytes")
    if total == 0:
        raise BadSnapshotError("memory_total_bytes is 0")
    mode = _text(fields, "compute_mode")
    if mode not in _COMPUTE_MODES:
        raise BadSnapshotError(f"compute_mode is {mode!r}")
    return GpuSample(
        key=key,
        index=index,
        slot=slot,
        name=name,
        memory_total_bytes=total,
        memory_used_bytes=_count(fields, "memory_used_bytes"),
        memory_free_bytes=_count(fields, "memory_free_bytes"),
        utilization_percent=_optional(fields, "utilization_percent", _count),
        utilization_history=_optional(fields, "utilization_history", _history),
        compute_mode=mode,  # type: ignore[arg-type]  # checked above
        ailment=_optional(fields, "ailment", _text),
        processes=tuple(map(_decode_process, _objects(fields, "processes"))),
    )


def _decode_process(fields: Fields) -> GpuProcess:
    kind = _text(fields, "kind")
    if kind not in _KINDS:
        raise BadSnapshotError(f"kind of process is {kind!r}")
    return GpuProcess(
        pid=_count(fields, "pid"),
        kind=kind,  # type: ignore[arg-type]  # checked above
        memory_bytes=_optional(fields, "memory_bytes", _count),
        user=_optional(fields, "user", _text),
        command=_optional(fields, "command", _text),
        run_tag=_optional(fields, "run_tag", _text),
        session=_optional(fields, "session", _count),
        ancestors=tuple(pid for pid in _list(fields, "ancestors") if isinstance(pid, int)),
        utilization_percent=_optional(fields, "utilization_percent", _percent),
    )


def _history(fields: Fields, name: str) -> tuple[UtilizationPoint, ...]:
    points = []
    for entry in _list(fields, name):
        match entry:
            case [int() | float() as age, int(percent)] if 0 <= age < 1e9 and 0 <= percent < 1e9:
                points.append(UtilizationPoint(float(age), percent))
            case _:
                raise BadSnapshotError(f"{name} holds {entry!r}")
    return tuple(points)


def _objects(fields: Fields, name: str) -> list[Fields]:
    entries = _list(fields, name)
    if not all(isinstance(entry, dict) for entry in entries):
        raise BadSnapshotError(f"{name} holds something else than objects")
    return entries


def _list(fields: Fields, name: str) -> list[Any]:
    return _typed(fields, name, list)


def _text(fields: Fields, name: str) -> str:
    return _typed(fields, name, str)


def _count(fields: Fields, name: str) -> int:
    value = _typed(fields, name, int)
    if not 0 <= value < 2**63 or isinstance(value, bool):
        raise BadSnapshotError(f"{name} is {value!r}")
    return value


def _percent(fields: Fields, name: str) -> int:
    value = _count(fields, name)
    if value > 100:
        raise BadSnapshotError(f"{name} is {value!r}")
    return value


def _number(fields: Fields, name: str) -> float:
    value = fields.get(name)
    # NaN is not equal to itself, and json reads it
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise BadSnapshotError(f"{name} is {value!r}")
    return float(value)


def _optional(fields: Fields, name: str, decode_it: Callable[[Fields, str], T]) -> T | None:
    return None if fields.get(name) is None else decode_it(fields, name)


def _typed(fields: Fields, name: str, wanted: type[T]) -> T:
    if name not in fields:
        raise BadSnapshotError(f"{name} is missing")
    value = fields[name]
    if not isinstance(value, wanted):
        raise BadSnapshotError(f"{name} is {value!r}, which is no {wanted.__name__}")
    return value
