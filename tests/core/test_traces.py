"""What is drawn of the last seconds of each GPU."""

from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.traces import CELLS, History, Trace, sparkline
from tests.builders import T0, a_key, a_sample, a_snapshot, history, unreadable


def test_bars_are_as_high_as_their_values_and_blank_where_nothing_is_known():
    assert sparkline([None, 0.0, 0.5, 1.0, 2.0]) == " ▁▅██"
    assert sparkline([None, 0.0, 0.5, 1.0], ascii_only=True) == " _=#"


def test_a_part_shows_the_highest_value_in_it():
    trace = Trace(10.0)
    for tenth in range(100):
        trace.add(tenth / 10, 0.9 if tenth == 42 else 0.1)

    assert trace.drawn(9.95, 10, 1.0) == [0.1] * 4 + [0.9] + [0.1] * 5


def test_what_was_seen_holds_until_the_next_sample_but_not_for_ever():
    trace = Trace(10.0)
    trace.add(0.5, 0.5)
    trace.add(2.5, 0.7)

    assert trace.drawn(9.5, 10, 2.0) == [0.5, 0.5, 0.7, 0.7, 0.7, *[None] * 5]


def test_bars_that_were_drawn_only_move_to_the_left():
    trace = Trace(10.0)
    for at in range(100):
        trace.add(at * 0.37, at % 7 / 7)

    before, after = trace.drawn(37.5, 10, 3.0), trace.drawn(38.5, 10, 3.0)

    assert after[:8] == before[1:9]


def test_what_was_known_already_is_not_taken_twice():
    trace = Trace(10.0)
    trace.add(5.0, 0.2)
    trace.add(4.0, 0.9)
    trace.add(5.0, 0.9)

    assert trace.drawn(5.0, 10, 1.0)[-1] == 0.2


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1)), max_size=200),
    st.sampled_from([1, 10, 20, 30, 60, CELLS]),
    st.floats(0, 2e5),
)
def test_whatever_was_seen_there_are_so_many_values(
    points: list[tuple[float, float]], width: int, now: float
):
    trace = Trace(60.0)
    for at, value in sorted(points):
        trace.add(at, value)

    values = trace.drawn(now, width, 3.0)

    assert len(values) == width
    assert all(value is None or 0 <= value <= 1 for value in values)


def test_the_driver_s_own_history_is_drawn_from_the_start():
    seen = History(10.0, 1.0)
    points = history(*((float(age), 80 if age == 3 else 0) for age in range(10)))

    seen.see(a_snapshot(a_sample(utilization_percent=0, utilization_history=points), at=T0))

    bars = seen.utilization(a_key(), T0, 10)
    assert None not in bars
    assert bars[-4] == 0.8


def test_memory_is_drawn_as_a_part_of_all_of_it():
    seen = History(10.0, 1.0)

    seen.see(a_snapshot(a_sample(used_gib=50), at=T0))

    assert seen.memory(a_key(), T0, 10)[-1] == 0.5


def test_of_a_gpu_that_cannot_be_read_nothing_is_drawn():
    seen = History(10.0, 1.0)

    seen.see(a_snapshot(unreadable(), at=T0))

    assert seen.utilization(a_key(), T0, 10) == [None] * 10
