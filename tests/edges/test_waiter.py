"""Sleeping until something happens, and what users say by signals."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from smartsched.core.events import DrainRequested, StopRequested
from smartsched.edges.clock import SteadyClock
from smartsched.edges.requests import SignalRequests
from smartsched.edges.waiter import Waiter

Handler = Callable[[int, FrameType | None], object] | int | None
LONG_SECONDS = 30.0
ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As at the start of a program, and as before afterwards."""
    before = {signum: signal.getsignal(signum) for signum in ALL}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def clock() -> SteadyClock:
    return SteadyClock()


@pytest.fixture
def waiter(clock: SteadyClock) -> Iterator[Waiter]:
    waiter = Waiter(clock)
    yield waiter
    waiter.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    fds = os.pipe()
    yield fds
    for fd in fds:
        os.close(fd)


def send(*signums: signal.Signals) -> None:
    """To ourselves, one after the other: pending ones would come as one."""
    for signum in signums:
        os.kill(os.getpid(), signum)


def ask(waiter: Waiter, clock: SteadyClock, requests: SignalRequests, *signums: signal.Signals):
    send(*signums)
    waiter.wait(clock.now() + LONG_SECONDS)
    return requests.take(clock.now())


def test_it_sleeps_until_the_time_and_not_longer(waiter: Waiter, clock: SteadyClock):
    began = time.monotonic()

    waiter.wait(clock.now() + 0.2)

    assert 0.15 < time.monotonic() - began < LONG_SECONDS


@pytest.mark.parametrize("until", [float("-inf"), 0.0])
def test_what_is_past_is_not_waited_for(waiter: Waiter, until: float):
    began = time.monotonic()

    waiter.wait(until)

    assert time.monotonic() - began < 5


def test_what_never_comes_can_be_waited_for(waiter: Waiter, pipe: tuple[int, int]):
    os.write(pipe[1], b"x")
    waiter.watch(pipe[0], lambda: None)

    waiter.wait(float("inf"))


def test_a_descriptor_wakes_it_until_forgotten(
    waiter: Waiter, clock: SteadyClock, pipe: tuple[int, int]
):
    calls: list[str] = []
    waiter.watch(pipe[0], lambda: calls.append("old"))
    waiter.watch(pipe[0], lambda: calls.append("new"))
    os.write(pipe[1], b"x")

    waiter.wait(clock.now() + LONG_SECONDS)
    waiter.wait(clock.now() + LONG_SECONDS)
    waiter.forget(pipe[0])
    waiter.forget(pipe[0])
    waiter.wait(clock.now() + 0.05)

    assert calls == ["new", "new"]


def test_a_callback_may_let_go_of_another_that_is_due(waiter: Waiter, clock: SteadyClock):
    first, second = os.pipe(), os.pipe()
    calls: list[int] = []

    def called(fd: int) -> None:
        calls.append(fd)
        waiter.forget(first[0])
        waiter.forget(second[0])

    for read_fd, write_fd in (first, second):
        waiter.watch(read_fd, lambda read_fd=read_fd: called(read_fd))  # type: ignore[misc]
        os.write(write_fd, b"x")

    waiter.wait(clock.now() + LONG_SECONDS)

    assert len(calls) == 1
    for fd in (*first, *second):
        os.close(fd)


def test_room_to_write_wakes_it(waiter: Waiter, clock: SteadyClock, pipe: tuple[int, int]):
    calls: list[str] = []
    waiter.watch(pipe[1], lambda: calls.append("writable"), writable=True)

    waiter.wait(clock.now() + LONG_SECONDS)

    assert calls == ["writable"]


def test_a_signal_wakes_it(waiter: Waiter, clock: SteadyClock):
    caught: list[float] = []
    waiter.on_signal(signal.SIGUSR1, lambda: caught.append(time.monotonic()))
    timer = threading.Timer(0.1, send, [signal.SIGUSR1])
    timer.start()
    began = time.monotonic()

    waiter.wait(clock.now() + LONG_SECONDS)

    timer.join()
    assert caught
    assert caught[0] - began < LONG_SECONDS / 2


def test_callbacks_of_signals_run_in_wait_and_not_in_the_handler(
    waiter: Waiter, clock: SteadyClock
):
    caught: list[int] = []
    waiter.on_signal(signal.SIGUSR1, lambda: caught.append(1))

    send(signal.SIGUSR1, signal.SIGUSR1)
    before_wait = list(caught)
    waiter.wait(clock.now() + LONG_SECONDS)

    assert before_wait == []
    assert caught == [1, 1]


def test_closing_gives_signals_and_descriptors_back(clock: SteadyClock):
    fds_before = os.listdir("/proc/self/fd")
    wakeup_before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup_before)
    before = [signal.getsignal(signum) for signum in ALL]
    waiter = Waiter(clock)
    SignalRequests(waiter, single=False)
    for _ in range(2):
        waiter.on_signal(signal.SIGUSR1, lambda: None)
    assert [signal.getsignal(signum) for signum in ALL] != before

    waiter.close()

    assert [signal.getsignal(signum) for signum in ALL] == before
    assert os.listdir("/proc/self/fd") == fds_before
    assert signal.set_wakeup_fd(wakeup_before) == wakeup_before


def test_the_first_interrupt_drains_and_the_second_stops(waiter: Waiter, clock: SteadyClock):
    requests = SignalRequests(waiter, single=False)

    first = ask(waiter, clock, requests, signal.SIGINT)
    second = ask(waiter, clock, requests, signal.SIGINT)

    assert [type(request) for request in first] == [DrainRequested]
    assert [type(request) for request in second] == [StopRequested]
    assert requests.take(clock.now()) == []


def test_two_interrupts_at_once_are_two(waiter: Waiter, clock: SteadyClock):
    requests = SignalRequests(waiter, single=False)

    asked = ask(waiter, clock, requests, signal.SIGINT, signal.SIGINT)

    assert [type(request) for request in asked] == [DrainRequested, StopRequested]


def test_sigterm_stops_at_once(waiter: Waiter, clock: SteadyClock):
    asked = ask(waiter, clock, SignalRequests(waiter, single=False), signal.SIGTERM)

    assert [(type(request), request.why) for request in asked] == [(StopRequested, "SIGTERM")]


def test_hangups_drain_however_many_come(waiter: Waiter, clock: SteadyClock):
    requests = SignalRequests(waiter, single=False)

    asked = ask(waiter, clock, requests, signal.SIGHUP, signal.SIGHUP)

    assert [(type(request), request.why) for request in asked] == [(DrainRequested, "SIGHUP")] * 2


def test_a_hangup_after_an_interrupt_does_not_stop(waiter: Waiter, clock: SteadyClock):
    requests = SignalRequests(waiter, single=False)

    asked = ask(waiter, clock, requests, signal.SIGINT, signal.SIGHUP)

    assert [type(request) for request in asked] == [DrainRequested, DrainRequested]


def test_under_nohup_a_hangup_stays_ignored(waiter: Waiter, clock: SteadyClock):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requests = SignalRequests(waiter, single=False)

    asked = ask(waiter, clock, requests, signal.SIGHUP, signal.SIGTERM)

    assert [request.why for request in asked] == ["SIGTERM"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_handlers_are_taken_away_while_their_signals_are_held_back(
    clock: SteadyClock, monkeypatch: pytest.MonkeyPatch
):
    """Of one that comes just then, Python says on stderr that it is lost: one in 60,000 times where
    they never cease."""
    waiter = Waiter(clock)
    waiter.on_signal(signal.SIGUSR1, lambda: None)
    before, change = signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.signal
    blocked: list[set[int]] = []

    def changed(signum: int, handler: Handler) -> Handler:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return change(signum, handler)

    monkeypatch.setattr(signal, "signal", changed)
    waiter.close()

    assert blocked == [before | {signal.SIGUSR1}]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_the_clock_follows_the_host_s_monotonic_one():
    clock = SteadyClock()

    now, monotonic = clock.now(), time.monotonic()

    assert abs(now - time.time()) < 5
    assert clock.at_monotonic(monotonic) >= now
    assert clock.at_monotonic(monotonic) - now < 5
