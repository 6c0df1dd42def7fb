"""`smartsched gpus`: which GPUs there are, who uses them, whether they count as free; --watch goes
on saying so."""

import argparse

from smartsched.cli.parser import add_claims, add_gpus, add_no_color, add_source, parse_verb
from smartsched.cli.verbs import VerbParser

_DESCRIPTION = """\
Show all GPUs: whether each counts as free for a job of yours, and if not, why; who uses it, and
whether that is a job of one of your runs. Starts and claims nothing. Exits with 0 whatever it
shows; scripts ask `smartsched pick`."""

_EPILOG = """\
With --watch, q or Ctrl-C ends it. Where stdout is no terminal, or a dumb one, a line for each GPU
is added at every look instead; with --json, an object a line."""


def main(words: list[str]) -> int:
    parser = build_parser()
    args = parse_verb(parser, words)
    if args.history is not None and not args.watch:
        parser.error("--history goes with --watch")
    from smartsched.cli.showing import show

    return show(args)


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("gpus", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("--watch", action="store_true", help="go on showing them, at every --interval")
    add(
        "--history",
        metavar="TIME",
        help="with --watch: how much of the past is drawn (default: the window, --free-for)",
    )
    add("--json", action="store_true", help="one JSON object, as of --dry-run --json")
    add_gpus(parser.add_argument_group("which GPUs count as free (other people's use)"))
    others = parser.add_argument_group("other options")
    add_claims(others)
    add_source(others)
    add_no_color(others)
    return parser
