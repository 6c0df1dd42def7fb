"""From the order to start a job on a host to the first thing that the job does there, with a
dispatcher, an agent and a connection between them as users have them, all on this machine.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAM = [sys.executable, "-m", "smartsched"]
_RUN, _LIST, _LOGS = "bench", "list", "smartsched-logs"
# bash knows the time without another process; as long as it stays, the next one is not started.
_JOB = "echo $EPOCHREALTIME; sleep 0.05\n"
_WITHIN_SECONDS = 60.0


def order_to_start(jobs: int) -> dict[str, float]:
    """One after the other. The order goes out when it is on record; by that time it counts."""
    bash = shutil.which("bash")
    if bash is None:
        return {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / _LIST).write_text(_JOB * jobs)
        runs = folder / "state" / "smartsched" / "runs" / _RUN
        options = ["--free-for", "0", "--simulate", "1", "--name", _RUN, "--shell", bash]
        with _running(folder, "-q", "--listen", "127.0.0.1", *options, _LIST) as dispatcher:
            _wait_for(runs / "join")
            with _running(folder, "agent", "--join", str(runs / "join")):
                dispatcher.wait(_WITHIN_SECONDS + jobs)
        took = sorted(_first_acts(folder / _LOGS / _RUN, runs / "events.jsonl"))
    return {
        f"order to the first act of each of {jobs} jobs, fastest ms": took[0],
        "  median ms": statistics.median(took),
        "  95 %, ms": took[(95 * len(took) - 1) // 100],
    }


@contextmanager
def _running(folder: Path, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    """To be ended, if it does not end by itself."""
    places = {"HOME": "", "XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": "config"}
    environment = {name: str(folder / place) for name, place in places.items()}
    environment |= {"SMARTSCHED_CLAIMS": str(folder / "claims")}
    process = subprocess.Popen(
        [*_PROGRAM, *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_for(path: Path) -> None:
    until = time.monotonic() + _WITHIN_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise SystemExit(f"{path} has not come")
        time.sleep(0.05)


def _first_acts(logs: Path, journal: Path) -> Iterator[float]:
    """How long it took to each, in milliseconds."""
    records = map(json.loads, journal.read_text().splitlines())
    ordered = {r["run"][0]: r["at"] for r in records if r["event"] == "run_placed"}
    for log in logs.glob("*.log"):
        yield 1000 * (float(log.read_text().split()[0]) - ordered[int(log.stem)])
