"""How the nouns stand in JSON, wherever they do: in the journal, and between dispatcher and agents.

Reading raises KeyError, TypeError, ValueError or AttributeError for what cannot be one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    PlacedGpu,
    Placement,
    Position,
    ProcessId,
    RunKey,
    Wishes,
)


class Form(NamedTuple):
    """How a value is written and read; reading raises for what cannot be one."""

    to_json: Callable[[Any], Any]
    of_json: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def exactly(kind: type) -> Callable[[Any], Any]:
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


def optional(form: Form) -> Form:
    return Form(
        lambda value: None if value is None else form.to_json(value),
        lambda value: None if value is None else form.of_json(value),
    )


def list_of(form: Form) -> Form:
    return Form(
        lambda values: [form.to_json(value) for value in values],
        lambda values: tuple(form.of_json(value) for value in exactly(list)(values)),
    )


def one_of(*words: str) -> Form:
    def check(value: Any) -> Any:
        if value not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return value

    return Form(_same, check)


TEXT = Form(_same, exactly(str))
FLAG = Form(_same, exactly(bool))
COUNT = Form(_same, _count)
TIME = Form(_same, _number)
INTEGER = Form(_same, exactly(int))
_WISHES: dict[str, Form] = {
    "gpus": COUNT,
    "memory_bytes": COUNT,
    "utilization_percent": TIME,
    "priority": INTEGER,
    "timeout_seconds": TIME,
    "name": TEXT,
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
        exactly(str)(value["command"]),
        exactly(str)(value["source"]),
        exactly(str)(value["directory"]),
        Wishes(**{name: _WISHES[name].of_json(wish) for name, wish in wishes.items()}),
    )


_NO_WISHES = Wishes()
SPEC = Form(_spec_to_json, _spec_of_json)
POSITION = Form(list, lambda value: Position(*map(_count, exactly(list)(value))))
RUN = Form(list, lambda value: _run_key(*exactly(list)(value)))
GPU = Form(list, lambda value: _gpu_key(*exactly(list)(value)))
PROCESS = Form(list, lambda value: _process_id(*exactly(list)(value)))


def _run_key(job: Any, attempt: Any) -> RunKey:
    return RunKey(JobId(_count(job)), _count(attempt))


def _gpu_key(host: Any, uuid: Any) -> GpuKey:
    return GpuKey(HostName(exactly(str)(host)), GpuUuid(exactly(str)(uuid)))


def _process_id(pid: Any, start_ticks: Any, boot: Any) -> ProcessId:
    return ProcessId(_count(pid), _count(start_ticks), exactly(str)(boot))


def _placement_to_json(placement: Placement) -> list[dict[str, Any]] | dict[str, Any]:
    if placement.elsewhere:
        return {"host": placement.elsewhere}
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
    if isinstance(value, dict):
        return Placement((), HostName(exactly(str)(value["host"])))
    return Placement(
        tuple(
            PlacedGpu(
                GPU.of_json(gpu["gpu"]),
                exactly(str)(gpu["label"]),
                exactly(str)(gpu["visible"]),
                _count(gpu["unexplained_bytes"]),
                optional(COUNT).of_json(gpu.get("reserved_bytes")),
                _number(gpu.get("percent", 100.0)),
                _count(gpu.get("strangers_bytes", 0)),
            )
            for gpu in exactly(list)(value)
        )
    )


PLACEMENT = Form(_placement_to_json, _placement_of_json)


def _ending_to_json(ending: Ending) -> dict[str, Any]:
    match ending:
        case Exited(code):
            return {"exited": code}
        case Killed(signum):
            return {"killed": signum}
        case NotStarted(why, for_good):
            return {"not_started": why, **({"for_good": True} if for_good else {})}
        case Lost(why):
            return {"lost": True, **({"why": why} if why else {})}


def _ending_of_json(value: Any) -> Ending:
    match value:
        case {"exited": code}:
            return Exited(exactly(int)(code))
        case {"killed": signum}:
            return Killed(exactly(int)(signum))
        case {"not_started": str(why)}:
            return NotStarted(why, for_good="for_good" in value)
        case {"lost": True}:
            return Lost(exactly(str)(value.get("why", "")))
        case _:
            raise ValueError(f"{value!r} is no ending")


ENDING = Form(_ending_to_json, _ending_of_json)
