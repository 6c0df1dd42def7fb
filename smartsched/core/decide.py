"""The scheduler's whole mind: a pure function from what we believe to what to do next."""

from collections.abc import Collection
from dataclasses import dataclass, field

from smartsched.core import words
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
    Busy,
    Free,
    Unknown,
    Verdict,
    Watch,
    breach_words,
    verdict,
)
from smartsched.core.model import (
    GpuKey,
    GpuSample,
    GpuUnreadable,
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
from smartsched.core.selection import label
from smartsched.core.state import FAILURES_IN_A_ROW, QUICK_SECONDS, Closing, State, position
from smartsched.core.strangers import Hold, memory_is_back

# A process that does not even die of SIGKILL hangs in the kernel; nothing we do changes that.
UNKILLABLE_AFTER_SECONDS = 10.0
NONE_LEFT = "every free GPU is given to an earlier command"
# Between samples a colleague may come: before a start the GPU is looked at once more.
JUST_SEEN_SECONDS = 0.05
# A job that failed is tried on another GPU; for so long it waits for one that runs of ours hold.
WAIT_FOR_ANOTHER_GPU_SECONDS = 300.0
THE_COMMAND_FAILS = "the command itself fails"
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
    if not planned:
        _halt_if_all_fails(state, now, decision)


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


def closed(state: State) -> set[GpuKey]:
    """GPUs on which nothing is started, free or not: broken ones, and those that may be."""
    if not state.policy.guard:
        return state.withheld
    return state.withheld | {key for key in state.records if is_suspect(state, key)}


def is_suspect(state: State, key: GpuKey) -> bool:
    """Whether so many jobs in a row failed at once there that it may be the GPU."""
    record = state.records.get(key)
    return record is not None and len(record.quick_failures) >= FAILURES_IN_A_ROW


def _wake_for_tries(state: State, now: Timestamp, decision: Decision) -> None:
    for job in state.queue:
        decision.wake_after(now, job.not_before)
        if job.failed_on:
            decision.wake_after(now, job.requeued_at + WAIT_FOR_ANOTHER_GPU_SECONDS)
    if any(is_suspect(state, key) for key in state.records):
        for run in state.runs.values():  # one that lasts clears the commands
            if isinstance(run.status, Running):
                decision.wake_after(now, run.status.since + QUICK_SECONDS)


def _halt_if_all_fails(state: State, now: Timestamp, decision: Decision) -> None:
    """Where there is no other GPU to wait for, it is not the GPUs."""
    if state.runs or not state.policy.guard or not state.queue:
        return
    suspects = [key for key in state.records if is_suspect(state, key)]
    if suspects and closed(state).issuperset(_usable(state)):
        gpus = words.count(len(suspects), "GPU")
        why = f"{THE_COMMAND_FAILS}: {FAILURES_IN_A_ROW} in a row failed at once on {gpus}"
        decision.events.append(Halted(now, why, stop=False))
        decision.wake_by(now)


def _usable(state: State) -> list[GpuKey]:
    """Those that are in order, whoever may use them just now."""
    samples = ((key, watch.latest) for key, watch in state.gpus.items())
    return [
        key
        for key, latest in samples
        if isinstance(latest, GpuSample)
        and latest.ailment is None
        and latest.compute_mode != "prohibited"
    ]


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


def current_verdict(state: State, watch: Watch, now: Timestamp) -> Verdict:
    """The verdict of the samples, unless they are too old to say anything about now."""
    trouble = state.troubles.get(watch.latest.key.host)
    if trouble is not None:
        return Unknown(trouble.why)
    age = now - watch.taken_at
    if age > state.policy.stale_after_seconds and not isinstance(watch.latest, GpuUnreadable):
        return Unknown(f"not seen for {words.duration(age)}")
    return verdict(watch, state.policy.thresholds.free_for_seconds)


def withheld_because(state: State, key: GpuKey, now: Timestamp) -> str | None:
    """Why a GPU that ended a run of ours is still not given away; None: it runs, or is ours no
    more."""
    hold = state.holds.get(key)
    if hold is None:
        return None
    run = state.runs.get(hold.run)
    if run is not None and isinstance(run.status, Lingering):
        stuck = "cannot be killed" if run.status.killed_at is not None else "are being stopped"
        return f"processes that job {hold.run.job} left behind {stuck}"
    if hold.cleared_at is None:
        return None
    waited = now - hold.cleared_at
    late = waited > state.policy.memory_back_seconds
    withheld = "withheld: " if late else ""
    return f"{withheld}memory of job {hold.run.job} has not come back for {words.duration(waited)}"


def why_closed(state: State, key: GpuKey) -> str:
    """Why nothing is started on this GPU though it may be free; "" if that is no reason."""
    if key in state.withheld:
        return "withheld: one job after the other failed at once there, and not elsewhere"
    if state.policy.guard and is_suspect(state, key):
        return f"suspect: {FAILURES_IN_A_ROW} jobs in a row failed at once there"
    return ""


def why_not(state: State, key: GpuKey, watch: Watch, now: Timestamp) -> str:
    """Why nothing can be started on this GPU now; "" if something can."""
    if why := why_closed(state, key):
        return why
    hold = state.holds.get(key)
    verdict_now = current_verdict(state, watch, now)
    if hold is not None and hold.cleared_at is None:
        return withheld_because(state, key, now) or f"runs job {hold.run.job}"
    if hold is not None and not isinstance(verdict_now, Unknown):
        return withheld_because(state, key, now) or ""
    match verdict_now:
        case Busy(breaches):
            return "; ".join(breach_words(breaches, watch.taken_at))
        case Unknown(why):
            return why
        case Free():
            return ""


def idles(state: State) -> bool:
    """Whether there is a GPU where no run of ours is."""
    return any(
        (hold := state.holds.get(key)) is None or hold.cleared_at is not None for key in state.gpus
    )


def why_none_is_free(state: State, now: Timestamp) -> str:
    """One clause a GPU, those that say the same together; of GPUs where runs of ours are, nothing
    as long as there are others."""
    if not state.gpus:
        trouble = next(iter(state.troubles.values()), None)
        return trouble.why if trouble is not None else "the GPUs have not been read yet"
    reasons: dict[str, list[str]] = {}
    held = [key for key in state.gpus if (hold := state.holds.get(key)) and hold.cleared_at is None]
    for key, watch in state.in_order():
        if key in held and len(held) < len(state.gpus):
            continue
        reasons.setdefault(why_not(state, key, watch, now), []).append(label(watch.latest))
    return " · ".join(f"GPU {','.join(gpus)}: {why}" for why, gpus in reasons.items() if why)


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
