"""The stub against unmodified pynvml, each test in a machine and a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.stub_nvml import (
    GIB,
    TRAIN,
    StubGpu,
    StubMachine,
    stranger_process,
)
from tests.waiting import PATIENCE_SECONDS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


PRELUDE = """
import json, os, sys, time
import pynvml as n

def say(value):
    print(json.dumps(value), flush=True)

def attempt(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except n.NVMLError as error:
        return f"error {error.value}"

def memory(handle):
    info = n.nvmlDeviceGetMemoryInfo(handle, version=n.nvmlMemory_v2)
    return [info.total, info.reserved, info.free, info.used]

def pids(processes):
    return sorted(process.pid for process in processes)

def samples(handle, since=0):
    found = attempt(n.nvmlDeviceGetSamples, handle, n.NVML_GPU_UTILIZATION_SAMPLES, since)
    return found if isinstance(found, str) else [
        [sample.timeStamp, sample.sampleValue.uiVal] for sample in found[1]
    ]

def shares(handle, since=0):
    found = attempt(n.nvmlDeviceGetProcessUtilization, handle, since)
    return found if isinstance(found, str) else [[s.pid, s.timeStamp, s.smUtil] for s in found]
"""
INIT = """
n.nvmlInit()
first = n.nvmlDeviceGetHandleByIndex(0)
"""


@pytest.fixture
def machine(tmp_path: Path, stub_libraries: Path) -> StubMachine:
    gpus = [StubGpu(0, reserved_bytes=GIB), StubGpu(1, name="Other Card")]
    return StubMachine(tmp_path / "machine", stub_libraries / "driver", gpus)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that are gone when the test ends, however it ends."""
    started: list[subprocess.Popen[str]] = []

    def start_one(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            env=os.environ | env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def pynvml_command(script: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE + script]


def ask(machine: StubMachine, script: str) -> Any:
    """Run a script against the machine and return the one value that it said."""
    done = run(machine, script)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(machine: StubMachine, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        pynvml_command(script),
        env=os.environ | machine.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def train_command(*options: object) -> list[str]:
    return [sys.executable, "-I", "-S", str(TRAIN), *map(str, options)]


def train(machine: StubMachine, visible: str | None, *options: object) -> int:
    env = {name: text for name, text in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env |= machine.env | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    done = subprocess.run(
        train_command(*options), env=env, capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    return done.returncode


def words_of(log: Path) -> list[str]:
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def test_a_machine_tells_its_driver_and_its_gpus(machine: StubMachine) -> None:
    said = ask(
        machine,
        INIT
        + """
second = n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByIndex(1)))
bus = n.nvmlDeviceGetPciInfo(second).busId
say([n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetNVMLVersion(), n.nvmlDeviceGetCount(),
     n.nvmlDeviceGetName(first), n.nvmlDeviceGetName(second), n.nvmlDeviceGetIndex(second),
     n.nvmlDeviceGetMinorNumber(second), bus,
     n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(bus)),
     n.nvmlDeviceGetPersistenceMode(first), attempt(n.nvmlDeviceGetHandleByIndex, 2),
     attempt(n.nvmlDeviceGetHandleByUUID, "GPU-none")])
""",
    )

    assert said == [
        *("580.95.05", "13.580.95.05", 2, "Stub A100", "Other Card", 1, 1, "00000000:02:00.0"),
        *(1, 1, "error 2", "error 6"),
    ]


def test_reserved_memory_counts_as_used_only_in_version_1(machine: StubMachine) -> None:
    machine.set(0, used_bytes=3 * GIB)

    said = ask(
        machine,
        INIT
        + """
old = n.nvmlDeviceGetMemoryInfo(first)
say([[old.total, old.free, old.used], memory(first),
     attempt(n.nvmlDeviceGetMemoryInfo, first, version=0x03000028)])
""",
    )

    assert said == [
        [80 * GIB, 76 * GIB, 4 * GIB],
        [80 * GIB, GIB, 76 * GIB, 3 * GIB],
        "error 25",
    ]


def test_utilisation_and_health_are_what_the_state_says(machine: StubMachine) -> None:
    machine.set(0, util_percent=37, compute_mode=3, recovery=1, remap_failure=1, clock_reasons=8)
    machine.set(1, util_percent=-1, recovery=-1, remap_failure=-1)

    said = ask(
        machine,
        INIT
        + """
for h in [first, n.nvmlDeviceGetHandleByIndex(1)]:
    rates = attempt(n.nvmlDeviceGetUtilizationRates, h)
    fields = n.nvmlDeviceGetFieldValues(h, [230, 1])
    out = [rates if isinstance(rates, str) else rates.gpu, n.nvmlDeviceGetComputeMode(h),
           [[f.nvmlReturn, f.value.uiVal] for f in fields],
           attempt(n.nvmlDeviceGetRemappedRows, h), n.nvmlDeviceGetCurrentClocksEventReasons(h),
           n.nvmlDeviceGetCurrentClocksThrottleReasons(h),
           attempt(n.nvmlDeviceGetProcessUtilization, h, 0)]
    both = both + [out] if h is not first else [out]
say(both)
""",
    )

    assert said == [
        [37, 3, [[0, 1], [3, 0]], [0, 0, 0, 1], 8, 8, "error 6"],
        ["error 3", 0, [[3, 0], [3, 0]], "error 3", 0, 0, "error 6"],
    ]


def test_a_change_is_seen_by_a_process_that_holds_a_handle(
    machine: StubMachine, start: Callable[..., subprocess.Popen[str]]
) -> None:
    watcher = start(pynvml_command(INIT + "for _ in sys.stdin: say(memory(first)[3])"), machine.env)
    assert watcher.stdin is not None
    assert watcher.stdout is not None
    seen = []

    for used in (0, 5 * GIB, GIB):
        machine.set(0, used_bytes=used)
        watcher.stdin.write("again\n")
        watcher.stdin.flush()
        seen.append(json.loads(watcher.stdout.readline()))

    assert seen == [0, 5 * GIB, GIB]


def test_history_has_six_samples_a_second_that_end_now(machine: StubMachine) -> None:
    machine.set(0, history_seconds=10, history_util_percent=42)

    before = time.time() * 1e6
    said = ask(machine, INIT + "say(samples(first))")

    times = [at for at, _ in said]
    assert 59 <= len(said) <= 61
    assert {percent for _, percent in said} == {42}
    assert times == sorted(times)
    assert before - 1e6 < times[-1] <= time.time() * 1e6


def test_only_samples_newer_than_the_last_seen_are_given(machine: StubMachine) -> None:
    machine.set(0, history=[(30, 90), (10, 50), (2.5, 7)])

    said = ask(
        machine,
        INIT
        + """
everything = samples(first)
say([[percent for _, percent in everything],
     [percent for _, percent in samples(first, everything[0][0])],
     samples(first, everything[-1][0]), everything == samples(first)])
""",
    )

    assert said == [[90, 50, 7], [50, 7], "error 6", True]


def test_a_regular_sample_keeps_its_timestamp_between_calls(machine: StubMachine) -> None:
    said = ask(
        machine,
        INIT
        + """
earlier = samples(first)
later = samples(first, earlier[-2][0])
say([earlier[-1], later[0]])
""",
    )

    assert said[0] == said[1]


@pytest.mark.parametrize(("seconds", "error"), [(0, "error 6"), (-1, "error 3")])
def test_history_may_be_empty_or_unsupported(
    machine: StubMachine, seconds: int, error: str
) -> None:
    machine.set(0, history_seconds=seconds)

    assert ask(machine, INIT + "say(samples(first))") == error


def test_processes_are_listed_by_kind_and_their_memory_is_used(machine: StubMachine) -> None:
    with stranger_process() as one, stranger_process() as two, stranger_process() as three:
        machine.add_stranger(0, GIB, one.pid)
        machine.add_stranger(0, 2 * GIB, two.pid, kind="graphics", mem_visible=False)
        machine.add_stranger(1, 4 * GIB, three.pid, kind="mps", shown_pid=77)

        said = ask(
            machine,
            INIT
            + """
second = n.nvmlDeviceGetHandleByIndex(1)
lists = [n.nvmlDeviceGetComputeRunningProcesses(first),
         n.nvmlDeviceGetGraphicsRunningProcesses(first),
         n.nvmlDeviceGetMPSComputeRunningProcesses(first),
         n.nvmlDeviceGetMPSComputeRunningProcesses(second)]
say([[[p.pid, p.usedGpuMemory, p.gpuInstanceId] for p in found] for found in lists]
    + [memory(first)[3], memory(second)[3]])
""",
        )

    assert said == [
        [[one.pid, GIB, 0xFFFFFFFF]],
        [[two.pid, None, 0xFFFFFFFF]],
        [],
        [[77, 4 * GIB, 0xFFFFFFFF]],
        3 * GIB,
        4 * GIB,
    ]


def test_a_process_is_credited_with_its_share_of_every_sample(machine: StubMachine) -> None:
    with stranger_process() as one, stranger_process() as two, stranger_process() as three:
        machine.add_stranger(0, GIB, one.pid, util_percent=70)
        machine.add_stranger(0, GIB, two.pid, util_percent=0, shown_pid=77)
        machine.add_stranger(0, GIB, three.pid)

        before = time.time() * 1e6
        first, again = ask(
            machine,
            INIT + "found = shares(first)\nsay([found, shares(first, int(time.time() * 1e6))])",
        )

    assert sorted((pid, percent) for pid, _, percent in first) == sorted([(one.pid, 70), (77, 0)])
    assert all(before - 1e6 < at <= time.time() * 1e6 for _, at, _ in first)
    assert again == "error 6"


def test_samples_of_processes_may_be_whatever_a_test_wants(machine: StubMachine) -> None:
    machine.set(0, process_samples=[(4, 10.5, 37100), (5, 9.0, 1)])

    said = ask(
        machine, INIT + "say([shares(first), shares(first, 9000000), shares(first, 10500000)])"
    )

    assert said == [[[4, 10500000, 37100], [5, 9000000, 1]], [[4, 10500000, 37100]], "error 6"]


@pytest.mark.parametrize(("answer", "error"), [(6, "error 6"), (0, "error 0"), (-1, "error 3")])
def test_without_a_sample_of_a_process_the_driver_says_so(
    machine: StubMachine, answer: int, error: str
) -> None:
    machine.set(0, no_process_samples=answer)

    assert ask(machine, INIT + "say(shares(first))") == error


def test_a_buffer_that_is_too_small_is_told_the_needed_size(machine: StubMachine) -> None:
    with stranger_process() as one, stranger_process() as two:
        machine.add_stranger(0, GIB, one.pid)
        machine.add_stranger(0, GIB, two.pid)

        said = ask(
            machine,
            INIT
            + """
from ctypes import byref, c_uint
call = n._nvmlGetFunctionPointer("nvmlDeviceGetComputeRunningProcesses_v3")
out = []
for room in (0, 1, 2):
    count = c_uint(room)
    array = (n.c_nvmlProcessInfo_v3_t * room)() if room else None
    out.append([call(first, byref(count), array), count.value])
say(out)
""",
        )

    assert said == [[7, 2], [7, 2], [0, 2]]


def test_a_dead_process_and_a_zombie_hold_nothing(machine: StubMachine) -> None:
    script = INIT + "say([pids(n.nvmlDeviceGetComputeRunningProcesses(first)), memory(first)[3]])"

    with stranger_process() as stranger:
        machine.add_stranger(0, GIB, stranger.pid)
        alive = ask(machine, script)
        stranger.kill()
        os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
        zombie = ask(machine, script)
    dead = ask(machine, script)

    assert (alive, zombie, dead) == ([[stranger.pid], GIB], [[], 0], [[], 0])


def test_a_recycled_pid_does_not_inherit_the_memory(machine: StubMachine) -> None:
    line = f"pid={os.getpid()} gpu={machine.gpu(0).uuid} mem={GIB} start=1\n"
    (machine.directory / "procs" / "earlier").write_text(line)

    assert ask(machine, INIT + "say(memory(first)[3])") == 0


def test_a_removed_stranger_is_gone_while_it_lives(machine: StubMachine) -> None:
    with stranger_process() as stranger:
        machine.add_stranger(0, GIB, stranger.pid)
        machine.add_stranger(1, GIB, stranger.pid)
        machine.remove_stranger(stranger.pid)

        assert ask(machine, INIT + "say(memory(first)[3])") == 0
        assert machine.registered_pids() == frozenset()


def test_a_lost_gpu_gives_a_handle_and_errors_and_leaves_the_rest_alone(
    machine: StubMachine,
) -> None:
    machine.set(0, error=15)
    machine.add_gpu(StubGpu(2, handle_error=16))

    said = ask(
        machine,
        INIT
        + """
calls = [n.nvmlDeviceGetUUID, n.nvmlDeviceGetMemoryInfo, n.nvmlDeviceGetUtilizationRates,
         n.nvmlDeviceGetComputeRunningProcesses, n.nvmlDeviceGetMigMode]
say([[attempt(call, first) for call in calls], attempt(n.nvmlDeviceGetHandleByIndex, 2),
     n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByIndex(1))])
""",
    )

    assert said == [["error 15"] * 5, "error 16", 1]


def test_a_gpu_off_the_bus_is_lost_to_its_handle(machine: StubMachine) -> None:
    script = (
        INIT + f"os.rename({str(machine.directory / 'later')!r}, {str(machine.state_file)!r})\n"
    )
    script += "say([attempt(n.nvmlDeviceGetUUID, first), n.nvmlDeviceGetCount()])"
    before = machine.state_file.read_text()
    machine.remove_gpu(0)
    machine.state_file.rename(machine.directory / "later")
    machine.state_file.write_text(before)

    assert ask(machine, script) == ["error 15", 1]


def test_mig_instances_sit_in_slots_with_holes(machine: StubMachine) -> None:
    near = machine.add_mig(0, 1, total_bytes=10 * GIB, used_bytes=GIB, gpu_instance=9)
    far = machine.add_mig(0, 4, total_bytes=20 * GIB, compute_instance=2, slices=2)
    with stranger_process() as stranger:
        machine.add_stranger(far.uuid, 3 * GIB, stranger.pid)

        said = ask(
            machine,
            INIT
            + """
slots = [attempt(n.nvmlDeviceGetMigDeviceHandleByIndex, first, slot)
         for slot in range(n.nvmlDeviceGetMaxMigDeviceCount(first))]
instances = [slot for slot in slots if not isinstance(slot, str)]
say([n.nvmlDeviceGetMigMode(first), [slot if isinstance(slot, str) else "here" for slot in slots],
     [[n.nvmlDeviceGetUUID(i), n.nvmlDeviceIsMigDeviceHandle(i).value,
       n.nvmlDeviceGetGpuInstanceId(i), n.nvmlDeviceGetComputeInstanceId(i), memory(i),
       n.nvmlDeviceGetAttributes(i).memorySizeMB, attempt(n.nvmlDeviceGetUtilizationRates, i),
       n.nvmlDeviceGetIndex(n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(i)),
       [[p.pid, p.gpuInstanceId] for p in n.nvmlDeviceGetComputeRunningProcesses(i)]]
      for i in instances],
     attempt(n.nvmlDeviceGetUtilizationRates, first), samples(first), memory(first)[3],
     n.nvmlDeviceIsMigDeviceHandle(first).value])
""",
        )

    hole = "error 6"
    assert said == [
        [1, 1],
        [hole, "here", hole, hole, "here", hole, hole],
        [
            [near.uuid, 1, 9, 0, [10 * GIB, 0, 9 * GIB, GIB], 10240, "error 3", 0, []],
            [
                *(far.uuid, 1, 5, 2, [20 * GIB, 0, 17 * GIB, 3 * GIB], 20480, "error 3", 0),
                [[stranger.pid, 5]],
            ],
        ],
        *("error 3", "error 3", 4 * GIB, 0),
    ]


def test_a_destroyed_instance_leaves_a_stale_handle(
    machine: StubMachine, start: Callable[..., subprocess.Popen[str]]
) -> None:
    instance = machine.add_mig(0, 0)
    script = INIT + "i = n.nvmlDeviceGetMigDeviceHandleByIndex(first, 0)\nsay('ready')\n"
    script += "sys.stdin.readline()\nsay(attempt(n.nvmlDeviceGetUUID, i))"
    watcher = start(pynvml_command(script), machine.env)
    assert watcher.stdout is not None
    assert json.loads(watcher.stdout.readline()) == "ready"

    machine.remove_mig(instance.uuid)
    said, _ = watcher.communicate("go on\n", timeout=PATIENCE_SECONDS)

    assert json.loads(said) == "error 2"


def test_a_gpu_without_mig_says_so(machine: StubMachine) -> None:
    machine.set(0, mig=-1)

    said = ask(
        machine,
        INIT
        + """
second = n.nvmlDeviceGetHandleByIndex(1)
say([attempt(n.nvmlDeviceGetMigMode, first), n.nvmlDeviceGetMigMode(second),
     n.nvmlDeviceGetMaxMigDeviceCount(second), attempt(n.nvmlDeviceGetGpuInstanceId, second)])
""",
    )

    assert said == ["error 3", [0, 0], 0, "error 3"]


@pytest.mark.parametrize("code", [9, 12, 18, 999])
def test_initialisation_fails_as_told(machine: StubMachine, code: int) -> None:
    machine.init_error(code)

    assert ask(machine, "say(attempt(n.nvmlInit))") == f"error {code}"


def test_without_a_state_there_is_no_driver(machine: StubMachine) -> None:
    machine.state_file.unlink()

    assert ask(machine, "say(attempt(n.nvmlInit))") == "error 9"
    assert ask(machine, "del os.environ['NVML_STUB_DIR']\nsay(attempt(n.nvmlInit))") == "error 9"


def test_nothing_works_before_initialisation_after_shutdown_or_in_a_fork(
    machine: StubMachine,
) -> None:
    said = ask(
        machine,
        """
n._LoadNvmlLibrary()
out = [attempt(n.nvmlDeviceGetCount)]
n.nvmlInit()
child = os.fork()
if child == 0:
    os._exit(0 if attempt(n.nvmlDeviceGetCount) == "error 1" else 1)
out.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
out.append(n.nvmlDeviceGetCount())
n.nvmlShutdown()
out.append(attempt(n.nvmlDeviceGetCount))
say(out)
""",
    )

    assert said == ["error 1", 0, 2, "error 1"]


def test_the_count_may_fail_alone(machine: StubMachine) -> None:
    machine.count_error(999)

    said = ask(machine, INIT + "say([attempt(n.nvmlDeviceGetCount), n.nvmlDeviceGetIndex(first)])")

    assert said == ["error 999", 0]


def test_a_failing_call_fails_on_its_gpu_only(machine: StubMachine) -> None:
    machine.fail("nvmlDeviceGetMemoryInfo", 17, gpu=1)
    machine.fail("nvmlDeviceGetComputeMode", 4)
    machine.fail("nvmlDeviceGetName", 3, gpu=machine.gpu(0).uuid)
    script = (
        INIT
        + """
second = n.nvmlDeviceGetHandleByIndex(1)
calls = [memory, n.nvmlDeviceGetMemoryInfo, n.nvmlDeviceGetComputeMode, n.nvmlDeviceGetName]
found = [attempt(call, gpu) for gpu in (first, second) for call in calls]
say([answer if isinstance(answer, str) else "ok" for answer in found])
"""
    )

    failing = ask(machine, script)
    machine.clear_faults()

    assert failing == [
        *("ok", "ok", "error 4", "error 3"),
        *("error 17", "error 17", "error 4", "Other Card"),
    ]
    assert not [answer for answer in ask(machine, script) if answer.startswith("error")]


@pytest.mark.parametrize("call", ["nvmlDeviceGetMemoryInfo", "nvmlInitWithFlags"])
def test_a_hang_ends_when_its_line_is_removed(
    machine: StubMachine, start: Callable[..., subprocess.Popen[str]], call: str
) -> None:
    machine.hang(call, 3600)
    script = "say('start')\n" + INIT + "memory(first)\nsay('end')"

    watcher = start(pynvml_command(script), machine.env)
    assert watcher.stdout is not None
    assert json.loads(watcher.stdout.readline()) == "start"
    with pytest.raises(subprocess.TimeoutExpired):
        watcher.wait(timeout=0.3)
    machine.clear_faults()

    assert json.loads(watcher.stdout.readline()) == "end"


def test_a_hang_ends_by_itself_and_answers(machine: StubMachine) -> None:
    machine.hang("nvmlDeviceGetUtilizationRates", 0.2, gpu=0)

    said = ask(
        machine,
        INIT
        + """
took = []
for index in (0, 1):
    since = time.monotonic()
    n.nvmlDeviceGetUtilizationRates(n.nvmlDeviceGetHandleByIndex(index))
    took.append(time.monotonic() - since)
say(took)
""",
    )

    assert said[0] >= 0.2
    assert said[1] < said[0]


def test_an_old_driver_lacks_the_new_calls(tmp_path: Path, stub_libraries: Path) -> None:
    machine = StubMachine(tmp_path / "machine", stub_libraries / "old-driver", [StubGpu(0)])

    said = ask(
        machine,
        INIT
        + """
try:
    mismatch = n.nvmlDeviceGetComputeRunningProcesses(first)
except Exception as error:
    mismatch = [type(error).__name__, isinstance(error, n.NVMLError)]
say([mismatch, attempt(memory, first), n.nvmlDeviceGetMemoryInfo(first).used,
     n.nvmlDeviceGetComputeRunningProcesses_v2(first)])
""",
    )

    assert said == [["NVMLLibraryMismatchError", False], "error 13", 0, []]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("gqu index=0", "unknown word: gqu"),
        ("gpu index=5 uuid=GPU-5 utli=3", "unknown word: utli"),
        ("gpu index=5 uuid=GPU-5 util=many", "not an integer: util=many"),
        ("gpu index=5", "needs index and uuid"),
        ("mig parent=0 slot=7 uuid=MIG-7", "a slot from 0 to 6"),
        ("fail nvmlDeviceGetMemroyInfo gpu=0 code=3", "unknown call: nvmlDeviceGetMemroyInfo"),
        ("hang nvmlDeviceGetName seconds", "expected key=value, found: seconds"),
    ],
)
def test_a_misspelt_state_ends_the_process(machine: StubMachine, line: str, complaint: str) -> None:
    with machine.state_file.open("a") as state:
        state.write(line + "\n")

    done = run(machine, "n.nvmlInit()")

    assert done.returncode == -signal.SIGABRT
    assert complaint in done.stderr


def test_a_misspelt_process_ends_the_process(machine: StubMachine) -> None:
    with stranger_process() as stranger:
        machine.add_stranger(0, GIB, stranger.pid, kind="computer")

        done = run(machine, INIT + "memory(first)")

    assert done.returncode == -signal.SIGABRT
    assert "unknown word: kind=computer" in done.stderr


def test_comments_and_blank_lines_are_free(machine: StubMachine) -> None:
    with machine.state_file.open("a") as state:
        state.write("\n  # a remark\ndriver 1.2   # and another\n")

    assert ask(machine, INIT + "say(n.nvmlSystemGetDriverVersion())") == "1.2"


def test_the_machine_is_never_seen_half_written(machine: StubMachine) -> None:
    script = INIT + "say(sorted({n.nvmlDeviceGetCount() for _ in range(2000)}))"
    process = subprocess.Popen(
        pynvml_command(script), env=os.environ | machine.env, stdout=subprocess.PIPE, text=True
    )

    while process.poll() is None:
        machine.set(0, used_bytes=machine.gpu(0).used_bytes + 1)

    assert process.returncode == 0
    assert json.loads(process.communicate()[0]) == [2]


def test_a_training_job_is_seen_while_it_runs_and_gone_after(
    machine: StubMachine, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    options = ("--mem", 2 * GIB, "--until", gate, "--id", "j7", "--log", log, "--exit", 3)
    script = INIT + "say([pids(n.nvmlDeviceGetComputeRunningProcesses(first)), memory(first)[3]])"

    job = start(train_command(*options, "--lr=0.1"), machine.env | {"CUDA_VISIBLE_DEVICES": "0"})
    wait_until(lambda: words_of(log) == ["start"])
    during = ask(machine, script)
    gate.touch()

    assert job.wait(timeout=PATIENCE_SECONDS) == 3
    assert during == [[job.pid], 2 * GIB]
    assert ask(machine, script) == [[], 0]
    assert machine.registered_pids() == frozenset()
    ends = [
        re.fullmatch(r"(start|end) j7 (\S+) (\d+) [\d.]+", x)
        for x in log.read_text().split("\n")[:2]
    ]
    assert [match and match.groups() for match in ends] == [
        ("start", machine.gpu(0).uuid, str(job.pid)),
        ("end", machine.gpu(0).uuid, str(job.pid)),
    ]


def test_a_training_job_may_be_credited_with_work(
    machine: StubMachine, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    options = ("--util", 42, "--until", gate, "--log", log)

    job = start(train_command(*options), machine.env | {"CUDA_VISIBLE_DEVICES": "0"})
    wait_until(lambda: words_of(log) == ["start"])
    [[pid, _, percent]] = ask(machine, INIT + "say(shares(first))")
    gate.touch()

    assert (pid, percent) == (job.pid, 42)
    assert job.wait(timeout=PATIENCE_SECONDS) == 0


def test_killing_a_training_job_frees_its_memory(
    machine: StubMachine, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    log = tmp_path / "log"
    script = INIT + "say(memory(first)[3])"

    job = start(
        train_command("--mem", GIB, "--seconds", 600, "--ignore-term", "--log", log),
        machine.env | {"CUDA_VISIBLE_DEVICES": "0"},
    )
    wait_until(lambda: words_of(log) == ["start"])
    job.terminate()
    wait_until(lambda: words_of(log) == ["start", "term"])
    before = ask(machine, script)
    job.kill()
    job.wait(timeout=PATIENCE_SECONDS)

    assert before == GIB
    assert ask(machine, script) == 0


def test_a_training_job_may_end_in_order_when_asked_to(
    machine: StubMachine, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    log = tmp_path / "log"
    job = start(
        train_command("--seconds", 600, "--term-exit", 75, "--log", log),
        machine.env | {"CUDA_VISIBLE_DEVICES": "0"},
    )
    wait_until(lambda: words_of(log) == ["start"])

    job.terminate()

    assert job.wait(timeout=PATIENCE_SECONDS) == 75
    assert words_of(log) == ["start", "term"]
    assert machine.registered_pids() == frozenset()


def test_lingering_memory_outlives_the_job(machine: StubMachine) -> None:
    code = train(machine, "0", "--mem", GIB, "--linger-mem", 600, "--linger-detached")
    (child,) = machine.registered_pids()
    try:
        held = ask(machine, INIT + "say(memory(first)[3])")
    finally:
        os.kill(child, signal.SIGKILL)

    assert (code, held) == (0, GIB)


def test_a_training_job_without_its_gpus_refuses(machine: StubMachine) -> None:
    instance = machine.add_mig(1, 2)

    assert train(machine, None) == 97
    assert train(machine, "5") == 96
    assert train(machine, "GPU-00000000") == 96, "two GPUs begin so"
    assert train(machine, "") == 0, "a job on no GPU"
    assert train(machine, f"1,{machine.gpu(0).uuid[:-1]}0") == 0
    assert train(machine, instance.uuid) == 0


@pytest.mark.parametrize("by", ["state", "process"])
def test_a_training_job_notices_that_its_gpu_is_taken(
    machine: StubMachine, tmp_path: Path, by: str
) -> None:
    log = tmp_path / "log"
    options = ("--mem", GIB, "--assert-max-used", GIB - 1, "--log", log, "--id", "late")

    with stranger_process() as stranger:
        free = train(machine, "0", *options)
        if by == "state":
            machine.set(0, used_bytes=GIB)
        else:
            machine.add_stranger(0, GIB, stranger.pid)
        taken = train(machine, "0", *options)

    assert (free, taken) == (0, 98)
    assert words_of(log) == ["start", "end", "violation"]
    assert log.read_text().split()[-1] == str(GIB)
    if by == "process":
        assert train(machine, "0", *options) == 0, "the stranger is dead"
