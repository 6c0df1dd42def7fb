"""An event loop in a thread of its own, and the box in which it leaves what the main thread shall
know. Signals stay with the main thread, whose end waits for this one as long as it is told."""

import asyncio
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from smartsched.ports import FdWatcher

_LAST_WORDS_SECONDS = 0.3
T = TypeVar("T")


class Mailbox(Generic[T]):
    """Filled by any thread, emptied by the main one, which it wakes."""

    def __init__(self, fds: FdWatcher) -> None:
        self._fds = fds
        self._lock = threading.Lock()
        self._letters: deque[T] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_closed = False
        self._is_rung = False  # since the last take
        fds.watch(self._fd, self._hush)

    def put(self, letter: T, *, can_wait: bool = False) -> None:
        """`can_wait`: it may lie there until somebody rings, or something else comes."""
        with self._lock:
            if not self._is_closed:
                self._letters.append(letter)
        if not can_wait:
            self.ring()

    def ring(self) -> None:
        """Wake the main thread, if there is something for it that it does not know of."""
        with self._lock:
            if self._letters and not self._is_rung and not self._is_closed:
                self._is_rung = True
                os.eventfd_write(self._fd, 1)

    def take(self) -> list[T]:
        with self._lock:
            taken = list(self._letters)
            self._letters.clear()
            self._is_rung = False
        return taken

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._fds.forget(self._fd)
        os.close(self._fd)

    def _hush(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)


class LoopThread:
    """Runs one coroutine until it ends. Whatever of it is left then is cancelled."""

    def __init__(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_say_nothing)
        self._main = main
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        # a thread inherits what its maker lets no signal through
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """There, soon; not at all when it has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def join(self, seconds: float) -> bool:
        """Whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._cancel_the_rest()
            # An executor's threads are not waited for: they may hang in a name server's silence.
            self._loop.close()
            asyncio.set_event_loop(None)

    def _cancel_the_rest(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=_LAST_WORDS_SECONDS))
        # connections that were aborted are closed in the loop's next round
        self._loop.run_until_complete(asyncio.sleep(0))


async def in_a_thread(function: Callable[[], T]) -> T:
    """Like asyncio.to_thread, but the interpreter's end does not wait for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # what `function` gave

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:  # noqa: BLE001  # it is raised where it is awaited
            error = raised
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await future


def _say_nothing(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What goes wrong with a connection is told by its end; a traceback helps no user."""
