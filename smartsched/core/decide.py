"""The scheduler's whole mind: a pure function from what we believe to what to do next."""

from collections.abc import Collection
from dataclasses import dataclass, field

from smartsched.core.actions import Action, Kill, Launch, Refresh, Terminate
from smartsched.core.events import (
    Event,
    GpuReleased,
    Halted,
    RunKilled,
    RunPlaced,
    RunStopping,
    WaitTimedOut,
)
from smartsched.core.freeness import (
    Free,
    Watch,
)
from smartsched.core.guard import closed, is_suspect, why_all_fail
from smartsched.core.model import (
    GpuKey,
    GpuSample,
    Job,
    Lingering,
    Placement,
    Run,
    RunKey,
    Running,
    Stopping,
    StopReason,
    Timestamp,
    Wait,
)
from smartsched.core.placement import FreeGpu, place, visible_as
from smartsched.core.standing import current_verdict, why_none_is_free, why_not
from smartsched.core.state import QUICK_SECONDS, Closing, State, position
from smartsched.core.strangers import Hold, memory_is_back

# A process that does not even die of SIGKILL hangs in the kernel; nothing we do changes that.
UNKILLABLE_AFTER_SECONDS = 10.0
NONE_LEFT = "every free GPU is given to an earlier command"
# Between samples a colleague may come: before a start the GPU is looked at once more.
JUST_SEEN_SECONDS = 0.05
# A job that failed is tried on another GPU; for so long it waits for one that runs of ours hold.
WAIT_FOR_ANOTHER_GPU_SECONDS = 300.0
# How soon to look again for memory that has not come back: half of the time since, within bounds.
_FIRST_LOOK_AGAIN_SECONDS = 0.02


@dataclass(slots=True)
class Decision:
    """Record `events` first, then carry out `actions`; then sleep until `wake_at` or an event."""

    events: list[Event] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    waiting: Wait | None = None  # None: nothing that is queued has to wait
    wake_at: Timestamp = float("inf")
    over: bool = False

    def wake_by(self, at: Timestamp) -> None:
        self.wake_at = min(self.wake_at, at)

    def wake_after(self, now: Timestamp, at: Timestamp) -> None:
        """By then, unless that is past."""
        if now < at:
            self.wake_by(at)


def decide(state: State, now: Timestamp) -> Decision:
    decision = Decision()
    _stop_runs(state, now, decision)
    released = _release_gpus(state, now, decision)
    if state.closing is Closing.NO:
        _place_queued_jobs(state, now, decision, released)
        _give_up_waiting(state, now, decision)
    decision.over = _is_over(state, now, decision)
    return decision


def _stop_runs(state: State, now: Timestamp, decision: Decision) -> None:
    for key, run in state.runs.items():
        match run.status:
            case Running() if state.closing >= Closing.STOP:
                _ask_to_end(key, "asked", now, decision)
            case Running(since=since) if state.policy.timeout_seconds is not None:
                _stop_when_out_of_time(key, since + state.policy.timeout_seconds, now, decision)
            case Lingering(asked=False):
                _ask_to_end(key, "asked", now, decision)
            case Stopping(since=since, killed_at=None) | Lingering(since=since, killed_at=None):
                _kill_when_overdue(state, key, since, now, decision)
            case Stopping(killed_at=float(killed_at)) | Lingering(killed_at=float(killed_at)):
                decision.wake_after(now, killed_at + UNKILLABLE_AFTER_SECONDS)
            case _:
                pass


def _stop_when_out_of_time(key: RunKey, due: Timestamp, now: Timestamp, decision: Decision) -> None:
    if now >= due:
        _ask_to_end(key, "timeout", now, decision)
    else:
        decision.wake_by(due)


def _ask_to_end(key: RunKey, why: StopReason, now: Timestamp, decision: Decision) -> None:
    decision.events.append(RunStopping(now, key, why))
    decision.actions.append(Terminate(key))
    decision.wake_by(now)  # the grace period begins


def _kill_when_overdue(
    state: State, key: RunKey, since: Timestamp, now: Timestamp, decision: Decision
) -> None:
    due = since if state.closing is Closing.KILL else since + state.policy.grace_seconds
    if now >= due:
        decision.events.append(RunKilled(now, key))
        decision.actions.append(Kill(key))
        decision.wake_by(now)
    else:
        decision.wake_by(due)


def _release_gpus(state: State, now: Timestamp, decision: Decision) -> set[GpuKey]:
    """Give GPUs back whose run is gone with its memory; ask for a look at the others."""
    released = set()
    for gpu, hold in state.holds.items():
        watch = state.gpus.get(gpu)
        if hold.cleared_at is None or watch is None:
            continue
        sample = watch.latest
        if watch.taken_at < hold.cleared_at:
            decision.actions.append(Refresh(gpu, hold.cleared_at))
        elif isinstance(sample, GpuSample) and memory_is_back(sample, hold):
            decision.events.append(GpuReleased(now, gpu, hold.run))
            released.add(gpu)
        else:
            look_again_at = watch.taken_at + _look_again_after(state, watch, hold)
            if now >= look_again_at:
                decision.actions.append(Refresh(gpu, look_again_at))
            else:
                decision.wake_by(look_again_at)
    return released


def _look_again_after(state: State, watch: Watch, hold: Hold) -> float:
    assert hold.cleared_at is not None
    so_far = (watch.taken_at - hold.cleared_at) / 2
    return min(max(so_far, _FIRST_LOOK_AGAIN_SECONDS), state.policy.interval_seconds)


def _place_queued_jobs(
    state: State, now: Timestamp, decision: Decision, released: set[GpuKey]
) -> None:
    if now < state.postponed_until:
        decision.wake_by(state.postponed_until)
        decision.waiting = Wait(f"could not start a command: {state.postponed_why}; trying again")
        return
    planned, decision.waiting = plan(state, now, released)
    unseen: list[GpuKey] = []
    for job, placement in planned:
        unseen += [gpu.key for gpu in placement.gpus if not _just_seen(state.gpus[gpu.key], now)]
        if not unseen:  # whoever comes later waits for the look too: the list keeps its order
            run = RunKey(job.id, job.attempts + 1)
            decision.events.append(RunPlaced(now, run, placement))
            decision.actions.append(Launch(run, job.spec, placement))
    decision.actions += [Refresh(gpu, now - JUST_SEEN_SECONDS) for gpu in unseen]
    _wake_for_tries(state, now, decision)
    if not planned and not state.runs and state.queue and state.policy.guard:
        _halt_if_all_fail(state, now, decision)


def plan(
    state: State, now: Timestamp, released: Collection[GpuKey] = ()
) -> tuple[list[tuple[Job, Placement]], Wait | None]:
    """What goes where by all that was seen so far, and why the rest has to wait."""
    free = free_gpus(state, now, released)
    planned: list[tuple[Job, Placement]] = []
    waiting: Wait | None = None
    for job in state.queue:
        if job.not_before > now:
            waiting = waiting or Wait("commands that failed are tried again later")
            continue
        if not free:
            return planned, Wait(why_none_is_free(state, now) or NONE_LEFT)
        match place(free, avoid=_to_avoid(state, job, now)):
            case Wait() as wait:
                waiting = wait
            case Placement() as placement:
                planned.append((job, placement))
                taken = {gpu.key for gpu in placement.gpus}
                free = [gpu for gpu in free if gpu.reading.key not in taken]
    return planned, waiting


def _to_avoid(state: State, job: Job, now: Timestamp) -> Collection[GpuKey]:
    """Where it failed, as long as there is somewhere else where it may soon be tried."""
    if not job.failed_on or now >= job.requeued_at + WAIT_FOR_ANOTHER_GPU_SECONDS:
        return ()
    elsewhere = (key for key in state.gpus if key not in job.failed_on and key not in closed(state))
    if any(
        key in state.holds or not why_not(state, key, state.gpus[key], now) for key in elsewhere
    ):
        return job.failed_on
    return ()


def _wake_for_tries(state: State, now: Timestamp, decision: Decision) -> None:
    for job in state.queue:
        decision.wake_after(now, job.not_before)
        if job.failed_on:
            decision.wake_after(now, job.requeued_at + WAIT_FOR_ANOTHER_GPU_SECONDS)
    if any(is_suspect(state, key) for key in state.records):
        for run in state.runs.values():  # one that lasts clears the commands
            if isinstance(run.status, Running):
                decision.wake_after(now, run.status.since + QUICK_SECONDS)


def _halt_if_all_fail(state: State, now: Timestamp, decision: Decision) -> None:
    if (why := why_all_fail(state)) is not None:
        decision.events.append(Halted(now, why, stop=False))
        decision.wake_by(now)


def _just_seen(watch: Watch, now: Timestamp) -> bool:
    """Whether nobody can have come in between. By its arrival: a driver may take its time."""
    return now - watch.arrived_at <= JUST_SEEN_SECONDS


def free_gpus(state: State, now: Timestamp, released: Collection[GpuKey] = ()) -> list[FreeGpu]:
    """What may be given away now, in the order in which it is: least strangers' memory first."""
    free = []
    shut = closed(state)
    for key, watch in state.gpus.items():
        if key in shut or (key in state.holds and key not in released):
            continue
        match current_verdict(state, watch, now):
            case Free(strangers_bytes):
                out_of_reach = state.out_of_reach.get(key.host, frozenset())
                visible = visible_as(watch.latest, out_of_reach, state.policy.visible_by)
                free.append(FreeGpu(watch.latest, strangers_bytes, visible))
            case _:
                pass
    return sorted(free, key=lambda gpu: (gpu.strangers_memory_bytes, position(gpu.reading)))


def _give_up_waiting(state: State, now: Timestamp, decision: Decision) -> None:
    limit = state.policy.wait_timeout_seconds
    if limit is None or state.ever_launched or decision.waiting is None or _starts_any(decision):
        return
    since = state.waiting_since
    if since is None:
        return
    if now - since >= limit:
        decision.events.append(WaitTimedOut(now))
        decision.wake_by(now)
    else:
        decision.wake_by(since + limit)


def _is_over(state: State, now: Timestamp, decision: Decision) -> bool:
    if _starts_any(decision):
        return False
    if state.ended or any(not is_given_up(run, now) for run in state.runs.values()):
        return False
    return state.closing is not Closing.NO or (not state.queue and not state.input_open)


def _starts_any(decision: Decision) -> bool:
    return any(isinstance(action, Launch) for action in decision.actions)


def is_given_up(run: Run, now: Timestamp) -> bool:
    """Whether even SIGKILL has not ended it: it hangs in the kernel."""
    match run.status:
        case Lingering(killed_at=float(killed_at)) | Stopping(killed_at=float(killed_at)):
            return now - killed_at >= UNKILLABLE_AFTER_SECONDS
        case _:
            return False
