"""Several hosts in virtual time, each with the agent itself, and a dispatcher that may die: behind
the ports, nothing is real.

A host is a pretend box with a clock of its own. Between it and the dispatcher there is a line that
may be cut, of which neither side knows until it has heard nothing for too long. What was sent by
then arrives late, as long as the connection lives; it never arrives over another one.
"""

# ruff: noqa: ARG002  # a fake has the arguments of its port

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from msgspec.structs import replace

from smartsched.agent import Agent
from smartsched.core import wire
from smartsched.core.apply import replay
from smartsched.core.decide import Decision
from smartsched.core.events import Event, RunBegan, RunResumed
from smartsched.core.messages import Came, Hello, News, Orders, Said, Went
from smartsched.core.messages import Connection as Name
from smartsched.core.model import HostAway, HostName, Lost, RunKey, Timestamp
from smartsched.core.policy import Policy
from smartsched.core.records import decode_line
from smartsched.core.standing import BEING_STARTED
from smartsched.core.state import State
from smartsched.fleet.claims import FleetClaims
from smartsched.fleet.gpus import FleetGpus
from smartsched.fleet.host import Patience
from smartsched.fleet.hosts import Hosts
from smartsched.fleet.launcher import FleetLauncher
from smartsched.loop import Loop, World
from smartsched.simulation.box import (
    DispatcherDied,
    LivingRun,
    PretendBox,
    PretendJob,
    VirtualClock,
)

T0 = 1_000_000.0
FOREVER = float("inf")
# Whoever has heard nothing for so long takes a connection for dead.
SILENT_SECONDS = 8.0
REPORT_EVERY_SECONDS = 1.0
# Beyond the grace, so long a watchdog needs at most to end a run whose lease is over.
WATCHDOG_TAKES_SECONDS = 4.0
# What a command leaves behind that ends while the lease was renewed so lately is under no lease.
IN_TOUCH_SECONDS = 5.0
CORES = 2
MOST_STEPS_AT_ONE_MOMENT = 300
_COMES_TOO_LATE = 0.1  # so often
_TICK = 1e-6  # what is due later than now is so by more than floats are rounded
_RETRANSMITTED_AFTER_SECONDS = 0.3
_RECONNECTS_AFTER_SECONDS = 1.0
_STARTED_AGAIN_AFTER_SECONDS = 2.0
_WAITS_FOR_ITS_DISPATCHER_SECONDS = 30.0


@dataclass(frozen=True)
class Terms:
    """On which runs go on where nobody can be reached."""

    lease_seconds: float | None = None  # None: for ever
    margin_seconds: float = 0.0  # from the end of a lease until the runs are gone for sure

    @property
    def lost_after_seconds(self) -> float:
        lease = self.lease_seconds
        return float("inf") if lease is None else lease + self.margin_seconds


@dataclass(frozen=True)
class HostPlan:
    """One host. `ahead_seconds`, `drift`: of its clock, against the true time."""

    gpus: int = 1
    ahead_seconds: float = 0.0
    drift: float = 0.0
    delay_seconds: float = 0.001


@dataclass(frozen=True)
class Fault:
    """Something that happens to a host, so long after the beginning. `cut`: of its line; `break`:
    of its connection, with all that is under way; `death` of its agent at one of its next
    moments; `restart` of its agent, by somebody else; `freeze` of its agent; `outage` of the whole
    host; `stall` of the dispatcher, in the middle of what it does next."""

    at: float
    kind: str
    host: int
    lasts: float = 0.0


@dataclass
class Line:
    """The way to a host."""

    delay_seconds: float
    cuts: list[tuple[float, float]] = field(default_factory=list)

    def passes_at(self, at: float) -> float:
        """When what should arrive at some time does."""
        for begins, ends in sorted(self.cuts):
            if begins <= at < ends:
                at = ends + _RETRANSMITTED_AFTER_SECONDS
        return at

    def is_up(self, at: float) -> bool:
        return self.passes_at(at) == at


@dataclass
class Connection:
    """Messages under way with when they are due; None: the other side has closed it."""

    host: HostName
    agent: "AgentProcess"
    name: Name
    to_dispatcher: deque[tuple[float, bytes | None]] = field(default_factory=deque)
    to_agent: deque[tuple[float, bytes | None]] = field(default_factory=deque)
    is_open_above: bool = True
    is_open_below: bool = True
    has_come: bool = False  # the dispatcher knows of it
    heard_above: float = 0.0
    heard_below: float = 0.0


@dataclass
class HostLease:
    host: "PretendHost"

    def renew(self, until: Timestamp) -> None:
        self.host.lease_until, self.host.lease_renewed_at = until, self.host.box.clock.now()


class PretendHost:
    """A box whose agent may die, and which may lose power."""

    def __init__(self, cluster: "Cluster", number: int, plan: HostPlan) -> None:
        desk = cluster.desk
        self.name = HostName(f"h{number}")
        self.plan = plan
        self.line = Line(plan.delay_seconds)
        self.agent: AgentProcess | None = None
        self.has_power = True
        self.frozen_until = float("-inf")
        self.lease_until: float | None = None  # None: it was not renewed yet
        self.lease_renewed_at = float("-inf")
        self.under_lease: set[RunKey] = set()  # whose watchdog still looks on
        self.box = PretendBox(
            plan.gpus,
            desk.jobs,
            host=self.name,
            first_uuid=100 * number,
            clock=VirtualClock(T0, plan.ahead_seconds),
            placed=desk.placed,
            begun=desk.begun,
            revoked=desk.revoked,
            launched=desk.launched,
            ended=desk.ended,
            last_pid=1000 * number,
        )
        if cluster.terms.lease_seconds is not None:
            self.box.start_fails = lambda _: self._why_no_start()

    def set_clock(self, at: float) -> None:
        self.box.clock.time = at
        self.box.clock.ahead_seconds = self.plan.ahead_seconds + self.plan.drift * (at - T0)

    def true_time(self, local: Timestamp) -> float:
        left = local - self.box.clock.now()
        return self.box.clock.time + (max(left / (1 + self.plan.drift), _TICK) if left > 0 else 0)

    def enforce_lease(self, grace_seconds: float) -> None:
        """As watchdogs do: whatever the agent does, runs end when their lease does."""
        self._let_go_of_what_ended()
        if self.lease_until is None or self.box.clock.now() < self.lease_until:
            return
        for key in list(self.under_lease):
            self.under_lease.discard(key)
            if (run := self.box.living.get(key)) is not None:
                self._end_by_lease(run, grace_seconds)

    def lease_ends_at(self) -> float:
        if self.lease_until is None or not self.under_lease:
            return FOREVER
        return self.true_time(self.lease_until)

    def bury_whom_nobody_looks_after(self) -> None:
        """Their GPUs are free for that, too."""
        watched = () if self.agent is None else self.agent.launcher.living()
        for key in [key for key in self.box.living if key not in watched]:
            if not self.lives(key):
                del self.box.living[key]

    def lives(self, key: RunKey) -> bool:
        """Whether a process of it does, by the truth."""
        run = self.box.living.get(key)
        return run is not None and run.last_ends_at > self.box.clock.time

    def next_end(self) -> float:
        now = self.box.clock.time
        ends = [
            at
            for run in self.box.living.values()
            for at in (run.shell_ends_at, run.last_ends_at)
            if at > now
        ]
        return min(ends, default=FOREVER)

    def _why_no_start(self) -> str | None:
        is_over = self.lease_until is None or self.box.clock.now() >= self.lease_until
        return "the lease of this host has run out" if is_over else None

    def _let_go_of_what_ended(self) -> None:
        """A watchdog whose run's command has ended goes, unless the host is cut off just then."""
        now = self.box.clock
        is_in_touch = now.now() - self.lease_renewed_at < IN_TOUCH_SECONDS
        for key in list(self.under_lease):
            run = self.box.living.get(key)
            has_ended = run is None or run.shell_ends_at <= now.time
            if has_ended and (is_in_touch or not self.lives(key)):
                self.under_lease.discard(key)

    def _end_by_lease(self, run: LivingRun, grace_seconds: float) -> None:
        now = self.box.clock.time
        takes = grace_seconds + WATCHDOG_TAKES_SECONDS if run.job.ignores_sigterm else 0.0
        if run.shell_ends_at > now + takes:
            run.shell_ends_at = now + takes
            run.ending = Lost("its host was out of reach for longer than --lease")
        run.last_ends_at = min(run.last_ends_at, now + takes)
        run.last_ends_at = max(run.last_ends_at, run.shell_ends_at)


class AgentProcess:
    """The process in which an agent lives."""

    def __init__(self, cluster: "Cluster", host: PretendHost, number: int) -> None:
        self._cluster, self.host = cluster, host
        gpus, self.launcher, claims = host.box.edges()
        lease_seconds = cluster.terms.lease_seconds
        self.agent = Agent(
            host.name,
            gpus,
            self.launcher,
            claims,
            lease=None if lease_seconds is None else HostLease(host),
            lease_seconds=lease_seconds or 0.0,
        )
        self.name = f"{host.name}-{number}"
        self.connection: Connection | None = None
        self.inbox: deque[bytes | None] = deque()
        self.wakes_at = host.box.clock.time
        self.is_over = False
        self._is_connected = False
        self._report_at = float("-inf")
        self._tries_at = float("-inf")  # to connect, by its own clock
        self._last_contact = host.box.clock.now()

    def step(self) -> None:
        now, agent = self.host.box.clock.now(), self.agent
        self._listen(now)
        agent.look(now)
        if self._is_connected and (agent.has_news() or now >= self._report_at):
            self._say(wire.encode_report(agent.report(now)))
            self._report_at = now + REPORT_EVERY_SECONDS
        elif not self._is_connected:
            agent.forget_what_was_seen()
        self.is_over = self._is_done(now)
        wakes_at = min(agent.wake_at(), now + REPORT_EVERY_SECONDS)
        if self._is_connected:
            wakes_at = min(wakes_at, self._report_at)
        self.wakes_at = self.host.true_time(wakes_at)

    def hello(self) -> bytes:
        sent_at = self.host.box.clock.now()
        return wire.encode_hello(Hello("", self.name, "node", CORES, sent_at=sent_at))

    def _say(self, message: bytes) -> None:
        if self.connection is not None and self.connection.is_open_below:
            self._cluster.send(self.connection, self.connection.to_dispatcher, message)

    def _is_done(self, now: Timestamp) -> bool:
        is_idle = self.agent.is_idle()
        waited = now > self._last_contact + _WAITS_FOR_ITS_DISPATCHER_SECONDS
        return is_idle and (self.agent.is_told_to_leave or (not self._is_connected and waited))

    def _listen(self, now: Timestamp) -> None:
        while self.inbox:
            message = self.inbox.popleft()
            if message is None:
                self._is_connected, self.connection = False, None
                self._tries_at = now + _RECONNECTS_AFTER_SECONDS
            elif not message:
                self._is_connected, self._report_at = True, float("-inf")
                self.agent.joined()
            else:
                self.agent.obey(wire.decode_orders(message), now, now)
        if self._is_connected:
            self._last_contact = now
        elif self.connection is None and now >= self._tries_at:
            self._tries_at = now + _RECONNECTS_AFTER_SECONDS
            self._cluster.connect(self)


class PretendTransport:
    """A Transport, and with it all that a dispatcher's process has of connections."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self.news: list[News] = []
        self.members: dict[HostName, Connection] = {}

    def send(self, connection: Name, orders: Orders) -> bool:
        desk = self._cluster.desk
        self._cluster.stall()
        desk.moment()
        member = next((each for each in self.members.values() if each.name == connection), None)
        if member is not None:
            now = replace(orders, sent_at=desk.clock.now())
            self._cluster.send(member, member.to_agent, wire.encode_orders(now))
        desk.moment()
        return True

    def take(self, now: Timestamp) -> list[News]:
        """Some of it may have come a moment too late to be taken before something is sent."""
        taken = len(self.news)
        if taken and self._cluster.random.random() < _COMES_TOO_LATE:
            taken = self._cluster.random.randrange(taken)
        news, self.news = self.news[:taken], self.news[taken:]
        return news

    def drop(self, connection: Name, why: str, keep_out_seconds: float = 0.0) -> None:
        for member in list(self.members.values()):
            if member.name == connection:
                self.leave(member, "dropped")

    def wake_at(self) -> Timestamp:
        return FOREVER  # the cluster wakes for its news

    def hear(self, connection: Connection, message: bytes) -> None:
        host = connection.host
        if connection.has_come:
            report = wire.decode_report(message, host)
            at = self._cluster.desk.clock.now()
            self.news.append(Said(host, report, at, connection.name))
            return
        if (before := self.members.get(host)) is not None:
            self.leave(before, "its agent has come anew")
        connection.has_come = True
        self.members[host] = connection
        self.news.append(Came(host, wire.decode_hello(message), connection.name))
        self._cluster.send(connection, connection.to_agent, b"")

    def leave(self, connection: Connection, why: str) -> None:
        self._cluster.close_above(connection)
        if self.members.get(connection.host) is connection:
            del self.members[connection.host]
            self.news.append(Went(connection.host, why, connection.name))


class PretendRecruiter:
    """Starts agents where there are none, a while after they are gone."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self._news = [HostAway(host, BEING_STARTED) for host in cluster.hosts]
        self._due = dict.fromkeys(cluster.hosts, cluster.desk.clock.now())

    def take(self, now: Timestamp) -> list[HostAway]:
        news, self._news = self._news, []
        for host in [host for host, due in self._due.items() if now >= due]:
            self._due[host] = now + _STARTED_AGAIN_AFTER_SECONDS
            if not self._cluster.start_agent(host):
                news.append(HostAway(host, "ssh does not reach it; trying again"))
        return news

    def came(self, host: HostName, now: Timestamp) -> None:
        self._due.pop(host, None)

    def went(self, host: HostName, now: Timestamp, *, again_in_seconds: float) -> None:
        if again_in_seconds < FOREVER:
            self._due[host] = now + max(again_in_seconds, _STARTED_AGAIN_AFTER_SECONDS)

    def wake_at(self) -> Timestamp:
        return min(self._due.values(), default=FOREVER)


class Cluster:
    """The dispatcher's desk and the hosts. `on_step` looks on whenever something was done."""

    def __init__(
        self,
        hosts: Sequence[HostPlan],
        jobs: Callable[[str], PretendJob],
        commands: Sequence[tuple[float, str]],
        *,
        terms: Terms,
        faults: Sequence[Fault] = (),
        seed: int = 0,
    ) -> None:
        self.terms = terms
        self.desk = PretendBox(0, jobs, commands, host=HostName("desk"), clock=VirtualClock(T0))
        self.hosts = {
            host.name: host
            for host in (PretendHost(self, number, plan) for number, plan in enumerate(hosts))
        }
        self.on_step: list[Callable[[], None]] = []
        self.transport: PretendTransport | None = None  # None: no dispatcher lives
        self.grace_seconds = 0.0
        self._connections: list[Connection] = []
        self._faults = sorted(faults, key=lambda fault: fault.at)
        self.random = Random(seed)
        self._connected = 0
        self._stalls_for = 0.0
        self._agents = 0
        self._steps_at = (T0, 0)

    @property
    def now(self) -> float:
        return self.desk.clock.time

    # --- dispatchers

    def run(self, policy: Policy, seconds: float = 1e6) -> Loop:
        desk = self.desk
        began = RunBegan(desk.clock.now(), policy.run_id, desk.host, "/", ("list",), None, "{}")
        desk.append(began)
        desk.events = [began]
        desk.durable_records = 1
        state = replay(policy, [began])
        with self._dispatcher(state, policy) as loop:
            self._go_on(loop, seconds)
        return loop

    def resume(self, policy: Policy, seconds: float = 1e6, *, adopt: bool = True) -> Loop:
        desk = self.desk
        desk.events = list(self.on_disk())
        state = replay(policy, desk.events)
        with self._dispatcher(state, policy) as loop:
            loop.resume(RunResumed(desk.clock.now(), desk.host, "{}"), None, adopt=adopt)
            self._go_on(loop, seconds)
        return loop

    def on_disk(self) -> Iterator[Event]:
        for number, line in enumerate(self.desk.journal, start=1):
            yield decode_line(line[:-1], number)

    def lose_power(self) -> None:
        """The dispatcher's machine does, after its dispatcher has died."""
        del self.desk.journal[self.desk.durable_records :]

    def stall(self) -> None:
        """If it is time to: what comes meanwhile, the dispatcher learns later."""
        until, self._stalls_for = self.now + self._stalls_for, 0.0
        while self.now < until:
            self._advance(until)

    def pass_time(self, seconds: float) -> None:
        """While no dispatcher lives."""
        assert self.transport is None
        until = self.now + seconds
        while self.now < until:
            self._advance(until)

    @contextmanager
    def _dispatcher(self, state: State, policy: Policy) -> Iterator[Loop]:
        try:
            yield Loop(self._world(state, policy), state)
        finally:
            for connection in self._connections:
                self.close_above(connection)
            self.transport = None
            self.desk.forget_sync()

    def _world(self, state: State, policy: Policy) -> World:
        self.grace_seconds = policy.grace_seconds
        self.transport = PretendTransport(self)
        self.fleet = Hosts(
            self.transport,
            state,
            patience=Patience(self.terms.lost_after_seconds),
            recruiter=PretendRecruiter(self),
            named=self.hosts,
        )
        world = self.desk.world(state.read_to)
        return replace(
            world,
            gpus=FleetGpus(self.fleet),
            launcher=FleetLauncher(self.fleet, state),
            claims=FleetClaims(self.fleet),
        )

    def _go_on(self, loop: Loop, seconds: float) -> None:
        deadline = self.now + seconds
        while not (decision := self._tick(loop)).over and self.now < deadline:
            left = loop.wake_at(decision) - self.desk.clock.now()
            self._wait(min(self.now + (max(left, _TICK) if left > 0 else 0), deadline))
        if decision.over:
            loop.close(self.desk.clock.now())
            self._finish()

    def _tick(self, loop: Loop) -> Decision:
        decision = loop.tick()
        self._look_on()
        return decision

    def _finish(self) -> None:
        for host in self.fleet.by_name.values():
            self.fleet.send_off(host)
        until = self.now + 5.0
        while any(host.here for host in self.fleet.by_name.values()) and self.now < until:
            self._advance(until)
            self.fleet.pump(self.desk.clock.now())

    # --- time

    def _wait(self, until: float) -> None:
        """Until something has come for the dispatcher."""
        assert self.transport is not None
        until = max(until, self.now)
        while not self.transport.news and not self._is_asked() and self.desk.synced_at > self.now:
            if self.now >= until:
                return
            self._advance(until)

    def _is_asked(self) -> bool:
        return any(at <= self.now for at, _ in (*self.desk.requests, *self.desk.asked))

    def _advance(self, until: float) -> None:
        """To what happens next, at most so far."""
        at = max(self.now, min(until, self._next_happening()))
        self._no_circles(at)
        ends = [host.next_end() for host in self.hosts.values()]
        self.desk.clock.time = at
        for host in self.hosts.values():
            host.set_clock(at)
        self._strike()
        for host in self.hosts.values():
            host.enforce_lease(self.grace_seconds)
            host.box.let_end()
            host.bury_whom_nobody_looks_after()
        self._deliver()
        self._find_silence()
        for host, end in zip(self.hosts.values(), ends, strict=True):
            self._step(host, has_ended=end <= at)

    def _no_circles(self, at: float) -> None:
        before, count = self._steps_at
        self._steps_at = (at, count + 1 if at == before else 1)
        assert self._steps_at[1] <= MOST_STEPS_AT_ONE_MOMENT, "nothing but messages to and fro"

    def _next_happening(self) -> float:
        times = [T0 + fault.at for fault in self._faults[:1]]
        if self.desk.synced_at > self.now:  # else a dispatcher that stalls has yet to hear of it
            times.append(self.desk.synced_at)
        times += [at for at, _ in (*self.desk.requests, *self.desk.asked) if at > self.now]
        for host in self.hosts.values():
            times += [host.next_end(), host.lease_ends_at()]
            if host.agent is not None:
                due = self.now if host.agent.inbox else host.agent.wakes_at
                times.append(max(due, host.frozen_until))
        for each in self._connections:
            line = self.hosts[each.host].line
            for queue in (each.to_dispatcher, each.to_agent):
                if queue:
                    times.append(line.passes_at(queue[0][0]))
            times += [at for at in self._silence_known_at(each) if at is not None]
        return min(times, default=FOREVER)

    def _step(self, host: PretendHost, *, has_ended: bool) -> None:
        process = host.agent
        if process is None or self.now < host.frozen_until:
            return
        if not (process.inbox or has_ended or process.wakes_at <= self.now):
            return
        try:
            process.step()
        except DispatcherDied:
            self._end_agent(host)
        else:
            if process.is_over:
                self._end_agent(host)
        host.under_lease |= host.box.living.keys() & self._just_launched()
        self._look_on()

    def _just_launched(self) -> set[RunKey]:
        return {run for at, run, *_ in self.desk.launched[-8:] if at == self.now}

    def _look_on(self) -> None:
        for look in self.on_step:
            look()

    # --- connections

    def connect(self, process: AgentProcess) -> None:
        host = process.host
        if self.transport is None or not host.line.is_up(self.now):
            return
        self._connected += 1
        connection = Connection(host.name, process, f"{host.name}.{self._connected}")
        connection.heard_above = connection.heard_below = self.now
        process.connection = connection
        self._connections.append(connection)
        self.send(connection, connection.to_dispatcher, process.hello())

    def send(
        self,
        connection: Connection,
        queue: deque[tuple[float, bytes | None]],
        message: bytes | None,
    ) -> None:
        delay = self.hosts[connection.host].line.delay_seconds * self.random.uniform(1.0, 1.5)
        due = max(self.now + delay, queue[-1][0] if queue else 0.0)
        queue.append((due, message))

    def close_above(self, connection: Connection) -> None:
        """What was sent goes out first, if it can."""
        if connection.is_open_above:
            connection.is_open_above = False
            connection.to_dispatcher.clear()
            self.send(connection, connection.to_agent, None)

    def close_below(self, connection: Connection) -> None:
        if connection.is_open_below:
            connection.is_open_below = False
            connection.to_agent.clear()
            if connection.agent.connection is connection:
                connection.agent.inbox.append(None)
            self.send(connection, connection.to_dispatcher, None)

    def _deliver(self) -> None:
        for each in self._connections:
            line = self.hosts[each.host].line
            while each.to_dispatcher and line.passes_at(each.to_dispatcher[0][0]) <= self.now:
                self._deliver_above(each, each.to_dispatcher.popleft()[1])
            while each.to_agent and line.passes_at(each.to_agent[0][0]) <= self.now:
                self._deliver_below(each, each.to_agent.popleft()[1])
        self._connections = [
            each for each in self._connections if each.is_open_above or each.is_open_below
        ]

    def _deliver_above(self, connection: Connection, message: bytes | None) -> None:
        if not connection.is_open_above or self.transport is None:
            return
        connection.heard_above = self.now
        if message is None:
            self.transport.leave(connection, "it left")
        else:
            self.transport.hear(connection, message)

    def _deliver_below(self, connection: Connection, message: bytes | None) -> None:
        if not connection.is_open_below:
            return
        connection.heard_below = self.now
        if message is None:
            self.close_below(connection)
        else:
            connection.agent.inbox.append(message)

    def _silence_known_at(self, connection: Connection) -> tuple[float | None, float | None]:
        above = connection.heard_above + SILENT_SECONDS if connection.is_open_above else None
        below = connection.heard_below + SILENT_SECONDS if connection.is_open_below else None
        if below is not None:
            below = max(below, self.hosts[connection.host].frozen_until)
        return above, below

    def _find_silence(self) -> None:
        for each in self._connections:
            above, below = self._silence_known_at(each)
            if above is not None and above <= self.now and self.transport is not None:
                self.transport.leave(each, "nothing was heard of it")
            if below is not None and below <= self.now:
                self.close_below(each)

    # --- agents and what happens to them

    def start_agent(self, name: HostName) -> bool:
        """Whether the host could be reached. One that is there already stays."""
        host = self.hosts[name]
        if not host.has_power or not host.line.is_up(self.now):
            return False
        if host.agent is None:
            self._agents += 1
            host.agent = AgentProcess(self, host, self._agents)
        return True

    def _end_agent(self, host: PretendHost, *, says_goodbye: bool = True) -> None:
        """Its system closes its connections; of a host without power nobody hears that."""
        process, host.agent = host.agent, None
        host.box.die_at = None
        if process is None:
            return
        host.box.claimed.clear()
        for each in self._connections:
            if each.agent is process and each.is_open_below:
                each.is_open_below = False
                each.to_agent.clear()
                if says_goodbye:
                    self.send(each, each.to_dispatcher, None)

    def _strike(self) -> None:
        while self._faults and T0 + self._faults[0].at <= self.now:
            fault = self._faults.pop(0)
            hosts = list(self.hosts.values())
            self._befall(hosts[fault.host % len(hosts)], fault)

    def _befall(self, host: PretendHost, fault: Fault) -> None:
        match fault.kind:
            case "cut":
                host.line.cuts.append((self.now, self.now + fault.lasts))
            case "break":
                for each in self._connections:
                    if each.host == host.name:
                        self._break(each)
            case "death":
                host.box.die_at = host.box.moments + 1 + int(fault.lasts)
                if fault.lasts == 0:
                    self._end_agent(host)
            case "restart":
                self._end_agent(host)
                self.start_agent(host.name)
            case "stall":
                self._stalls_for = fault.lasts
            case "freeze":
                host.frozen_until = max(host.frozen_until, self.now + fault.lasts)
            case "outage":
                self._end_agent(host, says_goodbye=False)
                host.box.reboot()
                host.under_lease.clear()
                host.has_power = False
                self._faults.append(Fault(fault.at + fault.lasts, "power", fault.host))
                self._faults.sort(key=lambda each: each.at)
            case "power":
                host.has_power, host.frozen_until = True, float("-inf")
            case _:
                raise AssertionError(fault)

    def _break(self, connection: Connection) -> None:
        connection.to_agent.clear()
        connection.to_dispatcher.clear()
        if self.transport is not None:
            self.transport.leave(connection, "connection reset")
        connection.to_agent.clear()
        if connection.is_open_below:
            self.close_below(connection)
        connection.to_dispatcher.clear()
