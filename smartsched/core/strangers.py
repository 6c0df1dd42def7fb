"""Whose use of a GPU is whose: what other people hold of it, and what our own run does."""

from collections.abc import Collection

from msgspec import Struct

from smartsched.core.model import GpuProcess, GpuSample, RunKey, Timestamp

# What the driver's accounting may be off by between two reads of an unchanged GPU: page tables and
# per-context bookkeeping of a few MiB each. A CUDA context takes several hundred MiB.
SLACK_BYTES = 128 * 2**20

# They draw the screen; a GPU with a monitor is as good as any. Their memory still counts.
DISPLAY_SERVERS = frozenset(
    {
        "Xorg", "X", "Xwayland", "Xvfb", "gnome-shell", "kwin_x11", "kwin_wayland", "plasmashell",
        "mutter", "sddm", "gdm-x-session", "gdm-wayland-session", "lightdm", "weston", "sway",
        "cinnamon", "xfwm4", "compiz", "nvidia-persistenced",
    }
)  # fmt: skip


class Ignored(Struct, frozen=True):
    """Whom the user told us to count as not there."""

    users: frozenset[str] = frozenset()
    pids: frozenset[int] = frozenset()

    def covers(self, process: GpuProcess) -> bool:
        return process.pid in self.pids or process.user in self.users


class Hold(Struct, frozen=True):
    """A run of ours has its part of a GPU, until its processes are gone and its memory came
    back."""

    run: RunKey
    tag: str  # what the run's processes carry in their environment
    since: Timestamp
    unexplained_before_bytes: int  # used by no visible process, before the first run of ours
    pid: int | None  # None: not launched yet
    cleared_at: Timestamp | None  # None: its processes may still live
    reserved_bytes: int | None = None  # promised to it; None: all of the GPU
    percent: float = 100.0  # of the GPU's time that it is expected to need

    def owns(self, process: GpuProcess) -> bool:
        if process.run_tag is not None and process.run_tag == self.tag:
            return True
        if self.pid is None:
            return False
        return self.pid in (process.pid, process.session) or self.pid in process.ancestors


class StrangersUse(Struct, frozen=True):
    """What other people use of a GPU at one moment, those left out whom the user ignores."""

    memory_bytes: int
    free_bytes: int  # what would be free if none of ours were there
    processes: tuple[GpuProcess, ...]
    compute: tuple[GpuProcess, ...]  # those of them that may compute: no display servers
    only_ignored: bool  # processes are visible, and every one is of somebody to be ignored


def unexplained_bytes(sample: GpuSample) -> int:
    """Memory in use that no process which the host knows accounts for.

    The driver goes on listing a process for a moment after its end, and in a container it lists
    pids of another namespace: what the host does not know explains nothing.
    """
    known = sum(process.memory_bytes or 0 for process in sample.processes if is_known(process))
    return max(0, sample.memory_used_bytes - known)


def is_known(process: GpuProcess) -> bool:
    return process.user is not None


def strangers_use(
    sample: GpuSample, holds: Collection[Hold], ignored: Ignored, *, unexplained_is_theirs: bool
) -> StrangersUse:
    """Split a sample. While runs of ours are there, memory that nobody visible accounts for and
    that was not there before is taken for ours unless the caller has seen it stay unexplained."""
    others = [p for p in sample.processes if not holds or (is_known(p) and not _ours(p, holds))]
    counted = tuple(process for process in others if not ignored.covers(process))
    memory = sum(process.memory_bytes or 0 for process in counted if is_known(process))
    unexplained = unexplained_bytes(sample)
    if holds and not unexplained_is_theirs:
        unexplained = min(unexplained, unexplained_before(holds))
    memory += unexplained
    ignored_bytes = sum(p.memory_bytes or 0 for p in others if ignored.covers(p) and is_known(p))
    ours = 0 if not holds else max(0, sample.memory_used_bytes - memory - ignored_bytes)
    return StrangersUse(
        memory_bytes=memory,
        free_bytes=sample.memory_free_bytes + ours,
        processes=counted,
        compute=tuple(process for process in counted if is_compute(process)),
        only_ignored=bool(others) and not counted,
    )


def _ours(process: GpuProcess, holds: Collection[Hold]) -> bool:
    return any(hold.owns(process) for hold in holds)


def unexplained_before(holds: Collection[Hold]) -> int:
    """What was used by no visible process before there was any run of ours."""
    return min(hold.unexplained_before_bytes for hold in holds)


def is_compute(process: GpuProcess) -> bool:
    return process.kind == "compute" and program(process) not in DISPLAY_SERVERS


def program(process: GpuProcess) -> str:
    """The name of what it runs, without path and arguments."""
    first = (process.command or "").split(" ", 1)[0]
    return first.rsplit("/", 1)[-1]


def memory_is_back(sample: GpuSample, hold: Hold) -> bool:
    """Whether nothing of an ended run is left on the GPU."""
    if any(hold.owns(process) for process in sample.processes):
        return False
    return unexplained_bytes(sample) <= hold.unexplained_before_bytes + SLACK_BYTES
