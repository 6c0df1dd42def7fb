"""What one parameter may be: a list, a range, or a distribution to be sampled from.

Ranges are not written out: any of their values is worked out when it is needed.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

from msgspec import Struct

from smartsched.core.grid.numbers import EvenRatios, EvenSteps, parse_number, parse_whole
from smartsched.core.units import parse_positive_count
from smartsched.core.words import shortened
from smartsched.errors import UsageError

# A distribution has so many values, so that samples of it need not be compared to be different.
RESOLUTION = 10**6
_FEWEST = 2
_AS_IT_IS = "text"
_LISTED = "choice"


class Values(Struct, frozen=True):
    """The values of one parameter, in their order."""

    count: int
    text: Callable[[int], str]  # of the value at a position from 0 to count - 1
    given: tuple[str, ...] = ()  # those that the user wrote; all others are numbers
    is_distribution: bool = False


def values_of(words: Sequence[str]) -> Values:
    """`0.1 0.01`, `log:1e-5:1e-1:5`, `0 lin:1:2:5`, `uniform:0:1`. Raises UsageError."""
    if not words:
        raise UsageError("there are no values")
    parts = [_parsed(word) for word in words]
    if len(parts) > 1 and any(part.is_distribution for part in parts):
        raise UsageError("a distribution stands alone, without other values beside it")
    ranges = [(word, part) for word, part in zip(words, parts, strict=True) if not part.given]
    if len(ranges) > 1:
        raise UsageError(f"{_quoted(ranges[1][0])} is a second range: there can be one, and values")
    joined = _joined(parts) if len(parts) > 1 else parts[0]
    _check_given(joined.given)
    for _, part in ranges:
        _check_overlap(part, joined.given)
    return joined


def split_at_commas(text: str) -> list[str]:
    """The values in `NAME=a,b`; in `choice:a,b` and `text:a,b` commas mean something else."""
    if text.partition(":")[0] in (_LISTED, _AS_IT_IS):
        return [text]
    return text.split(",") if text else []


def _parsed(word: str) -> Values:
    kind, colon, rest = word.partition(":")
    if not colon or kind not in (*_RANGES, _AS_IT_IS, _LISTED):
        return _listed((word,))
    if kind == _AS_IT_IS:
        return _listed((rest,))
    if kind == _LISTED:
        if not rest:
            raise UsageError(f"{word!r} has no values: write it as choice:a,b,c")
        return _listed(tuple(rest.split(",")), is_distribution=True)
    return _range(word, kind, rest.split(":"))


def _range(word: str, kind: str, fields: Sequence[str]) -> Values:
    parse, counts, example = _RANGES[kind]
    hint = f"write it as {example}, or as {_AS_IT_IS}:{shortened(word, 40)} if it is no range"
    if len(fields) not in counts:
        raise UsageError(f"{_quoted(word)} cannot be read: {hint}")
    try:
        return parse(*fields)
    except UsageError as error:
        raise UsageError(f"{_quoted(word)}: {error}; {hint}") from error


def _listed(texts: tuple[str, ...], *, is_distribution: bool = False) -> Values:
    return Values(len(texts), texts.__getitem__, texts, is_distribution)


def _whole(first_text: str, last_text: str, step_text: str = "1") -> Values:
    first, last, step = map(parse_whole, (first_text, last_text, step_text))
    if step < 1:
        raise UsageError(f"a step of {step} leads nowhere")
    if last < first:
        raise UsageError(f"{first} is above {last}")
    return Values((last - first) // step + 1, lambda position: str(first + step * position))


def _linear(first_text: str, last_text: str, count_text: str) -> Values:
    first, last = parse_number(first_text), parse_number(last_text)
    steps = _parsed_count(count_text) - 1
    return Values(steps + 1, EvenSteps(first, (last - first) / steps, steps).text)


def _logarithmic(first_text: str, last_text: str, count_text: str) -> Values:
    first, last = map(_above_zero, (first_text, last_text))
    steps = _parsed_count(count_text) - 1
    return Values(steps + 1, EvenRatios(first, last, steps).text)


def _uniform(low_text: str, high_text: str) -> Values:
    low, high = parse_number(low_text), parse_number(high_text)
    if high <= low:
        raise UsageError(f"{low_text} is not below {high_text}")
    evenly = EvenSteps(low, (high - low) / RESOLUTION, RESOLUTION)
    return Values(RESOLUTION, evenly.text, is_distribution=True)


def _log_uniform(low_text: str, high_text: str) -> Values:
    low, high = map(_above_zero, (low_text, high_text))
    if high <= low:
        raise UsageError(f"{low_text} is not below {high_text}")
    evenly = EvenRatios(low, high, RESOLUTION)
    return Values(RESOLUTION, evenly.text, is_distribution=True)


def _above_zero(text: str) -> Fraction:
    number = parse_number(text)
    if number <= 0:
        raise UsageError(f"{text} is not above 0 and has no logarithm")
    return number


def _parsed_count(text: str) -> int:
    count = parse_positive_count(text)
    if count < _FEWEST:
        raise UsageError(f"{text!r} is too few: {_FEWEST} is the least")
    return count


def _joined(parts: Sequence[Values]) -> Values:
    if all(part.given for part in parts):
        return _listed(tuple(text for part in parts for text in part.given))
    starts = list(accumulate((part.count for part in parts), initial=0))
    spans = list(zip(parts, pairwise(starts), strict=True))

    def text(position: int) -> str:
        return next(p.text(position - start) for p, (start, end) in spans if position < end)

    return Values(starts[-1], text, tuple(text for part in parts for text in part.given))


def _check_given(given: Sequence[str]) -> None:
    """All that is wrong with values can be found without going through a range."""
    seen: set[str] = set()
    for text in given:
        if "\n" in text or "\r" in text:
            raise UsageError(f"{_quoted(text)} has a line break in it, and a command is one line")
        if text in seen:
            raise UsageError(f"{_quoted(text)} is there twice")
        seen.add(text)


def _check_overlap(numbers: Values, given: Sequence[str]) -> None:
    """A range may be long: values beside it are looked up in it."""
    for text in given:
        try:
            wanted = parse_number(text)
        except UsageError:
            continue
        if _nearest(numbers, wanted) == wanted:
            raise UsageError(f"{_quoted(text)} is there twice, alone and in a range")


def _nearest(numbers: Values, wanted: Fraction) -> Fraction:
    """By bisection, for ranges rise or fall all the way."""

    def number(position: int) -> Fraction:
        return parse_number(numbers.text(position))

    low, high = 0, numbers.count - 1
    sign = 1 if number(low) <= number(high) else -1
    while low < high:  # bisect cannot count beyond 2^63
        middle = (low + high) // 2
        if sign * number(middle) < sign * wanted:
            low = middle + 1
        else:
            high = middle
    return number(low)


def _quoted(text: str) -> str:
    return repr(shortened(text, 40))


_RANGES: dict[str, tuple[Callable[..., Values], tuple[int, ...], str]] = {
    "int": (_whole, (2, 3), "int:1:10 or int:0:100:10 (first, last, step)"),
    "lin": (_linear, (3,), "lin:0:1:11 (first, last, how many)"),
    "log": (_logarithmic, (3,), "log:1e-5:1e-1:5 (first, last, how many)"),
    "uniform": (_uniform, (2,), "uniform:0:1 (from, to)"),
    "loguniform": (_log_uniform, (2,), "loguniform:1e-5:1e-1 (from, to)"),
}
