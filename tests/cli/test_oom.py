"""Jobs that run out of a GPU's memory: whose fault it was, and what becomes of them."""

import pytest

from tests.cli.harness import MOMENT, Box
from tests.stub_nvml import GIB, stranger_process
from tests.waiting import wait_until

SAYS = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB"
PACKED = (*MOMENT, "--gpus", "0", "--jobs-per-gpu", "2", "--job-mem", "10GiB", "--no-guard")


def runs_out(box: Box, name: str, *options: str) -> str:
    """Trains for long enough to be seen at it, and then has not memory enough."""
    training = box.training(name, "--mem", str(20 * GIB), "--seconds", "0.8", *options)
    return f"{training}; echo 'torch.OutOfMemoryError: {SAYS}' >&2; exit 1"


def gated(box: Box, name: str) -> str:
    return box.training(name, "--mem", str(10 * GIB), "--until", "go")


@pytest.mark.parametrize("output", ["log", "tag"])
def test_a_job_that_had_the_gpu_for_itself_has_failed_and_why_is_said(box: Box, output: str):
    done = box.run(*MOMENT, "--output", output, commands=[runs_out(box, "a")])

    assert done.status == 1
    assert "job 1 failed: exit status 1 after" in done.err
    assert "it ran out of the GPU's memory: it was seen to hold 20 GiB of 80 GiB" in done.err
    assert len(box.trained()) == 1


def test_a_job_that_ran_out_beside_another_of_ours_is_given_more_and_then_a_gpu_for_itself(
    box: Box,
):
    session = box.start(*PACKED, str(box.list_of([gated(box, "other"), runs_out(box, "a")])))

    session.says("job 2 ran out of memory beside others of this run; queued again with 33.8 GiB")
    session.says("job 2 ran out of memory beside others of this run; on a GPU for itself")
    alone_at = len(box.trained())
    (box.folder / "go").touch()
    done = session.end()

    assert alone_at == 3
    assert done.status == 1
    assert "job 2 failed: exit status 1" in done.err
    assert "it ran out of the GPU's memory" in done.err
    names = [name for name, _, _ in box.trained()]
    assert (sorted(names[:2]), names[2:]) == (["a", "other"], ["a", "a"])
    assert box.trained()[-1][2] > box.trained("end")[-2][2]


def test_a_job_that_had_too_little_beside_another_does_well_where_it_has_more(box: Box):
    """No failure is left of it."""
    command = f"if mkdir once; then {runs_out(box, 'a')}; else echo fine; fi"
    session = box.start(*PACKED, str(box.list_of([gated(box, "other"), command])))
    session.says("job 2 ok")
    (box.folder / "go").touch()

    done = session.end()

    assert done.status == 0
    assert "2 jobs ok, 0 failed" in done.err


def test_a_job_is_not_tried_again_beside_others_where_that_is_not_wanted(box: Box):
    session = box.start(
        *PACKED, "--oom-retries", "0", str(box.list_of([gated(box, "other"), runs_out(box, "a")]))
    )
    session.says("job 2 failed")
    (box.folder / "go").touch()

    done = session.end()

    assert done.status == 1
    assert "it ran out of the GPU's memory" in done.err
    assert "beside other jobs of this run" in done.err
    assert len(box.trained()) == 2


@pytest.mark.parametrize("output", ["log", "tag"])
def test_a_job_whose_memory_others_took_is_tried_again_free_of_charge(box: Box, output: str):
    until = ("--until", "full", "--seconds", "60")
    command = f"if mkdir once; then {runs_out(box, 'a', *until)}; else echo fine; fi"
    session = box.start(
        *MOMENT, "--gpus", "0", "--oom-retries", "0", "--output", output,
        str(box.list_of([command])),
    )  # fmt: skip
    wait_until(lambda: len(box.trained()) == 1, "it runs", session.dump)

    with stranger_process() as stranger:
        box.machine.add_stranger(0, 60 * GIB, stranger.pid)
        session.says("others came to GPU 0")
        (box.folder / "full").touch()
        session.says("job 1 ran out of memory since others took more; it is queued again")
        box.machine.remove_stranger(stranger.pid)

    done = session.end()
    assert done.status == 0
    assert "1 job ok, 0 failed" in done.err


def test_what_only_resembles_a_lack_of_gpu_memory_is_an_ordinary_failure(box: Box):
    commands = [
        "echo 'MemoryError' >&2; exit 1",
        f"echo '{SAYS}'; for n in $(seq 70); do echo line $n; done; exit 1",
        f"echo '{SAYS}'; true",
    ]

    done = box.run(*MOMENT, "--no-guard", commands=commands)

    assert done.status == 2
    assert "ran out of" not in done.err
