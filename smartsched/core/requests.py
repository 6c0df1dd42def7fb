"""What a user may ask of a living run from another terminal, and how that is answered.

A request is an object of JSON with `smartsched_request` (the version), `verb` and what the verb
needs:

    add       commands: pairs of command and source; directory: where they run
    cancel    jobs: numbers, ranges or names; all: everything, also what is still to be read
    retry     jobs: likewise; failed: all that failed
    set       options: values by the name of the option, null: as by default
    pause, continue, status

What is asked for twice under one id is done once.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from msgspec import Struct, field

from smartsched.core.lines import spec_of
from smartsched.core.model import BadLine, JobSpec
from smartsched.core.words import shortened
from smartsched.errors import UsageError

VERSION = 1
# A list that is longer is given in several requests.
MOST_COMMANDS = 1000
_LONGEST_REASON = 200


class Add(Struct, frozen=True):
    id: str
    specs: tuple[JobSpec, ...]


class Cancel(Struct, frozen=True):
    id: str
    jobs: tuple[str, ...]
    everything: bool = False


class Retry(Struct, frozen=True):
    id: str
    jobs: tuple[str, ...]
    all_failed: bool = False


class Pause(Struct, frozen=True):
    id: str


class Continue(Struct, frozen=True):
    id: str


class SetOptions(Struct, frozen=True):
    id: str
    options: Mapping[str, Any]


class Ask(Struct, frozen=True):
    """How the run stands."""

    id: str


class Unusable(Struct, frozen=True):
    """No request at all."""

    id: str
    why: str


Request: TypeAlias = Add | Cancel | Retry | Pause | Continue | SetOptions | Ask | Unusable


class Answer(Struct, frozen=True):
    """`done`: whether it was; if not, nothing of it was. `words`: for people."""

    done: bool
    words: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def request_of(id: str, text: bytes) -> Request:  # noqa: A002  # it is what they all call it
    """What a request says; Unusable: not a thing that can be done."""
    try:
        asked = json.loads(text)
        if not isinstance(asked, dict) or asked.get("smartsched_request") != VERSION:
            return Unusable(id, "it is no request of this version of smartsched")
        return _request(id, asked)
    except UsageError as error:
        return Unusable(id, str(error))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = shortened(f"{type(error).__name__}: {error}", _LONGEST_REASON)
        return Unusable(id, f"it is no whole request: {why}")


def _request(  # noqa: C901, PLR0911  # a table: one case a verb
    id: str,  # noqa: A002  # likewise
    asked: Mapping[str, Any],
) -> Request:
    match asked["verb"]:
        case "add":
            return Add(id, _specs(asked["commands"], _text(asked["directory"])))
        case "cancel":
            return Cancel(id, _texts(asked["jobs"]), everything=asked.get("all") is True)
        case "retry":
            return Retry(id, _texts(asked["jobs"]), all_failed=asked.get("failed") is True)
        case "set":
            if not isinstance(asked["options"], dict):
                raise TypeError("options is no object")
            return SetOptions(id, asked["options"])
        case "pause":
            return Pause(id)
        case "continue":
            return Continue(id)
        case "status":
            return Ask(id)
        case other:
            return Unusable(id, f"there is no verb {shortened(repr(other), _LONGEST_REASON)}")


def _specs(commands: Any, directory: str) -> tuple[JobSpec, ...]:
    specs = []
    for command, source in map(_list, _list(commands)):
        spec = spec_of(_text(command), _text(source), directory)
        if isinstance(spec, BadLine):
            raise UsageError(f"{spec.source}: {spec.why}")
        specs.append(spec)
    return tuple(specs)


def _text(value: Any) -> str:
    """As bytes can say it: those that are not UTF-8 travel as surrogate escapes."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    if b"\0" in value.encode("utf-8", "surrogateescape"):
        raise ValueError("it holds a NUL byte, which no shell can take")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_text(value) for value in _list(values))


def _list(value: Any) -> list[Any]:
    """Of a text one could go through the letters: "12" is not the jobs 1 and 2."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value
