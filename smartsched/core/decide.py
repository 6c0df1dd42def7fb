"""The scheduler's whole mind: a pure function from what we believe to what to do next."""

from typing import TypeAlias

from msgspec import Struct, field

from smartsched.core.actions import (
    Action,
    Checkpoint,
    Claim,
    Kill,
    Launch,
    Refresh,
    Release,
    Terminate,
)
from smartsched.core.blame import blame_ends_at
from smartsched.core.capacity import ASK_AGAIN_SECONDS, GROWS_FOR_SECONDS, caps_change_at
from smartsched.core.contention import memory_allows_more_time, who_gives_way
from smartsched.core.events import (
    Event,
    GpuReleased,
    Halted,
    RunExited,
    RunKilled,
    RunPlaced,
    RunStopping,
    WaitTimedOut,
)
from smartsched.core.footprint import RAMP_SECONDS
from smartsched.core.freeness import Watch
from smartsched.core.guard import suspects, why_all_fail
from smartsched.core.model import (
    GpuKey,
    GpuSample,
    HostName,
    Job,
    Lingering,
    NotStarted,
    Placement,
    Run,
    RunKey,
    Running,
    Stopping,
    StopReason,
    Timestamp,
    Wait,
)
from smartsched.core.placement import NO_GPU
from smartsched.core.planning import WAIT_FOR_ANOTHER_GPU_SECONDS, Plan, plan
from smartsched.core.standing import BEING_STARTED, REMEMBERED_SECONDS
from smartsched.core.state import (
    EVERYWHERE,
    QUICK_SECONDS,
    Closing,
    State,
    is_out_of_reach,
    why_postponed,
)
from smartsched.core.strangers import Hold, memory_is_back

# A process that does not even die of SIGKILL hangs in the kernel; nothing we do changes that.
UNKILLABLE_AFTER_SECONDS = 10.0
# Between samples a colleague may come: before a start the GPU is looked at once more.
JUST_SEEN_SECONDS = 0.05
# How soon to look again for memory that has not come back: half of the time since, within bounds.
_FIRST_LOOK_AGAIN_SECONDS = 0.02
_LONGEST_LOOK_AGAIN_SECONDS = 1.5
# What runs give back in the very tick that is decided about.
Released: TypeAlias = set[tuple[GpuKey, RunKey]]


class Decision(Struct):
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
    _give_way(state, now, decision)
    released = _release_gpus(state, now, decision)
    if state.closing is not Closing.NO or state.paused:
        _give_up_claims(state, Plan(), decision)
    else:
        _place_queued_jobs(state, now, decision, released)
        _give_up_waiting(state, now, decision)
        _halt_if_nobody_comes(state, now, decision)
    decision.waiting = _why_nothing_is_asked_for(state) or decision.waiting
    for ended in state.ended.values():
        decision.wake_after(now, blame_ends_at(ended))
    if state.policy.claims:
        _claim_what_is_ours(state, now, decision)
    decision.over = _is_over(state, now, decision)
    return decision


def _why_nothing_is_asked_for(state: State) -> Wait | None:
    if state.closing is not Closing.NO:
        return None
    if state.paused and (state.queue or state.input_open):
        return Wait("the run is paused: smartsched continue")
    if state.stays_open and not (state.queue or state.runs or state.input_open):
        return Wait("there is no job left: smartsched add gives it more, Ctrl-C or SIGTERM ends it")
    return None


def _stop_runs(state: State, now: Timestamp, decision: Decision) -> None:
    for key, run in state.runs.items():
        host = run.status.placement.host
        if is_out_of_reach(state, host) and state.closing < Closing.STOP:
            continue  # it may have ended, and nobody would hear; if not, there is time then
        match run.status:
            case Running():
                _stop_running(state, run, run.status, now, decision)
            case Lingering(asked=False):
                _ask_to_end(key, "asked", now, decision)
            case Stopping(since=since, killed_at=None) | Lingering(since=since, killed_at=None):
                _kill_when_overdue(state, run, since, now, decision)
            case Stopping(killed_at=float()) | Lingering(killed_at=float()):
                decision.wake_after(now, given_up_at(state, run))
            case _:
                pass


def _stop_running(
    state: State, run: Run, running: Running, now: Timestamp, decision: Decision
) -> None:
    if state.closing >= Closing.STOP:
        _ask_to_end(run.key, "asked", now, decision)
    elif run.key.job in state.cancelled:
        _ask_to_end(run.key, "cancelled", now, decision)
    elif _is_left(state, running.placement):
        _ask_to_save(state, run.key, now, decision)
    elif (limit := time_limit(state, run)) is not None:
        _stop_when_out_of_time(run.key, running.since + limit, now, decision)


def _stop_when_out_of_time(key: RunKey, due: Timestamp, now: Timestamp, decision: Decision) -> None:
    if now >= due:
        _ask_to_end(key, "timeout", now, decision)
    else:
        decision.wake_by(due)


def _ask_to_end(key: RunKey, why: StopReason, now: Timestamp, decision: Decision) -> None:
    decision.events.append(RunStopping(now, key, why))
    decision.actions.append(Terminate(key))
    decision.wake_by(now)  # the grace period begins


def _is_left(state: State, placement: Placement) -> bool:
    """Whether its host is about to be gone."""
    host = state.hosts.get(placement.host)
    return host is not None and host.leaves


def _ask_to_save(state: State, key: RunKey, now: Timestamp, decision: Decision) -> None:
    """It is started anew elsewhere."""
    decision.events.append(RunStopping(now, key, "leaving"))
    asks = state.policy.asks_for_checkpoints
    decision.actions.append(Checkpoint(key) if asks else Terminate(key))
    decision.wake_by(now)


def _kill_when_overdue(
    state: State, run: Run, since: Timestamp, now: Timestamp, decision: Decision
) -> None:
    since = max(since, _in_reach_since(state, run))
    due = since if state.closing is Closing.KILL else since + _grace(state, run)
    if now >= due:
        decision.events.append(RunKilled(now, run.key))
        decision.actions.append(Kill(run.key))
        decision.wake_by(now)
    else:
        decision.wake_by(due)


def _grace(state: State, run: Run) -> float:
    """For how long a run that was asked to end may go on."""
    policy = state.policy
    if isinstance(run.status, Stopping) and run.status.why == "leaving":
        return max(policy.grace_seconds, policy.yield_grace_seconds)
    if not isinstance(run.status, Stopping) or run.status.why != "contention":
        return policy.grace_seconds
    if policy.asks_for_checkpoints and memory_allows_more_time(state, run):
        return max(policy.grace_seconds, policy.yield_grace_seconds)
    return policy.yield_grace_seconds


def time_limit(state: State, run: Run) -> float | None:
    """How long the run may take; None: for ever."""
    wished = run.job.spec.wishes.timeout_seconds
    return state.policy.timeout_seconds if wished is None else wished


def _give_way(state: State, now: Timestamp, decision: Decision) -> None:
    """To people who came to a GPU where runs of ours are."""
    if state.closing >= Closing.STOP:
        return
    for giving in who_gives_way(state, now, _leaving(state, decision)):
        decision.events.append(RunStopping(now, giving.run, "contention", giving.who))
        asks = state.policy.asks_for_checkpoints and giving.has_time
        decision.actions.append(Checkpoint(giving.run) if asks else Terminate(giving.run))
        decision.wake_by(now)


def _leaving(state: State, decision: Decision) -> set[RunKey]:
    """Runs that are told to end in this moment, or cannot be told anything."""
    leaving = {event.run for event in decision.events if isinstance(event, RunStopping)}
    if state.policy.spans_hosts:
        runs = state.runs.items()
        leaving |= {k for k, run in runs if is_out_of_reach(state, run.status.placement.host)}
    return leaving


def _release_gpus(state: State, now: Timestamp, decision: Decision) -> Released:
    """Give GPUs back whose run is gone with its memory; ask for a look at the others."""
    released: Released = set()
    for gpu, holds in state.holds.items():
        watch = state.gpus.get(gpu)
        for hold in holds.values():
            if hold.cleared_at is None:
                continue
            if _is_gone_for_good(state, gpu.host):
                decision.events.append(GpuReleased(now, gpu, hold.run))
                released.add((gpu, hold.run))
                decision.wake_by(now)
            elif watch is None:
                continue
            elif watch.taken_at < hold.cleared_at:
                decision.actions.append(Refresh(gpu, hold.cleared_at))
            elif isinstance(watch.latest, GpuSample) and memory_is_back(watch.latest, hold):
                decision.events.append(GpuReleased(now, gpu, hold.run))
                released.add((gpu, hold.run))
                decision.wake_by(now)  # what cannot start in this moment may in the next
            else:
                _look_again(state, gpu, watch, hold, now, decision)
    return released


def _is_gone_for_good(state: State, host: HostName) -> bool:
    """Whether it is no part of this run any more: nothing there is known, and nobody looks."""
    return state.policy.spans_hosts and host not in state.hosts and host not in state.troubles


def _look_again(
    state: State, gpu: GpuKey, watch: Watch, hold: Hold, now: Timestamp, decision: Decision
) -> None:
    at = watch.taken_at + _look_again_after(state, watch, hold)
    if now >= at:
        decision.actions.append(Refresh(gpu, at))
    else:
        decision.wake_by(at)


def _look_again_after(state: State, watch: Watch, hold: Hold) -> float:
    assert hold.cleared_at is not None
    so_far = (watch.taken_at - hold.cleared_at) / 2
    longest = min(state.policy.interval_seconds, _LONGEST_LOOK_AGAIN_SECONDS)
    return min(max(so_far, _FIRST_LOOK_AGAIN_SECONDS), longest)


def _place_queued_jobs(
    state: State, now: Timestamp, decision: Decision, released: Released
) -> None:
    for postponed in state.postponed.values() if state.queue else ():
        decision.wake_after(now, postponed.until)
    if state.held:
        decision.waiting = Wait(f"nothing is started: {state.held}")
        _give_up_claims(state, Plan(), decision)
        return
    if why := _why_postponed(state, now):
        decision.waiting = Wait(f"could not start a command: {why}; trying again")
        _give_up_claims(state, Plan(), decision)
        return
    planned = plan(state, now, released)
    decision.waiting = planned.waiting
    for job, why in planned.impossible:
        _refuse(job, why, now, decision)
    looks = False
    for job, placement in planned.starts:
        looks = _look_and_claim(state, placement, now, decision) or looks
        if not looks:  # whoever comes later waits for the look too: the list keeps its order
            run = RunKey(job.id, job.attempts + 1)
            decision.events.append(RunPlaced(now, run, placement))
            decision.actions.append(Launch(run, job.spec, placement))
    _give_up_claims(state, planned, decision)
    _wake_for_tries(state, now, decision)
    _wake_for_gpus(state, now, decision)
    if not planned.starts and not state.runs and state.queue and state.policy.guard:
        _halt_if_all_fail(state, now, decision)


def _why_postponed(state: State, now: Timestamp) -> str:
    """Why nothing is tried on any host; on one box, by whatever has failed there. "": it is."""
    places = [EVERYWHERE] if state.policy.spans_hosts else list(state.postponed)
    return next((why for place in places if (why := why_postponed(state, place, now))), "")


def _wake_for_gpus(state: State, now: Timestamp, decision: Decision) -> None:
    """When more may be given away, though nothing happens."""
    if not state.queue:
        return
    decision.wake_by(caps_change_at(state, now))
    for refusal in state.refused.values():
        decision.wake_after(now, refusal.at + ASK_AGAIN_SECONDS)
        decision.wake_after(now, refusal.at + REMEMBERED_SECONDS)
    if state.policy.loses_work:
        for watch in state.gpus.values():
            decision.wake_after(now, watch.grown_at + GROWS_FOR_SECONDS)
    if state.policy.packs_by_learning:
        for meter in state.meters.values():
            if meter.active_at is not None:
                decision.wake_after(now, meter.active_at + RAMP_SECONDS)


def _refuse(job: Job, why: str, now: Timestamp, decision: Decision) -> None:
    """No GPU will ever do: it fails at once, without a start."""
    run = RunKey(job.id, job.attempts + 1)
    decision.events.append(RunPlaced(now, run, NO_GPU))
    decision.events.append(RunExited(now, run, NotStarted(why, for_good=True), leftovers=0))
    decision.wake_by(now)


def _look_and_claim(state: State, placement: Placement, now: Timestamp, decision: Decision) -> bool:
    """Whether the GPUs have to be claimed, or looked at once more, before anything starts there."""
    is_claimed = all(gpu.key in state.claimed for gpu in placement.gpus)
    if state.policy.claims and not is_claimed:
        wanted = tuple((gpu.key, gpu.reserved_bytes or 0) for gpu in placement.gpus)
        decision.actions.append(Claim(wanted))
        decision.actions += [Refresh(gpu.key, now) for gpu in placement.gpus]
        return True
    unseen = [gpu.key for gpu in placement.gpus if not _just_seen(state, gpu.key, now)]
    decision.actions += [Refresh(gpu, now - JUST_SEEN_SECONDS) for gpu in unseen]
    return bool(unseen)


def _claim_what_is_ours(state: State, now: Timestamp, decision: Decision) -> None:
    """Where adopted runs are, others are to know it, though it could not be said at first."""
    for gpu in state.holds.keys() - state.claimed.keys():
        refusal = state.refused.get(gpu)
        if refusal is not None and now >= refusal.at + ASK_AGAIN_SECONDS:
            decision.actions.append(Claim(((gpu, 0),)))
        elif refusal is not None:
            decision.wake_by(refusal.at + ASK_AGAIN_SECONDS)


def _give_up_claims(state: State, planned: Plan, decision: Decision) -> None:
    """Of GPUs where nothing of ours is or is about to be."""
    wanted = {gpu.key for _, placement in planned.starts for gpu in placement.gpus}
    if idle := state.claimed.keys() - state.holds.keys() - wanted:
        decision.actions.append(Release(tuple(sorted(idle))))


def _wake_for_tries(state: State, now: Timestamp, decision: Decision) -> None:
    for job in state.queue:  # which may be long
        if job.not_before > now:
            decision.wake_by(job.not_before)
        if job.failed_on:
            decision.wake_after(now, job.requeued_at + WAIT_FOR_ANOTHER_GPU_SECONDS)
    if suspects(state):
        for run in state.runs.values():  # one that lasts clears the commands
            if isinstance(run.status, Running):
                decision.wake_after(now, run.status.since + QUICK_SECONDS)


def _halt_if_all_fail(state: State, now: Timestamp, decision: Decision) -> None:
    why = why_all_fail(state)
    if why is not None and not _may_others_show_more(state):
        decision.events.append(Halted(now, why, stop=False))
        decision.wake_by(now)


def _may_others_show_more(state: State) -> bool:
    """Whether hosts are about to come where the commands may do well. But when more GPUs than one
    pilot has are suspects, it is not a bad host, and who is in a batch system's queue can take
    days."""
    if any(trouble.why == BEING_STARTED for trouble in state.troubles.values()):
        return True
    pilots = state.pilots
    is_one_host = len(suspects(state)) <= state.policy.gpus_per_pilot
    return is_one_host and pilots is not None and pilots.may_bring and not pilots.hopeless


def _halt_if_nobody_comes(state: State, now: Timestamp, decision: Decision) -> None:
    """There are no hosts and there will be none: to wait for them would be to wait for ever."""
    pilots = state.pilots
    if pilots is None or not pilots.hopeless or not (state.queue or state.input_open):
        return
    if not state.runs and not any(host.here for host in state.hosts.values()):
        decision.events.append(Halted(now, pilots.hopeless, stop=False))
        decision.wake_by(now)


def _just_seen(state: State, gpu: GpuKey, now: Timestamp) -> bool:
    """Whether nobody can have come in between: no colleague since it was read, and no other
    dispatcher since it was claimed. By the arrival: a driver may take its time."""
    watch = state.gpus[gpu]
    if state.claimed.get(gpu, watch.taken_at) > watch.taken_at:
        return False
    return now - watch.arrived_at <= JUST_SEEN_SECONDS


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
    if any(not is_given_up(state, run, now) for run in state.runs.values()):
        return False
    # what becomes of a job that has left something out of reach, whoever resumes the run decides
    left = [state.runs.get(key) for key in state.ended]
    if any(run is None or not is_out_of_reach(state, run.status.placement.host) for run in left):
        return False
    if state.closing is not Closing.NO:
        return True
    return not (state.queue or state.input_open or state.stays_open)


def _starts_any(decision: Decision) -> bool:
    return any(isinstance(action, Launch) for action in decision.actions)


def is_given_up(state: State, run: Run, now: Timestamp) -> bool:
    """Whether even SIGKILL has not ended it: it hangs in the kernel."""
    return now >= given_up_at(state, run)


def given_up_at(state: State, run: Run) -> Timestamp:
    """Where it is out of reach nobody knows, and those who want to end do not wait for that."""
    host = run.status.placement.host
    if is_out_of_reach(state, host) and state.closing < Closing.STOP:
        return float("inf")
    match run.status:
        case Lingering(killed_at=float(killed_at)) | Stopping(killed_at=float(killed_at)):
            return max(killed_at, _in_reach_since(state, run)) + UNKILLABLE_AFTER_SECONDS
        case _:
            return float("inf")


def _in_reach_since(state: State, run: Run) -> Timestamp:
    """What it was told before may not have arrived."""
    host = state.hosts.get(run.status.placement.host)
    return host.since if host is not None and state.policy.spans_hosts else float("-inf")
