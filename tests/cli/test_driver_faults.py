"""A driver that is missing, broken, hanging or upgraded under us."""

import os
import signal

import pytest

from tests.cli.harness import MOMENT, Box, Session
from tests.waiting import wait_until

LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED, VERSION_MISMATCH, UNKNOWN, LOST = 12, 9, 18, 999, 15


def children(pid: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat_file:
                parent = stat_file.read().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            found.append(int(name))
    return found


def command_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as cmdline:
            return cmdline.read()
    except OSError:
        return ""


def sampler_of(pid: int) -> int | None:
    return next((child for child in children(pid) if "sample" in command_of(child)), None)


def its_sampler(session: Session) -> int:
    """Where everything takes long, one may have been given up and the next not begun."""
    found: list[int] = []

    def there_is_one() -> bool:
        sampler = sampler_of(session.process.pid)
        found.extend([] if sampler is None else [sampler])
        return bool(found)

    wait_until(there_is_one, "it has a sampler", session.dump)
    return found[0]


@pytest.mark.parametrize("extra", [("--dry-run",), ("--", "true"), ()])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (LIBRARY_NOT_FOUND, "no NVIDIA driver here"),
        (DRIVER_NOT_LOADED, "no NVIDIA driver here"),
        (VERSION_MISMATCH, "upgraded but the old kernel module is still loaded"),
        (UNKNOWN, "does not answer properly"),
    ],
)
def test_without_a_driver_one_line_says_so_and_how_to_go_on(
    box: Box, extra: tuple[str, ...], code: int, words: str
):
    box.machine.init_error(code)

    done = box.run(*extra)

    assert done.status == 255
    assert words in done.err
    assert "--simulate" in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


def test_a_box_without_gpus_is_said_to_be_one(box: Box):
    for index in range(4):
        box.machine.remove_gpu(index)

    done = box.run("--dry-run")

    assert done.status == 255
    assert "lists no GPU" in done.err


def test_a_lost_gpu_is_unknown_and_the_rest_go_on(box: Box):
    box.machine.set(1, error=LOST)

    dry = box.run("--dry-run", *MOMENT)
    done = box.run(*MOMENT, "--output", "raw", commands=["echo $SMARTSCHED_GPUS"] * 12)

    assert dry.status == 0
    assert any("UNKNOWN" in line and "lost" in line for line in dry.out.splitlines())
    assert set(done.out.split()) == {"0", "2", "3"}
    assert done.status == 0


def test_gpus_behind_a_lost_one_are_named_by_uuid(box: Box):
    """Below it the numbering is certain; behind it CUDA may count anew."""
    box.machine.set(1, error=LOST)

    done = box.run(
        *MOMENT, "--output", "raw", commands=["echo $SMARTSCHED_GPUS=$CUDA_VISIBLE_DEVICES"] * 9
    )

    uuid = {index: box.machine.gpu(index).uuid for index in (2, 3)}
    assert set(done.out.split()) == {"0=0", f"2={uuid[2]}", f"3={uuid[3]}"}


def test_a_gpu_lost_under_a_job_leaves_the_job_alone_and_takes_no_other(box: Box):
    commands = ["until test -e go; do sleep 0.01; done; echo fine", "echo next"]
    session = box.start(*MOMENT, "-v", "--gpus", "0", str(box.list_of(commands)))
    session.says("job 1 started")

    box.machine.set(0, error=LOST)
    wait_until(lambda: "1" in session.err, "it goes on")
    (box.folder / "go").touch()
    session.says("job 1 ok")
    session.says("waiting:")
    assert "job 2 started" not in session.err
    box.machine.set(0, error=0)

    assert session.end().status == 0


@pytest.mark.parametrize("fault", ["dies", "upgrade", "gone"])
def test_a_driver_that_fails_later_holds_new_work_and_recovers_by_itself(box: Box, fault: str):
    commands = ["until test -e go; do sleep 0.01; done; echo fine", "echo next"]
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of(commands)))
    session.says("job 1 started")
    sampler = its_sampler(session)

    box.machine.init_error(VERSION_MISMATCH if fault != "gone" else UNKNOWN)
    if fault == "gone":
        box.machine.count_error(UNKNOWN)
    else:
        os.kill(sampler, signal.SIGKILL)
    wait_until(lambda: sampler_of(session.process.pid) != sampler, "the sampler is replaced")
    (box.folder / "go").touch()
    session.says("job 1 ok")
    session.says("waiting: GPU 0: the ")
    assert "job 2 started" not in session.err
    box.machine.count_error(0)
    box.machine.init_error(0)

    done = session.end()
    assert done.status == 0
    assert "job 2 ok" in done.err


def test_a_hanging_driver_holds_new_work_and_is_never_asked_by_two_at_once(box: Box):
    commands = ["until test -e go; do sleep 0.01; done; echo fine", "echo next"]
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of(commands)))
    session.says("job 1 started")

    box.machine.hang("nvmlDeviceGetMemoryInfo", 600)
    (box.folder / "go").touch()
    session.says("job 1 ok")
    session.says("waiting: GPU 0: the driver has not answered for")
    assert "job 2 started" not in session.err
    assert len([c for c in children(session.process.pid) if "sample" in command_of(c)]) <= 1
    box.machine.clear_faults()

    assert session.end().status == 0


def test_a_dispatcher_that_ends_leaves_no_sampler_behind(box: Box):
    session = box.start(*MOMENT, "--", "sh", "-c", "until test -e go; do sleep 0.01; done")
    session.says("job 1 started")
    its_sampler(session)
    box.machine.hang("nvmlDeviceGetMemoryInfo", 600)

    (box.folder / "go").touch()
    session.end()

    wait_until(box.is_quiet, "the sampler is gone, whichever it was")


def test_a_killed_dispatcher_takes_its_sampler_along(box: Box):
    session = box.start(*MOMENT, "--", "sleep", "600")
    session.says("job 1 started")
    sampler = its_sampler(session)
    everybody = children(session.process.pid)

    session.signal(signal.SIGKILL)
    session.process.wait()

    wait_until(lambda: "sample" not in command_of(sampler), "the sampler is gone")
    for pid in everybody:  # a training outlives its dispatcher
        if pid != sampler:
            os.killpg(pid, signal.SIGKILL)


def test_a_driver_that_takes_its_time_is_slow_and_not_hanging(box: Box):
    box.machine.hang("nvmlDeviceGetMemoryInfo", 4.0, gpu=0)

    done = box.run("--free-for", "0", "--interval", "100ms", commands=["echo 1", "echo 2"])

    assert done.status == 0
    assert "not answered" not in done.err
