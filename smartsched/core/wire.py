"""Messages between dispatcher and agents as bytes of JSON.

Both ends are of the same version of smartsched (an agent of another is refused when it joins), so
this form is nobody else's; still, reading trusts nothing. The first byte says whether somebody
waits for the message: "!" he does, "." it can wait.
"""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from msgspec.structs import asdict, replace

from smartsched.core import codec, hours, records
from smartsched.core.actions import Checkpoint, Claim, Kill, Launch, Release, Terminate
from smartsched.core.forms import (
    COUNT,
    FLAG,
    GPU,
    PLACEMENT,
    PROCESS,
    RUN,
    SPEC,
    TEXT,
    TIME,
    Form,
    exactly,
    list_of,
    optional,
)
from smartsched.core.messages import (
    AgentEvent,
    Chunk,
    Expect,
    Fetched,
    Hello,
    Leave,
    Look,
    Order,
    Orders,
    Report,
)
from smartsched.core.model import (
    ClaimAnswer,
    Claimed,
    ClaimGranted,
    ClaimRefused,
    GpuUuid,
    HostName,
    Job,
    JobSpec,
    Lingering,
    Run,
    RunKey,
    Running,
    RunStatus,
    Seen,
    Snapshot,
    Starting,
    Stopping,
)
from smartsched.errors import BadMessageError, SmartschedError

T = TypeVar("T")
URGENT, ROUTINE = b"!", b"."
_MALFORMED = (
    KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError, SmartschedError,
)  # fmt: skip
_AGENT_EVENTS = (
    "run_launched", "run_postponed", "run_exited", "run_cleared", "run_adopted", "run_revoked",
)  # fmt: skip


def is_routine(message: bytes) -> bool:
    """Whether nobody waits for it."""
    return message.startswith(ROUTINE)


def encode_orders(orders: Orders) -> bytes:
    return _bytes(
        {
            "number": orders.number,
            "sent_at": orders.sent_at,
            "orders": [_order_to_json(order) for order in orders.orders],
            "acknowledged": orders.acknowledged,
            "renewed": orders.renewed,
        },
        URGENT,
    )


def decode_orders(message: bytes) -> Orders:
    """Raises BadMessageError."""
    return _read(
        message,
        lambda it: Orders(
            COUNT.of_json(it["number"]),
            TIME.of_json(it["sent_at"]),
            tuple(_order_of_json(order) for order in exactly(list)(it["orders"])),
            COUNT.of_json(it["acknowledged"]),
            optional(TIME).of_json(it["renewed"]),
        ),
    )


def encode_report(report: Report) -> bytes:
    return _bytes(
        {
            "sent_at": report.sent_at,
            "obeyed": report.obeyed,
            "heard": report.heard,
            "seen": [_seen_to_json(seen) for seen in report.seen],
            "events": [[number, records.as_object(event)] for number, event in report.events],
            "living": sorted(report.living),
            "answers": [_answer_to_json(answer) for answer in report.answers],
            "chunks": [_chunk_to_json(chunk) for chunk in report.chunks],
            "leaves": report.leaves,
            "is_unfit": report.is_unfit,
            "has_logs": report.has_logs,
        },
        URGENT if report.is_urgent else ROUTINE,
    )


def decode_report(message: bytes, host: HostName) -> Report:
    """What it says is about `host`, whatever it says. Raises BadMessageError."""
    return _read(
        message,
        lambda it: Report(
            TIME.of_json(it["sent_at"]),
            COUNT.of_json(it["obeyed"]),
            optional(_PAIR).of_json(it["heard"]),
            tuple(_seen_of_json(seen, host) for seen in exactly(list)(it["seen"])),
            tuple(_event_of_json(event) for event in exactly(list)(it["events"])),
            frozenset(RUN.of_json(run) for run in exactly(list)(it["living"])),
            tuple(_answer_of_json(answer, host) for answer in exactly(list)(it["answers"])),
            tuple(_chunk_of_json(chunk) for chunk in exactly(list)(it["chunks"])),
            FLAG.of_json(it["leaves"]),
            FLAG.of_json(it["is_unfit"]),
            FLAG.of_json(it["has_logs"]),
            not is_routine(message),
        ),
    )


def encode_hello(hello: Hello) -> bytes:
    caps = {"most_gpus": hours.words(hello.most_gpus), "leave_free": hours.words(hello.leave_free)}
    return _bytes(asdict(hello) | caps, URGENT)


def decode_hello(message: bytes) -> Hello:
    """Raises BadMessageError."""
    return _read(
        message,
        lambda it: Hello(
            TEXT.of_json(it["version"]),
            TEXT.of_json(it["agent"]),
            TEXT.of_json(it["node"]),
            COUNT.of_json(it["cores"]),
            FLAG.of_json(it["shares_logs"]),
            TEXT.of_json(it["pilot"]),
            TIME.of_json(it["sent_at"]),
            exactly(dict)(it["more"]),
            FLAG.of_json(it["is_unfit"]),
            TEXT.of_json(it["machine"]),
            _cap_of_json(it["most_gpus"]),
            _cap_of_json(it["leave_free"]),
        ),
    )


def _bytes(value: Mapping[str, Any], mark: bytes) -> bytes:
    """As short as they can be: a command may be long, and of letters that are not ASCII's."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return mark + text.encode("utf-8", "surrogatepass")  # as json.loads takes bytes


def _read(message: bytes, make: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        return make(exactly(dict)(json.loads(message[1:])))
    except _MALFORMED as error:
        raise BadMessageError(f"{type(error).__name__}: {error}") from error


_NOT_SAID = JobSpec("", "", "")
_PAIR: Form = Form(list, lambda value: _pair(*exactly(list)(value)))
_GPUS = list_of(GPU)
_UUIDS = list_of(TEXT)
_ASKED: Form = Form(
    lambda pairs: [[list(gpu), size] for gpu, size in pairs],
    lambda pairs: tuple(
        (GPU.of_json(gpu), COUNT.of_json(size)) for gpu, size in exactly(list)(pairs)
    ),
)


def _cap_of_json(value: Any) -> hours.Cap:
    text = TEXT.of_json(value)
    return hours.parse_cap(text) if text else hours.NO_CAP


def _pair(one: Any, other: Any) -> tuple[float, float]:
    return TIME.of_json(one), TIME.of_json(other)


def _order_to_json(order: Order) -> dict[str, Any]:  # noqa: C901, PLR0911  # a table
    match order:
        case Launch(run, spec, placement):
            return {
                "launch": list(run),
                "spec": SPEC.to_json(spec),
                "placement": PLACEMENT.to_json(placement),
            }
        case Terminate(run):
            return {"terminate": list(run)}
        case Checkpoint(run):
            return {"checkpoint": list(run)}
        case Kill(run):
            return {"kill": list(run)}
        case Claim(gpus):
            return {"claim": _ASKED.to_json(gpus)}
        case Release(gpus):
            return {"release": _GPUS.to_json(gpus)}
        case Look(gpus):
            return {"look": list(gpus)}
        case Expect(runs):
            return {"expect": [_run_to_json(run) for run in runs]}
        case Fetched(run, size):
            return {"fetched": list(run), "bytes": size}
        case Leave():
            return {"leave": True}


def _order_of_json(value: Any) -> Order:  # noqa: C901, PLR0911  # a table
    match value:
        case {"launch": run, "spec": spec, "placement": placement}:
            return Launch(RUN.of_json(run), SPEC.of_json(spec), PLACEMENT.of_json(placement))
        case {"terminate": run}:
            return Terminate(RUN.of_json(run))
        case {"checkpoint": run}:
            return Checkpoint(RUN.of_json(run))
        case {"kill": run}:
            return Kill(RUN.of_json(run))
        case {"claim": gpus}:
            return Claim(_ASKED.of_json(gpus))
        case {"release": gpus}:
            return Release(_GPUS.of_json(gpus))
        case {"look": gpus}:
            return Look(tuple(GpuUuid(TEXT.of_json(gpu)) for gpu in exactly(list)(gpus)))
        case {"expect": runs}:
            return Expect(tuple(_run_of_json(run) for run in exactly(list)(runs)))
        case {"fetched": run, "bytes": size}:
            return Fetched(RUN.of_json(run), COUNT.of_json(size))
        case {"leave": True}:
            return Leave()
        case _:
            raise ValueError(f"{value!r} is no order")


def _run_to_json(run: Run) -> dict[str, Any]:
    """Without its command: whoever looks for it looks for what it has left, and starts nothing."""
    return {"run": list(run.key), "status": _status_to_json(run.status)}


def _run_of_json(value: Any) -> Run:
    key: RunKey = RUN.of_json(value["run"])
    job = Job(key.job, _NOT_SAID, attempts=key.attempt)
    return Run(key, job, _status_of_json(value["status"]))


def _status_to_json(status: RunStatus) -> dict[str, Any]:
    facts = {"since": status.since, "placement": PLACEMENT.to_json(status.placement)}
    match status:
        case Starting():
            return facts | {"is": "starting"}
        case Running(process=process, log=log):
            return facts | {"is": "running", "process": list(process), "log": log}
        case Stopping():
            return facts | {
                "is": "stopping",
                "process": list(status.process),
                "log": status.log,
                "started_at": status.started_at,
                "why": status.why,
                "killed_at": status.killed_at,
            }
        case Lingering(asked=asked, killed_at=killed_at):
            return facts | {"is": "lingering", "asked": asked, "killed_at": killed_at}


def _status_of_json(value: Any) -> RunStatus:
    since, placement = TIME.of_json(value["since"]), PLACEMENT.of_json(value["placement"])
    kind = value["is"]
    if kind == "starting":
        return Starting(since, placement)
    killed_at = optional(TIME).of_json(value.get("killed_at"))
    if kind == "lingering":
        return Lingering(since, placement, FLAG.of_json(value["asked"]), killed_at)
    process, log = PROCESS.of_json(value["process"]), optional(TEXT).of_json(value["log"])
    if kind == "running":
        return Running(since, placement, process, log)
    started_at, why = TIME.of_json(value["started_at"]), records.STOP_REASON.of_json(value["why"])
    return Stopping(since, placement, process, log, started_at, why, killed_at)


def _seen_to_json(seen: Seen) -> dict[str, Any]:
    if not isinstance(seen, Snapshot):
        return codec.as_object(seen, wall_time=0.0, monotonic_s=0.0)
    facts = codec.as_object(seen, wall_time=0.0, monotonic_s=seen.taken_at)
    return facts | {"arrived_s": seen.arrived_at, "withheld": sorted(seen.withheld)}


def _seen_of_json(value: Any, host: HostName) -> Seen:
    fields = exactly(dict)(value)
    seen = codec.decode(fields, taken_at=codec.monotonic_seconds(fields), host=host)
    if not isinstance(seen, Snapshot):
        return seen
    return replace(
        seen,
        arrived_at=optional(TIME).of_json(fields["arrived_s"]),
        withheld=frozenset(_UUIDS.of_json(fields["withheld"])),
    )


def _event_of_json(value: Any) -> tuple[int, AgentEvent]:
    number, record = exactly(list)(value)
    if record["event"] not in _AGENT_EVENTS:
        raise ValueError(f"{record['event']!r} is not for an agent to say")
    event: Any = records.event_of(record)
    return COUNT.of_json(number), event


def _answer_to_json(answer: ClaimAnswer) -> dict[str, Any]:
    others = None if answer.others is None else _claimed_to_json(answer.others)
    facts = {"at": answer.at, "gpus": _GPUS.to_json(answer.gpus), "others": others}
    if isinstance(answer, ClaimRefused):
        facts["why"] = _claimed_to_json(answer.why)
    return facts


def _answer_of_json(value: Any, host: HostName) -> ClaimAnswer:
    at, gpus = TIME.of_json(value["at"]), _GPUS.of_json(value["gpus"])
    others = None if value["others"] is None else _claimed_of_json(value["others"])
    why = _claimed_of_json(value["why"]) if "why" in value else None
    named = [*gpus, *(gpu for gpu, _ in (*(others or ()), *(why or ())))]
    if any(gpu.host != host for gpu in named):
        raise ValueError(f"a claim of another host than {host}")
    return ClaimGranted(at, gpus, others) if why is None else ClaimRefused(at, gpus, why, others)


def _claimed_to_json(claimed: Claimed) -> list[Any]:
    return [[list(gpu), who] for gpu, who in claimed]


def _claimed_of_json(value: Any) -> Claimed:
    return tuple((GPU.of_json(gpu), TEXT.of_json(who)) for gpu, who in exactly(list)(value))


def _chunk_to_json(chunk: Chunk) -> list[Any]:
    data = base64.b64encode(chunk.data).decode()
    return [list(chunk.run), chunk.offset, data, chunk.is_last]


def _chunk_of_json(value: Any) -> Chunk:
    run, offset, data, is_last = exactly(list)(value)
    return Chunk(
        RUN.of_json(run),
        COUNT.of_json(offset),
        base64.b64decode(exactly(str)(data), validate=True),
        FLAG.of_json(is_last),
    )
