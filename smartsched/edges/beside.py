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
        self.error: OSError | StateError | None = None
        self._work = work
        self._bell = bell
        self._has_ended = _thread.allocate_lock()  # is free when it has
        self._has_ended.acquire()
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
        return self._has_ended.locked()

    def wait(self) -> None:
        with self._has_ended:
            pass

    def _run(self) -> None:
        try:
            self._work()
        except (OSError, StateError) as error:
            self.error = error
        except MemoryError:
            self.error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        finally:
            self._has_ended.release()
            if self._bell is not None:
                self._bell.ring()
