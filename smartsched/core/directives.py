"""What one command asks for itself, in a comment that the shell passes over.

    python train.py  # smartsched: gpus=2 mem=24GiB util=60% priority=5 timeout=2h name=big

Only a comment that begins with `smartsched:` is read, in lower case; any other is an ordinary one.
"""

import re
from collections.abc import Callable
from typing import Any

from smartsched.core import words
from smartsched.core.model import Wishes
from smartsched.core.units import parse_count, parse_percent, parse_positive_duration, parse_size
from smartsched.errors import UsageError

_MARK = "smartsched:"
_MOST_GPUS = 64
_LARGEST_PRIORITY = 1_000_000
_LONGEST_VALUE = 64
_NONE = Wishes()

# The parts of a line of shell text as far as it takes to tell a comment from any other "#": that
# is one only where a word could begin, not in quotes, behind a backslash or in "${x#y}" (POSIX.1,
# Shell Command Language, 2.3 Token Recognition). Nothing is tried twice: a command may be long.
_PART = re.compile(
    r"""(?:\A|[ \t\n;&|()<>]+)(?P<comment>\#[^\n]*)
      | [ \t\n;&|()<>]+
      | '[^']*'?
      | "(?:[^"\\]++|\\.)*+"?
      | `[^`]*`?
      | \\.?
      | \$\{[^}]*\}?
      | \$
      | [^ \t\n;&|()<>'"`\\$]+""",
    re.VERBOSE | re.DOTALL,
)
_DIRECTIVE = re.compile(r"#[ \t]*" + _MARK)
_MISSED = re.compile(r"#[ \t]*smartsched[ \t]*+:?[ \t]*+(\w+=\S*)", re.IGNORECASE)
_BETWEEN = re.compile(r"[\s,]+")
_PRIORITY = re.compile(r"[+-]?\d{1,7}", re.ASCII)
_NAME = re.compile(r"\w[\w.+:@/=-]*")


def wishes_in(command: str) -> Wishes:
    """Raises UsageError for a directive that cannot be meant as it is written."""
    found = _directives(command)
    if not found:
        _check_is_not_meant(command)
        return _NONE
    if len(found) > 1:
        raise UsageError(f"# {_MARK} is there twice: write all that is asked for behind one")
    start, end = found[0]
    return _parsed(command[command.index(_MARK, start) + len(_MARK) : end])


def _check_is_not_meant(command: str) -> None:
    """Raises UsageError for a comment that asks for something and misses the mark."""
    if "smartsched" not in command and "smartsched" not in command.lower():
        return  # nearly always
    for part in _PART.finditer(command):
        if part["comment"] and (missed := _MISSED.match(part["comment"])):
            wish = words.shortened(missed[1], _LONGEST_VALUE)
            raise UsageError(
                f"{_quoted(missed[0])} is no wish as it is written: make it # {_MARK} {wish}"
            )


def without_wishes(command: str) -> str:
    """The command itself: the same one, however its directive is edited.

    One that has no directive is given back as it is.
    """
    kept = command
    for start, end in reversed(_directives(command)):
        kept = kept[:start].rstrip(" \t\n") + kept[end:]
    return kept


def _directives(command: str) -> list[tuple[int, int]]:
    """From where to where; more than one is possible only in a command of several lines."""
    if _MARK not in command:  # nearly always, and lists have a million lines
        return []
    comments = (part for part in _PART.finditer(command) if part["comment"])
    return [part.span("comment") for part in comments if _DIRECTIVE.match(part["comment"])]


def _parsed(text: str) -> Wishes:
    wishes: dict[str, Any] = {}
    for pair in filter(None, _BETWEEN.split(text)):
        key, equals, value = pair.partition("=")
        if key not in _KEYS:
            raise _wrong(f"{_quoted(key)} cannot be asked for: there are {', '.join(_KEYS)}")
        if not value:
            missing = "value" if equals else "= and no value"
            raise _wrong(f"{key} has no {missing}: write it as {key}={_EXAMPLES[key]}")
        field, parse = _KEYS[key]
        if field in wishes:
            raise _wrong(f"{key} is there twice")
        wishes[field] = _value(key, value, parse)
    if not wishes:
        raise _wrong("asks for nothing: write it as gpus=2 mem=24GiB")
    return Wishes(**wishes)


def _value(key: str, value: str, parse: Callable[[str], Any]) -> Any:
    if len(value) > _LONGEST_VALUE:
        raise _wrong(f"{key}: {_quoted(value)} is longer than {_LONGEST_VALUE} characters")
    try:
        return parse(value)
    except UsageError as error:
        raise _wrong(f"{key}: {error}") from error


def _wrong(why: str) -> UsageError:
    return UsageError(f"# {_MARK} {why}")


def _quoted(text: str) -> str:
    return repr(words.shortened(text, 32))


def _gpus(text: str) -> int:
    count = parse_count(text)
    if count > _MOST_GPUS:
        raise UsageError(f"{text!r} is more than a command can have: {_MOST_GPUS} is the most")
    return count


def _memory(text: str) -> int:
    amount_bytes = parse_size(text)
    if amount_bytes == 0:
        raise UsageError(f"{text!r} is no memory at all: a command without a GPU says gpus=0")
    return amount_bytes


def _priority(text: str) -> int:
    if not _PRIORITY.fullmatch(text) or abs(int(text)) > _LARGEST_PRIORITY:
        most = f"{_LARGEST_PRIORITY:,}"
        raise UsageError(f"{text!r} is no whole number from -{most} to {most}")
    return int(text)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"{text!r} is no name: it takes letters, digits and . _ - + : @ / =,"
            " and begins with a letter or digit"
        )
    return text


_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "gpus": ("gpus", _gpus),
    "mem": ("memory_bytes", _memory),
    "util": ("utilization_percent", parse_percent),
    "priority": ("priority", _priority),
    "timeout": ("timeout_seconds", parse_positive_duration),
    "name": ("name", _name),
}
_EXAMPLES = {
    "gpus": "2", "mem": "24GiB", "util": "60%", "priority": "5", "timeout": "2h", "name": "big",
}  # fmt: skip
