"""Which hosts a run has, by its own word."""

import argparse
import json
import shlex

from smartsched.cli.remote import runs_at, which_run
from smartsched.cli.standing import found
from smartsched.config import wants_color
from smartsched.errors import UsageError

_JOIN = "join"  # the file for joining, in the run's folder


def main(args: argparse.Namespace) -> int:
    runs = runs_at(args)
    name = which_run(runs, args, living=True)
    if runs.who_holds(name) is None:
        raise UsageError(
            f"run {name} does not live, and so has no hosts: smartsched --resume {name}"
        )
    facts = found(runs, name)
    file = runs.path(name) / _JOIN
    if not file.exists():
        raise UsageError(f"run {name} uses this box alone: --hosts names others when it begins")
    join = f"smartsched agent --join {shlex.quote(str(file))}"
    if args.json:
        about = {
            "run": name,
            "hosts": facts.get("hosts", []),
            "pilots": facts.get("pilots"),
            "join": str(file),
        }
        print(json.dumps(about, indent=2))
        return 0
    from smartsched.edges.tables import print_hosts

    print_hosts(facts.get("hosts", []), facts.get("pilots"), join, color=wants_color(args))
    return 0
