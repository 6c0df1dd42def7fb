"""What was seen of the GPUs, as few lines as tell it, and what is read back from them."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from smartsched.core.gpu_time import Standing
from smartsched.core.history import (
    FINEST_SECONDS,
    SAID_AGAIN_SECONDS,
    History,
    Noter,
    coarsened,
    read_history,
    resolution_of,
)
from tests.builders import GIB, T0, a_key

IDLE = Standing(a_key(), "0", "Test GPU", 80 * GIB, 0, 0, 0.0, "idle", "no command waits")
OURS = replace(IDLE, use="ours", why="", ours_bytes=8 * GIB)


def noted(*moments: tuple[float, Sequence[Standing]], end: float | None = None) -> list[bytes]:
    """What is written of these, so many seconds after T0."""
    noter = Noter()
    lines = [noter.begin(T0)]
    for seconds, found in moments:
        lines += noter.note(found, 0, "", T0 + seconds)
    return lines if end is None else [*lines, noter.end(T0 + end)]


def rows(lines: Iterable[bytes]) -> list[Any]:
    values = [json.loads(line) for line in lines]
    return [value for value in values if isinstance(value, list) and len(value) == 7]


def pieces(history: History) -> list[tuple[float, float, str, str]]:
    return [(seen.at - T0, seen.until - T0, seen.use, seen.why) for seen in history.seen]


def test_what_is_written_is_read_back():
    seen = replace(IDLE, use="strangers", why="memory > 10% (alice)", strangers_bytes=30 * GIB)
    seen = replace(seen, utilization_percent=87.4)

    history = read_history(noted((0, [IDLE]), (5, [seen]), end=9))

    assert pieces(history) == [
        (0, 5, "idle", "no command waits"),
        (5, 9, "strangers", "memory > 10% (alice)"),
    ]
    assert history.seen[1].strangers_bytes == 30 * GIB
    assert history.seen[1].utilization_percent == 87
    assert history.gpus[a_key()].name == "Test GPU"
    assert history.until == T0 + 9


def test_what_stays_as_it_is_takes_one_line_a_minute():
    lines = noted(*((second, [OURS]) for second in range(300)))

    assert [row[0] - T0 for row in rows(lines)] == [0, 60, 120, 180, 240]


def test_changes_within_the_tolerance_are_left_out():
    jitter = [replace(OURS, ours_bytes=8 * GIB + n * 2**20) for n in range(30)]

    assert len(rows(noted(*((n, [one]) for n, one in enumerate(jitter))))) == 1


@pytest.mark.parametrize(
    "change",
    [{"strangers_bytes": 9 * GIB}, {"ours_bytes": 20 * GIB}, {"utilization_percent": 55.0},
     {"utilization_percent": None}],
    ids=str,
)  # fmt: skip
def test_a_change_that_matters_is_written_but_no_sooner_than_the_resolution(change: dict[str, Any]):
    changed = replace(OURS, **change)

    lines = noted((0, [OURS]), (1, [changed]), (FINEST_SECONDS, [changed]))

    assert [row[0] - T0 for row in rows(lines)] == [0, FINEST_SECONDS]


def test_another_use_is_written_at_once():
    lines = noted((0, [IDLE]), (1, [OURS]), (2, [IDLE]))

    assert [row[0] - T0 for row in rows(lines)] == [0, 1, 2]


def test_names_and_reasons_are_written_once():
    lines = noted(*((second, [(IDLE, OURS)[second % 2]]) for second in range(10)))

    texts = [json.loads(line) for line in lines if b'"text"' in line]
    assert [text["text"] for text in texts] == ["no command waits"]
    assert sum(b'"uuid"' in line for line in lines) == 1


def test_why_jobs_wait_is_read_back():
    noter = Noter()
    lines = [noter.begin(T0), *noter.note([], 3, "no GPU is free", T0)]
    lines += [*noter.note([], 0, "", T0 + 7), noter.end(T0 + 9)]

    queue = read_history(lines).queue

    assert [(seen.at - T0, seen.until - T0, seen.waiting, seen.why) for seen in queue] == [
        (0, 7, 3, "no GPU is free"),
        (7, 9, 0, ""),
    ]


def test_of_a_dispatcher_that_died_the_last_word_does_not_hold_for_ever():
    before = noted((0, [OURS]), (60, [OURS]))
    after = Noter()
    later = [after.begin(T0 + 5000), *after.note([IDLE], 0, "", T0 + 5000), after.end(T0 + 5001)]

    history = read_history([*before, b'[1000000.0,0,"torn', b"\n", *later])

    held = 60 + 2 * SAID_AGAIN_SECONDS
    assert pieces(history)[1:] == [(60, held, "ours", ""), (5000, 5001, "idle", "no command waits")]


@pytest.mark.parametrize(
    "line",
    [b"", b"garbage", b"[1,2", b"[[],[],[]]", b"{}", b"[1,77,0,0,0,0,0]", b"[1,0,99,0,0,0,0]",
     b'{"gpu":0}', b'{"why":"x"}', b"null", b'"\xff"', b"[" * 5000, b'["x"]',
     b'{"smartsched_history":1}'],
    ids=lambda line: repr(line[:12]),
)  # fmt: skip
def test_lines_that_nobody_wrote_are_passed_over(line: bytes):
    lines = noted((0, [OURS]), (5, [IDLE]), end=9)
    lines.insert(4, line + b"\n")

    assert pieces(read_history(lines)) == pieces(
        read_history(noted((0, [OURS]), (5, [IDLE]), end=9))
    )


def test_coarsened_lines_come_no_closer_than_asked_and_say_so():
    moments = [(second, [(IDLE, OURS)[second % 2]]) for second in range(600)]
    lines = noted(*moments, end=600)

    fewer = list(coarsened(lines, 100.0))

    assert [row[0] - T0 for row in rows(fewer)] == [0, 100, 200, 300, 400, 500]
    assert resolution_of(fewer[0]) == 100.0
    assert sum(until - at for at, until, *_ in pieces(read_history(fewer))) == 600


def test_of_each_gpu_lines_are_left_out_by_itself():
    other = replace(IDLE, key=a_key(1), label="1")
    lines = noted(*((second, [IDLE, other]) for second in range(0, 600, 60)))

    fewer = rows(coarsened(lines, 120.0))

    assert [row[1] for row in fewer] == [0, 1] * 5


def test_a_long_reason_is_cut_and_too_many_are_left_out():
    noter = Noter()
    lines = [noter.begin(T0)]
    for number in range(700):
        lines += noter.note([replace(IDLE, why=f"{number} {'x' * 500}")], 0, "", T0 + number)

    texts = [json.loads(line)["text"] for line in lines if b'"text"' in line]

    assert len(texts) < 501
    assert max(map(len, texts)) == 200
    assert read_history(lines).seen[-1].why == ""
