"""Several jobs on one GPU: how many, beside whom, and what is said of it."""

from collections import Counter

from tests.cli.harness import MOMENT, Box, Session
from tests.stub_nvml import GIB, stranger_process
from tests.waiting import wait_until


def gated(box: Box, name: str, gib: int = 10, until: str = "go", seconds: float = 600) -> str:
    """Trains until that file is there."""
    use = ("--mem", str(gib * GIB), "--util", "30", "--seconds", str(seconds), "--until", until)
    return box.training(name, *use)


def briefly(box: Box, name: str, seconds: float = 0.8) -> str:
    """Long enough to be seen at it several times."""
    return gated(box, name, 8, "never", seconds)


def most_at_once(box: Box) -> dict[str, int]:
    """On each GPU, by what the jobs themselves say."""
    moments = [(at, 1, uuid) for _, uuid, at in box.trained()]
    moments += [(at, -1, uuid) for _, uuid, at in box.trained("end")]
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for _, change, uuid in sorted(moments):
        now[uuid] += change
        most[uuid] = max(most[uuid], now[uuid])
    return {uuid[-1]: count for uuid, count in most.items()}


def wait_for_starts(box: Box, session: Session, count: int) -> None:
    wait_until(lambda: len(box.trained()) >= count, f"{count} have started", session.dump)


# --- as many as asked for


def test_two_jobs_share_a_gpu_where_asked_and_never_three(box: Box):
    commands = [briefly(box, str(n), 0.3) for n in range(12)]

    done = box.run(*MOMENT, "--gpus", "0,1", "--jobs-per-gpu", "2", commands=commands)

    assert done.status == 0
    assert most_at_once(box) == {"0": 2, "1": 2}
    assert len(box.trained("end")) == 12


def test_gpus_where_nothing_runs_are_filled_before_any_is_shared(box: Box):
    session = box.start(
        *MOMENT, "--jobs-per-gpu", "2", str(box.list_of([gated(box, str(n)) for n in range(5)]))
    )
    wait_for_starts(box, session, 5)
    (box.folder / "go").touch()

    assert session.end().status == 0
    assert sorted(most_at_once(box).values()) == [1, 1, 1, 2]


def test_a_job_goes_only_where_the_memory_that_it_asks_for_is_left(box: Box):
    """Beside somebody below the threshold: of 80 GiB he has 7, so that seven times ten are left."""
    commands = [gated(box, str(n)) for n in range(9)]
    with stranger_process() as stranger:
        box.machine.add_stranger(0, 7 * GIB, stranger.pid)
        session = box.start(
            *MOMENT, "--gpus", "0", "--jobs-per-gpu", "9", "--job-mem", "10GiB",
            str(box.list_of([*commands, "true  # smartsched: gpus=0"])),
        )  # fmt: skip
        wait_for_starts(box, session, 7)
        session.says("job 10 ok")
        started = len(box.events("run_launched")) - 1
        (box.folder / "go").touch()
        done = session.end()

    assert started == 7
    assert done.status == 0
    assert most_at_once(box) == {"0": 7}


def test_a_command_may_ask_for_more_memory_than_the_others(box: Box):
    commands = [
        gated(box, "small"),
        f"{gated(box, 'large')}  # smartsched: mem=71GiB",
        gated(box, "third"),
    ]
    session = box.start(
        *MOMENT, "--gpus", "0,1", "--jobs-per-gpu", "2", "--job-mem", "10GiB",
        str(box.list_of(commands)),
    )  # fmt: skip
    wait_for_starts(box, session, 3)
    (box.folder / "go").touch()

    assert session.end().status == 0
    on = {name: uuid for name, uuid, _ in box.trained()}
    assert on["small"] == on["third"] != on["large"]


def test_a_gang_shares_its_gpus_with_others(box: Box):
    commands = [gated(box, "gang"), gated(box, "one"), gated(box, "two")]
    commands[0] += "  # smartsched: gpus=2"
    session = box.start(*MOMENT, "--gpus", "0,1", "--jobs-per-gpu", "2", str(box.list_of(commands)))
    wait_for_starts(box, session, 3)
    (box.folder / "go").touch()

    assert session.end().status == 0
    assert {uuid[-1] for name, uuid, _ in box.trained() if name != "gang"} == {"0", "1"}


def test_a_gpu_that_takes_one_process_only_is_never_shared(box: Box):
    box.machine.set(0, compute_mode=3)

    done = box.run(
        *MOMENT, "--gpus", "0", "--jobs-per-gpu", "2",
        commands=[briefly(box, str(n), 0.2) for n in range(3)],
    )  # fmt: skip

    assert done.status == 0
    assert most_at_once(box) == {"0": 1}


# --- as many as fit


def test_the_first_of_a_shape_runs_alone_and_its_siblings_together(box: Box):
    commands = [briefly(box, str(n)) for n in range(7)]

    done = box.run(*MOMENT, "--gpus", "0", "--jobs-per-gpu", "auto", commands=commands)

    assert done.status == 0, done.err
    ends = {name: at for name, _, at in box.trained("end")}
    assert all(at > ends["0"] for name, _, at in box.trained() if name != "0")
    assert most_at_once(box) == {"0": 3}


def test_what_was_learned_packs_the_next_run_from_its_first_job(box: Box):
    assert box.run(*MOMENT, "--gpus", "0", commands=[briefly(box, "teacher")]).status == 0
    commands = [gated(box, name) for name in "abc"]

    session = box.start(
        *MOMENT, "--gpus", "1", "--jobs-per-gpu", "auto", str(box.list_of(commands))
    )
    wait_for_starts(box, session, 4)
    (box.folder / "go").touch()

    assert session.end().status == 0


def test_jobs_of_another_shape_are_not_packed_by_what_these_have_used(box: Box):
    commands = [briefly(box, "a"), briefly(box, "b"), f"nice {briefly(box, 'c')}"]

    done = box.run(*MOMENT, "--gpus", "0", "--jobs-per-gpu", "auto", commands=commands)

    assert done.status == 0
    assert most_at_once(box) == {"0": 1}


def test_no_more_are_packed_than_the_gpu_has_time_for(box: Box):
    """Each takes 60 % of it, and together they may take 125."""
    commands = [
        box.training(str(n), "--mem", str(GIB), "--util", "60", "--seconds", "0.8")
        for n in range(5)
    ]

    done = box.run(*MOMENT, "--gpus", "0", "--jobs-per-gpu", "auto", commands=commands)

    assert done.status == 0
    assert most_at_once(box) == {"0": 2}


# --- what is said


def test_a_run_that_did_not_pack_is_told_what_would_have_fitted(box: Box):
    commands = [briefly(box, str(n)) for n in range(4)]

    done = box.run(*MOMENT, commands=commands)

    assert done.status == 0
    last = done.err.splitlines()[-1]
    assert "the jobs took up to 10% of a GPU's memory and 30% of its time:" in last
    assert "--jobs-per-gpu 4 would fit" in last


def test_a_run_that_packs_gets_no_advice(box: Box):
    commands = [briefly(box, str(n)) for n in range(4)]

    done = box.run(*MOMENT, "--jobs-per-gpu", "2", commands=commands)

    assert done.status == 0
    assert "would fit" not in done.err


def test_gpu_hours_of_shared_gpus_are_told_in_the_summary(box: Box):
    done = box.run(
        *MOMENT, "--gpus", "0", "--jobs-per-gpu", "2",
        commands=[briefly(box, str(n), 0.2) for n in range(4)],
    )  # fmt: skip

    assert "4 jobs ok, 0 failed; " in done.err
    assert "GPU-hours" in done.err


def test_packed_jobs_that_live_through_a_crash_are_packed_still(box: Box):
    commands = [gated(box, str(n)) for n in range(2)] + [gated(box, "late")]
    session = box.start(
        *MOMENT, "--gpus", "0", "--jobs-per-gpu", "2", "--job-mem", "12GiB",
        str(box.list_of(commands)),
    )  # fmt: skip
    wait_for_starts(box, session, 2)
    wait_until(lambda: len(box.events("run_launched")) == 2, "both are on record", session.dump)
    session.crash()

    session = box.start("--resume")
    session.says("job 2 still runs")
    (box.folder / "go").touch()

    done = session.end()
    assert done.status == 0, done.err
    assert most_at_once(box) == {"0": 2}
    assert sorted(name for name, _, _ in box.trained()) == ["0", "1", "late"]
