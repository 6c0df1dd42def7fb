"""People come to a GPU where jobs of ours run: what becomes of those, and when."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.harness import MOMENT, Box, Session, a_pipe
from tests.stub_nvml import GIB, stranger_process
from tests.waiting import wait_until

# From a colleague's arrival to the moment when the job has been asked to go: what is promised, and
# what a busy machine takes to do it.
NOTICED_WITHIN_SECONDS = 2.0
BUSY_MACHINE_SECONDS = 3.0
REQUEUE = (*MOMENT, "--on-contention", "requeue")


@contextmanager
def colleague(box: Box, gpu: int, gib: int = 40) -> Iterator[int]:
    """Somebody else's training; its pid. It is gone at the end."""
    with stranger_process() as process:
        box.machine.add_stranger(gpu, gib * GIB, process.pid)
        try:
            yield process.pid
        finally:
            box.machine.remove_stranger(process.pid)


def trains(box: Box, name: str, *options: str) -> str:
    """Until it is told to end."""
    return box.training(name, "--mem", str(10 * GIB), "--util", "50", "--until", "go", *options)


def where(box: Box, what: str = "start") -> list[tuple[str, str]]:
    """(job, the last two digits of its GPU) of every line of that kind."""
    return [(name, uuid[-1]) for name, uuid, _ in box.trained(what)]


def wait_for_starts(box: Box, session: Session, count: int) -> None:
    wait_until(lambda: len(box.trained()) >= count, f"{count} have started", session.dump)


def wait_for_requeues(box: Box, session: Session, count: int) -> None:
    requeues = "job_requeued"
    wait_until(lambda: len(box.events(requeues)) >= count, f"{count} gave way", session.dump)


# --- drain


def test_a_job_goes_on_beside_a_newcomer_and_nothing_more_starts_there(box: Box):
    commands = [trains(box, "first"), trains(box, "second")]
    session = box.start(*MOMENT, "--gpus", "0", "--jobs-per-gpu", "1", str(box.list_of(commands)))
    wait_for_starts(box, session, 1)

    with colleague(box, 0):
        session.says("others came to GPU 0, where jobs run: ")
        session.says("; nothing more is started there")
        (box.folder / "go").touch()
        session.says("job 1 ok")
        session.says("waiting: GPU 0: memory 50% > 10%")
        assert where(box) == [("first", "0")]

    done = session.end()
    assert done.status == 0
    assert done.err.count("others came to GPU 0") == 1
    assert "gives way" not in done.err
    assert where(box) == [("first", "0"), ("second", "0")]


def test_nothing_is_packed_beside_a_newcomer(box: Box):
    with a_pipe() as (reading, writing):
        session = box.start(*MOMENT, "--gpus", "0", "--jobs-per-gpu", "2", stdin=reading)
        os.close(reading)
        os.write(writing, f"{trains(box, 'a')}\n".encode())
        wait_for_starts(box, session, 1)
        with colleague(box, 0):
            session.says("others came to GPU 0")
            # whoever sees the last one go has had his chance to start the one before it
            os.write(writing, f"{trains(box, 'b')}\ntrue  # smartsched: gpus=0\n".encode())
            os.close(writing)
            session.says("job 3 ok")
            assert [name for name, _ in where(box)] == ["a"]
        wait_for_starts(box, session, 2)
        (box.folder / "go").touch()

        assert session.end().status == 0


def test_a_newcomer_who_is_to_be_ignored_changes_nothing(box: Box):
    with a_pipe() as (reading, writing):
        session = box.start(
            *MOMENT, "--gpus", "0", "--jobs-per-gpu", "2", "--job-mem", "12GiB",
            "--on-contention", "ignore", stdin=reading,
        )  # fmt: skip
        os.close(reading)
        os.write(writing, f"{trains(box, 'a')}\n".encode())
        wait_for_starts(box, session, 1)
        with colleague(box, 0):
            session.says("others came to GPU 0, where jobs run: ")
            os.write(writing, f"{trains(box, 'b')}\n".encode())
            os.close(writing)
            wait_for_starts(box, session, 2)
            (box.folder / "go").touch()
            done = session.end()

    assert done.status == 0
    assert "nothing more is started there" not in done.err
    assert "gives way" not in done.err


# --- requeue


def test_a_job_gives_way_at_once_and_runs_again_elsewhere_at_the_head_of_the_queue(box: Box):
    commands = [trains(box, name) for name in ("a", "b", "c", "d")]
    session = box.start(*REQUEUE, "--gpus", "0,1", str(box.list_of(commands)))
    wait_for_starts(box, session, 2)
    [first] = [name for name, gpu in where(box) if gpu == "0"]

    came = time.time()
    with colleague(box, 0):
        session.says("gives way on GPU 0 to ")
        wait_until(lambda: box.events("job_requeued"), "it is queued again", session.dump)
        [stopping] = box.events("run_stopping")
        gone = box.events("run_exited")[0]["at"]
        (box.folder / "go").touch()
        wait_until(lambda: len(where(box)) == 5, "all have started", session.dump)
        done = session.end()

    assert done.status == 0
    assert "4 jobs ok, 0 failed" in done.err
    assert done.err.count("gave way after") == 1
    assert stopping["at"] - came < NOTICED_WITHIN_SECONDS + BUSY_MACHINE_SECONDS
    assert gone - came < NOTICED_WITHIN_SECONDS + BUSY_MACHINE_SECONDS
    assert where(box)[2] == (first, "1")  # before those that had not been started
    assert {gpu for _, gpu in where(box)[2:]} == {"1"}
    assert sorted(name for name, _ in where(box, "end")) == ["a", "b", "c", "d"]


def test_a_job_that_gives_way_runs_again_later_when_nothing_else_is_free(box: Box):
    session = box.start(*REQUEUE, "--gpus", "2", str(box.list_of([trains(box, "a")])))
    wait_for_starts(box, session, 1)

    with colleague(box, 2):
        session.says("job 1 gave way after")
        session.says("waiting: GPU 2: memory 50% > 10%")
    wait_for_starts(box, session, 2)
    (box.folder / "go").touch()

    done = session.end()
    assert done.status == 0
    assert where(box, "end") == [("a", "2")]
    assert done.err.count("gives way") == 1


def test_a_job_gives_way_at_once_also_where_samples_are_rare(box: Box):
    session = box.start(
        "--free-for", "0", "--interval", "1h", "--gpus", "0", "--on-contention", "requeue",
        str(box.list_of([trains(box, "a")])),
    )  # fmt: skip
    wait_for_starts(box, session, 1)

    came = time.time()
    with colleague(box, 0):
        wait_until(lambda: box.events("run_stopping"), "it gives way", session.dump, timeout=8)
        [stopping] = box.events("run_stopping")
        session.signal(signal.SIGTERM)
        session.end()

    assert stopping["at"] - came < NOTICED_WITHIN_SECONDS + BUSY_MACHINE_SECONDS


def test_giving_way_is_no_failure(box: Box):
    """Neither a retry is used up, nor a halt reached, nor a status spoilt."""
    session = box.start(
        *REQUEUE, "--gpus", "0", "--halt", "now,fail=1", "--joblog", "jobs.tsv",
        "--on-finish", "echo $SMARTSCHED_OUTCOME >> told", str(box.list_of([trains(box, "a")])),
    )  # fmt: skip
    for times in (1, 2):
        wait_for_starts(box, session, times)
        with colleague(box, 0):
            wait_for_requeues(box, session, times)
    wait_for_starts(box, session, 3)
    (box.folder / "go").touch()

    done = session.end()

    assert done.status == 0, done.err
    assert box.lines("told") == ["ok"]
    assert len(box.lines("jobs.tsv")) == 2  # and its header


def test_a_job_that_runs_beside_somebody_to_whom_another_gave_way_stays(box: Box):
    """Never twice for the same arrival, however he goes on."""
    session = box.start(
        *REQUEUE, "--gpus", "0,1", "--max-mem", "60%", str(box.list_of([trains(box, "a")]))
    )
    wait_for_starts(box, session, 1)
    [(_, gpu)] = where(box)
    with colleague(box, int(gpu), gib=70):
        wait_until(lambda: box.events("job_requeued"), "it gave way", session.dump)
        wait_for_starts(box, session, 2)
        (box.folder / "go").touch()
        assert session.end().status == 0

    assert len(box.events("run_stopping")) == 1


def test_only_the_youngest_go_as_long_as_that_is_enough(box: Box):
    """A newcomer who is below the thresholds, where memory runs out."""
    use = ("--mem", str(34 * GIB), "--util", "20", "--until", "go")
    commands = [box.training("old", *use), f"sleep 0.5; {box.training('young', *use)}"]
    session = box.start(
        *REQUEUE, "--gpus", "0", "--jobs-per-gpu", "2", "--job-mem", "36GiB", "--max-mem", "20%",
        str(box.list_of(commands)),
    )  # fmt: skip
    wait_for_starts(box, session, 2)

    with colleague(box, 0, gib=4):
        session.says("job 2 gives way")
        wait_until(lambda: box.events("job_requeued"), "it is queued again", session.dump)
    (box.folder / "go").touch()

    done = session.end()
    assert done.status == 0
    assert "job 1 gives way" not in done.err
    assert [name for name, _ in where(box)] == ["old", "young", "young"]


def test_a_job_that_does_not_go_when_asked_is_killed_after_its_grace(box: Box):
    session = box.start(
        *REQUEUE, "--gpus", "0,1", "--yield-grace", "300ms",
        str(box.list_of([trains(box, "a", "--ignore-term")])),
    )  # fmt: skip
    wait_for_starts(box, session, 1)
    [(_, gpu)] = where(box)

    with colleague(box, int(gpu)):
        session.says("job 1 did not end when asked; killing it")
        wait_for_starts(box, session, 2)
        (box.folder / "go").touch()
        done = session.end()

    assert done.status == 0
    assert where(box, "end") == [("a", str(1 - int(gpu)))]


def test_polite_gives_way_and_leaves_a_gpu_free(box: Box):
    commands = [trains(box, name) for name in "abcd"]
    session = box.start(*MOMENT, "--polite", str(box.list_of(commands)))
    wait_for_starts(box, session, 3)
    taken = min(int(gpu) for _, gpu in where(box))

    with colleague(box, taken):
        session.says(f"gives way on GPU {taken}")
        session.says("it is queued again")
        (box.folder / "go").touch()
        done = session.end()

    assert done.status == 0
    assert len({gpu for _, gpu in where(box)[:3]}) == 3
    assert sorted(name for name, _ in where(box, "end")) == ["a", "b", "c", "d"]


def test_a_gang_gives_way_when_people_come_to_one_of_its_gpus(box: Box):
    session = box.start(
        *REQUEUE, "--gpus", "0,1,2", "-n", "2", str(box.list_of([trains(box, "gang")]))
    )
    wait_for_starts(box, session, 1)
    held = [uuid[-1] for uuid in box.trained()[0][1].split(",")]

    with colleague(box, int(held[0])):
        wait_for_starts(box, session, 2)
        again = [uuid[-1] for uuid in box.trained()[1][1].split(",")]
        (box.folder / "go").touch()
        done = session.end()

    assert done.status == 0
    assert held[0] not in again
    assert len(box.trained("end")) == 1


# --- a signal to save the state first


def test_a_job_that_waits_for_the_signal_saves_its_state_before_it_goes(box: Box):
    (box.folder / "x").mkdir()
    command = f"cd x && {trains(box, 'a', '--usr1-exit', '0')} && echo saved"
    session = box.start(
        *REQUEUE, "--gpus", "0,1", "--checkpoint-signal", "USR1", str(box.list_of([command]))
    )
    wait_for_starts(box, session, 1)
    [(_, gpu)] = where(box)

    with colleague(box, int(gpu)):
        wait_for_starts(box, session, 2)
        (box.folder / "x" / "go").touch()
        done = session.end()

    assert done.status == 0
    assert where(box, "usr1") == [("a", gpu)]
    assert where(box, "end") == [("a", str(1 - int(gpu)))]
    assert box.job_logs()[0].read_text() == "saved\n"  # its shell outlived the signal


def test_a_job_that_knows_no_such_signal_is_asked_as_ever(box: Box):
    session = box.start(
        *REQUEUE, "--gpus", "0,1", "--checkpoint-signal", "USR1", "--grace", "30s",
        str(box.list_of([trains(box, "a", "--term-exit", "0")])),
    )  # fmt: skip
    wait_for_starts(box, session, 1)
    [(_, gpu)] = where(box)

    with colleague(box, int(gpu)):
        wait_for_starts(box, session, 2)
        (box.folder / "go").touch()
        done = session.end()

    assert done.status == 0
    assert where(box, "term") == [("a", gpu)]


# --- where jobs are


def test_a_job_on_another_gpu_than_its_own_is_told_once(box: Box):
    command = f"CUDA_VISIBLE_DEVICES=3 {trains(box, 'a')}"
    session = box.start(*MOMENT, "--gpus", "1", str(box.list_of([command])))

    session.says("job 1 uses GPU 3, and was given 1: does it set CUDA_VISIBLE_DEVICES")
    (box.folder / "go").touch()

    done = session.end()
    assert done.status == 0
    assert done.err.count("uses GPU 3") == 1


def test_where_the_driver_hides_whose_memory_it_is_nothing_is_packed_and_no_job_is_stopped(
    box: Box,
):
    """As in a container: the driver names pids that nobody here knows."""
    hidden = [trains(box, name, "--shown-pid", str(5_000_000 + n)) for n, name in enumerate("ab")]
    session = box.start(
        *MOMENT, "--gpus", "0", "--jobs-per-gpu", "2", "--polite", "--leave-free", "0",
        str(box.list_of(["until test -e come; do sleep 0.01; done", *hidden])),
    )  # fmt: skip
    wait_for_starts(box, session, 1)

    session.says("the driver does not say which memory is our jobs'")
    (box.folder / "come").touch()
    session.says("job 1 ok")
    session.says("nothing is packed there")
    (box.folder / "go").touch()

    done = session.end()
    assert done.status == 0, done.err
    assert done.err.count("the driver does not say") == 1
    assert "gives way" not in done.err
    assert [name for name, _ in where(box, "end")] == ["a", "b"]
    first_end = box.trained("end")[0][2]
    assert box.trained()[1][2] > first_end
