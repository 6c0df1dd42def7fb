"""Journals that were written once are read for ever.

`journals/v1.jsonl` is the journal of a real run, with every kind of record that there was when
version 1 of the format was fixed: jobs that failed, took too long, were lost, stopped and tried
again, a GPU that was withheld, a list that replaced another, dispatchers that died. Only names of
folders and of the host were made up.

The file must never be changed, nor what is expected of it here: users have such files. A new format
gets a new file beside it.
"""

import hashlib
from pathlib import Path

from smartsched.core.apply import replay
from smartsched.core.events import Event
from smartsched.core.ledger import ledger_of
from smartsched.core.policy import Policy
from smartsched.core.records import decode_line, encode
from smartsched.core.state import Closing, State

JOURNAL = Path(__file__).with_name("journals") / "v1.jsonl"
DIGEST = "9e8d525966bac6dd4de897f4465a961a179517ce0b5824c580c7c1cfaccb3a7b"
KINDS = {
    "RunBegan", "RunResumed", "ListReplaced", "InputRead", "JobAccepted", "JobRecalled",
    "LineRejected", "InputEnded", "DrainRequested", "StopRequested", "WaitTimedOut", "RunPlaced",
    "RunLaunched", "RunPostponed", "RunRevoked", "RunStopping", "RunKilled", "RunExited",
    "JobFinished", "JobRequeued", "GpuWithheld", "Halted", "RunCleared", "GpuReleased", "RunClosed",
}  # fmt: skip


def events() -> list[Event]:
    lines = JOURNAL.read_bytes().splitlines()
    return [decode_line(line, seq) for seq, line in enumerate(lines, start=1)]


def replayed() -> State:
    return replay(Policy("sweep"), events())


def test_nobody_has_changed_the_journal_of_version_1():
    assert hashlib.sha256(JOURNAL.read_bytes()).hexdigest() == DIGEST


def test_it_has_every_kind_of_record_there_was():
    assert {type(event).__name__ for event in events()} == KINDS


def test_it_comes_to_the_same_totals_for_ever():
    totals = replayed().totals

    assert (totals.accepted, totals.rejected, totals.dropped) == (24, 0, 2)
    assert (totals.ok, totals.failed, totals.stopped) == (18, 3, 0)
    assert round(totals.gpu_seconds, 3) == 7.974


def test_it_leaves_the_same_to_be_done_for_ever():
    state = replayed()

    assert [(job.id, job.spec.command, job.attempts) for job in state.queue] == [
        (24, "echo cannot be started", 1)
    ]
    assert (state.runs, state.ended, state.interrupted, state.set_aside) == ({}, {}, [], {})
    assert (state.closing, state.halted, state.input_open) == (Closing.DRAIN, True, False)


def test_it_names_the_same_failures_for_ever():
    failed = ledger_of(events()).failed

    assert {job: (spec.command, attempts) for job, (spec, attempts) in failed.items()} == {
        2: ("sh -c 'exit 3'", 4),
        4: ("kill -9 $$", 4),
        21: ("exit 4", 2),
    }


def test_what_is_written_today_says_all_that_was_said_then():
    """Fields may be added; none may be lost."""
    for seq, event in enumerate(events(), start=1):
        assert decode_line(encode(event, seq).removesuffix(b"\n"), seq) == event
