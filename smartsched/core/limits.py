"""What the administrator of a box allows, over what a user has asked for.

It keeps the honest from taking more than they may; whoever wants to get round it can.
"""

from collections.abc import Callable
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from smartsched.core.hours import NO_CAP, Cap, Part, words
from smartsched.core.policy import Policy

_MINUTES_PER_DAY = 1440


class Limits(Struct, frozen=True):
    most_gpus: Cap = NO_CAP  # of a run, at most
    leave_free: Cap = NO_CAP  # GPUs that stay free, at least
    most_gpus_place: str = ""  # where it is written
    leave_free_place: str = ""


def limited(policy: Policy, limits: Limits) -> tuple[Policy, tuple[str, ...]]:
    """The policy within the limits, and a note if it is another one by that."""
    most = combined(policy.most_gpus, limits.most_gpus, min)
    left = combined(policy.leave_free, limits.leave_free, max)
    # --polite leaves a GPU free only where there are several, the administrator always
    polite = policy.is_polite and not limits.leave_free.parts
    bites = []
    if most != policy.most_gpus:
        bites.append(f"at most --max-gpus {words(most)} ({limits.most_gpus_place})")
    if left != policy.leave_free:
        bites.append(f"at least --leave-free {words(left)} ({limits.leave_free_place})")
    notes = (f"the administrator of this box wants {' and '.join(bites)}",) if bites else ()
    return replace(policy, most_gpus=most, leave_free=left, is_polite=polite), notes


def combined(one: Cap, other: Cap, choose: Callable[[list[int]], int]) -> Cap:
    """At every time of the day the one chosen of both; where one has no cap, the other's."""
    ends = {0, _MINUTES_PER_DAY}
    for part in (*one.parts, *other.parts):
        ends |= {part.first_minute, part.end_minute}
    spans: list[Part] = []
    for first, end in pairwise(sorted(ends)):
        caps = [most for cap in (one, other) if (most := cap.at(first * 60.0)) is not None]
        if not caps:
            continue
        part = Part(first, end, choose(caps))
        if spans and (spans[-1].end_minute, spans[-1].most) == (first, part.most):
            part = replace(spans.pop(), end_minute=end)
        spans.append(part)
    return Cap(tuple(_across_midnight(spans)))


def _across_midnight(spans: list[Part]) -> list[Part]:
    """Two parts that meet there are one."""
    if len(spans) < 2:
        return spans
    first, last = spans[0], spans[-1]
    if (first.first_minute, last.end_minute, first.most) != (0, _MINUTES_PER_DAY, last.most):
        return spans
    return [*spans[1:-1], replace(last, end_minute=first.end_minute)]
