"""Long: everything at random, again and again. `make soak`."""

import random
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest

from tests.cli.harness import Session
from tests.cluster.runs import (
    LEASE_SECONDS,
    begun_in_vain,
    crash,
    dump,
    nobody_is_left,
    outcomes,
    start,
)
from tests.lab import Colleagues, Host, HostIsOffError, Lab

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

# What the machine takes again and again is tried again and again.
RETRIES = ("--retries", "30", "--retry-delay", "0")


class Trouble(threading.Thread):
    """Comes to one host again and again: its power, its link or its agent."""

    def __init__(self, host: Host, seed: int, over: threading.Event) -> None:
        super().__init__()
        self._host, self._pick, self._over = host, random.Random(seed), over

    def run(self) -> None:
        faults = [self._pull_plug, self._cut_cable, self._freeze_agent, self._kill_agent]
        while not self._over.wait(self._pick.uniform(2, 8)):
            seconds = self._pick.uniform(0.5, 2.5 * LEASE_SECONDS)
            with suppress(HostIsOffError, ValueError, ProcessLookupError):
                self._pick.choice(faults)(seconds)

    def _pull_plug(self, seconds: float) -> None:
        self._host.power_off()
        self._over.wait(seconds)
        self._host.power_on()

    def _cut_cable(self, seconds: float) -> None:
        self._host.cut()
        self._over.wait(seconds)
        self._host.heal()

    def _freeze_agent(self, seconds: float) -> None:
        agents = self._host.agents()
        self._host.freeze(*agents)
        self._over.wait(seconds)
        self._host.thaw(*agents)

    def _kill_agent(self, _: float) -> None:
        self._host.kill_agent()


def test_no_job_runs_twice_or_is_lost_whatever_dies_again_and_again(lab: Lab):
    count = 400
    pick = random.Random(7)
    hosts = lab.boot("gpu1", "gpu2", "gpu3", "gpu4")
    seconds = [pick.uniform(0.2, 6) if number % 20 else 25 for number in range(count)]
    commands = [
        lab.accounts.job(str(number + 1), "--seconds", f"{lasts:.2f}")
        for number, lasts in enumerate(seconds)
    ]
    session = start(lab, commands, *RETRIES, "-q")
    over = threading.Event()
    troubles = [Trouble(host, seed, over) for seed, host in enumerate(hosts[:3])]

    with Colleagues(hosts, seed=8):
        for trouble in troubles:
            trouble.start()
        try:
            session = die_again_and_again(lab, session, pick, until_there_are=count * 9 // 10)
        finally:
            over.set()
            for trouble in troubles:
                trouble.join()
        session.process.wait(900)

    done = session.end()
    assert done.status == 0, dump(lab)
    assert lab.accounts.doubles() == []
    assert outcomes(lab) == dict.fromkeys(range(1, count + 1), "ok")
    ends = Counter(lab.accounts.ended())
    assert set(ends) == {str(number) for number in range(1, count + 1)}
    in_vain = begun_in_vain(lab)
    assert {entry.host for entry in in_vain} <= {host.name for host in hosts[:3]}
    assert {job for job, times in ends.items() if times > 1} <= {entry.job for entry in in_vain}
    nobody_is_left(lab)


def die_again_and_again(
    lab: Lab, session: Session, pick: random.Random, *, until_there_are: int
) -> Session:
    """The dispatcher, until so many jobs are done."""
    while len(outcomes(lab)) < until_there_are:
        time.sleep(pick.uniform(3, 20))
        if session.process.poll() is not None:
            break
        crash(lab, session)
        session = lab.start("--resume", "-q")
    return session
