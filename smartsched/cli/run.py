"""The main job: run every command on a GPU that counts as free."""

import argparse
import os
import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO, cast

from smartsched.cli.wiring import check_source, first_snapshot, new_run_name, start_sampler
from smartsched.config import Config, configure
from smartsched.core.model import Exited, Killed, NotStarted
from smartsched.core.sight import see
from smartsched.core.state import Closing, State
from smartsched.edges.clock import SteadyClock
from smartsched.edges.family import Family
from smartsched.edges.intake import Input, Lines, OneCommand, open_inputs
from smartsched.edges.narrator import Narrator, View
from smartsched.edges.outputs import LogFiles, Tagged, Untouched, tail
from smartsched.edges.patient import PatientStream
from smartsched.edges.plain import PlainView
from smartsched.edges.processes import Processes
from smartsched.edges.requests import SignalRequests
from smartsched.edges.sampler import Sampler
from smartsched.edges.scripts import ScriptFolder
from smartsched.edges.waiter import Waiter
from smartsched.errors import (
    EXIT_INTERRUPTED,
    EXIT_NOT_STARTED,
    EXIT_WAIT_TIMED_OUT,
    UsageError,
)
from smartsched.loop import Loop, World

_MOST_FAILURES_TOLD_APART = 100
_MORE_FAILURES = 101
_TOO_LARGE_TO_COUNT_BYTES = 256 << 20


def main(args: argparse.Namespace) -> int:
    clock = SteadyClock()
    run_name = new_run_name()
    config = configure(args, run_name)
    check_source(args)
    with ExitStack() as stack:
        inputs = _open_inputs(config)
        if config.working_directory is not None:
            _change_to(config.working_directory)
        waiter = Waiter(clock)
        stack.callback(waiter.close)
        sampler = start_sampler(
            waiter, clock, config.sampler_arguments, config.policy.stale_after_seconds
        )
        stack.callback(sampler.close)
        return _run(stack, config, inputs, clock, waiter, sampler)


def _run(
    stack: ExitStack,
    config: Config,
    inputs: list[Input],
    clock: SteadyClock,
    waiter: Waiter,
    sampler: Sampler,
) -> int:
    if config.progress:
        import smartsched.edges.screen  # noqa: F401  # takes as long as the driver takes to answer
    snapshot, policy = first_snapshot(sampler, waiter, clock, config.policy)
    single = config.command is not None
    stderr = PatientStream(2)
    stack.callback(stderr.finish)
    view = _view(config, inputs, stderr)
    stack.callback(view.close)
    narrator = Narrator(
        view,
        tail=tail,
        quiet=config.quiet,
        verbose=config.verbose,
        single=single,
        logs=_log_folder(config),
    )
    for note in config.notes:
        narrator.warn(note, clock.now())
    output = _output(
        config, waiter, lambda why: narrator.warn(f"jobs' output is dropped: {why}", clock.now())
    )
    stack.callback(output.close)
    scripts = ScriptFolder(config.policy.run_name)
    stack.callback(scripts.close)
    processes = Processes(
        waiter,
        shell=config.shell,
        environment=os.environb,
        run_name=config.policy.run_name,
        output=output,
        scripts=scripts,
        family=Family(sampler.pids),
    )
    stack.callback(processes.close)
    requests = SignalRequests(waiter, single=single)
    intake = _intake(config, inputs, waiter)
    loop = Loop(World(clock, waiter, sampler, processes, intake, requests, narrator), policy)
    see(loop.state, snapshot, clock.now())
    state = loop.run()
    _settle(output, waiter, requests, clock, state)
    view.close()
    narrator.finish(state, clock.now())
    return exit_status(state, single=single)


def _settle(
    output: LogFiles | Tagged | Untouched,
    waiter: Waiter,
    requests: SignalRequests,
    clock: SteadyClock,
    state: State,
) -> None:
    """Let whoever reads the jobs' output take the rest of it, unless the user wants no more."""
    stopped = state.closing >= Closing.STOP
    until = clock.now() + state.policy.grace_seconds if stopped else float("inf")
    while not output.is_settled() and clock.now() < until and not requests.take(clock.now()):
        waiter.wait(until)


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
            case NotStarted():
                return EXIT_NOT_STARTED
    left_undone = bool(state.queue) or state.input_open
    if state.closing >= Closing.STOP or (state.closing is Closing.DRAIN and left_undone):
        return EXIT_INTERRUPTED
    failures = state.totals.failed + state.totals.rejected
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


def _intake(config: Config, inputs: list[Input], waiter: Waiter) -> OneCommand | Lines:
    return Lines(inputs, waiter) if config.command is None else OneCommand(config.command)


def _change_to(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UsageError(f"--wd: cannot go to {folder}: {error.strerror}") from error


def _log_folder(config: Config) -> str | None:
    return os.path.join(config.logs, config.policy.run_name) if config.output == "log" else None


def _output(
    config: Config, waiter: Waiter, when_gone: Callable[[str], None]
) -> LogFiles | Tagged | Untouched:
    match config.output:
        case "log":
            return LogFiles(Path(config.logs) / config.policy.run_name)
        case "tag":
            return Tagged(waiter, 1, when_gone)
        case "raw":
            return Untouched()


def _view(config: Config, inputs: list[Input], stderr: PatientStream) -> View:
    stream = cast("TextIO", stderr)  # it is one in all but name
    if not config.progress:
        return PlainView(stream)
    from smartsched.edges.screen import LiveView

    return LiveView(stream, color=config.color, expected_commands=_lines_in(inputs))


def _lines_in(inputs: list[Input]) -> int | None:
    """Roughly how many commands there are, where that is cheap to know."""
    total = 0
    for source in inputs:
        status = os.fstat(source.fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _TOO_LARGE_TO_COUNT_BYTES:
            return None
        position = os.lseek(source.fd, 0, os.SEEK_CUR)
        while chunk := os.pread(source.fd, 1 << 20, position):
            total += chunk.count(b"\n")
            position += len(chunk)
    return total
