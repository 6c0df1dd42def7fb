"""What must hold after every tick of any history, by the box's own account."""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field

from smartsched.core.apply import apply
from smartsched.core.events import (
    Event,
    GpuWithheld,
    JobFinished,
    JobRecalled,
    JobRequeued,
    JobsCancelled,
    JobsRetried,
    RunPlaced,
    RunPostponed,
    RunResumed,
    RunRevoked,
)
from smartsched.core.freeness import Share, Thresholds
from smartsched.core.model import JobId, Lingering, Outcome, Run, RunKey, Stopping
from smartsched.core.policy import Policy
from smartsched.core.records import decode_line
from smartsched.core.state import State
from smartsched.simulation.box import PretendBox

# Deciding again at once is right after something was decided; doing so without end is not.
MOST_TICKS_AT_ONE_MOMENT = 100
# Colleagues may drive a job away often; but they leave, and then it comes to an end.
MOST_ATTEMPTS = 300
ACCOUNT = (
    "queue", "runs", "ended", "holds", "totals", "input_open", "read_to", "set_aside",
    "interrupted", "given_up", "cancelled", "paused", "closing", "halted", "before", "records",
    "withheld", "wait_timed_out",
)  # fmt: skip


@dataclass
class Witness:
    """Looks on at every tick; raises for whatever must never be."""

    box: PretendBox
    limits: Thresholds
    ticks: int = 0
    launches_seen: int = 0
    reads: dict[int, list[float]] = field(default_factory=dict)
    finished: dict[JobId, tuple[RunKey, Outcome]] = field(default_factory=dict)
    going: set[JobId] = field(default_factory=set)  # jobs of which an attempt is not settled
    unwanted: set[JobId] = field(default_factory=set)  # cancelled
    replayed: State = field(default_factory=lambda: State(Policy("test")))
    lines_replayed: int = 0
    _dispatchers_seen: int = 0
    _events_seen: int = 0
    _met_at: float = 0.0
    _ticks_at: tuple[float, int] = (0.0, 0)

    def __post_init__(self) -> None:
        self.box.observers.append(self.look)

    def look(self, state: State, now: float) -> None:
        self.ticks += 1
        if self._dispatchers_seen != self.box.dispatchers:
            self.meet_another_dispatcher(now)
        self.note_outcomes()
        self.note_reads(state)
        self.it_does_not_run_in_circles()
        self.no_job_is_forgotten(state)
        self.a_gpu_has_no_more_runs_than_it_may(state)
        self.no_memory_is_promised_twice(state)
        self.attempts_at_a_job_do_not_meet()
        self.what_lives_is_known(state)
        self.what_should_end_is_gone_soon(state, now)
        self.the_journal_says_the_same(state)
        for at, run, _command, gpu in self.box.launched[self.launches_seen :]:
            assert run.attempt <= MOST_ATTEMPTS, "it is started anew without end"
            living = self.box.living.get(run)
            for index in living.gpu_indices if living is not None else [gpu]:
                if state.policy.on_contention != "ignore" or not self.shares(run, index):
                    self.no_colleague_was_in_the_way(index, at)
        self.launches_seen = len(self.box.launched)

    def meet_another_dispatcher(self, now: float) -> None:
        """It knows what is on disk, and has seen no GPU yet."""
        self._met_at = now
        self._dispatchers_seen = self.box.dispatchers
        self._events_seen = 0
        self.launches_seen = self.box.launched_by_others
        self.finished.clear()
        self.going.clear()
        self.unwanted.clear()
        self.reads.clear()
        self.replayed, self.lines_replayed = State(Policy("test")), 0  # power may have been lost

    def note_outcomes(self) -> None:
        for event in self.box.events[self._events_seen :]:
            self.note_outcome(event)
        self._events_seen = len(self.box.events)

    def note_outcome(self, event: Event) -> None:  # a table: one case an event
        match event:
            case RunPlaced(_, run):
                self.going.add(run.job)
            case JobRequeued(_, run):
                self.going.remove(run.job)
            case RunPostponed(_, run) | RunRevoked(_, run):
                self.going.remove(run.job)
                if run.job in self.unwanted:
                    self.finished[run.job] = (run, "cancelled")
            case JobsCancelled(jobs=jobs):
                self.unwanted.update(jobs)
                for job in set(jobs) - self.going:
                    assert job not in self.finished or job in self.stopped(), "it was over"
                    self.finished[job] = (RunKey(job, 0), "cancelled")
            case JobsRetried(jobs=jobs):
                self.unwanted.difference_update(jobs)
                for job in jobs:
                    assert self.finished.pop(job)[1] in ("failed", "cancelled")
            case JobFinished(_, run, outcome):
                assert run.job not in self.finished, "a job has two ends"
                self.going.remove(run.job)
                self.finished[run.job] = (run, outcome)
            case RunResumed():
                for job in self.stopped():
                    del self.finished[job]
            case GpuWithheld(runs=runs):
                for run in runs:
                    if self.finished.get(run.job) == (run, "failed"):
                        del self.finished[run.job]
            case JobRecalled(_, job):
                self.finished.pop(job, None)
            case _:
                pass

    def stopped(self) -> list[JobId]:
        return [job for job, (_, outcome) in self.finished.items() if outcome == "stopped"]

    def note_reads(self, state: State) -> None:
        for watch in state.gpus.values():
            times = self.reads.setdefault(watch.latest.index, [])
            taken_at = watch.taken_at - self.box.clock.ahead_seconds
            if not times or times[-1] < taken_at:
                times.append(taken_at)

    def it_does_not_run_in_circles(self) -> None:
        now, (at, count) = self.box.clock.time, self._ticks_at
        self._ticks_at = (now, count + 1 if now == at else 1)
        assert self._ticks_at[1] <= MOST_TICKS_AT_ONE_MOMENT

    def no_job_is_forgotten(self, state: State) -> None:
        """Each is in one place, and counted as what it came to."""
        places = Counter(job.id for job in state.queue)
        places.update(run.job for run in state.ended)
        places.update(run.key.job for run in state.runs.values() if is_unsettled(run.key, state))
        places.update(list(state.set_aside))
        places.update(list(self.finished))
        assert sorted(places.elements()) == list(range(1, state.totals.accepted + 1))
        came_to = Counter(outcome for _, outcome in self.finished.values())
        totals = state.totals
        counted = {
            "ok": totals.ok,
            "failed": totals.failed,
            "cancelled": totals.cancelled,
            "stopped": totals.stopped,
        }
        assert came_to == Counter(counted)
        assert sorted(job.id for job in state.interrupted) == sorted(self.stopped())

    def a_gpu_has_no_more_runs_than_it_may(self, state: State) -> None:
        """By the box's own account; a job that is to be alone has all of its GPUs."""
        runs = Counter(index for run in self.box.living.values() for index in run.gpu_indices)
        assert all(count <= state.policy.most_per_gpu for count in runs.values())
        for key, run in self.box.living.items():
            if state.runs[key].job.alone:
                assert all(runs[index] == 1 for index in run.gpu_indices), "it is not alone"

    def no_memory_is_promised_twice(self, state: State) -> None:
        for holds in state.holds.values():
            promised = [hold.reserved_bytes or 0 for hold in holds.values()]
            if len(promised) > 1:  # alone it may need more than there is: nobody else is harmed
                assert sum(promised) <= self.box.memory_bytes

    def attempts_at_a_job_do_not_meet(self) -> None:
        jobs = [run.job for run in self.box.living]
        assert len(jobs) == len(set(jobs))

    def what_lives_is_known(self, state: State) -> None:
        assert self.box.living.keys() == state.runs.keys()
        for run in self.box.living.values():
            for gpu in run.launch.placement.gpus:
                assert state.holds[gpu.key][run.launch.run].pid == run.pid

    def what_should_end_is_gone_soon(self, state: State, now: float) -> None:
        for run in state.runs.values():
            if isinstance(run.status, Stopping | Lingering):
                since = max(run.status.since, self._met_at)
                assert now <= since + grace_of(run, state.policy) + 1, "nobody killed it"

    def the_journal_says_the_same(self, state: State) -> None:
        """As what happened, in this order; and if all of it is written, as what is believed."""
        for number in range(self.lines_replayed, len(self.box.journal)):
            event = decode_line(self.box.journal[number][:-1], number + 1)
            apply(self.replayed, event)
            assert event == self.box.events[number]
        self.lines_replayed = len(self.box.journal)
        if len(self.box.journal) == len(self.box.events):
            for name in ACCOUNT:
                assert getattr(self.replayed, name) == getattr(state, name), name

    def no_colleague_was_in_the_way(self, gpu: int, at: float) -> None:
        """Whenever the GPU was read within the window, the last time being no long ago."""
        reads = self.reads[gpu]
        count = bisect_right(reads, at)
        last, window = reads[count - 1], self.limits.free_for_seconds
        assert at - last <= self.box.interval_seconds
        assert at - reads[0] >= window - self.box.interval_seconds
        for number in reversed(range(count)):
            if last - reads[number] >= window and reads[number] != last:
                break
            assert not self.is_above_thresholds(gpu, reads[number])

    def shares(self, run: RunKey, gpu: int) -> bool:
        """Whether another run of ours is there."""
        others = (living for key, living in self.box.living.items() if key != run)
        return any(gpu in living.gpu_indices for living in others)

    def is_above_thresholds(self, gpu: int, at: float) -> bool:
        visits = self.box.strangers_at(gpu, at)
        assert isinstance(self.limits.max_memory, Share)
        held = 100 * sum(visit.memory_bytes for visit in visits) / self.box.memory_bytes
        busiest = max((visit.utilization_percent for visit in visits), default=0)
        return (
            held > self.limits.max_memory.percent or busiest > self.limits.max_utilization_percent
        )


def grace_of(run: Run, policy: Policy) -> float:
    """The longest that it may take its time, having been asked to end."""
    if not isinstance(run.status, Stopping) or run.status.why != "contention":
        return policy.grace_seconds
    if policy.asks_for_checkpoints:  # then it may have all of it, as long as there is room
        return max(policy.grace_seconds, policy.yield_grace_seconds)
    return policy.yield_grace_seconds


def is_unsettled(run: RunKey, state: State) -> bool:
    """Whether it has not ended yet; one that lingers has."""
    return not isinstance(state.runs[run].status, Lingering)
