"""Events to lines and back; whatever else a line says is told, never taken in."""

import json
import typing
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields

from smartsched.core import events
from smartsched.core.events import Event
from smartsched.core.model import (
    Exited,
    GpuKey,
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
from smartsched.core.records import VERSION, as_object, decode_line, encode
from smartsched.errors import JournalDamagedError
from tests.builders import HOST, T0, a_key, a_placement, a_process_id, a_run, a_spec
from tests.core.anything import JSON

RAW = b"echo \xff\xfe\xc3".decode("utf-8", "surrogateescape")
TWO_GPUS = Placement(
    (*a_placement(0).gpus, PlacedGpu(a_key(1), "1:2", "MIG-11", unexplained_bytes=2**40))
)
SPEC = JobSpec(RAW, "list:1", "/home/\u00e4\u4e2d")

EXAMPLES: list[Event] = [
    events.RunBegan(T0, "run", HOST, "/here", ("a.txt", "-"), None, '{"retries": "2"}'),
    events.RunBegan(T0, "run", HOST, "/here", (), RAW, "{}"),
    events.RunResumed(T0, HOST, "{}"),
    events.RunResumed(T0, HOST, "{}", failed_too=True),
    events.ListReplaced(T0, ("b.txt",)),
    events.FailuresDropped(T0, (JobId(3), JobId(9))),
    events.InputRead(T0, 0, 2**40),
    events.JobAccepted(T0, JobId(1), SPEC, Position(0, 120, 7)),
    events.JobAccepted(T0, JobId(1), a_spec()),
    events.JobAccepted(
        T0, JobId(1), JobSpec(RAW, "list:1", "/", Wishes(0, 2**40, 30.5, -5, 7200.0, "big"))
    ),
    events.JobAccepted(T0, JobId(1), JobSpec(RAW, "list:1", "/", Wishes(priority=3))),
    events.JobRecalled(T0, JobId(1), a_spec(), 3, None),
    events.JobRecalled(T0, JobId(1), SPEC, 0, Position(2, 0, 0)),
    events.LineRejected(T0, "list:2", "holds a NUL byte", Position(0, 9, 2)),
    events.LineRejected(T0, "list:2", "holds a NUL byte"),
    events.InputEnded(T0),
    events.JobsAdded(T0, "7", JobId(4), (SPEC, a_spec())),
    events.JobsCancelled(T0, "7", (JobId(2), JobId(3)), rest=True),
    events.JobsCancelled(T0, "7", ()),
    events.JobsRetried(T0, "7", (JobId(2),)),
    events.RunPaused(T0, "7"),
    events.RunContinued(T0, "7"),
    events.OptionsSet(T0, "7", '{"max_mem": "30%"}'),
    events.RequestRefused(T0, "7", "there is no job 9"),
    events.DrainRequested(T0, "ctrl-c"),
    events.StopRequested(T0, "ctrl-c"),
    events.WaitTimedOut(T0),
    events.RunPlaced(T0, a_run(), TWO_GPUS),
    events.RunPlaced(T0, a_run(), Placement(())),
    events.RunPlaced(T0, a_run(), Placement((), HostName("gpu1"))),
    events.RunPlaced(
        T0, a_run(), Placement((PlacedGpu(a_key(1), "1", "1", 5, 2**33, 61.5, 2**20),))
    ),
    events.RunAdopted(T0 + 9, a_run(), T0),
    events.RunLaunched(T0, a_run(), a_process_id(), None),
    events.RunLaunched(T0, a_run(), a_process_id(), "/logs/0001.log"),
    events.RunPostponed(T0, a_run(), "cannot fork"),
    events.RunRevoked(T0, a_run()),
    events.RunStopping(T0, a_run()),
    events.RunStopping(T0, a_run(), "timeout"),
    events.RunStopping(T0, a_run(), "survivor"),
    events.RunStopping(T0, a_run(), "cancelled"),
    events.RunStopping(T0, a_run(), "leaving"),
    events.RunStopping(T0, a_run(), "contention", "alice: python train.py, 3 GiB"),
    events.RunKilled(T0, a_run(2, 3)),
    events.RunExited(T0, a_run(), Exited(3), 0),
    events.RunExited(T0, a_run(), Killed(9), 2),
    events.RunExited(T0, a_run(), NotStarted("no such shell"), 0),
    events.RunExited(T0, a_run(), NotStarted("it needs 9 GPUs", for_good=True), 0),
    events.RunExited(T0, a_run(), Lost(), 0),
    events.RunExited(T0, a_run(), Lost("its host gpu1 was out of reach for too long"), 0),
    events.RunExited(T0, a_run(), Exited(1), 0, "CUDA out of memory"),
    events.RunMeasured(T0, a_run(), "python train.py *", 2**40, 61.5, 90.25),
    events.RunMeasured(T0, a_run(), "python train.py *", 0, None, 0.0),
    events.JobFinished(T0, a_run(), "ok"),
    events.JobFinished(T0, a_run(), "failed"),
    events.JobFinished(T0, a_run(), "stopped"),
    events.JobFinished(T0, a_run(), "cancelled"),
    events.JobRequeued(T0, a_run(), "failed", T0 + 60.5),
    events.JobRequeued(T0, a_run(), "lost", T0),
    events.JobRequeued(T0, a_run(), "survivor", T0),
    events.JobRequeued(T0, a_run(), "contention", T0),
    events.JobRequeued(T0, a_run(), "leaving", T0),
    events.JobRequeued(T0, a_run(), "strangers_grew", T0 + 2),
    events.JobRequeued(T0, a_run(), "packed_too_tightly", T0, needs_bytes=2**34),
    events.JobRequeued(T0, a_run(), "packed_too_tightly", T0, alone=True),
    events.GpuWithheld(T0, a_key(), (a_run(1), a_run(2), a_run(3))),
    events.Halted(T0, "3 jobs failed", stop=True),
    events.RunCleared(T0, a_run()),
    events.GpuReleased(T0, a_key(), a_run()),
    events.RunClosed(T0, complete=True, failed=7),
    events.RunClosed(T0, complete=False, failed=7, ok=9, cancelled=2, left=3),
]


def kind_of(event: Event) -> str:
    return type(event).__name__


def seq_of(event: Event) -> int:
    return 1 if isinstance(event, events.RunBegan) else 5


def read_back(event: Event) -> Event:
    line = encode(event, seq_of(event))
    return decode_line(line.removesuffix(b"\n"), seq_of(event))


def sealed(body: bytes) -> bytes:
    """A line with a checksum that is right, whatever it says; `body` lacks its last brace."""
    return b'%s,"crc":"%08x"}' % (body, zlib.crc32(body))


def line_saying(record: Any) -> bytes:
    return sealed(json.dumps(record, separators=(",", ":")).encode()[:-1])


def saying(event: Event, /, **changes: Any) -> bytes:
    """The event's line with other values in it."""
    seq = seq_of(event)
    head = {"seq": seq} | ({"smartsched_journal": VERSION} if seq == 1 else {})
    return line_saying(head | as_object(event) | changes)


def is_damaged(line: bytes, seq: int = 5) -> bool:
    with pytest.raises(JournalDamagedError) as raised:
        decode_line(line, seq)
    return len(str(raised.value)) > 0


# --- and back


def test_there_is_an_example_of_every_event():
    assert {type(example) for example in EXAMPLES} == set(typing.get_args(Event))


@pytest.mark.parametrize("event", EXAMPLES, ids=kind_of)
def test_an_event_comes_back_as_it_was(event: Event):
    assert read_back(event) == event


@pytest.mark.parametrize("event", EXAMPLES, ids=kind_of)
def test_a_record_is_one_line_of_ascii_json_with_its_number_and_name(event: Event):
    line = encode(event, seq_of(event))

    record = json.loads(line)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert next(iter(record)) == "seq"
    assert list(record)[-1] == "crc"
    assert record["event"]


@pytest.mark.parametrize("event", EXAMPLES, ids=kind_of)
def test_no_field_of_an_event_is_left_out(event: Event):
    assert set(as_object(event)) == {"event"} | {field.name for field in fields(event)}


TIMES = st.floats(-1e14, 1e14)
COUNTS = st.integers(0, 2**63 - 1)
# As bytes that are not UTF-8 travel, and everything that is.
TEXTS = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
RUNS = st.builds(RunKey, COUNTS.map(JobId), COUNTS)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    float: TIMES,
    int: COUNTS,
    str: TEXTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    bool: st.booleans(),
    RunKey: RUNS,
    GpuKey: st.builds(GpuKey, TEXTS.map(HostName), TEXTS),
    ProcessId: st.builds(ProcessId, COUNTS, COUNTS, TEXTS),
    Position: st.builds(Position, COUNTS, COUNTS, COUNTS),
    JobSpec: st.builds(JobSpec, TEXTS, TEXTS, TEXTS),
}
PLACED = st.builds(PlacedGpu, BY_TYPE[GpuKey], TEXTS, TEXTS, COUNTS)
BY_TYPE[Placement] = st.one_of(
    st.lists(PLACED, max_size=3).map(lambda gpus: Placement(tuple(gpus))),
    st.builds(Placement, st.just(()), BY_TYPE[str].map(HostName)),
)
BY_TYPE[Exited] = st.builds(Exited, st.integers(0, 255))
BY_TYPE[Killed] = st.builds(Killed, st.integers(1, 64))
BY_TYPE[NotStarted] = st.builds(NotStarted, TEXTS)
BY_TYPE[Lost] = st.builds(Lost, BY_TYPE[str])


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    hint = getattr(hint, "__supertype__", hint)
    if hint in BY_TYPE:
        return BY_TYPE[hint]
    if hint is type(None):
        return st.none()
    parts = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Literal:
            return st.sampled_from(parts)
        case origin if origin is tuple:
            return st.lists(values_of(parts[0]), max_size=3).map(tuple)
        case _:
            return st.one_of([values_of(part) for part in parts])


def any_event() -> st.SearchStrategy[Event]:
    def of_kind(kind: Any) -> st.SearchStrategy[Event]:
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: values_of(hint) for name, hint in hints.items()})

    return st.sampled_from(typing.get_args(Event)).flatmap(of_kind)


@given(any_event())
def test_any_event_comes_back_as_it_was(event: Event):
    assert read_back(event) == event


# --- damage


@pytest.mark.parametrize("event", EXAMPLES, ids=kind_of)
def test_another_byte_anywhere_is_noticed(event: Event):
    seq = seq_of(event)
    line = encode(event, seq).removesuffix(b"\n")

    for position in range(len(line)):
        for flip in (0x01, 0x20, 0x80):
            flipped = bytes([line[position] ^ flip])
            assert is_damaged(line[:position] + flipped + line[position + 1 :], seq)


@pytest.mark.parametrize("event", EXAMPLES, ids=kind_of)
def test_a_line_cut_off_anywhere_is_noticed(event: Event):
    line = encode(event, seq_of(event)).removesuffix(b"\n")

    for length in range(len(line)):
        assert is_damaged(line[:length], seq_of(event))
        assert length == 0 or is_damaged(line[length:], seq_of(event))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_damage(garbage: bytes):
    assert is_damaged(garbage)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_record_are_damage_though_their_checksum_is_right(garbage: bytes):
    assert is_damaged(sealed(garbage))


@given(JSON)
def test_json_that_is_no_record_is_damage(value: Any):
    assert is_damaged(line_saying(value))


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_record_with_any_other_value_is_read_or_damaged_and_nothing_else(
    event: Event, data: st.DataObject
):
    field = data.draw(st.sampled_from([*as_object(event), "seq", "smartsched_journal"]))

    with suppress(JournalDamagedError):
        decode_line(saying(event, **{field: data.draw(JSON)}), seq_of(event))


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value within a value, by the way to it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in inside:
        yield *path, name
        if isinstance(inner, dict | list):
            yield from places_in(inner, (*path, name))


@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=200)
def test_a_record_with_any_other_value_deep_in_it_is_read_or_damaged(
    event: Event, data: st.DataObject
):
    record = json.loads(encode(event, seq_of(event)))
    *way, last = data.draw(st.sampled_from(list(places_in(record))))
    inner = record
    for name in way:
        inner = inner[name]
    inner[last] = data.draw(JSON)
    del record["crc"]

    with suppress(JournalDamagedError):
        read = decode_line(sealed(json.dumps(record).encode()[:-1]), seq_of(event))
        json.dumps(as_object(read))


def test_json_nested_without_end_is_damage():
    assert is_damaged(sealed(b'{"seq":5,"event":' + b"[" * 100_000))


def test_a_number_with_thousands_of_digits_is_damage():
    body = b'{"seq":5,"event":"input_ended","at":' + b"9" * 10_000
    assert is_damaged(sealed(body))


# --- what is not from this version, or out of its place


@pytest.mark.parametrize("seq", [1, 4, 6, 500])
def test_a_record_out_of_its_place_is_damage(seq: int):
    line = encode(events.InputEnded(T0), 5).removesuffix(b"\n")

    with pytest.raises(JournalDamagedError, match=f"it is record 5, not {seq}: some are missing"):
        decode_line(line, seq)


@pytest.mark.parametrize("version", [VERSION + 1, 0, "1", None, []])
def test_a_journal_of_another_version_says_so(version: Any):
    line = saying(EXAMPLES[0], smartsched_journal=version)

    with pytest.raises(JournalDamagedError, match="another version of smartsched wrote it"):
        decode_line(line, 1)


def test_a_journal_without_a_version_is_damaged():
    assert is_damaged(line_saying({"seq": 1} | as_object(EXAMPLES[0])), 1)


def test_a_journal_begins_with_run_began_and_has_it_once():
    begins_otherwise = encode(events.InputEnded(T0), 1).removesuffix(b"\n")
    begins_again = encode(EXAMPLES[0], 5).removesuffix(b"\n")

    for line, seq in ((begins_otherwise, 1), (begins_again, 5)):
        with pytest.raises(JournalDamagedError, match="begins with run_began"):
            decode_line(line, seq)


def test_an_event_of_a_later_version_is_damage_that_says_what():
    with pytest.raises(JournalDamagedError, match="run_teleported"):
        decode_line(line_saying({"seq": 5, "event": "run_teleported", "at": T0}), 5)


def test_a_field_of_a_later_version_does_no_harm():
    event = events.InputEnded(T0)

    assert decode_line(saying(event, colour="blue"), 5) == event


def test_a_field_with_a_default_may_be_missing():
    """Records from before there was such a field."""
    line = line_saying({"seq": 5, "event": "run_stopping", "at": T0, "run": [1, 1]})

    assert decode_line(line, 5) == events.RunStopping(T0, a_run())


@pytest.mark.parametrize("event", EXAMPLES, ids=kind_of)
def test_a_record_without_its_time_is_damage(event: Event):
    record = {"seq": seq_of(event), "smartsched_journal": VERSION} | as_object(event)
    del record["at"]

    assert is_damaged(line_saying(record), seq_of(event))


@pytest.mark.parametrize("at", ["now", None, True, [], {}, 1e16, -1e16])
def test_what_is_no_time(at: Any):
    assert is_damaged(saying(events.InputEnded(T0), at=at))


@pytest.mark.parametrize("at", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_time_that_is_no_number_is_damage(at: bytes):
    assert is_damaged(sealed(b'{"seq":5,"event":"input_ended","at":' + at))


@pytest.mark.parametrize(
    "run",
    [None, 1, "11", [], [1], [1, 1, 1], ["1", 1], [1.0, 1], [True, 1], [-1, 1], [2**63, 1], {}],
    ids=repr,
)
def test_what_is_no_run(run: Any):
    assert is_damaged(saying(events.RunKilled(T0, a_run()), run=run))


@pytest.mark.parametrize(
    "gpu", [None, "ab", ["box"], ["box", 0], [0, "GPU-0"], ["box", "GPU-0", "x"], {"box": "GPU-0"}]
)
def test_what_is_no_gpu(gpu: Any):
    assert is_damaged(saying(events.GpuReleased(T0, a_key(), a_run()), gpu=gpu))


@pytest.mark.parametrize(
    "ending",
    [None, 0, "exited", {}, [], {"exited": "0"}, {"exited": None}, {"killed": 9.0}, {"lost": False},
     {"lost": 1}, {"not_started": 3}, {"vanished": True}, {"exited": True}, {"killed": False}],
    ids=repr,
)  # fmt: skip
def test_what_is_no_ending(ending: Any):
    assert is_damaged(saying(events.RunExited(T0, a_run(), Exited(0), 0), ending=ending))


@pytest.mark.parametrize(
    "placement",
    [None, {}, "", [[]], [{}], [{"gpu": ["box", "GPU-0"]}], [None],
     [{"gpu": ["box", "G"], "label": 3, "visible": "3", "unexplained_bytes": 0}],
     [{"gpu": ["box", "G"], "label": "3", "visible": "3", "unexplained_bytes": -1}]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_placement(placement: Any):
    event = events.RunPlaced(T0, a_run(), a_placement())

    assert is_damaged(saying(event, placement=placement))


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (events.JobFinished(T0, a_run(), "ok"), {"outcome": "fine"}),
        (events.JobFinished(T0, a_run(), "ok"), {"outcome": []}),
        (events.RunStopping(T0, a_run()), {"why": "bored"}),
        (events.JobRequeued(T0, a_run(), "lost", T0), {"why": None}),
        (events.JobRequeued(T0, a_run(), "lost", T0), {"not_before": "soon"}),
        (events.Halted(T0, "x", stop=True), {"stop": 1}),
        (events.Halted(T0, "x", stop=True), {"why": None}),
        (events.JobAccepted(T0, JobId(1), a_spec()), {"spec": None}),
        (events.JobAccepted(T0, JobId(1), a_spec()), {"spec": {"command": "x"}}),
        (events.JobAccepted(T0, JobId(1), a_spec()), {"spec": ["command", "source"]}),
        (events.JobAccepted(T0, JobId(1), a_spec()), {"read_to": [1, 2]}),
        (events.JobAccepted(T0, JobId(1), a_spec()), {"read_to": [1, 2, "3"]}),
        (events.JobAccepted(T0, JobId(1), a_spec()), {"job": 1.0}),
        (events.RunLaunched(T0, a_run(), a_process_id(), None), {"process": [1, 2]}),
        (events.RunLaunched(T0, a_run(), a_process_id(), None), {"log": 3}),
        (events.GpuWithheld(T0, a_key(), ()), {"runs": [1, 1]}),
        (events.GpuWithheld(T0, a_key(), ()), {"runs": "all"}),
        (events.ListReplaced(T0, ()), {"inputs": "list"}),
        (events.ListReplaced(T0, ()), {"inputs": [None]}),
        (events.InputEnded(T0), {"event": None}),
        (events.InputEnded(T0), {"event": ["input_ended"]}),
        (events.InputEnded(T0), {"event": {}}),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_a_value_of_the_wrong_kind_is_damage(event: Event, changes: dict[str, Any]):
    assert is_damaged(saying(event, **changes))


def test_a_record_is_written_as_version_1_says():
    """Journals of today must be read for ever."""
    event = events.JobAccepted(T0, JobId(3), JobSpec(RAW, "list:1", "/w"), Position(0, 9, 1))

    assert encode(event, 7).split(b',"crc"')[0] == (
        b'{"seq":7,"event":"job_accepted","at":1000000.0,"job":3,"spec":{"command":'
        b'"echo \\udcff\\udcfe\\udcc3","source":"list:1","directory":"/w"},"read_to":[0,9,1]'
    )


def test_what_says_nothing_of_hosts_is_written_as_before_there_were_several():
    lost = as_object(events.RunExited(T0, a_run(), Lost(), 0))
    placed = as_object(events.RunPlaced(T0, a_run(), Placement(())))

    assert (lost["ending"], placed["placement"]) == ({"lost": True}, [])


@pytest.mark.parametrize("placement", [{"host": 1}, {"host": None}, {}, {"gpu": "gpu1"}, "gpu1"])
def test_what_is_no_place_without_gpus(placement: Any):
    assert is_damaged(saying(events.RunPlaced(T0, a_run(), Placement(())), placement=placement))


def test_a_reason_for_a_loss_that_is_no_text_is_damage():
    lost = events.RunExited(T0, a_run(), Lost(), 0)

    assert is_damaged(saying(lost, ending={"lost": True, "why": 5}))
