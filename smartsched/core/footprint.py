"""What runs use of the GPUs they were given, and what is learned from it for their siblings.

A run is measured while it lasts (Meter); what the runs of a command shape came to is its Footprint.
"""

from msgspec import Struct, field

from smartsched.core.model import GpuKey, Timestamp

# A run holds what it will hold so long after it was first seen to compute (50 of 50 measured
# trainings did); until then what was promised to it counts, and it teaches nothing.
RAMP_SECONDS = 30.0
# A process that has a CUDA context holds several hundred MiB before it allocates anything.
CONTEXT_BYTES = 512 * 2**20
# A fifth of all trainings grow by 8-20 % after their first epoch.
_GROWTH = 1.30
_FEWEST_SAMPLES = 2
# What a sample counts for, by the time since the one before: where nothing changes there are few.
_LEAST_SECONDS, _MOST_SECONDS = 0.1, 15.0
_FADES = 0.05  # of what the last run differs from the highest, the highest gives in


def with_growth(peak_bytes: int) -> int:
    """What a run that has ramped may come to hold."""
    return round(peak_bytes * _GROWTH) + CONTEXT_BYTES // 2


class Footprint(Struct, frozen=True):
    """What runs of one command shape that ended well came to."""

    runs: int
    peak_bytes: int  # the most that any of them held on one GPU
    utilization_percent: float | None  # while it computed; None: never seen alone enough to tell
    mean_seconds: float
    longest_seconds: float

    def with_run(
        self, peak_bytes: int, utilization_percent: float | None, seconds: float
    ) -> "Footprint":
        """What was highest counts, but the less the longer ago that was: programs change."""
        known = [p for p in (self.utilization_percent, utilization_percent) if p is not None]
        return Footprint(
            runs=self.runs + 1,
            peak_bytes=max(peak_bytes, round(_faded(self.peak_bytes, peak_bytes))),
            utilization_percent=max(known, default=None),
            mean_seconds=self.mean_seconds + (seconds - self.mean_seconds) / (self.runs + 1),
            longest_seconds=max(seconds, _faded(self.longest_seconds, seconds)),
        )


def _faded(before: float, now: float) -> float:
    return before - _FADES * (before - now)


NO_RUNS = Footprint(0, 0, None, 0.0, 0.0)


class Meter(Struct):
    """What a run has been seen to use so far."""

    used_bytes: dict[GpuKey, int] = field(default_factory=dict)  # at the last sample
    peak_bytes: int = 0  # on the GPU where it was most
    samples: int = 0  # in which it was there
    active_at: Timestamp | None = None  # None: it has not been seen to compute
    busy_samples: int = 0
    busy_percent: float = 0.0  # their mean, each for the time since the one before
    busy_seconds: float = 0.0  # so long altogether
    seen_at: dict[GpuKey, Timestamp] = field(default_factory=dict)  # the last sample
    watched_since: Timestamp | None = None  # None: it has not been looked for yet
    is_blind: bool = False  # the driver does not say what is ours: nothing is to be learned
    was_alone: bool = True  # no other run of ours was on its GPUs while it lasted
    elsewhere: dict[GpuKey, Timestamp] = field(default_factory=dict)  # GPUs that it was not given

    def take_in(self, gpu: GpuKey, used_bytes: int, percent: float | None, at: Timestamp) -> None:
        """`percent`: of the GPU's time that it computed; None: nobody can tell."""
        self.used_bytes[gpu] = used_bytes
        if used_bytes <= 0:
            return
        self.samples += 1
        self.peak_bytes = max(self.peak_bytes, used_bytes)
        if percent is None or percent > 0:
            self.active_at = at if self.active_at is None else self.active_at
        if percent:
            self.busy_samples += 1
            seconds = min(max(at - self.seen_at.get(gpu, at), _LEAST_SECONDS), _MOST_SECONDS)
            self.busy_seconds += seconds
            self.busy_percent += (percent - self.busy_percent) * seconds / self.busy_seconds
        self.seen_at[gpu] = at

    def has_ramped(self, now: Timestamp) -> bool:
        return self.active_at is not None and now - self.active_at >= RAMP_SECONDS

    @property
    def utilization_percent(self) -> float | None:
        return self.busy_percent if self.busy_samples >= _FEWEST_SAMPLES else None

    @property
    def teaches(self) -> bool:
        """Whether enough was seen of it to be held against its siblings."""
        return not self.is_blind and self.samples >= _FEWEST_SAMPLES
