"""`smartsched hosts`: the hosts of a run, which of them are here, and why the others are not."""

import argparse

from smartsched.cli.asking import RemoteParser

_DESCRIPTION = """\
Show the hosts of a living run: who answers for each, its GPUs and jobs, and why a host is not here.
One more joins by hand with the command that stands below the table."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    args = _parser().parse(words)
    from smartsched.cli import membership

    return membership.main(args)


def _parser() -> RemoteParser:
    parser = RemoteParser("hosts", _DESCRIPTION, is_argument=True)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--no-color", action="store_true", help="no colours (NO_COLOR=1 does the same)"
    )
    return parser
