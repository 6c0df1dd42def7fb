"""Gets hosts from Slurm: has pilots submitted as there is use for them, lets them go when there is
none, and says how they stand and why one has failed."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from smartsched.cli.departed import Departed
from smartsched.core import words
from smartsched.core.decide import Decision
from smartsched.core.demand import demand_of
from smartsched.core.events import Event
from smartsched.core.model import HostAway, HostName, PilotsStand, Timestamp
from smartsched.core.pilot_news import Ended, PilotNews, Runs
from smartsched.core.pilots import Demand, PilotHost, Pilots, Plan
from smartsched.core.slurm import PilotId
from smartsched.core.state import State
from smartsched.edges.outputs import tail
from smartsched.edges.slurm.pilots import Slurm
from smartsched.fleet.host import Host
from smartsched.fleet.hosts import Hosts
from smartsched.fleet.launcher import end_of_lost

# Python there, on a file system of the network, and the way to us.
_JOINS_WITHIN_SECONDS = 60.0
# The driver of a large box takes its time.
_IS_SEEN_WITHIN_SECONDS = 60.0
# After its agent has gone.
_ENDS_WITHIN_SECONDS = 30.0
# After Slurm has said that a pilot has ended, whatever ran there has.
_IS_GONE_WITHIN_SECONDS = 60.0
# Except when it has lost sight of the node: what runs there may go on.
_OUT_OF_SIGHT = "NODE_FAIL"
_LOOKS_EVERY_SECONDS = 1.0  # for the end of a pilot
_ASKS_EVERY_SECONDS = 10.0  # of the records of runs there
_LONGEST_LAST_WORDS = 200
_ENDED = "its pilot has ended"
_HOST = ".host"  # beside the logs: a file for each pilot that has joined, with the host's name


class PilotRecruiter:
    """Of Recruiters a Part, and an Observer: what is wanted follows from what was decided."""

    def __init__(
        self,
        slurm: Slurm,
        pilots: Pilots,
        *,
        departed: Departed,
        logs: Path,
        place: str,
        others: Collection[HostName],
        warn: Callable[[str], None],
    ) -> None:
        """`logs`: where pilots leave what they say. `place`: where agents find the dispatcher, for
        people. `others`: hosts that are no pilots."""
        self._slurm = slurm
        self._pilots = pilots
        self._departed = departed
        self._logs = logs
        self._place = place
        self._others = others
        self._warn = warn
        self._hosts: Hosts | None = None
        self._host_of: dict[PilotId, HostName] = {}
        self._came_before = _read_hosts(logs)  # with earlier dispatchers
        self._came_at: dict[PilotId, Timestamp] = {}
        self._joins_by: dict[PilotId, tuple[Timestamp, str]] = {}  # and where it runs
        self._absent: dict[PilotId, Timestamp] = {}  # whose end is looked for, and until when
        # By Slurm's word; and from when on what is believed to run there has ended as well.
        self._ended: dict[HostName, Timestamp] = {}
        # What was left there is of no use when all that was noted after that is on record for good.
        self._to_clear: dict[HostName, int] = {}
        self._ask_the_ended_at: Timestamp = float("-inf")
        self._gone: list[HostAway] = []
        self._stand: PilotsStand | None = None  # as it was last told
        self._plan_at: Timestamp = float("-inf")
        self._planned_at: Timestamp = float("-inf")
        self._look_at: Timestamp = float("-inf")

    def serve(self, hosts: Hosts) -> None:
        """Before anything else: these are where pilots come as hosts."""
        self._hosts = hosts

    def take(self, now: Timestamp) -> list[HostAway | PilotsStand]:
        for news in self._slurm.take(now):
            self._note(news, now)
            self._pilots.hear(news, now)
        self._look_for_the_absent(now)
        for pilot in [p for p, (by, _) in self._joins_by.items() if now >= by]:
            self._complain_of_silence(pilot)
        for pilot, host in self._here().items():
            if self._pilots.is_about_to_end(pilot, now):
                self._served.expect_leave(host)
        gone, self._gone = self._gone, []
        return [*gone, *self._news_of_all()]

    def came(self, host: HostName, now: Timestamp) -> None:
        hello = self._served.by_name[host].hello
        if hello is None or not hello.pilot:
            return
        self._to_clear.pop(host, None)
        pilot = PilotId(hello.pilot)
        self._pilots.joined(pilot)
        if self._host_of.get(pilot) != host:
            self._host_of[pilot] = host
            self._remember(pilot, host)
        self._came_at.setdefault(pilot, now)
        self._joins_by.pop(pilot, None)
        self._absent.pop(pilot, None)
        self._slurm.look_soon(now)  # until when it may stay

    def went(self, host: HostName, now: Timestamp, *, again_in_seconds: float) -> None:
        for pilot in [pilot for pilot, name in self._host_of.items() if name == host]:
            self._absent[pilot] = now + _ENDS_WITHIN_SECONDS

    def recorded(self, event: Event, state: State, now: Timestamp) -> None: ...

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        here = self._here()
        demand = demand_of(
            state,
            {host.name: pilot for pilot, host in here.items()},
            now,
            ending=[host.name for host in here.values() if host.was_sent_off],
            blind=[host.name for pilot, host in here.items() if now >= self._is_seen_by(pilot)],
        )
        self._carry_out(self._pilots.plan(demand, now), here)
        self._planned_at = now
        self._look_at_the_ended(now)
        self._clear_up()

    def wake_at(self) -> Timestamp:
        joins = [by for by, _ in self._joins_by.values()]
        seen = [at for pilot in self._here() if (at := self._is_seen_by(pilot)) > self._planned_at]
        look_at = self._look_at if self._absent else float("inf")
        ask_at = self._ask_the_ended_at if self._ended else float("inf")
        return min([self._slurm.wake_at(), self._plan_at, look_at, ask_at, *joins, *seen])

    def end(self, now: Timestamp) -> None:
        """There is nothing more to do: to be called until `is_over`."""
        self._slurm.submit_no_more()
        self._clear_up()
        here = self._here()
        idle = PilotHost(gpus=0, open_gpus=0, is_idle=True)
        nothing = Demand((), more_to_come=False, has_runs=False, joined=dict.fromkeys(here, idle))
        self._carry_out(self._pilots.plan(nothing, now), here)
        if now >= self._look_at:
            self._look_at = now + _LOOKS_EVERY_SECONDS
            self._slurm.look_soon(now)
        self._plan_at = self._look_at

    def is_over(self) -> bool:
        """Whether Slurm has none of ours any more."""
        return self._slurm.is_settled() and not self._pilots.left()

    def still_there(self) -> str:
        """For people."""
        return self._pilots.summary()

    def ended(self, pid: int) -> None:
        """Of a child, perhaps one of ours."""
        self._slurm.ended(pid)

    def remembered(self) -> int:
        """Of how many pilots it is known where they are; those that are over are forgotten."""
        return len(self._host_of)

    @property
    def _served(self) -> Hosts:
        assert self._hosts is not None
        return self._hosts

    def _look_for_the_absent(self, now: Timestamp) -> None:
        """Slurm tells of the end of a pilot some time after its agent has gone."""
        if not self._absent or now < self._look_at:
            return
        self._look_at = now + _LOOKS_EVERY_SECONDS
        self._slurm.look_soon(now)
        self._absent = {p: until for p, until in self._absent.items() if now < until}

    def _here(self) -> Mapping[PilotId, Host]:
        """Those whose agents are."""
        hosts = ((pilot, self._served.by_name.get(name)) for pilot, name in self._host_of.items())
        return {pilot: host for pilot, host in hosts if host is not None and host.here}

    def _is_seen_by(self, pilot: PilotId) -> Timestamp:
        """Its GPUs, if they can be seen at all."""
        return self._came_at[pilot] + _IS_SEEN_WITHIN_SECONDS

    def _carry_out(self, plan: Plan, here: Mapping[PilotId, Host]) -> None:
        if plan.submit:
            self._slurm.submit()
        for pilot in plan.withdraw:
            self._slurm.withdraw(pilot)
        for pilot in plan.cancel:
            self._slurm.cancel(pilot)
        for pilot in plan.tell_to_end:
            if pilot in here:
                self._served.dismiss(here[pilot])
        self._plan_at = plan.wake_at

    def _note(self, news: PilotNews, now: Timestamp) -> None:
        match news:
            case Runs(pilot, node) if pilot not in self._host_of and pilot not in self._joins_by:
                self._joins_by[pilot] = (now + _JOINS_WITHIN_SECONDS, node)
            case Ended(pilot, how):
                self._joins_by.pop(pilot, None)
                self._absent.pop(pilot, None)
                if not self._pilots.is_of_use(pilot):
                    self._complain(pilot, how)
                if pilot in self._host_of:
                    is_certain = not how.startswith(_OUT_OF_SIGHT)
                    gone_at = now + _IS_GONE_WITHIN_SECONDS if is_certain else float("inf")
                    self._ended[self._host_of[pilot]] = gone_at
            case _:
                pass

    def _complain(self, pilot: PilotId, how: str) -> None:
        log = self._log_of(pilot)
        without = "run a job" if pilot in self._host_of else "joined"
        said = [words.printable(line.strip()) for line in tail(str(log), 1)]
        last = f": {words.shortened(said[0], _LONGEST_LAST_WORDS)}" if said and said[0] else ""
        self._warn(f"pilot {pilot} ended without having {without} ({how}){last}; its log: {log}")

    def _complain_of_silence(self, pilot: PilotId) -> None:
        _, node = self._joins_by[pilot]
        self._joins_by[pilot] = (float("inf"), node)
        self._warn(
            f"pilot {pilot} runs on {node} and has not joined: can it reach {self._place}"
            f" (--listen)? its log: {self._log_of(pilot)}"
        )

    def _log_of(self, pilot: PilotId) -> Path:
        return self._logs / f"pilot-{pilot}.log"

    def _look_at_the_ended(self, now: Timestamp) -> None:
        """What is known of runs there by other means than from their agents. Where none is believed
        to be, nothing will ever be heard of again."""
        believed = self._served.believed()
        for name in believed:
            if name not in self._ended and self._has_ended_before(name):
                self._ended[name] = now + _IS_GONE_WITHIN_SECONDS
        if is_due := bool(self._ended) and now >= self._ask_the_ended_at:
            self._ask_the_ended_at = now + _ASKS_EVERY_SECONDS
        keeps = self._served.patience.is_endless
        for name in [name for name in self._ended if not self._served.of(name, now).here]:
            if name not in believed:
                self._forget(name)
            elif is_due:
                self._served.learn(name, self._departed.endings(name, believed[name], now), now)
                if now >= self._ended[name] and keeps:
                    lost = (e for run in believed[name] for e in end_of_lost(run, _ENDED, now))
                    self._served.learn(name, lost, now)

    def _has_ended_before(self, host: HostName) -> bool:
        """Whether it was the host of a pilot that had ended before this dispatcher began."""
        known = self._served.by_name.get(host)
        if known is None or known.hello is not None:
            return False
        pilot = self._came_before.get(host)
        return pilot is not None and host not in self._others and self._pilots.has_ended(pilot)

    def _clear_up(self) -> None:
        for host, notings in list(self._to_clear.items()):
            if self._served.kept_notings > notings:
                del self._to_clear[host]
                self._departed.forget(host)

    def _forget(self, host: HostName) -> None:
        del self._ended[host]
        self._to_clear[host] = self._served.notings
        self._gone.append(HostAway(host, _ENDED, for_good=True))
        for pilot in [pilot for pilot, name in self._host_of.items() if name == host]:
            del self._host_of[pilot], self._came_at[pilot]

    def _remember(self, pilot: PilotId, host: HostName) -> None:
        """Before anything is started there: whoever goes on with the run is to know that it was a
        pilot's."""
        if pilot.isdecimal():
            with suppress(OSError):
                (self._logs / f"pilot-{pilot}{_HOST}").write_text(host)

    def _news_of_all(self) -> list[PilotsStand]:
        gave_up = "" if self._others else self._pilots.gave_up or ""
        stand = PilotsStand(
            self._pilots.summary(),
            self._pilots.may_bring_more(),
            "" if self._pilots.left() else gave_up,
        )
        if stand == self._stand:
            return []
        self._stand = stand
        return [stand]


def _read_hosts(folder: Path) -> dict[HostName, PilotId]:
    """See _remember."""
    found = {}
    for path in folder.glob(f"pilot-*{_HOST}"):
        with suppress(OSError, UnicodeError):
            host = HostName(path.read_text())
            found[host] = PilotId(path.stem.removeprefix("pilot-"))
    return found
