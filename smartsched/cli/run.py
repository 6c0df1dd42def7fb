"""The main job: run every command on a GPU that counts as free."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from smartsched.cli.dispatch import dispatch
from smartsched.cli.limits import settle
from smartsched.cli.resuming import is_done, resume
from smartsched.cli.sampling import Ahead
from smartsched.cli.session import begin
from smartsched.cli.wiring import check_source, new_run_name
from smartsched.config import Config, inherited_gpus
from smartsched.core.model import Exited, Killed
from smartsched.core.state import Closing, State
from smartsched.core.words import count
from smartsched.edges.clock import SteadyClock
from smartsched.edges.intake import Input, open_inputs
from smartsched.edges.runs import parse_run_name
from smartsched.edges.waiter import Waiter
from smartsched.errors import (
    EXIT_INTERRUPTED,
    EXIT_NOT_STARTED,
    EXIT_WAIT_TIMED_OUT,
    SmartschedError,
)

_MOST_FAILURES_TOLD_APART = 100
_MORE_FAILURES = 101


def main(args: argparse.Namespace, words: Sequence[str], ahead: Ahead) -> int:
    """`ahead`: the sampler of this box, begun before all this was loaded."""
    clock = SteadyClock()
    with ExitStack() as stack:
        waiter = Waiter(clock)
        stack.callback(waiter.close)
        if args.resume is not None:
            return _main_resumed(stack, args, words, clock, waiter, ahead)
        name = new_run_name() if args.name is None else parse_run_name(args.name)
        config = settle(args, name, f"{name}.{os.urandom(6).hex()}")
        args.gpus = inherited_gpus(args) or args.gpus
        check_source(args)
        inputs = _open_inputs(config)
        session = begin(stack, args, config, inputs, waiter, clock.now())
        try:
            state = dispatch(stack, session, clock, waiter, ahead, adopt=True)
        except SmartschedError:
            if session.state.totals.accepted == 0:
                session.folder.erase()  # it never began
            raise
        return exit_status(state, single=session.single)


def _main_resumed(
    stack: ExitStack,
    args: argparse.Namespace,
    words: Sequence[str],
    clock: SteadyClock,
    waiter: Waiter,
    ahead: Ahead,
) -> int:
    session = resume(stack, args, words, waiter, clock.now())
    check_source(session.args)
    if is_done(session, args):
        totals = session.state.totals
        again = session.how_to_go_on.replace("--resume", "--resume-failed", 1)
        print(
            f"smartsched: nothing is left of run {session.folder.name}:"
            f" {count(totals.ok, 'job')} ok, {totals.failed:,} failed"
            + (f" ({again} tries those again)" if totals.failed else ""),
            file=sys.stderr,
        )
        for note in session.notes:
            print(f"smartsched: {note}", file=sys.stderr)
        return exit_status(session.state, single=session.single)
    state = dispatch(stack, session, clock, waiter, ahead, adopt=not args.no_adopt)
    return exit_status(state, single=session.single)


def exit_status(state: State, *, single: bool) -> int:
    """As README documents it."""
    if state.wait_timed_out:
        return EXIT_WAIT_TIMED_OUT
    if single and state.last_ending is not None:
        match state.last_ending:
            case Exited(code):
                return code
            case Killed(signum):
                return 128 + signum
            case _:
                return EXIT_NOT_STARTED
    left_undone = bool(state.queue) or state.input_open
    cut_short = state.closing >= Closing.STOP or (state.closing is Closing.DRAIN and left_undone)
    if cut_short and not state.halted:
        return EXIT_INTERRUPTED
    failures = state.totals.failed + state.totals.rejected
    if state.halted:  # jobs that wait for another try have not failed for good, nor succeeded
        failures = max(failures, 1)
    return failures if failures <= _MOST_FAILURES_TOLD_APART else _MORE_FAILURES


def _open_inputs(config: Config) -> list[Input]:
    if config.command is not None:
        return []
    if not config.inputs and os.isatty(0):
        print(
            "smartsched: reading commands from the terminal, one a line; Ctrl-D ends the list",
            file=sys.stderr,
        )
    return open_inputs(config.inputs or ("-",))
