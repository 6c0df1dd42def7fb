"""What a request says, whoever wrote it: something that can be done, or why it is nothing."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsched.core.apply import apply
from smartsched.core.requests import VERSION, Ask, Request, SetOptions, Unusable, request_of
from smartsched.core.steering import steer
from tests.builders import T0, a_sample, a_state, accepted, launched, placed

VERBS = ["add", "cancel", "retry", "set", "pause", "continue", "status"]
FIELDS = ["verb", "jobs", "all", "failed", "commands", "directory", "options"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        [*VERBS, "1", "1-2", "2-999999999999999", "0", "echo # smartsched: gpus=2", "\0", "\ud800"]
    ),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values),
    max_leaves=6,
)
ANYTHING = st.dictionaries(st.sampled_from(FIELDS), VALUES).flatmap(
    lambda fields: st.sampled_from(VERBS).map(lambda verb: {"verb": verb} | fields)
)


def said(**fields: Any) -> Request:
    return request_of("7", json.dumps({"smartsched_request": VERSION, **fields}).encode())


def why_not(**fields: Any) -> str:
    request = said(**fields)
    assert isinstance(request, Unusable)
    return request.why


@pytest.mark.parametrize("jobs", ["12", {"1": 2}, None, 1, True])
@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_jobs_are_a_list_and_the_letters_of_a_text_are_none(verb: str, jobs: object):
    assert "is no list" in why_not(verb=verb, jobs=jobs)


@pytest.mark.parametrize("commands", ["ab", ["ab"], {"ab": 1}, [{"a": 1, "b": 2}]])
def test_commands_are_a_list_of_pairs(commands: object):
    assert "is no list" in why_not(verb="add", commands=commands, directory="/")


@pytest.mark.parametrize(
    "fields",
    [
        {"verb": "cancel", "jobs": ["x" * 10**6, ["y" * 10**6]]},
        {"verb": ["z" * 10**6]},
        {"verb": "add", "commands": "c" * 10**6, "directory": "/"},
    ],
)
def test_why_it_is_nothing_is_said_in_short(fields: dict[str, object]):
    assert len(why_not(**fields)) < 300


@given(ANYTHING)
@settings(max_examples=150)
def test_whatever_is_asked_is_done_or_refused(fields: dict[str, object]):
    state = a_state(a_sample(), events=[*accepted(3), placed(), launched()])
    request = said(**fields)

    if not isinstance(request, Ask | SetOptions):
        event, answer = steer(state, request, T0 + 1)
        apply(state, event)
        assert answer.words


@given(st.binary(max_size=80) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_else_is_there_is_no_request(text: bytes):
    assert isinstance(request_of("7", text), Unusable)
