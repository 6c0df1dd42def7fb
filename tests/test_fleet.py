"""All hosts as one: what agents say becomes events and observations, each of them once."""

# ruff: noqa: ARG002  # a fake has the arguments of its port

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from smartsched.core.actions import Checkpoint, Claim, Kill, Launch, Release, Terminate
from smartsched.core.apply import apply, replay
from smartsched.core.events import (
    Event,
    JobAccepted,
    RunAdopted,
    RunCleared,
    RunExited,
    RunKilled,
    RunLaunched,
    RunPlaced,
    RunPostponed,
    RunRevoked,
    RunStopping,
)
from smartsched.core.messages import (
    Came,
    Chunk,
    Connection,
    Expect,
    Fetched,
    Garbled,
    Hello,
    Leave,
    Look,
    News,
    Order,
    Orders,
    Report,
    Said,
    Went,
)
from smartsched.core.model import (
    UNREAD,
    ClaimGranted,
    ClaimRefused,
    Exited,
    GpuKey,
    GpuUnreadable,
    GpuUuid,
    HostAway,
    HostHere,
    HostName,
    JobId,
    Lost,
    NotStarted,
    Observation,
    PlacedGpu,
    Placement,
    ProcessId,
    RunKey,
    Snapshot,
    StopReason,
    Timestamp,
    Unwanted,
)
from smartsched.fleet.claims import FleetClaims
from smartsched.fleet.gpus import FleetGpus
from smartsched.fleet.host import Patience
from smartsched.fleet.hosts import Hosts
from smartsched.fleet.launcher import FleetLauncher
from tests.builders import (
    T0,
    a_key,
    a_policy,
    a_process_id,
    a_run,
    a_sample,
    a_snapshot,
    a_spec,
)

GPU1, GPU2 = HostName("gpu1"), HostName("gpu2")
AHEAD = 500.0  # how far the agents' clocks are ahead
LEASE = Patience(320.0)
HELLO = Hello("1.0", "agent-1", "node", 8)


@dataclass
class FakeTransport:
    """A connection is called after its host: "gpu1", "gpu1 2" ..."""

    news: list[News] = field(default_factory=list)
    sent: list[tuple[Connection, Orders]] = field(default_factory=list)
    dropped: list[tuple[Connection, float]] = field(default_factory=list)
    wake: Timestamp = float("inf")
    too_long: Callable[[Orders], bool] = lambda _: False

    def send(self, connection: Connection, orders: Orders) -> bool:
        if self.too_long(orders):
            return False
        self.sent.append((connection, orders))
        return True

    def take(self, now: Timestamp) -> Sequence[News]:
        news, self.news = self.news, []
        return news

    def drop(self, connection: Connection, why: str, keep_out_seconds: float = 0.0) -> None:
        self.dropped.append((connection, keep_out_seconds))

    def wake_at(self) -> Timestamp:
        return self.wake


@dataclass
class FakeRecruiter:
    news: list[HostAway] = field(default_factory=list)
    met: list[str] = field(default_factory=list)

    def take(self, now: Timestamp) -> Sequence[HostAway]:
        news, self.news = self.news, []
        return news

    def came(self, host: HostName, now: Timestamp) -> None:
        self.met.append(f"{host} came")

    def went(self, host: HostName, now: Timestamp, *, again_in_seconds: float) -> None:
        again = {float("inf"): " for good", 0.0: ""}
        self.met.append(
            f"{host} went" + again.get(again_in_seconds, f" for {again_in_seconds:g} s")
        )

    def wake_at(self) -> Timestamp:
        return float("inf")


class Bench:
    """The fleet's parts over a pretend transport, and a state that takes in what they say."""

    def __init__(self, *events: Event, patience: Patience = LEASE, **policy: Any) -> None:
        accepted = [JobAccepted(T0, JobId(number), a_spec(number)) for number in (1, 2, 3)]
        self.state = replay(a_policy(spans_hosts=True, **policy), [*accepted, *events])
        self.transport, self.recruiter = FakeTransport(), FakeRecruiter()
        self.hosts = Hosts(
            self.transport,
            self.state,
            version="1.0",
            patience=patience,
            recruiter=self.recruiter,
            named=[GPU1],
        )
        self.gpus = FleetGpus(self.hosts)
        self.launcher = FleetLauncher(self.hosts, self.state)
        self.claims = FleetClaims(self.hosts)
        self.connections: dict[HostName, list[Connection]] = {}

    def comes(self, host: HostName = GPU1, at: float = 0.0, **hello: Any) -> None:
        """An agent, over a connection of its own."""
        before = self.connections.setdefault(host, [])
        before.append(f"{host} {len(before) + 1}" if before else host)
        said = replace(HELLO, sent_at=T0 + AHEAD + at, **hello)
        self.transport.news.append(Came(host, said, before[-1]))
        self.tick(at)

    def goes(self, host: HostName = GPU1, at: float = 0.0) -> list[Event]:
        self.transport.news.append(Went(host, "connection reset", self.connections[host][-1]))
        return self.tick(at)

    def says(
        self, host: HostName = GPU1, at: float = 0.0, *events: tuple[int, Any], **report: Any
    ) -> list[Event]:
        """All orders so far were obeyed, unless said otherwise. What follows from it."""
        facts: dict[str, Any] = {
            "obeyed": max((orders.number for orders in self.sent(host)), default=0),
            "heard": (T0 + at, T0 + AHEAD + at),
        }
        said = Report(T0 + AHEAD + at, events=events, **(facts | report))
        self.hears(host, said, at)
        return self.tick(at)

    def hears(self, host: HostName, report: Report, at: float = 0.0) -> None:
        """It lies there, and nobody has looked yet."""
        self.transport.news.append(Said(host, report, T0 + at, self.connections[host][-1]))

    def sent(self, host: HostName = GPU1) -> list[Orders]:
        """Over its last connection, of what was not looked at yet."""
        last = self.connections[host][-1]
        return [orders for to, orders in self.transport.sent if to == last]

    def tick(self, at: float) -> list[Event]:
        """As the loop takes in what is new."""
        taken: list[Event] = []
        for event in self.launcher.take(T0 + at):
            apply(self.state, event)
            taken.append(event)
        return taken

    def observed(self, at: float = 0.0) -> list[Observation]:
        return list(self.gpus.take(T0 + at))

    def told(self, host: HostName = GPU1) -> list[Order]:
        """All orders since the last call."""
        connections = self.connections.get(host, [])
        sent, self.transport.sent = self.transport.sent, []
        self.transport.sent = [each for each in sent if each[0] not in connections]
        return [o for to, orders in sent if to in connections for o in orders.orders]

    def last(self, host: HostName = GPU1) -> Orders:
        return self.sent(host)[-1]


def on(host: HostName = GPU1) -> Placement:
    return Placement((PlacedGpu(a_key(0, host), f"{host}/0", "0"),))


def placed(job: int = 1, host: HostName = GPU1) -> RunPlaced:
    return RunPlaced(T0, a_run(job), on(host))


def launched(job: int = 1, at: float = 0.0) -> RunLaunched:
    return RunLaunched(T0 + at, a_run(job), a_process_id(), None)


def ended(job: int = 1, at: float = 0.0) -> RunExited:
    return RunExited(T0 + at, a_run(job), Exited(0), leftovers=0)


def running(job: int = 1, host: HostName = GPU1) -> list[Event]:
    return [placed(job, host), launched(job)]


def kinds(events: Sequence[object]) -> list[str]:
    return [type(event).__name__ for event in events]


LIVING = frozenset({a_run(1)})


# --- joining


def test_whoever_comes_is_told_which_runs_should_be_there():
    bench = Bench(*running(1), *running(2, GPU2))

    bench.comes()

    (expect,) = bench.told()
    assert isinstance(expect, Expect)
    assert [run.key for run in expect.runs] == [a_run(1)]
    assert bench.recruiter.met == ["gpu1 came"]


def test_whoever_comes_is_here_once_he_has_said_what_he_knows_and_that_was_taken():
    bench = Bench(*running(1))
    bench.comes()
    bench.says(obeyed=0, living=LIVING)
    assert kinds(bench.observed()) == []

    bench.hears(GPU1, Report(T0 + AHEAD, obeyed=1, events=((1, ended()),)))
    assert kinds(bench.observed()) == []  # the loop took no events in between
    assert kinds(bench.tick(0.0)) == ["RunExited"]

    assert bench.observed() == [HostHere(GPU1, "node", 8)]


def test_orders_that_were_given_before_are_given_again():
    stopping: list[Event] = [*running(1), RunStopping(T0, a_run(1))]
    killed: list[Event] = [*running(2), RunStopping(T0, a_run(2)), RunKilled(T0, a_run(2))]
    bench = Bench(*stopping, *killed)

    bench.comes()

    assert bench.told()[1:] == [Terminate(a_run(1)), Kill(a_run(2))]


@pytest.mark.parametrize("why", ["contention", "leaving"])
def test_who_was_to_save_its_state_is_told_so_again(why: StopReason):
    bench = Bench(*running(1), RunStopping(T0, a_run(1), why), asks_for_checkpoints=True)

    bench.comes()

    assert bench.told()[1:] == [Checkpoint(a_run(1))]


def test_an_agent_of_another_version_is_sent_off_with_a_reason():
    bench = Bench()

    bench.comes(version="0.9")

    assert bench.observed() == [
        HostAway(GPU1, "its agent has smartsched 0.9, and this is 1.0: install the same")
    ]
    assert bench.told() == [Leave()]
    assert bench.says(GPU1, 1.0, (1, launched())) == []
    assert bench.recruiter.met == ["gpu1 went for 30 s"]


def test_an_agent_of_another_version_that_may_have_jobs_of_the_run_is_kept_out_and_left_alone():
    """Told to leave, it would take with it how they have ended."""
    bench = Bench(*running())

    bench.comes(version="0.9", more={"pid": 4711})

    (away,) = bench.observed()
    assert isinstance(away, HostAway)
    assert "end that agent, not its jobs: kill -9 4711; its job is started" in away.why
    assert bench.told() == []
    assert bench.transport.dropped == [(GPU1, 30.0)]
    assert bench.tick(LEASE.lost_after_seconds - 0.1) == []
    assert kinds(bench.tick(LEASE.lost_after_seconds)) == ["RunExited"]


def test_an_agent_that_cannot_be_understood_is_away_and_tried_again_later():
    bench = Bench(*running())

    bench.transport.news.append(Garbled(GPU1, "KeyError: 'version'", "some connection"))
    bench.tick(0.0)

    assert bench.observed() == [HostAway(GPU1, "it says what cannot be read: KeyError: 'version'")]
    assert bench.transport.dropped == [("some connection", 30.0)]
    assert bench.recruiter.met == ["gpu1 went for 30 s"]


def test_what_cannot_be_read_is_told_once_for_each_connection():
    bench = Bench(*running())
    bench.comes()
    bench.transport.news += [Garbled(GPU1, "no event", GPU1)] * 3

    bench.tick(1.0)

    assert bench.recruiter.met == ["gpu1 came", "gpu1 went for 30 s"]
    assert kinds(bench.observed(1.0)) == ["HostAway"]


def test_whether_commands_can_run_on_a_host_may_change():
    bench = Bench()
    bench.comes()
    bench.says(GPU1, is_unfit=True)
    assert bench.observed() == [HostHere(GPU1, "node", 8, is_unfit=True)]

    bench.says(GPU1)

    assert bench.observed() == [HostHere(GPU1, "node", 8)]


def test_two_pilots_of_one_machine_speak_for_what_each_was_granted():
    bench = Bench()
    mine, other = (
        [a_sample(index, key=a_key(index, host)) for index in (0, 1)] for host in (GPU1, GPU2)
    )
    bench.comes(GPU1)
    bench.says(GPU1, seen=(a_snapshot(*mine, host=GPU1, withheld=mine[1:]),))
    bench.comes(GPU2)

    bench.says(GPU2, seen=(a_snapshot(*other, host=GPU2, withheld=other[:1]),))

    assert not any(isinstance(each, HostAway) for each in bench.observed())


def test_a_machine_that_has_two_names_is_used_by_one():
    bench = Bench()
    bench.comes(GPU1)
    bench.says(GPU1, seen=(a_snapshot(a_sample(key=a_key(7, GPU1)), host=GPU1),))
    bench.comes(GPU2)
    bench.observed()

    bench.says(GPU2, seen=(a_snapshot(a_sample(key=a_key(7, GPU2)), host=GPU2),))

    (away,) = [each for each in bench.observed() if isinstance(each, HostAway)]
    assert (away.host, "same machine as gpu1" in away.why) == (GPU2, True)
    assert Leave() in bench.told(GPU2)


def test_gpus_of_which_no_uuid_could_be_read_are_not_the_same_for_that():
    bench = Bench()
    for host in (GPU1, GPU2):
        key = GpuKey(host, GpuUuid(f"{UNREAD}0"))
        unread = GpuUnreadable(key, 0, None, "?", "GPU is lost")
        bench.comes(host)
        bench.says(host, seen=(a_snapshot(unread, host=host),))

    assert "HostAway" not in kinds(bench.observed())


# --- several connections, and several machines


def test_orders_go_to_the_agent_that_they_were_meant_for():
    """Another one may have come by then, which knows of nothing yet."""
    bench = Bench(placed())
    bench.comes()
    bench.says(GPU1, 0.1)
    bench.transport.news += [Went(GPU1, "reset", GPU1), Came(GPU1, HELLO, "another")]
    bench.transport.sent.clear()

    bench.hosts.send(bench.hosts.by_name[GPU1], Launch(a_run(), a_spec(), on()))

    assert [to for to, _ in bench.transport.sent] == [GPU1]


def test_what_was_said_over_another_connection_says_nothing():
    bench = Bench(*running())
    bench.comes()
    bench.says(GPU1, 0.1, living=LIVING)
    bench.goes(at=1.0)
    bench.comes(at=2.0)
    late = Report(T0 + AHEAD, obeyed=99)

    bench.transport.news += [Said(GPU1, late, T0 + 2.1, GPU1), Went(GPU1, "reset", GPU1)]

    assert bench.tick(2.1) == []
    assert bench.hosts.by_name[GPU1].here


def test_orders_are_counted_anew_over_each_connection():
    bench = Bench()
    bench.comes()
    bench.says(GPU1, 1.0)
    bench.goes(at=2.0)

    bench.comes(at=3.0)

    assert [orders.number for orders in bench.sent()] == [1]


HERE, ELSEWHERE = "a1b2", "c3d4"


def test_another_machine_that_answers_to_the_name_says_nothing_of_runs_there():
    bench = Bench(*running())
    bench.comes(machine=HERE)
    bench.says(GPU1, 5.0, living=LIVING)
    bench.goes(at=6.0)
    bench.observed(6.0)

    bench.comes(at=7.0, machine=ELSEWHERE)

    assert "another machine answers to its name; its job is started anew" in str(bench.observed())
    assert bench.told()[1:] == []
    assert bench.transport.dropped == [("gpu1 2", 30.0)]
    assert bench.recruiter.met[-1] == "gpu1 went for 30 s"
    assert bench.tick(5.0 + LEASE.lost_after_seconds - 0.1) == []
    assert kinds(bench.tick(5.0 + LEASE.lost_after_seconds)) == ["RunExited"]
    bench.comes(at=400.0, machine=ELSEWHERE)
    assert bench.recruiter.met[-1] == "gpu1 came"


def test_the_machine_itself_may_come_back_after_another_one_was_sent_away():
    bench = Bench(*running())
    bench.comes(machine=HERE)
    bench.says(GPU1, 5.0, living=LIVING)
    bench.comes(at=7.0, machine=ELSEWHERE)

    bench.comes(at=20.0, machine=HERE)

    assert bench.says(GPU1, 21.0, living=LIVING) == []
    assert bench.tick(6.0 + LEASE.lost_after_seconds) == []


def test_a_machine_that_was_rebooted_has_lost_what_ran_there():
    bench = Bench(*running())
    bench.comes(machine=HERE)
    bench.says(GPU1, 5.0, living=LIVING)
    bench.goes(at=6.0)
    bench.comes(at=60.0, machine=HERE, agent="agent-2")

    assert kinds(bench.says(GPU1, 61.0)) == ["RunExited"]


def test_where_nobody_knows_which_machine_it_is_it_is_the_same():
    bench = Bench(*running())
    bench.comes(machine="")
    bench.goes(at=6.0)
    bench.comes(at=60.0, machine=HERE, agent="agent-2")

    assert kinds(bench.says(GPU1, 61.0)) == ["RunExited"]


@pytest.mark.parametrize(("machine", "is_let_in"), [(HERE, True), (ELSEWHERE, False)])
def test_a_dispatcher_that_was_resumed_knows_where_its_runs_were_started(
    machine: str, is_let_in: bool
):
    start = replace(launched(), process=ProcessId(100, 1000, f"boot/{HERE}"))
    bench = Bench(placed(), start)

    bench.comes(machine=machine)

    assert bench.hosts.by_name[GPU1].here == is_let_in


# --- starting


def test_an_order_to_start_is_sent_and_what_came_of_it_is_told_later():
    bench = Bench(placed())
    bench.comes()
    bench.told()

    outcome = bench.launcher.launch(Launch(a_run(), a_spec(), on()), T0)

    assert outcome is None
    assert kinds(bench.told()) == ["Launch"]
    assert kinds(bench.says(GPU1, 0.1, (1, launched(at=AHEAD)), living=LIVING)) == ["RunLaunched"]


def test_nothing_is_started_on_a_host_that_is_out_of_reach():
    bench = Bench(placed())

    outcome = bench.launcher.launch(Launch(a_run(), a_spec(), on()), T0)

    assert isinstance(outcome, RunPostponed)
    assert "gpu1 is out of reach" in outcome.why


def test_nothing_is_started_on_a_host_that_has_just_said_that_it_leaves():
    """It may have gone before the order arrives."""
    bench = Bench(placed())
    bench.comes()
    bench.says(GPU1, 0.1, leaves=True)
    bench.told()

    outcome = bench.launcher.launch(Launch(a_run(), a_spec(), on()), T0)

    assert isinstance(outcome, RunPostponed)
    assert bench.told() == []


def test_what_is_too_long_to_be_sent_is_given_up():
    bench = Bench(placed())
    bench.comes()
    bench.transport.too_long = lambda orders: bool(orders.orders)

    outcome = bench.launcher.launch(Launch(a_run(), a_spec(), on()), T0)

    assert isinstance(outcome, RunExited)
    assert outcome.ending == NotStarted(
        "the command is too long to be sent to another host", for_good=True
    )
    before = bench.last().number
    bench.says(GPU1, 0.1)
    assert bench.last().number == before + 1


def test_what_was_started_is_not_remembered_for_ever():
    bench = Bench(placed())
    bench.comes()
    bench.launcher.launch(Launch(a_run(), a_spec(), on()), T0)
    assert bench.hosts.by_name[GPU1].launched

    bench.says(GPU1, 0.2, (1, launched(at=AHEAD)), living=LIVING)

    assert not bench.hosts.by_name[GPU1].launched


def test_a_start_that_was_refused_is_taken_back():
    bench = Bench(placed())
    bench.comes()
    bench.launcher.launch(Launch(a_run(), a_spec(), on()), T0)

    (event,) = bench.says(GPU1, 6.0, (1, RunPostponed(T0 + AHEAD, a_run(), "it came too late")))

    assert isinstance(event, RunPostponed)
    assert [job.id for job in bench.state.queue] == [2, 3, 1] or bench.state.queue[0].id == 1


def test_times_are_told_in_our_own_and_never_as_later_than_now():
    bench = Bench(placed())
    bench.comes()

    (event,) = bench.says(GPU1, 1.0, (1, launched(at=AHEAD + 0.75)), living=LIVING)

    assert event.at == pytest.approx(T0 + 0.75, abs=0.01)
    (late,) = bench.says(GPU1, 2.0, (2, ended(at=AHEAD + 99.0)))
    assert late.at == T0 + 2.0


# --- what was said is taken once


def test_an_event_that_is_told_again_is_taken_once():
    bench = Bench(*running())
    bench.comes()

    assert kinds(bench.says(GPU1, 0.1, (1, ended()))) == ["RunExited"]
    assert bench.says(GPU1, 0.2, (1, ended())) == []


def test_an_event_that_is_told_again_over_another_connection_is_taken_once():
    bench = Bench(*running(1), *running(2))
    bench.comes()
    bench.says(GPU1, 0.1, (1, ended(1)), living=frozenset({a_run(2)}))
    bench.goes()
    bench.comes(at=1.0)

    events = bench.says(GPU1, 1.1, (1, ended(1)), (2, ended(2)))

    assert [event.run for event in events if isinstance(event, RunExited)] == [a_run(2)]


def test_another_agent_counts_from_one_again():
    bench = Bench(*running(1), *running(2))
    bench.comes()
    bench.says(GPU1, 0.1, (1, ended(1)), living=frozenset({a_run(2)}))
    bench.goes()
    bench.comes(at=1.0, agent="agent-2")

    assert kinds(bench.says(GPU1, 1.1, (1, ended(2)))) == ["RunExited"]


@pytest.mark.parametrize(
    "event",
    [
        launched(),
        RunAdopted(T0, a_run(9), T0),
        RunRevoked(T0, a_run()),
        RunCleared(T0, a_run()),
        ended(9),
        RunPostponed(T0, a_run(9), "no room"),
    ],
)
def test_what_cannot_follow_from_where_a_run_stands_is_no_news(event: Any):
    """It was said to an earlier dispatcher, or another agent said so before."""
    bench = Bench(*running())
    bench.comes()

    assert bench.says(GPU1, 0.1, (1, event), living=LIVING) == []


def test_what_is_on_record_is_acknowledged_all_at_once():
    bench = Bench(*running(1), *running(2))
    bench.comes()
    bench.says(GPU1, 0.1, (1, RunAdopted(T0 + AHEAD, a_run(1), T0)), (2, ended(2)), living=LIVING)
    assert bench.last().acknowledged == 0

    bench.launcher.noted()
    bench.launcher.kept()

    assert bench.last().acknowledged == 2


def test_what_was_heard_and_not_taken_yet_is_not_acknowledged():
    bench = Bench(*running(1), *running(2))
    bench.comes()
    bench.says(GPU1, 0.1, (1, ended(1)), living=frozenset({a_run(2)}))
    said = Report(T0 + AHEAD + 0.2, obeyed=1, events=((1, ended(1)), (2, ended(2))))
    bench.hears(GPU1, said, 0.2)
    bench.observed(0.2)

    bench.launcher.noted()
    bench.launcher.kept()

    assert bench.last().acknowledged == 1


def test_each_report_is_answered_by_when_it_was_sent():
    bench = Bench()
    bench.comes()

    bench.says(GPU1, 3.0)

    assert bench.last().renewed == T0 + AHEAD + 3.0


def test_over_a_new_connection_nothing_is_renewed_before_something_was_heard():
    bench = Bench()
    bench.comes()
    bench.says(GPU1, 3.0)
    bench.goes()

    bench.comes(at=9.0)

    assert bench.last().renewed is None


# --- missing and lost


def test_what_its_host_does_not_know_any_more_is_lost():
    bench = Bench(*running())
    bench.comes()

    (event,) = bench.says(GPU1, 0.1)

    assert isinstance(event, RunExited)
    assert event.ending == Lost("its host does not know of it any more")


def test_nothing_is_missed_before_the_agent_has_heard_what_should_be_there():
    bench = Bench(*running())
    bench.comes()

    assert bench.says(GPU1, 0.1, obeyed=0) == []


def test_nothing_is_missed_that_its_agent_was_told_to_start_a_moment_ago():
    bench = Bench(placed())
    bench.comes()
    bench.launcher.launch(Launch(a_run(), a_spec(), on()), T0)

    assert bench.says(GPU1, 0.1, obeyed=1) == []
    assert kinds(bench.says(GPU1, 0.2, obeyed=2)) == ["RunLaunched", "RunExited"]


def test_what_has_ended_is_not_missed():
    bench = Bench(*running())
    bench.comes()

    (event,) = bench.says(GPU1, 0.1, (1, ended()))

    assert isinstance(event, RunExited)
    assert event.ending == Exited(0)


def test_runs_of_a_host_that_is_cut_off_are_lost_once_they_are_gone_for_sure():
    bench = Bench(*running())
    bench.comes()
    bench.says(GPU1, 5.0, living=LIVING)
    bench.goes(at=15.0)
    gone_at = 5.0 + LEASE.lost_after_seconds

    assert bench.hosts.wake_at() <= T0 + gone_at
    assert bench.tick(gone_at - 0.1) == []
    (event,) = bench.tick(gone_at)

    assert isinstance(event, RunExited)
    assert event.ending == Lost("its host gpu1 was out of reach for too long")


def test_for_a_dispatcher_that_was_resumed_the_time_begins_anew():
    """The one before it may have renewed the lease in its last moment."""
    bench = Bench(*running())
    (run,) = bench.state.runs.values()

    bench.launcher.adopt(run, T0 + 50.0)

    assert bench.tick(50.0 + LEASE.lost_after_seconds - 0.1) == []
    assert kinds(bench.tick(50.0 + LEASE.lost_after_seconds)) == ["RunExited"]


def test_a_host_that_is_back_in_time_has_lost_nothing():
    bench = Bench(*running())
    bench.comes()
    bench.says(GPU1, 5.0, living=LIVING)
    bench.goes(at=15.0)

    bench.comes(at=200.0)
    bench.says(GPU1, 200.1, living=LIVING)

    assert bench.tick(6.0 + LEASE.lost_after_seconds) == []


def test_without_a_lease_nothing_is_lost_however_long_a_host_is_away():
    bench = Bench(*running(), patience=Patience())
    bench.comes()
    bench.goes(at=1.0)

    assert bench.tick(1e9) == []
    bench.observed(1e9)
    assert bench.hosts.wake_at() == float("inf")


def test_what_was_to_be_started_on_a_host_that_is_lost_counts_as_started():
    bench = Bench(placed())
    bench.comes()
    bench.goes()

    events = bench.tick(LEASE.lost_after_seconds)

    assert kinds(events) == ["RunLaunched", "RunExited"]


def test_what_has_ended_had_begun_though_the_power_took_all_word_of_that():
    """Its agent told a dispatcher whose journal was not on the disk, and does not tell it again."""
    bench = Bench(placed())
    bench.comes()

    events = bench.says(GPU1, 0.1, (1, ended(1)))

    assert kinds(events) == ["RunLaunched", "RunExited"]
    assert bench.state.ended[a_run()].ending == Exited(0)


def test_what_was_left_behind_on_a_host_that_is_lost_is_cleared():
    bench = Bench(*running(), RunExited(T0, a_run(), Exited(0), leftovers=2))
    bench.comes()
    bench.goes()

    assert kinds(bench.tick(LEASE.lost_after_seconds)) == ["RunCleared"]


def test_runs_that_nobody_knows_of_are_killed():
    bench = Bench()
    bench.comes()
    bench.told()

    bench.says(GPU1, 0.1, living=frozenset({a_run(7)}), obeyed=1)

    assert bench.told() == [Kill(a_run(7))]


def test_a_run_that_was_taken_for_lost_and_is_there_after_all_is_killed():
    bench = Bench(*running())
    bench.comes()
    bench.goes()
    bench.tick(LEASE.lost_after_seconds)
    bench.comes(at=500.0)
    bench.told()

    bench.says(GPU1, 500.1, living=LIVING, obeyed=1)

    assert bench.told() == [Kill(a_run())]


def test_who_lives_and_is_wanted_no_more_is_killed_once_for_each_report():
    bench = Bench()
    bench.comes()
    strays = frozenset({a_run(7)})
    bench.says(GPU1, 0.1, living=strays, obeyed=1)
    bench.told()

    for tenth in range(2, 10):
        bench.tick(tenth / 10)
    assert bench.told() == []
    bench.says(GPU1, 1.0, living=strays, obeyed=2)

    assert bench.told() == [Kill(a_run(7))]


def test_the_next_attempt_at_what_lives_and_is_wanted_no_more_has_to_wait():
    bench = Bench()
    bench.comes()
    bench.says(GPU1, 0.1, living=frozenset({a_run(2)}))
    assert Unwanted(frozenset({JobId(2)})) in bench.observed(0.1)
    assert bench.observed(0.2) == []
    bench.goes(at=1.0)
    assert kinds(bench.observed(1.0)) == ["HostAway"]
    bench.comes(at=2.0)
    assert bench.observed(2.0) == []

    bench.says(GPU1, 3.0)

    assert Unwanted(frozenset()) in bench.observed(3.0)


def test_what_lived_on_a_host_that_is_cut_off_is_gone_when_its_lease_is_over():
    bench = Bench()
    bench.comes()
    bench.says(GPU1, 0.1, living=frozenset({a_run(2)}))
    bench.goes(at=1.0)
    bench.observed(1.0)
    gone_at = 0.1 + LEASE.lost_after_seconds
    assert bench.hosts.wake_at() <= T0 + gone_at

    assert bench.observed(gone_at - 1) == []
    assert bench.observed(gone_at) == [Unwanted(frozenset())]


# --- orders about runs


def test_orders_about_a_run_go_to_its_host():
    bench = Bench(*running(1), *running(2, GPU2))
    bench.comes(GPU1)
    bench.comes(GPU2)
    bench.told(GPU1)
    bench.told(GPU2)

    bench.launcher.terminate(a_run(1))
    bench.launcher.checkpoint(a_run(2))
    bench.launcher.kill(a_run(2))

    assert bench.told(GPU1) == [Terminate(a_run(1))]
    assert bench.told(GPU2) == [Checkpoint(a_run(2)), Kill(a_run(2))]


def test_nobody_is_told_of_runs_on_a_host_that_is_out_of_reach():
    bench = Bench(*running())

    bench.launcher.terminate(a_run())

    assert bench.told() == []


# --- GPUs


def test_what_is_seen_is_told_in_our_time():
    bench = Bench()
    bench.comes()
    snapshot = a_snapshot(
        a_sample(key=a_key(0, GPU1)),
        at=T0 + AHEAD + 1.0,
        host=GPU1,
        arrived_at=T0 + AHEAD + 1.25,
    )

    bench.says(GPU1, 1.5, seen=(snapshot,))

    (seen,) = [each for each in bench.observed(1.5) if isinstance(each, Snapshot)]
    assert seen.taken_at == pytest.approx(T0 + 1.0, abs=0.01)
    assert seen.arrived_at == pytest.approx(T0 + 1.25, abs=0.01)


def test_what_lay_about_on_its_way_was_not_just_seen():
    bench = Bench()
    bench.comes()
    bench.says(GPU1, 1.0)
    sample = a_sample(key=a_key(0, GPU1))
    snapshot = a_snapshot(sample, at=T0 + AHEAD + 2, host=GPU1, arrived_at=T0 + AHEAD + 2)
    report = Report(T0 + AHEAD + 2, obeyed=1, heard=(T0 + 1, T0 + AHEAD + 1), seen=(snapshot,))
    bench.hears(GPU1, report, 7.0)

    (seen,) = [each for each in bench.observed(7.0) if isinstance(each, Snapshot)]

    assert seen.arrived_at == pytest.approx(T0 + 2, abs=0.02)


def test_of_whom_we_take_in_late_that_he_came_the_clock_is_known_all_the_same():
    """We stood still between looking at the clock and at who is there, as while a disk hangs."""
    bench = Bench()
    bench.transport.news.append(Came(GPU1, replace(HELLO, sent_at=T0 + AHEAD + 6.0), GPU1))
    bench.connections[GPU1] = [GPU1]
    bench.tick(0.0)
    snapshot = a_snapshot(
        a_sample(key=a_key(0, GPU1)), at=T0 + AHEAD + 7, host=GPU1, arrived_at=T0 + AHEAD + 7
    )

    bench.says(GPU1, 7.0, seen=(snapshot,))

    (seen,) = [each for each in bench.observed(7.0) if isinstance(each, Snapshot)]
    assert seen.arrived_at == pytest.approx(T0 + 7, abs=0.02)


def test_before_the_clocks_are_known_nothing_was_just_seen():
    bench = Bench()
    bench.comes()
    snapshot = a_snapshot(a_sample(key=a_key(0, GPU1)), host=GPU1, arrived_at=T0 + AHEAD)

    bench.says(GPU1, 0.1, seen=(snapshot,), heard=None)

    (seen,) = [each for each in bench.observed(0.1) if isinstance(each, Snapshot)]
    assert seen.arrived_at == float("-inf")


def test_looks_go_to_their_hosts_and_are_not_asked_for_twice():
    bench = Bench()
    bench.comes(GPU1)
    bench.comes(GPU2)
    bench.told(GPU1)
    bench.told(GPU2)
    asked = [(a_key(0, GPU1), T0), (a_key(1, GPU1), T0), (a_key(0, GPU2), T0)]

    bench.gpus.refresh(asked, T0)
    bench.gpus.refresh(asked, T0)

    assert bench.told(GPU1) == [Look((a_key(0).uuid, a_key(1).uuid))]
    assert bench.told(GPU2) == [Look((a_key(0).uuid,))]


def test_a_look_that_has_to_be_later_is_asked_for_again():
    bench = Bench()
    bench.comes()
    bench.gpus.refresh([(a_key(0, GPU1), T0)], T0)
    bench.told()

    bench.gpus.refresh([(a_key(0, GPU1), T0 + 1)], T0 + 1)

    assert kinds(bench.told()) == ["Look"]


def test_whoever_leaves_says_so_and_is_then_gone_for_good():
    bench = Bench()
    bench.comes(GPU2)
    bench.says(GPU2, 0.1)
    bench.observed()

    bench.says(GPU2, 1.0, leaves=True)
    assert bench.observed(1.0) == [HostHere(GPU2, "node", 8, leaves=True)]
    bench.goes(GPU2, at=2.0)

    (away,) = bench.observed(2.0)
    assert isinstance(away, HostAway)
    assert away.for_good
    assert bench.recruiter.met[-1] == "gpu2 went for good"


def test_a_host_that_the_user_has_named_may_come_back_after_its_agent_has_left():
    """As when the machine is rebooted."""
    bench = Bench()
    bench.comes()
    bench.says(GPU1, 0.1, leaves=True)
    bench.observed()

    bench.goes(at=2.0)

    assert bench.observed(2.0) == [HostAway(GPU1, "it has left")]
    assert bench.recruiter.met[-1] == "gpu1 went for 30 s"


def test_whoever_was_sent_off_is_not_expected_back():
    bench = Bench()
    bench.comes()
    bench.says(GPU1, 0.1)
    bench.observed()
    bench.hosts.dismiss(bench.hosts.by_name[GPU1])

    bench.goes(at=2.0)

    assert HostAway(GPU1, "it has left", for_good=True) in bench.observed(2.0)
    assert bench.recruiter.met[-1] == "gpu1 went for good"


def test_a_host_that_is_gone_for_good_is_forgotten_once_nothing_is_to_be_heard_of_it():
    bench = Bench(*running(1, GPU2))
    bench.comes(GPU2)
    bench.says(GPU2, 0.1, living=LIVING, leaves=True)
    bench.goes(GPU2, at=1.0)
    bench.observed(1.0)
    assert GPU2 in bench.hosts.by_name

    bench.tick(0.1 + LEASE.lost_after_seconds)
    bench.tick(1.0 + LEASE.lost_after_seconds)
    bench.claims.release([a_key(0, GPU2)], T0 + 400)

    assert GPU2 not in bench.hosts.by_name


def test_hosts_that_come_and_go_leave_nothing_behind():
    bench = Bench()
    for number in range(20):
        host = HostName(f"pilot-{number}")
        bench.comes(host)
        bench.says(host, seen=(a_snapshot(a_sample(key=a_key(number, host)), host=host),))
        bench.observed()
        if number % 2:
            bench.hosts.dismiss(bench.hosts.by_name[host])
            bench.goes(host)
        else:
            bench.goes(host)
            bench.recruiter.news = [HostAway(host, "its pilot has ended", for_good=True)]
        bench.observed()

    assert not bench.hosts.by_name


def test_whoever_is_here_and_leaves_is_given_nothing_more_whatever_else_he_has_to_tell():
    bench = Bench(*running())
    bench.comes()
    bench.says(GPU1, 0.1, living=LIVING)
    assert HostHere(GPU1, "node", 8) in bench.observed(0.1)

    bench.hears(GPU1, Report(T0 + AHEAD + 1, obeyed=1, events=((1, ended()),), leaves=True), 1.0)

    assert HostHere(GPU1, "node", 8, leaves=True) in bench.observed(1.0)


def test_whoever_is_cut_off_is_away_with_a_word_on_its_jobs():
    bench = Bench(*running())
    bench.comes()
    bench.says(GPU1, 0.1, living=LIVING)
    bench.observed()

    bench.goes(at=1.0)

    (away,) = bench.observed(1.0)
    assert isinstance(away, HostAway)
    assert not away.for_good
    assert "connection reset" in away.why
    assert "its job is started anew" in away.why
    assert bench.recruiter.met[-1] == "gpu1 went"


def test_an_agent_that_lives_and_says_nothing_is_let_go():
    bench = Bench()
    bench.comes()
    bench.says(GPU1, 1.0)

    bench.tick(40.0)

    assert bench.transport.dropped == [(GPU1, 0.0)]
    assert "HostAway" in kinds(bench.observed(40.0))


def test_why_there_is_no_agent_is_told_of_hosts_that_have_none():
    bench = Bench()
    bench.comes(GPU2)
    bench.recruiter.news = [HostAway(GPU1, "no route"), HostAway(GPU2, "too late")]

    assert bench.observed() == [HostAway(GPU1, "no route")]


def test_what_came_behind_the_back_of_whoever_takes_it_wakes_the_loop_at_once():
    bench = Bench(*running())
    bench.comes()
    bench.hears(GPU1, Report(T0 + AHEAD, obeyed=1, events=((1, ended()),)))

    bench.observed(0.5)

    assert bench.hosts.wake_at() <= T0 + 0.5


# --- claims


def asked_for(*numbers: int) -> list[tuple[GpuKey, int]]:
    return [(a_key(number, GPU1), 0) for number in numbers]


def test_claims_are_asked_of_the_host_once_until_they_are_answered():
    bench = Bench()
    bench.comes()
    bench.told()

    bench.claims.ask(asked_for(0, 1), T0)
    bench.claims.ask(asked_for(0, 1), T0)

    assert bench.told() == [Claim(tuple(asked_for(0, 1)))]
    keys = (a_key(0, GPU1), a_key(1, GPU1))
    bench.says(GPU1, 0.5, answers=(ClaimGranted(T0 + AHEAD + 0.25, keys),), obeyed=2)
    (answer,) = bench.claims.take(T0 + 0.5)
    assert answer.gpus == keys
    assert answer.at == pytest.approx(T0 + 0.25, abs=0.01)
    bench.told()

    bench.claims.ask(asked_for(0, 1), T0 + 1)
    assert kinds(bench.told()) == ["Claim"]


def test_what_is_claimed_is_claimed_again_when_the_host_is_back():
    bench = Bench()
    bench.comes()
    bench.claims.ask(asked_for(0), T0)
    bench.claims.ask(asked_for(1), T0)
    bench.claims.release([a_key(1, GPU1)], T0)
    bench.goes()
    bench.told()

    bench.comes(at=9.0)

    assert bench.told()[1:] == [Claim(tuple(asked_for(0)))]


def test_what_is_wanted_of_a_host_that_is_away_is_asked_for_when_it_comes():
    bench = Bench(*running())

    bench.claims.ask(asked_for(0), T0)
    bench.comes()

    assert bench.told()[1:] == [Claim(tuple(asked_for(0)))]


def test_claims_are_released_where_they_are():
    bench = Bench()
    bench.comes(GPU1)
    bench.comes(GPU2)
    bench.told(GPU1)
    bench.told(GPU2)

    bench.claims.release([a_key(0, GPU1), a_key(0, GPU2), a_key(1, GPU1)], T0)

    assert bench.told(GPU1) == [Release((a_key(0, GPU1), a_key(1, GPU1)))]
    assert bench.told(GPU2) == [Release((a_key(0, GPU2),))]


def test_a_refusal_is_passed_on():
    bench = Bench()
    bench.comes()
    key = a_key(0, GPU1)
    refused = ClaimRefused(T0 + AHEAD, (key,), ((key, "claimed by bob"),))

    bench.says(GPU1, 0.1, answers=(refused,))

    (answer,) = bench.claims.take(T0 + 0.1)
    assert isinstance(answer, ClaimRefused)
    assert answer.why == refused.why


# --- logs


@dataclass
class FakeSink:
    size: int | None = 4
    chunks: list[Chunk] = field(default_factory=list)

    def write(self, chunk: Chunk) -> int | None:
        self.chunks.append(chunk)
        return self.size

    def path(self, run: RunKey) -> str:
        return f"/here/{run.job}.log"


def test_pieces_of_logs_are_kept_and_what_is_here_is_said():
    bench = Bench(*running())
    sink = FakeSink()
    bench.launcher = FleetLauncher(bench.hosts, bench.state, sink)
    bench.comes()
    bench.told()

    bench.says(GPU1, 0.1, chunks=(Chunk(a_run(), 0, b"text"),), living=LIVING, obeyed=1)

    assert sink.chunks == [Chunk(a_run(), 0, b"text")]
    assert bench.told() == [Fetched(a_run(), 4)]


def test_a_piece_that_cannot_be_kept_now_is_not_said_to_be_here():
    bench = Bench(*running())
    bench.launcher = FleetLauncher(bench.hosts, bench.state, FakeSink(size=None))
    bench.comes()
    bench.told()

    bench.says(GPU1, 0.1, chunks=(Chunk(a_run(), 0, b"text"),), living=LIVING, obeyed=1)

    assert bench.told() == []


@pytest.mark.parametrize(
    ("shares", "sink", "where"),
    [
        (True, None, "/logs/1.log"),
        (False, None, "gpu1:/logs/1.log"),
        (False, FakeSink(), "/here/1.log"),
    ],
)
def test_a_log_is_named_as_it_can_be_found_from_here(
    shares: bool, sink: FakeSink | None, where: str
):
    bench = Bench(placed())
    bench.launcher = FleetLauncher(bench.hosts, bench.state, sink)
    bench.comes(shares_logs=shares)
    start = replace(launched(at=AHEAD), log="/logs/1.log")

    (event,) = bench.says(GPU1, 0.1, (1, start), living=LIVING)

    assert isinstance(event, RunLaunched)
    assert event.log == where


# --- one host, in this process


def test_on_one_box_runs_belong_to_it_whatever_it_was_called_before():
    state = replay(a_policy(), [JobAccepted(T0, JobId(1), a_spec()), *running(1, HostName("old"))])
    hosts = Hosts(FakeTransport(), state, only=HostName("new"))

    assert list(hosts.believed()) == ["new"]


def test_on_one_box_there_is_one_clock():
    state = replay(a_policy(), [JobAccepted(T0, JobId(1), a_spec()), *running()])
    transport = FakeTransport([Came(GPU1, HELLO)])
    hosts = Hosts(transport, state, only=GPU1)
    hosts.pump(T0 + 60)
    seen = a_snapshot(a_sample(), at=T0 + 40, arrived_at=T0 + 60)
    adopted = RunAdopted(T0 + 59, a_run(), since=T0 + 7)
    report = Report(T0 + 60, seen=(seen,), events=((1, adopted),), living=frozenset({a_run()}))
    transport.news.append(Said(GPU1, report, T0 + 60))

    assert list(FleetLauncher(hosts, state).take(T0 + 60)) == [adopted]
    assert FleetGpus(hosts).take(T0 + 60)[0] == seen


def test_on_one_box_reports_are_not_answered_and_no_order_is_late():
    state = replay(a_policy(), [])
    transport = FakeTransport([Came(GPU1, HELLO)])
    hosts = Hosts(transport, state, only=GPU1)
    hosts.pump(T0)
    transport.news.append(Said(GPU1, Report(T0), T0))
    hosts.pump(T0)

    hosts.send(hosts.of(GPU1, T0), Leave())

    assert [orders.renewed for _, orders in transport.sent] == [None, None]
