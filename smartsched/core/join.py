"""What an agent is told once, by whoever starts it: whose it is, where the dispatcher is, and how
runs are started there.

It holds a key: it goes through stdin, or lies in a file for the user alone.
"""

import json
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, fields

from smartsched.core.credentials import Credentials
from smartsched.core.forms import FLAG, INTEGER, TEXT, TIME, Form, list_of, optional
from smartsched.core.words import shortened
from smartsched.errors import BadMessageError

VERSION = 1
_KIND = "smartsched_join"
_LONGEST_REASON = 200
_LONGEST_SECONDS = 1e9


class Join(Struct, frozen=True):
    version: str  # of smartsched
    run_id: str
    run_name: str
    host: str  # as the dispatcher calls it; "": as the machine calls itself
    addresses: tuple[str, ...]  # where the dispatcher may be, host:port
    credentials: Credentials
    sampler_arguments: tuple[str, ...]
    directory: str  # where the commands run that name no other folder
    other_directory: str  # where they run if that is not there; "": nowhere
    logs: str  # the folder for the jobs' logs
    logs_mark: str  # a file there of this name shows that the dispatcher can read it
    sends_logs: bool  # where it cannot
    shell: str | None  # None: the usual one there
    nice: int | None
    checkpoint_signal: int | None
    claims: str | None  # a folder; "": the usual one; None: there are no claims
    lease_seconds: float | None  # None: runs go on whoever is out of reach
    grace_seconds: float
    patience_seconds: float  # beyond it the sampler is given up
    warn_seconds: float = 60.0  # before a batch job's time is over, its jobs are told


def encode(join: Join) -> bytes:
    fields = asdict(join) | {"credentials": asdict(join.credentials)}
    return json.dumps({_KIND: VERSION, **fields}, indent=1).encode() + b"\n"


def decode(data: bytes) -> Join:
    """Raises BadMessageError."""
    try:
        value = json.loads(data)
        if value.get(_KIND) != VERSION:
            raise BadMessageError("it is no file for joining a run, or of another version")
        return Join(**{f.name: _FORMS[f.name].of_json(value[f.name]) for f in fields(Join)})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = shortened(str(error), _LONGEST_REASON)
        raise BadMessageError(f"it is no file for joining a run: {why}") from error


def _credentials(value: Any) -> Credentials:
    """What is wrong with a key is not said by showing it."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TypeError("its credentials are no texts")
    return Credentials(**{field.name: value[field.name] for field in fields(Credentials)})


def _seconds(value: Any) -> float:
    seconds: float = TIME.of_json(value)
    if not 0 <= seconds < _LONGEST_SECONDS:
        raise ValueError(f"{value!r} is no span of time")
    return seconds


def _lease(value: Any) -> float:
    seconds = _seconds(value)
    if seconds == 0:
        raise ValueError(f"no lease: {value!r}")
    return seconds


_SECONDS = Form(float, _seconds)
_FORMS: dict[str, Form] = {
    "version": TEXT,
    "run_id": TEXT,
    "run_name": TEXT,
    "host": TEXT,
    "addresses": list_of(TEXT),
    "credentials": Form(asdict, _credentials),
    "sampler_arguments": list_of(TEXT),
    "directory": TEXT,
    "other_directory": TEXT,
    "logs": TEXT,
    "logs_mark": TEXT,
    "sends_logs": FLAG,
    "shell": optional(TEXT),
    "nice": optional(INTEGER),
    "checkpoint_signal": optional(INTEGER),
    "claims": optional(TEXT),
    "lease_seconds": optional(Form(float, _lease)),
    "grace_seconds": _SECONDS,
    "patience_seconds": _SECONDS,
    "warn_seconds": _SECONDS,
}
