"""`smartsched pick`: names free GPUs to scripts, and holds them for a while."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.harness import MOMENT, PROGRAM, Box, alive
from tests.cli.test_claims import TWO_USERS, WAIT, as_user, claims, needs_two_users, public, shared
from tests.stub_nvml import GIB
from tests.waiting import wait_until

__all__ = ["public", "shared"]  # fixtures
PICK = ("pick", *MOMENT)
# Longer than any test takes; those who hold are ended by it.
LONG = ("--hold", "10m")


def end_holders(box: Box) -> None:
    for claim in claims(box):
        os.kill(json.loads(claim.read_text())["pid"], signal.SIGTERM)


def test_it_prints_nothing_but_a_value_for_cuda_visible_devices(box: Box):
    box.machine.set(0, used_bytes=40 * GIB)
    box.machine.set(1, used_bytes=1 * GIB)

    done = box.run(*PICK, "-n", "2")

    assert (done.status, done.out, done.err) == (0, "2,3\n", "")
    assert claims(box) == []


def test_gpus_are_named_by_uuid_where_that_is_asked_for(box: Box):
    by_uuid = box.run(*PICK, "--visible", "uuid", "--prefer", "3")
    as_object = json.loads(box.run(*PICK, "--json", "--prefer", "3").out)

    assert by_uuid.out == f"{box.machine.gpu(3).uuid}\n"
    assert as_object["cuda_visible_devices"] == "3"
    assert as_object["gpus"][0]["uuid"] == box.machine.gpu(3).uuid


def test_where_there_are_not_so_many_it_says_why_in_one_line(box: Box):
    for index in range(3):
        box.machine.set(index, used_bytes=40 * GIB)

    one = box.run(*PICK, "--gpus", "0")
    two = box.run(*PICK, "-n", "2")

    assert (one.status, one.out) == (1, "")
    assert one.err.startswith("smartsched: no GPU is free: GPU 0: memory 50% > 10%")
    assert (two.status, two.out) == (1, "")
    assert len(one.err.splitlines()) == len(two.err.splitlines()) == 1


def test_it_watches_for_the_window_where_the_driver_keeps_no_history(box: Box):
    for index in range(4):
        box.machine.set(index, history_seconds=-1)

    done = box.run("pick", "--free-for", "1s", "--interval", "100ms")

    assert (done.status, done.out) == (0, "0\n")
    assert "watching the GPUs for 1.0s" in done.err


def test_it_waits_until_there_are_enough(box: Box):
    for index in range(4):
        box.machine.set(index, used_bytes=40 * GIB)
    session = box.start(*PICK, "-n", "2", "--wait")
    session.says("waiting for 2 free GPUs")

    box.machine.set(1, used_bytes=0)
    box.machine.set(3, used_bytes=0)

    done = session.end()
    assert (done.status, done.out) == (0, "1,3\n")


def test_it_waits_no_longer_than_it_may(box: Box):
    box.machine.set(0, used_bytes=40 * GIB)

    done = box.run(*PICK, "--gpus", "0", "--wait", "300ms", "-q")

    assert (done.status, done.out) == (124, "")
    assert done.err.startswith("smartsched: --wait ran out: no GPU is free: GPU 0: memory 50%")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_whoever_interrupts_it_is_left_with_nothing(box: Box, signum: signal.Signals):
    box.machine.set(0, used_bytes=40 * GIB)
    session = box.start(*PICK, "--gpus", "0", "--wait")
    session.says("waiting for a free GPU")

    session.signal(signum)

    done = session.end()
    assert (done.status, done.out) == (130, "")
    assert claims(box) == []


def test_gpus_that_a_dispatcher_has_claimed_are_not_picked(box: Box):
    session = box.start(*MOMENT, "--gpus", "0", "--name", "mine", str(box.list_of([WAIT])))
    session.says("job 1 started")

    other = box.run(*PICK)
    none = box.run(*PICK, "--gpus", "0")
    (box.folder / "go").touch()

    assert other.out == "1\n"
    assert none.status == 1
    assert "GPU 0: claimed by" in none.err
    assert "(run mine)" in none.err
    assert session.end().status == 0


def test_who_waits_gets_a_gpu_once_its_claim_is_gone(box: Box):
    assert box.run(*PICK, "--gpus", "0", *LONG).status == 0
    session = box.start(*PICK, "--gpus", "0", "--wait")
    session.says("waiting for a free GPU")

    end_holders(box)

    assert session.end().out == "0\n"


def test_picks_in_a_row_that_hold_never_give_the_same_gpu(box: Box):
    picked = [box.run(*PICK, *LONG) for _ in range(4)]

    one_more = box.run(*PICK, *LONG)
    started = box.run("--dry-run", *MOMENT)
    end_holders(box)

    assert [done.out for done in picked] == ["0\n", "1\n", "2\n", "3\n"]
    assert one_more.status == 1
    assert started.status == 3
    assert started.out.count("(run pick)") == 4
    assert box.run(*PICK).out == "0\n"


def test_picks_at_once_that_hold_never_give_the_same_gpu(box: Box):
    sessions = [box.start(*PICK, *LONG, "--wait") for _ in range(4)]

    picked = [session.end() for session in sessions]
    end_holders(box)

    assert sorted(done.out for done in picked) == ["0\n", "1\n", "2\n", "3\n"]


def test_a_script_is_not_kept_waiting_by_what_is_held_for_it(box: Box):
    """Neither by its output, nor by what else it has open."""
    lock = box.folder / "lock"
    pick = shlex.join([*PROGRAM, *PICK, *LONG])
    script = f'exec 9> {shlex.quote(str(lock))}; flock 9; echo "picked $({pick})"'

    done = subprocess.run(
        ["bash", "-c", script], env=box.env, cwd=box.folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip

    assert done.stdout == "picked 0\n"

    def is_free() -> bool:
        with lock.open() as free, suppress(BlockingIOError):
            fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    wait_until(is_free, "the lock is free, as soon as the sampler is dead")
    [claim] = claims(box)
    assert alive(json.loads(claim.read_text())["pid"])
    end_holders(box)


def test_a_hold_ends_by_itself(box: Box):
    held = json.loads(box.run(*PICK, "-n", "2", "--hold", "500ms", "--json").out)

    wait_until(lambda: not claims(box), "the claim is removed")

    wait_until(lambda: not alive(held["holder"]), "nobody holds it")
    assert box.run(*PICK, "-n", "4").status == 0


def test_a_hold_whose_holder_was_killed_holds_nothing(box: Box):
    held = json.loads(box.run(*PICK, "--json", *LONG).out)

    os.kill(held["holder"], signal.SIGKILL)

    wait_until(lambda: not alive(held["holder"]), "it is gone")
    assert box.run(*PICK).out == "0\n"
    assert claims(box) == []


def test_claims_that_somebody_has_locked_for_ever_are_no_reason_to_wait_for_ever(box: Box):
    folder = Path(box.env["SMARTSCHED_CLAIMS"])
    assert box.run(*PICK).status == 0
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    began = time.monotonic()

    done = box.run(*PICK)
    os.close(fd)

    assert done.status == 1
    assert done.err.endswith(f"the claims of this box are locked by somebody ({folder})\n")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-n", "0"), "-n: '0' is too few"),
        (("-n", "5"), "-n asks for 5 GPUs, and there are 4 to choose from"),
        (("-n", "two"), "-n: 'two' is no whole number"),
        (("--hold", "0"), "--hold: '0' leaves no time"),
        (("--hold", "soon"), "--hold: 'soon' is no duration"),
        (("--wait", "soon"), "--wait: 'soon' is no duration"),
        (("--hold", "1s", "--no-claims"), "--hold holds a claim"),
        (("--hold", "1s", "--simulate", "2"), "--hold holds a claim"),
        (("--gpus", "7"), "there is no GPU 7"),
        (("2",), "unrecognized arguments: 2"),
    ],
)
def test_what_cannot_be_is_one_clear_line(box: Box, args: tuple[str, ...], words: str):
    done = box.run(*PICK, *args)

    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


@needs_two_users
def test_what_one_person_holds_no_other_person_picks(shared: Box):
    hers = as_user(shared, TWO_USERS[0], *PICK, *LONG).end()

    his = as_user(shared, TWO_USERS[1], *PICK).end()
    end_holders(shared)

    assert (hers.status, hers.out) == (0, "0\n"), hers.err
    assert his.status == 1
    assert f"GPU 0: claimed by user {TWO_USERS[0]} (run pick)" in his.err
