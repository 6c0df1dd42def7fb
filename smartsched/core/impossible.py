"""What no GPU that comes free will ever do for, however long a job waits."""

from collections import Counter

from smartsched.core import words
from smartsched.core.capacity import kept_free
from smartsched.core.model import Asked, GpuKey, GpuSample
from smartsched.core.needs import asked_of
from smartsched.core.state import State


def impossible(state: State) -> dict[Asked, str]:
    """Of all that jobs of the queue ask for, what will never be, and why. It goes by the kinds of
    wishes, so that a long list costs no more than a short one."""
    found = ((asked, _why(state, *asked_of(state.policy, asked))) for asked in state.asked)
    return {asked: why for asked, why in found if why is not None}


def why_no_job_can_start(state: State) -> str | None:
    """Why the user's options leave no job a GPU; None: they do."""
    return _why(state, *asked_of(state.policy, Asked(None, None)))


def _why(state: State, gpus: int, asked_bytes: int | None) -> str | None:
    """Why no GPU that comes free will ever do; None: one may."""
    if not gpus or _more_may_come(state):
        return None
    if state.policy.gpus_per_pilot:
        return _why_not_with_pilots(state, gpus)
    return _why_not_here(state, gpus, asked_bytes) if state.gpus else None


def _why_not_here(state: State, gpus: int, asked_bytes: int | None) -> str | None:
    there = len(state.gpus)
    if gpus > there:
        return f"it needs {gpus} GPUs, and there are {there} to choose from"
    if gpus > 1 and gpus > (on_one_host := _most_on_one_host(state)):
        return f"it needs {gpus} GPUs on one host, and none has more than {on_one_host}"
    most = state.policy.most_gpus.most()
    if most is not None and gpus > most:
        return f"it needs {gpus} GPUs, and --max-gpus allows {most}"
    keep = kept_free(state, state.policy.leave_free.fewest())
    if gpus + keep > there:
        return f"it needs {gpus} of {there} GPUs, and --leave-free keeps {keep}"
    return _why_too_large(state, gpus, asked_bytes)


def _why_not_with_pilots(state: State, gpus: int) -> str | None:
    """More of them may always come, but none with more GPUs than it asks for."""
    most, of_pilots = state.policy.most_gpus.most(), state.policy.gpus_per_pilot
    if most is not None and gpus > most:
        return f"it needs {gpus} GPUs, and --max-gpus allows {most}"
    if gpus > max(_most_on_one_host(state), of_pilots):
        return f"it needs {gpus} GPUs on one host, and a pilot has {of_pilots} (--gpus-per-pilot)"
    return None


def _most_on_one_host(state: State) -> int:
    return max(Counter(key.host for key in state.gpus).values(), default=0)


def _more_may_come(state: State) -> bool:
    """Whether there are hosts whose GPUs nobody has seen."""
    return state.policy.hosts_may_come or bool(state.troubles.keys() - state.cards.keys())


def _why_too_large(state: State, gpus: int, asked_bytes: int | None) -> str | None:
    if asked_bytes is None:
        return None
    sizes = [usable_bytes(state, key) for key in state.gpus]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    large_enough = sum(1 for size in known if size >= asked_bytes)
    if large_enough >= gpus:
        return None
    asked, largest = words.size(asked_bytes), words.size(max(known))
    if not large_enough:
        return f"it needs {asked} on a GPU, and the largest has {largest}"
    return f"it needs {gpus} GPUs of {asked}, and there are {large_enough}"


def usable_bytes(state: State, gpu: GpuKey) -> int | None:
    """Of its memory, whoever uses it now; None: it cannot be read."""
    reading = state.gpus[gpu].latest
    if not isinstance(reading, GpuSample):
        return None
    return reading.memory_used_bytes + reading.memory_free_bytes
