"""Small valid values of the core, so that a test says only what matters to it."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from smartsched.core import freeness, sight
from smartsched.core.apply import replay
from smartsched.core.decide import Decision, decide
from smartsched.core.directives import wishes_in
from smartsched.core.events import (
    Event,
    JobAccepted,
    JobFinished,
    JobRequeued,
    RunExited,
    RunLaunched,
    RunPlaced,
)
from smartsched.core.footprint import RAMP_SECONDS, Footprint
from smartsched.core.freeness import Thresholds, Watch
from smartsched.core.model import (
    Ending,
    Exited,
    GpuKey,
    GpuProcess,
    GpuReading,
    GpuSample,
    GpuUnreadable,
    GpuUuid,
    HostName,
    JobId,
    JobSpec,
    Observation,
    Outcome,
    PlacedGpu,
    Placement,
    ProcessId,
    RequeueReason,
    RunKey,
    Snapshot,
    UtilizationPoint,
)
from smartsched.core.policy import Policy
from smartsched.core.shapes import shape_of
from smartsched.core.state import State
from smartsched.core.strangers import Hold

T0 = 1_000_000.0
MIB = 2**20
GIB = 2**30
HOST = HostName("box")
INSTANT = Thresholds(free_for_seconds=0.0)
MAX_GAP_SECONDS = 6.0


def a_key(index: int = 0, host: str = HOST) -> GpuKey:
    return GpuKey(HostName(host), GpuUuid(f"GPU-{index:04d}"))


def a_sample(index: int = 0, used_gib: float = 0.0, **fields: Any) -> GpuSample:
    """An idle healthy card of 100 GiB, so that a GiB is a percent."""
    used = int(used_gib * GIB)
    sample = GpuSample(
        key=a_key(index),
        index=index,
        slot=None,
        name="Test GPU",
        memory_total_bytes=100 * GIB,
        memory_used_bytes=used,
        memory_free_bytes=100 * GIB - used,
        utilization_percent=0,
        utilization_history=None,
        compute_mode="default",
        ailment=None,
        processes=(),
    )
    return replace(sample, **fields)


def used_by(*processes: GpuProcess, index: int = 0, **fields: Any) -> GpuSample:
    """A GPU whose memory is all held by these processes."""
    held = sum(process.memory_bytes or 0 for process in processes)
    return a_sample(index, used_gib=held / GIB, **({"processes": processes} | fields))


def a_process(pid: int = 500, gib: float | None = 1.0, **fields: Any) -> GpuProcess:
    """A colleague's training."""
    process = GpuProcess(
        pid=pid,
        kind="compute",
        memory_bytes=None if gib is None else int(gib * GIB),
        user="alice",
        command="python train.py",
        run_tag=None,
        session=pid,
    )
    return replace(process, **fields)


def unreadable(index: int = 0, why: str = "GPU is lost") -> GpuUnreadable:
    return GpuUnreadable(a_key(index), index, None, "Test GPU", why)


def history(*ages_and_percents: tuple[float, int]) -> tuple[UtilizationPoint, ...]:
    return tuple(UtilizationPoint(age, percent) for age, percent in ages_and_percents)


def a_snapshot(
    *gpus: GpuReading,
    at: float = T0,
    whole: bool = True,
    host: str = HOST,
    arrived_at: float | None = None,
    withheld: Collection[GpuReading] = (),
) -> Snapshot:
    hidden = frozenset(gpu.key.uuid for gpu in withheld)
    return Snapshot(HostName(host), at, gpus, whole, arrived_at, hidden)


def a_policy(**fields: Any) -> Policy:
    """One that answers after a single sample."""
    return replace(Policy("test", INSTANT), **fields)


def a_hold(**fields: Any) -> Hold:
    hold = Hold(
        run=a_run(),
        tag="test/1/1",
        since=T0,
        unexplained_before_bytes=0,
        pid=77,
        cleared_at=None,
    )
    return replace(hold, **fields)


def a_run(job: int = 1, attempt: int = 1) -> RunKey:
    return RunKey(JobId(job), attempt)


def a_process_id(pid: int = 77) -> ProcessId:
    return ProcessId(pid, 1000, "boot")


def a_spec(number: int = 1) -> JobSpec:
    return JobSpec(f"echo {number}", f"list:{number}")


def a_placement(index: int = 0) -> Placement:
    return Placement((PlacedGpu(a_key(index), str(index), str(index)),))


def accepted(count: int = 1, at: float = T0) -> list[Event]:
    return [JobAccepted(at, JobId(number), a_spec(number)) for number in range(1, count + 1)]


def a_command(text: str, number: int = 1) -> JobSpec:
    """With the wishes that are written behind it."""
    return JobSpec(text, f"list:{number}", "", wishes_in(text))


def listed(*commands: str, first: int = 1, at: float = T0) -> list[Event]:
    """A list of these commands was accepted."""
    return [
        JobAccepted(at, JobId(number), a_command(text, number))
        for number, text in enumerate(commands, start=first)
    ]


def a_part(
    index: int = 0, gib: float | None = None, percent: float = 100.0, strangers_gib: float = 0.0
) -> PlacedGpu:
    """What a run is promised of a GPU; None: all of its memory."""
    reserved = None if gib is None else int(gib * GIB)
    strangers = int(strangers_gib * GIB)
    return PlacedGpu(a_key(index), str(index), str(index), 0, reserved, percent, strangers)


def shell_of(job: int) -> int:
    """The pid of the shell that `begun` starts for a job."""
    return 1000 + job


def begun(job: int = 1, *parts: PlacedGpu, attempt: int = 1, at: float = T0) -> list[Event]:
    """It was placed and launched; without parts: it has all of GPU 0."""
    placement = Placement(parts or (a_part(),))
    start = RunPlaced(at, a_run(job, attempt), placement)
    return [start, launched(job, attempt, at, pid=shell_of(job))]


def ours(job: int = 1, gib: float | None = 1.0, percent: int | None = None) -> GpuProcess:
    """What the shell that `begun` started for a job has on a GPU."""
    pid = shell_of(job)
    return a_process(pid, gib, user="me", session=pid, utilization_percent=percent)


def a_footprint(
    gib: float = 10.0, percent: float | None = 30.0, seconds: float = 600.0, runs: int = 3
) -> Footprint:
    return Footprint(runs, int(gib * GIB), percent, seconds, seconds)


def know(state: State, command: str, footprint: Footprint) -> None:
    """So much is known of commands of this shape."""
    state.footprints[shape_of(command)] = footprint


def see_ramp(state: State, *gpus: GpuReading, at: float = T0 + 1) -> float:
    """The GPUs look like this for long enough to learn from. When they were seen last."""
    last = at + RAMP_SECONDS + 1
    for moment in (at, at + 1, last):
        see(state, a_snapshot(*gpus, at=moment))
    return last


def placed(job: int = 1, gpu: int = 0, attempt: int = 1, at: float = T0) -> RunPlaced:
    return RunPlaced(at, a_run(job, attempt), a_placement(gpu))


def launched(job: int = 1, attempt: int = 1, at: float = T0, pid: int = 77) -> RunLaunched:
    return RunLaunched(at, a_run(job, attempt), a_process_id(pid), None)


def exited(
    job: int = 1,
    attempt: int = 1,
    at: float = T0,
    ending: Ending = Exited(0),  # noqa: B008  # a frozen value
    leftovers: int = 0,
) -> RunExited:
    return RunExited(at, a_run(job, attempt), ending, leftovers)


def finished(
    job: int = 1, outcome: Outcome = "ok", attempt: int = 1, at: float = T0
) -> JobFinished:
    return JobFinished(at, a_run(job, attempt), outcome)


def requeued(
    job: int = 1,
    why: RequeueReason = "failed",
    attempt: int = 1,
    at: float = T0,
    not_before: float = T0,
) -> JobRequeued:
    return JobRequeued(at, a_run(job, attempt), why, not_before)


def a_state(
    *gpus: GpuReading,
    queued: int = 0,
    events: Iterable[Event] = (),
    at: float = T0,
    **policy: Any,
) -> State:
    """What follows from a list of so many commands, these events, and then one whole snapshot."""
    state = replay(a_policy(**policy), [*accepted(queued, at=T0), *events])
    if gpus:
        see(state, a_snapshot(*gpus, at=at))
    return state


def watched(
    readings: Sequence[tuple[float, GpuReading]],
    thresholds: Thresholds = INSTANT,
    hold: Hold | None = None,
) -> Watch:
    """What these readings, taken so long after T0, say together."""
    watch = None
    for seconds, reading in readings:
        watch = observe(watch, reading, T0 + seconds, hold, thresholds, MAX_GAP_SECONDS)
    assert watch is not None
    return watch


def launches(decision: Decision) -> list[tuple[int, str]]:
    """Which job starts on which GPU."""
    return [
        (event.run.job, event.placement.labels)
        for event in decision.events
        if isinstance(event, RunPlaced)
    ]


def decided(state: State, seconds: float = 0.0) -> Decision:
    """What is decided so long after T0."""
    return decide(state, T0 + seconds)


def see(state: State, observation: Observation, now: float | None = None) -> None:
    """Heard at once unless said otherwise."""
    heard = observation.taken_at if isinstance(observation, Snapshot) else T0
    sight.see(state, observation, heard if now is None else now)


def observe(
    watch: Watch | None,
    reading: GpuReading,
    taken_at: float,
    hold: Hold | None,
    thresholds: Thresholds,
    max_gap_seconds: float,
) -> Watch:
    """Heard at once."""
    holds = () if hold is None else (hold,)
    return freeness.observe(watch, reading, taken_at, taken_at, holds, thresholds, max_gap_seconds)
