"""`smartsched sample`: GPU snapshots, one JSON object a line.

What the dispatcher listens to, and what `--replay` plays back.
"""

import argparse
import json
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Collection
from typing import TypeAlias

from msgspec.structs import replace

from smartsched.cli.verbs import VerbParser
from smartsched.core import codec
from smartsched.core.close_look import CloseLooks
from smartsched.core.model import GpuProcess, Seen, Snapshot
from smartsched.core.sampling import DEFAULT_INTERVAL
from smartsched.core.units import parse_interval
from smartsched.errors import DriverError, UsageError

_LONGEST_REQUEST_BYTES = 1 << 20
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
    add("-i", "--interval", metavar="TIME", default=DEFAULT_INTERVAL, help="(default: %(default)s)")
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
    desk = _Desk(read, None if once else _requests_fd())
    while True:
        desk.look(None)
        if once:
            return
        due = max(due + interval, time.monotonic())
        if not desk.serve(due):
            return


class _Desk:
    """Looks at GPUs, and says what it has seen."""

    def __init__(self, read: Read, requests: int | None) -> None:
        """`requests`: where they come from; None: from nowhere."""
        self._read = read
        self._requests = requests
        self._pending = b""  # the beginning of a request
        self._run = "/"  # what tags begin with of processes that are no news
        self._close_looks = CloseLooks(self._is_ours)

    def serve(self, until: float) -> bool:
        """Answer requests. False: there will be none any more."""
        while True:
            left = max(min(until, self._close_looks.due_at()) - time.monotonic(), 0.0)
            if self._requests is None:
                time.sleep(left)
            elif select.select([self._requests], [], [], left)[0]:
                data = os.read(self._requests, 1 << 16)
                if not data:
                    return False
                self._hear(data)
            now = time.monotonic()
            if now >= until:
                return True
            if now >= self._close_looks.due_at():
                self._look_closely()

    def look(self, only: Collection[str] | None) -> None:
        began = time.monotonic()
        seen = self._read(only)
        _emit(seen, began)
        if isinstance(seen, Snapshot):
            self._close_looks.told(seen.gpus, began, whole=only is None)

    def _look_closely(self) -> None:
        """At what is watched; what is not new is not said."""
        began = time.monotonic()
        seen = self._read(self._close_looks.watched)
        if not isinstance(seen, Snapshot):
            self._close_looks.failed(began)
            _emit(seen, began)
        elif news := self._close_looks.news(seen.gpus, began):
            _emit(replace(seen, gpus=news), began)

    def _hear(self, data: bytes) -> None:
        """Requests that have come: GPUs to look at, or to watch from now on."""
        *lines, rest = (self._pending + data).split(b"\n")
        self._pending = rest[-_LONGEST_REQUEST_BYTES:]
        asked: set[str] = set()
        for line in lines:
            try:
                match json.loads(line):
                    case {"watch": list(uuids), "run": str(run)}:
                        self._run = f"{run}/"
                        self._close_looks.watch(map(str, uuids))
                    case list(uuids):
                        asked.update(map(str, uuids))
                    case _:
                        pass
            except (ValueError, RecursionError):
                continue
        if asked:
            self.look(asked)

    def _is_ours(self, process: GpuProcess) -> bool:
        return (process.run_tag or "").startswith(self._run)


def _requests_fd() -> int | None:
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return None
    return 0 if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


def _emit(seen: Seen, began: float) -> None:
    _write(codec.encode(seen, wall_time=time.time(), monotonic_s=began))


def _emit_trouble(why: str) -> None:
    from smartsched.cli.host import this_host
    from smartsched.core.model import SamplerTrouble

    trouble = SamplerTrouble(this_host(), why)
    _write(codec.encode(trouble, wall_time=time.time(), monotonic_s=time.monotonic()))


def _write(line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]
