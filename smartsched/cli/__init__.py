"""The command line: parses, dispatches, and turns errors into exit statuses in one place."""

import os
import sys
from collections.abc import Sequence

from smartsched.errors import EXIT_INTERRUPTED, EXIT_OTHER, EXIT_USAGE, SmartschedError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one invocation; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except SmartschedError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_OTHER
    return status


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["sample"]:
        from smartsched.cli import sample

        return sample.main(words[1:])
    from smartsched.cli.parser import parse

    args = parse(words)
    if args.dry_run:
        from smartsched.cli import dry_run

        return dry_run.main(args)
    if args.json:
        _complain("--json goes with --dry-run")
        return EXIT_USAGE
    from smartsched.cli import run

    return run.main(args)


def _complain(message: str) -> None:
    try:
        print(f"smartsched: {message}", file=sys.stderr)
    except (UnicodeEncodeError, OSError):
        os.write(2, f"smartsched: {message}\n".encode("ascii", "backslashreplace"))
