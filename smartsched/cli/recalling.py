"""What a run's journal comes to: by its bookmark as far as that goes, else by all its records."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from smartsched import __version__
from smartsched.core.bookmark import NOWHERE, Bookmark, Mark, decode
from smartsched.core.events import Event, RunBegan
from smartsched.core.terms import Past, began
from smartsched.edges.bookmarks import BookmarkFile, read_bookmark
from smartsched.edges.journal import FileJournal, has_come_by, read_journal
from smartsched.edges.runs import JOURNAL, RunFolder, Runs, open_own_file
from smartsched.errors import IllegalTransitionError, StateError

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def recall(folder: RunFolder, journal: FileJournal) -> tuple[Past, BookmarkFile]:
    """Of a run that we hold, and its bookmark, moved on if it was far behind. Raises
    JournalDamagedError."""
    bookmark = decode(read_bookmark(folder.open_file), __version__, folder.name)
    if bookmark is not None and not journal.has_come_by(bookmark.mark):
        bookmark = None
    past, kept = _past_of(folder.name, bookmark, journal.replay)
    assert past is not None  # the journal sees to it that there is a record
    file = bookmark_in(folder, journal, past, kept)
    file.keep()
    return past, file


def bookmark_in(
    folder: RunFolder, journal: FileJournal, past: Past, kept: Mark = NOWHERE
) -> BookmarkFile:
    return BookmarkFile(folder.fd, folder.open_file, lambda: journal.mark, past, __version__, kept)


def past_of(runs: Runs, name: str) -> Past | None:
    """Of any run, whoever holds it. None: it has no whole record. Raises StateError and
    JournalDamagedError."""
    path = runs.path(name)
    with ExitStack() as stack:
        try:
            folder = os.open(path, _FOLDER_FLAGS)
            stack.callback(os.close, folder)
            open_file = partial(open_own_file, folder)
            journal = open_file(JOURNAL, os.O_RDONLY)
            stack.callback(os.close, journal)
        except OSError as error:
            raise StateError(f"cannot read {path / JOURNAL}: {error.strerror}") from error
        bookmark = decode(read_bookmark(open_file), __version__, name)
        if bookmark is not None and not has_come_by(journal, bookmark.mark):
            bookmark = None
        past, _ = _past_of(
            name, bookmark, lambda after: read_journal(os.dup(journal), str(path / JOURNAL), after)
        )
        return past


def _past_of(
    name: str, bookmark: Bookmark | None, replay: Callable[[Mark], Iterator[Event]]
) -> tuple[Past | None, Mark]:
    """And from where on records were read."""
    if bookmark is not None:
        try:
            return _gone_on(name, bookmark.past, replay(bookmark.mark)), bookmark.mark
        except IllegalTransitionError:
            pass  # it is wrong, whatever its checksum says; the journal alone knows
    return _gone_on(name, None, replay(NOWHERE)), NOWHERE


def _gone_on(name: str, past: Past | None, events: Iterator[Event]) -> Past | None:
    for event in events:
        if past is not None:
            past.take(event)
        elif isinstance(event, RunBegan):  # no journal begins with anything else
            past = began(event, name)
    return past
