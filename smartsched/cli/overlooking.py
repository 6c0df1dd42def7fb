"""Looks at the GPUs of several hosts and starts nothing: agents come for the look, and go again."""

import argparse
import os
import sys
from contextlib import ExitStack

from smartsched.cli.cluster import ClusterSite
from smartsched.cli.looking import Onlooker
from smartsched.cli.session import runs_of
from smartsched.config import Config
from smartsched.core.model import Observation
from smartsched.core.sight import see
from smartsched.core.standing import BEING_STARTED, unseen_hosts
from smartsched.core.state import State
from smartsched.edges.clock import SteadyClock
from smartsched.edges.waiter import Waiter
from smartsched.errors import DriverError, UsageError
from smartsched.fleet.gpus import FleetGpus

# ssh, Python there, the driver of a large box.
_PATIENCE_SECONDS = 60.0
_LOOK_EVERY_SECONDS = 0.5


class HostsOnlooker(Onlooker):
    """Has agents from its beginning until it is closed, and a run's folder that nobody sees."""

    def __init__(self, args: argparse.Namespace, config: Config) -> None:
        """Raises UsageError where there is nothing to look at."""
        cluster = config.cluster
        if cluster is not None and cluster.slurm is not None and not cluster.hosts:
            raise UsageError("which GPUs Slurm will grant cannot be seen before: leave out --slurm")
        if cluster is not None and not cluster.hosts:
            raise UsageError("who will join by hand cannot be seen before: leave out --listen")
        self._config = config
        self.clock = SteadyClock()
        self.waiter = Waiter(self.clock)
        self.state = State(config.policy)
        self._stack = ExitStack()
        self._stack.callback(self.waiter.close)
        new = runs_of(args).create(config.run_name)
        self._stack.callback(new.discard)
        self._site = ClusterSite(
            self._stack,
            args,
            config,
            new.folder,
            self.state,
            self.clock,
            self.waiter,
            lambda text: print(f"smartsched: {text}", file=sys.stderr),
            began_in=os.getcwd(),
            looks_only=True,
        )
        self._gpus = FleetGpus(self._site.hosts)

    def begin(self) -> State:
        """When every host that was named has been seen, or has said why not. Raises DriverError if
        none has been seen."""
        deadline = self.clock.now() + _PATIENCE_SECONDS
        self.take()
        while self._is_awaited() and self.clock.now() < deadline:
            self._wait(deadline)
            self.take()
        self.state.local_offset = self.clock.local_offset()
        for why in unseen_hosts(self.state):
            print(f"smartsched: {why}", file=sys.stderr)
        if not self.state.gpus:
            raise DriverError("no host's GPUs could be seen")
        return self.state

    def take(self) -> list[Observation]:
        now = self.clock.now()
        news = list(self._gpus.take(now))
        for observation in news:
            see(self.state, observation, now)
        return news

    def close(self) -> None:
        self._site.finish()
        self._stack.close()

    def _wait(self, deadline: float) -> None:
        soon = self.clock.now() + _LOOK_EVERY_SECONDS
        self.waiter.wait(min(deadline, self._gpus.wake_at(), soon))

    def _is_awaited(self) -> bool:
        seen = {key.host for key in self.state.gpus}
        hosts = [host.name for host in self._config.cluster.hosts] if self._config.cluster else []
        for host in hosts:
            trouble = self.state.troubles.get(host)
            if host not in seen and (trouble is None or trouble.why == BEING_STARTED):
                return True
        return not hosts and not seen
