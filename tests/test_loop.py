"""The order of things in a tick: observe, decide, record, act."""

# ruff: noqa: ARG002  # a fake has the arguments of its port

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from smartsched.core.actions import Launch, Tell
from smartsched.core.apply import replay
from smartsched.core.decide import Decision
from smartsched.core.events import (
    DrainRequested,
    Event,
    InputRead,
    JobAccepted,
    JobFinished,
    JobRecalled,
    JobRequeued,
    JobsCancelled,
    LineRejected,
    ListReplaced,
    OptionsSet,
    RunAdopted,
    RunCleared,
    RunClosed,
    RunExited,
    RunKilled,
    RunLaunched,
    RunPlaced,
    RunPostponed,
    RunResumed,
    RunRevoked,
    RunStopping,
    StopRequested,
)
from smartsched.core.hours import parse_cap
from smartsched.core.model import (
    BadLine,
    ClaimAnswer,
    ClaimGranted,
    Exited,
    GpuKey,
    HostHere,
    JobId,
    JobSpec,
    Killed,
    Lost,
    NotStarted,
    Observation,
    Position,
    Run,
    RunKey,
    Starting,
    Timestamp,
)
from smartsched.core.requests import Answer, Ask, Cancel
from smartsched.core.state import Closing, State
from smartsched.loop import (
    DISK_PATIENCE_SECONDS,
    DURABLE_WITHIN_SECONDS,
    LINES_A_TICK,
    QUEUE_WINDOW,
    TO_THE_DISK_AGAIN_SECONDS,
    Loop,
    World,
)
from smartsched.ports import Arrived, NewOptions, Recall
from tests.builders import (
    HOST,
    T0,
    a_policy,
    a_process_id,
    a_run,
    a_sample,
    a_snapshot,
    a_spec,
    accepted,
    exited,
    launched,
    placed,
)

NEVER = float("inf")
Outcome = RunLaunched | RunPostponed | RunExited
Adopted = RunLaunched | RunRevoked | RunAdopted
NO_ROOM = "no room on the disk"


def starts(run: RunKey, now: Timestamp) -> RunLaunched:
    return RunLaunched(now, run, a_process_id(), None)


@dataclass
class FakeClock:
    time: float = T0

    def now(self) -> Timestamp:
        return self.time

    def local_offset(self) -> float:
        return 0.0


@dataclass
class FakeWaiter:
    waits: list[Timestamp] = field(default_factory=list)
    when_waiting: Callable[[], None] = lambda: None
    journal: "FakeJournal | None" = None

    def wait(self, until: Timestamp) -> None:
        self.waits.append(until)
        self.when_waiting()
        if self.journal is not None and self.journal.syncing is not None:
            self.journal.end_sync()


@dataclass
class FakeGpus:
    diary: list[str]
    told: list[Observation] = field(default_factory=list)
    wake: Timestamp = NEVER

    def take(self, now: Timestamp) -> Sequence[Observation]:
        self.diary.append("take gpus")
        told, self.told = self.told, []
        return told

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        self.diary.append(f"refresh {len(gpus)}")

    def wake_at(self) -> Timestamp:
        return self.wake


@dataclass
class FakeClaims:
    diary: list[str]
    answers: list[ClaimAnswer] = field(default_factory=list)

    def ask(self, gpus: Sequence[tuple[GpuKey, int]], now: Timestamp) -> None:
        self.diary.append(f"claim {len(gpus)}")
        self.answers.append(ClaimGranted(now, tuple(key for key, _ in gpus)))

    def release(self, gpus: Collection[GpuKey], now: Timestamp) -> None:
        self.diary.append(f"release {len(gpus)}")

    def take(self, now: Timestamp) -> Sequence[ClaimAnswer]:
        answers, self.answers = self.answers, []
        return answers

    def wake_at(self) -> Timestamp:
        return T0 if self.answers else NEVER


@dataclass
class FakeLauncher:
    diary: list[str]
    ended: list[RunExited | RunCleared | RunPostponed] = field(default_factory=list)
    start: Callable[[RunKey, Timestamp], Outcome] = starts
    became: dict[RunKey, Adopted] = field(default_factory=dict)
    journal: "FakeJournal | None" = None
    taken: list[Event] = field(default_factory=list)  # and not noted
    noted_ones: list[Event] = field(default_factory=list)  # and not kept
    safe: list[Event] = field(default_factory=list)
    durable: set[int] = field(default_factory=set)  # by their identity
    seen: int = 0  # of the journal
    wake: Timestamp = NEVER

    def checkpoint(self, run: RunKey) -> None:
        self.diary.append(f"checkpoint {run.job}")

    def launch(self, launch: Launch, now: Timestamp) -> Outcome:
        self.diary.append(f"launch {launch.run.job}/{launch.run.attempt}")
        outcome = self.start(launch.run, now)
        self.taken.append(outcome)
        return outcome

    def adopt(self, run: Run, now: Timestamp) -> Sequence[Adopted]:
        self.diary.append(f"adopt {run.key.job}/{run.key.attempt}")
        became = [self.became[run.key]] if run.key in self.became else []
        self.taken += became
        return became

    def terminate(self, run: RunKey) -> None:
        self.diary.append(f"terminate {run.job}")

    def kill(self, run: RunKey) -> None:
        self.diary.append(f"kill {run.job}")

    def take(self, now: Timestamp) -> Sequence[RunExited | RunCleared | RunPostponed]:
        self.diary.append("take exits")
        ended, self.ended = self.ended, []
        self.taken += ended
        return ended

    def noted(self) -> None:
        assert self.journal is not None
        self.noted_ones += self.taken
        self.taken = []

    def kept(self) -> None:
        assert self.journal is not None
        durable = self.journal.records[self.seen : self.journal.durable]
        self.seen = self.journal.durable
        self.durable |= {id(event) for event in durable}
        assert self.durable.issuperset(map(id, self.noted_ones))
        self.safe += self.noted_ones
        self.noted_ones = []

    def wake_at(self) -> Timestamp:
        return self.wake


@dataclass
class FakeIntake:
    lines: list[Arrived] = field(default_factory=list)
    open: bool = False
    asked_for: list[int] = field(default_factory=list)
    whole: list[InputRead] = field(default_factory=list)

    def take(self, most: int) -> Sequence[Arrived]:
        self.asked_for.append(most)
        taken, self.lines = self.lines[:most], self.lines[most:]
        return taken

    def finished(self, now: Timestamp) -> Sequence[InputRead]:
        whole, self.whole = self.whole, []
        return whole

    def has_more(self) -> bool:
        return False

    def ended(self) -> bool:
        return not self.lines and not self.open

    def close(self) -> None:
        pass


@dataclass
class FakeInbox:
    diary: list[str]
    made: list[Any] = field(default_factory=list)

    def take(self, now: float) -> Sequence[Any]:
        made, self.made = self.made, []
        return made

    def answer(self, request: str, answer: Answer) -> None:
        self.diary.append(f"answer {request} {'done' if answer.done else 'refused'}")


@dataclass
class FakeRequests:
    made: list[DrainRequested | StopRequested] = field(default_factory=list)

    def take(self, now: Timestamp) -> Sequence[DrainRequested | StopRequested]:
        made, self.made = self.made, []
        return made


@dataclass
class FakeJournal:
    diary: list[str]
    records: list[Event] = field(default_factory=list)
    refused: list[Event] = field(default_factory=list)
    why_not: str | None = None
    durable: int = 0  # of the records, so many
    syncing: int | None = None  # so many are being made durable by somebody else
    end: str | None = None  # of that, not told of yet

    def write(self, events: Sequence[Event], *, durable: bool = True) -> str | None:
        if durable:
            self.syncing = self.end = None
        if self.why_not is not None:
            self.refused += events
            return self.why_not
        self.diary += [f"write {type(event).__name__}" for event in events]
        self.records += events
        if durable:
            self.durable = len(self.records)
            self.diary.append("durable")
        return None

    def begin_sync(self) -> None:
        assert self.syncing is None
        self.syncing = len(self.records)
        self.diary.append("begin sync")

    def end_sync(self, why_not: str = "") -> None:
        assert self.syncing is not None
        if not why_not:
            self.durable = self.syncing
        self.end = why_not

    def synced(self) -> str | None:
        ended, self.end = self.end, None
        if ended is not None:
            self.syncing = None
        return ended


@dataclass
class FakeTeller:
    diary: list[str]

    def tell(self, what: Tell) -> None:
        self.diary.append(f"tell {what.ended.key.job} {what.outcome}")


@dataclass
class FakeObserver:
    diary: list[str]
    events: list[Event] = field(default_factory=list)
    wake: Timestamp = NEVER

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        self.diary.append(f"record {type(event).__name__}")
        self.events.append(event)

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        self.diary.append("decided")

    def wake_at(self) -> Timestamp:
        return self.wake


class FakeWorld:
    """All ports, and one diary of what was asked of them."""

    def __init__(
        self,
        *lines: JobSpec | BadLine | Recall | Arrived,
        gpus: int = 1,
        before: Sequence[Event] = (),
        **policy: Any,
    ) -> None:
        """`before`: what an earlier dispatcher has written."""
        self.diary: list[str] = []
        self.clock = FakeClock()
        self.waiter = FakeWaiter()
        self.gpus = FakeGpus(self.diary, [a_snapshot(*map(a_sample, range(gpus)))])
        self.launcher = FakeLauncher(self.diary)
        self.intake = FakeIntake(
            [line if isinstance(line, Arrived) else Arrived(line) for line in lines]
        )
        self.requests = FakeRequests()
        self.inbox = FakeInbox(self.diary)
        self.claims = FakeClaims(self.diary)
        self.journal = FakeJournal(self.diary)
        self.launcher.journal = self.waiter.journal = self.journal
        self.teller = FakeTeller(self.diary)
        self.observer = FakeObserver(self.diary)
        self.loop = Loop(
            World(
                self.clock,
                self.waiter,
                self.gpus,
                self.launcher,
                self.intake,
                self.requests,
                self.inbox,
                self.claims,
                self.journal,
                self.teller,
                self.observer,
            ),
            replay(a_policy(**policy), before),
        )

    def jobs_end(self) -> None:
        """Every run ends well, and its memory is back."""
        self.clock.time += 1
        now, state = self.clock.time, self.loop.state
        self.launcher.ended += [RunExited(now, run, Exited(0), 0) for run in state.runs]
        self.look()

    def look(self) -> None:
        """The GPUs are seen as they were."""
        gpus = (watch.latest for watch in self.loop.state.gpus.values())
        self.gpus.told.append(a_snapshot(*gpus, at=self.clock.time))


def commands(count: int) -> list[JobSpec]:
    return [a_spec(number) for number in range(1, count + 1)]


def from_launcher(events: Sequence[Event]) -> list[Event]:
    """Those that it has told of."""
    return [e for e in events if isinstance(e, RunLaunched | RunExited | RunCleared)]


def test_a_launch_is_recorded_before_it_happens():
    world = FakeWorld(*commands(1))

    world.loop.tick()

    happened = world.diary[world.diary.index("write RunPlaced") :]
    assert happened == [
        "write RunPlaced",
        "record RunPlaced",
        "launch 1/1",
        "record RunLaunched",
        "write RunLaunched",
        "decided",
    ]


def test_a_launch_that_would_outlive_this_machine_is_durable_before_it_happens():
    world = FakeWorld(*commands(1), spans_hosts=True)
    world.gpus.told.insert(0, HostHere(HOST, HOST, cores=8))

    world.loop.tick()

    happened = world.diary[world.diary.index("write RunPlaced") :]
    assert happened == [
        "write RunPlaced",
        "durable",
        "record RunPlaced",
        "launch 1/1",
        "record RunLaunched",
        "write RunLaunched",
        "decided",
    ]


def test_everything_decided_is_recorded_before_anything_is_done():
    world = FakeWorld(*commands(2), gpus=2)

    world.loop.tick()

    order = [entry for entry in world.diary if entry.startswith(("write Run", "launch"))]
    assert order[:4] == ["write RunPlaced", "write RunPlaced", "launch 1/1", "launch 2/1"]
    assert order[4:] == ["write RunLaunched", "write RunLaunched"]


def test_a_signal_is_recorded_before_it_is_sent():
    world = FakeWorld(*commands(1))
    world.loop.tick()
    world.requests.made = [StopRequested(T0, "ctrl-c")]

    world.loop.tick()

    assert world.diary.index("write RunStopping") < world.diary.index("terminate 1")


def test_exits_are_taken_in_before_what_was_seen_of_the_gpus():
    world = FakeWorld()

    world.loop.tick()

    assert world.diary.index("take exits") < world.diary.index("take gpus")


def test_gpus_are_looked_at_together():
    world = FakeWorld(*commands(3), gpus=3)
    world.loop.tick()
    world.clock.time += 5
    world.launcher.ended = [exited(job, at=T0 + 5) for job in (1, 2, 3)]

    world.loop.tick()

    assert [entry for entry in world.diary if entry.startswith("refresh")] == ["refresh 3"]


def test_no_more_is_read_ahead_than_the_window():
    world = FakeWorld(*commands(10 * QUEUE_WINDOW), gpus=0)

    for _ in range(5):
        world.loop.tick()

    assert len(world.loop.state.queue) == QUEUE_WINDOW
    assert len(world.intake.lines) == 9 * QUEUE_WINDOW
    assert all(0 < most <= QUEUE_WINDOW for most in world.intake.asked_for)


def test_what_was_started_makes_room_for_more():
    world = FakeWorld(*commands(2 * QUEUE_WINDOW), gpus=3)
    world.loop.tick()
    world.loop.tick()

    assert len(world.loop.state.queue) == QUEUE_WINDOW
    assert world.loop.state.totals.accepted == QUEUE_WINDOW + 3


def test_a_list_longer_than_the_window_runs_to_its_end_in_order():
    count = 3 * QUEUE_WINDOW + 7
    world = FakeWorld(*commands(count), gpus=2)
    world.waiter.when_waiting = world.jobs_end

    state = world.loop.run()

    assert state.totals.ok == count
    started = [entry for entry in world.diary if entry.startswith("launch")]
    assert started == [f"launch {number}/1" for number in range(1, count + 1)]


def test_lines_that_cannot_be_commands_are_counted_and_the_others_run():
    bad = BadLine("list:2", "holds a NUL byte")
    world = FakeWorld(a_spec(1), bad, a_spec(3))

    world.loop.tick()

    assert (world.loop.state.totals.accepted, world.loop.state.totals.rejected) == (2, 1)


def test_any_number_of_bad_lines_takes_no_room():
    bad = [BadLine(f"list:{number}", "holds a NUL byte") for number in range(5 * QUEUE_WINDOW)]
    world = FakeWorld(*bad, a_spec(), gpus=0)

    decision = world.loop.tick()
    assert world.loop.state.totals.rejected == LINES_A_TICK
    assert world.loop.wake_at(decision) <= world.clock.now()
    world.loop.tick()

    assert world.loop.state.totals.rejected == 5 * QUEUE_WINDOW
    assert len(world.loop.state.queue) == 1


def test_nothing_is_read_once_the_end_was_asked_for():
    world = FakeWorld(*commands(3))
    world.requests.made = [DrainRequested(T0, "ctrl-c")]

    decision = world.loop.tick()

    assert world.intake.asked_for == []
    assert decision.over


def test_the_end_of_the_input_is_noted_once():
    world = FakeWorld(*commands(1), gpus=0)

    for _ in range(3):
        world.loop.tick()

    assert world.diary.count("record InputEnded") == 1


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        (lambda run, now: RunPostponed(now, run, "cannot fork"), 0),
        (lambda run, now: RunExited(now, run, NotStarted("no such shell"), 0), 1),
    ],
    ids=["postponed", "not started"],
)
def test_a_start_that_failed_is_thought_about_at_once(
    outcome: Callable[[RunKey, Timestamp], Outcome], failed: int
):
    world = FakeWorld(*commands(1))
    world.launcher.start = outcome

    decision = world.loop.tick()

    assert decision.wake_at <= T0
    assert world.loop.state.runs == {}
    world.loop.tick()
    assert world.loop.state.totals.failed == failed


def test_postponed_commands_start_in_the_order_of_the_list():
    world = FakeWorld(*commands(3), gpus=3)
    world.launcher.start = lambda run, now: RunPostponed(now, run, "cannot fork")
    world.loop.tick()
    world.launcher.start = starts
    world.clock.time += 5
    world.gpus.told = [a_snapshot(*(a_sample(n) for n in range(3)), at=world.clock.time)]

    world.loop.tick()

    started = [entry for entry in world.diary if entry.endswith("/2")]
    assert started == ["launch 1/2", "launch 2/2", "launch 3/2"]


def test_it_sleeps_until_the_first_of_all_who_want_to_be_woken():
    world = FakeWorld()
    world.intake.open = True
    decision = world.loop.tick()

    assert world.loop.wake_at(decision) == NEVER
    world.observer.wake = T0 + 9
    assert world.loop.wake_at(decision) == T0 + 9
    world.launcher.wake = T0 + 7
    assert world.loop.wake_at(decision) == T0 + 7
    world.gpus.wake = T0 + 5
    assert world.loop.wake_at(decision) == T0 + 5
    decision.wake_by(T0 + 3)
    assert world.loop.wake_at(decision) == T0 + 3


def test_it_does_not_sleep_when_it_is_over():
    world = FakeWorld()

    state = world.loop.run()

    assert world.waiter.waits == []
    assert (state.closing, state.totals.finished) == (Closing.NO, 0)


def test_whoever_watches_sees_every_event():
    world = FakeWorld(*commands(1))
    world.waiter.when_waiting = world.jobs_end

    world.loop.run()

    names = [type(event).__name__ for event in world.observer.events]
    assert names == [
        "JobAccepted",
        "InputEnded",
        "RunPlaced",
        "RunLaunched",
        "RunExited",
        "JobFinished",
        "GpuReleased",
    ]
    assert world.observer.events[3] == RunLaunched(T0, a_run(), a_process_id(), None)


def test_what_was_seen_while_we_were_stopped_is_old_news():
    world = FakeWorld(*commands(1), gpus=1)
    world.gpus.told = [a_snapshot(a_sample(), at=T0)]
    world.loop._slept_until = T0
    world.clock.time = T0 + 3

    world.loop.tick()

    assert not any(entry.startswith("launch") for entry in world.diary)


# --- what is written, and when


def recorded(world: FakeWorld) -> list[str]:
    return [type(event).__name__ for event in world.journal.records]


def done(world: FakeWorld) -> list[str]:
    """What was done in the world so far."""
    return [e for e in world.diary if e.startswith(("launch", "terminate", "kill", "tell"))]


def test_the_last_record_says_whether_anything_is_left():
    unfinished, complete = FakeWorld(*commands(3)), FakeWorld(*commands(1))
    complete.waiter.when_waiting = complete.jobs_end
    unfinished.loop.tick()
    complete.loop.run()

    unfinished.loop.close(T0 + 5)
    complete.loop.close(T0 + 5)

    assert unfinished.journal.records[-1] == RunClosed(T0 + 5, complete=False, failed=0, left=3)
    assert complete.journal.records[-1] == RunClosed(T0 + 5, complete=True, failed=0, ok=1)


def test_a_request_is_on_record_before_it_is_answered_and_acted_on_in_the_same_tick():
    world = FakeWorld(*commands(2))
    world.loop.tick()
    world.diary.clear()
    world.inbox.made = [Cancel("r1", ("1",))]

    world.loop.tick()

    assert world.diary.index("write JobsCancelled") < world.diary.index("answer r1 done")
    assert JobsCancelled(T0, "r1", (JobId(1),)) in world.journal.records
    assert RunStopping(T0, a_run(1), "cancelled") in world.journal.records
    assert "terminate 1" in world.diary


def test_a_request_is_not_answered_while_the_journal_cannot_be_written():
    world = FakeWorld(*commands(1))
    world.loop.tick()
    world.journal.why_not = "no room"
    world.inbox.made = [Cancel("r1", ("1",)), Ask("r2")]

    world.loop.tick()

    assert [entry for entry in world.diary if "answer" in entry] == ["answer r2 done"]
    world.journal.why_not = None
    world.clock.time += 60
    world.loop.tick()
    assert world.diary.count("answer r1 done") == 1


def test_new_options_count_from_the_tick_that_learns_of_them():
    world = FakeWorld(*commands(2), gpus=2, most_gpus=parse_cap("1"))
    world.loop.tick()
    assert len(world.loop.state.runs) == 1
    world.inbox.made = [NewOptions("r1", "{}", a_policy(), "--max-gpus 1 -> (none)")]

    world.loop.tick()

    assert len(world.loop.state.runs) == 2
    assert OptionsSet(world.clock.time, "r1", "{}") in world.journal.records


def test_everything_that_happened_is_written_in_its_order():
    world = FakeWorld(*commands(3), gpus=2)
    world.waiter.when_waiting = world.jobs_end

    world.loop.run()
    world.loop.close(world.clock.now())

    assert world.journal.records[:-1] == world.observer.events[:-1]
    again = replay(a_policy(), world.journal.records)
    assert again.totals == world.loop.state.totals


def test_what_was_read_of_the_input_is_written_with_how_far_it_was_read():
    world = FakeWorld(
        Arrived(a_spec(), Position(0, 7, 1)), Arrived(BadLine("list:2", "NUL"), Position(0, 9, 2))
    )
    world.intake.whole = [InputRead(T0, 0, 9)]

    world.loop.tick()

    assert world.journal.records[:3] == [
        JobAccepted(T0, JobId(1), a_spec(), Position(0, 7, 1)),
        LineRejected(T0, "list:2", "NUL", Position(0, 9, 2)),
        InputRead(T0, 0, 9),
    ]


def test_a_job_that_the_run_knows_is_queued_again_under_its_number():
    failed: list[Event] = [exited(1, ending=Exited(1)), JobFinished(T0, a_run(1), "failed")]
    world = FakeWorld(
        Recall(JobId(1), a_spec(), 1), gpus=0, before=[*accepted(1), placed(), launched(), *failed]
    )

    world.loop.tick()

    assert JobRecalled(T0, JobId(1), a_spec(), 1, None) in world.journal.records
    assert world.loop.state.totals.accepted == 1


def test_the_launcher_learns_what_is_safe():
    world = FakeWorld(*commands(1))
    world.waiter.when_waiting = world.jobs_end

    world.loop.run()

    assert world.launcher.safe == from_launcher(world.journal.records)


def test_a_look_does_not_wait_for_the_disk():
    world = FakeWorld(*commands(2))
    world.loop.tick()
    world.clock.time += 60
    world.launcher.ended = [exited(at=world.clock.time)]
    world.diary.clear()

    world.loop.tick()

    assert world.diary.index("refresh 1") < world.diary.index("write RunExited")


def test_what_outlives_no_loss_of_power_is_written_at_once_and_durable_soon():
    world = FakeWorld(*commands(2))
    began = world.clock.time
    world.loop.tick()
    world.clock.time += DURABLE_WITHIN_SECONDS / 2
    world.launcher.ended = [exited(at=world.clock.time)]

    decision = world.loop.tick()

    assert recorded(world)[-2:] == ["RunExited", "JobFinished"]
    assert world.journal.durable == 0
    assert not world.launcher.safe
    due = world.loop.wake_at(decision)
    assert due == pytest.approx(began + DURABLE_WITHIN_SECONDS)
    world.clock.time = due
    decision = world.loop.tick()
    assert world.diary[-2:] == ["begin sync", "decided"]
    assert not world.launcher.safe
    assert world.loop.wake_at(decision) > due
    world.journal.end_sync()
    world.loop.tick()
    assert world.journal.durable == len(world.journal.records)
    assert world.launcher.safe == from_launcher(world.journal.records)


def begin_and_give_to_the_disk(world: FakeWorld) -> None:
    """Jobs are launched, and the disk is at work on what is known of that."""
    world.loop.tick()
    world.clock.time += DURABLE_WITHIN_SECONDS
    world.loop.tick()
    assert world.journal.syncing is not None


def test_nobody_waits_for_a_slow_disk():
    world = FakeWorld(*commands(2))
    begin_and_give_to_the_disk(world)
    given = list(world.journal.records)
    world.jobs_end()
    world.loop.tick()
    world.clock.time += 1
    world.look()

    decision = world.loop.tick()

    assert done(world)[-1] == "launch 2/1"
    assert world.diary.count("begin sync") == 1
    assert world.loop.wake_at(decision) > world.clock.time + DURABLE_WITHIN_SECONDS
    world.clock.time += 1
    world.journal.end_sync()
    world.loop.tick()
    assert world.launcher.safe == from_launcher(given)
    assert world.diary.count("begin sync") == 2  # for what came meanwhile, and is overdue


def test_what_is_waited_for_makes_all_durable_that_was_on_its_way():
    world = FakeWorld(*commands(1), tells=True)
    begin_and_give_to_the_disk(world)
    assert not world.launcher.safe
    world.jobs_end()

    world.loop.tick()

    assert world.launcher.safe == from_launcher(world.journal.records)
    assert world.journal.durable == len(world.journal.records)


def test_after_that_the_next_is_given_to_the_disk_again():
    world = FakeWorld(*commands(2), gpus=2, tells=True)
    begin_and_give_to_the_disk(world)
    world.launcher.ended = [exited(1, at=world.clock.time)]
    world.loop.tick()  # somebody is told: it is waited for
    assert world.diary.count("begin sync") == 1
    world.clock.time += 1
    world.requests.made = [DrainRequested(world.clock.time, "asked")]
    world.loop.tick()
    world.clock.time += DURABLE_WITHIN_SECONDS

    world.loop.tick()

    assert world.diary.count("begin sync") == 2


def test_what_comes_to_light_while_the_disk_is_at_work_is_kept_by_its_next_turn():
    world = FakeWorld(*commands(2), gpus=2)
    begin_and_give_to_the_disk(world)
    world.launcher.ended = [exited(1, at=world.clock.time)]
    world.loop.tick()
    world.clock.time += 1
    world.journal.end_sync()
    world.loop.tick()
    assert not [e for e in world.launcher.safe if isinstance(e, RunExited)]

    world.journal.end_sync()
    world.loop.tick()

    assert [e for e in world.launcher.safe if isinstance(e, RunExited)]


def test_nothing_is_started_while_the_disk_does_not_answer_for_long():
    world = FakeWorld(*commands(2))
    begin_and_give_to_the_disk(world)
    world.clock.time += DISK_PATIENCE_SECONDS
    for _ in range(3):
        world.jobs_end()
        decision = world.loop.tick()
    assert done(world) == ["launch 1/1"]
    assert decision.waiting is not None
    assert "the disk with the run's journal does not answer" in decision.waiting.why

    world.journal.end_sync()
    world.loop.tick()

    assert done(world)[-1] == "launch 2/1"


def test_nothing_is_started_while_the_disk_refuses_what_it_was_given():
    world = FakeWorld(*commands(2))
    begin_and_give_to_the_disk(world)
    world.jobs_end()
    world.journal.end_sync(NO_ROOM)

    world.loop.tick()
    world.look()
    decision = world.loop.tick()

    assert done(world) == ["launch 1/1"]
    assert decision.waiting is not None
    assert decision.waiting.why == f"nothing is started: {NO_ROOM}"
    assert not world.launcher.safe
    again = world.loop.wake_at(decision)
    assert world.clock.time < again <= world.clock.time + TO_THE_DISK_AGAIN_SECONDS
    world.clock.time = again
    world.loop.tick()
    assert world.diary.count("begin sync") == 2
    world.journal.end_sync()
    world.look()
    world.loop.tick()
    assert world.launcher.safe == from_launcher(world.journal.records[: world.journal.durable])
    assert "RunExited" in recorded(world)
    assert done(world)[-1] == "launch 2/1"


def test_what_cannot_be_appended_while_the_disk_is_at_work_makes_nobody_wait_for_it():
    world = FakeWorld(*commands(2))
    begin_and_give_to_the_disk(world)
    world.journal.why_not = NO_ROOM
    world.jobs_end()
    decision = world.loop.tick()
    decision = world.loop.tick()  # one GPU more is free
    assert world.loop.wake_at(decision) >= world.clock.time + 1
    world.journal.why_not = None
    world.clock.time = world.loop.wake_at(decision)
    world.look()

    world.loop.tick()

    assert done(world)[-1] == "launch 2/1"
    assert world.journal.syncing is not None
    world.journal.end_sync()
    world.loop.tick()
    assert not [event for event in world.launcher.safe if isinstance(event, RunExited)]


def test_what_waited_for_a_silent_disk_is_not_held_when_it_has_answered():
    world = FakeWorld(*commands(2))
    begin_and_give_to_the_disk(world)
    world.clock.time += 4 * DISK_PATIENCE_SECONDS
    world.jobs_end()
    world.loop.tick()
    world.loop.tick()
    assert done(world) == ["launch 1/1"]
    world.look()
    world.inbox.made = [Cancel("r", ("7",))]
    decision = world.loop.tick()  # it is answered, and the disk is waited for

    assert world.loop.wake_at(decision) <= world.clock.time
    world.loop.tick()
    assert done(world)[-1] == "launch 2/1"


def test_who_waits_for_an_answer_gets_it_when_the_disk_takes_it_at_last():
    world = FakeWorld(*commands(1))
    begin_and_give_to_the_disk(world)
    world.inbox.made = [Cancel("r", ("7",))]
    world.journal.why_not = NO_ROOM
    decision = world.loop.tick()
    assert world.journal.syncing is None  # it was waited for
    assert "answer r" not in " ".join(world.diary)
    assert world.loop.wake_at(decision) > world.clock.time
    world.journal.why_not = None
    world.clock.time = world.loop.wake_at(decision)

    world.loop.tick()

    assert "answer r" in " ".join(world.diary)
    assert world.launcher.safe == from_launcher(world.journal.records)


def test_what_was_launched_together_with_what_is_waited_for_is_given_to_the_disk_as_well():
    world = FakeWorld(*commands(1))
    world.inbox.made = [Cancel("r", ("7",))]
    world.loop.tick()
    assert world.journal.durable < len(world.journal.records)
    world.clock.time += DURABLE_WITHIN_SECONDS

    world.loop.tick()

    assert world.diary.count("begin sync") == 1


def test_an_end_is_settled_in_the_tick_in_which_it_is_known():
    world = FakeWorld(*commands(1))
    world.loop.tick()
    world.clock.time += 1
    world.launcher.ended = [exited(at=T0 + 1, ending=Exited(1))]

    world.loop.tick()

    assert recorded(world)[-2:] == ["RunExited", "JobFinished"]
    assert world.loop.state.totals.failed == 1


def test_the_user_s_command_is_told_once_for_a_finished_job_after_it_is_on_record():
    world = FakeWorld(*commands(1), tells=True)
    world.waiter.when_waiting = world.jobs_end

    world.loop.run()

    assert done(world) == ["launch 1/1", "tell 1 ok"]
    assert world.diary.index("write JobFinished") < world.diary.index("tell 1 ok")


def test_nobody_is_told_of_a_failure_that_is_tried_again():
    world = FakeWorld(*commands(1), tells=True, retries=1, retry_delay_seconds=60.0)
    world.loop.tick()
    world.launcher.ended = [exited(ending=Exited(1))]

    world.loop.tick()

    assert "write JobRequeued" in world.diary
    assert done(world) == ["launch 1/1"]


def test_nobody_is_told_where_nobody_wants_to_be():
    world = FakeWorld(*commands(1))
    world.waiter.when_waiting = world.jobs_end

    world.loop.run()

    assert done(world) == ["launch 1/1"]


# --- a journal that cannot be written


def test_nothing_starts_that_is_not_on_record():
    world = FakeWorld(*commands(1))
    world.journal.why_not = NO_ROOM

    decision = world.loop.tick()

    assert done(world) == []
    assert (world.loop.state.runs, len(world.loop.state.queue)) == ({}, 1)
    assert decision.waiting is not None
    assert decision.waiting.why == f"nothing is started: {NO_ROOM}"
    assert T0 < decision.wake_at < NEVER
    assert not decision.over


def test_a_start_that_was_not_written_is_not_written_later_either():
    world = FakeWorld(*commands(1))
    world.journal.why_not = NO_ROOM
    world.loop.tick()
    world.journal.why_not = None
    world.clock.time += 60
    world.look()

    world.loop.tick()

    assert recorded(world) == ["JobAccepted", "InputEnded", "RunPlaced", "RunLaunched"]
    assert world.journal.records[-2] == placed(at=T0 + 60)
    assert done(world) == ["launch 1/1"]


def test_what_is_true_is_written_later_in_its_order():
    world = FakeWorld(*commands(2), gpus=2)
    world.loop.tick()
    world.journal.why_not = NO_ROOM
    world.clock.time += 1
    world.launcher.ended = [exited(1, at=T0 + 1), exited(2, at=T0 + 1, ending=Killed(9))]

    world.loop.tick()
    believed = world.loop.state.totals.finished
    world.journal.why_not = None
    world.loop.tick()

    assert believed == 2
    assert recorded(world)[-6:] == [
        "RunLaunched",
        "RunLaunched",
        "RunExited",
        "RunExited",
        "JobFinished",
        "JobFinished",
    ]


def test_nothing_is_written_twice_when_writing_failed_for_a_while():
    world = FakeWorld(*commands(5), gpus=2)
    ticks = 0

    def happens() -> None:
        nonlocal ticks
        ticks += 1
        world.journal.why_not = NO_ROOM if ticks % 3 else None
        world.clock.time += 40
        world.jobs_end()

    world.waiter.when_waiting = happens
    world.journal.why_not = NO_ROOM

    state = world.loop.run()
    world.journal.why_not = None
    world.loop.close(world.clock.now())

    assert state.totals.ok == 5
    assert world.journal.records == world.observer.events
    assert replay(a_policy(), world.journal.records).totals == state.totals


def test_what_runs_is_stopped_though_it_cannot_be_written():
    world = FakeWorld(*commands(1), grace_seconds=5.0)
    world.loop.tick()
    world.journal.why_not = NO_ROOM
    world.requests.made = [StopRequested(T0, "ctrl-c")]

    world.loop.tick()
    world.clock.time += 5
    world.loop.tick()

    assert done(world) == ["launch 1/1", "terminate 1", "kill 1"]
    world.journal.why_not = None
    world.loop.tick()
    assert recorded(world)[-2:] == ["RunStopping", "RunKilled"]
    assert [type(event) for event in world.journal.records[-2:]] == [RunStopping, RunKilled]


def test_nothing_more_is_read_until_what_was_read_is_written():
    world = FakeWorld(*commands(1), gpus=0)
    world.intake.open = True
    world.journal.why_not = NO_ROOM
    world.loop.tick()
    asked = len(world.intake.asked_for)

    world.intake.lines = [Arrived(a_spec(2))]
    world.loop.tick()
    meanwhile = len(world.intake.asked_for)
    world.journal.why_not = None
    world.loop.tick()
    world.loop.tick()

    assert meanwhile == asked
    assert recorded(world) == ["JobAccepted", "JobAccepted"]


def test_reading_goes_on_when_the_start_that_could_not_be_written_is_off_the_table():
    ill = a_sample(ailment="reset required")
    world = FakeWorld(*commands(1), gpus=0)
    world.intake.open = True
    world.loop.tick()
    world.gpus.told = [a_snapshot(a_sample())]
    world.journal.why_not = NO_ROOM
    world.loop.tick()
    world.journal.why_not = None
    world.clock.time += 60
    world.gpus.told = [a_snapshot(ill, at=world.clock.time)]
    world.intake.lines = [Arrived(a_spec(2))]

    world.loop.tick()
    world.loop.tick()

    assert world.loop.state.totals.accepted == 2


def test_the_longer_it_cannot_be_written_the_rarer_it_is_tried():
    world = FakeWorld(*commands(1))
    world.journal.why_not = NO_ROOM
    wakes = []

    for _ in range(8):
        decision = world.loop.tick()
        wakes.append(decision.wake_at - world.clock.time)
        world.clock.time = decision.wake_at
        world.look()

    assert wakes == [1, 2, 4, 8, 16, 30, 30, 30]


def test_the_launcher_is_told_of_nothing_that_is_not_written():
    world = FakeWorld(*commands(1))
    world.journal.why_not = NO_ROOM

    world.loop.tick()

    assert world.launcher.safe == []
    world.journal.why_not = None
    world.loop.tick()
    assert world.launcher.safe == from_launcher(world.journal.records)


def test_the_end_is_reached_though_nothing_can_be_written():
    world = FakeWorld(*commands(1))
    world.loop.tick()
    world.journal.why_not = NO_ROOM
    world.waiter.when_waiting = world.jobs_end

    state = world.loop.run()

    assert state.totals.ok == 1


# --- another dispatcher goes on

RESUMED = RunResumed(T0 + 100, HOST, "{}")


def resumed(
    *became: Adopted | RunExited | RunCleared,
    before: Sequence[Event],
    adopt: bool = True,
    **policy: Any,
) -> FakeWorld:
    """A dispatcher that found this of the runs of an earlier one."""
    world = FakeWorld(gpus=3, before=[*accepted(3), *before], **policy)
    world.clock.time = T0 + 100
    ends = [event for event in became if isinstance(event, RunExited | RunCleared)]
    world.launcher.ended += ends
    world.launcher.became = {
        event.run: event for event in became if not isinstance(event, RunExited | RunCleared)
    }
    world.loop.resume(RESUMED, None, adopt=adopt)
    return world


def test_what_still_runs_is_adopted_and_left_alone():
    world = resumed(before=[placed(), launched()])

    assert [entry for entry in world.diary if entry.startswith("adopt")] == ["adopt 1/1"]
    assert done(world) == []
    assert world.journal.records == [RESUMED]
    assert list(world.loop.state.runs) == [a_run()]


def test_a_start_that_never_happened_is_taken_back():
    revoked = RunRevoked(T0 + 100, a_run())

    world = resumed(revoked, before=[placed()])

    assert world.journal.records == [RESUMED, revoked]
    assert [job.id for job in world.loop.state.queue] == [1, 2, 3]


def test_a_start_that_nobody_saw_succeed_is_adopted():
    begun = launched(at=T0 + 100)

    world = resumed(begun, before=[placed()])

    assert world.journal.records == [RESUMED, begun]
    assert done(world) == []
    assert not isinstance(world.loop.state.runs[a_run()].status, Starting)


def test_what_ended_meanwhile_is_settled_at_once():
    well, lost = exited(1, at=T0 + 50), exited(2, at=T0 + 100, ending=Lost())

    world = resumed(well, lost, before=[placed(1, 0), launched(1), placed(2, 1), launched(2)])

    assert world.journal.records == [
        RESUMED,
        well,
        lost,
        JobFinished(T0 + 100, a_run(1), "ok"),
        JobRequeued(T0 + 100, a_run(2), "lost", T0 + 100),
    ]
    assert [job.id for job in world.loop.state.queue] == [2, 3]


def test_leftovers_that_are_gone_by_now_are_cleared():
    cleared = RunCleared(T0 + 100, a_run())
    left: list[Event] = [placed(), launched(), exited(leftovers=1), JobFinished(T0, a_run(), "ok")]

    world = resumed(cleared, before=left)

    assert world.loop.state.runs == {}


def test_what_still_runs_is_stopped_and_started_anew_if_so_wished():
    world = resumed(before=[placed(), launched()], adopt=False)

    assert done(world) == ["terminate 1"]
    assert world.journal.records == [RESUMED, RunStopping(T0 + 100, a_run(), "survivor")]
    assert world.diary.index("write RunStopping") < world.diary.index("terminate 1")
    world.launcher.ended = [exited(at=T0 + 101, ending=Killed(15))]
    world.clock.time += 1
    world.loop.tick()
    assert JobRequeued(T0 + 101, a_run(), "survivor", T0 + 101) in world.journal.records


def test_a_start_that_nobody_saw_succeed_is_stopped_too():
    world = resumed(launched(at=T0 + 100), before=[placed()], adopt=False)

    assert done(world) == ["terminate 1"]


def test_what_ended_is_not_stopped_and_what_was_being_stopped_is_asked_again():
    """Its dispatcher may have died between the record and the signal."""
    before: list[Event] = [placed(1, 0), launched(1), placed(2, 1), launched(2)]
    before.append(RunStopping(T0, a_run(2)))

    world = resumed(exited(1, at=T0 + 50), before=before, adopt=False)

    assert done(world) == ["terminate 2"]


def test_a_survivor_that_does_not_end_is_killed_after_the_grace_period():
    world = resumed(before=[placed(), launched()], adopt=False, grace_seconds=5.0)

    world.clock.time += 5
    world.loop.tick()

    assert done(world) == ["terminate 1", "kill 1"]


def test_another_list_takes_the_place_of_the_first_after_all_is_known_of_it():
    world = FakeWorld(before=[*accepted(3), placed(), launched()])
    lost, replaced = exited(at=T0 + 100, ending=Lost()), ListReplaced(T0 + 100, ("b.txt",))
    world.launcher.ended = [lost]

    world.loop.resume(RESUMED, replaced, adopt=True)

    assert recorded(world) == ["RunResumed", "RunExited", "JobRequeued", "ListReplaced"]
    assert sorted(world.loop.state.set_aside) == [1, 2, 3]


def test_what_became_of_the_runs_is_kept_though_it_cannot_be_written_yet():
    world = FakeWorld(before=[*accepted(1), placed(), launched()])
    world.journal.why_not = NO_ROOM
    world.launcher.ended = [exited(at=T0 + 50)]

    world.loop.resume(RESUMED, None, adopt=True)
    world.journal.why_not = None
    world.loop.tick()

    assert recorded(world)[:3] == ["RunResumed", "RunExited", "JobFinished"]


def test_a_job_that_runs_from_before_is_not_started_again():
    world = resumed(before=[placed(), launched()])
    world.gpus.told = [a_snapshot(*map(a_sample, range(3)), at=T0 + 100)]

    world.loop.tick()

    assert done(world) == ["launch 2/1", "launch 3/1"]
    assert not any(isinstance(e, RunPlaced) and e.run.job == 1 for e in world.journal.records)


def test_what_survived_and_is_not_on_the_new_list_is_not_started_anew():
    world = FakeWorld(before=[*accepted(1), placed(), launched()])
    world.intake.open = True
    world.clock.time = T0 + 100
    world.loop.resume(RESUMED, ListReplaced(T0 + 100, ("b.txt",)), adopt=False)
    world.launcher.ended = [exited(at=T0 + 100, ending=Killed(15))]

    for _ in range(3):
        world.gpus.told = [a_snapshot(a_sample(), at=world.clock.time)]
        world.loop.tick()
        world.intake.open = False
        world.clock.time += 1

    assert [entry for entry in done(world) if entry.startswith("launch")] == []
