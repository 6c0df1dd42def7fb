"""What a run goes by, beside the state of its jobs: by its journal, as State is."""

from msgspec import Struct, field

from smartsched.core.apply import apply
from smartsched.core.events import Event, ListReplaced, OptionsSet, RunBegan, RunResumed
from smartsched.core.policy import Policy
from smartsched.core.state import State

# Requests that are done; so many of the last are known, lest one be done twice that a crash of the
# machine has put back into its folder.
MOST_REQUESTS = 10_000
# From the end of a lease and the grace after it until nothing goes on under it for sure: clocks,
# watchdogs, a busy host.
_MARGIN_SECONDS = 15.0


def lost_after(lease_seconds: float | None, grace_seconds: float) -> float | None:
    """How long a host has to be out of reach until what was started there under these has ended.
    None: that may go on for ever, as it may without a lease."""
    return None if lease_seconds is None else lease_seconds + grace_seconds + _MARGIN_SECONDS


class Terms(Struct):
    began: RunBegan
    options: str  # a JSON object: what the user asked for last
    inputs: tuple[str, ...]  # names of what its commands are read from
    lists: int = 0  # given since the first one
    requests: dict[str, None] = field(default_factory=dict)  # that are done, the last of them
    # The longest of all its dispatchers so far: of none it is known that nothing of his is left.
    lost_after_seconds: float | None = 0.0

    def take(self, event: Event) -> None:
        """The next of the journal's records."""
        match event:
            case RunResumed(options=options, lost_after_seconds=seconds):
                self.options = options
                self.lost_after_seconds = self.longer(seconds)
            case OptionsSet(options=options):
                self.options = options
            case ListReplaced(inputs=inputs):
                self.inputs = inputs
                self.lists += 1
            case _:
                pass
        if request := getattr(event, "request", ""):
            self.requests[request] = None
            if len(self.requests) > MOST_REQUESTS:
                del self.requests[next(iter(self.requests))]

    def longer(self, seconds: float | None) -> float | None:
        """Than it is for now, if it is."""
        if seconds is None or self.lost_after_seconds is None:
            return None
        return max(seconds, self.lost_after_seconds)


class Past(Struct):
    """What a journal comes to, or the beginning of one."""

    terms: Terms
    state: State

    def take(self, event: Event) -> None:
        """The next of its records. Raises IllegalTransitionError."""
        self.terms.take(event)
        apply(self.state, event)


def terms_of(event: RunBegan) -> Terms:
    """As they are when it has just begun."""
    lost_after_seconds = event.lost_after_seconds
    return Terms(event, event.options, event.inputs, lost_after_seconds=lost_after_seconds)


def began(event: RunBegan, name: str) -> Past:
    """What the first record comes to. `name`: of the run's folder."""
    past = Past(terms_of(event), State(Policy(event.id or name)))
    apply(past.state, event)
    return past
