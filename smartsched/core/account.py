"""What a run came to, by its journal: every attempt as a bar in time, every job as a row."""

from collections.abc import Iterable
from typing import Literal, TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from smartsched.core import words
from smartsched.core.apply import apply
from smartsched.core.endings import how_it_ended
from smartsched.core.events import (
    DrainRequested,
    Event,
    FailuresDropped,
    GpuWithheld,
    Halted,
    JobAccepted,
    JobFinished,
    JobRequeued,
    JobsAdded,
    JobsCancelled,
    JobsRetried,
    LineRejected,
    OptionsSet,
    RunAdopted,
    RunBegan,
    RunClosed,
    RunContinued,
    RunExited,
    RunLaunched,
    RunMeasured,
    RunPaused,
    RunResumed,
    RunStopping,
    StopRequested,
    WaitTimedOut,
)
from smartsched.core.model import GpuKey, JobId, JobSpec, Placement, RunKey, Timestamp
from smartsched.core.policy import Policy
from smartsched.core.state import State
from smartsched.core.totals import Totals

BarEnd: TypeAlias = Literal[
    "ok", "failed", "cancelled", "tried again", "gave way", "stopped", "running"
]
"""What became of one attempt."""
JobStatus: TypeAlias = Literal[
    "ok", "failed", "cancelled", "stopped", "running", "waiting", "left out"
]
"""What became of a job; left out: it is not to be done any more."""

_HOW_REQUEUED = {
    "lost": "it vanished",
    "survivor": "stopped, to be started anew",
    "contention": "gave way to other people",
    "leaving": "stopped, since its host was to go",
    "strangers_grew": "out of memory, since others took more",
    "packed_too_tightly": "out of memory beside others of this run",
}


class Bar(Struct, frozen=True):
    """One attempt at a job."""

    run: RunKey
    placement: Placement
    begin: Timestamp
    end: Timestamp | None  # None: as far as is known it runs
    became: BarEnd = "running"
    how: str = ""
    to_whom: str = ""  # it gave way


class JobRow(Struct):
    job: JobId
    spec: JobSpec
    accepted_at: Timestamp
    status: JobStatus = "waiting"
    how: str = ""
    attempts: int = 0
    began_at: Timestamp | None = None  # its first attempt
    ended_at: Timestamp | None = None  # its last one
    seconds: float | None = None  # of the last attempt
    gpus: str = ""  # of the last attempt
    log: str | None = None
    peak_bytes: int | None = None  # on the GPU where it was most; None: not measured
    utilization_percent: float | None = None


class ShapeRow(Struct):
    """What the runs of one command shape came to, in this run alone."""

    shape: str
    runs: int = 0
    peak_bytes: int = 0
    utilization_percent: float | None = None  # the highest
    mean_seconds: float = 0.0
    longest_seconds: float = 0.0

    def add(self, event: RunMeasured) -> None:
        self.runs += 1
        self.peak_bytes = max(self.peak_bytes, event.peak_bytes)
        percents = (self.utilization_percent, event.utilization_percent)
        self.utilization_percent = max((p for p in percents if p is not None), default=None)
        self.mean_seconds += (event.seconds - self.mean_seconds) / self.runs
        self.longest_seconds = max(self.longest_seconds, event.seconds)


class Account(Struct):
    began: RunBegan
    options: str  # of the last dispatcher
    ended_at: Timestamp | None = None  # None: the last dispatcher did not say that it ends
    last_at: Timestamp = 0.0  # of the last record
    bars: list[Bar] = field(default_factory=list)  # in the order of their beginnings
    jobs: list[JobRow] = field(default_factory=list)
    shapes: list[ShapeRow] = field(default_factory=list)  # the largest first
    measured: list[RunMeasured] = field(default_factory=list)
    remarks: list[tuple[Timestamp, str]] = field(default_factory=list)
    labels: dict[GpuKey, str] = field(default_factory=dict)  # of the GPUs that were given
    totals: Totals = field(default_factory=Totals)


def account_of(events: Iterable[Event]) -> Account | None:
    """None: there is not one event."""
    teller = _Teller()
    for event in events:
        teller.take(event)
    return teller.result()


class _Teller:
    def __init__(self) -> None:
        self._account: Account | None = None
        self._state = State(Policy(""))
        self._rows: dict[JobId, JobRow] = {}
        self._bars: dict[RunKey, Bar] = {}
        self._shapes: dict[str, ShapeRow] = {}

    def take(self, event: Event) -> None:
        if isinstance(event, RunBegan):
            self._account = Account(event, event.options)
            self._state = State(Policy(event.id or event.name))
        assert self._account is not None  # every journal begins with a RunBegan
        ended = self._state.ended
        if isinstance(event, JobFinished | JobRequeued):
            run = ended[event.run]  # settled, it is forgotten
            self._settled(event, how_it_ended(run))
        apply(self._state, event)
        self._account.last_at = max(self._account.last_at, event.at)
        self._note_dispatcher(event, self._account)
        self._note_run(event, self._account)

    def result(self) -> Account | None:
        account, state = self._account, self._state
        if account is None:
            return None
        running = {run.job for run in state.runs}
        queued = {job.id for job in (*state.queue, *state.set_aside.values())}
        for row in self._rows.values():
            if row.job in running:
                row.status, row.how = "running", ""
            elif row.job in queued:
                row.status = "waiting"
            elif row.status == "waiting":
                row.status = "left out"
        account.bars = sorted(self._bars.values(), key=lambda bar: (bar.begin, bar.run))
        account.jobs = list(self._rows.values())
        by_size = sorted(self._shapes.values(), key=lambda row: -row.peak_bytes)
        account.shapes = by_size
        account.totals = state.totals
        return account

    def _note_dispatcher(  # noqa: C901  # a table: one case an event
        self, event: Event, account: Account
    ) -> None:
        account.ended_at = event.at if isinstance(event, RunClosed) else None
        match event:
            case RunResumed(at=at, options=options):
                account.options = options
                account.remarks.append((at, "the run was resumed"))
            case DrainRequested(at, why) | StopRequested(at, why) | Halted(at, why):
                account.remarks.append((at, f"{words.printable(why)}: nothing more is started"))
            case OptionsSet(at, _, options):
                account.options = options
                account.remarks.append((at, "options were changed"))
            case RunPaused(at):
                account.remarks.append((at, "the run was paused"))
            case RunContinued(at):
                account.remarks.append((at, "the run was continued"))
            case WaitTimedOut(at):
                account.remarks.append((at, "no GPU came free in time"))
            case GpuWithheld(at, gpu):
                label = account.labels.get(gpu, gpu.uuid)
                account.remarks.append((at, f"GPU {label} was withheld: jobs failed there at once"))
            case LineRejected(at, source, why):
                text = f"{words.printable(source)}: {words.printable(why)}"
                account.remarks.append((at, text))
            case _:
                pass

    def _note_run(  # noqa: C901, PLR0912  # likewise
        self, event: Event, account: Account
    ) -> None:
        match event:
            case JobAccepted(at, job, spec):
                self._rows[job] = JobRow(job, spec, at)
            case JobsAdded(at, _, first, specs):
                for number, spec in enumerate(specs, start=first):
                    self._rows[JobId(number)] = JobRow(JobId(number), spec, at)
            case JobsCancelled(jobs=jobs):
                for job in jobs:
                    if job not in self._state.cancelled:  # it did not run
                        self._rows[job].status = "cancelled"
            case JobsRetried(jobs=jobs):
                for job in jobs:
                    self._rows[job].status = "waiting"
            case FailuresDropped(jobs=jobs):
                for job in jobs:
                    self._rows[job].status = "left out"
            case RunLaunched() | RunAdopted():
                self._launched(event, account)
            case RunStopping(run=run, why="contention", who=who) if run in self._bars:
                self._bars[run] = replace(self._bars[run], to_whom=words.printable(who))
            case RunExited(at, run) if run in self._bars:
                self._bars[run] = replace(self._bars[run], end=max(at, self._bars[run].begin))
            case RunMeasured(run=run):
                self._measured(event, account)
            case _:
                pass

    def _launched(self, event: RunLaunched | RunAdopted, account: Account) -> None:
        run = self._state.runs.get(event.run)
        row = self._rows.get(event.run.job)
        if run is None or row is None:
            return
        placement = run.status.placement
        account.labels.update((gpu.key, gpu.label) for gpu in placement.gpus)
        if event.run not in self._bars:
            begin = event.at if isinstance(event, RunLaunched) else event.since
            self._bars[event.run] = Bar(event.run, placement, begin, None)
            row.began_at = begin if row.began_at is None else row.began_at
        row.attempts, row.gpus = event.run.attempt, placement.labels
        row.log = event.log if isinstance(event, RunLaunched) else row.log
        row.status, row.ended_at, row.seconds = "running", None, None

    def _measured(self, event: RunMeasured, account: Account) -> None:
        account.measured.append(event)
        self._shapes.setdefault(event.shape, ShapeRow(event.shape)).add(event)
        row = self._rows.get(event.run.job)
        if row is not None:
            row.peak_bytes = event.peak_bytes
            row.utilization_percent = event.utilization_percent

    def _settled(self, event: JobFinished | JobRequeued, how: str) -> None:
        ended = self._state.ended[event.run]
        row = self._rows.get(event.run.job)
        how = "" if _is_ok(event) else words.printable(how)
        if isinstance(event, JobRequeued):
            how = _HOW_REQUEUED.get(event.why, how)
        became: BarEnd = _became(event)
        if event.run in self._bars:
            self._bars[event.run] = replace(self._bars[event.run], became=became, how=how)
        if row is None:
            return
        row.attempts, row.gpus = event.run.attempt, ended.placement.labels
        row.ended_at, row.seconds, row.how = ended.ended_at, ended.seconds, how
        row.status = event.outcome if isinstance(event, JobFinished) else "waiting"
        if ended.out_of_memory and isinstance(event, JobFinished):
            row.how = f"{how}; it ran out of the GPU's memory"


def _is_ok(event: JobFinished | JobRequeued) -> bool:
    return isinstance(event, JobFinished) and event.outcome == "ok"


def _became(event: JobFinished | JobRequeued) -> BarEnd:
    if isinstance(event, JobFinished):
        return event.outcome
    return "gave way" if event.why == "contention" else "tried again"
