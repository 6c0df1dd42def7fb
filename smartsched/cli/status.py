"""`smartsched status`: how a run stands."""

import argparse

from smartsched.cli.asking import RemoteParser

_DESCRIPTION = """\
Show what a run does: its jobs that run and wait, why they wait, and the GPUs as it sees them. Of a
run that has ended: what it came to."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    args = _parser().parse(words)
    from smartsched.cli import standing

    return standing.main(args)


def _parser() -> RemoteParser:
    parser = RemoteParser("status", _DESCRIPTION, is_argument=True)
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object; with --watch one a line")
    add("--watch", action="store_true", help="again and again, until the run ends or Ctrl-C")
    add("--no-color", action="store_true", help="no colours (NO_COLOR=1 does the same)")
    return parser
