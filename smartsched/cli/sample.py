"""`smartsched sample`: GPU snapshots, one JSON object a line.

What the dispatcher listens to, and what `--replay` plays back.
"""

import argparse
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Collection
from typing import TypeAlias

from smartsched.cli.verbs import VerbParser
from smartsched.core import codec
from smartsched.core.model import Seen
from smartsched.core.units import parse_interval
from smartsched.errors import DriverError, UsageError

Read: TypeAlias = Callable[[Collection[str] | None], Seen]

_DESCRIPTION = """\
Write a snapshot of all GPUs as one JSON object a line, until stopped: recordings for --replay, or
for programs of your own. The fields are described in the README."""


def main(words: list[str]) -> int:
    args = build_parser().parse_args(words)
    try:
        interval = parse_interval(args.interval)
    except UsageError as error:
        raise UsageError(f"--interval: {error}") from error
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing here is worth a traceback
    try:
        _sample(_source(args), interval, once=args.once)
    except DriverError as error:
        if not sys.stdout.isatty():
            _emit_trouble(str(error))
        raise
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("sample", _DESCRIPTION)
    add = parser.add_argument
    add("-i", "--interval", metavar="TIME", default="1s", help="(default: %(default)s)")
    add("--once", action="store_true", help="one snapshot only")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--simulate", metavar="N[,seed=S]", help="of pretend GPUs")
    source.add_argument("--replay", metavar="FILE", help="of a recording, at its own pace")
    return parser


def _source(args: argparse.Namespace) -> Read:
    if args.simulate is not None:
        return _simulated(args.simulate)
    if args.replay is not None:
        from smartsched.edges.recording import Recording

        recording = Recording(args.replay)
        return lambda only: recording.read(time.monotonic(), only)
    return _driver()


def _driver() -> Read:
    from smartsched.cli.host import this_host
    from smartsched.core.model import Snapshot
    from smartsched.edges import nvml
    from smartsched.edges.nvml_processes import ProcessReader
    from smartsched.edges.who import Register

    people = Register()
    host = this_host()
    driver = nvml.load()
    reader = nvml.NvmlReader(driver, host, ProcessReader(driver, people.describe))

    def read(only: Collection[str] | None) -> Seen:
        snapshot = Snapshot(host, 0.0, reader.read(only), whole=only is None)
        if only is None:
            people.forget_all_but(snapshot.pids())
        return snapshot

    return read


def _simulated(text: str) -> Read:
    from smartsched.cli.host import this_host
    from smartsched.core.model import Snapshot
    from smartsched.simulation.colleagues import Colleagues, parse_simulation

    count, seed = parse_simulation(text)
    colleagues, host, began = Colleagues(count, seed), this_host(), time.monotonic()

    def read(only: Collection[str] | None) -> Seen:
        gpus = colleagues.readings(host, time.monotonic() - began, only)
        return Snapshot(host, 0.0, gpus, whole=only is None)

    return read


def _sample(read: Read, interval: float, *, once: bool) -> None:
    due = time.monotonic()
    # Somebody at the other end of a pipe may ask for more and ends us by closing it; a terminal or
    # /dev/null (nohup, cron) means nothing.
    requests = None if once else _requests_fd()
    while True:
        _emit(read, None)
        if once:
            return
        due = max(due + interval, time.monotonic())
        while True:
            left = max(due - time.monotonic(), 0.0)
            if requests is None:
                time.sleep(left)
            elif select.select([requests], [], [], left)[0]:
                asked = os.read(requests, 1 << 16)
                if not asked:
                    return
                _emit(read, _uuids(asked))
            if time.monotonic() >= due:
                break


def _requests_fd() -> int | None:
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return None
    return 0 if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


def _uuids(lines: bytes) -> set[str]:
    import json

    asked: set[str] = set()
    for line in lines.splitlines():
        try:
            asked.update(map(str, json.loads(line)))
        except (ValueError, TypeError):
            continue  # half a line of a reader in a hurry; the next whole snapshot answers it
    return asked


def _emit(read: Read, only: Collection[str] | None) -> None:
    began = time.monotonic()
    observation = read(only)
    _write(codec.encode(observation, wall_time=time.time(), monotonic_s=began))


def _emit_trouble(why: str) -> None:
    from smartsched.cli.host import this_host
    from smartsched.core.model import SamplerTrouble

    trouble = SamplerTrouble(this_host(), why)
    _write(codec.encode(trouble, wall_time=time.time(), monotonic_s=time.monotonic()))


def _write(line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]
