"""Several dispatchers on one box: no two of them ever give the same GPU away."""

import fcntl
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.harness import MOMENT, Box, Session
from tests.stub_nvml import GIB, StubGpu, StubMachine
from tests.waiting import wait_until

# By what the driver shows, the GPU is free for as long as these last: nobody but the claim knows.
UNSEEN = 'echo "$EPOCHREALTIME" >> began; sleep 0.3; echo "$EPOCHREALTIME" >> ended'
WAIT = "until test -e go; do sleep 0.01; done"
ONE_GPU = (*MOMENT, "--gpus", "0")


def another(box: Box, *args: str) -> Session:
    """Of the same user, who forgot that he had one already, or has another home."""
    return box.start(*args, env={"XDG_STATE_HOME": f"{box.env['XDG_STATE_HOME']}-2"})


def claims(box: Box) -> list[Path]:
    return list(Path(box.env["SMARTSCHED_CLAIMS"]).glob("*.claim"))


def most_at_once(box: Box) -> int:
    moments = [(float(at), 1) for at in box.lines("began")]
    moments += [(float(at), -1) for at in box.lines("ended")]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def test_two_dispatchers_never_use_one_gpu_at_once(box: Box):
    """Though neither sees anything of the other's jobs."""
    sessions = [
        start(box, *ONE_GPU, str(box.list_of([UNSEEN] * 4))) for start in (Box.start, another)
    ]

    assert [session.end().status for session in sessions] == [0, 0]
    assert len(box.lines("ended")) == 8
    assert most_at_once(box) == 1
    assert claims(box) == []


def test_two_dispatchers_share_the_gpus_between_them(box: Box):
    commands = [f"echo $CUDA_VISIBLE_DEVICES >> gpus; {UNSEEN}"] * 8
    sessions = [start(box, *MOMENT, str(box.list_of(commands))) for start in (Box.start, another)]

    assert [session.end().status for session in sessions] == [0, 0]
    assert set(box.lines("gpus")) == {"0", "1", "2", "3"}
    assert 2 <= most_at_once(box) <= 4


def test_who_does_without_claims_neither_asks_nor_tells(box: Box):
    first = box.start(*ONE_GPU, str(box.list_of([WAIT])))
    first.says("job 1 started")
    second = another(box, *ONE_GPU, "--no-claims", str(box.list_of([WAIT])))
    second.says("job 1 started")

    assert len(claims(box)) == 1
    (box.folder / "go").touch()
    assert (first.end().status, second.end().status) == (0, 0)


def test_dry_run_tells_whose_claim_holds_a_gpu(box: Box):
    session = box.start(*ONE_GPU, "--name", "mine", str(box.list_of([WAIT])))
    session.says("job 1 started")

    held = box.run("--dry-run", *ONE_GPU)
    unasked = box.run("--dry-run", *ONE_GPU, "--no-claims")
    (box.folder / "go").touch()
    assert session.end().status == 0
    free = box.run("--dry-run", *ONE_GPU)

    assert held.status == 3
    assert "claimed by" in held.out
    assert "(run mine)" in held.out
    assert (unasked.status, free.status) == (0, 0)


def test_whoever_waits_for_a_claim_says_for_whose(box: Box):
    first = box.start(*ONE_GPU, "--name", "mine", str(box.list_of([WAIT])))
    first.says("job 1 started")

    second = another(box, *ONE_GPU, str(box.list_of(["true"])))
    second.says("waiting: GPU 0: claimed by")
    (box.folder / "go").touch()

    assert (first.end().status, second.end().status) == (0, 0)
    assert "(run mine)" in second.err


def test_a_gpu_that_another_dispatcher_claims_does_not_count_as_one_left_free(box: Box):
    first = box.start(*ONE_GPU, str(box.list_of([WAIT])))
    first.says("job 1 started")

    second = another(box, *MOMENT, "--gpus", "0,1", "--leave-free", "1", str(box.list_of(["true"])))
    second.says("waiting: as many GPUs are used as --leave-free 1 allows")
    second.crash()
    (box.folder / "go").touch()

    assert first.end().status == 0
    assert "job 1 started" not in second.err


def test_the_claim_of_a_dispatcher_that_was_killed_is_void(box: Box):
    """Its jobs go on; where they use the GPU, it is the driver who says so."""
    seen = box.training("seen", "--mem", str(20 * GIB), "--until", "go")
    first = box.start(*MOMENT, "--gpus", "0,1", str(box.list_of([WAIT, seen])))
    first.says("job 2 started")
    wait_until(lambda: box.trained(), "it trains", first.dump)
    first.crash()

    second = another(box, *MOMENT, "--gpus", "0,1", "--output", "raw", str(box.list_of(
        ["echo on $CUDA_VISIBLE_DEVICES"] * 2
    )))  # fmt: skip
    done = second.end()

    assert done.status == 0, done.err
    assert done.out.split("\n") == ["on 0", "on 0", ""]
    (box.folder / "go").touch()
    assert box.run("--resume").status == 0


def test_a_run_that_is_resumed_claims_where_its_jobs_still_run(box: Box):
    first = box.start(*ONE_GPU, "--name", "mine", str(box.list_of([WAIT])))
    first.says("job 1 started")
    first.crash()
    resumed = box.start("--resume", "mine")
    resumed.says("job 1 still runs")
    wait_until(lambda: claims(box), "it has claimed", resumed.dump)

    held = box.run("--dry-run", *ONE_GPU)
    (box.folder / "go").touch()

    assert held.status == 3
    assert "(run mine)" in held.out
    assert resumed.end().status == 0


def test_a_gang_claims_all_of_its_gpus_or_none(box: Box):
    first = box.start(*MOMENT, "--gpus", "1", str(box.list_of([WAIT])))
    first.says("job 1 started")

    second = another(box, *MOMENT, "--gpus", "0,1", "-n", "2", str(box.list_of(["touch ran"])))
    second.says("waiting: ")
    free = box.run("--dry-run", *MOMENT, "--gpus", "0")
    ran_early = (box.folder / "ran").exists()
    (box.folder / "go").touch()

    assert (first.end().status, second.end().status) == (0, 0)
    assert not ran_early
    assert free.status == 0


def test_the_last_jobs_of_a_run_that_drains_keep_their_claim(box: Box):
    first = box.start(*ONE_GPU, str(box.list_of([WAIT, "true"])))
    first.says("job 1 started")
    first.signal(signal.SIGINT)
    first.says("starting nothing more")

    held = box.run("--dry-run", *ONE_GPU)
    (box.folder / "go").touch()

    assert held.status == 3
    assert "claimed by" in held.out
    assert first.end().status == 130


def test_a_folder_that_cannot_be_used_is_one_line_before_anything_runs(box: Box):
    folder = box.folder / "open-to-all"
    folder.mkdir()
    folder.chmod(0o777)

    done = box.run(*MOMENT, "--claims", str(folder), commands=["touch ran"])

    assert done.status == 255
    assert len(done.err.splitlines()) == 1
    assert f"cannot use the claims in {folder}" in done.err
    assert "--no-claims" in done.err
    assert not (box.folder / "ran").exists()


# --- two people

TWO_USERS = (54321, 54322)
needs_two_users = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can be two others"
)


@pytest.fixture
def public(stub_library: Path) -> Iterator[Path]:
    """A folder below which everybody may read, with the driver and a place for claims."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    shutil.copytree(stub_library, folder / "driver")
    claims = folder / "claims"
    claims.mkdir()
    claims.chmod(0o1777)
    for uid in TWO_USERS:
        (folder / f"home-{uid}").mkdir()
        os.chown(folder / f"home-{uid}", uid, uid)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shared(public: Path) -> Iterator[Box]:
    """A box with one GPU and several users, whose jobs all write to one folder."""
    machine = StubMachine(public / "machine", public / "driver", gpus=[StubGpu(0)])
    for path in (public / "machine" / "procs", public / "machine" / "tmp"):
        path.chmod(0o1777)
    work = public / "work"
    work.mkdir()
    work.chmod(0o777)
    for name in ("began", "ended"):
        (work / name).touch()
        (work / name).chmod(0o666)
    box = Box(work, machine)
    box.env["SMARTSCHED_CLAIMS"] = str(public / "claims")
    yield box
    box.close()


def as_user(box: Box, uid: int, *args: str) -> Session:
    """Somebody else; he may read what root may, so that he has this interpreter and this code."""
    home = str(box.folder.parent / f"home-{uid}")
    return box.start(
        *args,
        env={"HOME": home, "XDG_STATE_HOME": f"{home}/state"},
        cwd=Path(home),
        become=(
            "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
            "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
        ),
    )  # fmt: skip


@needs_two_users
def test_two_people_never_use_one_gpu_at_once(shared: Box):
    command = f"cd {shared.folder} && {UNSEEN}"
    listing = str(shared.list_of([command] * 4))

    sessions = [as_user(shared, uid, *MOMENT, listing) for uid in TWO_USERS]

    assert [session.end().status for session in sessions] == [0, 0], sessions[0].dump()
    assert len(shared.lines("ended")) == 8
    assert most_at_once(shared) == 1
    assert claims(shared) == []


@needs_two_users
def test_another_person_s_claim_is_told_and_cannot_be_taken_away(shared: Box):
    command = f"cd {shared.folder} && {WAIT}"
    first = as_user(shared, TWO_USERS[0], *MOMENT, "--name", "hers", str(shared.list_of([command])))
    first.says("job 1 started")
    [claim] = claims(shared)

    second = as_user(shared, TWO_USERS[1], *MOMENT, str(shared.list_of(["true"])))
    second.says(f"waiting: GPU 0: claimed by user {TWO_USERS[0]} (run hers)")
    (shared.folder / "go").touch()

    assert (first.end().status, second.end().status) == (0, 0)
    status = claim.parent.stat()
    assert stat.S_IMODE(status.st_mode) == 0o1777


@needs_two_users
def test_somebody_who_holds_the_lock_for_ever_makes_us_wait_with_a_message(shared: Box):
    fd = os.open(shared.env["SMARTSCHED_CLAIMS"], os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)

    session = as_user(shared, TWO_USERS[0], *MOMENT, str(shared.list_of(["true"])))
    session.says("somebody holds their lock")
    session.says("waiting: GPU 0: the claims of this box are locked by somebody")
    os.close(fd)

    assert session.end().status == 0
