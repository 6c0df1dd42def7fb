"""A host's part in a run: it obeys, looks after what it was told to start, and reports.

It decides nothing. What it has told of runs it tells again until that is on record with the
dispatcher, whoever that is by then.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence

from msgspec.structs import replace

from smartsched.core.actions import Checkpoint, Claim, Kill, Launch, Release, Terminate
from smartsched.core.events import (
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    is_end_of_all,
)
from smartsched.core.messages import (
    AgentEvent,
    Came,
    Connection,
    Expect,
    Fetched,
    Leave,
    Look,
    News,
    Order,
    Orders,
    Report,
    Said,
)
from smartsched.core.model import (
    ClaimAnswer,
    GpuKey,
    GpuUuid,
    HostName,
    Lingering,
    Placement,
    Run,
    RunKey,
    Running,
    Seen,
    Snapshot,
    Starting,
    Stopping,
    Timestamp,
)
from smartsched.core.offset import Offset
from smartsched.core.selection import Selection
from smartsched.ports import Claims, Lease, LocalLauncher, Logs, Sampler

# An order to start something is of its moment: later somebody else may be on that GPU.
STALE_AFTER_SECONDS = 5.0
# Where it cannot be told whether a run is here, since a disk is full, how often to look again.
_LOOK_AGAIN_SECONDS = 1.0


class Agent:
    """Knows neither where the dispatcher is nor how they talk."""

    def __init__(
        self,
        host: HostName,
        gpus: Sampler,
        launcher: LocalLauncher,
        claims: Claims,
        *,
        lease: Lease | None = None,
        lease_seconds: float = 0.0,
        logs: Logs | None = None,
        selection: Selection | None = None,
    ) -> None:
        """`lease`: None: runs may go on whoever is out of reach. `logs`: None: they are not sent.
        `selection`: the GPUs that are offered; None: all."""
        self.host = host
        self.is_told_to_leave = False
        self.leaves = False  # soon, and for good: to be set when that is known
        self.is_unfit = False  # no command can run here: likewise
        self._gpus = gpus
        self._launcher = launcher
        self._claims = claims
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._logs = logs
        self._selection = selection
        self._events: deque[tuple[int, AgentEvent]] = deque()  # not on record yet
        self._number = 0  # of the last of all
        self._told = 0  # of the last that was in a report
        self._seen: list[Seen] = []
        self._is_awaited = False  # somebody waits for what was seen
        self._launched: dict[RunKey, RunLaunched] = {}
        self._withheld: list[RunExited] = []  # until their logs have arrived
        self._in_doubt: dict[RunKey, Run] = {}  # expected; nobody knows whether they are here
        self._look_again_at: Timestamp = float("inf")
        self._answers: list[ClaimAnswer] = []
        self._looks: dict[GpuUuid, Timestamp] = {}  # somebody waits for them, since then
        self._claimed: set[GpuKey] = set()  # or asked for
        self._placed: dict[RunKey, Placement] = {}  # of those here
        self._watched: frozenset[GpuKey] = frozenset()
        self._obeyed = 0
        self._said_obeyed = -1  # in the last report
        self._heard: tuple[Timestamp, Timestamp] | None = None
        self._offset = Offset()

    def joined(self) -> None:
        """There is a new connection: what was said over the last one may be lost."""
        self._obeyed, self._heard, self._offset, self._told = 0, None, Offset(), 0
        self._looks.clear()
        if self._logs is not None:
            self._logs.joined()
        self.forget_what_was_seen()

    def obey(self, orders: Orders, arrived_at: Timestamp, now: Timestamp) -> None:
        """`now` may be much later than they have arrived, where something has held us up. After
        orders that are missing none is obeyed: what was in them would seem to have been."""
        if orders.number != self._obeyed + 1:
            return
        self._obeyed = orders.number
        self._heard = (orders.sent_at, arrived_at)
        self._offset.heard(orders.sent_at, arrived_at)
        self._forget(orders.acknowledged)
        if self._lease is not None and orders.renewed is not None:
            self._lease.renew(orders.renewed + self._lease_seconds)
        is_late = self._is_late(orders, now)
        if any(isinstance(order, Expect) for order in orders.orders):
            self._give_up_other_claims(orders, now)
        for order in orders.orders:
            if isinstance(order, Launch):
                self._launch(order, now, is_late=is_late)
            else:
                self._do(order, now)

    def look(self, now: Timestamp) -> None:
        """Take in what has happened here."""
        seen = [self._offered(each, now) for each in self._gpus.take(now)]
        self._is_awaited = self._is_awaited or self._answers_look(seen)
        self._seen += seen
        news = self._launcher.take(now)
        self._take_up(news)
        self._look_where_runs_were(news, now)
        if news:
            self._watch_over_runs()
        if now >= self._look_again_at:
            self._look_for(list(self._in_doubt.values()), now)
        self._answers += self._claims.take(now)

    def has_news(self) -> bool:
        """Whether somebody waits for the next report."""
        has_more = self._logs is not None and self._logs.is_ready()
        return bool(self._is_awaited or self._answers or self._number > self._told or has_more)

    def says_what_it_said(self) -> bool:
        """Whether another report would say no more than the last one did."""
        is_silent = not self._seen and not self._answers and self._number == self._told
        return is_silent and self._obeyed == self._said_obeyed and self._logs is None

    def report(self, now: Timestamp) -> Report:
        """How this host stands. What is not to be told again is forgotten by it."""
        chunks = tuple(self._logs.chunks()) if self._logs is not None else ()
        report = Report(
            sent_at=now,
            obeyed=self._obeyed,
            heard=self._heard,
            seen=tuple(self._seen),
            events=tuple(self._events),
            living=self._here(),
            answers=tuple(self._answers),
            chunks=chunks,
            leaves=self.leaves,
            is_unfit=self.is_unfit,
            has_logs=self.has_logs(),
            is_urgent=self.has_news() or bool(chunks),
        )
        self.forget_what_was_seen()
        self._told, self._said_obeyed = self._number, self._obeyed
        return report

    def forget_what_was_seen(self) -> None:
        """Nobody is there to be told, and by then it would be of no use."""
        self._seen.clear()
        self._answers.clear()
        self._is_awaited = False

    def give_up_idle_gpus(self, now: Timestamp) -> None:
        """While nobody is there who would start anything on them."""
        self._forget_places()
        used = {gpu.key for placement in self._placed.values() for gpu in placement.gpus}
        if idle := self._claimed - used:
            self._claimed -= idle
            self._claims.release(idle, now)

    def is_idle(self) -> bool:
        """Whether nothing of ours runs here."""
        return not self._here()

    def is_on_record(self) -> bool:
        """Whether the dispatcher knows all there is to know of runs."""
        return not self._events and not self._withheld

    def has_logs(self) -> bool:
        """Whether there is more to be sent of runs that have ended."""
        return self._logs is not None and not self._logs.is_done()

    def wake_at(self) -> Timestamp:
        parts = (self._gpus, self._launcher, self._claims)
        logs = float("inf") if self._logs is None else self._logs.wake_at()
        return min(logs, self._look_again_at, *(part.wake_at() for part in parts))

    def _here(self) -> frozenset[RunKey]:
        """Runs that are, or may be, or whose end has not been told."""
        withheld = (event.run for event in self._withheld)
        return frozenset({*self._launcher.living(), *self._in_doubt, *withheld})

    def _do(self, order: Order, now: Timestamp) -> None:  # noqa: C901  # a table
        living = self._launcher.living()
        match order:
            case Terminate(run) if run in living:
                self._launcher.terminate(run)
            case Checkpoint(run) if run in living:
                self._launcher.checkpoint(run)
            case Kill(run) if run in living:
                self._launcher.kill(run)
            case Claim(gpus):
                self._claimed.update(gpu for gpu, _ in gpus)
                self._claims.ask(gpus, now)
            case Release(keys):
                self._claimed.difference_update(keys)
                self._claims.release(keys, now)
            case Look(uuids):
                self._looks.update(dict.fromkeys(uuids, now))
                self._gpus.refresh([(GpuKey(self.host, uuid), now) for uuid in uuids], now)
            case Expect(runs):
                self._is_awaited = True  # by whoever wants to know what goes on here
                self._expect(runs, now)
            case Fetched(run, size) if self._logs is not None:
                self._logs.fetched(run, size)
            case Leave():
                self.is_told_to_leave = True
            case _:
                pass

    def _is_late(self, orders: Orders, now: Timestamp) -> bool:
        """By how long they were on their way; and, when all of them take long, by how long ago we
        said what they answer."""
        sent_at = self._offset.soonest(orders.sent_at)
        if orders.renewed is not None:
            sent_at = min(sent_at, orders.renewed)
        return now - sent_at > STALE_AFTER_SECONDS

    def _give_up_other_claims(self, orders: Orders, now: Timestamp) -> None:
        """A dispatcher that has come anew says all that it wants to have."""
        asked = (order for order in orders.orders if isinstance(order, Claim))
        wanted = {gpu for claim in asked for gpu, _ in claim.gpus}
        if others := self._claimed - wanted:
            self._claimed &= wanted
            self._claims.release(others, now)

    def _launch(self, launch: Launch, now: Timestamp, *, is_late: bool) -> None:
        if launch.run in self._launched or launch.run in self._launcher.living():
            return
        if is_late:
            self._happened(RunPostponed(now, launch.run, "the order to start it came too late"))
            return
        outcome = self._launcher.launch(launch, now)
        if isinstance(outcome, RunLaunched):
            self._placed[launch.run] = launch.placement
            self._know(outcome)
            self._watch_over_runs()
        self._happened(outcome)

    def _know(self, launched: RunLaunched) -> None:
        self._launched[launched.run] = launched
        if self._logs is not None:
            self._logs.began(launched.run)

    def _expect(self, runs: Iterable[Run], now: Timestamp) -> None:
        known = {event.run for _, event in self._events} | {run.run for run in self._withheld}
        living = self._launcher.living()
        unknown = []
        for run in runs:
            self._placed[run.key] = run.status.placement
            if run.key in known:
                continue
            if self._logs is not None and not isinstance(run.status, Starting | Lingering):
                self._logs.began(run.key)
            if run.key not in living:
                unknown.append(run)
            elif isinstance(run.status, Starting) and run.key in self._launched:
                self._happened(self._launched[run.key])
        self._look_for(unknown, now)
        self._look_at(self._watched, now)

    def _look_for(self, runs: Sequence[Run], now: Timestamp) -> None:
        """Those that are expected, and of which nothing is known here."""
        self._in_doubt.clear()
        for run in runs:
            found = self._launcher.adopt(run, now)
            if found is None:
                self._in_doubt[run.key] = run
            match run.status:  # the next dispatcher may not know that it began
                case Running(since, _, process, log) | Stopping(_, _, process, log, since):
                    self._launched[run.key] = RunLaunched(since, run.key, process, log)
                case _:
                    pass
            for event in found or ():
                if isinstance(event, RunLaunched):
                    self._know(event)
                self._happened(event)
        self._look_again_at = now + _LOOK_AGAIN_SECONDS if self._in_doubt else float("inf")
        self._watch_over_runs()

    def _happened(self, event: AgentEvent) -> None:
        self._number += 1
        self._events.append((self._number, event))

    def _take_up(self, news: Iterable[AgentEvent]) -> None:
        for event in news:
            if isinstance(event, RunExited):
                self._withheld.append(event)
            else:
                self._happened(event)
        for ended in self._withheld[:]:
            if self._logs is None or self._logs.is_fetched(ended.run):
                self._withheld.remove(ended)
                self._happened(ended)

    def _look_where_runs_were(self, news: Iterable[AgentEvent], now: Timestamp) -> None:
        """Nobody needs to ask: whether its memory is back is what everybody waits for who is to
        follow."""
        gone = [event.run for event in news if is_end_of_all(event)]
        self._look_at(
            [gpu.key for run in gone if run in self._placed for gpu in self._placed[run].gpus], now
        )

    def _look_at(self, gpus: Collection[GpuKey], now: Timestamp) -> None:
        if gpus:
            self._looks.update(dict.fromkeys([gpu.uuid for gpu in gpus], now))
            self._gpus.refresh([(gpu, now) for gpu in gpus], now)

    def _watch_over_runs(self) -> None:
        """Who comes to where they are is to be seen soon."""
        here = self._here()
        placed = [placement for run, placement in self._placed.items() if run in here]
        watched = frozenset(gpu.key for placement in placed for gpu in placement.gpus)
        if watched != self._watched:
            self._watched = watched
            self._gpus.watch(watched)

    def _forget(self, number: int) -> None:
        """Events up to this one are on record."""
        gone = []
        while self._events and self._events[0][0] <= number:
            gone.append(self._events.popleft()[1])
        for event in gone:
            if isinstance(event, RunExited | RunCleared | RunPostponed):
                self._launched.pop(event.run, None)
        if gone:
            self._launcher.written(gone)
            self._forget_places()

    def _forget_places(self) -> None:
        here = self._here()
        self._placed = {run: placement for run, placement in self._placed.items() if run in here}

    def _offered(self, seen: Seen, now: Timestamp) -> Seen:
        """What is not offered is told all the same: how CUDA counts depends on all cards."""
        if not isinstance(seen, Snapshot):
            return seen
        withheld: frozenset[GpuUuid] = frozenset()
        if self._selection is not None:
            if seen.whole and seen.gpus:
                self._selection = self._selection.by_uuid(seen.gpus)
            admits = self._selection.admits
            withheld = frozenset(gpu.key.uuid for gpu in seen.gpus if not admits(gpu))
        return replace(seen, withheld=withheld, arrived_at=now)

    def _answers_look(self, seen: list[Seen]) -> bool:
        """Whether somebody waits for one of these."""
        found = {
            gpu.key.uuid
            for each in seen
            if isinstance(each, Snapshot)
            for gpu in each.gpus
            if self._looks.get(gpu.key.uuid, float("inf")) <= each.taken_at
        }
        for uuid in found:
            del self._looks[uuid]
        # what is told of some GPUs was asked for, or is news
        return bool(found) or not all(isinstance(each, Snapshot) and each.whole for each in seen)


class InProcess:
    """A Transport to the one agent that is in this process: nothing is encoded, nothing is late."""

    def __init__(self, agent: Agent, came: Came) -> None:
        self._agent = agent
        self._came: list[News] = [came]
        self._looked_at: Timestamp | None = None

    def send(self, connection: Connection, orders: Orders) -> bool:
        self._agent.obey(orders, orders.sent_at, orders.sent_at)
        return True

    def take(self, now: Timestamp) -> list[News]:
        news, self._came = self._came, []
        if news:
            return news  # first it is told what should be here
        if now != self._looked_at:  # what happens here is noticed between ticks
            self._agent.look(now)
            self._looked_at = now
        if self._agent.says_what_it_said():
            return []
        return [Said(self._agent.host, self._agent.report(now), now)]

    def drop(self, connection: Connection, why: str, keep_out_seconds: float = 0.0) -> None: ...

    def wake_at(self) -> Timestamp:
        return self._agent.wake_at()
