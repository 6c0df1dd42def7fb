"""What a journal came to, written down and read back; and what is not to be believed."""

import json
import zlib
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import NODEFAULT
from msgspec.structs import fields

from smartsched.core import events
from smartsched.core.bookmark import SEEN, Mark, decode, encode, weight
from smartsched.core.footprint import Footprint
from smartsched.core.model import (
    Asked,
    EndedRun,
    Exited,
    GivenUp,
    Job,
    JobId,
    JobSpec,
    Killed,
    Lingering,
    Position,
    Run,
    Running,
    RunStatus,
    Starting,
    Stopping,
    Wishes,
)
from smartsched.core.policy import Policy
from smartsched.core.state import Closing, Failure, Postponed, Record, State, over
from smartsched.core.terms import MOST_REQUESTS, Past, Terms, began
from smartsched.core.totals import Totals
from tests.builders import (
    HOST,
    T0,
    a_hold,
    a_key,
    a_placement,
    a_process_id,
    a_run,
    a_spec,
    accepted,
    exited,
    finished,
    launched,
    placed,
)
from tests.core.anything import JSON

BEGAN = events.RunBegan(T0, "run", HOST, "/here", ("list",), None, "{}", "run.1", "place")
MARK = Mark(7, 1234, 99)
WISHES = Wishes(2, 2**30, 30.0, 5, 60.0, "big")
JOB = Job(
    JobId(3), JobSpec("a \udcff", "list:3", "/", WISHES), 4, 1, 1, 9, T0, (a_key(1),), T0, 1, 2**30,
    is_added=True, alone=True,
)  # fmt: skip
ENDED = EndedRun(
    a_run(3), JOB, a_placement(), T0, T0 + 1, Killed(9), "timeout", "/log", "CUDA out of memory"
)
RUNS: list[RunStatus] = [
    Starting(T0, a_placement()),
    Running(T0, a_placement(1), a_process_id(), None),
    Stopping(T0, a_placement(2), a_process_id(), "/log", T0 - 1, "contention", T0 + 1),
    Lingering(T0, a_placement(3), asked=True, killed_at=None),
]
# What follows from the journal. Whoever adds a field to State says here what it is, or in SEEN.
FULL: dict[str, Any] = {
    "queue": deque([JOB, Job(JobId(1), a_spec())]),
    "asked": Counter({Asked(2, 2**30): 1, Asked(None, None): 1}),
    "runs": {a_run(n): Run(a_run(n), JOB, status) for n, status in enumerate(RUNS)},
    "ended": {a_run(3): ENDED},
    "holds": {a_key(1): {a_run(2): a_hold(reserved_bytes=5), a_run(1): a_hold()}},
    "totals": Totals(9, 8, 7, 6, 5, 4, 3, 2.5, 1, 0.5),
    "input_open": False,
    "read_to": Position(1, 2, 3),
    "whole_inputs": {1: 2**40, 0: 7},
    "set_aside": {JobId(3): JOB},
    "unnamed": {JobId(4), JobId(9)},
    "dropped": {JobId(5): JOB},
    "given_up": {JobId(8): GivenUp(JOB, "failed", earlier=True), JobId(3): GivenUp(JOB, "failed")},
    "cancelled": {JobId(6)},
    "paused": True,
    "all_cancelled": True,
    "interrupted": [JOB],
    "next_rank": 12,
    "place": "machine/boot/namespace",
    "closing": Closing.STOP,
    "halted": True,
    "before": Totals(1),
    "waiting_since": T0,
    "ever_launched": True,
    "wait_timed_out": True,
    "last_ending": Exited(3),
    "postponed": {HOST: Postponed(T0, "no room", 4.0)},
    "records": {a_key().uuid: Record(a_key(), T0, (Failure(JOB, a_run(), final=True),), T0 - 1)},
    "withheld": {a_key(2).uuid},
    "learned": {"b *": Footprint(2, 3, 4.5, 5.5, 6.5), "a *": Footprint(1, 1, None, 1.0, 1.0)},
}
FULL_PAST = Past(
    Terms(BEGAN, '{"retries": "2"}', ("a", "b"), 2, {"r1": None, "r2": None}, 325.0),
    State(Policy("run.1"), footprints=dict(FULL["learned"]), **FULL),
)


def a_past(*more: events.Event) -> Past:
    past = began(BEGAN, "run")
    for event in more:
        past.take(event)
    return past


def read(data: bytes, author: str = "1.0") -> Past | None:
    found = decode(data, author, "run")
    return None if found is None else found.past


def sealed(record: dict[str, Any]) -> bytes:
    """With a checksum that is right, whatever it says."""
    del record["crc"]
    body = json.dumps(record, separators=(",", ":")).encode()[:-1]
    return b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body))


# --- all of it


def test_every_field_of_state_follows_from_the_journal_or_was_seen():
    assert {each.name for each in fields(State)} == FULL.keys() | SEEN
    assert not FULL.keys() & SEEN


@pytest.mark.parametrize("name", FULL)
def test_the_example_says_something_of_every_field(name: str):
    (known,) = [each for each in fields(State) if each.name == name]
    default = known.default if known.default_factory is NODEFAULT else known.default_factory()

    assert FULL[name] != default


def test_what_a_journal_came_to_comes_back_as_it_was():
    found = decode(encode(MARK, FULL_PAST, "1.0"), "1.0", "run")

    assert found is not None
    assert found.mark == MARK
    assert found.past == FULL_PAST
    assert encode(MARK, found.past, "1.0") == encode(MARK, FULL_PAST, "1.0")


def test_what_earlier_runs_have_taught_is_not_of_this_run():
    past = a_past()
    past.state.footprints["theirs"] = Footprint(1, 1, 1.0, 1.0, 1.0)

    back = read(encode(MARK, past, "1.0"))

    assert back is not None
    assert back.state.footprints == back.state.learned == {}


def test_a_run_without_an_id_goes_by_its_name():
    past = began(events.RunBegan(T0, "run", HOST, "/", (), None, "{}"), "run")

    back = read(encode(MARK, past, "1.0"))

    assert back is not None
    assert back.state.policy.run_id == past.state.policy.run_id == "run"


def test_it_is_one_line_of_ascii_json():
    line = encode(MARK, FULL_PAST, "1.0")

    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line)["journal"] == {"seq": 7, "size_bytes": 1234, "crc": 99}


# --- what is not believed


def test_of_another_version_it_is_not_believed():
    assert read(encode(MARK, a_past(), "1.0"), author="1.1") is None


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_of_another_form_it_is_not_believed(version: Any):
    record = json.loads(encode(MARK, a_past(), "1.0")) | {"smartsched_bookmark": version}

    assert read(sealed(record)) is None


def test_cut_anywhere_it_is_not_believed():
    line = encode(MARK, a_past(*accepted()), "1.0")

    assert all(read(line[:size]) is None for size in range(len(line)))
    assert all(read(line[size:]) is None for size in range(1, len(line)))


def test_with_another_byte_anywhere_it_is_not_believed():
    line = encode(MARK, a_past(*accepted()), "1.0")

    for at in range(len(line)):
        for flip in (0x01, 0x20, 0x80):
            assert read(line[:at] + bytes([line[at] ^ flip]) + line[at + 1 :]) is None


@given(st.binary(max_size=300))
def test_garbage_is_not_believed(garbage: bytes):
    assert read(garbage) is None


@pytest.mark.parametrize("field", ["journal", "began", "inputs", "requests", "state"])
@given(value=JSON)
def test_with_any_other_value_it_is_read_or_not_and_nothing_else(field: str, value: Any):
    record = json.loads(encode(MARK, a_past(*accepted()), "1.0"))

    read(sealed(record | {field: value}))


# --- what it is made of


def test_what_was_asked_for_last_counts():
    past = a_past(
        events.RunResumed(T0, HOST, '{"a": 1}'),
        events.OptionsSet(T0, "r1", '{"a": 2}'),
        events.ListReplaced(T0, ("other",)),
    )

    assert (past.terms.options, past.terms.inputs, past.terms.lists) == ('{"a": 2}', ("other",), 1)
    assert list(past.terms.requests) == ["r1"]


def test_of_many_requests_the_last_are_known():
    terms = a_past().terms
    for number in range(MOST_REQUESTS + 5):
        terms.take(events.RunPaused(T0, f"r{number}"))

    assert len(terms.requests) == MOST_REQUESTS
    assert next(iter(terms.requests)) == "r5"


def test_its_weight_is_not_that_of_finished_jobs():
    done = [event for job in range(1, 50) for event in
            (*accepted(50)[job - 1:job], placed(job), launched(job), exited(job), finished(job),
             events.GpuReleased(T0, a_key(), a_run(job)))]  # fmt: skip

    past = a_past(*done)

    assert weight(past.state) == 0
    assert len(encode(MARK, past, "1.0")) < len(encode(MARK, a_past(*accepted(50)), "1.0"))


# --- attempts that are over


def test_attempts_that_were_placed_and_go_on_no_more_are_over():
    one: list[events.Event] = [placed(1), launched(1), exited(1), finished(1)]
    state = a_past(*accepted(3), *one, placed(2, gpu=1), launched(2)).state

    there = [a_run(1), a_run(2), a_run(3), a_run(4)]
    assert over(state, there, rebooted=False) == {a_run(1)}


def test_an_attempt_that_is_not_on_record_is_not_over():
    gone: list[events.Event] = [placed(1), events.RunRevoked(T0, a_run(1))]
    state = a_past(*accepted(1), *gone).state

    assert over(state, [a_run(1, 1), a_run(1, 2)], rebooted=False) == {a_run(1, 1)}
