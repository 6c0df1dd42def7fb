"""How people who come to a GPU take its memory: bit by bit, or nearly all of it at once.

Of a process that has just appeared nobody can tell which it will be. Where some took everything at
once, as frameworks do that preallocate, only what is left to them at once helps; where all of many
began small, there is time.
"""

from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from smartsched.core.model import GpuProcess, GpuSample, Timestamp
from smartsched.core.shapes import shape_of

# Of the GPU's memory: less is no more than a context, and so much more at once is a grab.
_SMALL = 0.05
_GRABBED = 0.5
# Who has lived for so long has begun to allocate; who is gone before may not have got his memory.
_SETTLED_SECONDS = 10.0


_MOST_PROGRAMS = 200  # that are remembered, on each GPU


class Manners(Struct):
    """How some of those who came took their memory."""

    calm: int = 0  # bit by bit
    grabs: int = 0  # most of it at once; or they went at once where runs of ours were

    def add(self, other: "Manners") -> None:
        self.calm += other.calm
        self.grabs += other.grabs


class _Small(Struct):
    """Somebody who has still to show how he takes his memory."""

    program: str
    came: Timestamp
    memory_bytes: int = 0  # when he was last seen


class Newcomers(Struct):
    """To one GPU, while it was watched."""

    all: Manners = field(default_factory=Manners)
    programs: dict[str, Manners] = field(default_factory=dict)  # by the shape of their command
    _known: set[int] | None = None  # None: nobody has looked yet
    _small: dict[int, _Small] = field(default_factory=dict)  # by pid

    def see(
        self,
        sample: GpuSample,
        processes: Iterable[GpuProcess],
        now: Timestamp,
        *,
        beside_ours: bool,
    ) -> None:
        there = {process.pid: process for process in processes}
        if self._known is not None:
            for pid in there.keys() - self._known:
                self._small[pid] = _Small(shape_of(there[pid].command or ""), now)
        self._known = set(there)
        for pid, small in list(self._small.items()):
            shown = _manners(small, there.get(pid), sample, now, beside_ours=beside_ours)
            if shown is not None:
                self._remember(small.program, shown)
                del self._small[pid]

    @property
    def has_undecided(self) -> bool:
        return bool(self._small)

    def is_undecided(self, pid: int) -> bool:
        """Whether this process came just now, and has still to show how it takes its memory."""
        return pid in self._small

    def undecided(self, sample: GpuSample) -> Iterator[str]:
        """The programs of those who hold little so far and may yet take everything at once."""
        for small in self._small.values():
            if small.memory_bytes <= _SMALL * sample.memory_total_bytes:
                yield small.program

    def _remember(self, program: str, shown: Manners) -> None:
        self.all.add(shown)
        if program and (program in self.programs or len(self.programs) < _MOST_PROGRAMS):
            self.programs.setdefault(program, Manners()).add(shown)


def _manners(
    small: _Small,
    process: GpuProcess | None,
    sample: GpuSample,
    now: Timestamp,
    *,
    beside_ours: bool,
) -> Manners | None:
    """None: that has still to be seen."""
    has_had_time = now - small.came >= _SETTLED_SECONDS
    if process is None:
        return Manners(grabs=int(beside_ours and not has_had_time))
    held = process.memory_bytes or 0
    if held - small.memory_bytes >= _GRABBED * sample.memory_total_bytes:
        return Manners(grabs=1)
    small.memory_bytes = held
    return Manners(calm=1) if has_had_time else None
