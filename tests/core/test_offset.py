"""What another host's time is in ours: never later than it was, and not much earlier."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.offset import Offset

# How far their clock is ahead of ours: another boot, another time zone, another year.
AHEAD = st.sampled_from([0.0, -990_000.0, 3600.25, 5e8])
DELAY = st.floats(0.0, 3.0)
# Between messages; clocks that are slewed gain or lose up to half of a thousandth.
GAPS = st.floats(0.01, 30.0)
DRIFT = st.sampled_from([0.0, 4e-4, -4e-4])


@given(AHEAD, DRIFT, st.lists(st.tuples(GAPS, DELAY, DELAY), min_size=1, max_size=20))
def test_what_happened_there_is_never_taken_for_newer_than_it_is(
    ahead: float, drift: float, exchanges: list[tuple[float, float, float]]
):
    offset, now = Offset(), 1000.0

    def there(at: float) -> float:
        return at + ahead + drift * at

    for gap, delay_there, delay_back in exchanges:
        heard_at = now + gap + delay_there
        said_at = heard_at
        now = said_at + delay_back
        offset.heard(there(said_at), now)
        offset.echoed(now - delay_back - delay_there, there(heard_at))

        ours = offset.ours(there(said_at))

        # an exchange begins a bit off: what drifts within it is less than a thousandth of it
        assert ours <= said_at + 0.001 * (delay_there + delay_back) + 1e-6
        assert ours >= said_at - delay_there - delay_back - 0.002 * sum(e[0] for e in exchanges) - 1


def test_before_anything_of_ours_was_heard_messages_count_as_if_they_took_no_time():
    offset = Offset()

    offset.heard(5.0, 1000.0)

    assert offset.ours(5.0) == 1000.0


def test_the_fastest_message_says_most():
    offset = Offset()
    offset.heard(5.0, 1000.0)
    offset.heard(6.0, 1000.5)

    assert offset.ours(6.0) == pytest.approx(1000.5, abs=0.01)
    assert offset.ours(5.0) == pytest.approx(999.5, abs=0.01)


def test_with_an_echo_what_they_say_is_taken_for_as_old_as_it_may_be():
    offset = Offset()
    offset.heard(5.2, 1000.3)
    offset.echoed(1000.0, 5.1)  # it took up to 0.2 s there and back

    assert offset.ours(5.2) == pytest.approx(1000.1)


def test_a_message_that_was_late_is_known_by_the_fastest():
    offset = Offset()
    offset.heard(5.0, 1000.1)
    offset.heard(6.0, 1009.0)

    assert offset.soonest(6.0) == pytest.approx(1001.1, abs=0.02)


def test_clocks_drift_so_what_was_learned_long_ago_says_less():
    offset = Offset()
    offset.heard(0.0, 1000.0)
    offset.echoed(1000.0, 0.0)

    offset.heard(2000.9, 3001.0)  # their clock has lost a bit, or the message took long

    assert offset.ours(2000.9) == pytest.approx(2000.9 + 1000.0 - 2.001)
    assert offset.soonest(2000.9) == 3001.0
