"""What a job has written, and goes on to write."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from io import FileIO

from smartsched.cli.remote import beginning, journal_of, runs_at, which_run
from smartsched.core.endings import how
from smartsched.core.events import RunBegan
from smartsched.core.host_list import parse_hosts
from smartsched.core.reaching import by_hand
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
        began = beginning(runs, name)
        return _show(watch, began, args, lambda: runs.who_holds(name) is not None)
    except KeyboardInterrupt:
        return 0
    finally:
        watch.close()


def _show(
    watch: JobWatch,
    began: RunBegan | None,
    args: argparse.Namespace,
    is_alive: Callable[[], bool],
) -> int:
    run = "" if began is None else began.name
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
    with _opened(launched.log, args.job, began) as log:
        if not args.follow:
            show_all(log, write_out)
            return 0
        watch.follow(log, write_out, is_alive)
    if watch.exited is not None:
        print(f"smartsched: job {args.job} ended: {how(watch.exited.ending)}", file=sys.stderr)
    return 0


def _opened(path: str | None, job: int, began: RunBegan | None) -> FileIO:
    if path is None:
        raise UsageError(f"job {job} has no log: its output went where smartsched runs")
    if not path.startswith("/"):
        raise UsageError(f"the log of job {job} {_where(path, began)}")
    try:
        return FileIO(path)
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error


def _where(log: str, began: RunBegan | None) -> str:
    """A log that lies on another host, and how to come by it."""
    host, _, rest = log.partition(":/")
    text, path = f"lies on {host}", f"/{rest}"
    named = None if began is None else json.loads(began.options).get("hosts")
    for spec in () if named is None else parse_hosts(named):
        if spec.name == host:
            command = shlex.quote(f"cat {shlex.quote(path)}")
            return f"{text}: {by_hand(spec)} {command}; --sync-logs brings logs here"
    return f"{text}, at {path}; --sync-logs brings logs here"
