"""A host's part: it obeys once, tells until it is on record, and starts nothing that is late."""

# ruff: noqa: ARG002  # a fake has the arguments of its port

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from smartsched.agent import STALE_AFTER_SECONDS, Agent, InProcess
from smartsched.core.actions import Checkpoint, Claim, Kill, Launch, Release, Terminate
from smartsched.core.events import (
    Event,
    RunAdopted,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    RunRevoked,
)
from smartsched.core.messages import (
    Came,
    Chunk,
    Expect,
    Fetched,
    Hello,
    Leave,
    Look,
    Order,
    Orders,
    Report,
    Said,
)
from smartsched.core.model import (
    ClaimAnswer,
    ClaimGranted,
    Exited,
    GpuKey,
    Job,
    NotStarted,
    Run,
    RunKey,
    Running,
    SamplerTrouble,
    Seen,
    Starting,
    Timestamp,
)
from smartsched.core.selection import Selection, parse_ids
from tests.builders import (
    HOST,
    T0,
    a_key,
    a_placement,
    a_process_id,
    a_run,
    a_sample,
    a_snapshot,
    a_spec,
)

AHEAD = 900.0  # how far the agent's clock is ahead of the dispatcher's


@dataclass
class FakeSampler:
    seen: list[Seen] = field(default_factory=list)
    refreshed: list[tuple[GpuKey, Timestamp]] = field(default_factory=list)
    wake: Timestamp = float("inf")
    watched: list[set[GpuKey]] = field(default_factory=list)

    def take(self, now: Timestamp) -> Sequence[Seen]:
        seen, self.seen = self.seen, []
        return seen

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        self.refreshed += gpus

    def watch(self, gpus: Collection[GpuKey]) -> None:
        self.watched.append(set(gpus))

    def wake_at(self) -> Timestamp:
        return self.wake


@dataclass
class FakeLauncher:
    outcome: Any = None  # None: it is launched
    runs: set[RunKey] = field(default_factory=set)
    done: list[tuple[str, RunKey]] = field(default_factory=list)
    news: list[Any] = field(default_factory=list)
    adopted: list[RunLaunched | RunRevoked | RunAdopted] | None = field(default_factory=list)
    safe: list[Event] = field(default_factory=list)

    def launch(self, launch: Launch, now: Timestamp) -> Any:
        self.done.append(("launch", launch.run))
        if self.outcome is not None:
            return self.outcome
        self.runs.add(launch.run)
        return RunLaunched(now, launch.run, a_process_id(), "/logs/1.log")

    def adopt(
        self, run: Run, now: Timestamp
    ) -> Sequence[RunLaunched | RunRevoked | RunAdopted] | None:
        self.done.append(("adopt", run.key))
        return self.adopted

    def terminate(self, run: RunKey) -> None:
        self.done.append(("terminate", run))

    def checkpoint(self, run: RunKey) -> None:
        self.done.append(("checkpoint", run))

    def kill(self, run: RunKey) -> None:
        self.done.append(("kill", run))

    def take(self, now: Timestamp) -> Sequence[RunExited | RunCleared | RunPostponed]:
        news, self.news = self.news, []
        self.runs -= {event.run for event in news}
        return news

    def written(self, events: Sequence[Event]) -> None:
        self.safe += events

    def living(self) -> Collection[RunKey]:
        return self.runs

    def wake_at(self) -> Timestamp:
        return float("inf")


@dataclass
class FakeClaims:
    asked: list[tuple[GpuKey, int]] = field(default_factory=list)
    released: list[GpuKey] = field(default_factory=list)
    answers: list[ClaimAnswer] = field(default_factory=list)

    def ask(self, gpus: Sequence[tuple[GpuKey, int]], now: Timestamp) -> None:
        self.asked += gpus
        self.answers.append(ClaimGranted(now, tuple(gpu for gpu, _ in gpus)))

    def release(self, gpus: Collection[GpuKey], now: Timestamp) -> None:
        self.released += gpus

    def take(self, now: Timestamp) -> Sequence[ClaimAnswer]:
        answers, self.answers = self.answers, []
        return answers

    def wake_at(self) -> Timestamp:
        return float("inf")


@dataclass
class FakeLease:
    until: list[Timestamp] = field(default_factory=list)

    def renew(self, until: Timestamp) -> None:
        self.until.append(until)


@dataclass
class FakeLogs:
    fetched_runs: set[RunKey] = field(default_factory=set)
    pieces: list[Chunk] = field(default_factory=list)
    told: list[tuple[RunKey, int]] = field(default_factory=list)
    begun: list[RunKey] = field(default_factory=list)
    joinings: int = 0

    def chunks(self) -> Sequence[Chunk]:
        pieces, self.pieces = self.pieces, []
        return pieces

    def began(self, run: RunKey) -> None:
        self.begun.append(run)

    def joined(self) -> None:
        self.joinings += 1

    def is_ready(self) -> bool:
        return bool(self.pieces)

    def is_done(self) -> bool:
        return not self.pieces

    def wake_at(self) -> Timestamp:
        return float("inf")

    def fetched(self, run: RunKey, bytes_so_far: int) -> None:
        self.told.append((run, bytes_so_far))

    def is_fetched(self, run: RunKey) -> bool:
        return run in self.fetched_runs


class Bench:
    """An agent with fakes for its host, and a dispatcher that counts its orders."""

    def __init__(self, **more: Any) -> None:
        self.gpus, self.launcher, self.claims = FakeSampler(), FakeLauncher(), FakeClaims()
        self.agent = Agent(HOST, self.gpus, self.launcher, self.claims, **more)
        self.orders = 0

    def told(
        self,
        *orders: Order,
        at: float = 0.0,
        late: float = 0.0,
        held_up: float = 0.0,
        acknowledged: int = 0,
        renewed: float | None = None,
    ) -> None:
        """Sent so long after T0, and so late; and obeyed so much later."""
        self.orders += 1
        message = Orders(self.orders, T0 + at, orders, acknowledged, renewed)
        arrived_at = T0 + AHEAD + at + late
        self.agent.obey(message, arrived_at, arrived_at + held_up)

    def happens(self, *news: Any) -> None:
        self.launcher.news += news
        self.agent.look(T0 + AHEAD)

    def says(self, at: float = 0.0) -> Report:
        self.agent.look(T0 + AHEAD + at)
        return self.agent.report(T0 + AHEAD + at)


def start(job: int = 1) -> Launch:
    return Launch(a_run(job), a_spec(job), a_placement())


def believed(status: Any, job: int = 1) -> Run:
    return Run(a_run(job), Job(a_run(job).job, a_spec(job), attempts=1), status)


STARTING = Starting(T0, a_placement())
RUNNING = Running(T0, a_placement(), a_process_id(), None)


def ended(job: int = 1, leftovers: int = 0) -> RunExited:
    return RunExited(T0 + AHEAD, a_run(job), Exited(0), leftovers)


def kinds(report: Report) -> list[str]:
    return [type(event).__name__ for _, event in report.events]


# --- starting


def test_what_it_is_told_to_start_it_starts_and_says_so():
    bench = Bench()

    bench.told(start())

    assert bench.launcher.done == [("launch", a_run())]
    report = bench.says()
    assert kinds(report) == ["RunLaunched"]
    assert report.living == {a_run()}


def test_the_same_order_starts_nothing_twice():
    bench = Bench()
    bench.told(start())

    bench.told(start())
    bench.happens(ended())
    bench.told(start())

    assert bench.launcher.done == [("launch", a_run())]


@pytest.mark.parametrize(
    "outcome",
    [
        RunPostponed(T0, a_run(), "no room"),
        RunExited(T0, a_run(), NotStarted("no shell"), 0),
    ],
)
def test_what_cannot_be_started_is_said(outcome: Any):
    bench = Bench()
    bench.launcher.outcome = outcome

    bench.told(start())

    assert bench.says().events == ((1, outcome),)


def test_an_order_that_was_on_its_way_for_too_long_starts_nothing():
    bench = Bench()
    bench.told()

    bench.told(start(), at=1.0, late=STALE_AFTER_SECONDS + 0.1)

    assert (bench.launcher.done, kinds(bench.says())) == ([], ["RunPostponed"])


def test_an_order_that_came_in_time_starts_nothing_when_it_is_obeyed_too_late():
    bench = Bench()
    bench.told()

    bench.told(start(), at=1.0, held_up=STALE_AFTER_SECONDS + 0.1)

    assert (bench.launcher.done, kinds(bench.says())) == ([], ["RunPostponed"])
    assert bench.says().heard == (T0 + 1.0, T0 + AHEAD + 1.0)


def test_an_order_that_is_a_bit_late_starts_it():
    bench = Bench()
    bench.told()

    bench.told(start(), at=1.0, late=STALE_AFTER_SECONDS - 0.1)

    assert kinds(bench.says()) == ["RunLaunched"]


def test_an_order_that_answers_what_was_said_long_ago_starts_nothing_though_all_are_as_late():
    bench = Bench()
    said_at = T0 + AHEAD

    bench.told(start(), renewed=said_at, late=STALE_AFTER_SECONDS + 0.1)

    assert kinds(bench.says()) == ["RunPostponed"]


def test_orders_about_runs_that_are_not_here_do_nothing():
    bench = Bench()

    bench.told(Terminate(a_run()), Checkpoint(a_run()), Kill(a_run()))

    assert bench.launcher.done == []


def test_runs_are_told_what_the_dispatcher_wants_in_its_order():
    bench = Bench()
    bench.told(start())

    bench.told(Checkpoint(a_run()), Terminate(a_run()), Kill(a_run()))

    assert [what for what, _ in bench.launcher.done[1:]] == ["checkpoint", "terminate", "kill"]


# --- telling until it is on record


def test_what_is_not_on_record_is_told_again_and_again_by_the_same_number():
    bench = Bench()
    bench.told(start())
    bench.happens(ended())

    assert bench.says().events == bench.says().events
    assert [number for number, _ in bench.says().events] == [1, 2]


def test_what_is_on_record_is_told_no_more_and_its_traces_may_go():
    bench = Bench()
    bench.told(start())
    bench.happens(ended())

    bench.told(acknowledged=1)
    assert (kinds(bench.says()), bench.agent.is_on_record()) == (["RunExited"], False)
    bench.told(acknowledged=2)

    assert (bench.says().events, bench.agent.is_on_record()) == ((), True)
    assert [type(event).__name__ for event in bench.launcher.safe] == ["RunLaunched", "RunExited"]


def test_numbers_go_on_where_they_were_after_what_is_on_record():
    bench = Bench()
    bench.told(start())
    bench.told(acknowledged=1)

    bench.happens(ended())

    assert [number for number, _ in bench.says().events] == [2]


def test_news_are_urgent_once_and_again_over_a_new_connection():
    bench = Bench()
    bench.told(start())
    assert bench.agent.has_news()

    assert bench.says().is_urgent
    assert not bench.says().is_urgent
    bench.agent.joined()

    assert bench.says().is_urgent


def test_over_a_new_connection_nothing_was_obeyed_or_heard_yet():
    bench = Bench()
    bench.told()
    assert (bench.says().obeyed, bench.says().heard) == (1, (T0, T0 + AHEAD))

    bench.agent.joined()

    assert (bench.says().obeyed, bench.says().heard) == (0, None)


# --- taking over


def test_runs_that_are_expected_are_looked_for_and_what_is_found_is_told():
    bench = Bench()
    bench.launcher.adopted = [RunAdopted(T0, a_run(), T0)]

    bench.told(Expect((believed(RUNNING),)))

    assert bench.launcher.done == [("adopt", a_run())]
    assert kinds(bench.says()) == ["RunAdopted"]


def test_whoever_asks_what_is_here_is_answered_at_once():
    bench = Bench()
    bench.says()

    bench.told(Expect(()))

    assert bench.agent.has_news()


def test_runs_that_it_looks_after_already_are_not_looked_for():
    bench = Bench()
    bench.told(start())
    bench.told(acknowledged=1)

    bench.told(Expect((believed(RUNNING),)))

    assert bench.launcher.done == [("launch", a_run())]
    assert bench.says().events == ()


def test_of_a_run_of_which_a_new_dispatcher_knows_no_beginning_that_is_told_again():
    bench = Bench()
    bench.told(start())
    bench.told(acknowledged=1)

    bench.told(Expect((believed(STARTING),)))

    assert kinds(bench.says()) == ["RunLaunched"]


def test_that_is_also_so_where_another_agent_began_it():
    bench = Bench()
    bench.launcher.adopted = [RunAdopted(T0, a_run(), T0)]
    bench.told(Expect((believed(RUNNING),)))
    bench.launcher.runs = {a_run()}
    bench.says()
    bench.told(acknowledged=1)

    bench.told(Expect((believed(STARTING),)))

    (_, event), *others = bench.says().events
    assert event == RunLaunched(T0, a_run(), a_process_id(), None)
    assert others == []


def test_runs_of_which_there_is_news_are_not_looked_for():
    bench = Bench()
    bench.told(start())
    bench.happens(ended())

    bench.told(Expect((believed(STARTING),)))

    assert bench.launcher.done == [("launch", a_run())]
    assert kinds(bench.says()) == ["RunLaunched", "RunExited"]


def test_of_whom_it_cannot_be_told_whether_he_is_here_is_so_until_that_is_known():
    bench = Bench()
    bench.launcher.adopted = None  # the disk is full

    bench.told(Expect((believed(STARTING),)))

    assert bench.says().living == {a_run()}
    assert not bench.agent.is_idle()
    assert bench.agent.wake_at() <= T0 + AHEAD + 1.0
    assert bench.gpus.watched == [{a_key()}]
    bench.launcher.adopted = [RunRevoked(T0, a_run())]
    report = bench.says(at=1.0)
    assert bench.gpus.watched == [{a_key()}, set()]
    assert (report.living, kinds(report)) == (frozenset(), ["RunRevoked"])
    assert bench.agent.is_idle()


def test_an_order_of_long_ago_cannot_start_what_was_revoked():
    bench = Bench()
    bench.launcher.adopted = [RunRevoked(T0, a_run())]

    bench.told(Expect((believed(STARTING),)))

    assert kinds(bench.says()) == ["RunRevoked"]
    assert not bench.agent.is_on_record()


# --- the lease


def test_the_lease_is_renewed_from_when_the_report_was_sent_that_was_heard():
    lease = FakeLease()
    bench = Bench(lease=lease, lease_seconds=300.0)

    bench.told(renewed=T0 + AHEAD, late=20.0)

    assert lease.until == [T0 + AHEAD + 300.0]


def test_before_any_report_was_heard_the_lease_stays_as_it_is():
    lease = FakeLease()
    bench = Bench(lease=lease, lease_seconds=300.0)

    bench.told(Expect(()))

    assert lease.until == []


# --- what is seen


def test_what_was_seen_is_told_once_and_says_when_it_was_read_and_when_that_was_done():
    bench = Bench()
    bench.gpus.seen = [a_snapshot(a_sample(), at=T0 + AHEAD - 0.5)]

    report = bench.says(at=0.25)

    (seen,) = report.seen
    assert seen == a_snapshot(a_sample(), at=T0 + AHEAD - 0.5, arrived_at=T0 + AHEAD + 0.25)
    assert not report.is_urgent
    assert bench.says().seen == ()


def test_what_somebody_asked_to_be_looked_at_is_urgent():
    bench = Bench()
    bench.told(Look((a_key().uuid,)))
    assert bench.gpus.refreshed == [(a_key(), T0 + AHEAD)]

    bench.gpus.seen = [a_snapshot(a_sample(), at=T0 + AHEAD + 0.01, whole=False)]

    assert bench.says().is_urgent


@pytest.mark.parametrize("last", [ended(), RunCleared(T0 + AHEAD, a_run())])
def test_where_a_run_was_is_looked_at_once_without_being_asked(last: Any):
    bench = Bench()
    bench.told(start())

    bench.happens(last)

    assert bench.gpus.refreshed == [(a_key(), T0 + AHEAD)]
    bench.says()
    bench.gpus.seen = [a_snapshot(a_sample(), at=T0 + AHEAD + 0.01, whole=False)]
    assert bench.says().is_urgent


def test_where_runs_are_is_watched_while_they_are_there():
    bench = Bench()
    assert bench.gpus.watched == []

    bench.told(start(1), start(2))
    assert bench.gpus.watched == [{a_key()}]
    bench.happens(ended(1))
    assert bench.gpus.watched == [{a_key()}]
    bench.happens(ended(2))

    assert bench.gpus.watched == [{a_key()}, set()]


def test_where_a_run_is_that_was_taken_over_is_watched_and_looked_at():
    """Whoever came while nobody was there to be told is seen by whoever is now."""
    bench = Bench()
    bench.launcher.runs.add(a_run())

    bench.told(Expect((believed(RUNNING),)))

    assert bench.gpus.watched == [{a_key()}]
    assert bench.gpus.refreshed == [(a_key(), T0 + AHEAD)]


def test_what_is_told_of_some_gpus_without_being_asked_is_urgent():
    bench = Bench()
    bench.gpus.seen = [a_snapshot(a_sample(), at=T0 + AHEAD, whole=False)]

    assert bench.says().is_urgent


def test_where_a_run_has_left_something_behind_there_is_nothing_to_be_seen_yet():
    bench = Bench()
    bench.told(start())

    bench.happens(ended(leftovers=1))

    assert bench.gpus.refreshed == []


def test_what_was_begun_before_somebody_asked_is_no_answer():
    bench = Bench()
    bench.told(Look((a_key().uuid,)))
    bench.gpus.seen = [a_snapshot(a_sample(), at=T0 + AHEAD - 0.01)]
    assert not bench.says().is_urgent

    bench.gpus.seen = [a_snapshot(a_sample(), at=T0 + AHEAD + 0.01, whole=False)]

    assert bench.says().is_urgent


def test_trouble_with_the_gpus_is_urgent():
    bench = Bench()
    bench.gpus.seen = [SamplerTrouble(HOST, "the driver hangs")]

    assert bench.says().is_urgent


def test_gpus_that_are_not_offered_are_told_of_as_such():
    bench = Bench(selection=Selection(parse_ids("1")))
    bench.gpus.seen = [a_snapshot(a_sample(0), a_sample(1))]

    (seen,) = bench.says().seen

    assert seen == a_snapshot(
        a_sample(0), a_sample(1), arrived_at=T0 + AHEAD, withheld=[a_sample(0)]
    )


def test_what_was_granted_stays_so_when_cards_are_numbered_anew():
    bench = Bench(selection=Selection(parse_ids("0,1")))
    bench.gpus.seen = [a_snapshot(a_sample(0), a_sample(1), a_sample(2))]
    bench.says()
    moved = [a_sample(0, key=a_key(1)), a_sample(1, key=a_key(2))]

    bench.gpus.seen = [a_snapshot(*moved)]

    (seen,) = bench.says().seen
    assert seen == a_snapshot(*moved, arrived_at=T0 + AHEAD, withheld=moved[1:])


def test_what_was_granted_by_name_may_come_later():
    bench = Bench(selection=Selection(parse_ids("GPU-0002")))
    bench.gpus.seen = [a_snapshot(a_sample(0)), a_snapshot(a_sample(0), a_sample(2))]

    _, seen = bench.says().seen

    assert seen == a_snapshot(
        a_sample(0), a_sample(2), arrived_at=T0 + AHEAD, withheld=[a_sample(0)]
    )


def test_while_nobody_can_be_told_what_was_seen_is_forgotten_and_what_happened_is_not():
    bench = Bench()
    bench.told(start(), Claim(((a_key(), 0),)))
    bench.gpus.seen = [a_snapshot(a_sample())]
    bench.agent.look(T0 + AHEAD)

    bench.agent.forget_what_was_seen()

    report = bench.says()
    assert (report.seen, report.answers, kinds(report)) == ((), (), ["RunLaunched"])


# --- claims


def test_claims_are_asked_for_and_their_answers_are_urgent():
    bench = Bench()

    bench.told(Claim(((a_key(), 7),)))

    assert bench.claims.asked == [(a_key(), 7)]
    report = bench.says()
    assert report.is_urgent
    assert report.answers == (ClaimGranted(T0 + AHEAD, (a_key(),)),)


def test_claims_are_released():
    bench = Bench()
    bench.told(Claim(((a_key(), 7),)))

    bench.told(Release((a_key(),)))

    assert bench.claims.released == [a_key()]


def test_what_an_earlier_dispatcher_had_claimed_is_given_up_unless_the_next_one_wants_it():
    bench = Bench()
    bench.told(Claim(((a_key(0), 0),)), Claim(((a_key(1), 0),)))

    bench.told(Expect(()), Claim(((a_key(1), 0),)))

    assert bench.claims.released == [a_key(0)]


def test_while_nobody_is_there_only_gpus_with_runs_stay_claimed():
    bench = Bench()
    bench.told(Claim(((a_key(0), 0),)), Claim(((a_key(1), 0),)), start())
    bench.says()

    bench.agent.give_up_idle_gpus(T0 + AHEAD)

    assert bench.claims.released == [a_key(1)]
    bench.happens(ended())
    bench.agent.give_up_idle_gpus(T0 + AHEAD)
    bench.agent.give_up_idle_gpus(T0 + AHEAD)
    assert bench.claims.released == [a_key(1), a_key(0)]


def test_gpus_of_runs_that_were_taken_over_stay_claimed_while_nobody_is_there():
    bench = Bench()
    bench.launcher.runs.add(a_run())

    bench.told(Expect((believed(RUNNING),)), Claim(((a_key(0), 0),)))
    bench.agent.give_up_idle_gpus(T0 + AHEAD)

    assert bench.claims.released == []


# --- logs


def test_an_end_is_told_once_the_log_has_come():
    logs = FakeLogs()
    bench = Bench(logs=logs)
    bench.told(start())
    bench.happens(ended())
    report = bench.says()
    assert kinds(report) == ["RunLaunched"]
    assert report.living == {a_run()}
    assert not bench.agent.is_idle()

    logs.fetched_runs.add(a_run())

    assert kinds(bench.says()) == ["RunLaunched", "RunExited"]
    assert bench.agent.is_idle()


def test_pieces_of_logs_are_sent_and_what_has_come_is_passed_on():
    logs = FakeLogs(pieces=[Chunk(a_run(), 0, b"text")])
    bench = Bench(logs=logs)
    assert bench.agent.has_news()

    report = bench.says()
    bench.told(Fetched(a_run(), 4))

    assert (report.chunks, logs.told) == ((Chunk(a_run(), 0, b"text"),), [(a_run(), 4)])


# --- leaving


def test_it_is_idle_when_nothing_runs():
    bench = Bench()
    assert bench.agent.is_idle()

    bench.told(start())

    assert not bench.agent.is_idle()


def test_it_is_told_when_it_may_go_and_says_when_it_goes():
    bench = Bench()
    bench.told(Leave())
    bench.agent.leaves = True

    assert (bench.agent.is_told_to_leave, bench.says().leaves) == (True, True)


# --- in the same process


def test_in_the_same_process_it_is_told_first_what_should_be_there():
    bench = Bench()
    came = Came(HOST, Hello("", "", "box", 8))
    transport = InProcess(bench.agent, came)

    assert transport.take(T0) == [came]
    transport.send(HOST, Orders(1, T0, (Expect(()), start())))

    (said,) = transport.take(T0)
    assert isinstance(said, Said)
    assert (said.report.obeyed, kinds(said.report)) == (1, ["RunLaunched"])


def test_in_the_same_process_it_says_nothing_when_there_is_nothing_new():
    bench = Bench()
    transport = InProcess(bench.agent, Came(HOST, Hello("", "", "box", 8)))
    transport.take(T0)
    transport.send(HOST, Orders(1, T0, (Expect(()),)))
    transport.take(T0)

    assert transport.take(T0 + 1) == []


def test_an_agent_wakes_for_whatever_its_host_needs():
    bench = Bench()
    bench.gpus.wake = T0 + 3

    assert bench.agent.wake_at() == T0 + 3
