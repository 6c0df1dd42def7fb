"""What the driver says, through unmodified pynvml and a stub of the driver's library."""

import getpass
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.edges.sampling import COMMAND, PATIENCE_SECONDS, gpus_of, once, streaming
from tests.stub_nvml import GIB, StubGpu, StubMachine, stranger_process
from tests.waiting import wait_until

MakeMachine = Callable[..., StubMachine]
MEMORY = ("memory_total_bytes", "memory_used_bytes", "memory_free_bytes")


@pytest.fixture
def machine(stub_machine: MakeMachine) -> StubMachine:
    return stub_machine(StubGpu(0), StubGpu(1, name="Other Card"))


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    with stranger_process() as process:
        yield process


def memory_of(gpu: dict[str, Any]) -> list[int]:
    return [gpu[name] for name in MEMORY]


def processes_of(gpu: dict[str, Any]) -> dict[int, tuple[str, int | None]]:
    return {p["pid"]: (p["kind"], p["memory_bytes"]) for p in gpu["processes"]}


def shares_of(gpu: dict[str, Any]) -> dict[int, int | None]:
    return {p["pid"]: p["utilization_percent"] for p in gpu["processes"]}


def list_as_well(machine: StubMachine, pid: int, kind: str, *, mem_visible: bool = True) -> None:
    """Let the driver name a process of the first GPU in another list, too."""
    line = f"pid={pid} gpu={uuid(machine, 0)} mem={GIB} kind={kind} mem_visible={mem_visible:d}\n"
    (machine.directory / "procs" / f"more-{pid}").write_text(line)


def command_of(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline())


def uuid(machine: StubMachine, index: int) -> str:
    return machine.gpu(index).uuid


def test_every_gpu_is_named_by_index_uuid_and_name(machine: StubMachine):
    gpus = gpus_of(machine.env)

    assert [(gpu["index"], gpu["slot"], gpu["uuid"], gpu["name"]) for gpu in gpus] == [
        (0, None, uuid(machine, 0), "Stub A100"),
        (1, None, uuid(machine, 1), "Other Card"),
    ]
    assert [gpu["ailment"] for gpu in gpus] == [None, None]
    assert [gpu["compute_mode"] for gpu in gpus] == ["default", "default"]
    assert [gpu["processes"] for gpu in gpus] == [[], []]


def test_memory_that_the_driver_keeps_for_itself_is_not_used(machine: StubMachine):
    machine.set(0, used_bytes=2 * GIB, reserved_bytes=GIB)

    gpu = gpus_of(machine.env)[0]

    assert memory_of(gpu) == [80 * GIB, 2 * GIB, 77 * GIB]


def test_an_old_driver_counts_it_as_used_and_lists_processes(
    tmp_path: Path, old_stub_library: Path, stranger: subprocess.Popen[bytes]
):
    gpu = StubGpu(0, used_bytes=2 * GIB, reserved_bytes=GIB)
    machine = StubMachine(tmp_path / "machine", old_stub_library, [gpu])
    machine.add_stranger(0, 4 * GIB, stranger.pid)

    [seen] = gpus_of(machine.env)

    assert memory_of(seen) == [80 * GIB, 7 * GIB, 73 * GIB]
    assert processes_of(seen) == {stranger.pid: ("compute", 4 * GIB)}


@pytest.mark.parametrize("total", [80 * GIB, 0])
def test_where_gpu_and_system_share_memory_the_system_s_counts(
    machine: StubMachine, stranger: subprocess.Popen[bytes], total: int
):
    machine.set(0, total_bytes=total)
    machine.add_stranger(0, 3 * GIB, stranger.pid)
    if total:
        machine.fail("nvmlDeviceGetMemoryInfo", 3, gpu=0)

    gpu = gpus_of(machine.env)[0]

    assert gpu["memory_total_bytes"] == psutil.virtual_memory().total
    assert gpu["memory_used_bytes"] == 3 * GIB
    assert 0 < gpu["memory_free_bytes"] <= psutil.virtual_memory().total


def test_utilisation_and_its_history_are_read(machine: StubMachine):
    machine.set(0, util_percent=37, history=[(0.1, 5), (1.1, 6), (3.0, 90)])

    gpu = gpus_of(machine.env)[0]

    assert gpu["utilization_percent"] == 37
    history = sorted(gpu["utilization_history"])
    assert [percent for _, percent in history] == [5, 6, 90]
    ages = [age for age, _ in history]
    assert ages[1] - ages[0] == pytest.approx(1.0, abs=0.01)
    assert ages[2] - ages[0] == pytest.approx(2.9, abs=0.01)


def test_a_history_that_ended_long_ago_is_told_as_old(machine: StubMachine):
    machine.set(0, history=[(0.0, 90)], history_until=time.time() - 60)

    assert all(age >= 59 for age, _ in gpus_of(machine.env)[0]["utilization_history"])


def test_of_the_history_only_what_is_new_is_told(machine: StubMachine):
    machine.set(0, history=[(0.1, 11), (0.4, 12)])
    with streaming(machine.env) as stream:
        wait_until(stream.whole)
        assert {p for _, p in stream.whole()[0][0]["utilization_history"]} == {11, 12}
        assert stream.next()[0]["utilization_history"] == []

        machine.set(0, history=[(0.0, 13)])
        wait_until(lambda: len(stream.whole()[-1][0]["utilization_history"]) == 1)

        told = [p for gpus in stream.whole() for _, p in gpus[0]["utilization_history"]]
        assert told.count(13) == 1
        assert told.count(11) == 1


def test_without_history_or_utilisation_null_is_said(machine: StubMachine):
    machine.set(0, util_percent=-1, history_seconds=-1)
    machine.set(1, history_seconds=0)

    first, second = gpus_of(machine.env)

    assert (first["utilization_percent"], first["utilization_history"]) == (None, None)
    assert second["utilization_history"] == []


def test_processes_of_all_kinds_are_listed_with_user_and_command(machine: StubMachine):
    with stranger_process() as one, stranger_process() as two, stranger_process() as three:
        machine.add_stranger(0, 1 * GIB, one.pid, kind="compute")
        machine.add_stranger(0, 2 * GIB, two.pid, kind="graphics")
        machine.add_stranger(0, 3 * GIB, three.pid, kind="mps")
        machine.add_stranger(1, 4 * GIB, three.pid, mem_visible=False)

        first, second = gpus_of(machine.env)

    assert processes_of(first) == {
        one.pid: ("compute", 1 * GIB),
        two.pid: ("graphics", 2 * GIB),
        three.pid: ("compute", 3 * GIB),
    }
    assert processes_of(second) == {three.pid: ("compute", None)}
    user = pwd.getpwuid(os.getuid()).pw_name
    for process in first["processes"]:
        assert (process["user"], process["command"]) == (user, "sleep 600")
        assert process["session"] == process["pid"]
        assert os.getpid() in process["ancestors"]
        assert process["run_tag"] is None


def test_a_process_of_two_kinds_is_listed_once_as_compute(
    machine: StubMachine, stranger: subprocess.Popen[bytes]
):
    machine.add_stranger(0, GIB, stranger.pid, kind="graphics")
    list_as_well(machine, stranger.pid, "compute")

    assert processes_of(gpus_of(machine.env)[0]) == {stranger.pid: ("compute", GIB)}


@pytest.mark.parametrize(
    ("kind", "other"), [("graphics", "compute"), ("compute", "graphics"), ("compute", "mps")]
)
def test_memory_that_one_list_tells_and_another_does_not_is_known(
    machine: StubMachine, stranger: subprocess.Popen[bytes], kind: str, other: str
):
    machine.add_stranger(0, GIB, stranger.pid, kind=kind)
    list_as_well(machine, stranger.pid, other, mem_visible=False)

    assert processes_of(gpus_of(machine.env)[0]) == {stranger.pid: ("compute", GIB)}


@pytest.mark.parametrize("kind", ["compute", "graphics", "mps"])
@pytest.mark.parametrize("old_driver", [False, True])
def test_memory_that_no_list_tells_is_unknown(
    tmp_path: Path,
    stub_libraries: Path,
    stranger: subprocess.Popen[bytes],
    kind: str,
    *,
    old_driver: bool,
):
    library = stub_libraries / ("old-driver" if old_driver else "driver")
    machine = StubMachine(tmp_path / "machine", library, [StubGpu(0)])
    machine.add_stranger(0, GIB, stranger.pid, kind=kind, mem_visible=False)
    list_as_well(machine, stranger.pid, "compute", mem_visible=False)

    [process] = gpus_of(machine.env)[0]["processes"]

    assert process["memory_bytes"] is None


@pytest.mark.parametrize("library", ["driver", "old-driver"])
def test_what_the_driver_credits_to_a_process_is_its_utilisation(
    tmp_path: Path, stub_libraries: Path, library: str
):
    gpus = [StubGpu(0, util_percent=90), StubGpu(1, util_percent=90)]
    machine = StubMachine(tmp_path / "machine", stub_libraries / library, gpus)
    with stranger_process() as one, stranger_process() as two:
        machine.add_stranger(0, GIB, one.pid, util_percent=63)
        machine.add_stranger(0, GIB, two.pid, util_percent=250)
        machine.add_stranger(1, GIB, two.pid, util_percent=7, kind="graphics")

        first, second = gpus_of(machine.env)

    assert shares_of(first) == {one.pid: 63, two.pid: 100}
    assert shares_of(second) == {two.pid: 7}


@pytest.mark.parametrize("answer", [6, 0])
def test_where_nobody_is_credited_only_a_gpu_at_rest_tells_that_nobody_works(
    machine: StubMachine, stranger: subprocess.Popen[bytes], answer: int
):
    machine.set(0, no_process_samples=answer)
    machine.set(1, no_process_samples=answer, util_percent=90)
    for index in (0, 1):
        machine.add_stranger(index, GIB, stranger.pid)

    resting, working = gpus_of(machine.env)

    assert shares_of(resting) == {stranger.pid: 0}
    assert shares_of(working) == {stranger.pid: None}


@pytest.mark.parametrize(
    "changes", [{"util_percent": -1}, {"history": [(0.5, 60)]}], ids=["unknown", "just now"]
)
def test_a_gpu_that_worked_just_now_or_does_not_say_is_not_at_rest(
    machine: StubMachine, stranger: subprocess.Popen[bytes], changes: dict[str, Any]
):
    machine.set(0, **changes)
    machine.add_stranger(0, GIB, stranger.pid)

    assert shares_of(gpus_of(machine.env)[0]) == {stranger.pid: None}


def test_samples_of_nobody_and_of_long_ago_are_passed_over(
    machine: StubMachine, stranger: subprocess.Popen[bytes]
):
    now = time.time()
    machine.set(
        0,
        util_percent=90,
        process_samples=[
            (stranger.pid + 1, now, 70),
            (0, 0, 0),
            (stranger.pid, 158_819_300.7, 38305),
            (stranger.pid, now + 86400, 38305),
        ],
    )
    machine.add_stranger(0, GIB, stranger.pid)

    assert shares_of(gpus_of(machine.env)[0]) == {stranger.pid: None}


@pytest.mark.parametrize("code", [3, 13])
def test_a_driver_that_tells_of_no_utilisation_by_process_is_not_asked_again(
    machine: StubMachine, stranger: subprocess.Popen[bytes], code: int
):
    machine.fail("nvmlDeviceGetProcessUtilization", code, gpu=0)
    for index in (0, 1):
        machine.add_stranger(index, GIB, stranger.pid, util_percent=50)
    with streaming(machine.env) as stream:
        wait_until(stream.whole)
        machine.clear_faults()

        first, second = stream.next()

    assert shares_of(first) == {stranger.pid: None}
    assert shares_of(second) == {stranger.pid: 50}


def test_instances_of_mig_are_not_asked_for_utilisation_by_process(
    machine: StubMachine, stranger: subprocess.Popen[bytes]
):
    instance = machine.add_mig(0, 0)
    machine.add_stranger(instance.uuid, GIB, stranger.pid, util_percent=50)
    machine.fail("nvmlDeviceGetProcessUtilization", 15)

    assert shares_of(gpus_of(machine.env)[0]) == {stranger.pid: None}


@pytest.mark.parametrize("code", [999, 4, 2, 7])
def test_utilisation_by_process_is_no_reason_to_give_up_on_a_gpu(
    machine: StubMachine, stranger: subprocess.Popen[bytes], code: int
):
    machine.set(0, util_percent=90)
    machine.add_stranger(0, GIB, stranger.pid, util_percent=50)
    machine.fail("nvmlDeviceGetProcessUtilization", code, gpu=0)
    with streaming(machine.env) as stream:
        wait_until(stream.whole)
        assert shares_of(stream.whole()[0][0]) == {stranger.pid: None}
        machine.clear_faults()

        wait_until(lambda: shares_of(stream.whole()[-1][0]) == {stranger.pid: 50})


@pytest.mark.parametrize("code", [15, 16])
def test_a_gpu_lost_when_asked_for_its_processes_work_is_unreadable(
    machine: StubMachine, stranger: subprocess.Popen[bytes], code: int
):
    machine.add_stranger(0, GIB, stranger.pid)
    machine.fail("nvmlDeviceGetProcessUtilization", code)

    lost, without_processes = gpus_of(machine.env)

    assert "unreadable" in lost
    assert "unreadable" not in without_processes


def test_a_process_keeps_its_utilisation_between_samples_of_the_driver(
    machine: StubMachine, stranger: subprocess.Popen[bytes]
):
    machine.set(0, util_percent=90)
    machine.add_stranger(0, GIB, stranger.pid, util_percent=50)
    with streaming(machine.env, "50ms") as stream:  # the driver has six a second
        wait_until(lambda: len(stream.whole()) >= 20)

    assert {share for gpu, _ in stream.whole() for share in shares_of(gpu).values()} == {50}


def test_a_process_of_a_run_carries_its_tag(machine: StubMachine):
    tag = {"SMARTSCHED_RUN_ID": "r", "SMARTSCHED_JOB": "7", "SMARTSCHED_ATTEMPT": "2"}
    with subprocess.Popen(["sleep", "600"], env=os.environ | tag) as job:
        machine.add_stranger(0, GIB, job.pid)
        wait_until(lambda: command_of(job.pid) == "sleep 600")
        [process] = gpus_of(machine.env)[0]["processes"]
        job.kill()

    assert process["run_tag"] == "r/7/2"


def test_a_pid_of_nobody_has_no_user(machine: StubMachine, stranger: subprocess.Popen[bytes]):
    nobody = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    machine.add_stranger(0, GIB, stranger.pid, shown_pid=nobody)

    [process] = gpus_of(machine.env)[0]["processes"]

    assert process["pid"] == nobody
    assert process["memory_bytes"] == GIB
    assert (process["user"], process["command"], process["session"]) == (None, None, None)
    assert process["ancestors"] == []


def test_a_process_that_ended_keeps_its_name_while_the_driver_lists_it(
    machine: StubMachine, stranger: subprocess.Popen[bytes]
):
    ended = subprocess.Popen(["sleep", "601"], start_new_session=True)
    machine.add_stranger(0, GIB, stranger.pid, shown_pid=ended.pid)
    wait_until(lambda: command_of(ended.pid) == "sleep 601")
    with streaming(machine.env) as stream:
        wait_until(stream.whole)
        ended.kill()
        ended.wait()

        [process] = stream.next()[0]["processes"]
        assert process["command"] == "sleep 601"
        assert process["user"] == getpass.getuser()

        machine.remove_stranger(stranger.pid)
        wait_until(lambda: stream.whole()[-1][0]["processes"] == [])
        machine.add_stranger(0, GIB, stranger.pid, shown_pid=ended.pid)
        wait_until(lambda: stream.whole()[-1][0]["processes"])
        assert stream.whole()[-1][0]["processes"][0]["user"] is None


def test_odd_command_lines_of_strangers_are_no_trouble(machine: StubMachine):
    code = "import sys; sys.stdin.read()"
    command = [os.fsencode(sys.executable), b"-c", code.encode(), b"\xff\n\x1b[31m", b"x" * 9999]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as odd:
        machine.add_stranger(0, GIB, odd.pid)
        wait_until(lambda: len(command_of(odd.pid)) > 9999)
        [process] = gpus_of(machine.env)[0]["processes"]
        odd.kill()

    assert len(process["command"]) <= 300


@pytest.mark.parametrize("changes", [{"error": 15}, {"handle_error": 15}, {"error": 16}])
def test_a_lost_gpu_is_unreadable_and_the_others_are_not(
    machine: StubMachine, changes: dict[str, int]
):
    machine.set(0, **changes)  # type: ignore[arg-type]

    lost, fine = gpus_of(machine.env)

    assert lost["index"] == 0
    assert "the driver says" in lost["unreadable"]
    assert memory_of(fine) == [80 * GIB, 0, 80 * GIB]


@pytest.mark.parametrize("changes", [{"error": 15}, {"handle_error": 999}])
def test_a_gpu_that_gets_lost_keeps_its_uuid_and_may_come_back(
    machine: StubMachine, changes: dict[str, int]
):
    known = uuid(machine, 0)
    with streaming(machine.env) as stream:
        wait_until(stream.whole)

        machine.set(0, **changes)  # type: ignore[arg-type]
        wait_until(lambda: "unreadable" in stream.whole()[-1][0])
        assert [gpu["uuid"] for gpu in stream.whole()[-1]] == [known, uuid(machine, 1)]
        stream.ask(known)
        wait_until(stream.answers)
        assert [gpu["uuid"] for gpu in stream.answers()[0]] == [known]

        machine.set(0, error=0, handle_error=0)
        wait_until(lambda: "unreadable" not in stream.whole()[-1][0])


@pytest.mark.parametrize(
    "call",
    [
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetComputeMode",
    ],
)
@pytest.mark.parametrize("code", [999, 4, 17])
def test_any_question_that_fails_makes_that_gpu_alone_unreadable(
    machine: StubMachine, call: str, code: int
):
    machine.fail(call, code, gpu=0)

    broken, fine = gpus_of(machine.env)

    assert "unreadable" in broken
    assert broken["uuid"] == uuid(machine, 0)
    assert "unreadable" not in fine


@pytest.mark.parametrize(
    "call",
    [
        "nvmlDeviceGetName",
        "nvmlDeviceGetSamples",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetRemappedRows",
    ],
)
@pytest.mark.parametrize("code", [999, 4, 2])
def test_what_is_only_good_to_know_is_no_reason_to_give_up_on_a_gpu(
    machine: StubMachine, call: str, code: int
):
    machine.fail(call, code, gpu=0)

    broken, _ = gpus_of(machine.env)

    assert "unreadable" not in broken


def test_instances_of_mig_are_gpus_with_holes_in_between(machine: StubMachine):
    second = machine.add_mig(0, 1, used_bytes=GIB)
    fifth = machine.add_mig(0, 4, total_bytes=20 * GIB)

    gpus = gpus_of(machine.env)

    assert [(gpu["index"], gpu["slot"], gpu["uuid"]) for gpu in gpus] == [
        (0, 1, second.uuid),
        (0, 4, fifth.uuid),
        (1, None, uuid(machine, 1)),
    ]
    assert memory_of(gpus[0]) == [10 * GIB, GIB, 9 * GIB]
    assert gpus[0]["utilization_percent"] is None
    assert gpus[1]["memory_total_bytes"] == 20 * GIB


def test_processes_belong_to_their_instance(
    machine: StubMachine, stranger: subprocess.Popen[bytes]
):
    first, second = machine.add_mig(0, 0), machine.add_mig(0, 1)
    machine.add_stranger(second.uuid, GIB, stranger.pid)

    gpus = {gpu["uuid"]: gpu for gpu in gpus_of(machine.env)}

    assert processes_of(gpus[first.uuid]) == {}
    assert processes_of(gpus[second.uuid]) == {stranger.pid: ("compute", GIB)}


def test_mig_without_instances_takes_no_work(machine: StubMachine):
    machine.set(0, mig=1)

    bare, _ = gpus_of(machine.env)

    assert "no instances" in bare["unreadable"]
    assert bare["uuid"] == uuid(machine, 0)


def test_a_card_that_knows_no_mig_is_whole(machine: StubMachine):
    machine.set(0, mig=-1)

    assert gpus_of(machine.env)[0]["slot"] is None


@pytest.mark.parametrize("code", [4, 15, 999])
def test_slots_that_cannot_be_counted_make_that_card_alone_unreadable(
    machine: StubMachine, code: int
):
    machine.add_mig(0, 0)
    machine.fail("nvmlDeviceGetMaxMigDeviceCount", code, gpu=0)

    broken, fine = gpus_of(machine.env)

    assert broken["uuid"] == uuid(machine, 0)
    assert "unreadable" in broken
    assert "unreadable" not in fine


def test_instances_may_come_and_go(machine: StubMachine):
    one = machine.add_mig(0, 2)
    with streaming(machine.env) as stream:
        wait_until(stream.whole)
        machine.remove_mig(one.uuid)
        wait_until(lambda: "unreadable" in stream.whole()[-1][0])
        two = machine.add_mig(0, 3)
        wait_until(lambda: stream.whole()[-1][0]["uuid"] == two.uuid)
        stream.ask(two.uuid)
        wait_until(stream.answers)
        assert [gpu["uuid"] for gpu in stream.answers()[0]] == [two.uuid]


@pytest.mark.parametrize(("mode", "word"), [(0, "default"), (2, "prohibited"), (3, "exclusive")])
def test_compute_modes_have_names(machine: StubMachine, mode: int, word: str):
    machine.set(0, compute_mode=mode)

    assert gpus_of(machine.env)[0]["compute_mode"] == word


@pytest.mark.parametrize("recovery", [1, 2, 3, 4, 9])
def test_a_gpu_that_needs_recovery_is_ailing(machine: StubMachine, recovery: int):
    machine.set(0, recovery=recovery)

    ailing, healthy = gpus_of(machine.env)

    assert "the driver wants" in ailing["ailment"]
    assert healthy["ailment"] is None


def test_memory_that_could_not_be_remapped_is_an_ailment(machine: StubMachine):
    machine.set(0, remap_failure=1, recovery=-1)

    assert "remapped" in gpus_of(machine.env)[0]["ailment"]


def test_a_gpu_that_cannot_say_how_it_is_counts_as_healthy(machine: StubMachine):
    machine.set(0, remap_failure=-1, recovery=-1)

    assert gpus_of(machine.env)[0]["ailment"] is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "no NVIDIA driver"),
        (12, "no NVIDIA driver"),
        (18, "upgraded"),
        (999, "properly"),
        (4, "may not"),
    ],
)
def test_a_driver_that_cannot_be_asked_is_trouble_in_one_line(
    machine: StubMachine, code: int, words: str
):
    machine.init_error(code)

    done, lines = once(machine.env)

    assert done.returncode == 255
    assert [set(line) >= {"smartsched_sample", "trouble", "host"} for line in lines] == [True]
    assert words in lines[0]["trouble"]
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_driver_that_is_what_is_said():
    done, lines = once()

    assert done.returncode == 255
    assert "no NVIDIA driver" in lines[0]["trouble"]
    assert len(done.stderr.splitlines()) == 1


def test_a_driver_that_cannot_count_is_trouble(machine: StubMachine):
    machine.count_error(999)

    done, [line] = once(machine.env)

    assert done.returncode == 255
    assert "trouble" in line


def test_a_driver_without_gpus_is_trouble(stub_machine: MakeMachine):
    done, [line] = once(stub_machine().env)

    assert done.returncode == 255
    assert "no GPU" in line["trouble"]
    assert len(done.stderr.splitlines()) == 1


def test_a_driver_that_breaks_on_the_way_is_trouble_and_the_end(machine: StubMachine):
    with streaming(machine.env) as stream:
        wait_until(stream.whole)

        machine.count_error(18)

        assert stream.process.wait(PATIENCE_SECONDS) == 255
        wait_until(lambda: "trouble" in stream.lines[-1])


def test_a_module_that_shadows_nvidia_s_is_named(machine: StubMachine, tmp_path: Path):
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "pynvml.py").write_text("def nvmlInit(): pass\n")

    done, [line] = once(machine.env | {"PYTHONPATH": str(tmp_path / "shadow")})

    assert done.returncode == 255
    assert str(tmp_path / "shadow" / "pynvml.py") in line["trouble"]
    assert len(done.stderr.splitlines()) == 1


def test_a_binding_that_is_missing_is_named(machine: StubMachine, tmp_path: Path):
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "pynvml.py").write_text("raise ImportError('not installed')\n")

    done, [line] = once(machine.env | {"PYTHONPATH": str(tmp_path / "shadow")})

    assert done.returncode == 255
    assert "nvidia-ml-py" in line["trouble"]


def test_a_request_is_answered_at_once_with_what_was_asked_for(machine: StubMachine):
    with streaming(machine.env, "1h") as stream:
        wait_until(stream.whole)
        machine.set(1, used_bytes=5 * GIB)

        stream.ask(uuid(machine, 1))
        wait_until(stream.answers)

        [[gpu]] = stream.answers()
        assert (gpu["uuid"], gpu["memory_used_bytes"]) == (uuid(machine, 1), 5 * GIB)
        assert len(stream.whole()) == 1


def test_whoever_comes_to_a_gpu_that_is_watched_is_told_of_though_no_sample_is_due(
    machine: StubMachine, stranger: subprocess.Popen[bytes]
):
    with streaming(machine.env, "1h") as stream:
        wait_until(stream.whole)
        stream.watch(uuid(machine, 1))
        for index in (0, 1):
            machine.add_stranger(index, 4 * GIB, stranger.pid)

        wait_until(lambda: [gpu for [gpu] in stream.answers() if gpu["processes"]])

        assert {gpu["uuid"] for gpus in stream.answers() for gpu in gpus} == {uuid(machine, 1)}
        assert len(stream.whole()) == 1


@pytest.mark.soak  # it takes a while until there is nothing new
def test_where_nothing_is_new_nothing_is_told_until_somebody_comes(
    machine: StubMachine, stranger: subprocess.Popen[bytes]
):
    with streaming(machine.env, "1h") as stream:
        wait_until(stream.whole)
        stream.watch(uuid(machine, 1))
        time.sleep(14)
        before = len(stream.answers())
        time.sleep(4)
        assert len(stream.answers()) <= before + 1  # one in ten seconds

        machine.add_stranger(1, 4 * GIB, stranger.pid)

        wait_until(lambda: stream.answers()[-1][0]["processes"])


def test_requests_that_make_no_sense_are_passed_over(machine: StubMachine):
    with streaming(machine.env, "1h") as stream:
        wait_until(stream.whole)
        assert stream.process.stdin is not None
        stream.process.stdin.write(b'nonsense\n\xff\n17\nnull\n["GPU-nobody"]\n')

        stream.ask(uuid(machine, 0))

        wait_until(lambda: [g["uuid"] for a in stream.answers() for g in a] == [uuid(machine, 0)])


def test_it_ends_when_nobody_asks_any_more(machine: StubMachine):
    with streaming(machine.env, "1h") as stream:
        wait_until(stream.whole)
        assert stream.process.stdin is not None

        stream.process.stdin.close()

        assert stream.process.wait(PATIENCE_SECONDS) == 0


def test_it_ends_when_nobody_asks_any_more_however_slow_the_driver(machine: StubMachine):
    machine.hang("nvmlDeviceGetComputeMode", 0.2)
    with streaming(machine.env, "100ms") as stream:
        wait_until(stream.whole)
        assert stream.process.stdin is not None

        stream.process.stdin.close()

        assert stream.process.wait(5) == 0


def test_it_goes_on_under_nohup(machine: StubMachine):
    with streaming(machine.env, stdin=subprocess.DEVNULL) as stream:
        wait_until(lambda: len(stream.whole()) >= 5)

        assert stream.process.poll() is None


def test_it_ends_without_a_word_when_its_reader_goes(machine: StubMachine):
    process = subprocess.Popen(
        [*COMMAND, "--interval", "50ms"],
        env=os.environ | machine.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(PATIENCE_SECONDS) == -signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_without_a_word_at_a_signal(machine: StubMachine, signum: signal.Signals):
    with streaming(machine.env, "1h", stdin=subprocess.DEVNULL) as stream:
        wait_until(stream.whole)

        stream.process.send_signal(signum)

        assert stream.process.wait(PATIENCE_SECONDS) == -signum


def test_snapshots_come_on_the_interval(machine: StubMachine):
    with streaming(machine.env, "200ms") as stream:
        wait_until(lambda: len(stream.lines) >= 6)

    times = [line["monotonic_s"] for line in stream.lines]
    assert times[5] - times[0] >= 0.99
    assert all(later > earlier for earlier, later in pairwise(times))


@pytest.mark.parametrize(
    "words", [["--interval", "soon"], ["--interval", "-1"], ["--interval", "0"], ["--no-such"]]
)
def test_wrong_usage_is_one_line_and_status_2(words: list[str]):
    done, lines = once({}, *words)

    assert (done.returncode, lines) == (2, [])
    assert "Traceback" not in done.stderr
    assert "smartsched" in done.stderr.splitlines()[-1]


def test_pretend_gpus_are_the_same_for_the_same_seed():
    def pretend(seed: int) -> Any:
        return once({}, "--simulate", f"3,seed={seed}")[1][0]["gpus"]

    first, again, other = pretend(7), pretend(7), pretend(8)
    names = [[gpu["uuid"] for gpu in gpus] for gpus in (first, again)]
    assert names[0] == names[1]
    assert len(other) == 3
