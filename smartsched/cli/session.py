"""What a run has on disk when its dispatcher sets to work, and how it comes there."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from msgspec import Struct, field

from smartsched.cli.host import this_host, this_place
from smartsched.cli.parser import remembered
from smartsched.cli.recalling import bookmark_in
from smartsched.config import Config
from smartsched.core.apply import apply, replay
from smartsched.core.events import (
    Event,
    JobFinished,
    ListReplaced,
    RunBegan,
    RunResumed,
)
from smartsched.core.model import BadLine, EndedRun, JobSpec, RunKey, Timestamp
from smartsched.core.policy import Policy
from smartsched.core.state import State
from smartsched.core.terms import Past, Terms, lost_after, terms_of
from smartsched.edges.bookmarks import BookmarkFile
from smartsched.edges.intake import Input, OneCommand
from smartsched.edges.journal import FileJournal
from smartsched.edges.runs import JOURNAL, RunFolder, Runs
from smartsched.edges.spool import Spool
from smartsched.errors import StateError, UsageError
from smartsched.loop import QUEUE_WINDOW
from smartsched.ports import FdWatcher, Intake

_ADVICE = "make room there, or name another place with --state DIR"


class Session(Struct):
    """A run, held by us."""

    args: argparse.Namespace
    config: Config
    folder: RunFolder
    journal: FileJournal
    state: State
    intake: Intake
    terms: Terms
    bookmark: BookmarkFile
    here: str  # where the user is: paths below it are told without it
    single: bool  # there is one command, given on the command line
    resumed: RunResumed | None = None  # None: it begins
    replaced: ListReplaced | None = None
    expected_commands: int | None = None  # in all; None: nobody knows
    notes: list[str] = field(default_factory=list)
    reminder: str | None = None  # a note that matters still when all is over
    over: list[RunKey] = field(default_factory=list)  # attempts that ended and were not tidied up
    window: int = QUEUE_WINDOW  # commands read ahead

    @property
    def how_to_go_on(self) -> str:
        """What to type for the rest."""
        state = f" --state {shlex.quote(self.args.state)}" if self.args.state is not None else ""
        return f"smartsched --resume {self.folder.name}{state}"

    def history(self) -> Iterator[Event]:
        """All records so far. Nothing may be written while they are read."""
        return self.journal.replay()

    def finished(self) -> Iterator[EndedRun]:
        """The last run of each job that is finished."""
        state = State(Policy(self.config.policy.run_id))
        for event in self.history():
            if isinstance(event, JobFinished):
                yield state.ended[event.run]
            apply(state, event)


def begin(
    stack: ExitStack,
    args: argparse.Namespace,
    config: Config,
    inputs: list[Input],
    fds: FdWatcher,
    now: Timestamp,
) -> Session:
    """Make the run's folder, with its list in it. From here on it can be resumed."""
    here, name = os.getcwd(), config.run_name
    names = tuple(source.name for source in inputs)
    new = runs_of(args).create(name)
    began = RunBegan(
        now,
        name,
        this_host(),
        here,
        names,
        config.command,
        remembered(args),
        config.policy.run_id,
        this_place(),
        lost_after_seconds(config),
    )
    try:
        journal = open_journal(new.folder)
        intake = _first_intake(config, new.folder, inputs, config.working_directory or here, fds)
        window = window_for(intake)
        events: list[Event] = [began, *intake.finished(now)]
        why = journal.write(events)
    except UsageError:
        new.discard()
        raise
    except (OSError, StateError) as error:
        new.discard()
        raise StateError(f"cannot keep run {name}: {error}; {_ADVICE}") from error
    if why is not None:
        new.discard()
        raise StateError(why)
    new.publish()
    for thing in (new.folder, journal, intake):
        stack.callback(thing.close)
    past = Past(terms_of(began), replay(config.policy, events))
    return Session(
        args,
        config,
        new.folder,
        journal,
        past.state,
        intake,
        past.terms,
        bookmark_in(new.folder, journal, past),
        here=here,
        single=config.command is not None,
        expected_commands=None if isinstance(intake, OneCommand) else intake.line_count(),
        window=window,
    )


def lost_after_seconds(config: Config) -> float | None:
    """Of what this dispatcher starts, see RunBegan."""
    if config.cluster is None:
        return 0.0
    return lost_after(config.cluster.lease_seconds, config.policy.grace_seconds)


def window_for(intake: OneCommand | Spool, *, is_new: bool = True) -> int:
    """How many commands of a list are to be read ahead: all, where some have a priority over those
    before them. Raises UsageError for wishes that cannot be meant, before anything of a new list
    runs; in one that came through a pipe, their lines were left out."""
    if isinstance(intake, OneCommand):
        return QUEUE_WINDOW
    wrong, has_priorities = [], False
    for line in intake.look_ahead(b"smartsched:"):
        match line:
            case BadLine(source, why, may_be_mended=True):
                wrong.append(f"{source}: {why}")
            case JobSpec(wishes=wishes):
                has_priorities = has_priorities or wishes.priority != 0
            case _:
                pass
    if wrong and is_new:
        more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
        raise UsageError(f"{wrong[0]}{more}; nothing was started")
    return sys.maxsize if has_priorities else QUEUE_WINDOW


def runs_of(args: argparse.Namespace) -> Runs:
    return Runs(state_folder(args), this_host())


def state_folder(args: argparse.Namespace) -> Path:
    from smartsched.cli.settings import setting_of

    chosen = args.state if args.state is not None else setting_of("state")
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    return default_state()


def default_state() -> Path:
    """Where nobody says anything else."""
    import platformdirs

    return platformdirs.user_state_path("smartsched", appauthor=False)


def open_journal(folder: RunFolder) -> FileJournal:
    try:
        return FileJournal(partial(folder.open_file, JOURNAL), str(folder.path / JOURNAL))
    except OSError as error:
        raise StateError(
            f"cannot open {folder.path / JOURNAL}: {error.strerror}; {_ADVICE}"
        ) from error


def copies_in(folder: RunFolder, lists: int) -> Callable[[int, int], int]:
    """Opens the copies of a list's inputs."""
    return lambda number, flags: folder.open_file(f"list-{lists}-{number}", flags)


def _first_intake(
    config: Config, folder: RunFolder, inputs: list[Input], directory: str, fds: FdWatcher
) -> OneCommand | Spool:
    if config.command is not None:
        return OneCommand(config.command, directory)
    names = [source.name for source in inputs]
    spool = Spool(copies_in(folder, 0), inputs, names, directory, fds)
    spool.sync()
    return spool
