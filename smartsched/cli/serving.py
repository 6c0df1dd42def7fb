"""The agent's life: the edges of this host are put together, and orders and reports go to and fro
until the run is over, or its dispatcher is gone for good and nothing runs."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from smartsched import __version__
from smartsched.agent import Agent
from smartsched.cli.batch import Pilot
from smartsched.cli.claiming import claims_in
from smartsched.cli.departed import mark_the_end
from smartsched.cli.hosting import JoinSource, host_of, join_came_at, read_join, token_of
from smartsched.cli.session import default_state
from smartsched.cli.wiring import start_sampler
from smartsched.config import offered_gpus, shell_for
from smartsched.core import wire
from smartsched.core.join import Join
from smartsched.core.messages import Hello
from smartsched.core.model import GpuKey, SamplerTrouble, Seen, Timestamp
from smartsched.edges.attempts import WRAPPER, Attempts, leased_wrapper
from smartsched.edges.clock import SteadyClock, on_the_wall
from smartsched.edges.engine.link import Connected, Disconnected, Link, Message, NotReached
from smartsched.edges.family import Family
from smartsched.edges.lease import Lease, uptime_seconds
from smartsched.edges.outputs import LogFiles
from smartsched.edges.processes import Processes
from smartsched.edges.runs import JOBS, RunFolder
from smartsched.edges.sampler import Sampler
from smartsched.edges.shipping import LogFeed
from smartsched.edges.spawning import Spawner
from smartsched.edges.waiter import Waiter
from smartsched.edges.watchdog import watchdog
from smartsched.errors import BadMessageError, StateError, UsageError

_REPORT_EVERY_SECONDS = 1.0
# Without a dispatcher, and with nothing that runs: as long as a lease lasts; without one, so long.
_WAITS_FOR_ITS_DISPATCHER_SECONDS = 300.0
_ANSWERS_WITHIN_SECONDS = 5.0


def serve(
    join: Join,
    folder: RunFolder,
    *,
    pilot: Pilot | None = None,
    source: JoinSource | None = None,
    when_up: Callable[[], None] = lambda: None,
) -> int:
    """Until the end. `folder` is ours; of one in which nothing is left, nothing stays. `pilot`:
    None: we are in no batch job. `source`: where a dispatcher that is elsewhere by now may say so;
    None: it would come here."""
    clock = SteadyClock()
    with ExitStack() as stack:
        waiter = Waiter(clock)
        stack.callback(waiter.close)
        service = _Service(stack, join, folder, clock, waiter, pilot, source)
        when_up()
        service.run()
    if service.is_over:
        folder.erase()
    folder.close()
    return 0


class _Service:
    def __init__(
        self,
        stack: ExitStack,
        join: Join,
        folder: RunFolder,
        clock: SteadyClock,
        waiter: Waiter,
        pilot: Pilot | None,
        source: JoinSource | None,
    ) -> None:
        self._pilot, self._source = pilot, source
        self._join, self._folder, self._clock, self._waiter = join, folder, clock, waiter
        self.is_over = False
        self._is_connected = False
        self._last_contact = clock.now()
        self._report_at: Timestamp = float("-inf")
        self._leaves_at = float("inf") if pilot is None else pilot.leaves_at(join.warn_seconds)
        self._signals = 0
        self._left_at: Timestamp | None = None  # when it was first said that we leave
        self._heard_by_dispatcher: Timestamp = float("-inf")  # up to this report
        self._joins_read_at = 0.0
        self._join_came_at = 0  # which of the files in our folder was read; 0: none yet
        lease = None if join.lease_seconds is None else _HostLease(join)
        self._lease = lease
        self._output = _logs(join)
        stack.callback(self._output.close)
        self._processes = _processes(
            stack, join, folder, waiter, self._output, self._sampler_pids, lease
        )
        self._sampler = _sampler(stack, join, clock, waiter)
        claims = claims_in(join.claims, join.run_name, _say)
        stack.callback(claims.close)
        self._agent = Agent(
            host_of(join),
            _Guarded(self._sampler, join),
            self._processes if pilot is None else pilot.launcher(self._processes),
            claims,
            lease=lease,
            lease_seconds=join.lease_seconds or 0.0,
            logs=self._feed(),
            selection=offered_gpus(),
        )
        self._link = Link(
            waiter,
            join.credentials,
            addresses=self._addresses(join),
            name=join.host,
            run_id=join.run_id,
            hello=wire.encode_hello(_hello(join, clock, pilot)),
        )
        stack.callback(self._link.close)
        for signum in (signal.SIGINT, signal.SIGTERM):
            waiter.on_signal(signum, self._asked_to_leave)
        waiter.on_signal(signal.SIGUSR2, self._leave)
        waiter.on_signal(signal.SIGHUP, lambda: None)

    def run(self) -> None:
        while not self._is_done():
            now = self._clock.now()
            self._listen(now)
            self._agent.leaves = self._agent.leaves or now >= self._leaves_at
            self._agent.look(now)
            if self._is_connected and (self._agent.has_news() or now >= self._report_at):
                self._link.send(wire.encode_report(self._agent.report(now)))
                self._report_at = now + _REPORT_EVERY_SECONDS
                if self._agent.leaves and self._left_at is None:
                    self._left_at = now
            elif not self._is_connected:
                self._agent.forget_what_was_seen()
            wake_at = min(self._agent.wake_at(), now + _REPORT_EVERY_SECONDS, self._report_at_if())
            self._waiter.wait(wake_at)
        if self._agent.is_idle():
            self._processes.close()
            # how runs have ended that nobody has heard of, whoever comes after us can tell
            self.is_over = self._agent.is_told_to_leave or self._agent.is_on_record()
        if self.is_over and self._lease is not None:
            self._lease.remove()

    def _addresses(self, join: Join) -> list[str]:
        """A pilot may have inherited who came by ssh to where it was submitted."""
        return list(_addresses(join) if self._pilot is None else join.addresses)

    def _feed(self) -> LogFeed | None:
        """Logs are sent where the dispatcher cannot read them."""
        if not self._join.sends_logs or _is_shared(self._join):
            return None
        return LogFeed(self._output.path, self._clock.now)

    def _report_at_if(self) -> Timestamp:
        return self._report_at if self._is_connected else float("inf")

    def _sampler_pids(self) -> Sequence[int]:
        return self._sampler.pids()

    def _is_done(self) -> bool:
        agent = self._agent
        if self._signals > 1 and self._pilot is None:
            return True  # else whatever runs would be killed with us at once
        if agent.is_told_to_leave and agent.is_idle():
            return True
        if agent.leaves and agent.is_idle():
            return not self._is_connected or (agent.is_on_record() and self._is_known_to_leave())
        patience = self._join.lease_seconds or _WAITS_FOR_ITS_DISPATCHER_SECONDS
        is_alone = not self._is_connected and self._clock.now() > self._last_contact + patience
        return is_alone and agent.is_idle()

    def _is_known_to_leave(self) -> bool:
        """Whether no order to start something can be on its way any more."""
        if self._left_at is None:
            return False
        is_late = self._clock.now() > self._left_at + _ANSWERS_WITHIN_SECONDS
        return is_late or self._heard_by_dispatcher >= self._left_at

    def _asked_to_leave(self) -> None:
        self._signals += 1
        if self._pilot is not None:
            self._pilot.is_ended = True
            mark_the_end(self._folder)
        self._leave()

    def _leave(self) -> None:
        if not self._agent.leaves:
            _say("leaving: its jobs are told to save their state, and started anew elsewhere")
        self._agent.leaves = True
        self._report_at = float("-inf")

    def _listen(self, now: Timestamp) -> None:
        for news in self._link.take():
            match news:
                case Connected(address):
                    _say(f"connected to the dispatcher at {address}")
                    self._is_connected = True
                    self._report_at = float("-inf")
                    self._agent.joined()
                case Message(message, at_monotonic):
                    self._obey(message, self._clock.at_monotonic(at_monotonic), now)
                case Disconnected(why):
                    _say(f"disconnected: {why}")
                    self._is_connected = False
                case NotReached(address, why):
                    _say(f"cannot reach {address}: {why}")
        if self._is_connected:
            self._last_contact = now
        else:
            self._read_join_again(now)

    def _obey(self, message: bytes, at: Timestamp, now: Timestamp) -> None:
        try:
            orders = wire.decode_orders(message)
        except BadMessageError as error:
            _say(f"orders that cannot be read: {error}")
            return
        if orders.renewed is not None:
            self._heard_by_dispatcher = max(self._heard_by_dispatcher, orders.renewed)
        self._agent.obey(orders, min(at, now))

    def _read_join_again(self, now: Timestamp) -> None:
        """A dispatcher that was resumed elsewhere, or that reaches this host again, has said so in
        our folder."""
        if now < self._joins_read_at + _REPORT_EVERY_SECONDS:
            return
        self._joins_read_at = now
        if self._source is not None:
            self._source.hand_on(self._folder, self._join.host)
        came_at = join_came_at(self._folder)
        if came_at == self._join_came_at:
            return
        try:
            join = read_join(self._folder)
        except StateError:
            return
        self._join_came_at = came_at
        if join.addresses != self._join.addresses:
            self._join = join
            self._link.set_addresses(self._addresses(join))
        else:
            self._link.look_again()


class _HostLease:
    """The lease of this host's runs, in the agent's terms and in those of whoever starts them."""

    def __init__(self, join: Join) -> None:
        token = token_of(join.run_id, join.host)
        self._file = Lease(token, grace_seconds=join.grace_seconds)
        self.arguments, self.expired = self._file.arguments, self._file.expired
        self.forget, self.remove = self._file.forget, self._file.remove

    def renew(self, until: Timestamp, now: Timestamp) -> None:
        try:
            self._file.renew(uptime_seconds() + until - now)
        except StateError as error:
            _say(str(error))


class _Guarded:
    """A sampler that says nothing but what is wrong, where commands could not run at all."""

    def __init__(self, sampler: Sampler, join: Join) -> None:
        self._sampler = sampler
        self._host = host_of(join)
        self._why = "" if _directory(join) else _no_directory(join)

    def take(self, now: Timestamp) -> Sequence[Seen]:
        seen = self._sampler.take(now)
        return [SamplerTrouble(self._host, self._why)] if self._why and seen else seen

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        self._sampler.refresh(gpus, now)

    def wake_at(self) -> Timestamp:
        return self._sampler.wake_at()


def _no_directory(join: Join) -> str:
    also = f", nor {join.other_directory}" if join.other_directory else ""
    return f"there is no folder {join.directory}{also}: name one that is there with --wd"


def _directory(join: Join) -> str | None:
    """Where the commands run; None: nowhere."""
    places = (join.directory, join.other_directory)
    return next((place for place in places if place and os.path.isdir(place)), None)


def _sampler(stack: ExitStack, join: Join, clock: SteadyClock, waiter: Waiter) -> Sampler:
    sampler = start_sampler(
        waiter, clock, join.sampler_arguments, join.patience_seconds, host_of(join)
    )
    stack.callback(sampler.close)
    return sampler


def _processes(
    stack: ExitStack,
    join: Join,
    folder: RunFolder,
    waiter: Waiter,
    output: LogFiles,
    others: Callable[[], Sequence[int]],
    lease: _HostLease | None,
) -> Processes:
    spawner = Spawner(
        shell=shell_for(join.shell),
        environment=os.environb,
        run_name=join.run_name,
        run_id=join.run_id,
        wrapper=WRAPPER if lease is None else leased_wrapper(watchdog()),
        nice=join.nice,
        lease=lease,
        other_directory=_directory(join),
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


def _logs(join: Join) -> LogFiles:
    """At the same place as where the dispatcher is, if it can be. The way there is not made: then
    the folder in which commands are to run would seem to be here."""
    with suppress(UsageError):
        if os.path.isdir(os.path.dirname(join.logs)):
            return LogFiles(Path(join.logs) / join.run_name, resumed=True)
    return LogFiles(default_state() / "logs" / join.run_name, resumed=True)


def _is_shared(join: Join) -> bool:
    """Whether what is written there can be read where the dispatcher is."""
    return os.path.exists(os.path.join(join.logs, join.run_name, join.logs_mark))


def _hello(join: Join, clock: SteadyClock, pilot: Pilot | None) -> Hello:
    return Hello(
        __version__,
        os.urandom(8).hex(),
        os.uname().nodename,
        (pilot and pilot.cores) or os.cpu_count() or 1,
        _is_shared(join),
        "" if pilot is None else pilot.number,
        clock.now(),
        {"pid": os.getpid(), "python": sys.version.split()[0]},
    )


def _addresses(join: Join) -> Sequence[str]:
    """Where ssh came from is where the dispatcher is, if no other host is between the two."""
    from smartsched.config import came_by_ssh_from

    client = came_by_ssh_from()
    ports = list(dict.fromkeys(address.rpartition(":")[2] for address in join.addresses))
    if client is None or not ports:
        return join.addresses
    host = f"[{client}]" if ":" in client else client
    return list(dict.fromkeys([*(f"{host}:{port}" for port in ports), *join.addresses]))


def _say(text: str) -> None:
    print(f"smartsched: {on_the_wall(SteadyClock().now())} {text}", file=sys.stderr, flush=True)
