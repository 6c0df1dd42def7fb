"""That the benchmark of a real GPU runs, on a stub of one; nothing is said about its numbers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.benchmarks import gpu_samples
from tests.cli.harness import ROOT
from tests.stub_nvml import GIB, StubGpu, StubMachine

# Holds memory of the stub until its process ends, as one of CUDA would.
ALLOCATE = """\
import os, sys, time
from tests.stub_nvml.train import Job, Options, visible_uuids

def stamp(word):
    with open("stamps", "a") as stamps:
        print(word, time.time(), file=stamps)

options, machine = Options(), os.environ["NVML_STUB_DIR"]
options.mem = int(sys.argv[1])
stamp("a")
uuids = visible_uuids(os.environ["CUDA_VISIBLE_DEVICES"], machine)
Job(options, machine, uuids).register(os.getpid())
time.sleep(float(sys.argv[2]))
stamp("e")
"""
WORK = "import sys\nfor _ in sys.stdin: print(0.5, flush=True)\n"
TINY = "--json --rounds 2 --jobs 3 --gib 20 --strangers 1 --interval 0.1 --work-rounds 1"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The benchmark, on a machine if there is one, where nvidia-smi is a script."""
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho '0, 0 MiB, 0 %'\n")
    nvidia_smi.chmod(0o755)

    def run(args: Sequence[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
        argv = [sys.executable, "-m", "tests.benchmarks.gpu", *args]
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)} | env
        return subprocess.run(
            argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_it_measures_everything_once(
    run: Callable[..., subprocess.CompletedProcess[str]],
    stub_machine: Callable[..., StubMachine],
    tmp_path: Path,
):
    (tmp_path / "allocate.py").write_text(ALLOCATE)
    (tmp_path / "work.py").write_text(WORK)
    allocator, worker = (f"{sys.executable} {tmp_path / name}.py" for name in ("allocate", "work"))
    programs = ["--allocator", allocator, "--worker", worker]

    done = run([*TINY.split(), *programs], stub_machine(StubGpu(0), StubGpu(1)).env)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["  nvidia-smi's over ours"] > 0
    assert found["  ours over the driver's own"] > 0
    assert {
        "a job's last moment to the end of its process, median ms",
        "  from that end to the next job's start, median ms",
        "  at most, intervals",
        "  beside `smartsched sample --interval 0.1`, slower by %",
    } <= found.keys()
    assert all(isinstance(value, float | int) for value in found.values())


def test_a_gpu_that_is_in_use_is_left_alone(
    run: Callable[..., subprocess.CompletedProcess[str]],
    stub_machine: Callable[..., StubMachine],
):
    machine = stub_machine(StubGpu(0, used_bytes=40 * GIB))

    done = run([*TINY.split(), "--allocator", "false", "--worker", "false"], machine.env)

    assert done.returncode == 0, done.stderr
    assert "GPU 0 is BUSY" in done.stderr
    assert not any("job" in name or "matmul" in name for name in json.loads(done.stdout))


def test_without_a_driver_it_says_so_in_one_line(
    run: Callable[..., subprocess.CompletedProcess[str]],
):
    done = run([], {})

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "no NVIDIA driver here" in done.stderr


def test_what_is_not_installed_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", "")

    assert gpu_samples.nvidia_smi(1) == []

    assert "nvidia-smi is not installed" in capsys.readouterr().err
