"""What the user decided about deciding; constant for a whole invocation."""

from typing import Literal

from msgspec import Struct

from smartsched.core.freeness import Thresholds
from smartsched.core.halt import Halt
from smartsched.core.hours import NO_CAP, Cap
from smartsched.core.preference import Preference
from smartsched.core.selection import Selection


class Policy(Struct, frozen=True):
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
    claims: bool = False  # other dispatchers are told which GPUs we are about to use
    keeps_open: bool = False  # more jobs may come when all are done
    tells: bool = False  # the user has a command to be run for each finished job
    gpus_per_job: int = 1  # unless a command wishes otherwise
    jobs_per_gpu: int | Literal["auto"] = 1  # at most; auto: as many as fit by what they use
    job_memory: int | Literal["auto"] | None = None  # bytes; auto: learned; None: nobody says
    job_utilization_percent: float | None = None  # of a job on its GPU; None: nobody says
    most_jobs: Cap = NO_CAP  # at once
    most_gpus: Cap = NO_CAP  # that runs of ours are on
    leave_free: Cap = NO_CAP  # GPUs that are free and stay so
    is_polite: bool = False  # what is left free is so by --polite, and not by a number of its own
    most_gpuless: int = 1  # jobs at once that need no GPU
    preference: Preference = Preference()
    on_contention: Literal["drain", "requeue", "ignore"] = "drain"
    asks_for_checkpoints: bool = False  # runs that give way are sent a signal to save their state
    yield_grace_seconds: float = 2.0  # between asking a run to give way and killing it
    spans_hosts: bool = False  # GPUs are called by their hosts' names, too
    hosts_may_come: bool = False  # others than those that were named: nothing is impossible
    gpus_per_pilot: int = 0  # hosts with so many may come as pilots; 0: none may
    oom_retries: int = 2  # further attempts of jobs that ran out of memory beside others of ours

    @property
    def loses_work(self) -> bool:
        """Whether runs are stopped for others, and may lose what they have computed."""
        return self.on_contention == "requeue"

    @property
    def most_per_gpu(self) -> int:
        """Runs of ours on one GPU. Where nobody says how many: beyond three, a GPU that is shared
        by time gains nothing."""
        return 3 if self.jobs_per_gpu == "auto" else self.jobs_per_gpu

    @property
    def packs_by_learning(self) -> bool:
        return self.jobs_per_gpu == "auto" or self.job_memory == "auto"

    @property
    def shares_evenly(self) -> bool:
        """Whether so many jobs are put on a GPU as the user said, whatever they use."""
        return self.jobs_per_gpu not in (1, "auto") and self.job_memory is None

    @property
    def stale_after_seconds(self) -> float:
        return self.interval_seconds + self.sample_deadline_seconds
