"""What the user decided about deciding; constant for a whole invocation."""

from dataclasses import dataclass
from typing import Literal

from smartsched.core.freeness import Thresholds
from smartsched.core.selection import Selection


@dataclass(frozen=True, slots=True)
class Policy:
    run_name: str
    thresholds: Thresholds = Thresholds()
    selection: Selection = Selection()
    visible_by: Literal["index", "uuid"] = "index"
    grace_seconds: float = 10.0  # between asking a run to end and killing it
    memory_back_seconds: float = (
        30.0  # after which a GPU that is not cleared is said to be withheld
    )
    interval_seconds: float = 1.0  # between samples
    sample_deadline_seconds: float = 5.0  # beyond the interval: a GPU last seen earlier is unknown
    wait_timeout_seconds: float | None = None  # None: wait for a first free GPU for ever

    @property
    def stale_after_seconds(self) -> float:
        return self.interval_seconds + self.sample_deadline_seconds
