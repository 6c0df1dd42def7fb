"""Where one job goes, given what may still be given away."""

from collections import Counter
from collections.abc import Collection, Iterable

from smartsched.core import words
from smartsched.core.capacity import MOST_PERCENT, Budget, Offer
from smartsched.core.model import GpuKey, HostName, Placement, Wait
from smartsched.core.needs import Need
from smartsched.core.policy import Policy

NO_GPU = Placement(())


def place(
    offers: Collection[Offer],
    need: Need,
    budget: Budget,
    policy: Policy,
    avoid: Collection[GpuKey] = (),
) -> Placement | Wait:
    """Give the best GPUs that are not to be avoided; `offers` is in that order. What is given is
    taken from the offers and the budget."""
    if budget.runs < 1:
        return Wait("as many jobs run as --jobs allows")
    if need.gpus == 0:
        return _without_gpu(budget)
    fitting = (offer for offer in offers if fits(offer, need, policy))
    welcome = (offer for offer in fitting if offer.key not in avoid)
    chosen = _choose(welcome, need.gpus, int(max(0, min(budget.gpus, need.gpus))))
    if chosen is None:
        return _why_not(offers, need, budget, policy, avoid)
    budget.runs -= 1
    budget.gpus -= sum(1 for offer in chosen if offer.runs == 0)
    given = sorted((offer.take(need) for offer in chosen), key=lambda gpu: gpu.key)
    return Placement(tuple(given))


def _why_not(
    offers: Collection[Offer],
    need: Need,
    budget: Budget,
    policy: Policy,
    avoid: Collection[GpuKey],
) -> Wait:
    fitting = [offer for offer in offers if fits(offer, need, policy)]
    welcome = [offer for offer in fitting if offer.key not in avoid]
    if not fitting:
        return Wait(_why_none_fits(offers, need), lacks_gpus=True)
    if len(welcome) < need.gpus <= len(fitting):
        return Wait("a command that failed waits for another GPU than it failed on")
    if _choose(welcome, need.gpus, need.gpus) is not None:
        return Wait(f"as many GPUs are used as {budget.why} allows")
    can_be_had = max(Counter(offer.key.host for offer in fitting).values())
    few = f"a command needs {need.gpus} GPUs at once, and {can_be_had} can be had"
    several_hosts = len({offer.key.host for offer in offers}) > 1
    return Wait(f"{few} on one host" if several_hosts else few, lacks_gpus=True)


def _without_gpu(budget: Budget) -> Placement | Wait:
    host = max(budget.gpuless, key=lambda name: budget.gpuless[name], default=None)
    if host is None:
        return Wait("no host is there for a job without a GPU")
    if budget.gpuless[host] < 1:
        return Wait("as many jobs without a GPU run as there are cores; --jobs sets another limit")
    budget.runs -= 1
    budget.gpuless[host] -= 1
    return Placement((), host)


def fits(offer: Offer, need: Need, policy: Policy) -> bool:
    """Whether the GPU has room for another run with this need, beside those that are there."""
    if offer.runs and offer.sample.compute_mode == "exclusive":
        return False
    if offer.runs >= policy.most_per_gpu:
        return False
    if offer.runs == 0:
        # what was learned has a margin on top: no reason not to give a GPU that nobody uses; and
        # what some framework took of a larger one, all that there was, says nothing of this one
        least = need.least_bytes if need.least_bytes <= offer.usable_bytes else 0
        return max(need.asked_bytes or 0, least) <= offer.usable_bytes - offer.strangers_bytes
    part = offer.part_of(need)
    if part is None or part > offer.left_bytes:
        return False
    return policy.jobs_per_gpu != "auto" or offer.percent + need.percent <= MOST_PERCENT


def _why_none_fits(offers: Collection[Offer], need: Need) -> str:
    if need.memory_bytes is not None:
        return f"a command needs {words.size(need.memory_bytes)} on a GPU, and none has that left"
    if any(offer.runs for offer in offers):
        return "what a command will use is not known yet: it waits for a GPU for itself"
    return "no GPU is free"


def _choose(offers: Iterable[Offer], count: int, most_new: int) -> list[Offer] | None:
    """All on one host; at most so many on which there is no run of ours, and those before others,
    also where jobs that were placed a moment ago have taken some of them. The offers are looked
    through no further than it takes."""
    new: dict[HostName, list[Offer]] = {}
    used: dict[HostName, list[Offer]] = {}
    for offer in offers:
        there = (used if offer.runs else new).setdefault(offer.key.host, [])
        if offer.runs or len(there) < most_new:
            there.append(offer)
        if not offer.runs and len(there) == count:
            return there
    mixed = ([*new.get(host, ()), *sorted(used[host], key=_runs)][:count] for host in used)
    enough = [chosen for chosen in mixed if len(chosen) == count]
    return min(enough, key=lambda chosen: sum(map(_runs, chosen)), default=None)


def _runs(offer: Offer) -> int:
    return offer.runs
