"""Looks at the GPUs and starts nothing: what --dry-run, `gpus` and `pick` have in common."""

import sys
from collections.abc import Callable

from smartsched.cli.sampling import Ahead, SamplerProcess
from smartsched.cli.wiring import first_snapshot, start_sampler
from smartsched.config import Config
from smartsched.core import words
from smartsched.core.freeness import Unknown
from smartsched.core.model import GpuSample, Observation, Timestamp
from smartsched.core.sight import see
from smartsched.core.standing import current_verdict
from smartsched.core.state import State
from smartsched.edges.clock import SteadyClock
from smartsched.edges.waiter import Waiter


class Onlooker:
    """Has a sampler child from its beginning until it is closed."""

    def __init__(
        self,
        config: Config,
        tell: Callable[[Observation], None] = lambda _: None,
        ahead: Ahead | None = None,
    ) -> None:
        """`tell` is told all that is taken in. `ahead` may have the child already."""
        self._config = config
        self._tell = tell
        self.clock = SteadyClock()
        self.waiter = Waiter(self.clock)
        self.sampler = start_sampler(
            self.waiter,
            self.clock,
            SamplerProcess(config.sampler_arguments, ahead),
            config.policy.stale_after_seconds,
        )
        self.state = State(config.policy)

    def begin(self) -> State:
        """After the first snapshot. Raises DriverError and UsageError, see first_snapshot."""
        snapshot, policy = first_snapshot(
            self.sampler, self.waiter, self.clock, self._config.policy
        )
        self.state.policy = policy
        self.state.local_offset = self.clock.local_offset()
        see(self.state, snapshot, self.clock.now())
        self._tell(snapshot)
        return self.state

    def take(self) -> list[Observation]:
        """What is new, taken in already."""
        now = self.clock.now()
        news: list[Observation] = list(self.sampler.take(now))
        for observation in news:
            see(self.state, observation, now)
            self._tell(observation)
        return news

    def window_is_open(self) -> bool:
        """Whether some GPU might still turn out to be free by being watched for longer."""
        now = self.clock.now()
        return any(
            isinstance(watch.latest, GpuSample)
            and isinstance(current_verdict(self.state, watch, now), Unknown)
            for watch in self.state.gpus.values()
        )

    def window_closes_at(self) -> Timestamp:
        """When all GPUs that can be watched will have been, if the window begins now."""
        policy = self.state.policy
        # a driver that hangs is found out after so long, and its reason heard a moment later
        patience = policy.stale_after_seconds + 1.0
        return self.clock.now() + policy.thresholds.free_for_seconds + patience

    def watch_for_the_window(self) -> None:
        """Where the driver keeps no history, or not long enough."""
        if not self.window_is_open():
            return
        self.say_that_it_takes_time()
        deadline = self.window_closes_at()
        while self.window_is_open() and self.clock.now() < deadline:
            self._wait(deadline)
            self.take()

    def say_that_it_takes_time(self) -> None:
        if not self._config.quiet:
            window = words.duration(self.state.policy.thresholds.free_for_seconds)
            print(
                "smartsched: the driver keeps no history long enough;"
                f" watching the GPUs for {window}",
                file=sys.stderr,
            )

    def close(self) -> None:
        self.sampler.close()
        self.waiter.close()

    def _wait(self, deadline: Timestamp) -> None:
        """For something new."""
        self.waiter.wait(min(self.sampler.wake_at(), deadline))
