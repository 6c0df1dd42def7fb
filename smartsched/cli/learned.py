"""`smartsched shapes`: what was learned of commands, to be looked at and to be forgotten."""

import argparse
import json
import os
import sys
from pathlib import Path

from smartsched.cli.host import this_host
from smartsched.cli.session import state_folder
from smartsched.cli.shapes import build_parser
from smartsched.core.words import count
from smartsched.edges.footprints import FootprintFile, Learned
from smartsched.edges.runs import open_own_file


def main(args: argparse.Namespace) -> int:
    _complete(args)
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


def _complete(args: argparse.Namespace) -> None:
    if args.state == "":
        build_parser().error("--state needs the name of a folder")
    if args.state is not None:
        args.state = os.path.abspath(os.path.expanduser(args.state))


def _print_object(shapes: dict[str, Learned], path: Path) -> None:
    rows = [{"shape": shape, **learned.fields()} for shape, learned in shapes.items()]
    print(json.dumps({"smartsched_shapes": 1, "file": str(path), "shapes": rows}, indent=2))


def _print_table(shapes: dict[str, Learned], path: Path) -> None:
    from smartsched.edges.screen import print_shapes

    print_shapes([(shape, known.footprint, known.last_used) for shape, known in shapes.items()])
    print(f"{count(len(shapes), 'shape')}, kept in {path}")
