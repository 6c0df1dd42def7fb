"""More jobs for a run that lives: where they come from, and how they get there."""

import argparse
import os
import sys

from smartsched.cli.parser import as_bytes_see_it
from smartsched.cli.remote import Line, runs_at, tell, which_run
from smartsched.core.lines import LineSplitter
from smartsched.core.model import BadLine, JobSpec
from smartsched.core.requests import MOST_COMMANDS
from smartsched.errors import UsageError

_READ_BYTES = 1 << 16
Command = tuple[str, str]  # and where it stands


def main(args: argparse.Namespace, argv: list[str] | None) -> int:
    """`argv`: the only command; None: a list on standard input."""
    commands = _list() if argv is None else [_command(argv)]
    if not commands:
        raise UsageError("there is no command on standard input")
    runs = runs_at(args)
    line = Line(runs, which_run(runs, args, living=True))
    try:
        # All of it lies there before the first answer: a dispatcher that is slow loses nothing.
        parts = [commands[n : n + MOST_COMMANDS] for n in range(0, len(commands), MOST_COMMANDS)]
        numbers = [line.put("add", commands=part, directory=os.getcwd()) for part in parts]
        refused = 0
        why: UsageError | None = None
        for part, number in zip(parts, numbers, strict=True):
            try:
                tell(line, line.wait_for(number))
            except UsageError as error:
                refused, why = refused + len(part), error
        if why is not None:
            raise UsageError(f"{why}; {refused:,} of {len(commands):,} commands were not added")
        return 0
    finally:
        line.close()


def _command(argv: list[str]) -> Command:
    import shlex

    return as_bytes_see_it(shlex.join(argv)), "smartsched add"


def _list() -> list[Command]:
    """All of standard input. Raises UsageError for a line that cannot be a command: nothing was
    added by then."""
    if os.isatty(0):
        print(
            "smartsched: reading commands from the terminal, one a line; Ctrl-D ends the list",
            file=sys.stderr,
        )
    splitter, commands = LineSplitter("-", os.getcwd()), []
    while data := os.read(0, _READ_BYTES):
        commands += [_checked(line) for line in splitter.feed(data)]
    return [*commands, *(_checked(line) for line in splitter.end())]


def _checked(line: JobSpec | BadLine) -> Command:
    if isinstance(line, BadLine):
        raise UsageError(f"{line.source}: {line.why}; nothing was added")
    return line.command, line.source
