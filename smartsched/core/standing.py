"""Where each GPU stands: whether something may be started on it now, and why not, in words."""

from collections.abc import Collection, Mapping

from smartsched.core import words
from smartsched.core.freeness import Busy, Free, Unknown, Verdict, Watch, breach_words, verdict
from smartsched.core.model import GpuKey, GpuUnreadable, Lingering, Timestamp
from smartsched.core.selection import label
from smartsched.core.state import FAILURES_IN_A_ROW, State, why_postponed
from smartsched.core.strangers import Hold

# Why a host is not here yet, before anything was heard of it.
BEING_STARTED = "an agent is being started there"
# What another dispatcher has claimed is asked for again every second while somebody waits for it.
REMEMBERED_SECONDS = 5.0


def current_verdict(state: State, watch: Watch, now: Timestamp) -> Verdict:
    """The verdict of the samples, unless they are too old to say anything about now."""
    trouble = state.troubles.get(watch.latest.key.host)
    if trouble is not None:
        return Unknown(trouble.why)
    if is_stale(state, watch, now) and not isinstance(watch.latest, GpuUnreadable):
        return Unknown(f"not seen for {words.duration(now - watch.taken_at)}")
    return verdict(watch, state.policy.thresholds.free_for_seconds)


def is_stale(state: State, watch: Watch, now: Timestamp) -> bool:
    return now - watch.taken_at > state.policy.stale_after_seconds


def withheld_because(state: State, key: GpuKey, now: Timestamp) -> str | None:
    """Why a GPU that ended a run of ours is still not given away; None: it runs, or is ours no
    more."""
    reasons = (_withheld_for(state, hold, now) for hold in state.holds_on(key))
    return next((why for why in reasons if why is not None), None)


def _withheld_for(state: State, hold: Hold, now: Timestamp) -> str | None:
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
    if key.uuid in state.withheld:
        return "withheld: one job after the other failed at once there, and not elsewhere"
    record = state.records.get(key.uuid)
    if state.policy.guard and record is not None and record.is_suspect:
        return f"suspect: {FAILURES_IN_A_ROW} jobs in a row failed at once there"
    return ""


def why_not(state: State, key: GpuKey, watch: Watch, now: Timestamp) -> str:
    """Why nothing can be started on this GPU now; "" if something can."""
    if why := why_closed(state, key):
        return why
    holds = state.holds_on(key)
    verdict_now = current_verdict(state, watch, now)
    if any(hold.cleared_at is None for hold in holds):
        return withheld_because(state, key, now) or _what_runs(holds)
    if holds and not isinstance(verdict_now, Unknown):
        return withheld_because(state, key, now) or ""
    match verdict_now:
        case Busy(breaches):
            return "; ".join(breach_words(breaches, watch.taken_at))
        case Unknown(why):
            return why
        case Free():
            return _why_not_though_free(state, key, now)


def _why_not_though_free(state: State, key: GpuKey, now: Timestamp) -> str:
    if is_claimed_by_others(state, key, now):
        return state.refused[key].why
    why = why_postponed(state, key.host, now)
    return f"could not start a command there: {why}; trying again" if why else ""


def is_claimed_by_others(state: State, key: GpuKey, now: Timestamp) -> bool:
    """By what was heard last, if that is not too long ago."""
    refusal = state.refused.get(key)
    return refusal is not None and now < refusal.at + REMEMBERED_SECONDS


def _what_runs(holds: Collection[Hold]) -> str:
    jobs = ", ".join(str(hold.run.job) for hold in holds if hold.cleared_at is None)
    return f"runs jobs {jobs}" if "," in jobs else f"runs job {jobs}"


def is_in_use(state: State, key: GpuKey) -> bool:
    """Whether a run of ours may have processes there."""
    return any(hold.cleared_at is None for hold in state.holds_on(key))


def idles(state: State) -> bool:
    """Whether there is a GPU where no run of ours is."""
    return any(not is_in_use(state, key) for key in state.gpus)


def why_none_is_free(
    state: State, now: Timestamp, otherwise: Mapping[GpuKey, str] | None = None
) -> str:
    """One clause a GPU, those that say the same together; of GPUs where runs of ours are, nothing
    as long as there are others. `otherwise`: why those are not given away that could be."""
    if not state.gpus and state.policy.spans_hosts:
        return " · ".join([*unseen_hosts(state), *_pilots(state)]) or "no host is here yet"
    if not state.gpus:
        trouble = next(iter(state.troubles.values()), None)
        return trouble.why if trouble is not None else "the GPUs have not been read yet"
    reasons: dict[str, list[str]] = {}
    held = [key for key in state.gpus if is_in_use(state, key)]
    for key, watch in state.in_order():
        if key in held and len(held) < len(state.gpus):
            continue
        why = why_not(state, key, watch, now) or (otherwise or {}).get(key, "")
        name = label(watch.latest, with_host=state.policy.spans_hosts)
        reasons.setdefault(why, []).append(name)
    clauses = [f"GPU {','.join(gpus)}: {why}" for why, gpus in reasons.items() if why]
    return " · ".join([*clauses, *unseen_hosts(state), *_pilots(state)])


def _pilots(state: State) -> list[str]:
    """What is to be said of them where somebody waits for GPUs."""
    pilots = state.pilots
    is_of_interest = pilots is not None and (pilots.may_bring or not state.gpus)
    return [f"Slurm: {pilots.words}"] if pilots is not None and is_of_interest else []


def unseen_hosts(state: State) -> list[str]:
    """Of hosts whose GPUs nobody has seen so far: why not."""
    seen = {key.host for key in state.gpus}
    if not state.policy.spans_hosts:
        return []
    return [
        trouble.why if host in trouble.why else f"{host}: {trouble.why}"
        for host, trouble in sorted(state.troubles.items())
        if host not in seen
    ]
