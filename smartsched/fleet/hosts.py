"""Who of the agents is here, what each was told, and what each has said.

A host whose agent is gone may be gone itself, or merely cut off: its runs go on until the lease is
over that their agent had. Only then are they taken for lost, so that no job runs twice. Nor does it
mean anything for them that another machine answers to the name of theirs: it is not let in before
they are lost.

An agent of another version cannot be talked to, but that it may leave. It is told so only where no
run is believed to be: whoever leaves takes with him what is known of ends there. Where there are
runs, it is kept out and left alone: they go on until the lease is over, and an agent of our version
takes them up if it gets its place before.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec.structs import replace

from smartsched.core import words
from smartsched.core.actions import Checkpoint, Claim, Kill, Terminate
from smartsched.core.messages import (
    AgentEvent,
    Came,
    Chunk,
    Expect,
    Garbled,
    Hello,
    Leave,
    News,
    Order,
    Orders,
    Report,
    Said,
    Went,
)
from smartsched.core.model import (
    ClaimAnswer,
    HostAway,
    HostHere,
    HostName,
    JobId,
    Lingering,
    Observation,
    PilotsStand,
    Run,
    Running,
    Snapshot,
    Stopping,
    Timestamp,
    Unwanted,
)
from smartsched.core.offset import Offset
from smartsched.core.state import State
from smartsched.fleet.host import Host, NoRecruiter, Patience
from smartsched.fleet.owners import Owners
from smartsched.ports import Recruiter, Transport

# Agents report every second; one whose file system hangs does not.
_MUTE_SECONDS = 15.0
# Who was sent away may be another one by then, and a machine whose agent has left is down, or back.
_AGAIN_SECONDS = 30.0


class Hosts:
    """What the parts of the fleet share."""

    def __init__(
        self,
        transport: Transport,
        state: State,
        *,
        version: str = "",
        only: HostName | None = None,
        patience: Patience | None = None,
        recruiter: Recruiter | None = None,
        named: Iterable[HostName] = (),
    ) -> None:
        """`state` is looked at, never changed. `version`: which agents have to have. `only`: the
        one host there is, whatever runs say of theirs; None: there are several. `named`: hosts that
        the user wants to have: their agents may leave, and others are started there."""
        self._transport = transport
        self._state = state
        self._version = version
        self._only = only
        self._recruiter = recruiter or NoRecruiter()
        self._named = frozenset(named)
        self._unwanted: frozenset[JobId] = frozenset()  # as it was last told
        self._now: Timestamp = 0.0  # of the present tick
        self._owners = Owners(state)
        self.patience = patience or Patience()
        self.by_name: dict[HostName, Host] = {}
        self.observations: list[Observation] = []  # not taken yet
        self.answers: list[ClaimAnswer] = []
        self.chunks: list[tuple[Host, Chunk]] = []
        self.notings = 0  # so often all that was heard was in the journal
        self.kept_notings = 0  # and of the first so many, for good

    def of(self, name: HostName, now: Timestamp) -> Host:
        name = self._only or name
        if name not in self.by_name:
            self.by_name[name] = Host(name, renewed_at=now)
        return self.by_name[name]

    def host_of(self, run: Run) -> HostName:
        return self._only or run.status.placement.host

    def lost_at(self, host: Host) -> Timestamp:
        """When its runs are taken for lost, if it is not heard until then."""
        was_heard = host.heard_at > float("-inf")
        unheard = None if was_heard else self.patience.unheard_seconds
        return host.renewed_at + (self.patience.lost_after_seconds if unheard is None else unheard)

    def believed(self) -> Mapping[HostName, list[Run]]:
        """The runs that should be there, by their hosts."""
        found: dict[HostName, list[Run]] = {}
        for run in self._state.runs.values():
            found.setdefault(self.host_of(run), []).append(run)
        return found

    def send(self, host: Host, *orders: Order) -> int:
        """Whoever is not here is told when he comes back. The number of the orders; 0: they were
        not sent, as he is not here, or as they are too long."""
        if not host.here:
            return 0
        host.number += 1
        renewed = host.reported_at if self._only is None else None  # in this process none is late
        message = Orders(host.number, self._now, orders, host.acknowledged, renewed)
        if not self._transport.send(host.connection, message):
            host.number -= 1
            return 0
        return host.number

    def pump(self, now: Timestamp) -> None:
        """Take in whatever has come."""
        self._now = now
        for each in self._recruiter.take(now):
            if isinstance(each, PilotsStand):
                self.observations.append(each)
            elif not (host := self.of(each.host, now)).here:
                if each.for_good:  # whoever says so knows
                    host.is_gone, host.living = True, frozenset()
                self.observations.append(each)
        for news in self._transport.take(now):
            self._take(news, now)
        if self._only is None:
            self._part_with_the_mute(now)
            self._forget(now)

    def _take(self, news: News, now: Timestamp) -> None:
        host = self.of(news.host, now)
        is_known = news.connection == host.connection
        match news:
            case Came(hello=hello):
                host.connection, host.number = news.connection, 0
                self._come(host, hello, now)
            case Garbled(why=why) if host.here or not is_known:
                if not is_known:
                    host.connection, host.number = news.connection, 0
                self._refuse(host, f"it says what cannot be read: {why}", now)
            case Said(report=report, at=at) if host.here and is_known:
                self._hear(host, report, at, now)
            case Went(why=why) if is_known:
                self._go(host, why, now)
            case _:
                pass  # of an agent that was refused

    def announce(self) -> None:
        """Who is here, to the observations; but not before all that he had to tell was taken: what
        has ended there meanwhile is not to be stopped. Who leaves is given no more, whatever else
        he has to tell."""
        for host in self.by_name.values():
            if not host.is_settled or host.announced == host.leaves or host.hello is None:
                continue
            if host.announced is not None or not host.events:
                host.announced = host.leaves
                self._say_it_is_here(host, host.hello)

    def tell_unwanted(self) -> None:
        """To the observations, of which jobs attempts live that nobody wants any more: others at
        them have to wait for that."""
        if self._only is not None:
            return
        living = (run for host in self.by_name.values() for run in host.living)
        jobs = frozenset(run.job for run in living if run not in self._state.runs)
        if jobs != self._unwanted:
            self._unwanted = jobs
            self.observations.append(Unwanted(jobs))

    def _part_with_the_mute(self, now: Timestamp) -> None:
        """Agents that hang, though their connections do not."""
        for host in list(self.by_name.values()):
            if host.here and now > host.heard_at + _MUTE_SECONDS:
                why = f"its agent lives and has said nothing for {_MUTE_SECONDS:.0f} s"
                self._transport.drop(host.connection, why)
                self._go(host, why, now)

    def send_off(self, host: Host) -> None:
        """There is no more work for this host."""
        self.send(host, Leave())
        host.was_sent_off = host.was_told = True

    def dismiss(self, host: Host) -> None:
        """Likewise; and while it is still here, nothing is started there any more."""
        if not host.was_told:
            self.send_off(host)
            self.expect_leave(host)

    def expect_leave(self, host: Host) -> None:
        """It is about to go, for good."""
        host.leaves = host.was_sent_off = True

    def learn(self, name: HostName, events: Iterable[AgentEvent], now: Timestamp) -> None:
        """What has become of runs there, by others than its agent, in our time."""
        host = self.of(name, now)
        if host.hello is None:
            host.offset.heard(now, now)
        host.events.extend((host.heard, event) for event in events)

    def wake_at(self) -> Timestamp:
        away = [host for name, host in self.by_name.items() if not host.here]
        with_runs = self.believed() if away else {}
        losses = [self.lost_at(host) for host in away if host.name in with_runs or host.living]
        if self.answers or self.observations or any(h.events for h in self.by_name.values()):
            return self._now  # it has come behind the back of whoever takes it
        here = [host for host in self.by_name.values() if host.here and self._only is None]
        mute = [host.heard_at + _MUTE_SECONDS + 0.01 for host in here]
        return min([self._transport.wake_at(), self._recruiter.wake_at(), *losses, *mute])

    def _come(self, host: Host, hello: Hello, now: Timestamp) -> None:
        if self._is_another_machine(host, hello):
            self._refuse(host, self._words_on(host, "another machine answers to its name"), now)
            return
        host.heard_at = now
        if self._version and hello.version != self._version:
            self._refuse(host, self._words_on_version(host, hello), now)
            return
        if host.hello is None or host.hello.agent != hello.agent:
            host.heard = host.noted = host.acknowledged = 0
            host.events.clear()
        host.hello, host.here, host.was_sent_off = hello, True, False
        host.is_gone = host.leaves = host.was_told = False
        host.announced = None
        host.offset, host.reported_at = Offset(), None
        if self._only is not None:  # else when it came nobody says: `now` may be long before that
            host.offset.heard(now, now)
        host.obeyed = 0
        host.launched.clear()
        host.looks.clear()
        host.asks.clear()
        runs = self.believed().get(host.name, [])
        claims = [Claim(((gpu, size),)) for gpu, size in host.wanted.items()]
        expected = (*runs, *host.abandoned.values())  # these are found there, to be stopped
        orders = [Expect(expected), *self._said_before(runs), *claims]
        host.expected_by = self.send(host, *orders)
        self._recruiter.came(host.name, now)

    def _said_before(self, runs: list[Run]) -> Iterator[Order]:
        """Whether it was heard then, nobody knows."""
        for run in runs:
            match run.status:
                case Stopping(killed_at=float()) | Lingering(killed_at=float()):
                    yield Kill(run.key)
                case Stopping(why="contention" | "leaving"):
                    asks = self._state.policy.asks_for_checkpoints
                    yield Checkpoint(run.key) if asks else Terminate(run.key)
                case Stopping() | Lingering(asked=True):
                    yield Terminate(run.key)
                case _:
                    pass

    def _is_another_machine(self, host: Host, hello: Hello) -> bool:
        """Whether runs that are believed to be there were started on another one than this, which
        knows nothing of them. Where nobody knows which one it is, it is the same."""
        runs = self.believed().get(host.name, [])
        known = host.hello.machine if host.hello is not None else ""
        for run in runs:
            if not known and isinstance(run.status, Running | Stopping):
                known = run.status.process.machine
        return bool(runs and known and hello.machine and known != hello.machine)

    def _refuse(
        self, host: Host, why: str, now: Timestamp, *, again_in_seconds: float = _AGAIN_SECONDS
    ) -> None:
        """Nothing that it says is heard. With runs there, it is not to go and clear up."""
        host.here = True
        if self.believed().get(host.name) and again_in_seconds < float("inf"):
            self._transport.drop(host.connection, why, again_in_seconds)
        else:
            self.send_off(host)
        self._part(host, now)
        self.observations.append(HostAway(host.name, why))
        self._recruiter.went(host.name, now, again_in_seconds=again_in_seconds)

    def _go(self, host: Host, why: str, now: Timestamp) -> None:
        if not host.here:
            return
        self._part(host, now)
        if host.was_sent_off:
            self._owners.forget(host.name)
            host.is_gone = host.was_told or host.name not in self._named
            self.observations.append(HostAway(host.name, "it has left", for_good=host.is_gone))
            again_in_seconds = float("inf") if host.is_gone else _AGAIN_SECONDS
        else:
            self.observations.append(HostAway(host.name, self._words_on(host, why)))
            again_in_seconds = 0.0
        self._recruiter.went(host.name, now, again_in_seconds=again_in_seconds)

    def _part(self, host: Host, now: Timestamp) -> None:
        """What nobody wants may live on there for as long as what is believed to."""
        host.here = False
        host.living -= self._state.runs.keys()

    def _forget(self, now: Timestamp) -> None:
        """What is of no use any more: what lived on hosts that are gone, and whole hosts."""
        away = [host for host in self.by_name.values() if not host.here]
        for host in away:
            if host.living and now >= self.lost_at(host):
                host.living = frozenset()
        gone = [host for host in away if host.is_gone and not host.events and not host.living]
        believed = self.believed() if gone else {}
        for host in gone:
            if host.name not in believed:
                self._owners.forget(host.name)
                del self.by_name[host.name]

    def _words_on(self, host: Host, why: str) -> str:
        return f"out of reach: {why}{self._words_on_runs(host)}"

    def _words_on_runs(self, host: Host) -> str:
        runs = len(self.believed().get(host.name, []))
        if not runs or self.patience.is_endless:
            return ""
        job, them = ("its job is", "it") if runs == 1 else (f"its {runs} jobs are", "them")
        soon = words.duration(self.patience.lost_after_seconds)
        return f"; {job} started anew if nothing is heard of {them} within {soon}"

    def _words_on_version(self, host: Host, hello: Hello) -> str:
        """An agent that is killed leaves its jobs running, and the next takes them up."""
        text = f"its agent has smartsched {hello.version}, and this is {self._version}"
        if not self.believed().get(host.name):
            return f"{text}: install the same"
        pid = hello.more.get("pid", "PID")
        by_hand = f"install the same there, and end that agent, not its jobs: kill -9 {pid}"
        return f"{text}: {by_hand}{self._words_on_runs(host)}"

    def _hear(self, host: Host, report: Report, at: Timestamp, now: Timestamp) -> None:
        if self._only is None:  # in this process there is one clock
            host.offset.heard(report.sent_at, at)
            if report.heard is not None:
                host.offset.echoed(*report.heard)
        host.obeyed, host.living, host.strays_are_known = report.obeyed, report.living, False
        if host.launched:
            started = host.launched.items()
            host.launched = {run: number for run, number in started if number > host.obeyed}
        host.reported_at, host.renewed_at, host.heard_at = report.sent_at, now, now
        for number, event in report.events:
            if number > host.heard:
                host.events.append((number, event))
                host.heard = number
        self._hear_how_it_stands(host, report)
        if not self._see(host, report, now):
            return
        self.answers += [replace(a, at=min(now, host.offset.ours(a.at))) for a in report.answers]
        host.asks.difference_update(answer.gpus for answer in report.answers)
        self.chunks += [(host, chunk) for chunk in report.chunks]
        if self._only is None:
            self.send(host)

    def _hear_how_it_stands(self, host: Host, report: Report) -> None:
        host.has_logs = report.has_logs
        if report.leaves:
            self.expect_leave(host)
        if host.hello is not None and host.hello.is_unfit != report.is_unfit:
            host.hello, host.announced = replace(host.hello, is_unfit=report.is_unfit), None

    def _say_it_is_here(self, host: Host, hello: Hello) -> None:
        is_here = HostHere(
            host.name,
            hello.node,
            hello.cores,
            host.leaves,
            hello.is_unfit,
            hello.most_gpus,
            hello.leave_free,
        )
        self.observations.append(is_here)

    def _see(self, host: Host, report: Report, now: Timestamp) -> bool:
        """False: it was refused, since others speak for its GPUs."""
        for each in report.seen:
            if isinstance(each, Snapshot):
                if (other := self._other_owner(host, each)) is not None:
                    why = f"it is the same machine as {other}: name it once"
                    self._refuse(host, why, now, again_in_seconds=float("inf"))
                    return False
                taken_at = min(now, host.offset.ours(each.taken_at))
                for gpu in each.gpus:
                    if host.looks.get(gpu.key, float("inf")) <= taken_at:
                        del host.looks[gpu.key]
                arrived_at = self._arrived_at(host, each, report, now)
                self.observations.append(replace(each, taken_at=taken_at, arrived_at=arrived_at))
            else:
                self.observations.append(each)
        return True

    def _arrived_at(
        self, host: Host, snapshot: Snapshot, report: Report, now: Timestamp
    ) -> Timestamp:
        """When it would have, had it not lain about on the way."""
        if self._only is not None:
            return now
        if report.heard is None or snapshot.arrived_at is None:
            return float("-inf")  # nobody knows
        return min(now, host.offset.soonest(snapshot.arrived_at))

    def _other_owner(self, host: Host, snapshot: Snapshot) -> HostName | None:
        if self._only is not None:
            return None
        return self._owners.other(host, snapshot, self._is_here)

    def _is_here(self, name: HostName) -> bool:
        return name in self.by_name and self.by_name[name].here
