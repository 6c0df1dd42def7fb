"""How people who come to a GPU take its memory: bit by bit, or nearly all of it at once.

Of a process that has just appeared nobody can tell which it will be. Where some took everything at
once, as frameworks do that preallocate, only what is left to them at once helps; where all of many
began small, there is time.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from smartsched.core.model import GpuProcess, GpuSample, Timestamp

# Of the GPU's memory: less is no more than a context, and so much more at once is a grab.
_SMALL = 0.05
_GRABBED = 0.5
# Who has lived for so long has begun to allocate; who is gone before may not have got his memory.
_SETTLED_SECONDS = 10.0


@dataclass(slots=True)
class Newcomers:
    """To one GPU, while it was watched."""

    calm: int = 0  # that took their memory bit by bit
    grabs: int = 0  # that took most of it at once, or went at once where runs of ours were
    _known: set[int] | None = None  # None: nobody has looked yet
    _small: dict[int, tuple[Timestamp, int]] = field(default_factory=dict)  # came when, has what

    def see(
        self,
        sample: GpuSample,
        processes: Iterable[GpuProcess],
        now: Timestamp,
        *,
        beside_ours: bool,
    ) -> None:
        held = {process.pid: process.memory_bytes or 0 for process in processes}
        if self._known is not None:
            for pid in held.keys() - self._known:
                self._small[pid] = (now, 0)
        self._known = set(held)
        for pid, (came, before) in list(self._small.items()):
            if pid not in held:
                self.grabs += beside_ours and now - came < _SETTLED_SECONDS
            elif held[pid] - before >= _GRABBED * sample.memory_total_bytes:
                self.grabs += 1
            elif now - came >= _SETTLED_SECONDS:
                self.calm += 1
            else:
                self._small[pid] = (came, held[pid])
                continue
            del self._small[pid]

    def has_settled(self, sample: GpuSample) -> bool:
        """Whether nobody is there who has still to show how he takes his memory."""
        total = sample.memory_total_bytes
        return all(before > _SMALL * total for _, before in self._small.values())
