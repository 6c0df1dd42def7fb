"""What a sample costs, beside others that look at GPUs: the part of `make bench-gpu` that needs no
GPU for itself."""

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import time

from tests.benchmarks import inside
from tests.benchmarks.peers import PROGRAM, environment

_NVITOP = """\
import sys, time
from nvitop import Device, take_snapshots

devices = Device.all()
for _ in range(int(sys.argv[1])):
    began = time.perf_counter()
    take_snapshots(devices)
    print(1000 * (time.perf_counter() - began))
"""


def say(text: str) -> None:
    print(f"bench-gpu: {text}", file=sys.stderr)


def samples(rounds: int) -> dict[str, float]:
    """Of all GPUs: by a sampler that is there and is asked, and by what others have for it."""
    ours = statistics.median(asked(rounds))
    found = {"a sample of all GPUs, as the dispatcher asks for it, median ms": ours}
    for name, took in (("nvidia-smi", nvidia_smi(rounds)), ("nvitop", nvitop(rounds))):
        if took:
            found[f"  by {name}, median ms"] = statistics.median(took)
            found[f"  {name}'s over ours"] = statistics.median(took) / ours
    here, drivers = inside.reading_ms(rounds)
    return found | {
        "a sample in one process, the least: ours, ms": here,
        "  the driver's own, ms": drivers,
        "  ours over the driver's own": here / drivers,
    }


def asked(rounds: int) -> list[float]:
    argv = [*PROGRAM, "sample", "--interval", "1h"]
    pipe, took = subprocess.PIPE, []
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        gpus = json.loads(process.stdout.readline())["gpus"]
        question = json.dumps([gpu["uuid"] for gpu in gpus]).encode() + b"\n"
        for _ in range(rounds):
            began = time.perf_counter()
            process.stdin.write(question)
            process.stdin.flush()
            process.stdout.readline()
            took.append(1000 * (time.perf_counter() - began))
    return took


def nvidia_smi(rounds: int) -> list[float]:
    query = ["--query-gpu=index,memory.used,utilization.gpu", "--format=csv,noheader"]
    if shutil.which("nvidia-smi") is None:
        say("nvidia-smi is not installed: a sample is not compared with it")
        return []
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        done = subprocess.run(["nvidia-smi", *query], stdout=subprocess.DEVNULL, check=False)
        took.append(1000 * (time.perf_counter() - began))
        if done.returncode != 0:
            say(f"nvidia-smi exits {done.returncode}: a sample is not compared with it")
            return []
    return took


def nvitop(rounds: int) -> list[float]:
    """In a process that has loaded it already."""
    if importlib.util.find_spec("nvitop") is None:
        say("nvitop is not installed: a sample is not compared with it")
        return []
    argv = [sys.executable, "-c", _NVITOP, str(rounds)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        say(f"nvitop exits {done.returncode}: a sample is not compared with it")
        return []
    return [float(line) for line in done.stdout.split()]
