"""What a GPU's time goes to, and why."""

from smartsched.core.freeness import Thresholds
from smartsched.core.gpu_time import NO_GPU_IS_FREE, Standing, discreet, stalled_because, standings
from smartsched.core.hours import parse_cap
from smartsched.core.model import (
    ClaimRefused,
    GpuReading,
    SamplerTrouble,
    Wait,
)
from smartsched.core.sight import hear
from smartsched.core.state import State
from tests.builders import (
    GIB,
    HOST,
    T0,
    a_key,
    a_process,
    a_sample,
    a_snapshot,
    a_state,
    begun,
    decided,
    ours,
    see,
    unreadable,
    used_by,
)

SECRET = "python steal.py --token hunter2"


def uses(state: State, seconds: float = 0.0) -> list[tuple[str, str]]:
    waiting = decided(state, seconds).waiting
    return [(found.use, found.why) for found in standings(state, waiting, T0 + seconds)]


def use_of(reading: GpuReading, **state: object) -> tuple[str, str]:
    [found] = uses(a_state(reading, **state))  # type: ignore[arg-type]
    return found


def test_where_a_run_of_ours_is_the_time_is_ours_whoever_else_came():
    state = a_state(queued=1, events=begun(1))

    see(state, a_snapshot(used_by(ours(1, 5), a_process(gib=30))))

    assert uses(state) == [("ours", "")]


def test_what_is_known_of_a_gpu_is_split_into_ours_and_theirs():
    state = a_state(queued=1, events=begun(1))
    see(state, a_snapshot(used_by(ours(1, 5), a_process(gib=30), utilization_percent=80)))

    [found] = standings(state, None, T0)

    assert (found.label, found.name, found.memory_total_bytes) == ("0", "Test GPU", 100 * GIB)
    assert (found.strangers_bytes, found.ours_bytes) == (30 * GIB, 5 * GIB)
    assert found.utilization_percent == 80


def test_strangers_are_named_with_the_test_but_not_with_their_commands():
    use, why = use_of(used_by(a_process(gib=30, user="alice", command=SECRET)), queued=1)

    assert use == "strangers"
    assert why == "memory > 10% (alice)"


def test_of_many_strangers_the_two_that_hold_most_are_named():
    people = [a_process(n, gib, user=f"user{n}") for n, gib in ((1, 5), (2, 20), (3, 9), (4, 1))]

    _, why = use_of(used_by(*people))

    assert why == "memory > 10% (user2, user3, 2 more)"


def test_after_strangers_have_left_the_window_has_to_go_by():
    limits = Thresholds(free_for_seconds=10.0)
    state = a_state(used_by(a_process(gib=30)), queued=1, thresholds=limits)
    see(state, a_snapshot(a_sample(), at=T0 + 3))

    assert uses(state, 3) == [("window", "memory > 10% a moment ago")]


def test_at_the_beginning_nobody_has_watched_for_the_window_yet():
    limits = Thresholds(free_for_seconds=10.0)

    assert use_of(a_sample(), queued=1, thresholds=limits)[0] == "window"


def test_a_gpu_that_cannot_be_read_is_unknown():
    assert use_of(unreadable(), queued=1) == ("unknown", "GPU is lost")


def test_a_driver_that_cannot_be_asked_makes_all_unknown():
    state = a_state(a_sample(0), a_sample(1), queued=1)
    see(state, SamplerTrouble(HOST, "the driver hangs"))

    assert uses(state) == [("unknown", "the driver hangs")] * 2


def test_a_gpu_that_was_not_seen_for_long_is_unknown():
    assert uses(a_state(a_sample(), queued=1), 60)[0][0] == "unknown"


def test_a_gpu_that_is_ill_is_unknown_and_nobody_is_blamed():
    assert use_of(a_sample(ailment="needs a reset"), queued=1) == (
        "unknown",
        "health needs a reset",
    )


def test_without_a_command_that_waits_a_free_gpu_is_idle():
    assert use_of(a_sample()) == ("idle", "no command waits")


def test_a_gpu_that_another_dispatcher_has_claimed_is_claimed():
    state = a_state(a_sample(), queued=1)
    hear(state, ClaimRefused(T0, (a_key(),), ((a_key(), "claimed by bob"),)))

    assert uses(state) == [("claimed", "claimed by bob")]


def test_a_free_gpu_is_capped_where_the_user_allows_no_more():
    state = a_state(
        a_sample(0), a_sample(1), queued=3, events=begun(1), most_gpus=parse_cap("1", 0)
    )

    assert uses(state) == [("ours", ""), ("capped", "as many GPUs are used as --max-gpus 1 allows")]


def test_a_free_gpu_is_held_where_what_waits_cannot_use_it():
    state = a_state(a_sample(0), used_by(a_process(gib=30), index=1), queued=1, gpus_per_job=2)

    assert [use for use, _ in uses(state)] == ["held", "strangers"]


def test_why_jobs_wait_is_told_without_what_others_run():
    state = a_state(used_by(a_process(gib=30, command=SECRET)), queued=1)
    waiting = decided(state).waiting
    assert waiting is not None
    assert "hunter2" in waiting.why

    assert discreet(waiting.why) == NO_GPU_IS_FREE
    told = stalled_because(standings(state, waiting, T0), waiting)
    assert told == "GPU 0: memory > 10% (alice)"


def test_gpus_of_one_reason_are_told_together():
    def busy(index: int, why: str) -> Standing:
        return Standing(a_key(index), str(index), "GPU", None, None, None, None, "strangers", why)

    found = [busy(0, "a"), busy(1, "b"), busy(2, "a")]

    assert stalled_because(found, Wait("GPU 0: x")) == "GPU 0,2: a · GPU 1: b"
    assert stalled_because(found, Wait("the disk is full")) == "the disk is full"
