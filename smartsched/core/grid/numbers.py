"""Numbers as people write them, exactly, and back again: 3 times 0.1 is 0.3 here.

What is written must not depend on the platform, so nothing that is written depends on the last
digits of a logarithm.
"""

import math
import re
from fractions import Fraction
from itertools import count

from smartsched.errors import UsageError

_NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?", re.ASCII)
_SMALLEST, _LARGEST = Fraction(1, 10**300), Fraction(10**300)
_LARGEST_WRITTEN_OUT = 10**15
_KEPT_DIGITS = 6
# Of those that logarithms and powers yield: the platforms' libraries differ behind these.
_DEPENDABLE_DIGITS = 12
# Numbers that are as close as this to each other, relative to their size, may be written alike.
_CLOSEST = Fraction(1, 10**10)


def parse_number(text: str) -> Fraction:
    """The number that is written there, not the nearest binary one. Raises UsageError."""
    number = Fraction(text) if _NUMBER.fullmatch(text) else None
    if number is None or (number != 0 and not _SMALLEST <= abs(number) <= _LARGEST):
        raise UsageError(f"{text!r} is no number that can be used")
    return number


def parse_whole(text: str) -> int:
    """Raises UsageError."""
    if not re.fullmatch(r"[+-]?\d{1,30}", text, re.ASCII):
        raise UsageError(f"{text!r} is no whole number")
    return int(text)


def number_text(value: Fraction) -> str:
    """0.1, 3, 1e-05: as Python writes it, without a .0 at the end."""
    if value.denominator == 1 and abs(value) < _LARGEST_WRITTEN_OUT:
        return str(value.numerator)
    return repr(float(value)).removesuffix(".0")


class EvenSteps:
    """`first`, and so many `step` further on; differences are the same."""

    def __init__(self, first: Fraction, step: Fraction, count_of_steps: int) -> None:
        """Raises UsageError where neighbours could not be told apart."""
        largest = max(abs(first), abs(first + step * count_of_steps))
        if abs(step) <= largest * _CLOSEST:
            raise UsageError("the values are too close to each other to be told apart")
        self._first, self._step = first, step
        self._places = next(p for p in count() if abs(step) * 10**p >= 10 ** (_KEPT_DIGITS - 1))

    def text(self, steps: int) -> str:
        """Exact where that is a decimal number, else to about a millionth of a step."""
        value = self._first + self._step * steps
        exact = number_text(value)
        if Fraction(exact) == value:
            return exact
        return number_text(round(value, self._places))


class EvenRatios:
    """From `first` to `last`, both above 0, in so many steps; quotients are the same."""

    def __init__(self, first: Fraction, last: Fraction, count_of_steps: int) -> None:
        """Raises UsageError where neighbours could not be told apart."""
        self._first, self._last, self._steps = first, last, count_of_steps
        self._log_of_first = _log(first)
        self._log_of_all = _log(last) - self._log_of_first
        step = abs(self._log_of_all) / count_of_steps
        if step <= _CLOSEST:
            raise UsageError("the values are too close to each other to be told apart")
        self._digits = max(_KEPT_DIGITS, math.ceil(-math.log10(step)) + 1)

    def text(self, steps: int) -> str:
        """To six significant digits, or as many as it takes to tell neighbours apart."""
        if steps in (0, self._steps):
            return number_text(self._last if steps else self._first)
        value = math.exp(self._log_of_first + self._log_of_all * steps / self._steps)
        dependable = float(f"{value:.{_DEPENDABLE_DIGITS - 1}e}")
        return number_text(Fraction(f"{dependable:.{self._digits - 1}e}"))


def _log(value: Fraction) -> float:
    return math.log(value.numerator) - math.log(value.denominator)
