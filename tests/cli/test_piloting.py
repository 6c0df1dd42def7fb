"""Pilots as hosts: whose host was a pilot's, and what is believed of it when Slurm has ended it."""

# ruff: noqa: ARG002  # a fake has the arguments of what it stands for

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from smartsched.cli.departed import Departed
from smartsched.cli.hosting import token_of
from smartsched.cli.piloting import PilotRecruiter
from smartsched.core.apply import apply, replay
from smartsched.core.decide import decide
from smartsched.core.events import RunPlaced
from smartsched.core.messages import Hello, News, Orders
from smartsched.core.model import (
    HostAway,
    HostName,
    Lost,
    PlacedGpu,
    Placement,
    Timestamp,
)
from smartsched.core.pilot_news import Answers, Ended, PilotNews, Runs, Submitted
from smartsched.core.pilots import Pilots
from smartsched.core.slurm import PilotId
from smartsched.fleet.host import Patience
from smartsched.fleet.hosts import Hosts
from smartsched.fleet.launcher import FleetLauncher
from tests.builders import T0, a_key, a_policy, a_run, accepted, launched

if TYPE_CHECKING:
    from smartsched.edges.slurm.pilots import Slurm

RUN = "night.4f2a"
ENDED_LONG_AGO = 1000.0
KEEP = Patience()


class FakeSlurm:
    def __init__(self) -> None:
        self.news: list[PilotNews] = []

    def take(self, now: Timestamp) -> Sequence[PilotNews]:
        news, self.news = self.news, []
        return news

    def look_soon(self, now: Timestamp) -> None: ...
    def submit(self) -> None: ...
    def withdraw(self, pilot: PilotId) -> None: ...
    def cancel(self, pilot: PilotId) -> None: ...


class Nobody:
    """A Transport over which nobody comes."""

    def send(self, connection: str, orders: Orders) -> bool:
        return True

    def take(self, now: Timestamp) -> Sequence[News]:
        return []

    def drop(self, connection: str, why: str, keep_out_seconds: float = 0.0) -> None: ...
    def wake_at(self) -> Timestamp:
        return float("inf")


class Desk:
    """A dispatcher with a run on one host, as far as its pilots are concerned."""

    def __init__(self, folder: Path, host: str, *named: str, patience: Patience = KEEP) -> None:
        self.logs, self.agents, self.host = folder / "pilots", folder / "agents", HostName(host)
        self.logs.mkdir(exist_ok=True)
        placement = Placement((PlacedGpu(a_key(0, host), f"{host}/0", "0"),))
        began = [*accepted(), RunPlaced(T0, a_run(), placement), launched()]
        self.state = replay(a_policy(run_id=RUN, spans_hosts=True), began)
        self.slurm = FakeSlurm()
        self.recruiter = PilotRecruiter(
            cast("Slurm", self.slurm),
            Pilots(most=1, gpus_per_pilot=1, warn_seconds=60.0, resumed=True),
            departed=Departed(self.agents, RUN),
            logs=self.logs,
            place="here:1",
            others=[HostName(name) for name in named],
            warn=print,
        )
        self.hosts = Hosts(Nobody(), self.state, patience=patience)
        self.recruiter.serve(self.hosts)
        self.launcher = FleetLauncher(self.hosts, self.state)

    @property
    def folder_there(self) -> Path:
        """The agent's."""
        return self.agents / "runs" / token_of(RUN, self.host)

    def hears(self, *news: PilotNews, at: float = 0.0, keeps: bool = True) -> list[HostAway]:
        """Then decides, and takes in what becomes of runs; `keeps`: for good. The hosts that are
        gone for good."""
        self.slurm.news += news
        now = T0 + at
        found = [each for each in self.recruiter.take(now) if isinstance(each, HostAway)]
        self.recruiter.decided(decide(self.state, now), self.state, now)
        for event in self.launcher.take(now):
            apply(self.state, event)
        if keeps:
            self.launcher.noted()
            self.launcher.kept()
        return [each for each in found if each.for_good]

    def pilot_came(self, pilot: str) -> None:
        host = self.hosts.of(self.host, T0)
        host.hello = Hello("1.0", "agent", "node", 8, pilot=pilot)
        self.recruiter.came(self.host, T0)


def test_a_host_whose_name_ends_in_a_number_is_no_pilot(tmp_path: Path):
    desk = Desk(tmp_path, "gpu-1", "gpu-1")
    desk.folder_there.mkdir(parents=True)

    for at in (0.0, 20.0, ENDED_LONG_AGO):
        assert desk.hears(Answers(), at=at) == []

    assert a_run() in desk.state.runs
    assert desk.folder_there.exists()


def test_the_host_of_a_pilot_that_ended_before_is_known_by_what_was_written_down(tmp_path: Path):
    first = Desk(tmp_path, "node-7")
    first.hears(Submitted(PilotId("7")), Runs(PilotId("7"), "node", None))
    first.pilot_came("7")

    desk = Desk(tmp_path, "node-7")
    desk.folder_there.mkdir(parents=True)
    desk.hears(Answers())
    desk.hears(at=1.0)
    assert a_run() in desk.state.runs
    desk.hears(at=ENDED_LONG_AGO)

    assert desk.state.ended[a_run()].ending == Lost("its pilot has ended")
    desk.hears(at=ENDED_LONG_AGO + 1)
    [gone] = desk.hears(at=ENDED_LONG_AGO + 2)
    assert gone.host == "node-7"
    assert not desk.folder_there.exists()


def test_what_a_pilot_has_left_stays_until_what_it_tells_of_is_on_record_for_good(tmp_path: Path):
    desk = Desk(tmp_path, "node-7")
    desk.hears(Answers(), Submitted(PilotId("7")), Runs(PilotId("7"), "node", None))
    desk.pilot_came("7")
    desk.folder_there.mkdir(parents=True)
    desk.hears(Ended(PilotId("7"), "COMPLETED"), at=10.0)
    desk.hears(at=ENDED_LONG_AGO, keeps=False)
    assert a_run() in desk.state.ended

    desk.launcher.noted()
    desk.hears(at=ENDED_LONG_AGO + 1, keeps=False)
    desk.launcher.kept()  # what was noted before
    desk.hears(at=ENDED_LONG_AGO + 2)
    assert desk.folder_there.exists()

    desk.hears(at=ENDED_LONG_AGO + 3)
    assert not desk.folder_there.exists()


def test_nobody_waits_for_runs_of_a_pilot_that_slurm_has_ended_even_where_they_may_go_on(
    tmp_path: Path,
):
    desk = Desk(tmp_path, "node-7")
    desk.hears(Answers(), Submitted(PilotId("7")), Runs(PilotId("7"), "node", None))
    desk.pilot_came("7")

    desk.hears(Ended(PilotId("7"), "TIMEOUT"), at=10.0)
    assert a_run() in desk.state.runs
    desk.hears(at=ENDED_LONG_AGO)

    assert desk.state.ended[a_run()].ending == Lost("its pilot has ended")


def test_a_node_that_slurm_has_lost_sight_of_may_run_on(tmp_path: Path):
    desk = Desk(tmp_path, "node-7")
    desk.hears(Answers(), Submitted(PilotId("7")), Runs(PilotId("7"), "node", None))
    desk.pilot_came("7")

    desk.hears(Ended(PilotId("7"), "NODE_FAIL"), at=10.0)
    desk.hears(at=ENDED_LONG_AGO)

    assert a_run() in desk.state.runs


def test_what_is_over_is_forgotten(tmp_path: Path):
    desk = Desk(tmp_path, "node-7")
    desk.hears(Answers(), Submitted(PilotId("7")), Runs(PilotId("7"), "node", None))
    desk.pilot_came("7")
    desk.hears(Ended(PilotId("7"), "COMPLETED"), at=10.0)
    desk.hears(at=ENDED_LONG_AGO)
    desk.hears(at=ENDED_LONG_AGO + 1)

    assert desk.recruiter.remembered() == 0
