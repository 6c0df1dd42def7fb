"""What a run goes by, beside the state of its jobs: by its journal, as State is."""

from dataclasses import dataclass, field

from smartsched.core.apply import apply
from smartsched.core.events import Event, ListReplaced, OptionsSet, RunBegan, RunResumed
from smartsched.core.policy import Policy
from smartsched.core.state import State

# Requests that are done; so many of the last are known, lest one be done twice that a crash of the
# machine has put back into its folder.
MOST_REQUESTS = 10_000


@dataclass(slots=True)
class Terms:
    began: RunBegan
    options: str  # a JSON object: what the user asked for last
    inputs: tuple[str, ...]  # names of what its commands are read from
    lists: int = 0  # given since the first one
    requests: dict[str, None] = field(default_factory=dict)  # that are done, the last of them

    def take(self, event: Event) -> None:
        """The next of the journal's records."""
        match event:
            case RunResumed(options=options) | OptionsSet(options=options):
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


@dataclass(slots=True)
class Past:
    """What a journal comes to, or the beginning of one."""

    terms: Terms
    state: State

    def take(self, event: Event) -> None:
        """The next of its records. Raises IllegalTransitionError."""
        self.terms.take(event)
        apply(self.state, event)


def began(event: RunBegan, name: str) -> Past:
    """What the first record comes to. `name`: of the run's folder."""
    past = Past(Terms(event, event.options, event.inputs), State(Policy(event.id or name)))
    apply(past.state, event)
    return past
