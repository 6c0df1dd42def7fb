"""`smartsched report`: afterwards, or while it lasts, what a run did with the GPUs, on one page."""

import argparse

from smartsched.cli.verbs import VerbParser

_DESCRIPTION = """\
Make one page of HTML, for any browser and without a network, that shows what a run did: a timeline
of each GPU, the jobs, what commands used, where the GPUs' time went, and advice. Or only the
timeline, as a picture for slides. A run that still goes on is shown as it stands."""
_FORMATS = ("html", "svg", "png")


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("report", _DESCRIPTION)
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        nargs="?",
        help="which one (default: the latest of this folder, else the latest of all)",
    )
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="where to; -: standard output (default: ./smartsched-report-RUN.html)",
    )
    add(
        "--format",
        choices=_FORMATS,
        help="html: the page; svg or png: the timeline (default: by the end of FILE, else html)",
    )
    add(
        "--state",
        metavar="DIR",
        help="where runs are remembered (default: ~/.local/state/smartsched)",
    )
    return parser


def main(words: list[str]) -> int:
    args = build_parser().parse_args(words)
    from smartsched.cli import reporting  # not for its help, which is to come at once

    return reporting.main(args)
