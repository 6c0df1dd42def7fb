"""What only a real NVIDIA GPU can tell: `make bench-gpu`.

A sample beside nvidia-smi and nvitop; the end of a job to its memory being back and to the next
job's start; how soon somebody else's allocation is seen; whether looking slows what computes. What
allocates and what computes are programs of torch, or others that keep to what is said at
`--allocator` and `--worker`. A GPU that is in use is left alone.
"""

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

from smartsched.edges import nvml
from smartsched.errors import DriverError
from tests.benchmarks.gpu_samples import samples, say
from tests.benchmarks.peers import (
    FREE_AT_ONCE,
    PROGRAM,
    environment,
    ours_on,
    running,
    seconds,
)

GIB = 2**30
MEMORY_LOOK_SECONDS = 0.002
JOB_SECONDS = 0.5
STRANGER_SECONDS = 600
SEEN_WITHIN_SECONDS = 120

# With the shell's stamps around it, the end of its process is told from its own last moment.
_JOB = """\
echo "s $EPOCHREALTIME" >> stamps
{allocator} || exit
echo "x $EPOCHREALTIME" >> stamps
"""

_ALLOCATE = """\
import sys, time, torch

def stamp(word):
    with open("stamps", "a") as stamps:
        print(word, f"{time.time():.6f}", file=stamps)

torch.ones(1, device="cuda").sum().item()  # its context is there from here on
stamp("a")
block = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
block.fill_(1)
torch.cuda.synchronize()
time.sleep(float(sys.argv[2]))
stamp("e")
"""

_WORK = """\
import sys, time, torch

left = torch.randn(8192, 8192, device="cuda", dtype=torch.half)
right = torch.randn_like(left)
product = torch.empty_like(left)

def took(batches):
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(batches):
        for _ in range(10):
            torch.matmul(left, right, out=product)
        torch.cuda.synchronize()
    return time.perf_counter() - began

took(10)  # loads the kernels, and the clock goes up
batches = max(1, round(float(sys.argv[1]) * 10 / took(10)))
for _ in sys.stdin:
    print(took(batches), flush=True)
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        card = Card(nvml.load(), args.gpu)
    except DriverError as error:
        say(str(error))
        return 2
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        try:
            results = {**samples(args.rounds), **on_the_gpu(card, args)}
        finally:
            os.chdir(before)
    if args.json:
        print(json.dumps(results))
        return 0
    for name, value in results.items():
        print(f"{name:<72}{value:10.2f}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--gpu", type=int, default=0, metavar="INDEX", help="as nvidia-smi counts")
    add("--rounds", type=int, default=10, help="of samples")
    add("--jobs", type=int, default=10, help="of which the end is followed by another's start")
    add("--gib", type=float, default=4.0, help="that each of them holds")
    add("--strangers", type=int, default=5, help="one after another")
    add("--interval", type=float, default=1.0, help="in seconds, at which they are looked for")
    add("--work-rounds", type=int, default=10, help="of matmuls, with and without sampling")
    add("--work-seconds", type=float, default=3.0, help="of each round")
    add("--json", action="store_true", help="for a history of results")
    add(
        "--allocator",
        metavar="COMMAND",
        default="",
        help="instead of torch. It is given bytes and seconds; appends `a TIME` to ./stamps, holds"
        " so much of its GPU for so long, appends `e TIME` and exits",
    )
    add(
        "--worker",
        metavar="COMMAND",
        default="",
        help="instead of torch. It is given seconds; for each line on its stdin it does the same"
        " work, which takes about as long, and prints the seconds that it took",
    )
    return parser


class BrokenProgramError(Exception):
    """What allocates or works has ended, and should not have."""


class Card:
    """A GPU as the driver tells of it. Raises DriverError where there is none of this index."""

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        self.index = index
        try:
            self._handle = driver.nvmlDeviceGetHandleByIndex(index)
            self.uuid = str(driver.nvmlDeviceGetUUID(self._handle))
            self.total_bytes = int(driver.nvmlDeviceGetMemoryInfo(self._handle).total)
        except driver.NVMLError as error:
            raise DriverError(f"the NVIDIA driver has no GPU {index} for us ({error})") from error

    def used_bytes(self) -> int:
        return int(self._driver.nvmlDeviceGetMemoryInfo(self._handle).used)

    def alone(self, argv: Sequence[str]) -> list[str]:
        """A command that sees this GPU and no other."""
        return ["env", f"CUDA_VISIBLE_DEVICES={self.uuid}", *argv]


class MemoryWatch(threading.Thread):
    """Looks all the time at what is used of a GPU's memory, and keeps when it changed."""

    def __init__(self, card: Card) -> None:
        super().__init__(daemon=True)
        self._card = card
        self._over = threading.Event()
        self._seen: list[tuple[float, int]] = []

    def run(self) -> None:
        while not self._over.wait(MEMORY_LOOK_SECONDS):
            used = self._card.used_bytes()
            if not self._seen or used != self._seen[-1][1]:
                self._seen.append((time.time(), used))

    def back_at(self, after: float, before: float, most_bytes: int) -> float | None:
        """When it was first no more than this between two moments. None: that was not seen."""
        at = (at for at, used in self._seen if after < at < before and used <= most_bytes)
        return next(at, None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def on_the_gpu(card: Card, args: argparse.Namespace) -> dict[str, float]:
    """What has to have a GPU for itself, and programs that use it."""
    if why := why_not_free(card):
        say(f"{why}: nothing is measured that uses it")
        return {}
    allocator, worker = programs(args.allocator, args.worker)
    parts: list[Callable[[], dict[str, float]]] = []
    if allocator:
        held = round(args.gib * GIB)
        parts.append(lambda: from_end_to_start(card, allocator, args.jobs, held))
        parts.append(lambda: strangers_seen(card, allocator, args.strangers, args.interval))
    if worker:
        parts.append(lambda: slowdown(card, worker, args.work_rounds, args.work_seconds))
    found: dict[str, float] = {}
    for part in parts:
        try:
            found |= part()
        except (BrokenProgramError, BrokenPipeError) as error:
            say(f"{error}: this is left out")
    return found


def why_not_free(card: Card) -> str | None:
    argv = [*PROGRAM, "--dry-run", "--json", "--gpus", str(card.index), *FREE_AT_ONCE]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment(), check=False
    )
    gpus = json.loads(done.stdout)["gpus"] if done.stdout else []
    gpu = next((gpu for gpu in gpus if gpu["uuid"] == card.uuid), None)
    if gpu is None:
        return f"GPU {card.index} is not offered as a whole"
    if gpu["verdict"] == "FREE":
        return None
    return f"GPU {card.index} is {gpu['verdict']} ({'; '.join(gpu['reasons'])})"


def programs(allocator: str, worker: str) -> tuple[list[str], list[str]]:
    """What allocates and what works: as was asked for, else by torch; nothing without it."""
    given = shlex.split(allocator), shlex.split(worker)
    if all(given):
        return given
    if why := why_no_torch():
        say(f"{why}: what jobs and strangers do to a GPU is not measured")
        return given
    Path("allocate.py").write_text(_ALLOCATE)
    Path("work.py").write_text(_WORK)
    by_torch = [[sys.executable, os.path.abspath(name)] for name in ("allocate.py", "work.py")]
    return given[0] or by_torch[0], given[1] or by_torch[1]


def why_no_torch() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    check = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", check], check=False)
    return "this torch finds no GPU" if done.returncode else None


def from_end_to_start(
    card: Card, allocator: Sequence[str], jobs: int, held_bytes: int
) -> dict[str, float]:
    """The driver's part and ours of the time in which a GPU that has work does nothing."""
    command = shlex.join([*allocator, str(held_bytes), str(JOB_SECONDS)])
    Path("job").write_text(_JOB.format(allocator=command))
    Path("stamps").unlink(missing_ok=True)
    back_bytes = card.used_bytes() + held_bytes // 20
    with MemoryWatch(card) as memory:
        try:
            seconds(ours_on(str(card.index)), "exec bash job\n" * (jobs + 1))
        except subprocess.CalledProcessError as error:
            raise BrokenProgramError(f"jobs failed (smartsched: {error.returncode})") from error
    return medians_of(memory, back_bytes)


def medians_of(memory: MemoryWatch, back_bytes: int) -> dict[str, float]:
    """Of what lies between a job and the one after it, by their stamps. `back_bytes`: its memory is
    back when no more than this is used."""
    turns, seen = [], []
    befores = zip(stamps("e"), stamps("x"), strict=True)
    afters = zip(stamps("s")[1:], stamps("a")[1:], strict=True)
    for (last, exited), (start, allocated) in zip(befores, afters, strict=False):
        turns.append((last, exited, start))
        if (back := memory.back_at(last, allocated, back_bytes)) is not None:
            seen.append((exited, back, start))
    spans = {
        "a job's last moment to the end of its process": [e - last for last, e, _ in turns],
        "  from that end to its memory being back": [back - e for e, back, _ in seen],
        "  from that end to the next job's start": [start - e for _, e, start in turns],
        "  of it ours, with process and memory gone": [s - max(e, back) for e, back, s in seen],
    }
    found = {f"{name}, median ms": 1000 * statistics.median(s) for name, s in spans.items() if s}
    return found | {"  jobs whose memory was seen to come back": len(seen)}


def strangers_seen(
    card: Card, allocator: Sequence[str], strangers: int, interval: float
) -> dict[str, float]:
    """From just before somebody allocates 30 % of the memory to the snapshot that shows it."""
    held = card.total_bytes * 3 // 10
    argv = card.alone([*allocator, str(held), str(STRANGER_SECONDS)])
    with sampling(interval) as lines:
        after = []
        for number in range(strangers):
            time.sleep(interval * number / strangers)  # a round begins just after a look
            after.append(seen_after(card, argv, held, lines) / interval)
    name = f"30 % of the memory taken, a look each {interval:g} s"
    return {
        f"{name}: seen after, intervals, median": statistics.median(after),
        "  at most, intervals": max(after),
    }


def seen_after(card: Card, argv: Sequence[str], held_bytes: int, lines: Path) -> float:
    """In seconds; then it ends, and its memory is seen to be back."""
    Path("stamps").unlink(missing_ok=True)
    before, until = sampled_bytes(lines, card), time.monotonic() + SEEN_WITHIN_SECONDS
    with running(argv) as stranger:
        while sampled_bytes(lines, card) < before + held_bytes * 9 // 10:
            if stranger.poll() is not None:
                raise BrokenProgramError(f"the allocator exits {stranger.returncode}")
            look_again(until)
        seen = time.time()
    while sampled_bytes(lines, card) > before + held_bytes // 10:
        look_again(until)
    return seen - stamps("a")[0]


def look_again(until: float) -> None:
    if time.monotonic() > until:
        raise BrokenProgramError(f"nothing was seen for {SEEN_WITHIN_SECONDS} s")
    time.sleep(0.01)


def slowdown(card: Card, worker: Sequence[str], rounds: int, lasts: float) -> dict[str, float]:
    """The same work alone and beside a sampler, in turn and in both orders."""
    took: dict[float | None, list[float]] = {None: [], 1.0: [], 0.1: []}
    argv, pipe = card.alone([*worker, str(lasts)]), subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=environment()) as process:
        work(process)  # a card that gets warm is not as fast as one that was idle
        for number in range(rounds):
            for interval in list(took) if number % 2 else reversed(list(took)):
                with nullcontext() if interval is None else sampling(interval):
                    took[interval].append(work(process))
    alone = took.pop(None)
    found = {
        "the same matmuls alone, median s": statistics.median(alone),
        "  the slowest over the fastest of these rounds, %": percent_more(max(alone), min(alone)),
    }
    for interval, beside in took.items():
        slower = statistics.median(map(percent_more, beside, alone))
        found[f"  beside `smartsched sample --interval {interval:g}`, slower by %"] = slower
    return found


def work(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    if not (took := worker.stdout.readline()):
        raise BrokenProgramError("the worker has ended")
    return float(took)


@contextmanager
def sampling(interval: float) -> Iterator[Path]:
    """A sampler for a while: the file of its lines, in which there is one by then."""
    argv, lines = [*PROGRAM, "sample", "--interval", f"{interval:g}s"], Path("samples")
    nothing = subprocess.DEVNULL
    with (
        lines.open("wb") as out,
        subprocess.Popen(argv, stdin=nothing, stdout=out, env=environment()) as process,
    ):
        try:
            while b"\n" not in lines.read_bytes():
                if process.poll() is not None:
                    raise BrokenProgramError(f"the sampler exits {process.returncode}")
                time.sleep(0.01)
            yield lines
        finally:
            process.terminate()


def sampled_bytes(lines: Path, card: Card) -> int:
    """What is used of a GPU's memory, by the last whole line of a sampler."""
    gpus = json.loads(lines.read_bytes().split(b"\n")[-2])["gpus"]
    return next(int(gpu["memory_used_bytes"]) for gpu in gpus if gpu["uuid"] == card.uuid)


def stamps(word: str) -> list[float]:
    lines = map(str.split, Path("stamps").read_text().splitlines())
    return [float(at) for kind, at in lines if kind == word]


def percent_more(one: float, other: float) -> float:
    return 100 * (one / other - 1)


if __name__ == "__main__":
    sys.exit(main())
