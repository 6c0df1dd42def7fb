"""What people who are elsewhere are told."""

from msgspec.structs import replace

from smartsched.core.gpu_time import Standing, standings
from smartsched.core.model import EndedRun, Exited, Job, Wait
from smartsched.core.notices import StallClock, finish, first_failure, is_stalled, stall
from smartsched.core.state import Closing, State
from smartsched.core.totals import Totals
from tests.builders import (
    T0,
    a_command,
    a_part,
    a_placement,
    a_process,
    a_run,
    a_sample,
    a_state,
    begun,
    decided,
    used_by,
)

WAIT = Wait("GPU 0: memory 30% > 10% (alice: python steal.py --token hunter2)")
HOURS = 3600.0


def test_a_failure_is_told_by_the_shape_of_the_command_and_not_by_its_values():
    job = Job(a_run().job, a_command("python train.py --token hunter2  # smartsched: name=big"))
    ended = EndedRun(a_run(), job, a_placement(3), T0, T0 + 61, Exited(1), None, None)

    notice = first_failure("smartsched sweep", ended)

    assert notice.title == "smartsched sweep: job 1 (big) failed"
    assert "exit status 1 after 1m 01s on GPU 3: python train.py --token *" in notice.body
    assert "hunter2" not in notice.body


def test_the_end_is_told_with_what_came_of_the_jobs():
    state = a_state()
    state.input_open = False
    state.totals = Totals(accepted=9, ok=7, failed=2, gpu_seconds=7200)

    notice = finish("smartsched sweep", state, 3700)

    assert notice.title == "smartsched sweep is done"
    assert notice.body == "7 jobs ok, 2 failed; 1h 01m, 2.00 GPU-hours"


def test_an_end_with_work_left_is_told_from_one_that_is_complete():
    left = a_state(queued=2)
    halted = a_state()
    halted.halted = True

    assert finish("sweep", left, 1).title == "sweep ended with work left"
    assert "2+ not started" in finish("sweep", left, 1).body
    assert finish("sweep", halted, 1).title == "sweep is halted"


def test_a_stall_names_users_and_no_commands():
    found = standings(a_state(used_by(a_process(gib=30, user="alice")), queued=1), WAIT, T0)

    notice = stall("sweep", 2 * HOURS, found, WAIT)

    assert notice.title == "sweep: nothing could start for 2h 00m"
    assert notice.body == "because GPU 0: memory > 10% (alice)"


def lasted(clock: StallClock, state: State, hours: float, waiting: Wait | None = WAIT) -> object:
    return clock.look(state, waiting, T0 + hours * HOURS)


def test_nothing_is_told_before_the_time_is_over_and_then_once():
    clock, state = StallClock(2 * HOURS), a_state(queued=1)

    assert lasted(clock, state, 0) is None
    assert clock.wake_at() == T0 + 2 * HOURS
    assert lasted(clock, state, 1.9) is None
    assert lasted(clock, state, 2) == 2 * HOURS
    clock.told()
    assert lasted(clock, state, 3) is None
    assert clock.wake_at() == float("inf")


def test_whatever_starts_begins_it_anew():
    clock, state = StallClock(2 * HOURS), a_state(queued=1)
    lasted(clock, state, 0)
    clock.told()

    clock.started()

    assert lasted(clock, state, 3) is None
    assert lasted(clock, state, 5) == 2 * HOURS


def test_where_nothing_waits_or_the_end_was_asked_for_nothing_stalls():
    clock, state = StallClock(2 * HOURS), a_state(queued=1)

    assert (lasted(clock, state, 0, None), lasted(clock, state, 3, None)) == (None, None)
    state.closing = Closing.DRAIN
    assert (lasted(clock, state, 4), lasted(clock, state, 9)) == (None, None)


def stalls(state: State) -> bool:
    return is_stalled(state, standings(state, decided(state).waiting, T0))


def test_jobs_that_wait_for_our_own_are_no_stall():
    assert not stalls(a_state(a_sample(), queued=2, events=begun(1)))


def test_jobs_that_wait_for_strangers_are_stalled_also_beside_our_own():
    busy = used_by(a_process(gib=30), index=1)

    assert stalls(a_state(busy, queued=1))
    assert stalls(a_state(a_sample(), busy, queued=2, events=begun(1, a_part(0))))


def test_what_the_users_caps_keep_free_is_no_stall():
    state = a_state(a_sample(), queued=2, events=begun(1))
    standing = Standing(a_run(), "0", "", None, None, None, None, "capped", "")  # type: ignore[arg-type]

    assert not is_stalled(state, [standing, replace(standing, use="strangers")])
