"""How a run is gone on with where its last dispatcher ended or died."""

import argparse
import fcntl
import json
import os
import select
import stat
import termios
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from msgspec import Struct

from smartsched.cli.host import this_host, this_place
from smartsched.cli.limits import settle
from smartsched.cli.parser import HAD_NOTICES, LATEST, parse_again, remembered
from smartsched.cli.recalling import recall
from smartsched.cli.session import (
    Session,
    copies_in,
    lost_after_seconds,
    open_journal,
    runs_of,
    window_for,
)
from smartsched.config import Config, spans_hosts
from smartsched.core import words
from smartsched.core.events import (
    ListReplaced,
    RunBegan,
    RunClosed,
    RunResumed,
)
from smartsched.core.ledger import KINDS, Ledger, ledger_of
from smartsched.core.model import Position, Timestamp
from smartsched.core.records import decode_line, name_of
from smartsched.core.state import State, over
from smartsched.core.terms import Past, Terms
from smartsched.edges.attempts import Attempts
from smartsched.edges.continued import Continued
from smartsched.edges.inbox import has_requests
from smartsched.edges.intake import Input, OneCommand, open_inputs
from smartsched.edges.journal import FileJournal
from smartsched.edges.runs import JOBS, RunFolder, Runs
from smartsched.edges.spool import Spool
from smartsched.errors import JournalDamagedError, StateError, UsageError
from smartsched.ports import FdWatcher, Intake

_NO_RUNS = "none is remembered; if they are elsewhere, name that place with --state DIR"


class _Past(Struct):
    """What the journal of a run says."""

    terms: Terms
    state: State
    ledger: Ledger
    whole: set[int]  # inputs of which all is there
    window: int = 0  # commands to be read ahead


def resume(
    stack: ExitStack,
    args: argparse.Namespace,
    words: Sequence[str],
    fds: FdWatcher,
    now: Timestamp,
) -> Session:
    """Take up a run where its last dispatcher ended or died, in the folder where it began."""
    runs, here = runs_of(args), os.getcwd()
    name, files = _which(runs, args)
    inputs = _list_given(files)
    folder = runs.open(name)
    stack.callback(folder.close)
    journal = open_journal(folder)
    stack.callback(journal.close)
    known, bookmark = recall(folder, journal)
    terms, state = known.terms, known.state
    ledger = _ledger_of(journal, known, inputs, failed_too=args.resume_failed)
    past = _Past(terms, state, ledger, _whole(known, folder))
    again = parse_again(words, terms.options)
    rebooted = args.assume_gone or _was_rebooted(state.place, this_place())
    attempts = Attempts(folder.make_folder(JOBS)).all()
    attempts_over = over(state, attempts, rebooted=rebooted)
    going = state.runs.keys() | (set(attempts) - attempts_over)
    if going and not args.assume_gone:
        _check_place(past, name, len(going), on_hosts=spans_hosts(again))
    try:
        os.chdir(terms.began.directory)
    except OSError as error:
        raise StateError(
            f"cannot go to {terms.began.directory}, where the run began: {error.strerror}; go on"
            " with it where that folder is"
        ) from error
    config = settle(again, name, terms.began.id)
    lost_after = lost_after_seconds(config)
    session = Session(
        again,
        config,
        folder,
        journal,
        state,
        _next_intake(past, args, config, folder, inputs, fds),
        terms,
        bookmark,
        here=here,
        single=terms.began.command is not None,
    )
    session.window = past.window
    stack.callback(session.intake.close)
    names = tuple(source.name for source in inputs)
    failed_too = args.resume_failed and not inputs
    session.resumed = RunResumed(
        now, this_host(), remembered(again), failed_too, this_place(), lost_after
    )
    session.replaced = ListReplaced(now, names) if inputs else None
    session.reminder = _broken_off(past, inputs)
    session.notes = _notes(journal, session.reminder, inputs)
    if not config.notify and HAD_NOTICES in json.loads(terms.options):
        session.notes.append(
            "nobody is notified: the URLs of --notify are not remembered, since they hold secrets;"
            " give them again, or set SMARTSCHED_NOTIFY"
        )
    if terms.longer(lost_after) != lost_after and config.cluster is not None:
        session.notes.append(_still_as_patient(terms))
    if unfinished := getattr(args, "unfinished", []):
        left = ", ".join(unfinished[:3])
        session.notes.append(
            f"earlier runs of this folder have something left: {left}"
            f" (smartsched --resume {unfinished[0]})"
        )
    session.over = sorted(attempts_over)
    return session


def is_done(session: Session, args: argparse.Namespace) -> bool:
    """Whether a resumed run has nothing left to do."""
    state = session.state
    if session.replaced is not None or state.queue or state.runs or state.ended:
        return False
    if has_requests(session.folder.path) or session.config.policy.keeps_open:
        return False
    failed_too = args.resume_failed and state.totals.failed > 0
    return not (state.input_open or state.interrupted or failed_too)


def _which(runs: Runs, args: argparse.Namespace) -> tuple[str, list[str]]:
    """The run to go on with, and the files that are its new list."""
    names = runs.names()
    if args.resume != LATEST:
        if args.resume in names:
            return args.resume, args.files
        if args.resume != "-" and not os.path.exists(args.resume):
            known = f"; there are {', '.join(names[:5])}" if names else f"; {_NO_RUNS}"
            raise UsageError(f"--resume: there is no run {args.resume}{known}")
        args.files = [args.resume, *args.files]
    latest, unfinished = _latest(runs, names, failed_too=args.resume_failed)
    args.unfinished = unfinished
    return latest, args.files


def _latest(runs: Runs, names: Sequence[str], *, failed_too: bool) -> tuple[str, list[str]]:
    """The run that began last in this folder, and earlier ones that have something left."""
    here = os.getcwd()
    began_here = []
    for name in names:
        records = runs.first_and_last_record(name)
        try:
            began = decode_line(records[0], 1) if records is not None else None
        except JournalDamagedError:
            continue
        if isinstance(began, RunBegan) and began.directory == here:
            began_here.append((began.at, name, _has_something_left(records, failed_too=failed_too)))
    if not began_here:
        known = f"; there are {', '.join(names[:5])}: name one" if names else f"; {_NO_RUNS}"
        raise UsageError(f"--resume: no run was begun in this folder{known}")
    (_, latest, _), *earlier = sorted(began_here, reverse=True)
    return latest, [name for _, name, is_left in earlier if is_left]


def _has_something_left(records: tuple[bytes, bytes] | None, *, failed_too: bool) -> bool:
    last = b"" if records is None else records[1]
    try:
        record = json.loads(last)
        closed = RunClosed(record["at"], record["complete"], record["failed"])
    except (ValueError, KeyError, TypeError):
        return True  # it did not end by itself
    return not closed.complete or (failed_too and closed.failed > 0)


def _list_given(files: Sequence[str]) -> list[Input]:
    """Standard input is a list only where somebody put one there: a run must not be taken to be
    emptied by a scheduler, a terminal or an ssh that leaves /dev/null or a pipe there."""
    if files:
        return open_inputs(files)
    try:
        status = os.fstat(0)
        at_its_beginning = stat.S_ISREG(status.st_mode) and os.lseek(0, 0, os.SEEK_CUR) == 0
    except OSError:
        return []
    # a script that the shell reads from there stands somewhere else by now
    return open_inputs(["-"]) if at_its_beginning and status.st_size > 0 else []


def _ledger_of(
    journal: FileJournal, past: Past, inputs: list[Input], *, failed_too: bool
) -> Ledger:
    """Which job is which line of a list only the journal knows, from its beginning on; that is not
    read again for what is known without it."""
    given_up = past.state.given_up
    failed = {
        job: (each.job.spec, each.job.attempts)
        for job, each in given_up.items()
        if each.outcome == "failed"
    }
    some_are_forgotten = len(failed) < past.state.totals.failed
    if inputs or past.terms.lists or (failed_too and some_are_forgotten):
        return ledger_of(journal.replay(only={name_of(kind) for kind in KINDS}))
    return Ledger(failed=failed)


def _check_place(past: _Past, name: str, going: int, *, on_hosts: bool) -> None:
    """So many runs may go on, as the journal or records of their own have it. What cannot be seen
    from here, or what no agent would look after, must not be taken for gone."""
    state, were_on_hosts = past.state, spans_hosts(parse_again([], past.terms.options))
    if on_hosts and not were_on_hosts:
        jobs = words.count(going, "job")
        raise StateError(
            f"{jobs} of run {name} may still run on {past.terms.began.host}, where no agent would"
            f" look after them: let them end first (smartsched --resume {name} there, and Ctrl-C to"
            " start nothing more), or, if they are gone, add --assume-gone"
        )
    hosts = {run.status.placement.host for run in state.runs.values()} - {this_host(), ""}
    if on_hosts or (not hosts and _is_visible_from(state.place, this_place())):
        return
    where = ", ".join(sorted(hosts)) or "another container, or another machine of this name"
    raise StateError(
        f"run {name} may have jobs that still run on {where}, where they cannot be seen from here:"
        " go on with it there, or, if that is gone, add --assume-gone"
    )


def _still_as_patient(terms: Terms) -> str:
    """Whoever asks for less is to know that it does not count."""
    seconds = terms.lost_after_seconds
    if seconds is None:
        return (
            "jobs on hosts that are out of reach are waited for, as this run began with --on-lost"
            " keep; --assume-gone gives those up that are not here now"
        )
    return (
        f"jobs on a host that is out of reach are started anew after {words.duration(seconds)}: so"
        " long may go on what began under a longer --lease or --grace"
    )


def _is_visible_from(place: str, here: str) -> bool:
    """After another boot of the same machine, nothing of the last one is left to be seen."""
    if not place or _was_rebooted(place, here):
        return True  # not place: of before it was noted
    (machine, _, namespace), (our_machine, _, our_namespace) = place.split("/"), here.split("/")
    return (machine, namespace) == (our_machine, our_namespace)


def _was_rebooted(place: str, here: str) -> bool:
    """This very machine, since the last dispatcher; False where that cannot be told."""
    if not place:
        return False
    (machine, boot, _), (our_machine, our_boot, _) = place.split("/"), here.split("/")
    return machine == our_machine and bool(boot and our_boot) and boot != our_boot


def _next_intake(
    past: _Past,
    args: argparse.Namespace,
    config: Config,
    folder: RunFolder,
    inputs: list[Input],
    fds: FdWatcher,
) -> Intake:
    terms, state = past.terms, past.state
    directory = config.working_directory or terms.began.directory
    if inputs:
        past.ledger.replace_list()
        names = [source.name for source in inputs]
        lines: OneCommand | Spool = _new_list(
            copies_in(folder, terms.lists + 1), inputs, names, directory, fds
        )
        read_to: Position | None = None
    elif terms.began.command is not None:
        lines = OneCommand(terms.began.command, directory)
        if state.totals.accepted:
            lines.take(1)
        read_to = None
    else:
        # with a list that replaced another, what it names has to be counted from its beginning
        read_to = state.read_to if terms.lists else None
        start = None if terms.lists else state.read_to
        copies = copies_in(folder, terms.lists)
        lines = Spool(copies, [], terms.inputs, directory, fds, past.whole, start)
    past.window = window_for(lines, is_new=bool(inputs))
    return Continued(
        lines,
        past.ledger,
        is_waiting=lambda job: job in state.set_aside or job in state.unnamed,
        failed_too=args.resume_failed,
        failed_first=not inputs,
        replaces=bool(inputs) or terms.lists > 0,
        read_to=read_to,
    )


def _new_list(
    copies: Callable[[int, int], int],
    inputs: list[Input],
    names: list[str],
    directory: str,
    fds: FdWatcher,
) -> Spool:
    try:
        spool = Spool(copies, inputs, names, directory, fds)
        spool.sync()
    except OSError as error:
        raise StateError(f"cannot keep the list: {error.strerror}; make room there") from error
    return spool


def _whole(past: Past, folder: RunFolder) -> set[int]:
    """Inputs of which all is there: a copy may have suffered more than the journal."""
    copies = copies_in(folder, past.terms.lists)
    whole = set()
    for number, size in past.state.whole_inputs.items():
        fd = copies(number, os.O_RDONLY | os.O_CREAT)
        if os.fstat(fd).st_size >= size:
            whole.add(number)
        os.close(fd)
    return whole


def _broken_off(past: _Past, inputs: list[Input]) -> str | None:
    names = [name for n, name in enumerate(past.terms.inputs) if n not in past.whole]
    if not names or inputs or not past.state.input_open:
        return None
    return (
        f"{', '.join(names)} had not been read to its end when the last dispatcher ended: for the"
        f" rest, smartsched --resume {past.terms.began.name} FILE"
    )


def _notes(journal: FileJournal, broken_off: str | None, inputs: list[Input]) -> list[str]:
    notes = [] if broken_off is None else [broken_off]
    if journal.cut_off_bytes:
        notes.append(
            f"the journal's last {journal.cut_off_bytes} bytes were no whole record any more, as"
            " after a crash; left out"
        )
    if not inputs and _is_pipe_with_data():
        notes.append("standard input is a pipe and was not read; with -, it is the new list")
    return notes


def _is_pipe_with_data() -> bool:
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(0).st_mode)
        return is_pipe and bool(select.select([0], [], [], 0)[0]) and _has_bytes()
    except (OSError, ValueError):
        return False


def _has_bytes() -> bool:
    """A pipe that was closed can be read as well."""
    waiting = array("i", [0])
    fcntl.ioctl(0, termios.FIONREAD, waiting)
    return waiting[0] > 0
