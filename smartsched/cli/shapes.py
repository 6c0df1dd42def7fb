"""`smartsched shapes`: what was learned of commands, to be looked at and to be forgotten."""

import argparse

from smartsched.cli.verbs import VerbParser

_DESCRIPTION = """\
Show what runs of your commands on this host used, by the command's shape: the command with its
values taken out. --jobs-per-gpu auto places new jobs of a known shape by it."""


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("shapes", _DESCRIPTION)
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--forget",
        metavar="SHAPE",
        nargs="+",
        action="extend",
        help="forget what was learned of these, as when a program has changed; a command stands for"
        " its shape",
    )
    which.add_argument("--forget-all", action="store_true", help="forget everything")
    add(
        "--state",
        metavar="DIR",
        help="where it is remembered (default: ~/.local/state/smartsched)",
    )
    return parser


def main(words: list[str]) -> int:
    args = build_parser().parse_args(words)
    from smartsched.cli import learned  # not for its help, which is to come at once

    return learned.main(args)
