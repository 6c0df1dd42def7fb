"""What a report says of a run."""

from collections.abc import Sequence
from typing import Any

from smartsched.core.events import Event, RunBegan, RunClosed, RunMeasured
from smartsched.core.history import History, KnownGpu, QueueSeen
from smartsched.core.model import Exited, Outcome
from smartsched.core.telling import Table, Told, tell
from tests.builders import (
    GIB,
    HOST,
    T0,
    a_key,
    a_part,
    a_run,
    accepted,
    begun,
    exited,
    finished,
    listed,
)

BEGAN = RunBegan(T0, "sweep", HOST, "/home/me", ("list",), None, "{}", "sweep.1")


def told(
    events: Sequence[Event], history: History | None = None, now: float | None = None, **fields: Any
) -> Told:
    found = tell(
        [fields.get("began", BEGAN), *events],
        history or History(),
        now=now,
        local_offset=0.0,
        show_time=lambda at: f"T+{at - T0:g}",
    )
    assert found is not None
    return found


def column(table: Table, title: str) -> list[str]:
    number = [each["title"] for each in table.columns].index(title)
    return [row[number][0] for row in table.rows]


def ran(job: int, begin: float = 0.0, end: float = 10.0, **how: Any) -> list[Event]:
    outcome: Outcome = "failed" if how else "ok"
    return [
        *begun(job, a_part(job % 2), at=T0 + begin),
        exited(job, at=T0 + end, **how),
        finished(job, outcome, at=T0 + end),
    ]


def test_a_run_without_a_record_cannot_be_told_of():
    assert tell([], History(), now=None, local_offset=0.0, show_time=str) is None


def test_the_table_has_a_row_for_every_job():
    found = told([*accepted(3), *ran(1), *ran(2, 5, 8, ending=Exited(2))], now=T0 + 20)

    assert column(found.jobs, "job") == ["1", "2", "3"]
    assert column(found.jobs, "state") == ["ok", "failed", "waiting"]
    assert column(found.jobs, "GPU") == ["1", "0", ""]
    assert column(found.jobs, "began") == ["T+0", "T+5", ""]
    assert column(found.jobs, "took") == ["10s", "3.0s", ""]
    assert column(found.jobs, "how it ended") == ["", "exit status 2", ""]
    assert column(found.jobs, "waited") == ["0.0s", "5.0s", "20s"]


def test_what_is_shown_is_printable_and_what_is_unknown_sorts_last():
    found = told([*listed("echo \x1b[31m \udcff")])

    assert column(found.jobs, "command") == ["echo \\x1b[31m \\xff"]
    assert found.jobs.rows[0][6] == ("", None)


def test_facts_count_what_became_of_the_jobs():
    facts = dict(told([*accepted(3), *ran(1), *ran(2, ending=Exited(2))], now=T0 + 30).facts)

    assert (facts["jobs"], facts["ok"], facts["failed"], facts["to be done"]) == (
        "3",
        "1",
        "1",
        "1",
    )
    assert (facts["host"], facts["GPUs"], facts["lasted"]) == (HOST, "2", "30s")


def test_whether_the_run_goes_on_has_ended_or_was_left_is_said():
    closed = RunClosed(T0 + 9, complete=True, failed=0)
    kept = History(until=T0)

    assert any("goes on" in note for note in told([*accepted(1)], kept, T0 + 1).notes)
    assert any("--resume sweep" in note for note in told([*accepted(1)], kept).notes)
    assert not any("run" in note.split()[:2] for note in told([closed], kept).notes)


def test_a_run_of_before_there_was_a_history_says_so():
    assert any("was not kept" in note for note in told(accepted(1)).notes)


def test_advice_is_by_what_the_jobs_used():
    known = History(gpus={a_key(n): KnownGpu(a_key(n), str(n), "GPU", 80 * GIB) for n in (0, 1)})
    events: list[Event] = [*accepted(3)]
    for job in (1, 2, 3):
        events += ran(job)[:-1]
        events += [RunMeasured(T0 + 10, a_run(job), "train *", 8 * GIB, 30.0, 10.0), finished(job)]

    packed = RunBegan(T0, "x", HOST, "/", (), None, '{"jobs_per_gpu": "auto"}')

    assert any("--jobs-per-gpu 4 would fit" in text for text in told(events, known).advice)
    assert told(events, known, began=packed).advice == []
    assert column(told(events, known).shapes, "peak memory") == ["8 GiB"]


def test_time_that_nobody_watched_is_no_reason_for_advice():
    waits = History(queue=[QueueSeen(T0, T0 + 9, 1, "no GPU is free")])

    assert told([*accepted(1), *ran(1)], waits).advice == []


def test_gpus_come_in_the_order_of_their_numbers():
    known = History(gpus={a_key(n): KnownGpu(a_key(n), str(n), "GPU", None) for n in (10, 9, 2)})

    assert [gpu.label for gpu in told([], known).scene.gpus] == ["2", "9", "10"]
