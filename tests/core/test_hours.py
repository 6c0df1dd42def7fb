"""Caps that differ by the hour of the day."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.hours import NO_CAP, Cap, Part, parse_cap, words
from smartsched.errors import UsageError

HOUR = 3600
DAY = 24 * HOUR


@st.composite
def caps(draw: st.DrawFn) -> Cap:
    """Cut the day, from anywhere, into spans, and give some of them a number."""
    cuts = sorted(draw(st.sets(st.integers(0, 1439), min_size=2, max_size=6)))
    spans = zip(cuts, [*cuts[1:], cuts[0]], strict=True)
    numbers = [draw(st.none() | st.integers(0, 3)) for _ in cuts]
    parts = [
        Part(first, end or 1440, number)
        for (first, end), number in zip(spans, numbers, strict=True)
        if number is not None
    ]
    return Cap(tuple(parts) or (Part(0, 1440, 7),))


@pytest.mark.parametrize(
    ("text", "hour", "most"),
    [
        ("4", 0, 4),
        ("4", 23.99, 4),
        (" 0 ", 12, 0),
        ("2@09-18,6@18-09", 9, 2),
        ("2@09-18,6@18-09", 17.99, 2),
        ("2@09-18,6@18-09", 18, 6),
        ("2@09-18,6@18-09", 0, 6),
        ("2@09-18,6@18-09", 8.99, 6),
        ("2@9-18", 8.99, None),
        ("2@9-18", 18, None),
        ("2@09:30-18:15", 9.49, None),
        ("2@09:30-18:15", 9.5, 2),
        ("2@09:30-18:15", 18.24, 2),
        ("2@09:30-18:15", 18.25, None),
        ("1@18-00, 2@00-09", 23.99, 1),
        ("1@18-24, 2@24-09", 0, 2),
        ("3@00-24", 12, 3),
        ("2 @ 09 - 18 , 6 @ 18 - 09", 12, 2),
        ("2@09-18", 24 + 12, 2),
    ],
)
def test_how_many_there_can_be_at_an_hour(text: str, hour: float, most: int | None):
    assert parse_cap(text).at(hour * HOUR) == most


@pytest.mark.parametrize(
    ("text", "hour", "hours_until"),
    [
        ("4", 12, None),
        ("4@00-24", 12, None),
        ("4@00-12,4@12-24", 6, None),
        ("4@22-10,4@10-22", 6, None),
        ("2@09-18,6@18-09", 12, 6),
        ("2@09-18,6@18-09", 20, 13),
        ("2@09-18,6@18-09", 9, 9),
        ("2@09-18,6@18-09", 18, 15),
        ("2@09-18", 8, 1),
        ("2@09-12,2@12-18", 10, 8),
        ("2@18-24,3@00-06", 23.5, 0.5),
        ("2@18-24", 23.5, 0.5),
        ("2@00-06", 12, 12),
    ],
)
def test_when_that_changes(text: str, hour: float, hours_until: float | None):
    expected = None if hours_until is None else hours_until * HOUR

    assert parse_cap(text).next_change(hour * HOUR) == expected


def test_without_a_cap_there_is_none_at_any_hour():
    assert NO_CAP.at(0) is None
    assert NO_CAP.next_change(0) is None
    assert NO_CAP.most() is None
    assert NO_CAP.fewest() is None


@given(caps())
def test_the_most_and_fewest_of_a_day_are_those_of_its_minutes(cap: Cap):
    numbers = [cap.at(minute * 60) for minute in range(1440)]
    capped = [number for number in numbers if number is not None]

    assert cap.most() == (max(capped) if len(capped) == 1440 else None)
    assert cap.fewest() == (min(capped) if len(capped) == 1440 else None)


@given(caps(), st.integers(0, DAY - 1))
def test_until_the_next_change_nothing_changes_and_then_something_does(cap: Cap, now: int):
    wait = cap.next_change(now)

    if wait is None:
        assert len({cap.at(minute * 60) for minute in range(1440)}) == 1
    else:
        assert 0 < wait <= DAY
        assert cap.at(now + wait) != cap.at(now)
        assert {cap.at(now + part * wait / 16) for part in range(16)} == {cap.at(now)}


@given(st.floats(0, DAY))
def test_at_a_fraction_of_a_second_too(now: float):
    cap = parse_cap("2@09-18,6@18-09")
    wait = cap.next_change(now)

    assert wait is not None
    assert cap.at(now + wait + 0.001) != cap.at(now)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("4", "4"),
        (" 004 ", "4"),
        ("4@00-24", "4"),
        ("4@0:00-24:00", "4"),
        ("2@9-18, 6@18-9", "2@09-18,6@18-09"),
        ("6@18-09,2@09-18", "2@09-18,6@18-09"),
        ("2@9:05-18:00", "2@09:05-18"),
        ("2@18-0", "2@18-24"),
        ("2@24-6", "2@00-06"),
    ],
)
def test_it_is_given_back_in_one_way_of_writing(text: str, canonical: str):
    assert words(parse_cap(text)) == canonical


@given(caps())
def test_what_is_given_back_means_the_same(cap: Cap):
    assert parse_cap(words(cap)) == cap


@pytest.mark.parametrize(
    "text",
    ["", ",", "four", "-1", "1.5", "٤", "@09-18", "x@09-18", "2@", "2@09", "2@09-", "2@-18",
     "2@09-18-20", "2@9h-18h", "2@0900-1800", "2@09:5-18", "2@09-18,", "4@09-18;2@18-09",
     "1234567890"],
)  # fmt: skip
def test_what_is_no_cap(text: str):
    with pytest.raises(UsageError, match="write it as 4, or by the hour as 2@09-18,6@18-09"):
        parse_cap(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("2@09-25", "there is no 25 o'clock"),
        ("2@09:60-18", "there is no 09:60 o'clock"),
        ("2@09-24:01", "there is no 24:01 o'clock"),
        ("2@09-09", "'2@09-09' is either nothing or a whole day: the latter is 00-24"),
        ("2@00-00", "either nothing or a whole day"),
        ("2@24-00", "either nothing or a whole day"),
        ("2@24-24", "either nothing or a whole day"),
        ("2@09-18,6@17-09", "2@09-18 and 6@17-09 both say what holds at 17"),
        ("2@09-18,6@17:30-20", "both say what holds at 17:30"),
        ("6@18-09,2@08-10", "6@18-09 and 2@08-10 both say what holds at 08"),
        ("6@22-03,2@23-01", "both say what holds at 00"),
        ("2@09-18,2@09-18", "both say what holds at 09"),
        ("2@00-24,3@05-06", "both say what holds at 05"),
        ("4,2@09-18", "'4' has no hours, as all parts of '4,2@09-18' need"),
        ("2@09-18,4", "'4' has no hours"),
    ],
)
def test_what_contradicts_itself(text: str, complaint: str):
    with pytest.raises(UsageError) as error:
        parse_cap(text)

    assert complaint in str(error.value)


def test_fewer_than_make_sense_are_refused():
    assert parse_cap("0").at(0) == 0
    assert parse_cap("1@09-18", least=1).at(10 * HOUR) == 1
    with pytest.raises(UsageError, match="'0' is too small: 1 is the least"):
        parse_cap("0", least=1)
    with pytest.raises(UsageError, match="'0@18-09' is too small: 1 is the least"):
        parse_cap("2@09-18,0@18-09", least=1)


@given(st.text("0123456789@-:, ", max_size=20) | st.text(max_size=20))
def test_any_text_is_parsed_or_refused(text: str):
    with suppress(UsageError):
        cap = parse_cap(text)

        assert parse_cap(words(cap)) == cap
