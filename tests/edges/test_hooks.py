"""The user's own command for each finished job: real processes beside real jobs."""

import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from smartsched.core.actions import Tell
from smartsched.core.model import (
    EndedRun,
    Ending,
    Exited,
    Job,
    JobId,
    JobSpec,
    Killed,
    Lost,
    NotStarted,
    Outcome,
)
from smartsched.edges.hooks import Hooks, NoHooks
from tests.builders import T0, a_run
from tests.edges.jobs import Dispatcher, placement

MakeDispatcher = Callable[..., Dispatcher]
DUMP = "cat /proc/$$/environ > env-$SMARTSCHED_JOB; :"


def tell(
    job: int = 1,
    ending: Ending = Exited(0),  # noqa: B008  # a frozen value
    outcome: Outcome = "ok",
    command: str = "python train.py",
    log: str | None = "/logs/0001.log",
) -> Tell:
    spec = JobSpec(command, "list:1", "/wd")
    ended = EndedRun(
        key=a_run(job, 2),
        job=Job(JobId(job), spec, attempts=2),
        placement=placement("3", "0"),
        started_at=T0,
        ended_at=T0 + 2.5,
        ending=ending,
        why_stopped=None,
        log=log,
    )
    return Tell(ended, outcome)


class Beside:
    """A dispatcher with hooks, wired as the program wires them."""

    def __init__(
        self,
        dispatcher_of: MakeDispatcher,
        command: str,
        shell: str = "/bin/bash",
        environment: dict[bytes, bytes] | None = None,
    ) -> None:
        self.warnings: list[str] = []
        self.hooks = Hooks(
            command,
            shell=shell,
            environment=dict(os.environb) if environment is None else environment,
            run_name="my-run",
            when_failed=self.warnings.append,
        )
        self.dispatcher = dispatcher_of(other_children=self.children, on_other_end=self.hooks.ended)

    def children(self) -> Collection[int]:
        return self.hooks.pids()

    def settled(self) -> None:
        self.dispatcher.until(self.hooks.is_settled)


def environment_in(path: Path) -> dict[str, str]:
    entries = path.read_bytes().decode("utf-8", "surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def told(dispatcher_of: MakeDispatcher, what: Tell) -> dict[str, str]:
    beside = Beside(dispatcher_of, DUMP)
    beside.hooks.tell(what)
    beside.settled()
    return environment_in(Path(f"env-{what.ended.key.job}"))


def test_a_job_s_fields_are_in_the_environment(dispatcher_of: MakeDispatcher):
    seen = told(dispatcher_of, tell(7, Exited(3), "failed"))

    fields = {k: v for k, v in seen.items() if k.startswith("SMARTSCHED_")}
    del fields["SMARTSCHED_CLAIMS"]  # the tests' own
    assert fields == {
        "SMARTSCHED_ON_FINISH": "1",
        "SMARTSCHED_RUN": "my-run",
        "SMARTSCHED_JOB": "7",
        "SMARTSCHED_NAME": "",
        "SMARTSCHED_ATTEMPTS": "2",
        "SMARTSCHED_COMMAND": "python train.py",
        "SMARTSCHED_DIRECTORY": "/wd",
        "SMARTSCHED_OUTCOME": "failed",
        "SMARTSCHED_EXIT_STATUS": "3",
        "SMARTSCHED_SIGNAL": "",
        "SMARTSCHED_GPUS": "3,0",
        "SMARTSCHED_STARTED_AT": f"{T0:.3f}",
        "SMARTSCHED_SECONDS": "2.500",
        "SMARTSCHED_LOG": "/logs/0001.log",
    }


@pytest.mark.parametrize(
    ("ending", "status", "signum"),
    [(Exited(0), "0", ""), (Killed(9), "", "9"), (Lost(), "", ""), (NotStarted("no"), "", "")],
)
def test_how_a_job_ended_is_told(
    dispatcher_of: MakeDispatcher, ending: Ending, status: str, signum: str
):
    seen = told(dispatcher_of, tell(ending=ending, log=None))

    fields = ("SMARTSCHED_EXIT_STATUS", "SMARTSCHED_SIGNAL", "SMARTSCHED_LOG")
    assert [seen[field] for field in fields] == [status, signum, ""]


@pytest.mark.parametrize(
    "command",
    ["x" * 200_000, "\U0001f600" * 200_000, "a\n'b' \udcff"],
    ids=["long", "wide", "odd"],  # pytest tells it to everybody in a variable
)
def test_any_command_can_be_told_cut_to_what_fits(dispatcher_of: MakeDispatcher, command: str):
    seen = told(dispatcher_of, tell(command=command))

    assert seen["SMARTSCHED_COMMAND"] == command[:30_000]


def test_it_is_told_of_jobs_though_we_are_part_of_one_ourselves(dispatcher_of: MakeDispatcher):
    inherited = {
        b"SMARTSCHED_RUN": b"outer",
        b"SMARTSCHED_RUN_ID": b"outer",
        b"SMARTSCHED_JOB": b"9",
        b"SMARTSCHED_ATTEMPT": b"1",
    }
    beside = Beside(dispatcher_of, DUMP, environment=dict(os.environb) | inherited)

    beside.hooks.tell(tell(7))
    beside.settled()

    seen = environment_in(Path("env-7"))
    assert (seen["SMARTSCHED_RUN"], seen["SMARTSCHED_JOB"]) == ("my-run", "7")
    assert "SMARTSCHED_ATTEMPT" not in seen


def test_of_many_at_most_eight_run_at_once_and_all_get_their_turn(dispatcher_of: MakeDispatcher):
    command = "touch on-$SMARTSCHED_JOB; until [ -e gate ]; do sleep 0.02; done"
    beside = Beside(dispatcher_of, command)

    for job in range(1, 31):
        beside.hooks.tell(tell(job))
    beside.dispatcher.until(lambda: len(list(Path().glob("on-*"))) == 8)
    assert len(beside.hooks.pids()) == 8
    assert not beside.hooks.is_settled()
    Path("gate").touch()

    beside.settled()
    assert len(list(Path().glob("on-*"))) == 30
    assert beside.hooks.pids() == []


def test_a_command_that_cannot_be_started_is_warned_of_each_time(dispatcher_of: MakeDispatcher):
    beside = Beside(dispatcher_of, "true", shell="/no/such/shell")

    beside.hooks.tell(tell(1))
    beside.hooks.tell(tell(2))

    assert beside.warnings == ["No such file or directory"] * 2
    assert beside.hooks.is_settled()


def test_one_that_fails_or_is_killed_is_over_as_any_other(dispatcher_of: MakeDispatcher):
    beside = Beside(dispatcher_of, "kill -9 $$")

    beside.hooks.tell(tell())

    beside.settled()
    assert beside.warnings == []


def test_its_output_does_not_mix_with_the_jobs(
    dispatcher_of: MakeDispatcher, capfd: pytest.CaptureFixture[str]
):
    beside = Beside(dispatcher_of, "echo out; echo err >&2; cat")

    beside.hooks.tell(tell())
    beside.settled()

    assert capfd.readouterr() == ("", "out\nerr\n")


def test_signals_are_as_a_terminal_would_leave_them(dispatcher_of: MakeDispatcher):
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        beside = Beside(dispatcher_of, "grep -E '^Sig(Blk|Ign)' /proc/self/status > signals")
        beside.hooks.tell(tell())
        beside.settled()
    finally:
        signal.signal(signal.SIGHUP, hangup)

    of_glibc = 0b11 << 31  # 32 and 33 are its own; its posix_spawn lets children ignore them
    _, blocked, _, ignored = Path("signals").read_text().split()
    assert (int(blocked, 16), int(ignored, 16) & ~of_glibc) == (0, 0)


def test_a_running_one_is_nobody_s_leftover_and_nobody_ends_it(dispatcher_of: MakeDispatcher):
    beside = Beside(dispatcher_of, "echo $$ > pid; until [ -e gate ]; do sleep 0.02; done")
    beside.hooks.tell(tell())
    beside.dispatcher.until(lambda: Path("pid").exists() and Path("pid").read_text())

    event = beside.dispatcher.exit_of(beside.dispatcher.start("true", 5))
    assert event.leftovers == 0
    running = beside.dispatcher.start("sleep 600", 6)
    beside.dispatcher.processes.kill(running)
    assert beside.dispatcher.exit_of(running).leftovers == 0

    assert psutil.Process(int(Path("pid").read_text())).is_running()
    Path("gate").touch()
    beside.settled()


def test_what_it_leaves_behind_is_no_run_s_leftover(dispatcher_of: MakeDispatcher):
    beside = Beside(
        dispatcher_of, "(until [ -e gate ]; do sleep 0.02; done; touch done) & echo $! > pid"
    )
    beside.hooks.tell(tell())
    beside.settled()
    [left] = [int(pid) for pid in Path("pid").read_text().split()]

    event = beside.dispatcher.exit_of(beside.dispatcher.start("true", 5))
    assert event.leftovers == 0
    running = beside.dispatcher.start("sleep 600", 6)
    beside.dispatcher.processes.kill(running)
    beside.dispatcher.exit_of(running)

    assert psutil.pid_exists(left)
    Path("gate").touch()
    beside.dispatcher.until(Path("done").exists)


def test_without_a_command_nobody_is_told():
    nobody = NoHooks()

    nobody.tell(tell())
    nobody.ended(1)

    assert (nobody.pids(), nobody.is_settled()) == ([], True)


def test_a_job_s_time_is_never_negative(dispatcher_of: MakeDispatcher):
    what = tell()

    seen = told(dispatcher_of, replace(what, ended=replace(what.ended, ended_at=T0 - 5)))

    assert seen["SMARTSCHED_SECONDS"] == "0.000"
