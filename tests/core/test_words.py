"""Quantities and texts as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core import words


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10_952_166_604, "10.2 GiB"),
        (24 * 2**30, "24 GiB"),
        (200.7 * 2**20, "201 MiB"),
        (2**60, "1024 PiB"),
    ],
)
def test_sizes_are_binary(amount: float, text: str):
    assert words.size(amount) == text


@pytest.mark.parametrize(
    ("value", "other", "text"),
    [
        (43.2, None, "43%"),
        (43.2, 20, "43%"),
        (20.4, 20, "20.4%"),
        (20.04, 20, "20.04%"),
        (20.004, 20, "20.004%"),
    ],
)
def test_a_percentage_has_the_decimals_that_tell_it_apart(
    value: float, other: float | None, text: str
):
    assert words.percent(value, other) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0, "0.0s"),
        (0.04, "0.0s"),
        (1.25, "1.2s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (61, "1m 01s"),
        (3599.7, "1h 00m"),
        (3671, "1h 01m"),
        (86399.9, "1d 00h"),
        (200_000, "2d 07h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 jobs"), (1, "1 job"), (1234, "1,234 jobs")])
def test_counts_agree_with_their_noun(number: int, text: str):
    assert words.count(number, "job") == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("héllo ✓", "héllo ✓"),
        ("a\tb\nc\rd", "a b c d"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x00", r"\x00"),
        ("\udcff", r"\xff"),
        ("\u202etxt", "\N{REPLACEMENT CHARACTER}txt"),
    ],
)
def test_what_a_terminal_would_act_on_is_made_visible(text: str, shown: str):
    assert words.printable(text) == shown


@given(st.text())
def test_printable_text_can_be_shown_anywhere(text: str):
    shown = words.printable(text)

    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert words.printable(shown) == shown


@given(st.text(), st.integers(1, 50))
def test_a_shortened_text_fits_and_says_that_there_was_more(text: str, width: int):
    short = words.shortened(text, width)

    assert len(short) <= width
    assert short == text or (short.endswith("…") and text.startswith(short[:-1]))
