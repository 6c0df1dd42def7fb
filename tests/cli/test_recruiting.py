"""Agents that are started here, without ssh, by a script in place of smartsched: who is tried
again, when, and what is said of him."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smartsched.cli.recruiting import SshRecruiter
from smartsched.core.host_list import parse_hosts
from smartsched.core.model import HostAway, HostName
from smartsched.edges.clock import SteadyClock
from smartsched.edges.starter import SshStarter
from smartsched.edges.waiter import Waiter
from tests.waiting import wait_until

HERE = HostName("localhost")


class Bench:
    """Processes are real; time passes only when it is skipped."""

    def __init__(self, folder: Path, says: str) -> None:
        agent = folder / "agent"
        agent.write_text(f"#!/bin/sh\ncat > /dev/null\necho run >> {folder}/runs\necho '{says}'\n")
        agent.chmod(0o700)
        self._runs = folder / "runs"
        self._clock = SteadyClock()
        self._waiter = Waiter(self._clock)
        hosts = parse_hosts(HERE)
        self.starter = SshStarter(
            self._waiter, hosts, remote_command=str(agent), bundle=lambda _: b"a secret"
        )
        self.recruiter = SshRecruiter(self.starter, [HERE], "head:7000")
        self._now = self._clock.now()

    def now(self) -> float:
        return self._now

    def news(self) -> list[HostAway]:
        self._waiter.wait(self._clock.now() + 0.01)
        return self.recruiter.take(self.now())

    def skip(self, seconds: float) -> list[HostAway]:
        self._now += seconds
        return self.news()

    def is_tried(self, times: int) -> None:
        """Its attempts have ended, and all was heard of them."""

        def so_often() -> bool:
            self.news()
            return self.runs() == times and not self.starter.pids()

        wait_until(so_often, f"tried {times} times", lambda: str(self.runs()))

    def runs(self) -> int:
        return len(self._runs.read_text().split()) if self._runs.exists() else 0

    def close(self) -> None:
        self.starter.close()
        self._waiter.close()


@pytest.fixture
def bench_of(tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    benches: list[Bench] = []

    def make(says: str) -> Bench:
        benches.append(Bench(tmp_path, says))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("started an agent", "an agent was started on localhost and has not joined: can it not"),
        ("joined: it was there", "an agent is on localhost already and does not answer: does it"),
    ],
)
def test_who_is_up_and_does_not_join_has_failed_and_is_tried_again_ever_later(
    bench_of: Callable[[str], Bench], says: str, why: str
):
    bench = bench_of(says)
    waits = []
    for attempt in range(1, 5):
        bench.is_tried(attempt)

        [away] = bench.skip(31)

        assert away.why.startswith(why)
        assert "reach head:7000 (--listen)?; trying again in" in away.why
        waits.append(bench.starter.wake_at() - bench.now())
        assert bench.skip(waits[-1] - 0.5) == []
        assert bench.runs() == attempt
        bench.skip(1)
    assert waits == pytest.approx([2, 4, 8, 16], rel=0.3)


def test_who_has_gone_is_started_at_once_or_later_or_never(bench_of: Callable[[str], Bench]):
    bench = bench_of("started")
    bench.is_tried(1)
    bench.recruiter.came(HERE, bench.now())

    bench.recruiter.went(HERE, bench.now(), again_in_seconds=0.0)
    bench.is_tried(2)
    bench.recruiter.came(HERE, bench.now())
    bench.recruiter.went(HERE, bench.now(), again_in_seconds=60.0)
    bench.skip(59)
    assert (bench.runs(), bench.starter.pids()) == (2, [])
    bench.skip(2)
    bench.is_tried(3)
    bench.recruiter.came(HERE, bench.now())
    bench.recruiter.went(HERE, bench.now(), again_in_seconds=float("inf"))

    bench.skip(1e6)

    assert (bench.runs(), bench.starter.pids()) == (3, [])


@pytest.mark.parametrize("is_told_first", [False, True])
def test_who_was_sent_away_for_a_while_is_not_said_to_be_silent(
    bench_of: Callable[[str], Bench], is_told_first: bool
):
    bench = bench_of("joined: it was there")
    if is_told_first:
        bench.news()
        bench.recruiter.went(HERE, bench.now(), again_in_seconds=60.0)
    bench.is_tried(1)
    bench.recruiter.went(HERE, bench.now(), again_in_seconds=60.0)

    assert bench.skip(31) == []

    bench.skip(30)
    bench.is_tried(2)
    [away] = bench.skip(31)
    assert away.why.startswith("an agent is on localhost already and does not answer")
