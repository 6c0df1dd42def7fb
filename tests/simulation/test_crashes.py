"""Dispatchers die at any moment of any history, and others go on: nothing is lost, nothing is run
twice."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from smartsched.core.apply import replay
from smartsched.core.events import (
    DrainRequested,
    Event,
    JobFinished,
    JobsAdded,
    JobsCancelled,
    RunExited,
    RunKilled,
    RunStopping,
    StopRequested,
)
from smartsched.core.freeness import Share, Thresholds
from smartsched.core.halt import Halt
from smartsched.core.ledger import ledger_of
from smartsched.core.model import Ending, Exited, JobId, JobSpec, Killed, NotStarted, RunKey
from smartsched.core.policy import Policy
from smartsched.core.records import decode_line
from smartsched.core.requests import Add, Cancel, Continue, Pause, Retry
from smartsched.core.state import State
from smartsched.ports import Request
from smartsched.simulation.box import DispatcherDied, PretendBox, PretendJob, commands_at_once
from smartsched.simulation.colleagues import GIB
from tests.builders import INSTANT, a_policy
from tests.simulation.witness import Witness

HOUR = 3600.0
SYNC_SECONDS = [0.0, 0.02, 0.3, 5.0, 15.0]
# So often somebody says --resume until nothing is left; each time a job at least is settled.
MOST_DISPATCHERS = 60
EXAMPLES, MANY_EXAMPLES = 200, 10_000
OUT_OF_MEMORY = "CUDA out of memory"
OOM = Exited(77)  # what a job ends with that says so
UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


class Command(Struct, frozen=True):
    """What it does when it is run the first time, the second time ...; then always the last."""

    job: PretendJob
    endings: Sequence[Ending] = (Exited(0),)
    gpus: int = 1

    def at_attempt(self, number: int) -> PretendJob:
        ending = self.endings[min(number, len(self.endings) - 1)]
        says = OUT_OF_MEMORY if ending == OOM else ""
        return replace(self.job, ending=ending, out_of_memory=says)


class Death(Struct, frozen=True):
    """Of a dispatcher: at which of its moments, and what comes then. If it ended before, so be
    it."""

    moment: int
    gap_seconds: float = 0.0
    reboots: bool = False
    loses: int = 0  # so many records of the journal by that, if they were not durable
    adopts: bool = True
    clock_steps_seconds: float = 0.0


class History(Struct, frozen=True):
    """Times are seconds since the beginning."""

    gpus: int
    commands: Sequence[Command]
    policy: Policy
    arrivals: Sequence[float] = ()  # of those that are not there at once
    visits: Sequence[tuple[int, float, float, float, int]] = ()
    hangs: Sequence[tuple[float, float]] = ()
    full_disks: Sequence[tuple[float, float]] = ()
    requests: Sequence[tuple[float, type[DrainRequested | StopRequested]]] = ()
    broken_gpu: bool = False
    bookmark_every: int | None = None
    sync_seconds: float = 0.02  # of a disk for which nobody waits
    asked: Sequence[tuple[float, Request]] = ()


def box_of(history: History) -> PretendBox:
    commands = {named(number, each): each for number, each in enumerate(history.commands, start=1)}
    arrivals = sorted([*history.arrivals, *[0.0] * len(commands)][: len(commands)])
    box = PretendBox(history.gpus, jobs_of(commands), list(zip(arrivals, commands, strict=True)))
    now = box.clock.time
    for gpu, begins, lasts, gib, percent in history.visits:
        box.visit(gpu % history.gpus, begins, begins + lasts, gib, percent)
    box.driver_hangs = [(now + at, now + at + lasts) for at, lasts in history.hangs]
    box.disk_is_full = [(now + at, now + at + lasts) for at, lasts in history.full_disks]
    box.requests = sorted([(now + at, kind) for at, kind in history.requests], key=lambda r: r[0])
    first = next(iter(commands))
    box.asked = [(now + at, _of(first, request)) for at, request in history.asked]
    box.bookmark_every = history.bookmark_every
    box.sync_seconds = history.sync_seconds
    if history.broken_gpu:
        box.broken[0] = PretendJob(0.5, ending=Exited(1))
    return box


def _of(command: str, request: Request) -> Request:
    if not isinstance(request, Add):
        return request
    return replace(request, specs=tuple(replace(spec, command=command) for spec in request.specs))


def named(number: int, command: Command) -> str:
    """Every other one is of another shape."""
    wish = "" if command.gpus == 1 else f"  # smartsched: gpus={command.gpus}"
    return f"{'odd' if number % 2 else 'even'} --n {number}{wish}"


def jobs_of(commands: dict[str, Command]) -> Callable[[str], PretendJob]:
    times: Counter[str] = Counter()

    def job_of(name: str) -> PretendJob:
        times[name] += 1
        return commands[name].at_attempt(times[name] - 1)

    return job_of


def dispatch(box: PretendBox, policy: Policy, *, adopt: bool = True) -> State | None:
    """One dispatcher's whole life. What it knew in the end; None: it died."""
    try:
        if not box.journal:
            return box.run(policy).state
        return box.resume(policy, adopt=adopt).state
    except DispatcherDied:
        return None


def live_through(box: PretendBox, policy: Policy, deaths: Sequence[Death]) -> State:
    """All that happens until nothing is left to be done."""
    adopts = True
    for death in deaths:
        box.die_at = box.moments + death.moment
        state = dispatch(box, policy, adopt=adopts)
        if state is not None and is_done(box, state):
            return state
        adopts = death.adopts
        box.pass_time(death.gap_seconds)
        box.clock.ahead_seconds += death.clock_steps_seconds
        if death.reboots:
            box.reboot(death.loses)
    box.die_at = None
    for _ in range(MOST_DISPATCHERS):
        state = dispatch(box, policy, adopt=adopts)
        assert state is not None
        if is_done(box, state):
            return state
        box.pass_time(1.0)  # nobody says so again within the same moment: a full disk stays full
    raise AssertionError("it never comes to an end")


def is_done(box: PretendBox, state: State) -> bool:
    left = state.queue or state.runs or state.input_open or state.interrupted or state.ended
    return not left and not due(box)


def due(box: PretendBox) -> list[Request]:
    """What somebody has asked for and nobody has seen to."""
    return [request for at, request in box.asked if at <= box.clock.time]


def judge(box: PretendBox, state: State, commands: int) -> None:
    """The end of any history."""
    totals = state.totals
    over = totals.ok + totals.failed + totals.cancelled
    added = sum(len(e.specs) for e in on_disk(box) if isinstance(e, JobsAdded))
    assert (totals.accepted, over) == (commands + added, commands + added)
    assert not due(box)
    assert not box.living
    finished = {e.run: e.outcome for e in box.events if isinstance(e, JobFinished)}
    succeeded = successes(box)
    assert {run for run, outcome in finished.items() if outcome == "ok"} == set(succeeded)
    assert len({run.job for run in succeeded}) == len(succeeded)
    last_attempts: dict[JobId, int] = {}
    for run in sorted(box.begun):
        last_attempts[run.job] = run.attempt
    for run in succeeded:
        assert last_attempts[run.job] == run.attempt, "run again though it had ended well"
    ends = (event for event in box.events if isinstance(event, RunExited))
    refused = {end.run.job for end in ends if isinstance(end.ending, NotStarted)}  # too many GPUs
    cancelled = {job for e in on_disk(box) if isinstance(e, JobsCancelled) for job in e.jobs}
    known = last_attempts.keys() | refused | cancelled
    assert len(known) == commands + added, "given up though it never ran"
    given_up = replay(Policy(""), on_disk(box)).given_up
    failed = {job: each.job for job, each in given_up.items() if each.outcome == "failed"}
    by_state = {job: (each.spec, each.attempts) for job, each in failed.items()}
    assert ledger_of(on_disk(box)).failed == by_state, "a failure would not be tried again"
    told = [tell.ended.key for tell in box.told]
    assert len(told) == len(set(told)), "told twice"


def successes(box: PretendBox) -> list[RunKey]:
    """Attempts that ended well, though nobody may have looked on; not because their time was up, or
    because they were to be started anew."""
    cut_short = {
        event.run: event.at - box.clock.ahead_seconds
        for event in box.events
        if isinstance(event, RunStopping) and event.why != "asked"
    }
    return [
        run
        for run, (at, ending) in box.ended.items()
        if ending == Exited(0) and at < cut_short.get(run, float("inf"))
    ]


def lived(history: History, deaths: Sequence[Death]) -> PretendBox:
    """The history with these deaths, watched and judged."""
    box = box_of(history)
    Witness(box, history.policy.thresholds)

    state = live_through(box, history.policy, deaths)

    judge(box, state, len(history.commands))
    return box


# --- any history

ENDINGS: list[Ending] = [Exited(0), Exited(0), Exited(1), Killed(11), OOM]
commands = st.builds(
    Command,
    st.builds(
        PretendJob,
        seconds=st.sampled_from([0.1, 1.0, 3.3, 9.0, 12.0, 25.0, 120.0]),
        memory_bytes=st.sampled_from([0, GIB, 20 * GIB]),
        memory_lingers_seconds=st.sampled_from([0.0, 0.0, 0.5, 8.0]),
        leaves_behind_seconds=st.sampled_from([0.0, 0.0, 3.0, 500.0]),
        ignores_sigterm=st.booleans(),
        ending_when_asked=st.sampled_from([Killed(15), Killed(15), Exited(0)]),
        seen_by_driver=st.sampled_from([True, True, False]),
        utilization_percent=st.sampled_from([0, 30, 100]),
        saves_when_told=st.booleans(),
    ),
    st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=3),
    st.sampled_from([1, 1, 1, 2, 0]),
)
policies = st.builds(
    a_policy,
    thresholds=st.sampled_from([0.0, 0.0, 3.0]).map(
        lambda free_for: Thresholds(Share(10.0), 10.0, free_for_seconds=free_for)
    ),
    grace_seconds=st.sampled_from([0.0, 2.0, 10.0]),
    retries=st.integers(0, 3),
    retry_delay_seconds=st.sampled_from([0.0, 1.0, 20.0]),
    timeout_seconds=st.sampled_from([None, None, 5.0, 60.0]),
    halt=st.sampled_from([None, None, Halt(False, 2, None), Halt(True, 1, None)]),
    guard=st.booleans(),
    tells=st.booleans(),
    claims=st.booleans(),
    jobs_per_gpu=st.sampled_from([1, 1, 2, "auto"]),
    on_contention=st.sampled_from(["drain", "requeue", "ignore"]),
    asks_for_checkpoints=st.booleans(),
    yield_grace_seconds=st.sampled_from([0.0, 2.0]),
    oom_retries=st.integers(0, 2),
    most_gpuless=st.integers(1, 4),
)
seconds = st.integers(0, 100).map(float)
windows = st.tuples(seconds, st.sampled_from([0.3, 5.0, 30.0]))
visits = st.tuples(
    st.integers(0, 7),
    st.integers(-20, 120).map(float),
    st.sampled_from([0.1, 4.0, 40.0]),
    st.sampled_from([0.5, 2.0, 5.0, 15.0]),
    st.sampled_from([0, 5, 50, 100]),
)
NUMBERS = st.lists(st.integers(1, 9).map(str), min_size=1, max_size=3, unique=True).map(tuple)
ADDED = JobSpec("the first of the list once more", "request")
asked = st.tuples(
    seconds,
    st.one_of(
        st.integers(1, 3).map(lambda count: Add("", (ADDED,) * count)),
        st.builds(Cancel, st.just(""), NUMBERS),
        st.builds(Retry, st.just(""), NUMBERS),
        st.just(Retry("", (), all_failed=True)),
        st.just(Pause("")),
    ),
)


def as_asked(
    asked: Sequence[tuple[float, Add | Cancel | Retry | Pause]],
) -> list[tuple[float, Request]]:
    """Each with an id of its own; and who pauses goes on a while later."""
    found: list[tuple[float, Request]] = []
    for number, (at, request) in enumerate(asked):
        found.append((at, replace(request, id=f"r{number}")))
        if isinstance(request, Pause):
            found.append((at + 7.0, Continue(f"r{number}-end")))
    return found


histories = st.builds(
    History,
    gpus=st.integers(1, 8),
    commands=st.lists(commands, min_size=1, max_size=8),
    policy=policies,
    arrivals=st.lists(seconds, max_size=8),
    visits=st.lists(visits, max_size=4),
    hangs=st.lists(windows, max_size=1),
    full_disks=st.lists(windows, max_size=2),
    requests=st.lists(
        st.tuples(seconds, st.sampled_from([DrainRequested, StopRequested])), max_size=3
    ),
    broken_gpu=st.sampled_from([False, False, True]),
    sync_seconds=st.sampled_from(SYNC_SECONDS),
    asked=st.lists(asked, max_size=3).map(as_asked),
)
deaths = st.lists(
    st.builds(
        Death,
        moment=st.integers(1, 60),
        gap_seconds=st.sampled_from([0.0, 0.0, 1.0, 15.0, HOUR]),
        reboots=st.sampled_from([False, False, False, True]),
        loses=st.sampled_from([0, 1, 4, 1000]),
        adopts=st.sampled_from([True, True, True, False]),
    ),
    max_size=8,
)


@given(histories, deaths)
@settings(max_examples=EXAMPLES, suppress_health_check=UNHURRIED)
def test_nothing_is_lost_and_nothing_run_twice_whenever_dispatchers_die(
    history: History, deaths: list[Death]
):
    lived(history, deaths)


@given(histories, deaths, st.sampled_from([1, 5, 30]))
@settings(max_examples=EXAMPLES // 4, suppress_health_check=UNHURRIED)
def test_by_a_bookmark_dispatchers_know_what_all_of_the_journal_says(
    history: History, deaths: list[Death], bookmark_every: int
):
    """The box sees to it whenever one goes on."""
    lived(replace(history, bookmark_every=bookmark_every), deaths)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@given(histories, deaths)
@settings(max_examples=MANY_EXAMPLES, suppress_health_check=UNHURRIED)
def test_nothing_is_lost_and_nothing_run_twice_in_very_many_histories(
    history: History, deaths: list[Death]
):
    lived(replace(history, bookmark_every=len(deaths) or None), deaths)


# --- every moment of one history

MIXED = History(
    gpus=2,
    commands=[
        Command(PretendJob(3.0, memory_bytes=20 * GIB, memory_lingers_seconds=0.5)),
        Command(PretendJob(1.0), [Exited(1), Exited(0)]),
        Command(PretendJob(1.0, leaves_behind_seconds=500.0, ignores_sigterm=True)),
        Command(PretendJob(HOUR, ignores_sigterm=True)),
        Command(PretendJob(2.0)),
    ],
    policy=a_policy(
        retries=1, retry_delay_seconds=1.0, timeout_seconds=5.0, grace_seconds=1.0, tells=True
    ),
    requests=[(4.0, StopRequested)],
)


@pytest.mark.parametrize(
    "death",
    [
        Death(0),
        Death(0, gap_seconds=2 * HOUR),
        Death(0, reboots=True),
        Death(0, reboots=True, loses=1000),
        Death(0, gap_seconds=2.0, adopts=False),
    ],
    ids=[
        "at once",
        "long after",
        "after a reboot",
        "after a loss of power",
        "without what survived",
    ],
)
def test_another_dispatcher_can_take_over_at_each_moment(death: Death):
    moments = lived(MIXED, []).moments

    for moment in range(1, moments + 1):
        lived(MIXED, [replace(death, moment=moment)])


@pytest.mark.parametrize("sync_seconds", [0.02, 1.5, 15.0])
@pytest.mark.parametrize(
    "death", [Death(0, reboots=True, loses=1000), Death(0)], ids=["a loss of power", "none"]
)
def test_it_may_die_while_the_disk_is_at_work(sync_seconds: float, death: Death):
    policy = replace(MIXED.policy, tells=False)
    history = replace(MIXED, policy=policy, sync_seconds=sync_seconds)
    box = lived(history, [])
    assert box.moments_in_sync

    for moment in box.moments_in_sync:
        lived(history, [replace(death, moment=moment)])


def test_another_dispatcher_can_take_over_by_a_bookmark_at_each_moment():
    history = replace(MIXED, bookmark_every=2)
    moments = lived(history, []).moments

    for moment in range(1, moments + 1):
        lived(history, [Death(moment)])


def test_a_dispatcher_that_takes_over_may_die_at_each_moment_too():
    first = Death(lived(MIXED, []).moments // 2)
    moments = lived(MIXED, [first]).moments - first.moment

    for moment in range(1, moments + 1):
        lived(MIXED, [first, Death(moment), Death(1)])


def test_the_wall_clock_may_step_back_an_hour_when_a_dispatcher_dies_at_any_moment():
    moments = lived(MIXED, []).moments

    for moment in range(1, moments + 1):
        box = lived(MIXED, [Death(moment, clock_steps_seconds=-HOUR)])
        assert box.clock.time - (box.began_at or 0.0) < 10 * 60


# --- what such deaths have shown


def test_what_ended_well_while_nobody_looked_on_has_not_survived_and_is_not_run_again():
    box = one_command(PretendJob(30.0))
    box.run(a_policy(), seconds=10)
    box.pass_time(HOUR)

    loop = box.resume(a_policy(), adopt=False)

    assert [run for _, run, *_ in box.launched] == [RunKey(JobId(1), 1)]
    assert loop.state.totals.ok == 1


def test_who_was_to_be_killed_is_killed_though_the_dispatcher_died_before_it_could():
    box = one_command(PretendJob(HOUR, ignores_sigterm=True))
    policy = a_policy(timeout_seconds=10.0, grace_seconds=5.0)
    began = box.clock.time
    with pytest.raises(DispatcherDied):
        die_once(box, policy, lambda: any(isinstance(e, RunKilled) for e in on_disk(box)))

    box.resume(policy)

    assert box.clock.time - began == pytest.approx(15, abs=2)


def test_a_finished_job_is_told_once_though_the_disk_was_full_when_the_dispatcher_died():
    box = one_command(PretendJob(10.0))
    box.disk_is_full = [(box.clock.time + 5, box.clock.time + 60)]
    box.run(a_policy(tells=True), seconds=3)
    box.resume(a_policy(tells=True), seconds=20)
    box.pass_time(HOUR)

    box.resume(a_policy(tells=True))

    assert [tell.outcome for tell in box.told] == ["ok"]


def test_what_a_failure_left_behind_is_gone_before_the_guard_has_its_job_run_again():
    fails = Command(PretendJob(0.1), [Exited(1)])
    lingers = PretendJob(9.0, leaves_behind_seconds=500.0, ignores_sigterm=True)
    history = History(
        gpus=3,
        commands=[
            Command(lingers, [Exited(1)]),
            fails,
            Command(lingers),
            Command(PretendJob(0.1)),
            fails,
            Command(PretendJob(0.1)),
        ],
        policy=a_policy(retries=3, retry_delay_seconds=0.0, tells=True),
        visits=[(0, -6.0, 25.0, 5.0, 0)],
    )

    lived(history, [])


def one_command(job: PretendJob) -> PretendBox:
    return PretendBox(1, lambda _: job, commands_at_once(["job 1"]))


def on_disk(box: PretendBox) -> list[Event]:
    return [decode_line(line[:-1], n) for n, line in enumerate(box.journal, start=1)]


def die_once(box: PretendBox, policy: Policy, holds: Callable[[], bool]) -> None:
    """Dies at the first moment at which this is so."""
    box.dies_when = holds
    try:
        box.run(policy)
    finally:
        box.dies_when = None


# --- the wall clock steps back between two dispatchers


def step_back(box: PretendBox) -> None:
    box.clock.ahead_seconds -= HOUR


def test_runs_are_adopted_though_the_wall_clock_stepped_back():
    box = one_command(PretendJob(60.0))
    began = box.clock.time
    Witness(box, INSTANT)
    box.run(a_policy(), seconds=30)
    step_back(box)

    loop = box.resume(a_policy())

    assert len(box.launched) == 1
    assert loop.state.totals.ok == 1
    assert box.clock.time - began == pytest.approx(60, abs=1.01)


def test_a_run_that_was_asked_to_end_gets_no_hour_more():
    box = one_command(PretendJob(HOUR, ignores_sigterm=True))
    began = box.clock.time
    policy = a_policy(timeout_seconds=30.0, grace_seconds=10.0)
    Witness(box, INSTANT)
    box.run(policy, seconds=35)
    step_back(box)

    box.resume(policy)

    assert box.clock.time - began <= 30 + 10 + 10


def test_a_timeout_gets_no_hour_more():
    box = one_command(PretendJob(2 * HOUR))
    began = box.clock.time
    box.run(a_policy(timeout_seconds=60.0), seconds=30)
    step_back(box)

    box.resume(a_policy(timeout_seconds=60.0))

    assert box.clock.time - began <= 30 + 60 + 1


def test_another_try_waits_no_hour_longer():
    commands = {"job 1": Command(PretendJob(1.0), [Exited(1), Exited(0)])}
    box = PretendBox(1, jobs_of(commands), commands_at_once(commands))
    policy = a_policy(retries=1, retry_delay_seconds=20.0)
    began = box.clock.time
    Witness(box, INSTANT)
    box.run(policy, seconds=5)
    step_back(box)

    loop = box.resume(policy)

    assert loop.state.totals.ok == 1
    assert box.clock.time - began <= 1 + 20 + 300 + 5


def test_a_gpu_whose_memory_comes_back_late_is_used_again_no_hour_later():
    job = PretendJob(10.0, memory_bytes=20 * GIB, memory_lingers_seconds=8.0)
    box = PretendBox(1, lambda _: job, commands_at_once(["job 1", "job 2"]))
    began = box.clock.time
    Witness(box, INSTANT)
    box.run(a_policy(), seconds=12)
    step_back(box)

    loop = box.resume(a_policy())

    assert loop.state.totals.ok == 2
    assert 18 <= box.launched[1][0] - began <= 24
