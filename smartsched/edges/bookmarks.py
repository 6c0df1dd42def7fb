"""The bookmark beside a run's journal: read, and put there anew now and then while the run lasts.

It is only a help: where it cannot be written, the next dispatcher reads more of the journal.
"""

import os
from collections.abc import Callable
from contextlib import suppress

from smartsched.core.bookmark import NOWHERE, Mark, encode, weight
from smartsched.core.decide import Decision
from smartsched.core.events import Event, RunClosed
from smartsched.core.model import Timestamp
from smartsched.core.state import State
from smartsched.core.terms import Past

BOOKMARK = "bookmark.json"
_UNFINISHED = "bookmark.new"
# So much of a journal is read in a tenth of a second or two.
EVERY_BYTES = 1 << 20
# What is heavier would keep the loop from its work for too long; at the end nobody waits for it.
MOST_AT_WORK, MOST_AT_REST = 15_000, 50_000
OpenFile = Callable[[str, int], int]


def read_bookmark(open_file: OpenFile) -> bytes:
    """b"": there is none that can be read."""
    try:
        with open(open_file(BOOKMARK, os.O_RDONLY), "rb") as file:
            return file.read()
    except OSError:
        return b""


class BookmarkFile:
    """An Observer. Its cost is in proportion to what the journal has grown by."""

    def __init__(
        self,
        folder: int,
        open_file: OpenFile,
        mark: Callable[[], Mark],
        past: Past,
        author: str,
        kept: Mark = NOWHERE,
        every_bytes: int = EVERY_BYTES,
    ) -> None:
        """`folder`: of the run, open. `open_file` opens a file of the user's own there, and raises
        OSError. `mark`: behind the journal's last record. `past`: what all of the journal comes to,
        by now and later on. `kept`: where the bookmark is that is there; `every_bytes`: of the
        journal, there is to be another one, or less often where it is large itself."""
        self._folder = folder
        self._open_file = open_file
        self._mark = mark
        self._past = past
        self._author = author
        self._seq = mark().seq  # of the last record that `past` has in it
        self._kept_at = kept.size_bytes
        self._every_bytes = every_bytes
        self._next_after_bytes = every_bytes
        self._is_over = False

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        self._seq += 1
        self._past.terms.take(event)
        self._is_over = isinstance(event, RunClosed)

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        self._keep(MOST_AT_WORK)

    def wake_at(self) -> Timestamp:
        return float("inf")

    def keep(self) -> None:
        """Now, if it is worth while."""
        self._keep(MOST_AT_REST)

    def close(self) -> None:
        """Whatever else may have ended the run, it may have left things half done."""
        if self._is_over:
            self.keep()

    def _keep(self, most: int) -> None:
        mark = self._mark()
        if mark.size_bytes - self._kept_at < self._next_after_bytes:
            return
        if mark.seq != self._seq or weight(self._past.state) > most:
            return
        data = encode(mark, self._past, self._author)
        self._kept_at = mark.size_bytes
        self._next_after_bytes = max(self._every_bytes, 2 * len(data))
        with suppress(OSError):
            self._replace(data)

    def _replace(self, data: bytes) -> None:
        """At once: whoever reads it, and whatever crashes, finds one or the other. The disk is not
        waited for: what a loss of power leaves of it is not whole, or not of this journal, and
        not believed."""
        with suppress(FileNotFoundError):  # of one that died here
            os.unlink(_UNFINISHED, dir_fd=self._folder)
        fd = self._open_file(_UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with open(fd, "wb", buffering=0) as file:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
            os.rename(_UNFINISHED, BOOKMARK, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            with suppress(OSError):
                os.unlink(_UNFINISHED, dir_fd=self._folder)
            raise
