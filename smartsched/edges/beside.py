"""Something that may take long, done in a thread while its dispatcher goes on."""

import _thread  # threading takes two milliseconds to load, and what starts a thread for us is there
import errno
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from smartsched.errors import StateError
from smartsched.ports import FdWatcher


class Bell:
    """Wakes whoever waits on descriptors; may be rung in any thread."""

    def __init__(self, fds: FdWatcher) -> None:
        """Raises OSError."""
        self._fds = fds
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        fds.watch(self._fd, self._hush)

    def ring(self) -> None:
        with suppress(BlockingIOError):  # it is ringing, and has been for long
            os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Nobody may ring any more."""
        self._fds.forget(self._fd)
        os.close(self._fd)

    def _hush(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)


class Beside:
    """One piece of work, begun at once: in a thread, or while its maker waits where there is none
    to be had."""

    def __init__(self, work: Callable[[], None], bell: Bell | None = None) -> None:
        """`work`: touches nothing that others do meanwhile, and fails by raising OSError or
        StateError. `bell`: is rung at its end."""
        self._failed: BaseException | None = None
        self._is_done = False
        self._work = work
        self._bell = bell
        self._is_gone = _thread.allocate_lock()  # free when the thread touches nothing any more
        self._is_gone.acquire()
        # a thread inherits what its maker lets no signal through
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # there may be no more, by the limits of the user
            self._run()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def is_at_work(self) -> bool:
        return not self._is_done

    @property
    def error(self) -> OSError | StateError | None:
        """Raises whatever else the work has raised: that is for its maker to see."""
        if isinstance(self._failed, MemoryError):
            return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if self._failed is None or isinstance(self._failed, OSError | StateError):
            return self._failed
        raise self._failed

    def wait(self) -> None:
        """For its end, and until the bell has been rung."""
        with self._is_gone:
            pass

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  # here is nobody to be told
            self._failed = error
        try:
            self._is_done = True
            if self._bell is not None:
                self._bell.ring()
        finally:
            self._is_gone.release()
