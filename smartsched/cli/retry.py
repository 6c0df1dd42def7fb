"""`smartsched retry`: jobs that failed, or were cancelled, are queued again."""

import argparse

from smartsched.cli.asking import RemoteParser

_DESCRIPTION = """\
Queue jobs of a living run again that failed for good or were cancelled. Of a run that has ended,
smartsched --resume-failed does so."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    parser = _parser()
    args = parser.parse(words)
    if bool(args.jobs) == args.failed:
        parser.error("say which jobs, or --failed")
    from smartsched.cli.remote import request

    return request(args, "retry", jobs=args.jobs, failed=args.failed)


def _parser() -> RemoteParser:
    parser = RemoteParser("retry", _DESCRIPTION, is_argument=False)
    parser.add_argument(
        "jobs", metavar="JOB", nargs="*", help="by number (7), range (7-12) or name (name=big: big)"
    )
    parser.add_argument("--failed", action="store_true", help="all that failed")
    return parser
