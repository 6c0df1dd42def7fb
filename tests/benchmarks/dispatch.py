"""Dispatch on pretend GPUs, next to xargs in the same run: `make bench`.

Prints what the README claims: throughput, the time from a job's end to the next job's start, the
first start, memory with a million lines, CPU while one job runs, and --help. Ratios are to xargs
with as many slots, which is about what the system itself takes.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SLOTS = 4
OURS = [sys.executable, "-m", "smartsched"]
PRETEND = ["--simulate", str(SLOTS), "--free-for", "0", "--max-mem", "100%", "--max-util", "100%"]
XARGS = ["xargs", "-d", "\\n", "-P", str(SLOTS), "-n1", "sh", "-c"]
STAMP = "date +%s.%N >> stamps"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--json", action="store_true", help="for a history of results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        results = {
            **throughput(args.jobs),
            **turnaround(),
            **first_start(),
            **a_long_list(args.lines),
            **one_long_job(args.idle_seconds),
            **help_time(),
        }
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:<58}{value:10.2f}")


def throughput(jobs: int) -> dict[str, float]:
    listing = _list("true\n" * jobs)
    theirs, ours = (_seconds(argv, listing) for argv in (XARGS, [*OURS, "-q", *PRETEND]))
    return {
        f"{jobs} x true, {SLOTS} slots: xargs, jobs/s": jobs / theirs,
        f"{jobs} x true, {SLOTS} slots: smartsched, jobs/s": jobs / ours,
        "  smartsched's share of xargs' throughput": theirs / ours,
    }


def turnaround() -> dict[str, float]:
    """From the last thing a job does to the first thing that its successor does, on one GPU."""
    count = 100
    listing = _list(f"{STAMP}; sleep 0.02; {STAMP}\n" * count)
    medians = []
    for argv in (["xargs", "-d", "\\n", "-n1", "sh", "-c"], [*OURS, "-q", *PRETEND, "--gpus", "0"]):
        Path("stamps").unlink(missing_ok=True)
        _seconds(argv, listing)
        stamps = [float(line) for line in Path("stamps").read_text().split()]
        gaps = [1000 * (s - e) for e, s in zip(stamps[1::2], stamps[2::2], strict=False)]
        medians.append(statistics.median(gaps))
    return {
        "end of a job to start of the next: xargs, median ms": medians[0],
        "end of a job to start of the next: smartsched, median ms": medians[1],
        "  smartsched over xargs": medians[1] / medians[0],
    }


def first_start() -> dict[str, float]:
    listing = _list(f"{STAMP}\n")
    took = []
    for _ in range(5):
        Path("stamps").unlink(missing_ok=True)
        began = time.time()
        _seconds([*OURS, "-q", *PRETEND], listing)
        took.append(1000 * (float(Path("stamps").read_text()) - began))
    return {"first job after start, median ms": statistics.median(took)}


def a_long_list(lines: int) -> dict[str, float]:
    with open("long", "w") as listing:
        listing.write("echo started >> stamps; exec sleep 600\n" * lines)
    Path("stamps").unlink(missing_ok=True)
    began = time.monotonic()
    with _running([*OURS, "-q", *PRETEND, "long"]) as process:
        while not Path("stamps").exists():
            time.sleep(0.005)
        first = time.monotonic() - began
        time.sleep(5)
        memory = process.memory_info().rss
    return {
        f"{lines} lines: first job after, ms": 1000 * first,
        f"{lines} lines: memory of the dispatcher, MiB": memory / 2**20,
    }


def one_long_job(seconds: float) -> dict[str, float]:
    Path("stamps").unlink(missing_ok=True)
    pretend = [*PRETEND]
    pretend[1] = "8"
    listing = _list(f"{STAMP}; exec sleep 600\n")
    with _running([*OURS, "-q", *pretend, str(listing)]) as process:
        while not Path("stamps").exists():
            time.sleep(0.01)
        sampler = [p for p in process.children() if "sample" in " ".join(p.cmdline())]
        before = _cpu_seconds([process, *sampler])
        time.sleep(seconds)
        used = _cpu_seconds([process, *sampler]) - before
    return {"one long job, 8 GPUs: CPU, sampler included, % of a core": 100 * used / seconds}


def help_time() -> dict[str, float]:
    times = []
    for _ in range(10):
        began = time.monotonic()
        subprocess.run([*OURS, "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(1000 * (time.monotonic() - began))
    return {"--help, median ms": statistics.median(times)}


class _running:  # noqa: N801  # used like a function
    def __init__(self, argv: list[str]) -> None:
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def __enter__(self) -> psutil.Process:
        return psutil.Process(self._process.pid)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _list(text: str) -> Path:
    path = Path("list")
    path.write_text(text)
    return path


def _seconds(argv: list[str], listing: Path) -> float:
    began = time.monotonic()
    with listing.open("rb") as stdin:
        subprocess.run(
            argv, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )
    return time.monotonic() - began


if __name__ == "__main__":
    main()
