"""Snapshots as lines of JSON: what was written is read again, damage is told and never crashes."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsched.core import codec
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
from tests.builders import HOST, T0, a_process, a_sample, a_snapshot, history, unreadable

HUGE = 10**400  # no float holds it

texts = st.text(max_size=30)  # any character, lone surrogates too
counts = st.integers(0, 2**62)
pids = st.integers(0, 2**31)
uuids = texts.map(lambda text: GpuKey(HOST, GpuUuid(text)))

processes = st.builds(
    GpuProcess,
    pid=pids,
    kind=st.sampled_from(["compute", "graphics"]),
    memory_bytes=st.none() | counts,
    user=st.none() | texts,
    command=st.none() | texts,
    run_tag=st.none() | texts,
    session=st.none() | pids,
    ancestors=st.lists(pids, max_size=4).map(tuple),
    utilization_percent=st.none() | st.integers(0, 100),
)
points = st.builds(
    UtilizationPoint,
    age_seconds=st.integers(0, 10**7).map(lambda ms: ms / 1000),  # written to the millisecond
    percent=st.integers(0, 100),
)
samples = st.builds(
    GpuSample,
    key=uuids,
    index=st.integers(0, 1023),
    slot=st.none() | st.integers(0, 6),
    name=texts,
    memory_total_bytes=st.integers(1, 2**62),
    memory_used_bytes=counts,
    memory_free_bytes=counts,
    utilization_percent=st.none() | st.integers(0, 100),
    utilization_history=st.none() | st.lists(points, max_size=4).map(tuple),
    compute_mode=st.sampled_from(["default", "exclusive", "prohibited"]),
    ailment=st.none() | texts,
    processes=st.lists(processes, max_size=3).map(tuple),
)
lost = st.builds(
    GpuUnreadable,
    key=uuids,
    index=st.integers(0, 1023),
    slot=st.none() | st.integers(0, 6),
    name=texts,
    why=texts,
)
gpus: st.SearchStrategy[GpuReading] = samples | lost
observations: st.SearchStrategy[Seen] = st.builds(
    Snapshot,
    host=st.just(HOST),
    taken_at=st.just(T0),
    gpus=st.lists(gpus, max_size=3).map(tuple),
    whole=st.booleans(),
) | st.builds(SamplerTrouble, host=st.just(HOST), why=texts)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([HUGE, -HUGE])
    | st.floats()
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def line_of(observation: Seen) -> str:
    return codec.encode(observation, wall_time=1_700_000_000.5, monotonic_s=12.25)


def read(line: str | bytes) -> Seen:
    """All of what a reader does with a line."""
    fields = codec.parse(line)
    codec.monotonic_seconds(fields)
    codec.wall_seconds(fields)
    return codec.decode(fields, taken_at=T0)


def whole_record() -> dict[str, Any]:
    gpu = a_sample(utilization_history=history((1.0, 5)), processes=(a_process(ancestors=(1, 2)),))
    record: dict[str, Any] = json.loads(line_of(a_snapshot(gpu)))
    return record


def damaged(path: tuple[str | int, ...], value: Any) -> str:
    """A good record with one value replaced."""
    record: Any = whole_record()
    target = record
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return json.dumps(record)


def without(path: tuple[str | int, ...]) -> str:
    record: Any = whole_record()
    target = record
    for step in path[:-1]:
        target = target[step]
    del target[path[-1]]
    return json.dumps(record)


GPU = ("gpus", 0)
PROCESS = (*GPU, "processes", 0)
REQUIRED = [
    ("time",),
    ("monotonic_s",),
    ("host",),
    ("whole",),
    ("gpus",),
    (*GPU, "uuid"),
    (*GPU, "index"),
    (*GPU, "name"),
    (*GPU, "memory_total_bytes"),
    (*GPU, "memory_used_bytes"),
    (*GPU, "memory_free_bytes"),
    (*GPU, "compute_mode"),
    (*GPU, "processes"),
    (*PROCESS, "pid"),
    (*PROCESS, "kind"),
    (*PROCESS, "ancestors"),
]
OPTIONAL = [
    (*GPU, "slot"),
    (*GPU, "utilization_percent"),
    (*GPU, "utilization_history"),
    (*GPU, "ailment"),
    (*PROCESS, "memory_bytes"),
    (*PROCESS, "user"),
    (*PROCESS, "command"),
    (*PROCESS, "run_tag"),
    (*PROCESS, "session"),
    (*PROCESS, "utilization_percent"),
]


WRONG: list[Any] = [None, {}, [[]], -1, "", float("nan"), HUGE]


def is_right_kind(path: tuple[str | int, ...], value: object) -> bool:
    """Whether this happens to be a value that the field may have."""
    match path[-1], value:
        case (("host" | "uuid" | "name"), str()):
            return True
        case (("time" | "monotonic_s"), int()):
            return abs(value) < HUGE
        case "ancestors", list():
            return True
        case _:
            return False


def brief(value: object) -> str:
    return "huge" if "0" * 100 in repr(value) else repr(value)


@given(observations)
def test_what_was_written_is_read_again(observation: Seen):
    assert read(line_of(observation)) == observation


@given(observations)
def test_a_line_is_one_line_of_ascii(observation: Seen):
    line = line_of(observation)

    assert line.isascii()
    assert len(line.splitlines()) == 1


def test_times_travel_with_the_line():
    fields = codec.parse(line_of(a_snapshot()))

    assert codec.monotonic_seconds(fields) == 12.25
    assert codec.wall_seconds(fields) == 1_700_000_000.5


def test_bytes_are_read_like_text():
    assert read(line_of(a_snapshot(a_sample())).encode()) == a_snapshot(a_sample())


def test_a_recording_of_version_1_reads_for_ever():
    line = (
        '{"smartsched_sample":1,"time":1700000000.5,"monotonic_s":7.5,"host":"box","whole":true,'
        '"gpus":[{"uuid":"GPU-0000","index":0,"slot":null,"name":"Test GPU",'
        '"memory_total_bytes":107374182400,"memory_used_bytes":0,"memory_free_bytes":107374182400,'
        '"utilization_percent":0,"utilization_history":null,"compute_mode":"default",'
        '"ailment":null,"processes":[]},{"uuid":"GPU-0001","index":1,"slot":null,'
        '"name":"Test GPU","unreadable":"GPU is lost"}]}'
    )

    assert read(line) == a_snapshot(a_sample(0), unreadable(1))


def test_a_recording_from_before_the_usage_by_process_reads_for_ever():
    line = (
        '{"smartsched_sample":1,"time":1700000000.5,"monotonic_s":7.5,"host":"box","whole":true,'
        '"gpus":[{"uuid":"GPU-0000","index":0,"slot":null,"name":"Test GPU",'
        '"memory_total_bytes":107374182400,"memory_used_bytes":0,"memory_free_bytes":107374182400,'
        '"utilization_percent":0,"utilization_history":null,"compute_mode":"default",'
        '"ailment":null,"processes":[{"pid":500,"kind":"compute","memory_bytes":1073741824,'
        '"user":"alice","command":"python train.py","run_tag":null,"session":500,'
        '"ancestors":[1]}]}]}'
    )
    process = GpuProcess(500, "compute", 2**30, "alice", "python train.py", None, 500, (1,), None)

    assert read(line) == a_snapshot(a_sample(0, processes=(process,)))


def test_fields_of_a_later_writer_are_ignored():
    record = whole_record()
    record["new"] = record["gpus"][0]["new"] = record["gpus"][0]["processes"][0]["new"] = [1]

    assert read(json.dumps(record)) == read(json.dumps(whole_record()))


@pytest.mark.parametrize("path", OPTIONAL, ids=str)
def test_what_need_not_be_reported_may_be_missing(path: tuple[str | int, ...]):
    assert read(without(path)) == read(damaged(path, None))


@pytest.mark.parametrize(
    ("path", "value"),
    [(path, value) for path in REQUIRED for value in WRONG if not is_right_kind(path, value)],
    ids=brief,
)
def test_a_required_field_of_a_wrong_kind_is_told(path: tuple[str | int, ...], value: object):
    with pytest.raises(BadSnapshotError):
        read(damaged(path, value))


@pytest.mark.parametrize("path", OPTIONAL, ids=str)
@pytest.mark.parametrize("value", [{}, -1, 0.5, float("nan"), [[]], HUGE, True], ids=brief)
def test_an_optional_field_of_a_wrong_kind_is_told(path: tuple[str | int, ...], value: object):
    with pytest.raises(BadSnapshotError):
        read(damaged(path, value))


@pytest.mark.parametrize("path", REQUIRED, ids=str)
def test_a_missing_field_is_told(path: tuple[str | int, ...]):
    with pytest.raises(BadSnapshotError, match=str(path[-1])):
        read(without(path))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*GPU, "memory_total_bytes"), 0),
        ((*GPU, "compute_mode"), "shared"),
        ((*GPU, "unreadable"), 7),
        ((*PROCESS, "kind"), "other"),
        ((*PROCESS, "pid"), True),
        ((*PROCESS, "utilization_percent"), 101),
        (("trouble",), None),
        (("smartsched_sample",), 2),
        (("smartsched_sample",), "1"),
        ((*GPU, "utilization_history"), [[1.0]]),
        ((*GPU, "utilization_history"), [[-1.0, 5]]),
        ((*GPU, "utilization_history"), [[1.0, 5.5]]),
        ((*GPU, "utilization_history"), [[float("nan"), 5]]),
        ((*GPU, "utilization_history"), [[float("inf"), 5]]),
        ((*GPU, "utilization_history"), [[HUGE, 5]]),
        ((*GPU, "utilization_history"), [[1.0, HUGE]]),
        ((*GPU, "utilization_history"), "1"),
    ],
    ids=brief,
)
def test_a_value_that_cannot_be_is_told(path: tuple[str | int, ...], value: object):
    with pytest.raises(BadSnapshotError):
        read(damaged(path, value))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[]",
        "{}",
        '"smartsched_sample"',
        "NaN",
        "smartsched 1.0",
        b"\xff\xfe\x00",
        b"\x80",
        '{"smartsched_sample": 1',
        "[" * 100_000,
        '{"smartsched_sample":' * 100_000,
        "9" * 5000,
        '{"smartsched_sample": ' + "9" * 5000 + "}",
        "\x00",
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_line_that_is_no_sample_is_told(line: str | bytes):
    with pytest.raises(BadSnapshotError):
        read(line)


@pytest.mark.parametrize("depth", range(860, 1000, 4))
@pytest.mark.parametrize("field", ["smartsched_sample", "host", "gpus"])
def test_nesting_that_only_just_parses_is_told(field: str, depth: int):
    nested = "[" * depth + "]" * depth
    rest = {name: value for name, value in whole_record().items() if name != field}
    line = json.dumps(rest)[:-1] + f', "{field}": {nested}}}'

    with pytest.raises(BadSnapshotError):
        read(line)


@given(st.data())
@settings(max_examples=30)
def test_a_line_cut_short_is_told(data: st.DataObject):
    line = json.dumps(whole_record())

    with pytest.raises(BadSnapshotError):
        read(line[: data.draw(st.integers(0, len(line) - 1))])


@given(st.sampled_from([*REQUIRED, *OPTIONAL, ("trouble",), (*GPU, "unreadable")]), json_values)
@settings(max_examples=200)
def test_whatever_stands_in_a_field_is_read_or_told(path: tuple[str | int, ...], value: object):
    line = damaged(path, value)

    with suppress(BadSnapshotError):
        assert isinstance(read(line), Snapshot | SamplerTrouble)


@given(json_values)
def test_whatever_stands_in_a_line_is_read_or_told(value: object):
    with pytest.raises(BadSnapshotError):
        read(json.dumps(value))


def test_the_host_of_a_snapshot_is_that_of_its_gpus():
    far = Snapshot(HostName("far"), T0, (), whole=False)

    assert read(line_of(far)) == far
