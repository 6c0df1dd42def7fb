"""An order at random that is the same everywhere, whole, and costs no memory."""

from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.grid.shuffle import shuffled

LARGE = 1 << 16  # above it, another way is taken


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, LARGE, LARGE + 1, 100_000, 131_072])
def test_every_number_comes_once(count: int):
    numbers = list(shuffled(count, seed=3))

    assert len(numbers) == count
    assert set(numbers) == set(range(count))


@given(count=st.integers(1, 10**40), seed=st.integers(), most=st.integers(1, 60))
def test_numbers_are_in_range_and_none_comes_twice(count: int, seed: int, most: int):
    numbers = list(islice(shuffled(count, seed), most))

    assert len(numbers) == len(set(numbers)) == min(most, count)
    assert 0 <= min(numbers) <= max(numbers) < count


def test_lists_that_were_written_once_are_written_for_ever():
    """Change this and a list that is generated again for --resume is another one."""
    assert list(shuffled(10, seed=0)) == [3, 5, 7, 9, 0, 2, 4, 6, 1, 8]
    assert list(islice(shuffled(10**12, seed=7), 4)) == [
        955_976_613_416,
        3_324_036_859,
        567_373_580_083,
        187_824_940_014,
    ]


@pytest.mark.parametrize("count", [20, 10**6])
def test_another_seed_is_another_order(count: int):
    orders = {tuple(islice(shuffled(count, seed), 20)) for seed in range(-50, 50)}

    assert len(orders) == 100


def test_of_few_numbers_every_order_is_about_as_likely():
    orders = Counter(tuple(shuffled(4, seed)) for seed in range(4800))

    assert len(orders) == 24
    assert 130 < min(orders.values()) <= max(orders.values()) < 270  # 200 each; 5 deviations


@pytest.mark.parametrize("count", [LARGE + 1, 10**6, 10**12, 3**60])
def test_a_sample_is_spread_evenly_and_a_number_says_nothing_of_the_next(count: int):
    sample = list(islice(shuffled(count, seed=1), 10_000))

    last_digits = Counter(number % 10 for number in sample)
    tenths = Counter(number * 10 // count for number in sample)
    in_a_row = Counter((a * 10 // count, b * 10 // count) for a, b in pairwise(sample))
    for counter, parts in ((last_digits, 10), (tenths, 10), (in_a_row, 100)):
        expected = len(sample) / parts
        assert len(counter) == parts
        assert all(abs(n - expected) < 6 * expected**0.5 for n in counter.values())
