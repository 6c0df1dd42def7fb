"""A whole box in virtual time behind the loop's ports: days pass in moments, nothing real is
touched.

It keeps its own account of who runs where, so that it can tell when a run is launched twice.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from smartsched.core.actions import Launch
from smartsched.core.decide import Decision
from smartsched.core.events import (
    DrainRequested,
    Event,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    StopRequested,
)
from smartsched.core.model import (
    BadLine,
    Ending,
    Exited,
    GpuKey,
    GpuProcess,
    GpuReading,
    GpuSample,
    GpuUuid,
    HostName,
    JobSpec,
    Killed,
    Observation,
    RunKey,
    SamplerTrouble,
    Snapshot,
    Timestamp,
)
from smartsched.core.policy import Policy
from smartsched.core.state import State
from smartsched.loop import Loop, World
from smartsched.simulation.colleagues import GIB, Visit, pretend_uuid, process_of

HOST = HostName("box")
_SIGTERM, _SIGKILL = 15, 9
_LOOK_TAKES_SECONDS = 0.001
_FOREVER = float("inf")


@dataclass(slots=True)
class VirtualClock:
    time: float = 1_000_000.0

    def now(self) -> Timestamp:
        return self.time


@dataclass(frozen=True, slots=True)
class PretendJob:
    """What a command does once it runs."""

    seconds: float
    memory_bytes: int = 0
    ending: Ending = Exited(0)
    memory_lingers_seconds: float = 0.0  # after its last process
    leaves_behind_seconds: float = 0.0  # how long something in the background outlives the shell
    ignores_sigterm: bool = False
    seen_by_driver: bool = True  # False: as in a container, its pid means nothing


@dataclass(slots=True)
class LivingRun:
    launch: Launch
    job: PretendJob
    pid: int
    shell_ends_at: Timestamp
    last_ends_at: Timestamp
    ending: Ending
    exit_told: bool = False

    @property
    def gpu_index(self) -> int:
        return int(self.launch.placement.gpus[0].label)


@dataclass(slots=True)
class PretendBox:
    """`jobs` says what a command does, `commands` when (seconds from now) which ones arrive."""

    gpu_count: int
    jobs: Callable[[str], PretendJob]
    commands: Sequence[tuple[float, str]] = ()
    memory_bytes: int = 24 * GIB
    interval_seconds: float = 1.0
    clock: VirtualClock = field(default_factory=VirtualClock)
    visits: dict[int, list[Visit]] = field(default_factory=dict)
    driver_hangs: list[tuple[Timestamp, Timestamp]] = field(default_factory=list)
    requests: list[tuple[Timestamp, type[DrainRequested | StopRequested]]] = field(
        default_factory=list
    )
    start_fails: Callable[[str], str | None] = lambda _: None
    living: dict[RunKey, LivingRun] = field(default_factory=dict)
    lingering_memory: list[tuple[Timestamp, int, int]] = field(default_factory=list)
    launched: list[tuple[Timestamp, RunKey, str, int]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    observers: list[Callable[[State, Timestamp], None]] = field(default_factory=list)

    def run(self, policy: Policy, seconds: float = 1e7) -> Loop:
        """Until all is over, or so much time has passed."""
        loop = Loop(self.world(), policy)
        deadline = self.clock.time + seconds
        waiter = _Waiter(self)
        while not (decision := loop.tick()).over and self.clock.time < deadline:
            waiter.wait(loop.wake_at(decision))
        return loop

    def world(self) -> World:
        gpus = _Gpus(self, self.clock.time)
        arrivals = [(self.clock.time + at, command) for at, command in self.commands]
        return World(
            self.clock,
            _Waiter(self),
            gpus,
            _Launcher(self),
            _Intake(self, arrivals),
            _Requests(self),
            _Recorder(self),
        )

    def visit(self, gpu: int, begins: float, ends: float, gib: float, percent: int = 50) -> None:
        """A colleague uses a GPU from and to so many seconds after now."""
        now, number = self.clock.time, len(self.visits.get(gpu, ()))
        pid = 7_000_000 + gpu * 1000 + number
        visit = Visit(
            now + begins, now + ends, int(gib * GIB), percent, "alice", "python train.py", pid
        )
        self.visits.setdefault(gpu, []).append(visit)

    def strangers_at(self, gpu: int, at: Timestamp) -> list[Visit]:
        return [visit for visit in self.visits.get(gpu, ()) if visit.begins <= at < visit.ends]

    def readings(self, only: Collection[str] | None) -> tuple[GpuReading, ...]:
        indices = range(self.gpu_count)
        return tuple(self._sample(i) for i in indices if only is None or pretend_uuid(i) in only)

    def _sample(self, index: int) -> GpuSample:
        now = self.clock.time
        visits = self.strangers_at(index, now)
        ours = [run for run in self.living.values() if run.gpu_index == index]
        processes = [process_of(visit) for visit in visits]
        processes += [_our_process(run) for run in ours if run.job.seen_by_driver]
        used = sum(visit.memory_bytes for visit in visits)
        used += sum(run.job.memory_bytes for run in ours)
        used += sum(held for end, gpu, held in self.lingering_memory if gpu == index and now < end)
        percent = max((visit.utilization_percent for visit in visits), default=0)
        return GpuSample(
            key=GpuKey(HOST, GpuUuid(pretend_uuid(index))),
            index=index,
            slot=None,
            name="Pretend GPU",
            memory_total_bytes=self.memory_bytes,
            memory_used_bytes=used,
            memory_free_bytes=max(0, self.memory_bytes - used),
            utilization_percent=100 if ours else percent,
            utilization_history=None,
            compute_mode="default",
            ailment=None,
            processes=tuple(processes),
        )


def _our_process(run: LivingRun) -> GpuProcess:
    command = run.launch.spec.command
    return GpuProcess(run.pid, "compute", run.job.memory_bytes, "me", command, None, run.pid)


@dataclass(slots=True)
class _Waiter:
    box: PretendBox

    def wait(self, until: Timestamp) -> None:
        """Time passes to what happens first. Nobody's clock ever stands still."""
        clock = self.box.clock
        clock.time = max(clock.time, min(until, self._next_happening()))

    def _next_happening(self) -> Timestamp:
        times = [at for at, _ in self.box.requests]
        times += [
            run.last_ends_at if run.exit_told else run.shell_ends_at
            for run in self.box.living.values()
        ]
        return min(times, default=_FOREVER)


@dataclass(slots=True)
class _Gpus:
    box: PretendBox
    due: Timestamp
    looks: dict[str, Timestamp] = field(default_factory=dict)

    def take(self, now: Timestamp) -> Sequence[Observation]:
        whole = now >= self.due
        if whole:
            self.due = now + self.box.interval_seconds
        if any(begin <= now < end for begin, end in self.box.driver_hangs):
            self.looks = {uuid: max(at, self.due) for uuid, at in self.looks.items()}
            return [SamplerTrouble(HOST, "the driver has not answered")] if whole else []
        looks = [uuid for uuid, at in self.looks.items() if at <= now]
        for uuid in looks:
            del self.looks[uuid]
        if whole:
            return [Snapshot(HOST, now, self.box.readings(None), whole=True)]
        return [Snapshot(HOST, now, self.box.readings(looks), whole=False)] if looks else []

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        for gpu, _ in gpus:
            self.looks.setdefault(gpu.uuid, now + _LOOK_TAKES_SECONDS)

    def wake_at(self) -> Timestamp:
        return min(self.due, *self.looks.values(), _FOREVER)


@dataclass(slots=True)
class _Launcher:
    box: PretendBox
    next_pid: int = 1000

    def launch(self, launch: Launch, now: Timestamp) -> RunLaunched | RunPostponed | RunExited:
        box, command = self.box, launch.spec.command
        if why := box.start_fails(command):
            return RunPostponed(now, launch.run, why)
        assert launch.run not in {run for _, run, _, _ in box.launched[-1000:]}, "launched twice"
        self.next_pid += 1
        job = box.jobs(command)
        ends = now + job.seconds
        run = LivingRun(
            launch, job, self.next_pid, ends, ends + job.leaves_behind_seconds, job.ending
        )
        box.launched.append((now, launch.run, command, run.gpu_index))
        box.living[launch.run] = run
        return RunLaunched(now, launch.run, self.next_pid, None)

    def terminate(self, run: RunKey) -> None:
        if not self.box.living[run].job.ignores_sigterm:
            self._end(run, _SIGTERM)

    def kill(self, run: RunKey) -> None:
        self._end(run, _SIGKILL)

    def take(self, now: Timestamp) -> Sequence[RunExited | RunCleared]:
        told: list[RunExited | RunCleared] = []
        for key, run in list(self.box.living.items()):
            if not run.exit_told and run.shell_ends_at <= now:
                run.exit_told = True
                lives_on = run.last_ends_at > now
                told.append(RunExited(now, key, run.ending, leftovers=int(lives_on)))
                if not lives_on:
                    self._bury(key, run)
            elif run.exit_told and run.last_ends_at <= now:
                told.append(RunCleared(now, key))
                self._bury(key, run)
        return told

    def wake_at(self) -> Timestamp:
        return _FOREVER

    def _end(self, key: RunKey, signum: int) -> None:
        now, run = self.box.clock.time, self.box.living[key]
        if run.shell_ends_at > now:
            run.shell_ends_at, run.ending = now, Killed(signum)
        run.last_ends_at = min(run.last_ends_at, now)

    def _bury(self, key: RunKey, run: LivingRun) -> None:
        del self.box.living[key]
        if run.job.memory_lingers_seconds:
            until = self.box.clock.time + run.job.memory_lingers_seconds
            self.box.lingering_memory.append((until, run.gpu_index, run.job.memory_bytes))


@dataclass(slots=True)
class _Intake:
    box: PretendBox
    arrivals: list[tuple[Timestamp, str]]

    def take(self, most: int) -> Sequence[JobSpec | BadLine]:
        now = self.box.clock.time
        arrived = [command for at, command in self.arrivals if at <= now][:most]
        self.arrivals = self.arrivals[len(arrived) :]
        return [JobSpec(command, "list") for command in arrived]

    def has_more(self) -> bool:
        return False

    def ended(self) -> bool:
        return not self.arrivals


@dataclass(slots=True)
class _Requests:
    box: PretendBox

    def take(self, now: Timestamp) -> Sequence[DrainRequested | StopRequested]:
        due = [kind for at, kind in self.box.requests if at <= now]
        self.box.requests = [request for request in self.box.requests if request[0] > now]
        return [kind(now, "asked") for kind in due]


@dataclass(slots=True)
class _Recorder:
    box: PretendBox

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        self.box.events.append(event)

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        for observe in self.box.observers:
            observe(state, now)

    def wake_at(self) -> Timestamp:
        return _FOREVER


def commands_at_once(commands: Iterable[str]) -> list[tuple[float, str]]:
    return [(0.0, command) for command in commands]
