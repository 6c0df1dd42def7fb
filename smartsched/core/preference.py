"""In which order free GPUs are given away: --prefer."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from smartsched.core.model import GpuReading
from smartsched.core.selection import GpuId, check_ids, looks_like_ids, parse_ids
from smartsched.errors import UsageError

Order = Literal["emptiest", "fullest", "first", "last"]
ORDERS: tuple[Order, ...] = ("emptiest", "fullest", "first", "last")


class Preference(Struct, frozen=True):
    """GPUs that are named go first, in that order; the others by `order`."""

    ids: tuple[GpuId, ...] = ()
    order: Order = "emptiest"

    def rank(self, reading: GpuReading, strangers_bytes: int) -> tuple[int, int]:
        """Smaller ones go first; among equals, those with the lower index."""
        named = (place for place, gpu_id in enumerate(self.ids) if gpu_id.names(reading))
        place = next(named, len(self.ids))
        match self.order:
            case "emptiest":
                return place, strangers_bytes
            case "fullest":
                return place, -strangers_bytes
            case "first":
                return place, reading.index
            case "last":
                return place, -reading.index

    def check(self, readings: Sequence[GpuReading]) -> None:
        """Raises UsageError for an id that names none of these GPUs, or one UUID prefix several."""
        check_ids(self.ids, "--prefer", readings)


def parse_preference(text: str) -> Preference:
    """ "3,2" (those first), "last", or "3,2,last". Raises UsageError."""
    *ids, last = [part.strip() for part in text.split(",")]
    for order in ORDERS:
        if last == order:
            return Preference(parse_ids(",".join(ids)) if ids else (), order)
    if not looks_like_ids(text):
        raise UsageError(
            f"{text!r} is no order: give ids such as 3,2, or one of {', '.join(ORDERS)}, or both"
        )
    return Preference(parse_ids(text))
