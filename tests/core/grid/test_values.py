"""What -p NAME takes: values, ranges and distributions."""

from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsched.core.grid.values import RESOLUTION, Values, split_at_commas, values_of
from smartsched.errors import UsageError


def texts(*words: str) -> list[str]:
    values = values_of(words)
    return [values.text(position) for position in range(values.count)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["0.10", "1e-3", "-1", "adam w", ""], ["0.10", "1e-3", "-1", "adam w", ""]),
        (["int:1:4"], ["1", "2", "3", "4"]),
        (["int:-2:5:3"], ["-2", "1", "4"]),
        (["int:7:7"], ["7"]),
        (["lin:0:1:5"], ["0", "0.25", "0.5", "0.75", "1"]),
        (["lin:1:0:3"], ["1", "0.5", "0"]),
        (["lin:0:1:4"], ["0", "0.333333", "0.666667", "1"]),
        (["log:1e-5:1e-1:5"], ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        (["log:32:1:6"], ["32", "16", "8", "4", "2", "1"]),
        (["log:1:100:4"], ["1", "4.64159", "21.5443", "100"]),
        (["0", "log:0.01:1:3", "9"], ["0", "0.01", "0.1", "1", "9"]),
        (["text:log:1:2", "text:--fast", "text:text:x"], ["log:1:2", "--fast", "text:x"]),
        (["C:/data", "https://host", ":", "INT:1:2"], ["C:/data", "https://host", ":", "INT:1:2"]),
        (["choice:a,b,,c d"], ["a", "b", "", "c d"]),
    ],
    ids=str,
)
def test_values_are_written_in_their_order(words: list[str], expected: list[str]):
    assert texts(*words) == expected


def test_a_tenth_is_a_tenth_however_often_it_is_added():
    tenths = [
        "0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1",
    ]  # fmt: skip

    assert texts("lin:0:1:11") == tenths


def test_a_range_that_nobody_could_write_out_costs_nothing():
    values = values_of(["0", f"int:1:{10**18}"])

    assert values.count == 10**18 + 1
    assert values.text(10**18) == str(10**18)


@pytest.mark.parametrize(
    ("word", "low", "high"), [("uniform:-1:3", -1, 3), ("loguniform:1e-5:1e-1", 1e-5, 1e-1)]
)
def test_a_distribution_is_many_values_from_its_first_up_to_its_last(
    word: str, low: float, high: float
):
    values = values_of([word])
    some = [float(values.text(position)) for position in range(0, RESOLUTION, 9973)]

    assert values.is_distribution
    assert values.count == RESOLUTION
    assert some == sorted(set(some))
    assert low == some[0]
    assert some[-1] < float(values.text(RESOLUTION - 1)) < high


def test_the_middle_of_a_distribution_is_where_it_should_be():
    assert values_of(["uniform:-1:3"]).text(RESOLUTION // 2) == "1"
    assert values_of(["loguniform:1e-5:1e-1"]).text(RESOLUTION // 2) == "0.001"


def test_samples_are_not_longer_than_it_takes_to_tell_them_apart():
    uniform, log_uniform = values_of(["uniform:0:0.5"]), values_of(["loguniform:1e-5:1e-1"])

    assert uniform.text(123_457) == "0.0617285"
    assert log_uniform.text(123_457) == "3.117655e-05"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "no values"),
        (["1", "2", "1"], "'1' is there twice"),
        (["int:1:5", "3"], "'3' is there twice"),
        (["1.0e-5", "log:1e-5:1e-1:5"], "'1.0e-5' is there twice"),
        (["log:1e-1:1e-5:5", "0.010"], "'0.010' is there twice"),
        (["choice:a,b,a"], "'a' is there twice"),
        (["int:1:2", "int:4:5"], "a second range"),
        (["uniform:0:1", "2"], "stands alone"),
        (["0", "choice:a,b"], "stands alone"),
        (["a\nb"], "line break"),
        (["a\rb"], "line break"),
        (["choice:"], "no values"),
        (["int:1"], "int:1:10"),
        (["int:1:2:3:4"], "int:1:10"),
        (["int:5:1"], "5 is above 1"),
        (["int:1:5:0"], "a step of 0"),
        (["int:1:5:-1"], "a step of -1"),
        (["int:1:2.5"], "no whole number"),
        (["lin:0:1"], "lin:0:1:11"),
        (["lin:0:1:1"], "too few"),
        (["lin:0:1:0.5"], "no whole number"),
        (["lin:0:0:3"], "too close"),
        (["lin:a:1:3"], "'a' is no number"),
        (["lin:0:inf:3"], "'inf' is no number"),
        (["log:0:1:3"], "0 is not above 0"),
        (["log:-1:1:3"], "-1 is not above 0"),
        (["log:1:1:3"], "too close"),
        (["uniform:0"], "uniform:0:1"),
        (["uniform:1:0"], "1 is not below 0"),
        (["loguniform:0:1"], "0 is not above 0"),
        (["loguniform:1:0.1"], "1 is not below 0.1"),
        (["log:1:2"], "text:log:1:2"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_with_what_is_wrong(words: list[str], why: str):
    with pytest.raises(UsageError, match=why):
        values_of(words)


def test_a_value_beside_a_range_that_it_is_not_in_is_one_more():
    assert texts("int:2:6:2", "3") == ["2", "4", "6", "3"]
    assert texts("log:1e-1:1e-3:3", "none") == ["0.1", "0.01", "0.001", "none"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b", ["a", "b"]),
        (",--fast", ["", "--fast"]),
        ("log:1e-5:1e-1:5", ["log:1e-5:1e-1:5"]),
        ("choice:a,b", ["choice:a,b"]),
        ("text:a,b", ["text:a,b"]),
        ("", []),
    ],
)
def test_commas_stand_between_values_but_where_they_mean_something_else(
    text: str, words: Sequence[str]
):
    assert split_at_commas(text) == words


def test_what_the_user_wrote_is_told_from_numbers():
    values: Values = values_of(["none", "int:1:3"])

    assert values.given == ("none",)


FIELDS = st.sampled_from(
    [
        "",
        "0",
        "1",
        "-5",
        "1e-300",
        "1e300",
        "0.1",
        "9" * 30,
        "1e999",
        "nan",
        "inf",
        "x",
        "2",
        "1000",
    ]
)
WORDS = st.builds(
    lambda kind, fields: ":".join([kind, *fields]),
    st.sampled_from(["int", "lin", "log", "uniform", "loguniform", "choice", "text", "7", "INT"]),
    st.lists(FIELDS, max_size=4),
)


@given(st.lists(WORDS | FIELDS | st.text(max_size=6), max_size=3))
@settings(max_examples=300)
def test_whatever_is_given_is_values_that_can_be_written_or_told(words: list[str]):
    with suppress(UsageError):
        found = values_of(words)
        for position in {0, found.count // 2, found.count - 1}:
            assert isinstance(found.text(position), str)


def test_values_beside_a_range_without_end_are_looked_up_in_it():
    assert values_of([f"int:0:{10**29}", "0.5"]).count == 10**29 + 2
    with pytest.raises(UsageError, match="'5' is there twice"):
        values_of([f"int:0:{10**29}", "5"])
