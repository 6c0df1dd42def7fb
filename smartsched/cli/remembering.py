"""`smartsched runs`: all that are remembered."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import asdict

from smartsched.cli.hosting import forget_old, runs_of_agents
from smartsched.cli.recalling import past_of
from smartsched.cli.remote import beginning, runs_at
from smartsched.cli.session import state_folder
from smartsched.cli.standing import found
from smartsched.config import is_colorless
from smartsched.core.units import parse_duration
from smartsched.core.words import count
from smartsched.edges.clock import SteadyClock
from smartsched.edges.inbox import has_requests
from smartsched.edges.runs import Runs
from smartsched.errors import UsageError


class Row(Struct, frozen=True):
    run: str
    stands: Literal["alive", "left", "complete", "damaged"]
    began: float | None  # seconds since 1970-01-01; None: its journal does not say
    folder: str | None  # where it was started
    ok: int
    failed: int
    cancelled: int
    left: int  # as far as the list was read
    held_by: str | None
    has_requests: bool  # that nobody has seen to yet


def main(args: argparse.Namespace) -> int:
    if args.state is not None:
        args.state = os.path.abspath(os.path.expanduser(args.state))
    runs = runs_at(args)
    if args.remove is not None:
        return _remove(runs, args.remove)
    rows = [row(runs, name) for name in runs.names()]
    if args.prune is not None:
        return _prune(runs, rows, args)
    rows.sort(key=lambda each: each.began or 0.0, reverse=True)
    if args.json:
        print(json.dumps({"smartsched_runs": 1, "runs": [asdict(each) for each in rows]}, indent=2))
    elif rows:
        from smartsched.edges.tables import print_runs

        print_runs(rows, color=not is_colorless())
    else:
        print("there is no run yet: smartsched < commands.txt makes one")
    return 0


def row(runs: Runs, name: str) -> Row:
    holder = runs.who_holds(name)
    began = beginning(runs, name)
    counted = runs.count(name)
    stands: Literal["alive", "left", "complete", "damaged"]
    if holder is not None:
        stands = "alive"
    elif began is None:
        stands = "damaged"
    else:
        stands = "complete" if counted.complete else "left"
    numbers = {
        "ok": counted.ok,
        "failed": counted.failed,
        "cancelled": counted.cancelled,
        "left": counted.left,
    }
    if holder is not None:
        jobs = found(runs, name)["jobs"]
        numbers |= {what: jobs[what] for what in ("ok", "failed", "cancelled")}
        numbers["left"] = jobs["running"] + jobs["waiting"]
    return Row(
        run=name,
        stands=stands,
        began=None if began is None else began.at,
        folder=None if began is None else began.directory,
        **numbers,
        held_by=holder,
        has_requests=has_requests(runs.path(name)),
    )


def _remove(runs: Runs, names: Sequence[str]) -> int:
    known = runs.names()
    for name in names:
        if name not in known:
            raise UsageError(f"there is no run {name}: smartsched runs lists them")
        if (holder := runs.who_holds(name)) is not None:
            raise UsageError(
                f"run {name} is alive ({holder}): smartsched cancel --all --name {name} ends it"
            )
        past = past_of(runs, name)
        if past is not None and past.state.runs:
            raise UsageError(
                f"jobs of run {name} may still run: see to them with smartsched --resume {name}"
            )
    for name in names:
        runs.remove(name)
        print(f"forgot run {name}")
    return 0


def _prune(runs: Runs, rows: Sequence[Row], args: argparse.Namespace) -> int:
    age = args.prune
    try:
        older_than_seconds = parse_duration(age)
    except UsageError as error:
        raise UsageError(f"--prune: {error}") from error
    oldest = SteadyClock().now() - older_than_seconds
    over = [row for row in rows if row.stands == "complete" and not row.has_requests]
    old = [row for row in over if (row.began or 0.0) < oldest]
    for each in old:
        runs.remove(each.run)
        print(f"forgot run {each.run}")
    agents = forget_old(runs_of_agents(state_folder(args)), older_than_seconds, records_too=True)
    if agents:
        print(f"forgot what {count(agents, 'agent')} on this host left behind")
    if not old and not agents:
        print(f"no complete run is older than {age}")
    return 0
