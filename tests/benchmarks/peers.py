"""How the same list is given to other dispatchers: those that are installed here, and ours.

All of them read commands from standard input, one a line, and run so many at a time with /bin/sh.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import psutil

Argv: TypeAlias = Callable[[int], list[str]]  # by the number of slots

OURS = "smartsched"
PROGRAM = [sys.executable, "-m", "smartsched"]
_FREE = ["--free-for", "0", "--max-mem", "100%", "--max-util", "100%"]
FREE_AT_ONCE = ["--free-for", "0"]


def ours(slots: int, *more: str) -> list[str]:
    """On pretend GPUs that are always free."""
    return [*PROGRAM, "-q", "--simulate", str(slots), *_FREE, *more]


def ours_on(gpu: str) -> list[str]:
    """On a real GPU, which is free again as soon as a job's memory is back."""
    return [*PROGRAM, "-q", "--gpus", gpu, *FREE_AT_ONCE]


def _xargs(slots: int) -> list[str]:
    return ["xargs", "-d", "\\n", "-P", str(slots), "-n1", "sh", "-c"]


def _parallel(slots: int) -> list[str]:
    return ["parallel", "--will-cite", "-j", str(slots), "--joblog", "joblog"]


def _simple_gpu_scheduler(slots: int) -> list[str]:
    return ["simple_gpu_scheduler", "--gpus", *map(str, range(slots))]


def installed() -> dict[str, Argv]:
    """By name; xargs first, which ratios are to, and ours last."""
    peers: dict[str, Argv] = {
        "xargs": _xargs,
        "parallel": _parallel,
        "simple_gpu_scheduler": _simple_gpu_scheduler,
    }
    return {name: argv for name, argv in peers.items() if shutil.which(name)} | {OURS: ours}


def environment() -> dict[str, str]:
    """All of them run commands by the same shell, and ours keeps its runs out of the way."""
    return os.environ | {"SHELL": "/bin/sh", "XDG_STATE_HOME": os.path.abspath("state")}


def seconds(argv: Sequence[str], text: str) -> float:
    """How long a list takes."""
    listing = Path("list")
    listing.write_text(text)
    began = time.monotonic()
    with listing.open("rb") as stdin:
        subprocess.run(
            argv,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            check=True,
        )
    return time.monotonic() - began


@contextmanager
def running(argv: Sequence[str], stdin: int = subprocess.DEVNULL) -> Iterator[psutil.Popen]:
    """For a while; then it is asked to end, at once."""
    process = psutil.Popen(
        argv,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with suppress(psutil.NoSuchProcess):  # it has ended by itself
                process.send_signal(signum)
            try:
                process.wait(10)
                break
            except psutil.TimeoutExpired:
                continue
