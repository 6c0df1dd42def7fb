"""`smartsched log`: what a job has written."""

import argparse

from smartsched.cli.asking import RemoteParser

_DESCRIPTION = """\
Print the log of a job's last attempt; with -f also what it writes from now on, until it ends."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    args = _parser().parse(words)
    from smartsched.cli import following

    return following.main(args)


def _parser() -> RemoteParser:
    parser = RemoteParser("log", _DESCRIPTION, is_argument=False)
    parser.add_argument("job", metavar="JOB", help="its number, or its name (name=big: big)")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until it ends, or until Ctrl-C"
    )
    return parser
