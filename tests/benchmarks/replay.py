"""How long it takes to go on with a run that has many finished jobs, and to say how it stands:
`python tests/benchmarks/replay.py`.

Makes the folder of such a run, as a dispatcher leaves it, and measures what its users wait for,
each in a process of its own: first without a bookmark (core/bookmark.py), then with one. Ratios are
to taking every line of the same journal apart with json.loads, in the same run: what any program
has to do at least that looks at every record.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from smartsched.core.events import (
    Event,
    GpuReleased,
    InputEnded,
    InputRead,
    JobAccepted,
    JobFinished,
    RunBegan,
    RunClosed,
    RunExited,
    RunLaunched,
    RunPlaced,
)
from smartsched.core.model import (
    Exited,
    GpuKey,
    GpuUuid,
    HostName,
    JobId,
    JobSpec,
    PlacedGpu,
    Placement,
    Position,
    ProcessId,
    RunKey,
)
from smartsched.core.records import encode

GPUS = 4
OPTIONS = {"simulate": str(GPUS), "free_for": "0", "output": "raw", "logs": "/tmp/logs"}
NAME = "many"
JSON_FLOOR = "import json,sys\nfor line in open(sys.argv[1], 'rb'): json.loads(line)"
STARTS = "date +%s.%N >> starts\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--keep", metavar="DIR", help="make the run there, measure nothing")
    parser.add_argument("--died", action="store_true", help="that run: before its last job")
    parser.add_argument("--json", action="store_true", help="for a history of results")
    args = parser.parse_args()
    if args.keep is not None:
        make(Path(args.keep), args.jobs, ended=not args.died)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        results = measured(Path(folder), args.jobs)
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:<64}{value:10.2f}")


def measured(folder: Path, jobs: int) -> dict[str, float]:
    state = folder / "state"
    _make_elsewhere(state, jobs)
    journal = state / "runs" / NAME / "events.jsonl"
    shutil.copy(journal.parent / "list-0-0", "longer")
    with Path("longer").open("a") as longer:
        longer.write("true\n")
    floor, _, _ = timed([sys.executable, "-c", JSON_FLOOR, str(journal)])
    results = {f"{jobs} jobs: json.loads of every line, s": floor}
    ours = [sys.executable, "-m", "smartsched"]
    of_ours = ["--state", str(state)]
    for what, argv in {
        "status, no bookmark": [*ours, "status", NAME],
        "--resume, nothing left, no bookmark": [*ours, "--resume", NAME],
        "--resume, nothing left": [*ours, "--resume", NAME],
        "status": [*ours, "status", NAME],
        "runs": [*ours, "runs"],
        "--resume with a list that has one line more": [*ours, "--resume", NAME, "longer"],
    }.items():
        results |= told(what, jobs, floor, *timed([*argv, *of_ours]))
    shutil.rmtree(state)
    _make_elsewhere(state, jobs, "--died")
    shutil.copy(journal, "journal")
    for what in ("died, --resume to first start, no bookmark", "died, --resume to first start"):
        took = first_start([*ours, "-q", "--resume", NAME, *of_ours])
        results |= told(what, jobs, floor, *took)
        shutil.copy("journal", journal)  # as it was; the bookmark stays
        for name in ("jobs", "requests"):
            shutil.rmtree(journal.parent / name, ignore_errors=True)
        (journal.parent / "jobs").mkdir(0o700)
    return results


def _make_elsewhere(state: Path, jobs: int, *more: str) -> None:
    """Children are measured with what memory this process had when it began them."""
    argv = [sys.executable, __file__, "--jobs", str(jobs), "--keep", str(state), *more]
    subprocess.run(argv, check=True)


def told(
    what: str, jobs: int, floor: float, seconds: float, cpu_seconds: float, peak_bytes: float
) -> dict[str, float]:
    return {
        f"{what}, s": seconds,
        f"{what}: CPU, s": cpu_seconds,
        f"{what}: over json.loads": seconds / floor,
        f"{what}: finished jobs a second": jobs / seconds,
        f"{what}: peak memory, MiB": peak_bytes / 2**20,
    }


def first_start(argv: list[str]) -> tuple[float, float, float]:
    """Until the first job begins that was left."""
    Path("starts").unlink(missing_ok=True)
    began = time.time()
    _, cpu_seconds, peak_bytes = timed(argv)
    return float(Path("starts").read_text().split()[0]) - began, cpu_seconds, peak_bytes


def timed(argv: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of a core, and the most memory that it had, in bytes."""
    began = time.monotonic()
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024.0


def make(state: Path, jobs: int, *, ended: bool = True) -> None:
    """A run's folder, as a dispatcher leaves it that has done all of its list, or that has died
    before a last line of it."""
    folder = state / "runs" / NAME
    (folder / "jobs").mkdir(0o700, parents=True)
    lines, rest = lines_of(jobs), [] if ended else [STARTS.encode()]
    (folder / "list-0-0").write_bytes(b"".join(lines + rest))
    with (folder / "events.jsonl").open("wb") as journal:
        for seq, event in enumerate(history(lines, rest), start=1):
            journal.write(encode(event, seq))
    for file in folder.iterdir():
        file.chmod(0o700 if file.is_dir() else 0o600)


def lines_of(jobs: int) -> list[bytes]:
    return [f"true {number}\n".encode() for number in range(1, jobs + 1)]


def history(lines: list[bytes], rest: list[bytes]) -> Iterator[Event]:
    """Six records a job; of each GPU, jobs follow each other."""
    at, host, size = 1.7e9, HostName(os.uname().nodename), sum(map(len, lines + rest))
    options = json.dumps(OPTIONS, sort_keys=True)
    yield RunBegan(at, NAME, host, os.getcwd(), ("list",), None, options, f"{NAME}.0123", "")
    yield InputRead(at, 0, size)
    offset = 0
    for number, line in enumerate(lines, start=1):
        job, run, at = JobId(number), RunKey(JobId(number), 1), at + 0.25
        offset += len(line)
        spec = JobSpec(line.decode().strip(), f"list:{number}", os.getcwd())
        gpu = GpuKey(host, GpuUuid(f"GPU-0000000{number % GPUS}-0000-4000-8000-000000000000"))
        label = str(number % GPUS)
        process = ProcessId(1000 + number, number, "a8c88d25-c9e6-4c3b-8ca0-6fbd6aced287")
        yield JobAccepted(at, job, spec, Position(0, offset, number))
        yield RunPlaced(at, run, Placement((PlacedGpu(gpu, label, label),)))
        yield RunLaunched(at, run, process, f"/home/user/smartsched-logs/{NAME}/{number:04d}.log")
        yield RunExited(at + 1, run, Exited(0), 0)
        yield JobFinished(at + 1, run, "ok")
        yield GpuReleased(at + 1, gpu, run)
    if rest:
        return
    yield InputEnded(at + 1)
    yield RunClosed(at + 1, complete=True, failed=0, ok=len(lines))


if __name__ == "__main__":
    main()
