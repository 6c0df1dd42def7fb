"""The edges of a host as its agent needs them, and what it says of itself when it joins."""

import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from smartsched import __version__
from smartsched.cli.batch import Pilot
from smartsched.cli.host import this_place
from smartsched.cli.hosting import host_of, token_of
from smartsched.cli.limits import read_limits
from smartsched.cli.sampling import SamplerProcess
from smartsched.cli.session import default_state
from smartsched.cli.wiring import start_sampler
from smartsched.config import shell_for
from smartsched.core.join import Join
from smartsched.core.limits import Limits
from smartsched.core.messages import Hello
from smartsched.core.model import GpuKey, JobId, RunKey, SamplerTrouble, Seen, Timestamp
from smartsched.edges.attempts import WRAPPER, Attempts, leased_wrapper
from smartsched.edges.clock import SteadyClock, on_the_wall
from smartsched.edges.family import Family
from smartsched.edges.lease import Lease, uptime_seconds
from smartsched.edges.outputs import LogFiles
from smartsched.edges.processes import Processes
from smartsched.edges.runs import JOBS, RunFolder
from smartsched.edges.sampler import Sampler
from smartsched.edges.spawning import Spawner
from smartsched.edges.waiter import Waiter
from smartsched.edges.watchdog import watchdog
from smartsched.errors import StateError, UsageError
from smartsched.ports import Clock
from smartsched.ports import Sampler as AnySampler


class HostLease:
    """The lease of this host's runs, in the agent's terms and in those of whoever starts them."""

    def __init__(self, file: Lease, clock: Clock) -> None:
        self._file, self._clock = file, clock
        self._trouble = ""  # that was said last
        self.arguments, self.expired = file.arguments, file.expired
        self.forget, self.remove = file.forget, file.remove

    def renew(self, until: Timestamp) -> None:
        """Whatever holds us up, also between both clocks, makes it no longer."""
        try:
            up = uptime_seconds()
            self._file.renew(up + until - self._clock.now())
        except StateError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                say(self._trouble)


def lease_file(join: Join) -> Lease:
    return Lease(token_of(join.run_id, join.host), grace_seconds=join.grace_seconds)


class Guarded:
    """A sampler that says nothing but what is wrong, where commands could not run at all."""

    def __init__(self, sampler: AnySampler, join: Join) -> None:
        self._sampler = sampler
        self._join = join
        self.why = ""  # no command can run; "": they can
        self._look()

    def take(self, now: Timestamp) -> Sequence[Seen]:
        seen = self._sampler.take(now)
        if self.why and seen:
            self._look()
        return [SamplerTrouble(host_of(self._join), self.why)] if self.why and seen else seen

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        """Something is to be started."""
        self._look()
        self._sampler.refresh(gpus, now)

    def watch(self, gpus: Collection[GpuKey]) -> None:
        self._sampler.watch(gpus)

    def _look(self) -> None:
        """Not all the time while it is there: a file system of the network may hang."""
        self.why = "" if _directory(self._join) else _no_directory(self._join)

    def wake_at(self) -> Timestamp:
        return self._sampler.wake_at()


def _no_directory(join: Join) -> str:
    also = f", nor {join.other_directory}" if join.other_directory else ""
    return f"there is no folder {join.directory}{also}: name one that is there with --wd"


def _directory(join: Join) -> str | None:
    """Where the commands run; None: nowhere."""
    places = (join.directory, join.other_directory)
    return next((place for place in places if place and os.path.isdir(place)), None)


def sampler_of(stack: ExitStack, join: Join, clock: SteadyClock, waiter: Waiter) -> Sampler:
    sampler = start_sampler(
        waiter,
        clock,
        SamplerProcess(join.sampler_arguments),
        join.patience_seconds,
        host_of(join),
        run_id=join.run_id,
    )
    stack.callback(sampler.close)
    return sampler


def processes_of(
    stack: ExitStack,
    join: Join,
    folder: RunFolder,
    waiter: Waiter,
    output: LogFiles,
    others: Callable[[], Sequence[int]],
    lease: HostLease | None,
) -> Processes:
    spawner = Spawner(
        shell=shell_for(join.shell),
        environment=os.environb,
        run_name=join.run_name,
        run_id=join.run_id,
        wrapper=WRAPPER if lease is None else leased_wrapper(watchdog()),
        nice=join.nice,
        lease=lease,
        stand_in=(join.directory, join.other_directory) if join.other_directory else None,
    )
    stack.callback(spawner.close)
    return Processes(
        waiter,
        run_id=join.run_id,
        spawner=spawner,
        output=output,
        attempts=Attempts(folder.make_folder(JOBS)),
        family=Family(others),
        checkpoint_signal=join.checkpoint_signal or signal.SIGTERM,
        lease=lease,
    )


def logs_of(join: Join) -> LogFiles:
    """At the same place as where the dispatcher is, if it can be. The way there is not made: then
    the folder in which commands are to run would seem to be here."""
    with suppress(UsageError):
        if os.path.isdir(os.path.dirname(join.logs)):
            return LogFiles(Path(join.logs) / join.run_name, resumed=True)
    return LogFiles(default_state() / "logs" / join.run_name, resumed=True)


def is_shared(join: Join) -> bool:
    """Whether what is written there can be read where the dispatcher is."""
    return os.path.exists(os.path.join(join.logs, join.run_name, join.logs_mark))


def hello_of(join: Join, clock: SteadyClock, pilot: Pilot | None, output: LogFiles) -> Hello:
    """Raises UsageError for limits that cannot be meant; what a batch system grants has none."""
    limits = read_limits() if pilot is None else Limits()
    return Hello(
        __version__,
        os.urandom(8).hex(),
        os.uname().nodename,
        (pilot and pilot.cores) or os.cpu_count() or 1,
        is_shared(join),
        "" if pilot is None else pilot.number,
        clock.now(),
        {
            "pid": os.getpid(),
            "python": sys.version.split()[0],
            "directory": _directory(join),
            "logs": os.path.dirname(output.path(RunKey(JobId(1), 1))),
        },
        is_unfit=_directory(join) is None,
        machine=this_place().partition("/")[0],
        most_gpus=limits.most_gpus,
        leave_free=limits.leave_free,
    )


def addresses_of(join: Join) -> Sequence[str]:
    """Where ssh came from is where the dispatcher is, if no other host is between the two."""
    from smartsched.config import came_by_ssh_from

    client = came_by_ssh_from()
    ports = list(dict.fromkeys(address.rpartition(":")[2] for address in join.addresses))
    if client is None or not ports:
        return join.addresses
    host = f"[{client}]" if ":" in client else client
    return list(dict.fromkeys([*(f"{host}:{port}" for port in ports), *join.addresses]))


def say(text: str) -> None:
    """A full disk must not end us."""
    with suppress(OSError):
        print(f"smartsched: {on_the_wall(SteadyClock().now())} {text}", file=sys.stderr, flush=True)
