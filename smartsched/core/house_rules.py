"""What the administrators of hosts allow there, each on his own host, over what a run is given."""

from collections.abc import Collection

from smartsched.core.capacity import Offer, time_of_day
from smartsched.core.model import GpuKey, Timestamp
from smartsched.core.standing import is_claimed_by_others
from smartsched.core.state import Host, State


def forbidden(state: State, offered: Collection[Offer], now: Timestamp) -> dict[GpuKey, str]:
    """Of the GPUs without a run of ours those that would be too many on their host, and why."""
    found: dict[GpuKey, str] = {}
    for name, host in state.hosts.items():
        if not host.most_gpus.parts and not host.leave_free.parts:
            continue
        empty = [offer.key for offer in offered if offer.key.host == name and offer.runs == 0]
        used = sum(key.host == name for key in state.holds.keys() - set(empty))
        # who has claimed one is about to use it: it is not left for anybody
        left = sum(not is_claimed_by_others(state, key, now) for key in empty)
        allowed, why = _allowed(host, used, left, time_of_day(state, now))
        if allowed < len(empty):
            found |= dict.fromkeys(empty[int(allowed) :], why)
    return found


def _allowed(host: Host, used: int, left: int, at: float) -> tuple[float, str]:
    """How many more, and by what."""
    most, keep = host.most_gpus.at(at), host.leave_free.at(at)
    by_cap = float("inf") if most is None else max(0, most - used)
    by_manners = max(0, left - keep) if keep else float("inf")
    if by_cap <= by_manners:
        return by_cap, f"its administrator wants at most --max-gpus {most} there"
    return by_manners, f"its administrator wants at least --leave-free {keep} there"
