"""The command line of the verbs that speak to a run. Their help is to come at once: what they do
then is imported when it is asked for (remote.py)."""

import argparse
import os

from smartsched.cli.verbs import VerbParser


class RemoteParser(VerbParser):
    """`what`: of the argument that names the run; "": it is an option, so that something else can
    be the argument."""

    def __init__(self, verb: str, description: str, *, is_argument: bool) -> None:
        super().__init__(verb, description)
        which = "which run (default: the one that lives; in its jobs, theirs)"
        if is_argument:
            self.add_argument("run", metavar="RUN", nargs="?", help=which)
        else:
            self.add_argument("--name", "--run", dest="run", metavar="RUN", help=which)
        self.add_argument(
            "--state",
            metavar="DIR",
            help="where runs are remembered (default: ~/.local/state/smartsched)",
        )

    def parse(self, words: list[str]) -> argparse.Namespace:
        args = self.parse_args(words)
        if args.state == "":
            self.error("--state needs the name of a folder")
        if args.state is not None:
            args.state = os.path.abspath(os.path.expanduser(args.state))
        return args
