"""Recordings of `smartsched sample`, played back at their own pace."""

import gc
import json
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smartsched.core.model import Observation, SamplerTrouble, Snapshot
from smartsched.edges.recording import Recording
from smartsched.errors import UsageError
from tests.edges.sampling import once

# Recordings are open for as long as the program plays them.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def line(at: float, *uuids: str, whole: bool = True, **more: Any) -> str:
    gpus = [
        {"uuid": uuid, "index": 0, "slot": None, "name": "GPU", "unreadable": "test"}
        for uuid in uuids
    ]
    record = {"smartsched_sample": 1, "time": at, "monotonic_s": 5.0, "host": "there"}
    return json.dumps(record | {"whole": whole, "gpus": gpus} | more) + "\n"


def record(text: str) -> str:
    Path("day.jsonl").write_text(text)
    return "day.jsonl"


def uuids(observation: Observation) -> list[str]:
    assert isinstance(observation, Snapshot)
    return [gpu.key.uuid for gpu in observation.gpus]


def test_it_plays_at_its_own_pace_from_the_first_question_on():
    recording = Recording(record(line(1000, "GPU-a") + line(1002, "GPU-b") + line(1005, "GPU-c")))

    seen = [uuids(recording.read(50.0 + after, None)) for after in (0, 1.9, 2.0, 4.9, 5.0)]

    assert seen == [["GPU-a"], ["GPU-a"], ["GPU-b"], ["GPU-b"], ["GPU-c"]]


def test_questions_far_apart_see_the_moment_and_not_the_next_line():
    recording = Recording(record("".join(line(at, f"GPU-{at}") for at in range(100))))
    recording.read(0.0, None)

    assert uuids(recording.read(42.5, None)) == ["GPU-42"]


def test_after_its_end_the_last_snapshot_stands_still():
    recording = Recording(record(line(1, "GPU-a") + line(2, "GPU-b")))
    recording.read(0.0, None)

    assert uuids(recording.read(1e6, None)) == ["GPU-b"]
    assert uuids(recording.read(2e6, None)) == ["GPU-b"]


def test_only_the_gpus_that_were_asked_for_are_in_an_answer():
    recording = Recording(record(line(1, "GPU-a", "GPU-b")))

    answer = recording.read(0.0, {"GPU-b"})

    assert uuids(answer) == ["GPU-b"]
    assert isinstance(answer, Snapshot)
    assert not answer.whole


def test_recorded_answers_are_passed_over():
    recording = Recording(record(line(1, "GPU-a", "GPU-b") + line(2, "GPU-b", whole=False)))
    recording.read(0.0, None)

    assert uuids(recording.read(9.0, None)) == ["GPU-a", "GPU-b"]


def test_recorded_trouble_is_trouble_again():
    recording = Recording(record(line(1, "GPU-a") + line(2, trouble="no driver")))
    recording.read(0.0, None)

    assert isinstance(recording.read(1.0, None), SamplerTrouble)
    assert isinstance(recording.read(1.0, {"GPU-a"}), SamplerTrouble)


@pytest.mark.parametrize("kept", [1, 30, -20, -1])
def test_a_last_line_that_was_cut_off_is_passed_over(kept: int):
    last = line(2, "GPU-b")
    recording = Recording(record(line(1, "GPU-a") + last[: kept if kept > 0 else len(last) + kept]))
    recording.read(0.0, None)

    expected = ["GPU-b"] if kept == -1 else ["GPU-a"]  # only its end is missing
    assert uuids(recording.read(9.0, None)) == expected


@pytest.mark.parametrize("damaged", ["oops\n", "{}\n", line(2).replace("1", "9", 1), line(-1e99)])
def test_a_damaged_line_is_named_with_its_number(damaged: str):
    path = record(line(1, "GPU-a") + "\n" + damaged + line(3, "GPU-b"))

    with pytest.raises(UsageError, match=r"day\.jsonl:3: "):
        Recording(path)


def test_a_damaged_line_further_on_is_named_when_it_is_its_turn():
    recording = Recording(record(line(1, "GPU-a") + line(2, "GPU-a") + "oops\n"))
    recording.read(0.0, None)

    with pytest.raises(UsageError, match=r"day\.jsonl:3: "):
        recording.read(9.0, None)


@pytest.mark.parametrize("text", ["", "\n\n", line(1)[:20], line(1, whole=False)])
def test_a_recording_without_a_sample_is_a_usage_error(text: str):
    with pytest.raises(UsageError, match="holds no sample"):
        Recording(record(text))


@pytest.mark.parametrize("path", ["missing.jsonl", "."])
def test_what_cannot_be_read_is_a_usage_error(path: str):
    with pytest.raises(UsageError, match="--replay: cannot read"):
        Recording(path)


def test_what_sample_wrote_can_be_played_back():
    _, recorded = once({}, "--simulate", "2,seed=1")
    record("".join(json.dumps(entry) + "\n" for entry in recorded))

    done, [again] = once({}, "--replay", "day.jsonl")

    assert done.returncode == 0
    assert again["gpus"] == recorded[0]["gpus"]


@pytest.mark.parametrize("text", ["", "oops\n"])
def test_a_bad_recording_is_one_line_and_status_2(text: str):
    done, lines = once({}, "--replay", record(text))

    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.returncode, lines) == (2, [])
    assert done.stderr.startswith("smartsched: --replay: ")
    assert len(done.stderr.splitlines()) == 1
