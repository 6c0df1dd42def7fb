"""Caps that differ by the hour of the day: `2@09-18,6@18-09`, or a plain `4`.

The hours are those of the clock on the wall. Where it is put forward or back, `next_change` is off
by as much: look again at the latest when it says.
"""

import re
from itertools import pairwise

from msgspec import Struct

from smartsched.errors import UsageError

_MINUTES_PER_DAY = 1440
_SECONDS_PER_DAY = 86400
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_HOURS = re.compile(r"(\d{1,2})(?::(\d\d))?", re.ASCII)
_HOW = "write it as 4, or by the hour as 2@09-18,6@18-09"


class Part(Struct, frozen=True):
    """From one minute of the day until another, both from midnight; across midnight if that is
    not the later one."""

    first_minute: int  # 0 to 1439
    end_minute: int  # 1 to 1440: the first one that is no longer part of it
    most: int

    def __str__(self) -> str:
        if self.is_whole_day():
            return str(self.most)
        return f"{self.most}@{_clock(self.first_minute)}-{_clock(self.end_minute)}"

    def is_whole_day(self) -> bool:
        return self.end_minute - self.first_minute == _MINUTES_PER_DAY

    def covers(self, minute: float) -> bool:
        if self.first_minute < self.end_minute:
            return self.first_minute <= minute < self.end_minute
        return minute >= self.first_minute or minute < self.end_minute


class Cap(Struct, frozen=True):
    """Hours that no part covers have no cap."""

    parts: tuple[Part, ...]  # in the order of their beginnings, none overlaps another

    def at(self, seconds_of_day: float) -> int | None:
        """Seconds since midnight on the wall clock; None: no cap at that time."""
        minute = seconds_of_day % _SECONDS_PER_DAY / 60
        return next((part.most for part in self.parts if part.covers(minute)), None)

    def next_change(self, seconds_of_day: float) -> float | None:
        """Seconds from then until another cap holds, more than 0; None: it never changes."""
        turns = {
            minute
            for part in self.parts
            for minute in (part.first_minute, part.end_minute % _MINUTES_PER_DAY)
            if self.at(minute * 60) != self.at(minute * 60 - 60)
        }
        waits = [(minute * 60 - seconds_of_day) % _SECONDS_PER_DAY for minute in turns]
        return min((wait or float(_SECONDS_PER_DAY) for wait in waits), default=None)

    def most(self) -> int | None:
        """At the hour that allows most; None: there is one without a cap."""
        return max(part.most for part in self.parts) if self._covers_the_day() else None

    def fewest(self) -> int | None:
        """At the hour that asks for least; None: there is one that asks for nothing."""
        return min(part.most for part in self.parts) if self._covers_the_day() else None

    def _covers_the_day(self) -> bool:
        minutes = sum(end - first for part in self.parts for first, end in _unrolled(part))
        return minutes >= _MINUTES_PER_DAY


NO_CAP = Cap(())


def parse_cap(text: str, least: int = 0) -> Cap:
    """`least`: the smallest number that makes sense. Raises UsageError."""
    pieces = [piece.strip() for piece in text.split(",")]
    parts = sorted((_part(piece, text, least) for piece in pieces), key=lambda p: p.first_minute)
    _check_overlaps(parts)
    return Cap(tuple(parts))


def words(cap: Cap) -> str:
    """As one would write it: `parse_cap` makes the same of it."""
    return ",".join(map(str, cap.parts))


def _part(piece: str, text: str, least: int) -> Part:
    number, at, hours = (word.strip() for word in piece.partition("@"))
    if not _NUMBER.fullmatch(number):
        raise UsageError(f"{text!r} is no cap: {_HOW}")
    if int(number) < least:
        raise UsageError(f"{piece!r} is too small: {least} is the least")
    if not at:
        if piece != text.strip():
            raise UsageError(f"{piece!r} has no hours, as all parts of {text!r} need: {_HOW}")
        return Part(0, _MINUTES_PER_DAY, int(number))
    first, _, end = hours.partition("-")
    return _spanning(_minute(first, piece), _minute(end, piece), int(number), piece)


def _minute(text: str, piece: str) -> int:
    found = _HOURS.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{piece!r} has no hours from and until: {_HOW}")
    minute = int(found[2] or 0)
    total = int(found[1]) * 60 + minute
    if minute > 59 or total > _MINUTES_PER_DAY:
        raise UsageError(f"{piece!r}: there is no {text.strip()} o'clock: 00:00 to 24:00")
    return total


def _spanning(first: int, end: int, number: int, piece: str) -> Part:
    if first == end or (first, end) == (_MINUTES_PER_DAY, 0):
        raise UsageError(f"{piece!r} is either nothing or a whole day: the latter is 00-24")
    return Part(first % _MINUTES_PER_DAY, end or _MINUTES_PER_DAY, number)


def _check_overlaps(parts: list[Part]) -> None:
    spans = sorted(
        ((first, end, part) for part in parts for first, end in _unrolled(part)),
        key=lambda span: span[:2],
    )
    for (_, end, one), (first, _, other) in pairwise(spans):
        if first < end:
            raise UsageError(
                f"{one} and {other} both say what holds at {_clock(first)}: end one there"
            )


def _unrolled(part: Part) -> list[tuple[int, int]]:
    if part.first_minute < part.end_minute:
        return [(part.first_minute, part.end_minute)]
    return [(0, part.end_minute), (part.first_minute, _MINUTES_PER_DAY)]


def _clock(minute: int) -> str:
    hours, minutes = divmod(minute, 60)
    return f"{hours:02d}:{minutes:02d}" if minutes else f"{hours:02d}"
