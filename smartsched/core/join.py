"""What an agent is told once, by whoever starts it: whose it is, where the dispatcher is, and how
runs are started there.

It holds a key: it goes through stdin, or lies in a file for the user alone.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from smartsched.core.credentials import Credentials
from smartsched.errors import BadMessageError

VERSION = 1
_KIND = "smartsched_join"


@dataclass(frozen=True, slots=True)
class Join:
    version: str  # of smartsched
    run_id: str
    run_name: str
    host: str  # as the dispatcher calls it; "": as the machine calls itself
    addresses: tuple[str, ...]  # where the dispatcher may be, host:port
    credentials: Credentials
    sampler_arguments: tuple[str, ...]
    directory: str  # where the commands run
    other_directory: str  # where the first is not there; "": nowhere
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


def encode(join: Join) -> bytes:
    return json.dumps({_KIND: VERSION, **asdict(join)}, indent=1).encode() + b"\n"


def decode(data: bytes) -> Join:
    """Raises BadMessageError."""
    try:
        value = json.loads(data)
        if value.get(_KIND) != VERSION:
            raise BadMessageError("it is no file for joining a run, or of another version")
        known = {field.name: value[field.name] for field in fields(Join)}
        known["credentials"] = Credentials(**known["credentials"])
        for name in ("addresses", "sampler_arguments"):
            known[name] = tuple(map(_text, known[name]))
        return _checked(Join(**known))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadMessageError(f"it is no file for joining a run: {error}") from error


def _checked(join: Join) -> Join:
    for name in ("version", "run_id", "run_name", "host", "directory", "other_directory", "logs"):
        _text(getattr(join, name))
    if join.lease_seconds is not None and not 0 < float(join.lease_seconds) < 1e9:
        raise ValueError(f"no lease: {join.lease_seconds!r}")
    return join


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
