"""What the administrator allows, over what a user has asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.hours import NO_CAP, Cap, parse_cap, words
from smartsched.core.limits import Limits, combined, limited
from smartsched.core.policy import Policy

PLACE = "/etc/smartsched/config.toml:3"


def cap(text: str) -> Cap:
    return parse_cap(text) if text else NO_CAP


@pytest.mark.parametrize(
    ("asked", "allowed", "left"),
    [
        ("", "", ""),
        ("6", "", "6"),
        ("", "4", "4"),
        ("6", "4", "4"),
        ("2", "4", "2"),
        ("2@09-18,6@18-09", "4", "2@09-18,4@18-09"),
        ("6", "4@09-18", "4@09-18,6@18-09"),
        ("", "4@09-18", "4@09-18"),
        ("3@08-12", "2@10-14", "3@08-10,2@10-14"),
        ("4@00-12", "4@12-24", "4"),
        ("0", "4", "0"),
    ],
)
def test_at_every_hour_the_smaller_cap_holds(asked: str, allowed: str, left: str):
    assert words(combined(cap(asked), cap(allowed), min)) == left


@st.composite
def caps(draw: st.DrawFn) -> Cap:
    hours = sorted(draw(st.sets(st.integers(0, 24), min_size=0, max_size=6)))
    numbers = draw(st.lists(st.integers(0, 3), min_size=len(hours), max_size=len(hours)))
    pieces = [
        f"{number}@{first:02d}-{end:02d}"
        for number, first, end in zip(numbers, hours, hours[1:], strict=False)
    ]
    return cap(",".join(pieces))


@given(caps(), caps(), st.integers(0, 24 * 60 - 1))
def test_at_any_minute_the_smaller_number_that_is_named_holds(one: Cap, other: Cap, minute: int):
    both = combined(one, other, min)

    named = [n for n in (one.at(minute * 60), other.at(minute * 60)) if n is not None]
    assert both.at(minute * 60) == (min(named) if named else None)
    assert cap(words(both)) == both


def test_who_asks_for_less_hears_nothing():
    policy = Policy("run", most_gpus=cap("2"), leave_free=cap("1"))
    limits = Limits(cap("4"), cap("1"), PLACE, PLACE)

    assert limited(policy, limits) == (policy, ())


def test_who_asks_for_more_hears_what_holds_and_where_it_is_written():
    limits = Limits(cap("4"), cap("1"), PLACE, "/etc/smartsched/config.toml:4")

    policy, notes = limited(Policy("run", most_gpus=cap("6")), limits)

    assert (words(policy.most_gpus), words(policy.leave_free)) == ("4", "1")
    assert notes == (
        "the administrator of this box wants at most --max-gpus 4 (/etc/smartsched/config.toml:3)"
        " and at least --leave-free 1 (/etc/smartsched/config.toml:4)",
    )


def test_what_the_administrator_leaves_free_is_more_than_politeness():
    """--polite leaves none free where there is but one."""
    asked = Policy("run", leave_free=cap("1"), is_polite=True)

    assert limited(asked, Limits(most_gpus=cap("1")))[0].is_polite
    assert not limited(asked, Limits(leave_free=cap("1")))[0].is_polite
