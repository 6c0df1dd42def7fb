"""What an agent keeps for its host while it serves."""

import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from smartsched.cli import host_parts
from smartsched.cli.host_parts import Guarded, HostLease, hello_of
from smartsched.cli.serving import patience_without_dispatcher
from smartsched.core.credentials import Credentials
from smartsched.core.hours import parse_cap
from smartsched.core.limits import Limits
from smartsched.core.model import GpuKey, SamplerTrouble, Seen, Timestamp
from smartsched.edges.clock import SteadyClock
from smartsched.edges.lease import LEASE, Lease, uptime_seconds
from smartsched.edges.outputs import LogFiles
from tests.builders import T0, a_sample, a_snapshot
from tests.cli.harness import ROOT
from tests.cli.test_agent import a_join

LEASE_SECONDS = 60.0


@dataclass
class SetClock:
    at: Timestamp

    def now(self) -> Timestamp:
        return self.at

    def local_offset(self) -> float:
        return 0.0


def test_whatever_holds_an_agent_up_makes_no_lease_longer(tmp_path: Path):
    clock = SetClock(1000.0)
    file = Lease("token", grace_seconds=1.0, places=[tmp_path])
    lease = HostLease(file, clock)
    reported_at = clock.now()

    clock.at += 25.0  # a file system hangs, and then the order is obeyed
    lease.renew(reported_at + LEASE_SECONDS)

    ends = int((file.folder / LEASE).read_text().split()[0]) / 100
    assert ends - uptime_seconds() == pytest.approx(LEASE_SECONDS - 25.0, abs=5.0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_an_agent_whose_words_find_no_room_goes_on():
    program = "from smartsched.cli.host_parts import say; say('something'); print('goes on')"

    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
        )

    assert done.stdout == b"goes on\n"


@pytest.mark.parametrize(
    ("lease_seconds", "is_pilot", "patience_seconds"),
    [(30.0, False, 30.0), (86400.0, False, 300.0), (None, False, 300.0), (86400.0, True, 60.0)],
)
def test_an_agent_with_nothing_to_do_waits_for_its_dispatcher_but_not_for_long(
    lease_seconds: float | None, is_pilot: bool, patience_seconds: float
):
    join = a_join(Credentials("", "", ""), lease_seconds=lease_seconds)

    assert patience_without_dispatcher(join, is_pilot=is_pilot) == patience_seconds


class PretendSampler:
    def take(self, now: Timestamp) -> Sequence[Seen]:
        return [a_snapshot(a_sample(), at=now)]

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None: ...

    def watch(self, gpus: Collection[GpuKey]) -> None: ...

    def wake_at(self) -> Timestamp:
        return float("inf")


def test_a_host_takes_work_again_once_the_folder_is_there(tmp_path: Path):
    folder = tmp_path / "late"
    join = a_join(Credentials("", "", ""), directory=str(folder))
    gpus = Guarded(PretendSampler(), join)
    [trouble] = gpus.take(T0)
    assert isinstance(trouble, SamplerTrouble)
    assert f"there is no folder {folder}" in trouble.why

    folder.mkdir()  # it is mounted

    assert gpus.take(T0) == [a_snapshot(a_sample())]
    assert gpus.why == ""


def test_before_anything_is_started_the_folder_is_looked_for_anew(tmp_path: Path):
    folder = tmp_path / "there"
    folder.mkdir()
    gpus = Guarded(PretendSampler(), a_join(Credentials("", "", ""), directory=str(folder)))
    assert gpus.take(T0) == [a_snapshot(a_sample())]

    folder.rmdir()
    gpus.refresh([], T0)

    assert "there is no folder" in gpus.why
    assert [type(each) for each in gpus.take(T0)] == [SamplerTrouble]


def test_an_agent_says_what_the_administrator_of_its_host_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limits = Limits(most_gpus=parse_cap("2@09-18"), leave_free=parse_cap("1"))
    monkeypatch.setattr(host_parts, "read_limits", lambda: limits)
    join, output = a_join(Credentials("", "", "")), LogFiles(tmp_path / "logs")

    hello = hello_of(join, SteadyClock(), None, output)

    output.close()
    assert (hello.most_gpus, hello.leave_free) == (limits.most_gpus, limits.leave_free)
