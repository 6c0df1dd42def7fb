"""`python -m tests.benchmarks.decisions`, or `make bench-decisions`."""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tests.benchmarks.decisions.baselines import BASELINES
from tests.benchmarks.decisions.colleagues import Habit
from tests.benchmarks.decisions.harm import Score
from tests.benchmarks.decisions.measure import ORACLE, Entrant, measure
from tests.benchmarks.decisions.play import Setting, Smartsched
from tests.benchmarks.decisions.report import rows, show
from tests.benchmarks.decisions.scenarios import SCENARIOS, TINY
from tests.benchmarks.decisions.world import Physics

# smartsched's own settings, by a name; --policy NAME=FLAGS adds others.
POLICIES = {
    "polite": "--polite --jobs-per-gpu auto",
    "plain": "--retries 9",
}
_KNOWN = {**SCENARIOS, TINY.name: TINY}


def main(argv: Sequence[str] | None = None) -> int:
    """0: whatever was checked has passed; 1: it has not."""
    args = _parser().parse_args(argv)
    if args.smoke:
        args.seeds, args.colleagues, args.baseline = "3", "blind", ["naive poll 10 %"]
    policies = dict(map(_named, args.policy or ["polite"]))
    entrants = [_entrant(name, flags) for name, flags in policies.items()]
    wanted = list(BASELINES) if args.baselines else args.baseline
    entrants += [Entrant(name, BASELINES[name]) for name in wanted]
    began = time.monotonic()
    scores = measure(_settings(args), entrants, args.processes, _tell)
    scores = _in_order(scores, [ORACLE, *(entrant.name for entrant in entrants)])
    if sys.stderr.isatty():
        print(file=sys.stderr)
    passed = show(rows(scores), list(policies), checkpointable=args.checkpointable)
    _say_how_long(scores, time.monotonic() - began)
    if args.json is not None:
        result = {"arguments": vars(args), "games": [score.as_json() for score in scores]}
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0 if passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.decisions",
        description="The real loop in a pretend box: harm to colleagues first, speed second.",
    )
    add = parser.add_argument
    add("--seeds", default="8", metavar="N|A,B", help="so many, or these (default: 8; one: `7,`)")
    add("--scenarios", default=",".join(SCENARIOS), metavar="A,B", help="default: %(default)s")
    add("--colleagues", choices=("blind", "looking", "both"), default="both")
    add(
        "--policy",
        action="append",
        metavar="NAME[=FLAGS]",
        help=f"smartsched's flags under a name; may be repeated. Known: {', '.join(POLICIES)}"
        " (default: polite)",
    )
    add("--baselines", action="store_true", help="beside them, what people do without it")
    add("--baseline", action="append", default=[], choices=BASELINES, help="one of these")
    add("--checkpointable", action="store_true", help="our jobs save their state when told to")
    add("--k2", type=float, default=Physics().k2, help="price of a crowded card (default .6)")
    add(
        "--habit",
        choices=get_args(Habit),
        default="any",
        help="which of several empty cards a looking colleague takes (default: %(default)s)",
    )
    add("--per-process", action="store_true", help="the driver tells processes' utilisation")
    add("--every-second", action="store_true", help="skip nothing (slow; to check the skipping)")
    add("--processes", type=int, default=os.cpu_count(), metavar="N", help="default: one a core")
    add("--json", metavar="FILE", help="every game's numbers")
    add("--smoke", action="store_true", help="3 seeds, blind, one baseline: under a minute")
    return parser


def _settings(args: argparse.Namespace) -> list[Setting]:
    physics = Physics(k2=args.k2, per_process_utilization=args.per_process)
    kinds = {"blind": [False], "looking": [True], "both": [False, True]}[args.colleagues]
    return [
        Setting(
            _KNOWN[name],
            seed,
            looking,
            args.checkpointable,
            physics,
            every_second=args.every_second,
            habit=args.habit,
        )
        for looking in kinds
        for name in args.scenarios.split(",")
        for seed in _seeds(args.seeds)
    ]


def _seeds(text: str) -> list[int]:
    if "," in text:
        return [int(part) for part in text.split(",") if part]
    return list(range(1, int(text) + 1))


def _named(text: str) -> tuple[str, str]:
    name, given, flags = text.partition("=")
    return (name, flags) if given else (name, POLICIES[name])


def _entrant(name: str, flags: str) -> Entrant:
    player = Smartsched(tuple(shlex.split(flags)))
    player.policy(8)  # a wrong flag is said now, not by every process
    return Entrant(name, player)


def _in_order(scores: Sequence[Score], policies: Sequence[str]) -> list[Score]:
    scenarios, policies = list(_KNOWN), list(policies)
    return sorted(
        scores,
        key=lambda s: (
            policies.index(s.policy),
            s.colleagues,
            scenarios.index(s.scenario),
            s.seed,
        ),
    )


def _tell(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {of} boxes", end="", file=sys.stderr, flush=True)


def _say_how_long(scores: Sequence[Score], seconds: float) -> None:
    ticks, played = sum(s.ticks for s in scores), sum(s.cpu_seconds for s in scores)
    days = sum(s.makespan for s in scores if s.ticks) / 86400
    print(
        f"\n{len(scores)} games in {seconds:.0f} s; {days:.0f} days of the loop's time,"
        f" {ticks} ticks, {played:.0f} s of games"
    )


if __name__ == "__main__":
    sys.exit(main())
