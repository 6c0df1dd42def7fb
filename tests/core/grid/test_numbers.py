"""Numbers are exact, short, and far enough from each other."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.grid.numbers import (
    EvenRatios,
    EvenSteps,
    number_text,
    parse_number,
    parse_whole,
)
from smartsched.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", Fraction(0)),
        ("-1", Fraction(-1)),
        ("+2.", Fraction(2)),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),
        ("1e-5", Fraction(1, 100_000)),
        ("1E3", Fraction(1000)),
    ],
)
def test_a_number_is_what_is_written_there(text: str, value: Fraction):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "x", "1/3", "inf", "nan", "1_000", " 1", "1e999", "1e-999", "1e9999999", "٣", "9" * 31],
)
def test_what_is_no_usable_number_is_refused_at_once(text: str):
    with pytest.raises(UsageError, match="no number"):
        parse_number(text)


@pytest.mark.parametrize("text", ["", "1.5", "1e3", "x", "--1"])
def test_what_is_no_whole_number_is_refused(text: str):
    with pytest.raises(UsageError, match="no whole number"):
        parse_whole(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(0), "0"),
        (Fraction(3), "3"),
        (Fraction(-1, 2), "-0.5"),
        (Fraction(3, 10), "0.3"),
        (Fraction(1, 1000), "0.001"),
        (Fraction(1, 100_000), "1e-05"),
        (Fraction(123_456_789_012), "123456789012"),
        (Fraction(10**20), "1e+20"),
    ],
)
def test_numbers_are_written_as_python_does_but_without_an_idle_fraction(
    value: Fraction, text: str
):
    assert number_text(value) == text


def test_steps_that_are_no_decimal_numbers_are_rounded_far_below_a_step():
    steps = EvenSteps(Fraction(1_000_000), Fraction(1, 3), 3)

    assert [steps.text(n) for n in range(4)] == [
        "1000000", "1000000.333333", "1000000.666667", "1000001",
    ]  # fmt: skip


def test_ratios_are_written_to_six_digits_and_end_exactly():
    ratios = EvenRatios(Fraction(1), Fraction("123.456789"), 2)

    assert [ratios.text(n) for n in range(3)] == ["1", "11.1111", "123.456789"]


@pytest.mark.parametrize("between", [EvenSteps, EvenRatios])
def test_values_that_would_be_written_alike_are_refused(between: type[EvenSteps | EvenRatios]):
    tiny = Fraction(1, 10**12)
    other = tiny if between is EvenSteps else 1 + tiny

    with pytest.raises(UsageError, match="too close"):
        between(Fraction(1), other, 1)


NUMBERS = st.decimals("1e-9", "1e9", places=9).map(Fraction).filter(lambda number: number > 0)


@given(first=NUMBERS, last=NUMBERS, steps=st.integers(1, 10**7), data=st.data())
def test_neighbours_are_never_written_alike(
    first: Fraction, last: Fraction, steps: int, data: st.DataObject
):
    number = data.draw(st.integers(0, steps - 1))
    try:
        evenly: list[EvenSteps | EvenRatios] = [
            EvenSteps(first, (last - first) / steps, steps),
            EvenRatios(first, last, steps),
        ]
    except UsageError:
        return

    for values in evenly:
        here, there = parse_number(values.text(number)), parse_number(values.text(number + 1))
        assert (here < there) == (first < last)
        assert here != there
