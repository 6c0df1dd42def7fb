"""`smartsched agent`: looks after the jobs of a run on this host, for a dispatcher elsewhere."""

import argparse

from smartsched.cli.verbs import VerbParser

_DESCRIPTION = """\
Let a run use the GPUs of this host. smartsched --hosts starts agents by itself, over ssh; by hand,
one is started with the file that the dispatcher names (smartsched hosts). It ends with the run, or
when its dispatcher is gone for good; Ctrl-C lets its jobs be started anew elsewhere."""


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("agent", _DESCRIPTION)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--join",
        metavar="FILE",
        help="the run's file for joining; -: standard input, and the agent goes to the background",
    )
    what.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    add("--host", metavar="NAME", help="what this host is called (default: its own name)")
    add(
        "--pilot",
        action="store_true",
        help="in a batch job: it is called by the job, and leaves before the job's time is over",
    )
    add(
        "--state",
        metavar="DIR",
        help="where what it looks after is remembered (default: ~/.local/state/smartsched)",
    )
    return parser


def main(words: list[str]) -> int:
    args = build_parser().parse_args(words)
    from smartsched.cli import hosting

    if args.host is not None:
        from smartsched.core.host_list import check_name

        check_name(args.host)
    if args.serve is not None:
        return hosting.serve_folder(args)
    if args.join == "-":
        return hosting.start_in_background(args)
    return hosting.join_by_file(args)
