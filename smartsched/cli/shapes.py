"""`smartsched shapes`: what was learned of commands, to be looked at and to be forgotten."""

import argparse
import json
import os
import sys
from pathlib import Path

from smartsched.cli.host import this_host
from smartsched.cli.session import state_folder
from smartsched.cli.verbs import VerbParser
from smartsched.core.words import count
from smartsched.edges.footprints import FootprintFile, Learned
from smartsched.edges.runs import open_own_file

_DESCRIPTION = """\
Show what runs of your commands on this host used, by the command's shape: the command with its
values taken out. --jobs-per-gpu auto places new jobs of a known shape by it."""


def main(words: list[str]) -> int:
    args = _parse(words)
    warnings: list[str] = []
    file = FootprintFile(state_folder(args), this_host(), open_own_file, warnings.append)
    try:
        if args.forget_all:
            file.forget_all()
        elif args.forget:
            file.forget(args.forget)
        known = file.shapes()
    finally:
        for warning in warnings:
            print(f"smartsched: {warning}", file=sys.stderr)
    latest_first = dict(reversed(known.items()))
    if args.json:
        _print_object(latest_first, file.path)
    elif latest_first:
        _print_table(latest_first, file.path)
    elif args.forget or args.forget_all:
        print("nothing is left of what was learned")
    elif not warnings:
        print(f"nothing was learned yet; it would be kept in {file.path}")
    return 0


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


def _parse(words: list[str]) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(words)
    if args.state == "":
        parser.error("--state needs the name of a folder")
    if args.state is not None:
        args.state = os.path.abspath(os.path.expanduser(args.state))
    return args


def _print_object(shapes: dict[str, Learned], path: Path) -> None:
    rows = [{"shape": shape, **learned.fields()} for shape, learned in shapes.items()]
    print(json.dumps({"smartsched_shapes": 1, "file": str(path), "shapes": rows}, indent=2))


def _print_table(shapes: dict[str, Learned], path: Path) -> None:
    from smartsched.edges.screen import print_shapes

    print_shapes([(shape, known.footprint, known.last_used) for shape, known in shapes.items()])
    print(f"{count(len(shapes), 'shape')}, kept in {path}")
