"""Where one job goes, given the GPUs that are free."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from smartsched.core.model import GpuKey, GpuReading, GpuSample, PlacedGpu, Placement, Wait
from smartsched.core.selection import label
from smartsched.core.strangers import unexplained_bytes


@dataclass(frozen=True, slots=True)
class FreeGpu:
    """A GPU that may be given away now. Sorts in the order in which they are."""

    reading: GpuReading
    strangers_memory_bytes: int
    visible: str


def place(free: Sequence[FreeGpu], avoid: Collection[GpuKey] = ()) -> Placement | Wait:
    """Give the emptiest GPU that is not to be avoided; `free` is in that order."""
    if not free:
        return Wait("no GPU is free")
    chosen = next((gpu for gpu in free if gpu.reading.key not in avoid), None)
    if chosen is None:
        return Wait("a command that failed waits for another GPU than it failed on")
    return Placement((placed(chosen),))


def placed(gpu: FreeGpu) -> PlacedGpu:
    reading = gpu.reading
    unexplained = unexplained_bytes(reading) if isinstance(reading, GpuSample) else 0
    return PlacedGpu(reading.key, label(reading), gpu.visible, unexplained)


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
