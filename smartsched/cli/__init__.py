"""The command line: parses, dispatches, and turns errors into exit statuses in one place."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from smartsched.cli import completion
from smartsched.cli.sampling import Ahead
from smartsched.cli.verbs import VERBS, verb
from smartsched.errors import EXIT_INTERRUPTED, EXIT_OTHER, EXIT_USAGE, SmartschedError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one invocation; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if completion.is_asked():
        completion.complete()
    _open_standard_streams()
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except SmartschedError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever stopped reading has seen enough
            place = f": {error.filename}" if error.filename else ""
            _complain(f"{error.strerror}{place}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tries once more at its exit
        return EXIT_OTHER
    return status


def _dispatch(words: list[str]) -> int:
    if words and words[0] in VERBS:
        return verb(words[0]).main(words[1:])
    from smartsched.cli.parser import parse

    with Ahead() as ahead:
        args = parse(words, ahead.begin)
        ahead.settle(vars(args))
        _check_spelling(args, words)
        try:
            return _main_job(args, words, ahead)
        except UsageError as error:
            if args.resume is not None:
                raise  # a run has its options from its beginning
            from smartsched.cli.settings import blamed

            raise blamed(error, args.settings) from error


def _check_spelling(args: argparse.Namespace, words: list[str]) -> None:
    """A list that is not there may be a verb that was mistyped."""
    if not words or words[0] not in args.files[:1] or os.path.lexists(words[0]):
        return
    from difflib import get_close_matches

    if meant := get_close_matches(words[0], VERBS, 1, 0.75):
        raise UsageError(
            f"there is no file {words[0]!r}: do you mean smartsched {meant[0]}?"
            " (to run a command, write -- before it)"
        )


def _main_job(args: argparse.Namespace, words: list[str], ahead: Ahead) -> int:
    if args.dry_run:
        from smartsched.cli import dry_run

        return dry_run.main(args, ahead)
    if args.json:
        _complain("--json goes with --dry-run")
        return EXIT_USAGE
    from smartsched.cli import run

    return run.main(args, words, ahead)


def _open_standard_streams() -> None:
    """Whoever started us may have closed them: what we open must not take their numbers."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(fd, True)
            setattr(sys, name, open(fd, mode))  # noqa: SIM115  # for as long as we live
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # what a locale cannot say


def _complain(message: str) -> None:
    from smartsched.core.words import printable

    # names and values from files of others may be in it, and a terminal may act on more than ESC
    text = "\n".join(map(printable, f"smartsched: {message}".split("\n")))
    with suppress(OSError):  # nobody may be there to be told
        os.write(2, f"{text}\n".encode())
