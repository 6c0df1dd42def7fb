"""`smartsched runs`: all that are remembered."""

import argparse

from smartsched.cli.verbs import VerbParser

_DESCRIPTION = """\
List all runs, the latest first: those that live, those that ended before all was done (smartsched
--resume goes on with them), and those that are complete."""


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("runs", _DESCRIPTION)
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--remove", metavar="RUN", nargs="+", help="forget these: their journals, not their logs"
    )
    group.add_argument(
        "--prune", metavar="AGE", help="forget complete runs that began so long ago, such as 30d"
    )
    add(
        "--state",
        metavar="DIR",
        help="where runs are remembered (default: ~/.local/state/smartsched)",
    )
    return parser


def main(words: list[str]) -> int:
    args = build_parser().parse_args(words)
    from smartsched.cli import remembering  # not for its help, which is to come at once

    return remembering.main(args)
