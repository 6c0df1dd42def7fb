"""On a machine with a real GPU and torch: the verdict flips, the job sees its GPU."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.harness import MOMENT, PROGRAM
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.gpu

GIB = 2**30
ALLOCATE = """
import sys, time, torch
block = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
block.fill_(1)
torch.cuda.synchronize()
print("allocated", torch.cuda.get_device_properties(0).uuid, flush=True)
time.sleep(float(sys.argv[2]))
"""

WORK = """
import torch
block = torch.randn(8192, 8192, device="cuda")
print("working", flush=True)
while True:
    for _ in range(20):
        block @ block
    torch.cuda.synchronize()
"""
CREDITED = """
import sys, time, pynvml
pynvml.nvmlInit()
gpu = pynvml.nvmlDeviceGetHandleByUUID(sys.argv[1])
try:
    samples = pynvml.nvmlDeviceGetProcessUtilization(gpu, time.time_ns() // 1000 - 3_000_000)
except pynvml.NVMLError:
    samples = []
print(*(sample.pid for sample in samples if sample.smUtil))
"""


def dry_run(*args: str) -> dict[str, dict[str, object]]:
    """The survey's GPUs by their label."""
    argv = [*PROGRAM, "--dry-run", "--json", *MOMENT, *args]
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode in (0, 3), done.stderr
    return {gpu["gpu"]: gpu for gpu in json.loads(done.stdout)["gpus"]}


def sampled(uuid: str) -> dict[str, object]:
    """A GPU in one snapshot."""
    done = subprocess.run([*PROGRAM, "sample", "--once"], capture_output=True, check=True)
    gpus: dict[str, dict[str, object]] = {g["uuid"]: g for g in json.loads(done.stdout)["gpus"]}
    return gpus[uuid]


def is_credited(pid: int, uuid: str) -> bool:
    """Whether the driver itself says of this process that it works."""

    def pids() -> list[str]:
        argv = [sys.executable, "-c", CREDITED, uuid]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()

    try:
        wait_until(lambda: str(pid) in pids(), timeout=10)
    except AssertionError:
        return False
    return True


@pytest.fixture
def free_gpu() -> str:
    """The label of a GPU that nobody uses."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    done = subprocess.run([*PROGRAM, "sample", "--once"], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no usable driver: {done.stderr.decode().strip()}")
    free = [label for label, gpu in dry_run().items() if gpu["verdict"] == "FREE"]
    if not free:
        pytest.skip("no GPU is free")
    return free[0]


@pytest.fixture
def stranger(free_gpu: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of no run of ours that holds 30 % of the free GPU."""
    total = dry_run("--gpus", free_gpu)[free_gpu]["memory_total_bytes"]
    assert isinstance(total, int)
    env = os.environ | {"CUDA_VISIBLE_DEVICES": free_gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    argv = [sys.executable, "-c", ALLOCATE, str(total * 3 // 10), "600"]
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"allocated")
    yield process
    process.kill()
    process.wait()


def test_the_verdict_flips_with_a_strangers_allocation(
    free_gpu: str, stranger: subprocess.Popen[bytes]
):
    busy = dry_run("--gpus", free_gpu)[free_gpu]

    assert busy["verdict"] == "BUSY"
    assert "memory" in str(busy["reasons"])
    processes = busy["processes"]
    assert isinstance(processes, list)
    assert stranger.pid in [process["pid"] for process in processes]

    stranger.kill()
    stranger.wait()
    wait_until(lambda: dry_run("--gpus", free_gpu)[free_gpu]["verdict"] == "FREE", "it is free")


@pytest.fixture
def worker(free_gpu: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that keeps the free GPU busy."""
    env = os.environ | {"CUDA_VISIBLE_DEVICES": free_gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    process = subprocess.Popen([sys.executable, "-c", WORK], env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"working\n"
    yield process
    process.kill()
    process.wait()


def test_a_process_that_works_is_seen_at_work(free_gpu: str, worker: subprocess.Popen[bytes]):
    uuid = str(dry_run("--gpus", free_gpu)[free_gpu]["uuid"])
    wait_until(lambda: sampled(uuid)["utilization_percent"] != 0, "it works")
    if not is_credited(worker.pid, uuid):
        pytest.skip("this driver does not tell what each process uses")

    def share() -> int:
        processes = sampled(uuid)["processes"]
        assert isinstance(processes, list)
        return sum(p["utilization_percent"] or 0 for p in processes if p["pid"] == worker.pid)

    wait_until(lambda: share() > 50, "it is seen at work")


def test_a_job_sees_the_gpu_that_it_was_given(free_gpu: str, tmp_path: Path):
    uuid = dry_run("--gpus", free_gpu)[free_gpu]["uuid"]
    (tmp_path / "job.py").write_text(ALLOCATE)
    argv = [*PROGRAM, *MOMENT, "--gpus", free_gpu, "--", sys.executable, "job.py", str(GIB), "0"]

    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, timeout=PATIENCE_SECONDS)

    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split()[1].removeprefix("GPU-") in str(uuid)


def test_a_batch_waits_for_each_jobs_memory_and_not_for_another_window(
    free_gpu: str, tmp_path: Path
):
    (tmp_path / "job.py").write_text(ALLOCATE)
    (tmp_path / "list").write_text(f"{sys.executable} job.py {4 * GIB} 0.5\n" * 4)
    argv = [*PROGRAM, "--free-for", "5s", "--gpus", free_gpu, "--no-progress", "list"]

    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, timeout=4 * PATIENCE_SECONDS)

    assert done.returncode == 0, done.stderr
    assert b"4 jobs ok" in done.stderr
    assert b"utilisation" not in done.stderr


def test_a_stopped_batch_leaves_nothing_on_the_gpu(free_gpu: str, tmp_path: Path):
    (tmp_path / "job.py").write_text(ALLOCATE)
    argv = [*PROGRAM, *MOMENT, "--gpus", free_gpu, "--", sys.executable, "job.py", str(GIB), "600"]
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"allocated")

    process.send_signal(signal.SIGTERM)

    assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM
    wait_until(lambda: dry_run("--gpus", free_gpu)[free_gpu]["verdict"] == "FREE", "it is free")
