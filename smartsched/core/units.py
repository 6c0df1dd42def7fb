"""Quantities as people write them on a command line; `words` is the other direction.

Every parser raises UsageError with what is wrong and how to write it.
"""

import math
import re

from smartsched.core import words
from smartsched.errors import UsageError

_UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE | re.ASCII)
_LARGEST_SIZE = 2.0**60
_NUMBER = re.compile(r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", re.ASCII)
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_SECONDS = 365 * 86400.0
SHORTEST_INTERVAL_SECONDS = 0.05


def parse_size(text: str) -> int:
    """ "4GiB", "4G" and "4gb" are 4 x 2^30 bytes, as nvidia-smi counts; a unit is required."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or not found[2]:
        raise UsageError(f"{text!r} is no size: write it as 4GiB or 512MiB")
    size = float(found[1]) * 1024.0 ** _UNITS[found[2].upper()]
    if size > _LARGEST_SIZE:
        raise UsageError(
            f"{words.shortened(text, 40)!r} is more than there is anywhere: write it as 4GiB"
        )
    return round(size)


def parse_percent(text: str) -> float:
    number = text.strip().removesuffix("%").rstrip()
    value = float(number) if _NUMBER.fullmatch(number) else math.nan
    if not 0 <= value <= 100:
        raise UsageError(f"{text!r} is no percentage from 0% to 100%: write it as 20%")
    return value


def parse_duration(text: str) -> float:
    """ "10s", "2h", "1m30s", "500ms"; a bare number is seconds."""
    stripped = text.strip()
    parts = list(_DURATION.finditer(stripped))
    whole = "".join(part[0] for part in parts)
    bare = sum(1 for part in parts if not part[2])
    if not stripped or whole != stripped or (bare and len(parts) > 1):
        raise UsageError(f"{text!r} is no duration: write it as 10s, 5m or 2h")
    seconds = sum(float(part[1]) * _SECONDS[part[2]] for part in parts)
    if seconds > _LONGEST_SECONDS:
        raise UsageError(f"{text!r} is longer than a year: 365d is the most")
    return seconds


def parse_positive_duration(text: str) -> float:
    """A limit: nothing could be done in no time."""
    seconds = parse_duration(text)
    if seconds <= 0:
        raise UsageError(f"{text!r} leaves no time for anything: give more than that")
    return seconds


def parse_interval(text: str) -> float:
    """Between two samples, in seconds."""
    seconds = parse_duration(text)
    if seconds < SHORTEST_INTERVAL_SECONDS:
        raise UsageError(f"{text} is too short; 50ms is the shortest")
    return seconds


def parse_positive_count(text: str) -> int:
    number = parse_count(text)
    if number < 1:
        raise UsageError(f"{text!r} is too few: 1 is the least")
    return number


def parse_count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        raise UsageError(f"{text!r} is no whole number: write it as 3")
    return int(text.strip())
