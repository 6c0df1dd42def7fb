"""Several hosts and a network between: whatever dies, hangs or is cut off, no job runs twice at
once, none is lost, and no colleague is met."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct, field
from msgspec.structs import replace

from smartsched.core.apply import replay
from smartsched.core.events import (
    DrainRequested,
    JobFinished,
    JobRequeued,
    RunExited,
    StopRequested,
)
from smartsched.core.freeness import Share, Thresholds
from smartsched.core.model import Ending, Exited, HostName, Lost, RunKey
from smartsched.core.policy import Policy
from smartsched.core.requests import Cancel
from smartsched.core.state import State
from smartsched.simulation.box import DispatcherDied, PretendBox, PretendJob
from smartsched.simulation.colleagues import GIB
from tests.builders import a_policy
from tests.simulation.cluster import (
    T0,
    WATCHDOG_TAKES_SECONDS,
    Cluster,
    Fault,
    HostPlan,
    Terms,
)
from tests.simulation.test_crashes import Command, jobs_of
from tests.simulation.witness import ACCOUNT

EXAMPLES, MANY_EXAMPLES = 100, 5_000
UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
GRACE_SECONDS = 1.0
LEASE = Terms(20.0, GRACE_SECONDS + WATCHDOG_TAKES_SECONDS + 2.0)
KEEP = Terms(None)
MOST_DISPATCHERS = 40
# From a look at a GPU to a start there: an order that takes longer than 5 s is refused.
KNOWN_FOR_SECONDS = 5.5
AGENTS_LEAVE_WITHIN_SECONDS = 150
LIMITS = Thresholds(Share(10.0), 10.0, free_for_seconds=0.0)


class Death(Struct, frozen=True):
    """Of a dispatcher: at which of its moments, and what comes then."""

    moment: int
    gap_seconds: float = 0.0
    adopts: bool = True
    loses_power: bool = False
    clock_steps_seconds: float = 0.0


class History(Struct, frozen=True):
    """Times are seconds since the beginning."""

    hosts: Sequence[HostPlan]
    commands: Sequence[Command]
    policy: Policy
    terms: Terms = LEASE
    faults: Sequence[Fault] = ()
    arrivals: Sequence[float] = ()
    visits: Sequence[tuple[int, int, float, float, float]] = ()  # host, GPU, begin, length, GiB
    requests: Sequence[tuple[float, type[DrainRequested | StopRequested]]] = ()
    sync_seconds: float = 0.02  # of the dispatcher's disk, when nobody waits for it
    seed: int = 0


class Witness(Struct):
    """Looks on at every step, with the whole truth; raises for whatever must never be."""

    cluster: Cluster
    launches_seen: int = 0
    events_seen: int = 0
    dispatchers_seen: int = 0
    known_for_seconds: float = KNOWN_FOR_SECONDS
    requeued: list[JobRequeued] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cluster.on_step.append(self.look)

    def look(self) -> None:
        launched = self.cluster.desk.launched
        for at, run, _, _ in launched[self.launches_seen :]:
            self.no_other_copy_lives(run)
            self.no_stranger_was_there(run, at)
        self.launches_seen = len(launched)
        if self.dispatchers_seen != self.cluster.desk.dispatchers:
            self.dispatchers_seen = self.cluster.desk.dispatchers
            self.events_seen = sum(1 for _ in self.cluster.on_disk())
        events = self.cluster.desk.events
        for event in events[self.events_seen :]:
            if isinstance(event, JobRequeued):
                self.requeued.append(event)
                self.nothing_of_it_lives(event)
        self.events_seen = len(events)

    def no_other_copy_lives(self, run: RunKey) -> None:
        for host in self.cluster.hosts.values():
            for key in host.box.living:
                if key.job == run.job and key != run:
                    assert not host.lives(key), f"{key} still lives on {host.name}: {run}"

    def nothing_of_it_lives(self, event: JobRequeued) -> None:
        for host in self.cluster.hosts.values():
            for key in host.box.living:
                if key.job == event.run.job and key.attempt <= event.run.attempt:
                    assert not host.lives(key), f"{key} lives on {host.name}, and it is requeued"

    def no_stranger_was_there(self, run: RunKey, at: float) -> None:
        """All the time since a GPU may have been looked at last."""
        for host in self.cluster.hosts.values():
            if run in host.box.living:
                for gpu in host.box.living[run].gpu_indices:
                    visits = host.box.visits.get(gpu, ())
                    changes = [t for v in visits for t in (v.begins, v.ends)]
                    begins = at - self.known_for_seconds
                    moments = [begins, at, *(t for t in changes if begins < t < at)]
                    assert not all(self.is_busy(host.box, gpu, t) for t in moments), "a stranger"

    @staticmethod
    def is_busy(box: PretendBox, gpu: int, at: float) -> bool:
        held = sum(visit.memory_bytes for visit in box.strangers_at(gpu, at))
        return held > 0.1 * box.memory_bytes


def cluster_of(history: History) -> Cluster:
    commands = {named(number, each): each for number, each in enumerate(history.commands, 1)}
    arrivals = sorted([*history.arrivals, *[0.0] * len(commands)][: len(commands)])
    cluster = Cluster(
        history.hosts,
        jobs_of(commands),
        list(zip(arrivals, commands, strict=True)),
        terms=history.terms,
        faults=history.faults,
        seed=history.seed,
    )
    asked = [(T0 + at, kind) for at, kind in history.requests]
    cluster.desk.requests = sorted(asked, key=lambda request: request[0])
    cluster.desk.sync_seconds = history.sync_seconds
    boxes = [host.box for host in cluster.hosts.values()]
    for host, gpu, begins, lasts, gib in history.visits:
        box = boxes[host % len(boxes)]
        box.visit(gpu % box.gpu_count, begins, begins + lasts, gib, 0)
    return cluster


def named(number: int, command: Command) -> str:
    wish = "" if command.gpus == 1 else f"  # smartsched: gpus={command.gpus}"
    return f"work --n {number}{wish}"


def dispatch(cluster: Cluster, policy: Policy, *, adopt: bool = True) -> State | None:
    """One dispatcher's whole life. What it knew in the end; None: it died."""
    try:
        if not cluster.desk.journal:
            return cluster.run(policy, seconds=20_000).state
        return cluster.resume(policy, seconds=20_000, adopt=adopt).state
    except DispatcherDied:
        return None


def live_through(cluster: Cluster, policy: Policy, deaths: Sequence[Death]) -> State:
    """All that happens until nothing is left to be done."""
    adopts, desk = True, cluster.desk
    for death in deaths:
        desk.die_at = desk.moments + death.moment
        state = dispatch(cluster, policy, adopt=adopts)
        if state is not None and is_done(state):
            return state
        adopts = death.adopts
        if death.loses_power and state is None:
            cluster.lose_power()
        cluster.pass_time(death.gap_seconds)
        desk.clock.ahead_seconds += death.clock_steps_seconds
    desk.die_at = None
    for _ in range(MOST_DISPATCHERS):
        state = dispatch(cluster, policy, adopt=adopts)
        assert state is not None
        if is_done(state):
            return state
        cluster.pass_time(1.0)
    raise AssertionError("it never comes to an end")


def is_done(state: State) -> bool:
    return not (state.queue or state.runs or state.input_open or state.interrupted or state.ended)


def lived(
    history: History, deaths: Sequence[Death] = (), known_for_seconds: float = KNOWN_FOR_SECONDS
) -> Witness:
    """The history with these deaths, watched and judged."""
    cluster = cluster_of(history)
    witness = Witness(cluster, known_for_seconds=known_for_seconds)

    state = live_through(cluster, history.policy, deaths)

    judge(cluster, state, history)
    return witness


def judge(cluster: Cluster, state: State, history: History) -> None:
    """The end of any history in which no command fails for good."""
    totals = state.totals
    ends = [event for event in cluster.on_disk() if isinstance(event, JobFinished | JobRequeued)]
    assert (totals.accepted, totals.ok) == (len(history.commands),) * 2, ends
    replayed = replay(history.policy, cluster.on_disk())
    for name in ACCOUNT:
        assert getattr(replayed, name) == getattr(state, name), name
    for event in cluster.on_disk():
        match event:
            case RunExited(run=run, ending=Lost(text)) if "out of reach" not in text:
                assert cluster.desk.ended.get(run, (0, None))[1] != Exited(0), "it ended well"
            case _:
                pass
    for _ in range(AGENTS_LEAVE_WITHIN_SECONDS // 5):
        if any(host.agent is not None for host in cluster.hosts.values()):
            cluster.pass_time(5.0)
    for host in cluster.hosts.values():
        assert not any(host.lives(key) for key in host.box.living), "it is left behind"
        assert host.agent is None, "an agent is left behind"


# --- any history

ENDINGS: list[Ending] = [Exited(0), Exited(0), Exited(0), Exited(1)]
commands = st.builds(
    Command,
    st.builds(
        PretendJob,
        seconds=st.sampled_from([0.1, 1.0, 5.0, 12.0, 40.0]),
        memory_bytes=st.sampled_from([0, GIB, 20 * GIB]),
        memory_lingers_seconds=st.sampled_from([0.0, 0.0, 0.5, 8.0]),
        leaves_behind_seconds=st.sampled_from([0.0, 0.0, 0.0, 3.0]),
        ignores_sigterm=st.booleans(),
        utilization_percent=st.sampled_from([0, 100]),
    ),
    st.lists(st.sampled_from(ENDINGS), max_size=2).map(lambda ends: [*ends, Exited(0)]),
    st.sampled_from([1, 1, 1, 2, 0]),
)
policies = st.builds(
    a_policy,
    thresholds=st.sampled_from([0.0, 0.0, 2.0]).map(
        lambda free_for: replace(LIMITS, free_for_seconds=free_for)
    ),
    spans_hosts=st.just(True),
    grace_seconds=st.just(GRACE_SECONDS),
    retries=st.just(30),
    retry_delay_seconds=st.sampled_from([0.0, 1.0]),
    guard=st.just(False),
    claims=st.booleans(),
    jobs_per_gpu=st.sampled_from([1, 1, 2]),
    on_contention=st.sampled_from(["drain", "drain", "requeue"]),
)
seconds = st.integers(0, 60).map(float)
plans = st.builds(
    HostPlan,
    gpus=st.integers(2, 3),
    ahead_seconds=st.sampled_from([0.0, -990_000.0, 3600.25, 5e8]),
    drift=st.sampled_from([0.0, 2e-4, -2e-4]),
    delay_seconds=st.sampled_from([0.0005, 0.002, 0.1]),
)
lengths = st.sampled_from([0.3, 2.0, 3.5, 6.0, 12.0, 25.0, 60.0])
number = st.integers(0, 2)  # of a host
faults = st.one_of(
    st.builds(Fault, seconds, st.sampled_from(["cut", "freeze", "outage"]), number, lengths),
    st.builds(Fault, seconds, st.sampled_from(["break", "restart"]), number),
    st.builds(Fault, seconds, st.just("stall"), number, st.sampled_from([0.5, 2.0, 6.0])),
    st.builds(Fault, seconds, st.just("death"), number, st.integers(0, 6).map(float)),
)
visits = st.tuples(
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(-10, 60).map(float),
    st.sampled_from([0.3, 4.0, 30.0]),
    st.sampled_from([0.5, 5.0, 15.0]),
)
histories = st.builds(
    History,
    hosts=st.lists(plans, min_size=1, max_size=3),
    commands=st.lists(commands, min_size=1, max_size=8),
    policy=policies,
    terms=st.sampled_from([LEASE, LEASE, KEEP]),
    faults=st.lists(faults, max_size=5),
    arrivals=st.lists(seconds, max_size=8),
    visits=st.lists(visits, max_size=3),
    requests=st.lists(
        st.tuples(seconds, st.sampled_from([DrainRequested, StopRequested])), max_size=1
    ),
    sync_seconds=st.sampled_from([0.0, 0.02, 0.3, 5.0, 15.0]),
    seed=st.integers(0, 1000),
)
deaths = st.lists(
    st.builds(
        Death,
        moment=st.integers(1, 80),
        gap_seconds=st.sampled_from([0.0, 0.0, 1.0, 8.0, 45.0]),
        adopts=st.sampled_from([True, True, True, False]),
        loses_power=st.booleans(),
        clock_steps_seconds=st.sampled_from([0.0, 0.0, -3600.0, 7.5]),
    ),
    max_size=4,
)


@given(histories, deaths)
@settings(max_examples=EXAMPLES, suppress_health_check=UNHURRIED)
def test_no_job_runs_twice_at_once_and_none_is_lost_whatever_happens_to_hosts_and_network(
    history: History, deaths: list[Death]
):
    lived(history, deaths)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(histories, deaths)
@settings(max_examples=MANY_EXAMPLES, suppress_health_check=UNHURRIED)
def test_no_job_runs_twice_at_once_and_none_is_lost_in_very_many_histories(
    history: History, deaths: list[Death]
):
    lived(history, deaths)


# --- cuts that are shorter than the lease

cuts = st.builds(
    Fault, seconds, st.just("cut"), st.integers(0, 2), st.sampled_from([0.3, 5.0, 7.9, 9.0, 12.0])
)
calm_commands = st.builds(
    Command,
    st.builds(
        PretendJob,
        seconds=st.sampled_from([0.1, 5.0, 12.0, 40.0]),
        leaves_behind_seconds=st.sampled_from([0.0, 3.0]),
    ),
    gpus=st.sampled_from([0, 1, 2]),
)


@given(
    st.lists(plans, min_size=1, max_size=3),
    st.lists(calm_commands, min_size=1, max_size=8),
    cuts,
    st.sampled_from([LEASE, KEEP]),
)
@settings(max_examples=40, suppress_health_check=UNHURRIED)
def test_no_job_is_started_anew_for_a_cut_that_is_shorter_than_the_lease(
    hosts: list[HostPlan], commands: list[Command], cut: Fault, terms: Terms
):
    history = History(hosts, commands, SEVERAL, terms, [cut])

    witness = lived(history)

    assert witness.requeued == []
    jobs = Counter(run.job for _, run, _, _ in witness.cluster.desk.launched)
    assert set(jobs.values()) == {1}


# --- every moment of one history

SEVERAL = a_policy(
    thresholds=LIMITS,
    spans_hosts=True,
    retries=30,
    retry_delay_seconds=0.0,
    grace_seconds=GRACE_SECONDS,
    guard=False,
    claims=True,
)
TWO_HOSTS = (
    HostPlan(1, ahead_seconds=-990_000.0, drift=2e-4, delay_seconds=0.002),
    HostPlan(2, ahead_seconds=3600.25, drift=-2e-4, delay_seconds=0.1),
)
MIXED = History(
    hosts=TWO_HOSTS,
    commands=[
        Command(PretendJob(3.0, memory_bytes=20 * GIB, memory_lingers_seconds=0.5)),
        Command(PretendJob(1.0), [Exited(1), Exited(0)]),
        Command(PretendJob(1.0, leaves_behind_seconds=3.0, ignores_sigterm=True)),
        Command(PretendJob(9.0, ignores_sigterm=True)),
        Command(PretendJob(2.0), gpus=2),
        Command(PretendJob(2.0), gpus=0),
    ],
    policy=SEVERAL,
)
TROUBLED = replace(MIXED, faults=[Fault(2.0, "cut", 1, 9.0), Fault(3.0, "death", 0)])


def test_another_dispatcher_can_take_over_at_each_moment():
    moments = lived(TROUBLED).cluster.desk.moments

    for moment in range(1, moments + 1):
        lived(TROUBLED, [Death(moment)])


@pytest.mark.parametrize(
    "death",
    [
        Death(0, gap_seconds=60.0),
        Death(0, gap_seconds=2.0, loses_power=True, clock_steps_seconds=-3600.0),
    ],
    ids=["long after", "after an outage"],
)
def test_another_dispatcher_can_take_over_later(death: Death):
    moments = lived(TROUBLED).cluster.desk.moments

    for moment in range(1, moments + 1, 6):
        lived(TROUBLED, [replace(death, moment=moment)])


@pytest.mark.parametrize("sync_seconds", [0.02, 3.0])
@pytest.mark.parametrize("gap", [0.0, 2.0])
def test_it_may_lose_its_power_while_the_disk_is_at_work(gap: float, sync_seconds: float):
    """What an agent has told of in the meantime, it tells again."""
    ends = [PretendJob(2.0), PretendJob(2.06), PretendJob(3.5), PretendJob(30.0)]
    history = History(
        hosts=[HostPlan(4, delay_seconds=0.0005)],
        commands=[Command(job) for job in ends],
        policy=replace(SEVERAL, claims=False),
        sync_seconds=sync_seconds,
    )
    moments = lived(history).cluster.desk.moments_in_sync
    assert moments

    for moment in moments:
        lived(history, [Death(moment, gap_seconds=gap, loses_power=True)])


@pytest.mark.parametrize("lasts", [9.0, 40.0])
def test_a_host_may_be_cut_off_at_each_moment(lasts: float):
    for tenth in range(0, 120, 5):
        witness = lived(replace(MIXED, faults=[Fault(tenth / 10, "cut", 1, lasts)]))

        lost = [event for event in witness.requeued if event.why == "lost"]
        assert not lost or lasts > (LEASE.lease_seconds or 0.0)


@pytest.mark.parametrize("kind", ["outage", "break", "freeze"])
def test_a_host_may_be_in_trouble_at_each_moment(kind: str):
    for tenth in range(0, 120, 5):
        lived(replace(MIXED, faults=[Fault(tenth / 10, kind, 1, 10.0)]))


def test_an_agent_may_die_at_each_of_its_moments():
    for moment in range(1, 20):
        lived(replace(MIXED, faults=[Fault(0.5, "death", 1, moment)]))


@pytest.mark.parametrize("lasts", [5.3, 5.8])
def test_a_colleague_who_comes_while_messages_are_late_is_not_met(lasts: float):
    """However a report or an order is delayed by less than makes a connection count as dead."""
    history = History(
        hosts=[HostPlan(1, delay_seconds=0.1)],
        commands=[Command(PretendJob(0.5, memory_bytes=GIB))] * 4,
        policy=replace(SEVERAL, claims=False),
    )
    for step in range(50):
        begins = 0.1 + step / 14
        cut, visit = Fault(begins, "cut", 0, lasts), (0, 0, begins + 0.01, 20.0, 15.0)
        lived(replace(history, faults=[cut], visits=[visit]))


def test_a_colleague_who_comes_between_a_look_and_its_report_is_not_met():
    """An agent reports every second, half a second after it has looked: it joined so late."""
    history = History(
        hosts=[HostPlan(1, delay_seconds=0.15)],
        commands=[Command(PretendJob(0.5, memory_bytes=GIB))],
        policy=replace(SEVERAL, claims=False),
    )
    for step in range(40):
        free_at = 2.0 + step / 20
        first, then = (0, 0, -5.0, 5.0 + free_at, 15.0), (0, 0, free_at + 0.2, 20.0, 15.0)
        lived(replace(history, visits=[first, then]), known_for_seconds=0.55)


# --- what such histories have shown


def one_job(job: PretendJob, *faults: Fault, terms: Terms = LEASE, **policy: Any) -> History:
    """On the first of two hosts."""
    return History(TWO_HOSTS, [Command(job)], replace(SEVERAL, **policy), terms, faults)


def test_what_a_host_that_is_lost_has_run_is_started_elsewhere_once_it_is_gone_for_sure():
    history = one_job(PretendJob(60.0), Fault(5.0, "cut", 0, 100.0), Fault(5.0, "cut", 1, 0.0))

    witness = lived(history)

    assert [event.why for event in witness.requeued] == ["lost"]
    (first, *_), (second, *_) = witness.cluster.desk.launched
    assert first < T0 + 5.0
    assert second - T0 - 5.0 == pytest.approx(LEASE.lost_after_seconds, abs=1.5)


def test_what_may_go_on_when_its_host_is_out_of_reach_is_not_started_anew():
    history = one_job(PretendJob(200.0), Fault(5.0, "cut", 0, 400.0), terms=KEEP)

    witness = lived(history)

    assert len(witness.cluster.desk.launched) == 1
    assert witness.cluster.now - T0 >= 400


def cancelled_at(seconds: float, history: History) -> tuple[Cluster, Witness, State]:
    """Whatever is there then is; the cluster goes on until the last fault is over."""
    cluster = cluster_of(history)
    witness = Witness(cluster)
    cluster.desk.asked = [(T0 + seconds, Cancel("r", (), everything=True))]
    return cluster, witness, cluster.run(history.policy).state


@pytest.mark.parametrize(
    ("terms", "given_up_after"), [(KEEP, 20.0), (LEASE, LEASE.lost_after_seconds)]
)
def test_what_is_cancelled_while_its_host_is_out_of_reach_is_given_up(
    terms: Terms, given_up_after: float
):
    history = one_job(PretendJob(900.0), Fault(10.0, "cut", 0, 500.0), terms=terms)

    cluster, _, state = cancelled_at(30.0, history)

    assert (state.totals.cancelled, len(state.runs)) == (1, 0)
    assert cluster.now - T0 == pytest.approx(10.0 + given_up_after, abs=7.0)


@pytest.mark.parametrize("fault", ["cut", "death"])
def test_what_was_cancelled_out_of_reach_is_stopped_when_its_host_is_back(fault: str):
    """Its agent may be another one by then, which has never heard of it."""
    jobs = [Command(PretendJob(900.0)), Command(PretendJob(200.0))]
    cut, death = Fault(10.0, "cut", 0, 90.0), Fault(20.0, "death", 0)
    faults = [cut, death][: 1 + (fault == "death")]
    history = History(TWO_HOSTS, jobs, SEVERAL, KEEP, faults)
    cluster = cluster_of(history)
    Witness(cluster)
    cluster.desk.asked = [(T0 + 30.0, Cancel("r", ("1",)))]

    totals = cluster.run(history.policy).state.totals

    assert (totals.ok, totals.cancelled) == (1, 1)
    assert cluster.now - T0 < 250.0
    assert not any(host.lives(key) for host in cluster.hosts.values() for key in host.box.living)


def test_what_has_ended_in_time_while_nobody_heard_of_it_has_not_taken_too_long():
    history = one_job(PretendJob(8.0), Fault(5.0, "cut", 0, 13.0), timeout_seconds=14.0)

    assert lived(history).requeued == []


def test_what_is_left_behind_out_of_reach_is_not_given_up():
    job = PretendJob(1.5, leaves_behind_seconds=60.0, ignores_sigterm=True)
    failing = Command(job, [Exited(1), Exited(0)])
    cut = Fault(1.6, "cut", 0, 15.0)

    lived(History(TWO_HOSTS, [failing], SEVERAL, LEASE, [cut]))


def test_who_wants_to_end_does_not_wait_for_a_host_that_is_out_of_reach():
    history = one_job(PretendJob(60.0), Fault(5.0, "cut", 0, 500.0), terms=KEEP)
    cluster = cluster_of(replace(history, requests=[(30.0, StopRequested)]))
    Witness(cluster)

    state = cluster.run(history.policy).state

    assert (len(state.runs), cluster.now - T0 < 60.0) == (1, True)
    judge(cluster, live_through(cluster, history.policy, []), history)


def test_claims_of_a_dispatcher_that_died_are_given_up_when_the_next_one_comes():
    history = one_job(PretendJob(30.0))
    cluster = cluster_of(replace(history, visits=[(0, 0, 5.0, 100.0, 15.0)]))
    claimed = cluster.hosts[HostName("h0")].box.claimed
    cluster.desk.dies_when = lambda: bool(claimed)
    assert dispatch(cluster, history.policy) is None
    cluster.desk.dies_when = None
    cluster.pass_time(10.0)
    assert claimed

    cluster.resume(history.policy, seconds=10.0)

    assert len(cluster.desk.launched) == 1
    assert not claimed
