"""`smartsched doctor`: whether all is there that smartsched needs, a line each."""

import argparse

from smartsched.cli.verbs import VerbParser

_DESCRIPTION = """\
Look at everything that smartsched needs: a line each, ok or what to do. Exit status 0 if all is ok,
1 otherwise. Nothing is changed."""


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("doctor", _DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def main(words: list[str]) -> int:
    args = build_parser().parse_args(words)
    from smartsched.cli import checking  # not for its help, which is to come at once

    return checking.main(args)
