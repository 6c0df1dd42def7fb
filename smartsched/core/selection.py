"""Which GPUs may be used at all: `--gpus`, `--exclude` and the inherited CUDA_VISIBLE_DEVICES."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from smartsched.core.model import UNREAD, GpuReading
from smartsched.errors import UsageError

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
_SLOT = re.compile(r"(\d{1,9}):(\d{1,9})", re.ASCII)
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]*", re.IGNORECASE | re.ASCII)
_MOST_INDICES = 1024


class ByIndex(Struct, frozen=True):
    index: int

    def __str__(self) -> str:
        return str(self.index)

    def names(self, reading: GpuReading) -> bool:
        return reading.index == self.index  # a card in MIG mode: all of its instances


class BySlot(Struct, frozen=True):
    """One MIG instance, as --dry-run prints it: card and slot."""

    index: int
    slot: int

    def __str__(self) -> str:
        return f"{self.index}:{self.slot}"

    def names(self, reading: GpuReading) -> bool:
        return (reading.index, reading.slot) == (self.index, self.slot)


class ByUuid(Struct, frozen=True):
    prefix: str

    def __str__(self) -> str:
        return self.prefix

    def names(self, reading: GpuReading) -> bool:
        return reading.key.uuid.lower().startswith(self.prefix.lower())


GpuId: TypeAlias = ByIndex | BySlot | ByUuid


def looks_like_ids(text: str) -> bool:
    """Whether a word of the command line can only be meant as GPU ids, not as a file."""
    return all(
        pattern.fullmatch(part) is not None
        for part in text.split(",")
        if part
        for pattern in [_UUID if part[0] in "GgMm" else _SLOT if ":" in part else _RANGE]
    ) and bool(text.strip(","))


def parse_ids(text: str) -> tuple[GpuId, ...]:
    """ "0,2-3" or UUIDs or prefixes of them, in order.

    Raises UsageError for what is none of these and for an id given twice.
    """
    ids: dict[GpuId, None] = {}  # in order
    for part in filter(None, (part.strip() for part in text.split(","))):
        for gpu_id in _parse_part(part):
            if gpu_id in ids:
                raise UsageError(f"names GPU {gpu_id} twice: once is enough")
            ids[gpu_id] = None
    if not ids:
        raise UsageError("names no GPU: give ids such as 0,2-3 or GPU-8f6a…")
    return tuple(ids)


def _parse_part(part: str) -> list[GpuId]:
    if _UUID.fullmatch(part):
        return [ByUuid(part)]
    if found := _SLOT.fullmatch(part):
        return [BySlot(int(found[1]), int(found[2]))]
    found = _RANGE.fullmatch(part)
    if found is None:
        raise UsageError(f"{part!r} is no GPU id: give an index, a range such as 0-3, or a UUID")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise UsageError(f"{part!r} runs backwards: write {last}-{first}")
    if last >= _MOST_INDICES:
        raise UsageError(f"{part!r}: no host has that many GPUs: see --dry-run")
    return [ByIndex(index) for index in range(first, last + 1)]


class Selection(Struct, frozen=True):
    wanted: tuple[GpuId, ...] | None = None  # None: all
    wanted_by: str = "--gpus"  # where the wish comes from, for messages
    excluded: tuple[GpuId, ...] = ()
    known: frozenset[str] = frozenset()  # UUIDs that the choice was already made of
    chosen: frozenset[str] = frozenset()  # those of them that it fell on

    def pinned(self, readings: Sequence[GpuReading]) -> "Selection":
        """The same choice, made for good: indices move when a card falls off the bus.

        Raises UsageError as `check` does. GPUs that turn up later are judged by the ids.
        """
        self.check(readings)
        known = frozenset(r.key.uuid for r in readings)
        chosen = frozenset(r.key.uuid for r in readings if self._names(r))
        return replace(self, known=known, chosen=chosen)

    def pinned_also(self, readings: Sequence[GpuReading]) -> "Selection":
        """The same choice, made for good for those of another host, where not every id has to be
        there."""
        known = frozenset(r.key.uuid for r in readings)
        chosen = frozenset(r.key.uuid for r in readings if self._names(r))
        return replace(self, known=self.known | known, chosen=self.chosen | chosen)

    def by_uuid(self, readings: Sequence[GpuReading]) -> "Selection":
        """The same choice of all there are, by what they are: whoever has one of these indices
        later is another, and not what was granted."""
        uuids = [reading.key.uuid for reading in readings if self._names(reading)]
        named = [ByUuid(uuid) for uuid in uuids if not uuid.startswith(UNREAD)]
        wanted = [gpu_id for gpu_id in self.wanted or () if isinstance(gpu_id, ByUuid)]
        return replace(self, wanted=tuple(dict.fromkeys([*wanted, *named])))

    def admits(self, reading: GpuReading) -> bool:
        if reading.key.uuid in self.known:
            return reading.key.uuid in self.chosen
        return self._names(reading)

    def _names(self, reading: GpuReading) -> bool:
        if any(gpu_id.names(reading) for gpu_id in self.excluded):
            return False
        return self.wanted is None or any(gpu_id.names(reading) for gpu_id in self.wanted)

    def check(self, readings: Sequence[GpuReading]) -> None:
        """Raises UsageError for an id that names none of these GPUs, or one UUID prefix several;
        and when nothing is left to choose from."""
        check_ids(self.wanted or (), self.wanted_by, readings)
        check_ids(self.excluded, "--exclude", readings)
        if readings and not any(map(self._names, readings)):
            raise UsageError(
                f"{self.wanted_by} and --exclude leave no GPU to choose from: leave one out"
            )


def check_ids(ids: Iterable[GpuId], source: str, readings: Sequence[GpuReading]) -> None:
    for gpu_id in ids:
        named = [reading for reading in readings if gpu_id.names(reading)]
        if not named:
            there = ", ".join(dict.fromkeys(label(reading) for reading in readings)) or "none"
            raise UsageError(f"{source}: there is no GPU {gpu_id} (there are: {there})")
        if isinstance(gpu_id, ByUuid) and len(named) > 1:
            which = ", ".join(reading.key.uuid for reading in named)
            raise UsageError(
                f"{source}: {gpu_id} names {len(named)} GPUs: {which}; write more of it"
            )


def label(reading: GpuReading, *, with_host: bool = False) -> str:
    """What people call it: "3", or "0:2" for a MIG instance in slot 2 of card 0; where there are
    several hosts, "gpu1/3"."""
    name = str(reading.index) if reading.slot is None else f"{reading.index}:{reading.slot}"
    return f"{reading.key.host}/{name}" if with_host else name


def without_host(labels: str) -> str:
    """ "gpu1/0,gpu1/3" -> "0,3": as it is called on its host."""
    return ",".join(name.rpartition("/")[2] for name in labels.split(","))


def visible_as(
    reading: GpuReading, out_of_reach: Collection[int], by: Literal["index", "uuid"]
) -> str:
    """The GPU's name for CUDA_VISIBLE_DEVICES.

    The index, since popular frameworks parse the variable as integers; but MIG instances have none,
    and where a card below is out of reach (`out_of_reach`: the indices of such cards on its host,
    whether or not they may be used) CUDA may skip it and number the rest anew.
    """
    unsure = any(index < reading.index for index in out_of_reach)
    if by == "uuid" or reading.slot is not None or unsure:
        return reading.key.uuid
    return str(reading.index)
