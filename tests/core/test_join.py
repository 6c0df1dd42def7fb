"""What an agent is told once: it comes back as it was, and nothing else is taken for it."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from smartsched.core import join as joins
from smartsched.core.credentials import Credentials
from smartsched.core.join import Join
from smartsched.errors import BadMessageError
from tests.core.anything import JSON

JOIN = Join(
    version="1.0",
    run_id="r-1",
    run_name="night",
    host="gpu1",
    addresses=("10.0.0.1:7000", "[fe80::1]:7000"),
    credentials=Credentials("CA", "CERT", "KEY"),
    sampler_arguments=("--interval", "1"),
    directory="/home/ada",
    other_directory="",
    logs="/home/ada/logs",
    logs_mark=".abc",
    sends_logs=False,
    shell=None,
    nice=None,
    checkpoint_signal=None,
    claims="",
    lease_seconds=300.0,
    grace_seconds=10.0,
    patience_seconds=6.0,
)

TEXTS = st.text(max_size=20) | st.binary(max_size=20).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
SECONDS = st.floats(0.001, 1e8)
joined = st.builds(
    Join,
    version=TEXTS,
    run_id=TEXTS,
    run_name=TEXTS,
    host=TEXTS,
    addresses=st.lists(TEXTS, max_size=3).map(tuple),
    credentials=st.builds(Credentials, TEXTS, TEXTS, TEXTS),
    sampler_arguments=st.lists(TEXTS, max_size=3).map(tuple),
    directory=TEXTS,
    other_directory=TEXTS,
    logs=TEXTS,
    logs_mark=TEXTS,
    sends_logs=st.booleans(),
    shell=st.none() | TEXTS,
    nice=st.none() | st.integers(0, 19),
    checkpoint_signal=st.none() | st.integers(1, 64),
    claims=st.none() | TEXTS,
    lease_seconds=st.none() | SECONDS,
    grace_seconds=SECONDS,
    patience_seconds=SECONDS,
    warn_seconds=SECONDS,
)


def saying(**changes: Any) -> bytes:
    """The file with other values in it."""
    return json.dumps(json.loads(joins.encode(JOIN)) | changes).encode()


def is_refused(data: bytes) -> bool:
    with pytest.raises(BadMessageError) as raised:
        joins.decode(data)
    return len(str(raised.value)) > 0


@given(joined)
def test_it_comes_back_as_it_was(join: Join):
    assert joins.decode(joins.encode(join)) == join


def test_a_directory_that_is_no_utf_8_comes_back():
    join = replace(JOIN, directory="/home/\udce9")

    assert joins.decode(joins.encode(join)) == join


def test_it_is_ascii_and_ends_like_a_text_file():
    assert joins.encode(replace(JOIN, directory="/häme/\udce9")).isascii()
    assert joins.encode(JOIN).endswith(b"}\n")


def test_its_key_is_not_shown_where_it_is_printed():
    assert "KEY" not in repr(JOIN)


@given(st.integers(0, 10_000))
def test_a_file_that_is_cut_off_is_refused(length: int):
    data = joins.encode(JOIN)

    assert is_refused(data[: length % (len(data) - 2)])


@given(st.binary(max_size=60))
def test_garbage_is_refused(garbage: bytes):
    assert is_refused(garbage)


@pytest.mark.parametrize("value", [None, True, 1, "text", [], {}, [{}], {"smartsched_join": None}])
def test_json_that_is_no_join_file_is_refused(value: Any):
    assert is_refused(json.dumps(value).encode())


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_a_file_of_another_version_says_so(version: Any):
    with pytest.raises(BadMessageError, match="another version"):
        joins.decode(saying(smartsched_join=version))


@pytest.mark.parametrize("name", ["version", "run_id", "host", "directory", "logs", "credentials"])
def test_a_file_that_lacks_something_is_refused(name: str):
    value = json.loads(joins.encode(JOIN))
    del value[name]

    assert is_refused(json.dumps(value).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"host": 1},
        {"run_id": None},
        {"directory": ["/"]},
        {"addresses": [1]},
        {"addresses": None},
        {"addresses": 5},
        {"sampler_arguments": [None]},
        {"credentials": None},
        {"credentials": "key"},
        {"credentials": {"key": "only"}},
        {"lease_seconds": 0},
        {"lease_seconds": -1},
        {"lease_seconds": "soon"},
        {"lease_seconds": float("nan")},
        {"lease_seconds": float("inf")},
        {"lease_seconds": 10**400},
        {"grace_seconds": "soon"},
        {"grace_seconds": None},
        {"patience_seconds": float("nan")},
        {"warn_seconds": -1.0},
        {"nice": "very"},
        {"nice": 1.5},
        {"checkpoint_signal": "USR1"},
        {"sends_logs": 1},
        {"shell": 5},
        {"claims": False},
        {"credentials": {"authority_pem": 1, "certificate_pem": "", "key_pem": ""}},
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(changes: dict[str, Any]):
    assert is_refused(saying(**changes))


@given(st.sampled_from(list(json.loads(joins.encode(JOIN)))), JSON)
@settings(max_examples=300)
def test_with_any_other_value_it_is_read_or_refused_and_nothing_else(name: str, value: Any):
    with suppress(BadMessageError):
        joins.decode(saying(**{name: value}))


def test_each_field_is_read_as_what_it_is():
    assert {field.name for field in fields(Join)} <= json.loads(joins.encode(JOIN)).keys()
    for field in fields(Join):
        assert is_refused(saying(**{field.name: {"no": "such"}}))


def test_what_is_wrong_with_a_key_is_not_said_by_showing_it():
    with pytest.raises(BadMessageError) as raised:
        joins.decode(saying(credentials={"key_pem": "KEY", "authority_pem": 5}))

    assert "KEY" not in str(raised.value)


def test_json_nested_without_end_is_refused():
    assert is_refused(b"[" * 100_000)
