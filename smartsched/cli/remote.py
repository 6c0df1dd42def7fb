"""What the verbs that speak to a run have in common: which run is meant, and asking it."""

import argparse
import os
import sys
from typing import Any

from smartsched.cli.host import this_host
from smartsched.cli.session import state_folder
from smartsched.config import run_of_this_job
from smartsched.core.events import RunBegan
from smartsched.core.records import decode_line
from smartsched.core.requests import VERSION, Answer
from smartsched.edges.inbox import Sender
from smartsched.edges.runs import JOURNAL, Runs, open_own_file
from smartsched.errors import JournalDamagedError, StateError, UsageError

# A run that is stopped, or whose disk does not answer, is not waited for any longer.
_PATIENCE_SECONDS = 10.0


def runs_at(args: argparse.Namespace) -> Runs:
    return Runs(state_folder(args), this_host())


def which_run(runs: Runs, args: argparse.Namespace, *, living: bool) -> str:
    """The one that is named; else the one whose job asks; else the only one that lives; of several
    the one that began in this folder. `living`: else there is none; if not, the latest."""
    names = latest_first(runs)
    if args.run is not None:
        if args.run not in names:
            known = f": there are {', '.join(names[:5])}" if names else ""
            raise UsageError(f"there is no run {args.run}{known}; smartsched runs lists them")
        return str(args.run)
    if (ours := run_of_this_job()) is not None:
        return _checked(ours, names)
    alive = [name for name in names if runs.who_holds(name) is not None]
    here = [name for name in alive if begun_in(runs, name) == os.getcwd()]
    if len(alive) == 1 or len(here) == 1:
        return (here or alive)[0]
    if alive:
        raise UsageError(f"several runs live: name one of {', '.join(alive)}")
    if living:
        latest = f"; the latest is {names[0]}: name it to ask it all the same" if names else ""
        raise UsageError(f"no run lives{latest}")
    latest_here = [name for name in names if begun_in(runs, name) == os.getcwd()]
    if not names:
        raise UsageError("there is no run yet: smartsched < commands.txt makes one")
    return (latest_here or names)[0]


def latest_first(runs: Runs) -> list[str]:
    """By when they began, whatever they are called."""
    begun = {name: beginning(runs, name) for name in runs.names()}
    at = {name: 0.0 if began is None else began.at for name, began in begun.items()}
    return sorted(at, key=lambda name: at[name], reverse=True)


def _checked(run: str, names: list[str]) -> str:
    """The run of the job that asks: never another one in its place."""
    if run not in names:
        raise UsageError(
            f"this is a job of run {run}, which is remembered elsewhere: say --state DIR, or name"
            " another run"
        )
    return run


def begun_in(runs: Runs, name: str) -> str | None:
    began = beginning(runs, name)
    return None if began is None else began.directory


def beginning(runs: Runs, name: str) -> RunBegan | None:
    records = runs.first_and_last_record(name)
    try:
        event = decode_line(records[0], 1) if records is not None else None
    except JournalDamagedError:
        return None
    return event if isinstance(event, RunBegan) else None


def journal_of(runs: Runs, name: str) -> int:
    """Open to be read. Raises StateError."""
    folder = runs.path(name)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return open_own_file(fd, JOURNAL, os.O_RDONLY)
        finally:
            os.close(fd)
    except OSError as error:
        raise StateError(f"cannot read {folder / JOURNAL}: {error.strerror}") from error


class Line:
    """To one run."""

    def __init__(self, runs: Runs, name: str) -> None:
        self._runs = runs
        self.name = name
        try:
            self._sender = Sender(runs.path(name), open_own_file)
        except OSError as error:
            raise StateError(f"cannot ask run {name}: {error.strerror}") from error

    def is_alive(self) -> bool:
        return self._runs.who_holds(self.name) is not None

    def ask(self, verb: str, **what: Any) -> Answer | None:
        """The answer; None: there is none yet, and what was asked for stays to be done."""
        number = self.put(verb, **what)
        answer = self.wait_for(number)
        if answer is None and verb == "status":
            self._sender.take_back(number)
        return answer

    def put(self, verb: str, **what: Any) -> str:
        """Ask, and wait for nothing; what the request is known by."""
        request: dict[str, Any] = {"smartsched_request": VERSION, "verb": verb, **what}
        try:
            return self._sender.send(request)
        except OSError as error:
            raise StateError(f"cannot ask run {self.name}: {error.strerror}") from error

    def wait_for(self, request: str) -> Answer | None:
        return self._sender.wait_for(request, self.is_alive, _PATIENCE_SECONDS)

    def close(self) -> None:
        self._sender.close()


def request(args: argparse.Namespace, verb: str, **what: Any) -> int:
    """Ask and tell what came of it; the exit status."""
    runs = runs_at(args)
    line = Line(runs, which_run(runs, args, living=True))
    try:
        return tell(line, line.ask(verb, **what))
    finally:
        line.close()


def tell(line: Line, answer: Answer | None) -> int:
    if answer is None:
        if line.is_alive():
            raise StateError(
                f"run {line.name} lives but did not answer within {_PATIENCE_SECONDS:.0f} s; it"
                " does this as soon as it can"
            )
        print(
            f"run {line.name} does not live: this is done when it goes on"
            f" (smartsched --resume {line.name})",
            file=sys.stderr,
        )
        return 0
    if not answer.done:
        raise UsageError(f"run {line.name}: {answer.words}")
    print(f"run {line.name}: {answer.words}")
    return 0
