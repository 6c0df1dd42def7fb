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
from smartsched.cli.host import this_place
from smartsched.cli.hosting import JoinSource, host_of, join_came_at, read_join, token_of
from smartsched.cli.limits import read_limits
from smartsched.cli.sampling import SamplerProcess
from smartsched.cli.session import default_state
from smartsched.cli.wiring import start_sampler
from smartsched.config import offered_gpus, shell_for
from smartsched.core import wire
from smartsched.core.join import Join
from smartsched.core.limits import Limits
from smartsched.core.messages import Hello
from smartsched.core.model import GpuKey, JobId, RunKey, SamplerTrouble, Seen, Timestamp
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
from smartsched.ports import Clock
from smartsched.ports import Sampler as AnySampler

_REPORT_EVERY_SECONDS = 1.0
# Without a dispatcher, and with nothing that runs: as long as a lease lasts, and no longer than so.
_WAITS_FOR_ITS_DISPATCHER_SECONDS = 300.0
# Meanwhile nobody else gets what a batch system has granted us.
_PILOT_WAITS_SECONDS = 60.0
# A dispatcher that is back by then finds its claims as they were.
_CLAIMS_FOR_NOBODY_SECONDS = 15.0
_ANSWERS_WITHIN_SECONDS = 5.0
# When there is nothing else to do any more, for what is left of logs.
_LOGS_TAKE_SECONDS = 60.0


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
        self._logs_until: Timestamp = float("inf")
        self._joins_read_at = 0.0
        self._join_came_at = 0  # which of the files in our folder was read; 0: none yet
        lease = None if join.lease_seconds is None else HostLease(_lease_file(join), clock)
        self._lease = lease
        self._output = _logs(join)
        stack.callback(self._output.close)
        self._processes = _processes(
            stack, join, folder, waiter, self._output, self._sampler_pids, lease
        )
        self._sampler = _sampler(stack, join, clock, waiter)
        self._guarded = Guarded(self._sampler, join)
        claims = claims_in(join.claims, join.run_name, _say)
        stack.callback(claims.close)
        self._agent = Agent(
            host_of(join),
            self._guarded,
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
            hello=wire.encode_hello(hello_of(join, clock, pilot, self._output)),
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
            self._agent.is_unfit = bool(self._guarded.why)
            if self._is_connected and (self._agent.has_news() or now >= self._report_at):
                self._link.send(wire.encode_report(self._agent.report(now)))
                self._report_at = now + _REPORT_EVERY_SECONDS
                if self._agent.leaves and self._left_at is None:
                    self._left_at = now
            elif not self._is_connected:
                self._agent.forget_what_was_seen()
                if now > self._last_contact + _CLAIMS_FOR_NOBODY_SECONDS:
                    self._agent.give_up_idle_gpus(now)
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
            return not self._has_logs_to_send()
        if agent.leaves and agent.is_idle():
            is_known = agent.is_on_record() and self._is_known_to_leave()
            return not self._is_connected or (is_known and not self._has_logs_to_send())
        patience = patience_without_dispatcher(self._join, is_pilot=self._pilot is not None)
        is_alone = not self._is_connected and self._clock.now() > self._last_contact + patience
        return is_alone and agent.is_idle()

    def _has_logs_to_send(self) -> bool:
        """Asked when nothing else is left to do."""
        now = self._clock.now()
        self._logs_until = min(self._logs_until, now + _LOGS_TAKE_SECONDS)
        return self._is_connected and self._agent.has_logs() and now < self._logs_until

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
                    self._obey(message, self._clock.at_monotonic(at_monotonic))
                case Disconnected(why):
                    _say(f"disconnected: {why}")
                    self._is_connected = False
                case NotReached(address, why):
                    _say(f"cannot reach {address}: {why}")
        if self._is_connected:
            self._last_contact = now
        else:
            self._read_join_again(now)

    def _obey(self, message: bytes, arrived_at: Timestamp) -> None:
        try:
            orders = wire.decode_orders(message)
        except BadMessageError as error:
            _say(f"orders that cannot be read: {error}")
            self._link.drop()  # over another connection all that counts is said again
            return
        if orders.renewed is not None:
            self._heard_by_dispatcher = max(self._heard_by_dispatcher, orders.renewed)
        now = self._clock.now()  # what was obeyed just before may have taken long
        self._agent.obey(orders, min(arrived_at, now), now)

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


def patience_without_dispatcher(join: Join, *, is_pilot: bool) -> float:
    """In seconds, for an agent that has nothing to look after."""
    lease = float("inf") if join.lease_seconds is None else join.lease_seconds
    longest = _PILOT_WAITS_SECONDS if is_pilot else _WAITS_FOR_ITS_DISPATCHER_SECONDS
    return min(lease, longest)


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
                _say(self._trouble)


def _lease_file(join: Join) -> Lease:
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


def _sampler(stack: ExitStack, join: Join, clock: SteadyClock, waiter: Waiter) -> Sampler:
    sampler = start_sampler(
        waiter,
        clock,
        SamplerProcess(join.sampler_arguments),
        join.patience_seconds,
        host_of(join),
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


def hello_of(join: Join, clock: SteadyClock, pilot: Pilot | None, output: LogFiles) -> Hello:
    """Raises UsageError for limits that cannot be meant; what a batch system grants has none."""
    limits = read_limits() if pilot is None else Limits()
    return Hello(
        __version__,
        os.urandom(8).hex(),
        os.uname().nodename,
        (pilot and pilot.cores) or os.cpu_count() or 1,
        _is_shared(join),
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
    """A full disk must not end us."""
    with suppress(OSError):
        print(f"smartsched: {on_the_wall(SteadyClock().now())} {text}", file=sys.stderr, flush=True)
