"""Messages come back as they were, and whatever else is said is refused and does no more harm."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from smartsched.core import events, wire
from smartsched.core.actions import Checkpoint, Claim, Kill, Launch, Release, Terminate
from smartsched.core.hours import NO_CAP, parse_cap
from smartsched.core.messages import (
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
    ClaimGranted,
    ClaimRefused,
    Exited,
    GpuKey,
    GpuUuid,
    HostName,
    Job,
    JobId,
    JobSpec,
    Killed,
    Lingering,
    Lost,
    NotStarted,
    PlacedGpu,
    Placement,
    ProcessId,
    Run,
    RunKey,
    Running,
    SamplerTrouble,
    Snapshot,
    Starting,
    Stopping,
    Wishes,
)
from smartsched.errors import BadMessageError
from tests.builders import HOST, T0, a_key, a_placement, a_process_id, a_run, a_sample, a_snapshot
from tests.core.anything import JSON
from tests.core.test_codec import gpus

TIMES = st.floats(-1e14, 1e14)
COUNTS = st.integers(0, 2**63 - 1)
# Of commands that are no UTF-8, and everything that is.
TEXTS = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
RUNS = st.builds(RunKey, COUNTS.map(JobId), COUNTS)
GPUS = TEXTS.map(lambda uuid: GpuKey(HOST, GpuUuid(uuid)))
SPECS = st.builds(
    JobSpec,
    TEXTS,
    TEXTS,
    TEXTS,
    st.builds(
        Wishes,
        gpus=st.none() | st.integers(1, 9),
        memory_bytes=st.none() | st.integers(1, 2**40),
        utilization_percent=st.none() | st.floats(1, 100),
        priority=st.integers(-9, 9),
        timeout_seconds=st.none() | st.floats(1, 1e9),
        name=TEXTS,
    ),
)
PLACED = st.builds(
    PlacedGpu,
    GPUS,
    TEXTS,
    TEXTS,
    COUNTS,
    st.none() | COUNTS,
    st.floats(0, 100),
    COUNTS,
)
PLACEMENTS = st.lists(PLACED, max_size=3).map(lambda gpus: Placement(tuple(gpus))) | TEXTS.map(
    lambda host: Placement((), HostName(host))
)
PROCESSES = st.builds(ProcessId, COUNTS, COUNTS, TEXTS)
LOGS = st.none() | TEXTS
WHY = st.sampled_from(["asked", "timeout", "survivor", "contention", "cancelled", "leaving"])
STATUSES = st.one_of(
    st.builds(Starting, TIMES, PLACEMENTS),
    st.builds(Running, TIMES, PLACEMENTS, PROCESSES, LOGS),
    st.builds(Stopping, TIMES, PLACEMENTS, PROCESSES, LOGS, TIMES, WHY, st.none() | TIMES),
    st.builds(Lingering, TIMES, PLACEMENTS, st.booleans(), st.none() | TIMES),
)


def run_of(key: RunKey, status: Any) -> Run:
    """An agent needs no more of its job than that."""
    return Run(key, Job(key.job, JobSpec("", "", ""), attempts=key.attempt), status)


ORDERS: dict[type, st.SearchStrategy[Order]] = {
    Launch: st.builds(Launch, RUNS, SPECS, PLACEMENTS),
    Terminate: st.builds(Terminate, RUNS),
    Checkpoint: st.builds(Checkpoint, RUNS),
    Kill: st.builds(Kill, RUNS),
    Claim: st.builds(Claim, st.lists(st.tuples(GPUS, COUNTS), max_size=3).map(tuple)),
    Release: st.builds(Release, st.lists(GPUS, max_size=3).map(tuple)),
    Look: st.builds(Look, st.lists(TEXTS.map(GpuUuid), max_size=3).map(tuple)),
    Expect: st.builds(Expect, st.lists(st.builds(run_of, RUNS, STATUSES), max_size=3).map(tuple)),
    Fetched: st.builds(Fetched, RUNS, COUNTS),
    Leave: st.just(Leave()),
}
any_orders = st.builds(
    Orders,
    COUNTS,
    TIMES,
    st.lists(st.one_of(*ORDERS.values()), max_size=3).map(tuple),
    COUNTS,
    st.none() | TIMES,
)

ENDINGS = st.one_of(
    st.builds(Exited, st.integers(0, 255)),
    st.builds(Killed, st.integers(1, 64)),
    st.builds(NotStarted, TEXTS, st.booleans()),
    st.builds(Lost, TEXTS),
)
EVENTS = st.one_of(
    st.builds(events.RunLaunched, TIMES, RUNS, PROCESSES, LOGS),
    st.builds(events.RunPostponed, TIMES, RUNS, TEXTS),
    st.builds(events.RunExited, TIMES, RUNS, ENDINGS, COUNTS, TEXTS),
    st.builds(events.RunCleared, TIMES, RUNS),
    st.builds(events.RunAdopted, TIMES, RUNS, TIMES),
    st.builds(events.RunRevoked, TIMES, RUNS),
)
CLAIMED = st.lists(st.tuples(GPUS, TEXTS), max_size=2).map(tuple)
ANSWERS = st.one_of(
    st.builds(ClaimGranted, TIMES, st.lists(GPUS, max_size=2).map(tuple), st.none() | CLAIMED),
    st.builds(
        ClaimRefused, TIMES, st.lists(GPUS, max_size=2).map(tuple), CLAIMED, st.none() | CLAIMED
    ),
)
SEEN = st.one_of(
    st.builds(SamplerTrouble, st.just(HOST), TEXTS),
    st.builds(
        Snapshot,
        st.just(HOST),
        TIMES,
        st.lists(gpus, max_size=2).map(tuple),
        st.booleans(),
        st.none() | TIMES,
        st.frozensets(TEXTS.map(GpuUuid), max_size=2),
    ),
)
any_report = st.builds(
    Report,
    TIMES,
    COUNTS,
    st.none() | st.tuples(TIMES, TIMES),
    st.lists(SEEN, max_size=2).map(tuple),
    st.lists(st.tuples(COUNTS, EVENTS), max_size=3).map(tuple),
    st.frozensets(RUNS, max_size=3),
    st.lists(ANSWERS, max_size=2).map(tuple),
    st.lists(st.builds(Chunk, RUNS, COUNTS, st.binary(max_size=50), st.booleans()), max_size=2).map(
        tuple
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
CAPS = st.sampled_from(["4", "2@09-18,6@18-09"]).map(parse_cap) | st.just(NO_CAP)
any_hello = st.builds(
    Hello,
    TEXTS,
    TEXTS,
    TEXTS,
    COUNTS,
    st.booleans(),
    TEXTS,
    TIMES,
    st.dictionaries(TEXTS, TEXTS | st.integers() | st.none(), max_size=3),
    st.booleans(),
    TEXTS,
    CAPS,
    CAPS,
)


# --- as it was


@given(any_orders)
def test_orders_come_back_as_they_were(orders: Orders):
    assert wire.decode_orders(wire.encode_orders(orders)) == orders


@pytest.mark.parametrize("kind", ORDERS)
@given(st.data())
@settings(max_examples=30)
def test_every_kind_of_order_comes_back_as_it_was(kind: type, data: st.DataObject):
    orders = Orders(1, T0, (data.draw(ORDERS[kind]),))

    assert wire.decode_orders(wire.encode_orders(orders)) == orders


def test_a_command_that_is_not_ascii_is_no_longer_than_it_was():
    command = "Straße 道路 " * 1000
    launch = Launch(a_run(), JobSpec(command, "list:1", "/"), a_placement())

    message = wire.encode_orders(Orders(1, T0, (launch,)))

    assert len(message) < len(command.encode()) + 1000


def test_runs_that_are_expected_are_told_without_their_commands():
    job = Job(JobId(1), JobSpec("x" * 1_000_000, "list:1", "/"), attempts=1)
    run = Run(a_run(), job, Starting(T0, a_placement()))

    message = wire.encode_orders(Orders(1, T0, (Expect((run,)),)))

    assert len(message) < 1000


@given(any_report)
def test_a_report_comes_back_as_it_was(report: Report):
    assert wire.decode_report(wire.encode_report(report), HOST) == report


@given(any_hello)
def test_a_hello_comes_back_as_it_was(hello: Hello):
    assert wire.decode_hello(wire.encode_hello(hello)) == hello


def test_what_somebody_waits_for_is_marked():
    assert wire.encode_orders(Orders(1, T0)).startswith(wire.URGENT)
    assert wire.encode_hello(HELLO).startswith(wire.URGENT)
    assert wire.encode_report(Report(T0, is_urgent=True)).startswith(wire.URGENT)
    assert wire.encode_report(Report(T0, is_urgent=False)).startswith(wire.ROUTINE)


def test_a_command_of_whatever_bytes_comes_back_as_it_was():
    spec = JobSpec("echo 'ä \udce9 \U0001f600 \x01'", "list:1")
    orders = Orders(1, T0, (Launch(a_run(), spec, a_placement()),))

    assert wire.decode_orders(wire.encode_orders(orders)) == orders


# --- what is not to be believed

HELLO = Hello("1.0", "a", "node", 8, sent_at=T0)
RUNNING = Running(T0, a_placement(), a_process_id(), "/logs/1.log")
FULL_ORDERS = Orders(
    7,
    T0,
    (
        Launch(a_run(), JobSpec("a", "list:1"), a_placement()),
        Claim(((a_key(), 5),)),
        Release((a_key(),)),
        Look((a_key().uuid,)),
        Expect((run_of(a_run(), Running(T0, a_placement(), a_process_id(), "")),)),
        Fetched(a_run(), 9),
    ),
    3,
    T0,
)
FULL_REPORT = Report(
    T0,
    3,
    (T0, T0),
    (a_snapshot(a_sample()), SamplerTrouble(HOST, "hangs")),
    ((4, events.RunExited(T0, a_run(), Exited(0), 0)),),
    frozenset({a_run()}),
    (ClaimRefused(T0, (a_key(),), ((a_key(), "bob"),)),),
    (Chunk(a_run(), 0, b"text"),),
)
MESSAGES: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "orders": (wire.encode_orders(FULL_ORDERS), wire.decode_orders),
    "report": (wire.encode_report(FULL_REPORT), lambda data: wire.decode_report(data, HOST)),
    "hello": (wire.encode_hello(HELLO), wire.decode_hello),
}
kinds = pytest.mark.parametrize("kind", MESSAGES)


def is_refused(kind: str, message: bytes) -> bool:
    with pytest.raises(BadMessageError) as raised:
        MESSAGES[kind][1](message)
    return len(str(raised.value)) > 0


def saying(kind: str, **changes: Any) -> bytes:
    message = MESSAGES[kind][0]
    return message[:1] + json.dumps(json.loads(message[1:]) | changes).encode()


@kinds
def test_a_message_that_is_cut_off_anywhere_is_refused(kind: str):
    message = MESSAGES[kind][0]

    assert all(is_refused(kind, message[:length]) for length in range(len(message)))


@kinds
@given(garbage=st.binary(max_size=60))
def test_garbage_is_refused(kind: str, garbage: bytes):
    assert is_refused(kind, garbage)


@kinds
@pytest.mark.parametrize("value", [None, 1, "text", [], {}, [{}], {"number": 1}])
def test_json_that_is_no_message_is_refused(kind: str, value: Any):
    assert is_refused(kind, b"!" + json.dumps(value).encode())


@kinds
def test_json_nested_without_end_is_refused(kind: str):
    assert is_refused(kind, b"!" + b"[" * 100_000)
    assert is_refused(kind, b'!{"sent_at":' + b"[" * 100_000)


@kinds
@pytest.mark.parametrize(
    "text", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" * 5000, b"true"]
)
def test_a_time_that_is_none_is_refused(kind: str, text: bytes):
    message = saying(kind, sent_at="@").replace(b'"@"', text)

    assert is_refused(kind, message)


@kinds
@pytest.mark.parametrize("value", [-1, 2**63, 10**400, 1.0, True, "1", None])
def test_a_number_of_what_is_counted_that_is_none_is_refused(kind: str, value: Any):
    name = {"orders": "acknowledged", "report": "obeyed", "hello": "cores"}[kind]

    assert is_refused(kind, saying(kind, **{name: value}))


def mutated(value: Any, steps: list[int], other: Any) -> Any:
    """The same with something else somewhere in it: where the steps lead."""
    if not steps or not isinstance(value, dict | list) or not value:
        return other
    if isinstance(value, dict):
        name = sorted(value)[steps[0] % len(value)]
        return value | {name: mutated(value[name], steps[1:], other)}
    place = steps[0] % len(value)
    return [*value[:place], mutated(value[place], steps[1:], other), *value[place + 1 :]]


@kinds
@given(steps=st.lists(st.integers(0, 30), min_size=1, max_size=6), other=JSON)
@settings(max_examples=400)
def test_with_anything_else_anywhere_it_is_read_or_refused_and_nothing_else(
    kind: str, steps: list[int], other: Any
):
    message, decode = MESSAGES[kind]
    changed = mutated(json.loads(message[1:]), steps, other)

    with suppress(BadMessageError):
        decode(b"!" + json.dumps(changed).encode())


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"leave": 1},
        {"leave": False},
        {"destroy": [1, 1]},
        {"kill": [1]},
        {"kill": "1/1"},
        {"look": [1]},
        {"look": "GPU-1"},
        {"look": 5},
        {"expect": {}},
        {"expect": [{}]},
        {"claim": [[["box", "GPU-1"], -1]]},
        {"claim": [["box", 1]]},
        {"claim": "text"},
        {"fetched": [1, 1], "bytes": "all"},
        {"launch": [1, 1], "spec": {"command": 5}, "placement": []},
    ],
)
def test_what_is_no_order_is_refused(order: Any):
    assert is_refused("orders", saying("orders", orders=[order]))


@pytest.mark.parametrize(
    "event",
    [
        events.RunPlaced(T0, a_run(), a_placement()),
        events.JobFinished(T0, a_run(), "ok"),
        events.RunKilled(T0, a_run()),
        events.StopRequested(T0, "ctrl-c"),
        events.RunClosed(T0, complete=True, failed=0),
    ],
)
def test_an_agent_cannot_say_what_is_the_dispatcher_s_to_decide(event: Any):
    message = wire.encode_report(replace(FULL_REPORT, events=((1, event),)))

    assert is_refused("report", message)


@pytest.mark.parametrize(
    "changes",
    [
        {"events": [{"event": "run_cleared"}]},
        {"events": [[1, {"event": "run_cleared"}]]},
        {"events": [[1]]},
        {"living": [[1]]},
        {"living": {}},
        {"heard": [1]},
        {"heard": [1, "2"]},
        {"seen": [{"whole": True}]},
        {"seen": 5},
        {"chunks": [[[1, 1], 0, "no base64!", False]]},
        {"chunks": [[[1, 1], 0, "YQ==", 1]]},
        {"leaves": "soon"},
        {"answers": [{}]},
    ],
)
def test_what_is_no_part_of_a_report_is_refused(changes: dict[str, Any]):
    assert is_refused("report", saying("report", **changes))


def test_what_an_agent_says_of_gpus_is_about_its_own_host():
    message = wire.encode_report(replace(FULL_REPORT, answers=()))

    seen = wire.decode_report(message, HostName("other")).seen

    assert {each.host for each in seen} == {"other"}


@pytest.mark.parametrize(
    "answer",
    [
        ClaimGranted(T0, (a_key(0, "gpu2"),)),
        ClaimRefused(T0, (a_key(),), ((a_key(0, "gpu2"), "bob"),)),
        ClaimGranted(T0, (a_key(),), ((a_key(0, "gpu2"), "bob"),)),
    ],
)
def test_an_agent_cannot_answer_for_claims_on_another_host(answer: Any):
    message = wire.encode_report(replace(FULL_REPORT, answers=(answer,)))

    assert is_refused("report", message)
