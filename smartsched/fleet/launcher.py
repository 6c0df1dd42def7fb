"""Runs on all hosts: orders to their agents, and what comes of them as events.

What an agent says may have been said before, to another dispatcher or over a connection that broke:
only what can follow from where a run stands is news.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, cast

from msgspec.structs import replace

from smartsched.core.actions import Checkpoint, Kill, Launch, Terminate
from smartsched.core.events import (
    RunAdopted,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    RunRevoked,
)
from smartsched.core.messages import AgentEvent, Chunk, Fetched
from smartsched.core.model import (
    Lingering,
    Lost,
    NotStarted,
    ProcessId,
    Run,
    RunKey,
    Running,
    RunStatus,
    Starting,
    Stopping,
    Timestamp,
)
from smartsched.core.state import State
from smartsched.fleet.host import Host
from smartsched.fleet.hosts import Hosts

_NO_PROCESS = ProcessId(0, 0, "")
_TOO_LONG = "the command is too long to be sent to another host"
T = TypeVar("T", bound=AgentEvent)


class Sink(Protocol):
    """Where the logs of other hosts are kept here."""

    def write(self, chunk: Chunk) -> int | None:
        """So many bytes of the log are here now; None: it cannot be kept at the moment."""
        ...

    def path(self, run: RunKey) -> str: ...


class FleetLauncher:
    """A Launcher."""

    def __init__(self, hosts: Hosts, state: State, sink: Sink | None = None) -> None:
        """`state` is looked at, never changed. `sink`: None: logs stay where they are written."""
        self._hosts = hosts
        self._state = state
        self._sink = sink

    def launch(
        self, launch: Launch, now: Timestamp
    ) -> RunLaunched | RunPostponed | RunExited | None:
        host = self._hosts.of(launch.placement.host, now)
        if host.leaves:  # it has just said so
            return RunPostponed(now, launch.run, f"{host.name} leaves soon")
        number = self._hosts.send(host, launch)
        if not number and host.here:
            return RunExited(now, launch.run, NotStarted(_TOO_LONG, for_good=True), leftovers=0)
        if not number:
            return RunPostponed(now, launch.run, f"{host.name} is out of reach")
        host.launched[launch.run] = number
        self._hosts.pump(now)
        found: Iterator[RunLaunched | RunPostponed | RunExited] = self._take_out(
            host, launch.run, (RunLaunched, RunPostponed, RunExited), now
        )
        return next(found, None)

    def adopt(self, run: Run, now: Timestamp) -> Sequence[RunLaunched | RunRevoked | RunAdopted]:
        """Where its agent is not here yet, `take` tells later."""
        host = self._hosts.of(run.status.placement.host, now)
        self._hosts.pump(now)
        return list(self._take_out(host, run.key, (RunLaunched, RunRevoked, RunAdopted), now))

    def terminate(self, run: RunKey) -> None:
        self._tell(run, Terminate(run))

    def checkpoint(self, run: RunKey) -> None:
        self._tell(run, Checkpoint(run))

    def kill(self, run: RunKey) -> None:
        self._tell(run, Kill(run))

    def take(self, now: Timestamp) -> Iterator[AgentEvent]:
        self._hosts.pump(now)
        for host in list(self._hosts.by_name.values()):
            yield from self._news(host, now)
        believed = self._hosts.believed()
        for name, runs in believed.items():
            yield from self._vanished(self._hosts.of(name, now), runs, now)
        for host in self._hosts.by_name.values():
            self._stop_strays(host)
        keep_logs(self._hosts, self._sink)

    def noted(self) -> None:
        self._hosts.notings += 1
        for host in self._hosts.by_name.values():
            host.noted = host.events[0][0] - 1 if host.events else host.heard

    def kept(self) -> None:
        self._hosts.kept_notings = self._hosts.notings
        for host in self._hosts.by_name.values():
            if host.noted > host.acknowledged:
                host.acknowledged = host.noted
                self._hosts.send(host)

    def wake_at(self) -> Timestamp:
        return float("inf")  # the GPUs' source wakes for all of us

    def _tell(self, run: RunKey, order: Terminate | Checkpoint | Kill) -> None:
        host = self._hosts.by_name.get(self._hosts.host_of(self._state.runs[run]))
        if host is not None:
            self._hosts.send(host, order)

    def _news(self, host: Host, now: Timestamp) -> Iterator[AgentEvent]:
        while host.events:
            _, event = host.events.popleft()
            yield from self._before(host, event)
            if self._is_news(host, event):
                yield self._in_our_words(host, event, now)

    def _before(self, host: Host, event: AgentEvent) -> Iterator[AgentEvent]:
        """What has ended had begun: that was heard by somebody whose journal went with the power,
        and is not told once more."""
        run = self._state.runs.get(event.run)
        if run is None or self._hosts.host_of(run) != host.name:
            return
        match run.status, event:
            case Starting(since), RunExited(ending=ending) if not isinstance(ending, NotStarted):
                yield _begun(run.key, since)

    def _take_out(
        self, host: Host, run: RunKey, kinds: tuple[type[T], ...], now: Timestamp
    ) -> Iterator[T]:
        """Of the events that lie there, those of one run and of some kinds, before their turn."""
        for entry in list(host.events):
            event = entry[1]
            if event.run == run and isinstance(event, kinds):
                host.events.remove(entry)
                if self._is_news(host, event):
                    yield cast("T", self._in_our_words(host, event, now))

    def _is_news(self, host: Host, event: AgentEvent) -> bool:
        run = self._state.runs.get(event.run)
        if run is not None and self._hosts.host_of(run) != host.name:
            return False
        match event:
            case RunLaunched() | RunRevoked():
                return run is not None and isinstance(run.status, Starting)
            case RunExited(ending=NotStarted()):
                return run is not None and isinstance(run.status, Starting)
            case RunExited() | RunAdopted():
                return run is not None and isinstance(run.status, Running | Stopping)
            case RunPostponed():
                return run is not None and isinstance(run.status, Starting | Running | Stopping)
            case RunCleared():
                return run is not None and isinstance(run.status, Lingering)

    def _in_our_words(self, host: Host, event: AgentEvent, now: Timestamp) -> AgentEvent:
        at = min(now, host.offset.ours(event.at))
        match event:
            case RunLaunched(log=str(log)):
                return replace(event, at=at, log=self._where(host, event.run, log))
            case RunAdopted(since=since):
                return replace(event, at=at, since=min(at, host.offset.ours(since)))
            case _:
                return replace(event, at=at)

    def _where(self, host: Host, run: RunKey, log: str) -> str:
        """The log, as it can be found from here."""
        if host.hello is None or host.hello.shares_logs:
            return log
        return f"{host.name}:{log}" if self._sink is None else self._sink.path(run)

    def _vanished(self, host: Host, runs: list[Run], now: Timestamp) -> Iterator[AgentEvent]:
        """Runs that their host does not know, or whose host was not heard of for too long."""
        why = ""
        if host.here:
            why = "its host does not know of it any more"
            runs = [run for run in runs if self._is_missing(host, run.key)]
        elif now >= self._hosts.lost_at(host):
            why = f"its host {host.name} was out of reach for too long"
        elif self._hosts.patience.is_endless:
            why = f"its host {host.name} is out of reach, where it may still run"
            runs = [run for run in runs if run.key.job in self._state.cancelled]
            host.abandoned |= {run.key: run for run in runs}
        for run in runs if why else ():
            yield from end_of_lost(run, why, now)

    def _is_missing(self, host: Host, run: RunKey) -> bool:
        if not host.is_settled or run in host.living or run not in self._state.runs:
            return False
        return host.launched.get(run, 0) <= host.obeyed

    def _stop_strays(self, host: Host) -> None:
        """Runs that were taken for lost, and others that nobody wants any more: for each report in
        which they live, once."""
        if host.is_settled and not host.strays_are_known:
            host.strays_are_known = True
            for run in sorted(host.living - self._state.runs.keys()):
                self._hosts.send(host, Kill(run))


def keep_logs(hosts: Hosts, sink: Sink | None) -> bool:
    """Pieces that have come; whoever sent them goes on. Whether there were some to be kept."""
    chunks, hosts.chunks = hosts.chunks, []
    has_kept = False
    for host, chunk in chunks:
        size = None if sink is None else sink.write(chunk)
        if size is not None:
            has_kept = True
            hosts.send(host, Fetched(chunk.run, size))
    return has_kept


def end_of_lost(run: Run, why: str, now: Timestamp) -> Iterator[AgentEvent]:
    status: RunStatus = run.status
    if isinstance(status, Lingering):
        yield RunCleared(now, run.key)
        return
    if isinstance(status, Starting):  # nobody knows whether it began
        yield _begun(run.key, status.since)
    yield RunExited(now, run.key, Lost(why), leftovers=0)


def _begun(run: RunKey, at: Timestamp) -> RunLaunched:
    """As of a run that is over, and of which nothing else is known."""
    return RunLaunched(at, run, _NO_PROCESS, None)
