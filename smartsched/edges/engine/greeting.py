"""The first words on a connection: an agent says who it is and of which run, the dispatcher says of
which run it is and whether the agent may come in. Each leaves when the other is not its own."""

import json
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from smartsched.edges.engine.channel import Channel

_PROTOCOL = 1
_KEY = "smartsched-engine"
_LEAST_PATIENCE_SECONDS, _MOST_PATIENCE_SECONDS = 0.5, 3600.0


class RefusedError(Exception):
    """One of the two does not want to talk to the other; says why."""


class Greeting(Struct, frozen=True):
    """An agent's. `begun_at_ns`: when this agent began, by its host's clock; of two of one name
    the later one counts. `mark`: tells it from every other, also of that name.
    `patience_seconds`: how long it waits for a sign of life."""

    run_id: str
    name: str
    begun_at_ns: int
    mark: str
    patience_seconds: float


async def introduce(channel: Channel, greeting: Greeting) -> None:
    """Raises RefusedError and LostError."""
    channel.write(_encoded(asdict(greeting)))
    said = _decoded(await channel.read(), "the dispatcher")
    if said.get("run_id") != greeting.run_id:
        raise RefusedError(f"the dispatcher there is of another run, {said.get('run_id')!s:.80}")
    if why := said.get("refused"):
        raise RefusedError(f"the dispatcher refused: {why!s:.200}")
    channel.trust(_patience(said))


async def hear(channel: Channel, run_id: str) -> Greeting:
    """Raises RefusedError and LostError. An agent of another run is told so."""
    said = _decoded(await channel.read(), "an agent")
    try:
        greeting = Greeting(
            str(said["run_id"]),
            str(said["name"]),
            int(said["begun_at_ns"]),
            str(said["mark"]),
            _patience(said),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RefusedError("it did not say who it is") from error
    if greeting.run_id != run_id:
        refuse(channel, run_id, "your run is another one")
        raise RefusedError(
            f"the agent of {greeting.name:.80} is of another run, {greeting.run_id:.80}"
        )
    return greeting


def welcome(channel: Channel, run_id: str, greeting: Greeting) -> None:
    """Raises LostError."""
    facts = {"run_id": run_id, "patience_seconds": channel.silent_after_seconds}
    channel.write(_encoded(facts))
    channel.trust(greeting.patience_seconds)


def refuse(channel: Channel, run_id: str, why: str) -> None:
    """Raises LostError."""
    channel.write(_encoded({"run_id": run_id, "refused": why}))


def _patience(said: dict[str, Any]) -> float:
    try:
        seconds = float(said["patience_seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError("it did not say how long it waits") from error
    if not _LEAST_PATIENCE_SECONDS <= seconds <= _MOST_PATIENCE_SECONDS:
        raise RefusedError(f"it waits {seconds} s for a sign of life")
    return seconds


def _encoded(words: dict[str, object]) -> bytes:
    return json.dumps({_KEY: _PROTOCOL, **words}).encode()


def _decoded(frame: bytes, whom: str) -> dict[str, Any]:
    try:
        said = json.loads(frame)
    except ValueError as error:
        raise RefusedError(f"{whom} does not greet as smartsched does") from error
    if not isinstance(said, dict) or _KEY not in said:
        raise RefusedError(f"{whom} does not greet as smartsched does")
    if said[_KEY] != _PROTOCOL:
        raise RefusedError(
            f"{whom} has another version of smartsched (protocol {said[_KEY]!s:.20}, here "
            f"{_PROTOCOL}); install the same one on both"
        )
    return said
