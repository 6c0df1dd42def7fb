"""`gpus --watch`: looks, one after the other, on a screen that is drawn in place or for a pipe."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TextIO, cast

from smartsched.cli.claiming import OthersClaims
from smartsched.cli.host import this_host
from smartsched.cli.looking import Onlooker
from smartsched.config import Config
from smartsched.core.model import Timestamp
from smartsched.core.survey import Survey, survey
from smartsched.core.traces import History
from smartsched.edges.patient import PatientStream
from smartsched.edges.terminal import Canvas, Keys
from smartsched.errors import StateError

_HOW_TO_END = "q or Ctrl-C ends this"
# Something may have to be said of GPUs that are silent: that nothing was heard of them for so long.
_PATIENCE_SECONDS = 1.0
_ENDING = ((signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129))  # and the exit status


def looks(onlooker: Onlooker, config: Config, warn: Callable[[str], None]) -> Iterator[Survey]:
    """One at every sample, for ever. `warn` is told once what is wrong with claims."""
    onlooker.begin()
    claims = _Claims(config, warn)
    while True:
        yield claims.look(onlooker)
        until = _next_look(onlooker)
        while not onlooker.take() and onlooker.clock.now() < until:
            onlooker.waiter.wait(min(onlooker.sampler.wake_at(), until))


def watch_on_screen(stack: ExitStack, onlooker: Onlooker, config: Config, history: History) -> int:
    """Until somebody wants no more; the exit status. The terminal is left as it was."""
    screen = _Screen(onlooker, config, history)
    try:
        for signum, status in _ENDING:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                onlooker.waiter.on_signal(signum, lambda status=status: _end(status))  # type: ignore[misc]
        onlooker.begin()
        stack.callback(screen.close)
        screen.open()
        while True:
            screen.draw()
            screen.wait()
    except _EndedError as ended:
        return ended.status


class _EndedError(Exception):
    """Somebody wants no more. It is raised only while we wait."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _end(status: int) -> None:
    raise _EndedError(status)


def _next_look(onlooker: Onlooker) -> Timestamp:
    """At the latest, though nothing is heard."""
    interval = onlooker.state.policy.interval_seconds
    return onlooker.clock.now() + interval + _PATIENCE_SECONDS


class _Claims:
    """Of others; what is wrong with them is no reason to look no more."""

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self._claims = OthersClaims(config, self._say)
        self._warn = warn
        self._said: set[str] = set()

    def look(self, onlooker: Onlooker) -> Survey:
        now = onlooker.clock.now()
        try:
            self._claims.see(onlooker.state, now)
        except StateError as error:
            self._say(str(error))
        return survey(onlooker.state, now)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._warn(text)


class _Screen:
    def __init__(self, onlooker: Onlooker, config: Config, history: History) -> None:
        from smartsched.edges.screen import console_on

        self._onlooker = onlooker
        self._history = history
        self._notes = list(config.notes)
        self._claims = _Claims(config, self._notes.append)
        self._stream = PatientStream(1)
        self._canvas = Canvas(self._stream, whole=True)
        self._console = console_on(cast("TextIO", self._stream), color=config.color)
        self._keys = Keys(0, onlooker.waiter, _obey)
        self._is_due = False

    def open(self) -> None:
        self._onlooker.waiter.on_signal(signal.SIGWINCH, self._draw_soon)
        self._onlooker.waiter.on_signal(signal.SIGTSTP, self._pause)
        self._keys.open()
        self._canvas.open()

    def close(self) -> None:
        self._canvas.close()
        self._stream.finish()
        self._keys.close()

    def draw(self) -> None:
        from smartsched.edges.gpu_watch import Watched
        from smartsched.edges.screen import drawn

        found = self._claims.look(self._onlooker)
        columns, rows = self._canvas.size()
        picture = Watched(
            height=rows,
            rows=found.rows,
            history=self._history,
            now=self._onlooker.clock.now(),
            host=this_host(),
            notes=tuple(self._notes),
            how_to_end=_HOW_TO_END,
            ascii_only=not _speaks_unicode(),
        )
        self._canvas.show(drawn(self._console, picture, columns, rows))

    def wait(self) -> None:
        """Until there is something new to draw."""
        until = _next_look(self._onlooker)
        self._is_due = False
        while not self._is_due and self._onlooker.clock.now() < until:
            self._onlooker.waiter.wait(min(self._onlooker.sampler.wake_at(), until))
            if self._onlooker.take():
                self._is_due = True

    def _draw_soon(self) -> None:
        self._is_due = True

    def _pause(self) -> None:
        """Ctrl-Z: the shell gets its terminal back, as it was, until we go on."""
        self.close()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._keys.open()
        self._canvas.open()
        self._is_due = True


def _obey(pressed: bytes) -> None:
    if b"q" in pressed.lower():
        _end(0)


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
