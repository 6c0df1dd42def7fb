"""How `gpus` shows them, once or for as long as somebody watches."""

import argparse
import json
import sys
from contextlib import ExitStack

from smartsched.cli.claiming import OthersClaims
from smartsched.cli.looking import Onlooker
from smartsched.cli.watching import looks, watch_on_screen
from smartsched.cli.wiring import check_source
from smartsched.config import Config, configure, flag, is_dumb_terminal
from smartsched.core.survey import Survey, as_json, survey
from smartsched.core.traces import History
from smartsched.core.units import parse_positive_duration
from smartsched.edges.plain import gpu_lines

# Bars are drawn of ten looks at least, however short the window is.
_LEAST_INTERVALS_SHOWN = 10


def show(args: argparse.Namespace) -> int:
    """The exit status."""
    config = configure(args, "gpus")
    history = History(_span(args, config), config.policy.interval_seconds)
    check_source(args)
    with ExitStack() as stack:
        onlooker = Onlooker(config, history.see)
        stack.callback(onlooker.close)
        if args.watch:
            return _watch(stack, onlooker, config, history, as_objects=args.json)
        state = onlooker.begin()
        onlooker.watch_for_the_window()
        now = onlooker.clock.now()
        OthersClaims(config, _complain).see(state, now)
        _show_once(survey(state, now), config, as_object=args.json)
    return 0


def _span(args: argparse.Namespace, config: Config) -> float:
    """Of what is drawn, in seconds."""
    if args.history is not None:
        return flag("--history", parse_positive_duration, args.history)
    policy = config.policy
    least = _LEAST_INTERVALS_SHOWN * policy.interval_seconds
    return max(policy.thresholds.free_for_seconds, least)


def _show_once(found: Survey, config: Config, *, as_object: bool) -> None:
    if as_object:
        print(json.dumps(as_json(found, config.policy, config.notes), indent=2))
        return
    from smartsched.edges.screen import print_survey

    print_survey(found, config.notes, color=config.color)


def _complain(text: str) -> None:
    print(f"smartsched: {text}", file=sys.stderr)


def _watch(
    stack: ExitStack, onlooker: Onlooker, config: Config, history: History, *, as_objects: bool
) -> int:
    """Until somebody wants no more; the exit status."""
    if not as_objects and sys.stdout.isatty() and not is_dumb_terminal():
        return watch_on_screen(stack, onlooker, config, history)
    try:
        for found in looks(onlooker, config, _complain):
            if as_objects:
                print(json.dumps(as_json(found, config.policy, config.notes)), flush=True)
            else:
                print("\n".join(gpu_lines(found.rows, onlooker.clock.now())), flush=True)
    except KeyboardInterrupt:
        pass
    return 0
