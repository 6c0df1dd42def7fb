"""Draws lines in place on a terminal: the whole of it, or a picture below lines that scroll by.

rich.live, which could do it, erases all lines before it draws them again, and counts on nobody
changing the terminal's width meanwhile: most terminals then wrap anew what is there. Here each line
is overwritten where it stands, and between two pictures the cursor waits on the first line of the
picture, which it keeps however the terminal wraps what is above and below.
"""

import os
import termios
import tty
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from smartsched.ports import FdWatcher

_OTHER_SCREEN, _OWN_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
# Where the terminal has become narrower than we know, what is too long is cut, not wrapped.
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_HOME = "\x1b[H"
_ERASE_REST_OF_LINE = "\x1b[K"
_ERASE_BELOW = "\x1b[J"
_NARROWEST, _LOWEST = 20, 4
_USUAL_SIZE = (80, 24)


class Stream(Protocol):
    """To a terminal; it never waits for it."""

    def write(self, text: str) -> int: ...
    def flush(self) -> None: ...
    def fileno(self) -> int: ...
    def is_behind(self) -> bool:
        """Whether the terminal has not taken yet what was written."""
        ...


class Canvas:
    """What is drawn may be of any width up to `columns`. Raises OSError when the terminal is
    gone."""

    def __init__(self, stream: Stream, *, whole: bool) -> None:
        """`whole`: take all of the terminal, and leave it as it was."""
        self._stream = stream
        self._whole = whole
        self._lines: Sequence[str] = ()
        self._is_open = False

    def size(self) -> tuple[int, int]:
        """Columns and rows that may be drawn on. The last column is not: to erase the rest of a
        line that fills all columns would take its last letter."""
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except OSError:
            columns, rows = 0, 0
        if not columns or not rows:  # a serial line, for one, does not say
            columns, rows = _USUAL_SIZE
        return max(columns - 1, _NARROWEST), max(rows, _LOWEST)

    def open(self) -> None:
        self._is_open = True
        self._put((_OTHER_SCREEN if self._whole else "") + _HIDE_CURSOR)

    def show(self, lines: Sequence[str]) -> None:
        """In place of what was shown before. Not while the terminal is behind: it would be old
        news when it is seen."""
        self._lines = lines
        if self._is_open and not self._stream.is_behind():
            self._put(self._picture())

    def above(self, line: str, width: int) -> None:
        """A line, as long as it likes, that stays. `width`: how many columns it takes."""
        columns = self.size()[0] + 1
        fills = width > 0 and width % columns == 0  # then nothing is left of its last row
        text = line + ("" if fills else _ERASE_REST_OF_LINE) + "\r\n"
        if self._is_open and self._lines:
            self._put("\r" + text + self._picture())
        else:
            self._put(line + "\n")

    def close(self) -> None:
        """The picture is gone, the terminal is as it was."""
        if not self._is_open:
            return
        self._is_open = False
        self._lines = ()
        gone = _OWN_SCREEN if self._whole else "\r" + _ERASE_BELOW
        self._put(gone + _SHOW_CURSOR)

    def _picture(self) -> str:
        end = f"{_ERASE_REST_OF_LINE}\r\n"
        picture = end.join(self._lines) + _ERASE_REST_OF_LINE + _ERASE_BELOW
        up = len(self._lines) - 1
        back = "\r" + (f"\x1b[{up}A" if up > 0 else "")
        return _NO_WRAP + (_HOME if self._whole else "\r") + picture + back + _WRAP

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Keys:
    """Tells of keys as they are pressed, where there is a keyboard."""

    def __init__(self, fd: int, fds: FdWatcher, when_pressed: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._fds = fds
        self._when_pressed = when_pressed
        self._before: list[Any] | None = None  # None: we have not changed how it works

    def open(self) -> None:
        if not os.isatty(self._fd):
            return
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd, termios.TCSADRAIN)
        self._fds.watch(self._fd, self._read)

    def close(self) -> None:
        if self._before is None:
            return
        self._fds.forget(self._fd)
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        self._before = None

    def _read(self) -> None:
        try:
            pressed = os.read(self._fd, 1024)
        except OSError:
            pressed = b""
        if not pressed:
            self._fds.forget(self._fd)
        else:
            self._when_pressed(pressed)
