"""`smartsched pick`: names free GPUs to scripts, and holds them for a moment if asked to."""

import argparse

from smartsched.cli.parser import (
    add_claims,
    add_gpus,
    add_prefer,
    add_source,
    add_visible,
    parse_verb,
)
from smartsched.cli.verbs import VerbParser

_DESCRIPTION = """\
Print a value for CUDA_VISIBLE_DEVICES that names GPUs which count as free, and nothing else.

  export CUDA_DEVICE_ORDER=PCI_BUS_ID
  CUDA_VISIBLE_DEVICES=$(smartsched pick -n 2 --hold 30s) && export CUDA_VISIBLE_DEVICES

GPUs that others have claimed are not picked. --hold keeps a claim on those that are, so that
nobody's smartsched picks them before your program is seen to use them."""

_EPILOG = """\
exit status:
  0 they are named; 1 so many are not free, and why is said on stderr; 2 wrong usage; 124 --wait
  TIME ran out; 130 interrupted; 255 anything else."""

_FOR_EVER = ""


def main(words: list[str]) -> int:
    args = parse_verb(build_parser(), words)
    from smartsched.cli.picking import pick

    return pick(args)


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("pick", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add(
        "-n",
        "--number",
        dest="gpus_per_job",
        metavar="N",
        default="1",
        help="so many (default: %(default)s)",
    )
    add(
        "--wait",
        metavar="TIME",
        nargs="?",
        const=_FOR_EVER,
        help="wait until so many are free, at most for this long (default: for ever)",
    )
    add(
        "--hold",
        metavar="TIME",
        help="keep them from others' smartsched for so long after this has ended",
    )
    add("--json", action="store_true", help="one JSON object, with UUIDs")
    add("-q", "--quiet", action="store_true", help="say nothing while it waits")
    add_visible(parser)
    add_prefer(parser)
    add_gpus(parser.add_argument_group("which GPUs count as free (other people's use)"))
    others = parser.add_argument_group("other options")
    add_claims(others)
    add_source(others)
    return parser
