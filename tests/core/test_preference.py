"""In which order free GPUs are given away."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.preference import ORDERS, Preference, parse_preference
from smartsched.core.selection import parse_ids
from smartsched.errors import UsageError
from tests.builders import GIB, a_sample

PARTS = st.sampled_from([*ORDERS, "0", "1-3", "2:1", "GPU-a", "", " ", "emptiest "])
USED_GIB = {0: 3, 1: 0, 2: 9, 3: 1}


def order_by(text: str) -> list[int]:
    """Which of four GPUs go first, of which other people use as much as USED_GIB says."""
    preference = parse_preference(text)
    return sorted(USED_GIB, key=lambda n: (preference.rank(a_sample(n), USED_GIB[n] * GIB), n))


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("emptiest", [1, 3, 0, 2]),
        ("fullest", [2, 0, 3, 1]),
        ("first", [0, 1, 2, 3]),
        ("last", [3, 2, 1, 0]),
        ("2", [2, 1, 3, 0]),
        ("0,2", [0, 2, 1, 3]),
        ("0, 2 , last", [0, 2, 3, 1]),
        ("2-3,first", [2, 3, 0, 1]),
        ("9,first", [0, 1, 2, 3]),
    ],
)
def test_gpus_that_are_named_go_first_and_the_others_by_the_order(text: str, order: list[int]):
    assert order_by(text) == order


def test_without_a_wish_the_emptiest_goes_first():
    assert Preference() == parse_preference("emptiest")


@pytest.mark.parametrize("text", ["", "best", "first,last", "last,2", "first,0", "emptiest,"])
def test_what_is_no_order_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_preference(text)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_read(order: str):
    assert parse_preference(order).order == order


def test_a_gpu_that_is_preferred_has_to_be_there():
    gpus = [a_sample(0), a_sample(1)]

    Preference(parse_ids("1")).check(gpus)
    with pytest.raises(UsageError, match="--prefer"):
        Preference(parse_ids("1,7")).check(gpus)


@given(st.text("0123456789-,:GPUMIgpumi af/", max_size=12) | st.lists(PARTS).map(",".join))
def test_whatever_is_given_is_an_order_or_told(text: str):
    with suppress(UsageError):
        assert parse_preference(text).order in ORDERS
