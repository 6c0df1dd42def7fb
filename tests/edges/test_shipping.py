"""Logs on their way: what is sent, when it is sent again, and when nothing is waited for."""

from pathlib import Path

import pytest

from smartsched.core.messages import Chunk
from smartsched.core.model import JobId, RunKey
from smartsched.edges.shipping import LogFeed, LogStore

RUN = RunKey(JobId(1), 1)
LONG_SECONDS = 60.0


class Bench:
    """A feed of the logs in a folder, by a clock that is set."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.log = folder / "1.log"
        self.feed = LogFeed(lambda run: str(folder / f"{run.job}.log"), lambda: self.now)
        self.feed.began(RUN)

    def writes(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(text)

    def sent(self) -> list[bytes]:
        return [chunk.data for chunk in self.feed.chunks()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_next_piece_is_sent_when_the_last_one_has_come(bench: Bench):
    bench.writes("one")
    assert bench.sent() == [b"one"]
    bench.writes("two")
    assert bench.sent() == []

    bench.feed.fetched(RUN, 3)

    assert bench.sent() == [b"two"]


def test_what_nobody_says_has_come_is_sent_again_after_a_while(bench: Bench):
    """There was no room for it where it is kept."""
    bench.writes("one")
    assert bench.sent() == [b"one"]

    bench.now += LONG_SECONDS

    assert bench.sent() == [b"one"]
    assert bench.sent() == []


def test_what_comes_twice_is_kept_once(tmp_path: Path):
    store = LogStore(tmp_path / "here", lambda run: f"{run.job}.log")

    assert [store.write(Chunk(RUN, 0, b"one")) for _ in range(2)] == [3, 3]

    assert Path(store.path(RUN)).read_bytes() == b"one"


def test_nobody_is_woken_for_a_log_that_was_waited_for_long_enough(bench: Bench):
    """While the host is cut off it stays, and the agent sleeps."""
    bench.writes("one")
    assert not bench.feed.is_fetched(RUN)
    assert bench.now < bench.feed.wake_at() < bench.now + LONG_SECONDS

    bench.now += LONG_SECONDS

    assert bench.feed.is_fetched(RUN)
    assert not bench.feed.is_done()
    assert bench.feed.wake_at() == float("inf")
