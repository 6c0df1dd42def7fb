"""What takes long is done while its maker goes on."""

import _thread
import errno
import signal
import threading
from contextlib import closing

import pytest

from smartsched.edges.beside import Bell, Beside
from smartsched.edges.clock import SteadyClock
from smartsched.edges.waiter import Waiter
from smartsched.errors import StateError
from tests.waiting import wait_until


def test_its_maker_goes_on_meanwhile():
    let = threading.Event()
    beside = Beside(lambda: assert_is_set(let))
    assert beside.is_at_work

    let.set()
    beside.wait()

    wait_until(lambda: not beside.is_at_work)
    assert beside.error is None


def assert_is_set(event: threading.Event) -> None:
    if not event.wait(60):
        raise OSError(errno.ETIMEDOUT, "nobody has let it go on")


def test_at_its_end_whoever_waits_is_woken_once():
    clock = SteadyClock()
    with closing(Waiter(clock)) as waiter, closing(Bell(waiter)) as bell:
        began = clock.now()
        beside = Beside(lambda: None, bell)
        waiter.wait(began + 60)
        assert clock.now() < began + 30

        beside.wait()
        began = clock.now()
        waiter.wait(began + 0.05)
        assert clock.now() >= began + 0.05


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        (OSError(errno.EIO, "it broke"), errno.EIO),
        (StateError("it is not ours"), None),
        (MemoryError(), errno.ENOMEM),
    ],
)
def test_how_it_failed_is_known(fails: Exception, says: int | None):
    def fail() -> None:
        raise fails

    beside = Beside(fail)
    beside.wait()

    assert beside.error is not None
    assert getattr(beside.error, "errno", None) == says


def test_what_nobody_has_thought_of_is_not_taken_for_success():
    beside = Beside(lambda: [][0])
    beside.wait()

    with pytest.raises(IndexError):
        _ = beside.error


def test_nobody_rings_a_bell_any_more_when_it_has_been_waited_for():
    """Its descriptor may be that of another file by then."""
    rung: list[str] = []
    is_over = threading.Event()

    class SlowBell(Bell):
        def __init__(self) -> None:
            """Rings nowhere."""

        def ring(self) -> None:
            is_over.wait(60)
            rung.append("rung")

    beside = Beside(lambda: None, SlowBell())
    wait_until(lambda: not beside.is_at_work)
    threading.Timer(0.05, is_over.set).start()
    beside.wait()

    assert rung == ["rung"]


def test_where_there_is_no_thread_to_be_had_it_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    threads = []

    beside = Beside(lambda: threads.append(threading.get_ident()))

    assert not beside.is_at_work
    assert threads == [threading.get_ident()]


def test_signals_are_left_to_its_maker():
    masks: list[set[signal.Signals | int]] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    beside = Beside(lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    wait_until(lambda: not beside.is_at_work)

    assert masks[0] >= {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
