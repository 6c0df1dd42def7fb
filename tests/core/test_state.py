"""Every legal step of a run's life, and that all others are loud and change nothing."""

from collections.abc import Iterable
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smartsched.core.apply import apply, replay
from smartsched.core.events import (
    DrainRequested,
    Event,
    GpuReleased,
    InputEnded,
    JobAccepted,
    LineRejected,
    ListReplaced,
    RunCleared,
    RunKilled,
    RunPlaced,
    RunPostponed,
    RunRevoked,
    RunStopping,
    StopRequested,
    WaitTimedOut,
)
from smartsched.core.model import (
    Asked,
    Exited,
    GpuKey,
    GpuUnreadable,
    GpuUuid,
    JobId,
    Killed,
    Lingering,
    NotStarted,
    Outcome,
    Placement,
    Running,
    RunStatus,
    SamplerTrouble,
    Starting,
    Stopping,
)
from smartsched.core.selection import Selection, parse_ids
from smartsched.core.state import FIRST_POSTPONE_SECONDS, Closing, State
from smartsched.errors import IllegalTransitionError
from tests.builders import (
    GIB,
    HOST,
    T0,
    a_key,
    a_placement,
    a_policy,
    a_process_id,
    a_run,
    a_sample,
    a_snapshot,
    a_spec,
    accepted,
    begun,
    exited,
    finished,
    launched,
    listed,
    placed,
    requeued,
    see,
    unreadable,
)

STOPPING = RunStopping(T0 + 5, a_run())
KILLED = RunKilled(T0 + 6, a_run())
REVOKED = RunRevoked(T0 + 1, a_run())
POSTPONED = RunPostponed(T0 + 1, a_run(), "no memory")
NOT_STARTED = exited(ending=NotStarted("no such shell"))
EXITED = exited(at=T0 + 10)
LEFT_BEHIND = exited(at=T0 + 10, leftovers=2)
CLEARED = RunCleared(T0 + 20, a_run())
FINISHED = finished(at=T0 + 25)
REQUEUED = requeued(at=T0 + 25)
RELEASED = GpuReleased(T0 + 30, a_key(), a_run())

QUEUED = (*accepted(1),)
STARTING = (*QUEUED, placed())
RUNNING = (*STARTING, launched())
BEING_STOPPED = (*RUNNING, STOPPING)
BEING_KILLED = (*BEING_STOPPED, KILLED)
LINGERING = (*RUNNING, LEFT_BEHIND)
LINGERING_ASKED = (*LINGERING, STOPPING)
LINGERING_KILLED = (*LINGERING_ASKED, KILLED)
ENDED = (*RUNNING, EXITED)
FREED = (*ENDED, RELEASED)
SETTLED = (*FREED, FINISHED)

HISTORIES: dict[str, tuple[Event, ...]] = {
    "nothing": (),
    "queued": QUEUED,
    "starting": STARTING,
    "running": RUNNING,
    "being stopped": BEING_STOPPED,
    "being killed": BEING_KILLED,
    "lingering": LINGERING,
    "lingering, asked": LINGERING_ASKED,
    "lingering, killed": LINGERING_KILLED,
    "ended": ENDED,
    "freed": FREED,
    "settled": SETTLED,
}
STEPS: dict[str, Event] = {
    "placed": placed(),
    "launched": launched(),
    "postponed": POSTPONED,
    "revoked": REVOKED,
    "not started": NOT_STARTED,
    "stopping": STOPPING,
    "killed": KILLED,
    "exited": EXITED,
    "left behind": LEFT_BEHIND,
    "cleared": CLEARED,
    "released": RELEASED,
    "finished": FINISHED,
    "requeued": REQUEUED,
}
LEGAL = {
    ("queued", "placed"),
    ("starting", "launched"),
    ("starting", "postponed"),
    ("starting", "revoked"),
    ("starting", "not started"),
    ("running", "stopping"),
    ("running", "postponed"),  # what a wrapper says that had no room to exec the shell
    ("running", "exited"),
    ("running", "left behind"),
    ("running", "not started"),  # what a wrapper says that could not exec the shell
    ("being stopped", "killed"),
    ("being stopped", "postponed"),
    ("being stopped", "exited"),
    ("being stopped", "left behind"),
    ("being stopped", "not started"),
    ("being killed", "postponed"),
    ("being killed", "exited"),
    ("being killed", "left behind"),
    ("being killed", "not started"),
    ("lingering", "stopping"),
    ("lingering", "cleared"),
    ("lingering, asked", "killed"),
    ("lingering, asked", "cleared"),
    ("lingering, killed", "cleared"),
    ("ended", "released"),
    *(
        (where, step)
        for where in ("lingering", "lingering, asked", "lingering, killed", "ended", "freed")
        for step in ("finished", "requeued")
    ),
}


def after(events: Iterable[Event]) -> State:
    return replay(a_policy(), events)


def status_after(*events: Event) -> RunStatus:
    return after(events).runs[a_run()].status


@pytest.mark.parametrize(("where", "step"), sorted(LEGAL))
def test_a_legal_step_is_taken(where: str, step: str):
    state = after(HISTORIES[where])
    before = deepcopy(state)

    apply(state, STEPS[step])

    assert state != before


@pytest.mark.parametrize(
    ("where", "step"),
    [(where, step) for where in HISTORIES for step in STEPS if (where, step) not in LEGAL],
)
def test_an_illegal_step_is_loud_and_changes_nothing(where: str, step: str):
    state = after(HISTORIES[where])
    before = deepcopy(state)

    with pytest.raises(IllegalTransitionError, match="internal error"):
        apply(state, STEPS[step])

    assert state == before


@pytest.mark.parametrize(
    "event",
    [
        JobAccepted(T0, JobId(1), a_spec()),
        JobAccepted(T0, JobId(4), a_spec()),
        placed(job=9),
        placed(attempt=2),
        placed(attempt=0),
    ],
    ids=["a number twice", "a number left out", "unknown", "attempt 2", "attempt 0"],
)
def test_what_does_not_fit_the_queue_is_loud_and_changes_nothing(event: Event):
    state = after(accepted(2))
    before = deepcopy(state)

    with pytest.raises(IllegalTransitionError):
        apply(state, event)

    assert state == before


def test_a_job_may_start_before_an_earlier_one_that_has_to_wait():
    state = after(accepted(3))

    apply(state, placed(job=2))

    assert [job.id for job in state.queue] == [1, 3]


def test_two_runs_on_one_gpu_are_held_and_released_each_by_itself():
    state = after([*accepted(2), placed(job=1, gpu=0), launched(job=1), placed(job=2, gpu=0)])
    apply(state, launched(job=2))
    apply(state, exited(job=1, at=T0 + 5))

    apply(state, replace(RELEASED, run=a_run(1)))

    assert list(state.holds[a_key()]) == [a_run(2)]


def test_a_run_is_not_given_one_gpu_twice():
    state = after(accepted(1))
    before = deepcopy(state)
    twice = Placement(a_placement(0).gpus * 2)

    with pytest.raises(IllegalTransitionError):
        apply(state, RunPlaced(T0, a_run(), twice))

    assert state == before


def test_a_gpu_is_not_released_on_behalf_of_another_run():
    state = after(ENDED)

    with pytest.raises(IllegalTransitionError):
        apply(state, replace(RELEASED, run=a_run(2)))
    with pytest.raises(IllegalTransitionError):
        apply(state, replace(RELEASED, gpu=a_key(5)))


def test_each_status_holds_the_facts_of_its_state():
    where, process = a_placement(), a_process_id()

    assert status_after(*STARTING) == Starting(T0, where)
    assert status_after(*RUNNING) == Running(T0, where, process, None)
    assert status_after(*BEING_STOPPED) == Stopping(
        T0 + 5, where, process, None, T0, "asked", killed_at=None
    )
    assert status_after(*BEING_KILLED) == Stopping(
        T0 + 5, where, process, None, T0, "asked", T0 + 6
    )
    assert status_after(*LINGERING) == Lingering(T0 + 10, where, asked=False, killed_at=None)
    assert status_after(*LINGERING_ASKED) == Lingering(T0 + 10, where, asked=True, killed_at=None)
    assert status_after(*LINGERING_KILLED) == Lingering(T0 + 10, where, True, T0 + 6)


def test_the_hold_on_a_gpu_follows_its_run():
    assert after(STARTING).holds[a_key()][a_run()].pid is None
    assert after(RUNNING).holds[a_key()][a_run()].pid == 77
    assert after(LINGERING).holds[a_key()][a_run()].cleared_at is None
    assert after(ENDED).holds[a_key()][a_run()].cleared_at == T0 + 10
    assert after((*LINGERING_KILLED, CLEARED)).holds[a_key()][a_run()].cleared_at == T0 + 20
    assert after(FREED).holds == {}


@pytest.mark.parametrize("end", [POSTPONED, NOT_STARTED], ids=["postponed", "not started"])
def test_a_run_that_never_lived_holds_no_gpu(end: Event):
    state = after([*STARTING, end])

    assert (state.holds, state.runs, state.ever_launched) == ({}, {}, False)


def test_a_hold_remembers_what_was_unexplained_before_the_run():
    state = after(QUEUED)
    (gpu,) = a_placement().gpus
    placement = Placement((replace(gpu, unexplained_bytes=3 * GIB),))

    apply(state, replace(placed(), placement=placement))

    assert state.holds[a_key()][a_run()].unexplained_before_bytes == 3 * GIB
    assert state.holds[a_key()][a_run()].tag == "test/1/1"


def test_a_postponed_job_is_queued_again_first_with_the_next_attempt():
    state = after([*accepted(2), placed(), POSTPONED])

    assert [job.id for job in state.queue] == [1, 2]
    assert state.queue[0].attempts == 1
    assert state.postponed[HOST].until == T0 + 1 + FIRST_POSTPONE_SECONDS
    assert state.postponed[HOST].why == "no memory"
    apply(state, placed(attempt=2))
    assert state.runs[a_run(attempt=2)].job.attempts == 2


def test_jobs_that_are_postponed_together_keep_their_order():
    state = after([*accepted(4), placed(1, gpu=0), placed(2, gpu=1), placed(3, gpu=2)])

    for number in (1, 2, 3):
        apply(state, RunPostponed(T0, a_run(number), "no memory"))

    assert [job.id for job in state.queue] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("ending", "outcome", "counts"),
    [
        (Exited(0), "ok", (1, 0, 0)),
        (Exited(1), "failed", (0, 1, 0)),
        (Killed(9), "failed", (0, 1, 0)),
        (Killed(15), "stopped", (0, 0, 1)),
    ],
)
def test_a_job_counts_once_it_is_settled_what_came_of_it(
    ending: Exited | Killed, outcome: Outcome, counts: tuple[int, int, int]
):
    state = after([*RUNNING, exited(at=T0 + 60, ending=ending)])
    before = state.totals.finished

    apply(state, finished(outcome=outcome))

    totals = state.totals
    assert (before, totals.finished) == (0, 1)
    assert (totals.ok, totals.failed, totals.stopped) == counts
    assert totals.gpu_seconds == 60
    assert state.last_ending == ending
    assert state.ended == {}


def test_the_time_before_a_run_was_stopped_counts_as_gpu_time():
    assert after([*BEING_STOPPED, exited(at=T0 + 60)]).totals.gpu_seconds == 60


def test_a_job_with_leftovers_has_ended_and_still_holds_its_gpu():
    state = after([*LINGERING, FINISHED])

    assert state.totals.finished == 1
    assert list(state.holds) == [a_key()]


def test_rejected_lines_and_the_end_of_the_input_are_noted():
    state = after([LineRejected(T0, "list:3", "holds a NUL byte"), InputEnded(T0)])

    assert state.totals.rejected == 1
    assert not state.input_open


@pytest.mark.parametrize(
    ("requests", "closing"),
    [
        ("", Closing.NO),
        ("D", Closing.DRAIN),
        ("DD", Closing.DRAIN),
        ("S", Closing.STOP),
        ("DS", Closing.STOP),
        ("SD", Closing.STOP),
        ("SS", Closing.KILL),
        ("SSD", Closing.KILL),
        ("SSS", Closing.KILL),
        ("W", Closing.DRAIN),
        ("SW", Closing.STOP),
    ],
)
def test_the_end_is_only_ever_asked_for_more_urgently(requests: str, closing: Closing):
    kinds: dict[str, Event] = {
        "D": DrainRequested(T0, "ctrl-c"),
        "S": StopRequested(T0, "ctrl-c"),
        "W": WaitTimedOut(T0),
    }

    state = after(kinds[letter] for letter in requests)

    assert state.closing is closing


def test_waiting_begins_with_the_first_command():
    state = after([*accepted(1, at=T0 + 7), JobAccepted(T0 + 9, JobId(2), a_spec())])

    assert state.waiting_since == T0 + 7


def test_nothing_grows_with_finished_jobs():
    state = State(a_policy())
    see(state, a_snapshot(a_sample(), at=T0))

    for number in range(1, 501):
        job = JobId(number)
        apply(state, JobAccepted(T0, job, a_spec(number)))
        apply(state, placed(number))
        apply(state, launched(number))
        apply(state, exited(number, leftovers=number % 2))
        apply(state, finished(number))
        if number % 2:
            apply(state, RunCleared(T0, a_run(number)))
        apply(state, GpuReleased(T0, a_key(), a_run(number)))

    assert (len(state.queue), state.runs, state.holds, len(state.gpus)) == (0, {}, {}, 1)
    assert (state.ended, state.set_aside, state.interrupted) == ({}, {}, [])
    assert state.totals.ok == 500


def test_an_answer_that_was_overtaken_by_a_later_one_is_ignored():
    state = after(())
    see(state, a_snapshot(a_sample(used_gib=1), at=T0 + 5))

    see(state, a_snapshot(a_sample(used_gib=9), at=T0 + 4))

    watch = state.gpus[a_key()]
    assert (watch.taken_at, watch.latest) == (T0 + 5, a_sample(used_gib=1))


def test_a_look_at_one_gpu_says_nothing_about_the_others():
    state = after(())
    see(state, a_snapshot(a_sample(0), a_sample(1), at=T0))

    see(state, a_snapshot(a_sample(0), at=T0 + 1, whole=False))

    assert state.gpus[a_key(0)].taken_at == T0 + 1
    assert state.gpus[a_key(1)].latest == a_sample(1)


def test_some_of_a_host_s_gpus_do_not_pass_for_all_of_them():
    """Else a job that needs two would be taken for one that no host will ever have room for."""
    state = after(())

    see(state, a_snapshot(a_sample(0), at=T0, whole=False))

    assert not state.gpus


def test_a_gpu_that_the_driver_no_longer_lists_is_unreadable():
    state = after(())
    see(state, a_snapshot(a_sample(0), a_sample(1), at=T0))

    see(state, a_snapshot(a_sample(0), at=T0 + 1))

    gone = state.gpus[a_key(1)].latest
    assert gone == GpuUnreadable(a_key(1), 1, None, "Test GPU", "the driver no longer lists it")


def test_an_old_list_makes_no_newer_gpu_vanish():
    state = after(())
    see(state, a_snapshot(a_sample(0), a_sample(1), at=T0))

    see(state, a_snapshot(a_sample(0), at=T0 - 1))

    assert state.gpus[a_key(1)].latest == a_sample(1)


def test_a_vanished_gpu_that_comes_back_is_watched_anew():
    state = after(())
    for seconds, gpus in enumerate([(a_sample(0), a_sample(1)), (a_sample(0),), (a_sample(1),)]):
        see(state, a_snapshot(*gpus, at=T0 + seconds))

    assert state.gpus[a_key(1)].since == T0 + 2


def test_gpus_of_another_host_do_not_vanish():
    state = after(())
    see(state, a_snapshot(a_sample(0, key=a_key(0, "one")), at=T0, host="one"))

    see(state, a_snapshot(a_sample(0, key=a_key(0, "two")), at=T0 + 1, host="two"))

    assert state.gpus[a_key(0, "one")].latest == a_sample(0, key=a_key(0, "one"))


def test_gpus_that_may_not_be_used_are_not_watched():
    policy = a_policy(selection=Selection(parse_ids("0,2"), excluded=parse_ids("2")))
    state = State(policy)

    see(state, a_snapshot(a_sample(0), a_sample(1), a_sample(2)))

    assert list(state.gpus) == [a_key(0)]


def test_trouble_lasts_until_the_next_snapshot():
    state = after(())
    see(state, SamplerTrouble(HOST, "the driver hangs"))

    assert state.troubles[HOST].why == "the driver hangs"
    see(state, a_snapshot(a_sample()))
    assert state.troubles == {}


def test_gpus_are_listed_by_host_index_and_slot():
    state = after(())
    keys = [a_key(n) for n in range(5)]
    see(
        state,
        a_snapshot(
            a_sample(key=keys[0], index=10),
            a_sample(key=keys[1], index=2),
            a_sample(key=keys[2], index=1, slot=3),
            a_sample(key=keys[3], index=1, slot=0),
            replace(unreadable(), key=keys[4], index=0),
        ),
    )

    assert [key for key, _ in state.in_order()] == [keys[4], keys[3], keys[2], keys[1], keys[0]]


def test_a_gpu_without_a_uuid_is_forgotten_when_it_can_be_read_again():
    state = State(a_policy())
    nameless = GpuKey(a_key(1).host, GpuUuid("unreadable-1"))
    see(state, a_snapshot(replace(unreadable(1), key=nameless)))

    see(state, a_snapshot(a_sample(1), at=T0 + 1))

    assert [watch.latest.key for watch in state.gpus.values()] == [a_key(1)]


# --- the order of the queue


def order(state: State) -> list[int]:
    return [job.id for job in state.queue]


def with_priorities(*priorities: int) -> list[Event]:
    return listed(*(f"echo {n}  # smartsched: priority={p}" for n, p in enumerate(priorities)))


def test_larger_priorities_go_first_and_equals_by_the_list():
    assert order(after(with_priorities(0, 5, 0, 5, -1))) == [2, 4, 1, 3, 5]


def test_a_job_that_is_queued_again_goes_first_among_its_equals_and_behind_larger_ones():
    events: list[Event] = [*with_priorities(0, 5, 0, 5), placed(1), launched(1), exited(1)]

    state = after([*events, requeued(1, "contention")])

    assert order(state) == [2, 4, 1, 3]


def test_an_urgent_job_that_is_queued_again_is_at_the_head():
    events: list[Event] = [*with_priorities(0, 5, 0, 5), placed(2), launched(2), exited(2)]

    assert order(after([*events, requeued(2, "contention")])) == [2, 4, 1, 3]


def test_a_start_that_was_postponed_keeps_its_place_by_priority():
    events: list[Event] = [*with_priorities(0, 5, 0), placed(2), replace(POSTPONED, run=a_run(2))]

    assert order(after(events)) == [2, 1, 3]


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.data())
def test_however_jobs_come_and_go_the_queue_is_in_order(priorities: list[int], data: st.DataObject):
    state = after(with_priorities(*priorities))
    wanted = order(state)

    for job in data.draw(st.permutations(wanted)):
        apply(state, placed(job))
    for job in data.draw(st.permutations(wanted)):
        apply(state, RunPostponed(T0, a_run(job), "no memory"))

    assert order(state) == wanted == sorted(wanted, key=lambda n: (-priorities[n - 1], n))


def test_it_is_known_what_jobs_of_the_queue_ask_for():
    wide = "b  # smartsched: gpus=2 mem=1GiB"
    state = after([*listed("a", wide, wide), *begun(3)])
    assert state.asked == {Asked(None, None): 1, Asked(2, GIB): 1}

    apply(state, exited(3))
    apply(state, requeued(3))
    assert state.asked == {Asked(None, None): 1, Asked(2, GIB): 2}

    apply(state, ListReplaced(T0, ()))
    assert state.asked == {}


def test_what_no_job_of_the_queue_asks_for_any_more_is_forgotten():
    state = after([*listed("a"), *begun(1)])

    assert dict(state.asked) == {}
