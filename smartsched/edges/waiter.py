"""The one place where the dispatcher sleeps: until a descriptor is ready, a signal came, or it is
time."""

import os
import selectors
import signal
from collections.abc import Callable
from types import FrameType

from smartsched.core.model import Timestamp
from smartsched.ports import Clock

_LONGEST_SLEEP_SECONDS = 3600.0
_EVENTS = {False: selectors.EVENT_READ, True: selectors.EVENT_WRITE}


class Waiter:
    """Callbacks run inside `wait`, one after the other, never inside a signal handler."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._when_caught: dict[int, Callable[[], None]] = {}
        self._handlers_before: dict[int, object] = {}
        self._wake_fd, self._signal_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._signal_fd, warn_on_full_buffer=False)
        self.watch(self._wake_fd, self._read_signals)

    def watch(self, fd: int, when_ready: Callable[[], None], *, writable: bool = False) -> None:
        self.forget(fd)
        self._selector.register(fd, _EVENTS[writable], when_ready)

    def forget(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def on_signal(self, signum: int, when_caught: Callable[[], None]) -> None:
        self._when_caught[signum] = when_caught
        before = signal.signal(signum, _leave_it_to_the_wakeup_fd)
        self._handlers_before.setdefault(signum, before)

    def wait(self, until: Timestamp) -> None:
        seconds = min(max(until - self._clock.now(), 0.0), _LONGEST_SLEEP_SECONDS)
        for key, _ in self._selector.select(seconds):
            # an earlier callback of this round may have let go of this one
            if self._selector.get_map().get(key.fd) is key:
                key.data()

    def close(self) -> None:
        # Of a signal that comes just as its handler is taken away, Python says on stderr that it is
        # lost. Here those that came before are handled, and others come when it is done.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers_before)
        for signum, handler in self._handlers_before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal.signal gave us
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        signal.set_wakeup_fd(self._wakeup_before)
        self._selector.close()
        os.close(self._wake_fd)
        os.close(self._signal_fd)

    def _read_signals(self) -> None:
        try:
            caught = os.read(self._wake_fd, 4096)
        except BlockingIOError:
            return
        for signum in caught:
            if when_caught := self._when_caught.get(signum):
                when_caught()


def _leave_it_to_the_wakeup_fd(signum: int, frame: FrameType | None) -> None:
    """Python has written the signal's number to the wakeup descriptor; that is all we need."""
