"""What --dry-run and the live view say."""

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from smartsched.core.freeness import Size, Thresholds
from smartsched.core.model import ClaimGranted, ClaimRefused
from smartsched.core.sight import hear
from smartsched.core.standing import REMEMBERED_SECONDS
from smartsched.core.state import State
from smartsched.core.survey import Survey, as_json, gpu_rows, survey
from tests.builders import (
    GIB,
    T0,
    a_key,
    a_policy,
    a_process,
    a_sample,
    a_state,
    exited,
    launched,
    listed,
    placed,
    unreadable,
    used_by,
)

if TYPE_CHECKING:
    from smartsched.core.events import Event
    from smartsched.core.model import GpuReading


def surveyed(state: State, seconds: float = 0.0) -> Survey:
    return survey(state, T0 + seconds)


def test_each_gpu_has_its_word_and_its_reasons():
    gpus: list[GpuReading] = [a_sample(0), used_by(a_process(gib=43), index=1), unreadable(2)]

    found = surveyed(a_state(*gpus))

    assert [(row.label, row.word, row.reasons) for row in found.rows] == [
        ("0", "FREE", ()),
        ("1", "BUSY", ("memory 43% > 10% (alice: python train.py, 43 GiB)",)),
        ("2", "UNKNOWN", ("GPU is lost",)),
    ]
    assert found.any_free


def test_a_gpu_that_runs_a_job_of_ours_is_ours():
    state = a_state(a_sample(), queued=1, events=[placed(), launched()])

    (row,) = surveyed(state).rows

    assert (row.word, row.reasons) == ("OURS", ("runs job 1",))
    assert not surveyed(state).any_free


def test_a_gpu_whose_memory_is_not_back_is_still_ours():
    events: list[Event] = [placed(), launched(), exited()]
    state = a_state(a_sample(used_gib=40), queued=1, events=events)

    (row,) = surveyed(state, 3).rows

    assert (row.word, row.reasons) == ("OURS", ("memory of job 1 has not come back for 3.0s",))


def test_every_failed_test_is_told_to_machines():
    (row,) = surveyed(a_state(used_by(a_process(gib=43), utilization_percent=80))).rows

    assert row.failed == (
        {
            "test": "memory",
            "value": "43%",
            "threshold": "> 10%",
            "who": "alice: python train.py, 43 GiB",
            "seconds_ago": 0.0,
        },
        {
            "test": "utilisation",
            "value": "80%",
            "threshold": "> 10%",
            "who": "alice: python train.py, 43 GiB",
            "seconds_ago": 0.0,
        },
    )


def test_a_row_tells_what_was_read():
    thief = a_process(gib=43)

    (row,) = surveyed(a_state(used_by(thief, utilization_percent=80))).rows

    assert (row.memory_used_bytes, row.memory_total_bytes) == (43 * GIB, 100 * GIB)
    assert row.strangers_memory_bytes == 43 * GIB
    assert (row.utilization_mean_percent, row.utilization_max_percent) == (80.0, 80)
    assert row.processes == (thief,)


def test_a_row_of_an_unreadable_gpu_tells_no_numbers():
    (row,) = surveyed(a_state(unreadable())).rows

    numbers = (row.memory_used_bytes, row.memory_total_bytes, row.strangers_memory_bytes)
    assert numbers == (None, None, None)
    assert row.utilization_mean_percent is None


def test_what_would_start_where_and_what_would_wait_and_why():
    gpus: list[GpuReading] = [a_sample(0), used_by(a_process(gib=43), index=1), a_sample(2)]

    found = surveyed(a_state(*gpus, queued=3))

    assert [(job.id, where.labels) for job, where in found.starts] == [(1, "0"), (2, "2")]
    assert [job.id for job in found.waits] == [3]
    assert found.waits_because == "GPU 1: memory 43% > 10% (alice: python train.py, 43 GiB)"


def test_what_waits_only_for_earlier_commands_says_so():
    found = surveyed(a_state(a_sample(), queued=2))

    assert found.waits_because == "every free GPU is given to an earlier command"


def test_where_nothing_waits_there_is_no_reason():
    assert surveyed(a_state(a_sample(), queued=1)).waits_because == ""


def test_a_survey_changes_nothing():
    state = a_state(a_sample(), queued=2)
    before = deepcopy(state)

    surveyed(state)

    assert state == before


def as_read(state: State, *notes: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        json.dumps(as_json(surveyed(state), state.policy, notes), allow_nan=False)
    )
    return found


def test_the_survey_is_one_json_object():
    gpus: list[GpuReading] = [a_sample(0), used_by(a_process(gib=43), index=1), unreadable(2)]

    found = as_read(a_state(*gpus, queued=2), "a note")

    assert found["smartsched_survey"] == 1
    assert found["any_free"] is True
    assert [gpu["verdict"] for gpu in found["gpus"]] == ["FREE", "BUSY", "UNKNOWN"]
    assert found["gpus"][1]["processes"] == [
        {
            "pid": 500,
            "kind": "compute",
            "user": "alice",
            "command": "python train.py",
            "memory_bytes": 43 * GIB,
            "job": None,
        }
    ]
    assert found["would_start"] == [{"command": "echo 1", "source": "list:1", "gpus": "0"}]
    assert found["would_wait"] == [{"command": "echo 2", "source": "list:2"}]
    assert found["would_wait_because"]
    assert found["notes"] == ["a note"]


def test_the_json_tells_the_thresholds():
    limits = Thresholds(Size(4 * GIB), 20.0, GIB, 3, 0.0)

    by_share = as_read(a_state(a_sample()))["thresholds"]
    by_size = as_read(a_state(a_sample(), thresholds=limits))["thresholds"]

    assert by_share["max_memory"] == {"percent": 10.0}
    assert by_size == {
        "max_memory": {"bytes": 4 * GIB},
        "max_utilization_percent": 20.0,
        "min_free_memory_bytes": GIB,
        "max_processes": 3,
        "free_for_seconds": 0.0,
    }


def test_a_box_that_was_not_read_yet_is_surveyed_too():
    found = as_read(State(a_policy()))

    assert (found["gpus"], found["any_free"], found["would_wait_because"]) == ([], False, None)


# --- other dispatchers, and what can never be


def test_a_gpu_that_another_dispatcher_has_claimed_is_busy_and_it_is_said_whose_claim():
    state = a_state(a_sample(0), a_sample(1), queued=2)
    hear(state, ClaimRefused(T0, (a_key(0),), ((a_key(0), "claimed by bob (run 7, pid 4711)"),)))

    found = surveyed(state)

    assert [(row.word, row.reasons) for row in found.rows] == [
        ("BUSY", ("claimed by bob (run 7, pid 4711)",)),
        ("FREE", ()),
    ]
    assert [(job.id, where.labels) for job, where in found.starts] == [(1, "1")]
    assert "claimed by bob" in found.waits_because


def test_the_json_tells_whose_claim_holds_a_gpu():
    state = a_state(a_sample())
    hear(state, ClaimRefused(T0, (a_key(0),), ((a_key(0), "claimed by bob"),)))

    (gpu,) = as_read(state)["gpus"]

    assert (gpu["verdict"], gpu["reasons"]) == ("BUSY", ["claimed by bob"])
    assert gpu["failed_tests"] == []


def test_a_gpu_that_is_ours_by_now_is_no_longer_claimed_by_others():
    state = a_state(a_sample())
    hear(state, ClaimRefused(T0, (a_key(0),), ((a_key(0), "claimed by bob"),)))

    hear(state, ClaimGranted(T0 + 1, (a_key(0),)))

    assert [row.word for row in surveyed(state).rows] == ["FREE"]


def test_a_gpu_that_others_claimed_a_while_ago_may_be_free_by_now():
    state = a_state(a_sample())
    hear(state, ClaimRefused(T0, (a_key(0),), ((a_key(0), "claimed by bob"),)))

    assert [row.word for row in gpu_rows(state, T0 + REMEMBERED_SECONDS)] == ["FREE"]


def test_jobs_that_no_gpu_will_ever_do_for_are_told_with_the_reason():
    commands = listed("torchrun a.py  # smartsched: gpus=3", "b", "c")
    state = a_state(a_sample(0), events=commands)

    found = as_read(state)

    assert found["would_fail"] == [
        {
            "command": "torchrun a.py  # smartsched: gpus=3",
            "source": "list:1",
            "why": "it needs 3 GPUs, and there are 1 to choose from",
        }
    ]
    assert [each["command"] for each in found["would_start"]] == ["b"]
    assert [each["command"] for each in found["would_wait"]] == ["c"]


def test_jobs_that_need_no_gpu_start_on_none():
    state = a_state(unreadable(), events=listed("make  # smartsched: gpus=0"))

    (start,) = as_read(state)["would_start"]

    assert start["gpus"] == ""
