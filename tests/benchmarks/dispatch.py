"""Dispatch beside its peers, in one run: `make bench`.

Throughput, the time from a job's end to the next job's start, from a line on standard input to its
start, the first start, memory with a million lines, CPU and wake-ups while one job runs, --help;
then what a sample, a day in virtual time and one more job cost. Ratios are to xargs with as many
slots, which is about what the system itself takes: absolute numbers are of one machine and hour.
README.md says where the time goes.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tests.benchmarks import inside
from tests.benchmarks.peers import installed, ours, running, seconds

SLOTS = 4
# bash has the time without another process; how long it takes to start is in all of the numbers.
JOB = """\
echo "s $EPOCHREALTIME" >> stamps
sleep 0.0$((4 + RANDOM % 2))
echo "e $EPOCHREALTIME" >> stamps
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500, help="of `true`; the issue's table: 2000")
    parser.add_argument("--rounds", type=int, default=5, help="of what is short")
    parser.add_argument("--turns", type=int, default=200, help="jobs for the turnaround")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--virtual-jobs", type=int, default=500)
    parser.add_argument("--growth", type=int, default=10_000, metavar="JOBS")
    parser.add_argument("--json", action="store_true", help="for a history of results")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        Path("job").write_text(JOB)
        try:
            results = {
                **throughput(args.jobs, args.rounds),
                **turnaround(args.turns),
                **streaming(args.turns // 10),
                **first_start(args.rounds),
                **a_long_list(args.lines),
                **one_long_job(args.idle_seconds),
                **help_time(2 * args.rounds),
                **inside.sampler(),
                **inside.virtual_day(args.virtual_jobs),
                **inside.growth(args.growth),
                **inside.decisions(hosts=50, gpus=8, shared_by=1),
                **inside.decisions(hosts=1, gpus=16, shared_by=8),
            }
        finally:
            os.chdir(before)
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:<72}{value:10.2f}")


def throughput(jobs: int, rounds: int) -> dict[str, float]:
    """The best of several rounds, in turn: what else the machine does slows single ones."""
    peers = installed()
    took: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, argv in peers.items():
            took[name].append(seconds(argv(SLOTS), "true\n" * jobs))
    found = {}
    for name in peers:
        found[f"{jobs} x true, {SLOTS} slots: {name}, jobs/s"] = jobs / min(took[name])
        if name != "xargs":
            found[f"  {name}'s share of xargs' throughput"] = min(took["xargs"]) / min(took[name])
    return found


def turnaround(jobs: int) -> dict[str, float]:
    """From the last thing that a job does to the first thing that its successor does: with so many
    slots, the start that comes so many starts later follows from an end."""
    found, medians = {}, {}
    for name, argv in installed().items():
        Path("stamps").unlink(missing_ok=True)
        seconds(argv(SLOTS), "exec bash job\n" * jobs)
        gaps = sorted(_gaps())
        if not gaps:
            continue
        medians[name] = statistics.median(gaps)
        name_of_it = f"end of a job to the next start, {SLOTS} slots: {name}"
        found[f"{name_of_it}, median ms"] = medians[name]
        found[f"{name_of_it}, p99 ms"] = gaps[(99 * len(gaps) - 1) // 100]
        if name != "xargs":
            found[f"  {name}'s median over xargs'"] = medians[name] / medians["xargs"]
    return found


def _gaps() -> Iterator[float]:
    stamps = [line.split() for line in Path("stamps").read_text().splitlines()]
    starts = sorted(float(at) for kind, at in stamps if kind == "s")
    ends = sorted(float(at) for kind, at in stamps if kind == "e")
    return (1000 * (s - e) for e, s in zip(ends, starts[SLOTS:], strict=False))


def streaming(lines: int) -> dict[str, float]:
    """From a line on standard input, which stays open, to its start, with nothing else to do."""
    found = {}
    for name, argv in installed().items():
        Path("stamps").unlink(missing_ok=True)
        with running(argv(SLOTS), stdin=subprocess.PIPE) as process:
            took = [_line_to_start(process, n) for n in range(1, lines + 2)][1:]  # it is up by then
        started = [each for each in took if each is not None]
        if started:
            found[f"line on stdin to its start: {name}, median ms"] = statistics.median(started)
        if len(started) < lines:
            found[f"  lines that {name} had not started after a second"] = lines - len(started)
    return found


def _line_to_start(process: psutil.Popen, number: int) -> float | None:
    time.sleep(0.1)
    written = time.time()
    process.stdin.write(b"exec bash job\n")
    process.stdin.flush()
    if not _wait_for("s ", count=number, limit_seconds=30.0 if number == 1 else 1.0):
        return None
    starts = [line for line in Path("stamps").read_text().splitlines() if line.startswith("s")]
    return 1000 * (float(starts[-1].split()[1]) - written)


def _wait_for(word: str, *, count: int = 1, limit_seconds: float = 60.0) -> bool:
    """Whether so many stamps of a kind have come."""
    until, stamps = time.monotonic() + limit_seconds, Path("stamps")
    while time.monotonic() < until:
        if stamps.exists() and stamps.read_text().count(word) >= count:
            return True
        time.sleep(0.002)
    return False


def first_start(rounds: int) -> dict[str, float]:
    took = []
    for _ in range(rounds):
        Path("stamps").unlink(missing_ok=True)
        began = time.time()
        seconds(ours(SLOTS), "exec bash job\n")
        took.append(1000 * (float(Path("stamps").read_text().split()[1]) - began))
    return {"first job after start, median ms": statistics.median(took)}


def a_long_list(lines: int) -> dict[str, float]:
    with open("long", "w") as listing:
        listing.write('echo "s 0" >> stamps; exec sleep 600\n' * lines)
    Path("stamps").unlink(missing_ok=True)
    began = time.monotonic()
    with running(ours(SLOTS, "long")) as process:
        _wait_for("s ")
        first = time.monotonic() - began
        time.sleep(2)
        memory = process.memory_info().rss
    return {
        f"{lines} lines: first job after, ms": 1000 * first,
        f"{lines} lines: memory of the dispatcher, MiB": memory / 2**20,
    }


def one_long_job(lasts: float) -> dict[str, float]:
    Path("stamps").unlink(missing_ok=True)
    Path("list").write_text('echo "s 0" >> stamps; exec sleep 600\n')
    with running(ours(8, "list")) as process:
        _wait_for("s ")
        time.sleep(1)
        sampler = [p for p in process.children() if "sample" in " ".join(p.cmdline())]
        before, waked = _cpu_seconds([process, *sampler]), _wake_ups(process)
        time.sleep(lasts)
        used = _cpu_seconds([process, *sampler]) - before
        waked = _wake_ups(process) - waked
    return {
        "one long job, 8 GPUs: CPU, sampler included, % of a core": 100 * used / lasts,
        f"one long job, 8 GPUs: wake-ups of the dispatcher in {lasts:g} s": waked,
    }


def help_time(rounds: int) -> dict[str, float]:
    times = []
    for _ in range(rounds):
        began = time.monotonic()
        subprocess.run([*ours(1)[:3], "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(1000 * (time.monotonic() - began))
    return {"--help, median ms": statistics.median(times)}


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _wake_ups(process: psutil.Process) -> int:
    """How often it went to sleep, all its threads together."""
    return int(process.num_ctx_switches().voluntary)


if __name__ == "__main__":
    main()
