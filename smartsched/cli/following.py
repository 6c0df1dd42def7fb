"""What a job has written, and goes on to write."""

import argparse
import sys
from collections.abc import Callable
from io import FileIO

from smartsched.cli.remote import journal_of, runs_at, which_run
from smartsched.core.endings import how
from smartsched.edges.following import JobWatch, show_all, write_out
from smartsched.errors import JournalDamagedError, StateError, UsageError


def main(args: argparse.Namespace) -> int:
    runs = runs_at(args)
    name = which_run(runs, args, living=False)
    try:
        watch = JobWatch(journal_of(runs, name), args.job)
    except JournalDamagedError as error:
        raise StateError(f"the journal of run {name} is damaged: {error}") from error
    try:
        return _show(watch, name, args, lambda: runs.who_holds(name) is not None)
    except KeyboardInterrupt:
        return 0
    finally:
        watch.close()


def _show(watch: JobWatch, run: str, args: argparse.Namespace, is_alive: Callable[[], bool]) -> int:
    if not watch.is_known:
        raise UsageError(
            f"run {run} has no job {args.job} so far: smartsched status {run} lists them"
        )
    if watch.launched is None and not args.follow:
        raise UsageError(f"job {args.job} of run {run} has not started: -f waits for it")
    launched = watch.wait_for_start(is_alive)
    if launched is None:
        why = "it was cancelled" if watch.is_cancelled else f"run {run} does not live"
        raise UsageError(f"job {args.job} of run {run} has not started, and will not: {why}")
    path = launched.log
    if path is None:
        raise UsageError(f"job {args.job} has no log: its output went where smartsched runs")
    try:
        log = FileIO(path)
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    with log:
        if not args.follow:
            show_all(log, write_out)
            return 0
        watch.follow(log, write_out, is_alive)
    if watch.exited is not None:
        print(f"smartsched: job {args.job} ended: {how(watch.exited.ending)}", file=sys.stderr)
    return 0
