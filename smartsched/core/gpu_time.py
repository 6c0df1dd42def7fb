"""What a GPU's time goes to: at any moment it is in one use, for one reason.

The reasons are for a file that is kept: they name users, but no command lines of theirs.
"""

from typing import Literal, TypeAlias, get_args

from msgspec import Struct
from msgspec.structs import replace

from smartsched.core import words
from smartsched.core.capacity import budget_of, is_refused, offers
from smartsched.core.freeness import (
    Breach,
    Busy,
    Free,
    Unknown,
    Watch,
    utilization_over_window,
)
from smartsched.core.house_rules import forbidden
from smartsched.core.model import GpuKey, GpuReading, GpuSample, Timestamp, Wait
from smartsched.core.selection import label
from smartsched.core.standing import current_verdict, is_stale, why_closed
from smartsched.core.state import Closing, State
from smartsched.core.strangers import StrangersUse

GpuUse: TypeAlias = Literal[
    "ours", "strangers", "window", "claimed", "capped", "held", "idle", "unknown"
]
"""Runs of ours are there; strangers are above a threshold; free, but the window is not over;
another dispatcher has claimed it; free, but a cap of the user's keeps it; free, but what waits
cannot use it; free, and there is nothing to start; nobody knows, or it is taken for broken."""
USES: tuple[GpuUse, ...] = get_args(GpuUse)

NO_GPU_IS_FREE = "no GPU is free"
_MOST_USERS_NAMED = 2


class Standing(Struct, frozen=True):
    """One GPU at one moment."""

    key: GpuKey
    label: str
    name: str
    memory_total_bytes: int | None  # None: it cannot be read; likewise below
    strangers_bytes: int | None
    ours_bytes: int | None
    utilization_percent: float | None  # over the window; None also: it is not reported
    use: GpuUse
    why: str  # "": there is nothing to say


def standings(state: State, waiting: Wait | None, now: Timestamp) -> list[Standing]:
    """Of all GPUs, as people list them. `waiting`: why what is queued waits; None: nothing does."""
    found = [_standing(state, key, watch, waiting, now) for key, watch in state.in_order()]
    if waiting is None or all(standing.use != "held" for standing in found):
        return found
    free = offers(state, now)
    budget = budget_of(state, free, now)
    are_all = budget.runs < 1 or budget.gpus < 1
    capped = {each.key for each in found} if are_all else forbidden(state, free, now).keys()
    return [
        replace(standing, use="capped")
        if standing.use == "held" and standing.key in capped
        else standing
        for standing in found
    ]


def discreet(why: str) -> str:
    """Why nothing starts, without what is said of each GPU: that names commands."""
    return NO_GPU_IS_FREE if why.startswith("GPU ") else words.printable(why)


def stalled_because(found: list[Standing], waiting: Wait) -> str:
    """Why nothing starts, with a clause for the GPUs of each reason."""
    reasons: dict[str, list[str]] = {}
    for standing in found:
        if standing.use not in ("ours", "held", "idle"):
            why = standing.why or standing.use
            reasons.setdefault(why, []).append(standing.label)
    why = discreet(waiting.why)
    if reasons and why == NO_GPU_IS_FREE:
        return " · ".join(f"GPU {','.join(gpus)}: {why}" for why, gpus in reasons.items())
    return why


def _standing(
    state: State, key: GpuKey, watch: Watch, waiting: Wait | None, now: Timestamp
) -> Standing:
    use, why = _use(state, key, watch, waiting, now)
    latest: GpuReading = watch.latest
    total = strangers = ours = percent = None
    is_known = not is_stale(state, watch, now) and watch.use is not None
    if isinstance(latest, GpuSample) and is_known and watch.use is not None:
        total, strangers = latest.memory_total_bytes, watch.use.memory_bytes
        ours = max(0, watch.use.free_bytes - latest.memory_free_bytes)
        over_window = utilization_over_window(watch)
        percent = None if over_window is None else over_window[0]
    return Standing(
        key,
        label(latest, with_host=state.policy.spans_hosts),
        latest.name,
        total,
        strangers,
        ours,
        percent,
        use,
        why,
    )


def _use(
    state: State, key: GpuKey, watch: Watch, waiting: Wait | None, now: Timestamp
) -> tuple[GpuUse, str]:
    if any(hold.cleared_at is None for hold in state.holds_on(key)):
        return "ours", ""
    if why := why_closed(state, key):
        return "unknown", why
    if state.holds_on(key):
        return "ours", "its memory is on its way back"
    return _strangers_use(state, key, watch, waiting, now)


def _strangers_use(
    state: State, key: GpuKey, watch: Watch, waiting: Wait | None, now: Timestamp
) -> tuple[GpuUse, str]:
    """Where no run of ours is."""
    match current_verdict(state, watch, now):
        case Unknown(why):
            is_seen = isinstance(watch.latest, GpuSample) and not is_stale(state, watch, now)
            if is_seen and key.host not in state.troubles:
                return "window", "not watched for so long yet"
            return "unknown", words.printable(why)
        case Busy(breaches):
            return _busy(watch, breaches)
        case Free():
            return _free(state, key, waiting, now)


def _busy(watch: Watch, breaches: tuple[Breach, ...]) -> tuple[GpuUse, str]:
    present = [breach for breach in breaches if breach.at >= watch.taken_at]
    tests = " and ".join(
        " ".join(part for part in (breach.test, breach.limit or breach.value) if part)
        for breach in present or breaches
    )
    if any(breach.test in ("health", "compute mode") for breach in present):
        return "unknown", tests
    if present:
        return "strangers", f"{tests} ({_users(watch.use)})"
    return "window", f"{tests} a moment ago"


def _users(use: StrangersUse | None) -> str:
    held: dict[str, int] = {}
    for process in use.processes if use is not None else ():
        user = words.printable(process.user or f"pid {process.pid}")
        held[user] = held.get(user, 0) + (process.memory_bytes or 0)
    most_first = sorted(held, key=lambda user: (-held[user], user))
    named = most_first[:_MOST_USERS_NAMED]
    if len(most_first) > len(named):
        named.append(f"{len(most_first) - len(named)} more")
    return ", ".join(named) or "by no visible process"


def _free(state: State, key: GpuKey, waiting: Wait | None, now: Timestamp) -> tuple[GpuUse, str]:
    if key not in state.claimed and is_refused(state, key, now):
        return "claimed", words.printable(state.refused[key].why)
    if state.closing is not Closing.NO:
        return "idle", "nothing more is started"
    if waiting is None or not state.queue:
        return "idle", "no command waits"
    return "held", discreet(waiting.why)
