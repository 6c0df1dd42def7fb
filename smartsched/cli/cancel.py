"""`smartsched cancel`: jobs that are not to be run, or not to their end."""

import argparse

from smartsched.cli.asking import RemoteParser

_DESCRIPTION = """\
Take jobs out of a run: those that wait are not started, those that run are stopped (SIGTERM,
--grace, SIGKILL). They do not count as failed, and smartsched retry queues them again."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    parser = _parser()
    args = parser.parse(words)
    if bool(args.jobs) == args.all:
        parser.error("say which jobs, or --all")
    from smartsched.cli.remote import request

    return request(args, "cancel", jobs=args.jobs, all=args.all)


def _parser() -> RemoteParser:
    parser = RemoteParser("cancel", _DESCRIPTION, is_argument=False)
    parser.add_argument(
        "jobs", metavar="JOB", nargs="*", help="by number (7), range (7-12) or name (name=big: big)"
    )
    parser.add_argument(
        "--all", action="store_true", help="all of them, and what is still to be read of the list"
    )
    return parser
