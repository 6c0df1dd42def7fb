"""How a run stands, by its own word or by its journal."""

import argparse
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from smartsched.cli.recalling import past_of
from smartsched.cli.remote import Line, runs_at, which_run
from smartsched.config import wants_color
from smartsched.core.policy import Policy
from smartsched.core.state import State
from smartsched.core.status import status
from smartsched.edges.clock import SteadyClock
from smartsched.edges.runs import Runs


def main(args: argparse.Namespace) -> int:
    runs = runs_at(args)
    name = which_run(runs, args, living=False)
    if args.watch:
        return _watch(runs, name, args)
    facts = found(runs, name)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        from smartsched.edges.tables import print_status

        print_status(facts, color=wants_color(args))
    return 0


def found(runs: Runs, name: str) -> Mapping[str, Any]:
    """How it stands, by its own word if it lives, else by its journal."""
    facts: Mapping[str, Any] | None = None
    holder = runs.who_holds(name)
    if holder is not None:
        line = Line(runs, name)
        try:
            answer = line.ask("status")
        finally:
            line.close()
        facts = answer.facts if answer is not None else None
    about = {"run": name, "folder": str(runs.path(name)), "held_by": holder}
    if facts is not None:
        return {**about, **facts}
    past = past_of(runs, name)
    state = State(Policy(name)) if past is None else past.state
    facts = dict(status(state, None, SteadyClock().now()))
    left = bool(state.queue or state.input_open or state.interrupted or state.runs)
    facts["phase"] = "silent" if holder is not None else "left" if left else "ended"
    facts["gpus"] = []
    return {**about, **facts}


def _watch(runs: Runs, name: str, args: argparse.Namespace) -> int:
    from smartsched.edges.tables import watch_status

    with suppress(KeyboardInterrupt):
        watch_status(lambda: found(runs, name), color=wants_color(args), as_json=args.json)
    return 0
