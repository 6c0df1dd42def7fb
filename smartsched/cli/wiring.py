"""How the edges are put together: what --dry-run and a run have in common."""

import argparse
import os
import sys
import time

from msgspec.structs import replace

from smartsched.cli.host import this_host
from smartsched.cli.sampling import SamplerProcess
from smartsched.core.close_look import EVERY_SECONDS
from smartsched.core.model import HostName, SamplerTrouble, Snapshot
from smartsched.core.policy import Policy
from smartsched.core.sampling import interval_of
from smartsched.core.units import parse_interval
from smartsched.edges.clock import SteadyClock
from smartsched.edges.sampler import ENDED, Sampler
from smartsched.edges.waiter import Waiter
from smartsched.errors import DriverError

_MOST_RESTARTS = 3  # of a sampler that is killed before it has said anything
_SAY_THAT_WE_WAIT_AFTER_SECONDS = 3.0
_ADVICE = "; to try smartsched without a GPU, add --simulate 4"


def new_run_name() -> str:
    """Names sort by time; the pid tells runs of the same second apart."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def check_source(args: argparse.Namespace) -> None:
    """What the sampler child would refuse, refused before anything is started."""
    if args.simulate is not None:
        from smartsched.simulation.colleagues import parse_simulation

        parse_simulation(args.simulate)
    if args.replay is not None:
        from smartsched.edges.recording import Recording

        Recording(args.replay).close()


def start_sampler(
    waiter: Waiter,
    clock: SteadyClock,
    process: SamplerProcess,
    patience_seconds: float,
    host: HostName | None = None,
    *,
    run_id: str | None = None,
) -> Sampler:
    """`host`: whose GPUs they are, by name; None: this one's. `run_id`: of the run whose processes
    are ours; None: nobody's are."""
    if parse_interval(interval_of(process.arguments)) <= EVERY_SECONDS:
        run_id = None  # nothing is to be watched between samples
    return Sampler(
        waiter,
        process,
        host or this_host(),
        at_monotonic=clock.at_monotonic,
        patience_seconds=patience_seconds,
        run_id=run_id,
        now=clock.now(),
    )


def first_snapshot(
    sampler: Sampler, waiter: Waiter, clock: SteadyClock, policy: Policy
) -> tuple[Snapshot, Policy]:
    """Wait for it; and the policy with the user's choice of GPUs made among those that are there.

    Raises DriverError when the driver says that it cannot be asked or does not answer in time, and
    UsageError for GPUs that are not there.
    """
    restarts = 0
    say_at = clock.now() + _SAY_THAT_WE_WAIT_AFTER_SECONDS
    while True:
        for observation in sampler.take(clock.now()):
            match observation:
                case SamplerTrouble(why=why) if why == ENDED and restarts < _MOST_RESTARTS:
                    restarts += 1
                case SamplerTrouble(why=why):
                    raise DriverError(why + (_ADVICE if "NVIDIA" in why else ""))
                case Snapshot():
                    pinned = policy.selection.pinned(observation.gpus)
                    policy.preference.check(observation.gpus)
                    return observation, replace(policy, selection=pinned)
        waiter.wait(min(sampler.wake_at(), say_at))
        if clock.now() >= say_at:
            say_at = float("inf")
            print("smartsched: waiting for the driver to answer", file=sys.stderr)
