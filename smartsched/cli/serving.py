"""The agent's life: orders and reports go to and fro until the run is over, or its dispatcher is
gone for good and nothing runs."""

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from smartsched.agent import Agent
from smartsched.cli.batch import Pilot
from smartsched.cli.claiming import claims_in
from smartsched.cli.departed import mark_the_end
from smartsched.cli.host_parts import (
    Guarded,
    HostLease,
    addresses_of,
    hello_of,
    is_shared,
    lease_file,
    logs_of,
    processes_of,
    sampler_of,
    say,
)
from smartsched.cli.hosting import JoinSource, host_of, join_came_at, read_join
from smartsched.config import offered_gpus
from smartsched.core import wire
from smartsched.core.join import Join
from smartsched.core.model import Timestamp
from smartsched.edges.clock import SteadyClock
from smartsched.edges.engine.link import Connected, Disconnected, Link, Message, NotReached
from smartsched.edges.runs import RunFolder
from smartsched.edges.shipping import LogFeed
from smartsched.edges.waiter import Waiter
from smartsched.errors import BadMessageError, StateError

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
        lease = None if join.lease_seconds is None else HostLease(lease_file(join), clock)
        self._lease = lease
        self._output = logs_of(join)
        stack.callback(self._output.close)
        self._processes = processes_of(
            stack, join, folder, waiter, self._output, self._sampler_pids, lease
        )
        self._sampler = sampler_of(stack, join, clock, waiter)
        self._guarded = Guarded(self._sampler, join)
        claims = claims_in(join.claims, join.run_name, say)
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
        return list(addresses_of(join) if self._pilot is None else join.addresses)

    def _feed(self) -> LogFeed | None:
        """Logs are sent where the dispatcher cannot read them."""
        if not self._join.sends_logs or is_shared(self._join):
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
            say("leaving: its jobs are told to save their state, and started anew elsewhere")
        self._agent.leaves = True
        self._report_at = float("-inf")

    def _listen(self, now: Timestamp) -> None:
        for news in self._link.take():
            match news:
                case Connected(address):
                    say(f"connected to the dispatcher at {address}")
                    self._is_connected = True
                    self._report_at = float("-inf")
                    self._agent.joined()
                case Message(message, at_monotonic):
                    self._obey(message, self._clock.at_monotonic(at_monotonic))
                case Disconnected(why):
                    say(f"disconnected: {why}")
                    self._is_connected = False
                case NotReached(address, why):
                    say(f"cannot reach {address}: {why}")
        if self._is_connected:
            self._last_contact = now
        else:
            self._read_join_again(now)

    def _obey(self, message: bytes, arrived_at: Timestamp) -> None:
        try:
            orders = wire.decode_orders(message)
        except BadMessageError as error:
            say(f"orders that cannot be read: {error}")
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
