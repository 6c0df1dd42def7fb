"""What the user decided about deciding; constant for a whole invocation."""

from dataclasses import dataclass
from typing import Literal

from smartsched.core.freeness import Thresholds
from smartsched.core.halt import Halt
from smartsched.core.selection import Selection


@dataclass(frozen=True, slots=True)
class Policy:
    run_id: str  # of its own, whatever the run is called
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
    retries: int = 0  # further attempts after a failure
    retry_delay_seconds: float = 1.0  # before the first of them; doubles each time
    timeout_seconds: float | None = None  # None: an attempt may take for ever
    halt: Halt | None = None  # None: go on however many jobs fail
    guard: bool = True  # withhold GPUs on which everything fails at once
    tells: bool = False  # the user has a command to be run for each finished job

    @property
    def stale_after_seconds(self) -> float:
        return self.interval_seconds + self.sample_deadline_seconds
