"""What a journal came to up to some record, as JSON: whoever has it need not take the records up
to there apart again.

It only ever saves time: the journal stays the truth. A bookmark is believed by the very version of
smartsched that wrote it, whole, and beside a journal that begins byte for byte as the one did of
which it was made. Else it is as if there were none.
"""

import json
from functools import cache
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import fields

from smartsched.core.derived import fingerprint, of_fields
from smartsched.core.events import RunBegan
from smartsched.core.forms import Form
from smartsched.core.policy import Policy
from smartsched.core.records import as_object, event_of
from smartsched.core.sealed import seal, unseal
from smartsched.core.state import State
from smartsched.core.terms import Past, Terms

VERSION = 1
# What State has from elsewhere than the journal. All else is kept, whatever comes to be there.
SEEN = frozenset(
    {
        "policy", "gpus", "cards", "out_of_reach", "troubles", "hosts", "pilots", "meters",
        "footprints", "claimed", "refused", "local_offset", "unwanted", "held",
    }
)  # fmt: skip


class Mark(NamedTuple):
    """How far a journal has been written or read."""

    seq: int  # the number of the last record
    size_bytes: int  # up to its end
    crc: int  # CRC-32 of all these bytes


NOWHERE = Mark(0, 0, 0)


class Bookmark(Struct, frozen=True):
    mark: Mark
    past: Past


def encode(mark: Mark, past: Past, author: str) -> bytes:
    """One line. `author`: the version of smartsched."""
    terms = past.terms
    record = {
        "smartsched_bookmark": VERSION,
        "author": _author(author),
        "journal": mark._asdict(),
        "began": as_object(terms.began),
        "options": terms.options,
        "inputs": terms.inputs,
        "lists": terms.lists,
        "requests": list(terms.requests),
        "lost_after_seconds": terms.lost_after_seconds,
        "state": _state_form().to_json(past.state),
    }
    return seal(json.dumps(record, separators=(",", ":")).encode())


def decode(data: bytes, author: str, name: str) -> Bookmark | None:
    """None: it is not to be believed. `name`: of the run's folder."""
    text = unseal(data)
    if text is None:
        return None
    try:
        record = json.loads(text)
        if (record["smartsched_bookmark"], record["author"]) != (VERSION, _author(author)):
            return None
        return Bookmark(Mark(**record["journal"]), _past_of(record, name))
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def weight(state: State) -> int:
    """How many things have to be written down, about."""
    parts = (
        state.queue, state.set_aside, state.unnamed, state.dropped, state.given_up,
        state.interrupted, state.learned, state.runs, state.ended,
    )  # fmt: skip
    return sum(map(len, parts))


def _past_of(record: dict[str, Any], name: str) -> Past:
    began = event_of(record["began"])
    if not isinstance(began, RunBegan):
        raise TypeError("a journal begins with run_began")
    terms = Terms(
        began,
        record["options"],
        tuple(record["inputs"]),
        record["lists"],
        dict.fromkeys(record["requests"]),
        record["lost_after_seconds"],
    )
    state = State(Policy(began.id or name), **_state_form().of_json(record["state"]))
    state.footprints = dict(state.learned)
    return Past(terms, state)


@cache
def _state_form() -> Form:
    return of_fields(State, [field.name for field in fields(State) if field.name not in SEEN])


@cache
def _author(version: str) -> str:
    """What another version writes may be meant otherwise, though it is written alike."""
    return f"{version}/{fingerprint(State)}"
