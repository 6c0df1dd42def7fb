"""Pilots on a real Slurm: submitted, watched, found again, cancelled. A script stands in for the
agent."""

import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from smartsched.core import slurm as texts
from smartsched.core.pilot_news import (
    Answers,
    Ended,
    PilotNews,
    Refused,
    Runs,
    Silent,
    Submitted,
    Waits,
)
from smartsched.core.slurm import PilotId
from smartsched.edges.clock import SteadyClock
from smartsched.edges.slurm.asking import check
from smartsched.edges.slurm.pilots import Slurm
from smartsched.edges.waiter import Waiter
from smartsched.errors import UsageError
from tests import slurm as fixtures
from tests.slurm import SlurmCluster
from tests.waiting import wait_until

slurm_cluster, slurm = fixtures.slurm_cluster, fixtures.slurm

PATIENCE_SECONDS = 60.0
# What an agent does at least: it says where it is, and goes on until it is told to end.
AGENT = """
cd {folder}
env > env-$SLURM_JOB_ID.part; mv env-$SLURM_JOB_ID.part env-$SLURM_JOB_ID
exec {python} agent.py
"""
AGENT_PROGRAM = """\
import os, signal, subprocess, sys, time

def warned(*_):
    job = os.environ["SLURM_JOB_ID"]
    left = subprocess.check_output(["squeue", "-h", "-j", job, "-o", "%L"], text=True)
    with open(f"warned-{job}.part", "w") as file:
        file.write(left)
    os.rename(f"warned-{job}.part", f"warned-{job}")

signal.signal(signal.SIGUSR2, warned)
while not os.path.exists("end"):
    time.sleep(0.1)
"""


class Dispatcher:
    """What a dispatcher does about pilots, but for deciding."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        *options: str,
        name: str = "",
        gpus_per_pilot: int = 2,
        command: str = "",
        resumed: bool = False,
        poll_seconds: float = 0.2,
        patience_seconds: float = 60.0,
        environment: dict[bytes, bytes] | None = None,
    ) -> None:
        folder = self.folder = folder / str(uuid.uuid4())
        folder.mkdir()
        self.name = name or f"smartsched-test.{folder.name}"
        self.clock = SteadyClock()
        self.waiter = Waiter(self.clock)
        stack.callback(self.waiter.close)
        self.environment = dict(os.environb) if environment is None else environment
        agent = folder / "agent"
        text = (command or AGENT).format(folder=folder, python=sys.executable)
        agent.write_text("#!/bin/bash\n" + text)
        (folder / "agent.py").write_text(AGENT_PROGRAM)
        agent.chmod(0o755)
        self.script = texts.script(str(agent), "")
        self.arguments = texts.sbatch_arguments(
            options,
            self.environment,
            gpus_per_pilot=gpus_per_pilot,
            name=self.name,
            log_folder=str(folder),
            warn_seconds=20.0,
        )
        self.slurm = Slurm(
            self.waiter,
            arguments=self.arguments,
            script=self.script,
            name=self.name,
            environment=self.environment,
            resumed=resumed,
            poll_seconds=poll_seconds,
            patience_seconds=patience_seconds,
        )
        stack.callback(self.slurm.close)
        self.news: list[PilotNews] = []

    def until(self, condition: Callable[[], object], patience: float = PATIENCE_SECONDS) -> None:
        """Do as the loop does until the condition is true."""
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, f"still not so; seen: {self.news}"
            now = self.clock.now()
            self.waiter.wait(min(now + 0.1, self.slurm.wake_at()))
            self.news += self.slurm.take(self.clock.now())

    def settle(self) -> None:
        self.until(self.slurm.is_settled)

    def heard(self, kind: type[PilotNews]) -> list[PilotNews]:
        return [each for each in self.news if isinstance(each, kind)]

    def submit(self) -> PilotId:
        """One that Slurm has taken."""
        known = len(self.heard(Submitted))
        self.slurm.submit()
        self.until(lambda: len(self.heard(Submitted)) > known)
        last = self.heard(Submitted)[-1]
        assert isinstance(last, Submitted)
        return last.pilot

    def start(self) -> PilotId:
        """One that runs."""
        pilot = self.submit()
        self.until(lambda: self.has_begun(pilot))
        return pilot

    def has_begun(self, pilot: PilotId) -> bool:
        return any(isinstance(n, Runs) and n.pilot == pilot for n in self.news)

    def end_of(self, pilot: PilotId, patience: float = PATIENCE_SECONDS) -> str:
        def found() -> list[str]:
            return [n.how for n in self.news if isinstance(n, Ended) and n.pilot == pilot]

        self.until(found, patience)
        return found()[0]

    def environment_of(self, pilot: PilotId) -> dict[str, str]:
        file = self.folder / f"env-{pilot}"
        self.until(file.exists)
        entries = (line.partition("=") for line in file.read_text().splitlines())
        return {name: value for name, _, value in entries}


MakeDispatcher = Callable[..., Dispatcher]


@pytest.fixture
def dispatcher_of(tmp_path: Path) -> Iterator[MakeDispatcher]:
    with ExitStack() as stack:
        yield lambda *options, **more: Dispatcher(stack, tmp_path, *options, **more)


def jobs_of(slurm: SlurmCluster, dispatcher: Dispatcher) -> dict[str, str]:
    return slurm.jobs(f"--name={dispatcher.name}")


# --- a pilot's life


def test_a_pilot_runs_with_the_gpus_that_it_was_granted_and_ends_by_itself(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    dispatcher = dispatcher_of("--time=10", "--partition=gpu")

    pilot = dispatcher.start()
    seen = dispatcher.environment_of(pilot)
    (dispatcher.folder / "end").touch()

    assert dispatcher.end_of(pilot) == "COMPLETED"
    assert dispatcher.slurm.wake_at() == float("inf")  # nobody asks Slurm about nothing
    [begun] = dispatcher.heard(Runs)
    assert isinstance(begun, Runs)
    assert begun.node == seen["SLURMD_NODENAME"]
    assert begun.ends_at == pytest.approx(dispatcher.clock.now() + 600, abs=60)
    assert len(seen["CUDA_VISIBLE_DEVICES"].split(",")) == 2
    assert seen["SLURM_JOB_ID"] == pilot
    assert (dispatcher.folder / f"pilot-{pilot}.log").exists()


def test_no_two_pilots_are_granted_the_same_gpu(slurm: SlurmCluster, dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of("--nodelist=node1", gpus_per_pilot=2)

    granted = [
        dispatcher.environment_of(dispatcher.start())["CUDA_VISIBLE_DEVICES"] for _ in range(2)
    ]

    assert sorted(granted) == ["0,1", "2,3"]


def test_a_pilot_inherits_the_environment_and_the_directory(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    environment = dict(os.environb) | {
        b"WANDB_PROJECT": b"x",
        b"BASH_FUNC_module%%": b"() { echo loaded; }",
        b"CUDA_VISIBLE_DEVICES": b"7",
        b"SLURM_JOB_ID": b"1",
        b"SLURM_JOB_END_TIME": b"1",
    }

    dispatcher = dispatcher_of(environment=environment, command="module\n" + AGENT)
    pilot = dispatcher.start()

    seen = dispatcher.environment_of(pilot)
    assert seen["WANDB_PROJECT"] == "x"
    assert seen["OLDPWD"] == os.getcwd()
    assert seen["CUDA_VISIBLE_DEVICES"] != "7"
    assert seen["SLURM_JOB_ID"] == pilot
    assert seen.get("SLURM_JOB_END_TIME") != "1"
    assert (dispatcher.folder / f"pilot-{pilot}.log").read_text() == "loaded\n"


def test_who_names_gpus_himself_gets_those(slurm: SlurmCluster, dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of("--gpus=3", gpus_per_pilot=2)

    seen = dispatcher.environment_of(dispatcher.start())

    assert len(seen["CUDA_VISIBLE_DEVICES"].split(",")) == 3


def test_a_pilot_that_has_to_wait_says_why(slurm: SlurmCluster, dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of("--nodelist=node1", gpus_per_pilot=4)
    dispatcher.start()

    second = dispatcher.submit()

    dispatcher.until(lambda: Waits(second, "Resources") in dispatcher.news)


def test_a_pilot_that_fails_says_so(slurm: SlurmCluster, dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of(command="exit 3")

    assert dispatcher.end_of(dispatcher.submit()) == "FAILED (NonZeroExitCode)"


def test_a_cancelled_pilot_ends(slurm: SlurmCluster, dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of()
    pilot = dispatcher.start()

    dispatcher.slurm.cancel(pilot)

    assert dispatcher.end_of(pilot) == "CANCELLED"
    dispatcher.settle()


def test_a_pilot_is_withdrawn_only_if_it_has_not_begun(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    dispatcher = dispatcher_of("--nodelist=node1", gpus_per_pilot=4)
    running, waiting = dispatcher.start(), dispatcher.submit()

    dispatcher.slurm.withdraw(running)
    dispatcher.slurm.withdraw(waiting)

    # Slurm may leave there why it had waited
    assert dispatcher.end_of(waiting) in ("CANCELLED", "CANCELLED (Resources)")
    dispatcher.settle()
    assert jobs_of(slurm, dispatcher) == {running: "RUNNING"}


def test_what_is_gone_already_can_be_cancelled_as_well(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    dispatcher = dispatcher_of(command="exit 0")
    pilot = dispatcher.submit()
    dispatcher.end_of(pilot)

    dispatcher.slurm.cancel(PilotId("4711"))
    dispatcher.slurm.withdraw(pilot)

    dispatcher.settle()


@pytest.mark.soak  # Slurm itself takes its time
@pytest.mark.timeout(300)
def test_a_pilot_is_warned_before_its_time_is_over_and_then_ended(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    """Slurm counts in minutes, and looks twice a minute."""
    dispatcher = dispatcher_of("--time=1")
    pilot = dispatcher.start()
    warned = dispatcher.folder / f"warned-{pilot}"

    dispatcher.until(warned.exists, patience=90)
    left = texts.parse_seconds_left(warned.read_text())
    how = dispatcher.end_of(pilot, patience=150)

    assert left is not None
    assert 10 < left <= 60
    assert how == "TIMEOUT (TimeLimit)"


# --- what goes wrong


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ("--partition=nope",),
            "sbatch: invalid partition specified: nope; Invalid partition name specified",
        ),
        (("--gres=gpu:9",), "sbatch: Requested node configuration is not available"),
        (("--bogus",), "sbatch: unrecognized option '--bogus'"),
        (("--time=soon",), "sbatch: Invalid --time specification"),
        (("gpu",), "sbatch: Unable to open file gpu"),
    ],
)
def test_what_slurm_does_not_take_is_one_clear_line(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher, options: tuple[str, ...], why: str
):
    dispatcher = dispatcher_of(*options)

    dispatcher.slurm.submit()
    dispatcher.settle()

    assert dispatcher.news == [Refused(why)]
    with pytest.raises(UsageError) as caught:
        check(dispatcher.arguments, dispatcher.script, dispatcher.environment)
    assert str(caught.value) == f"--slurm: {why}"


def test_what_slurm_would_take_is_not_submitted_by_the_question(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    dispatcher = dispatcher_of("--time=10")

    assert check(dispatcher.arguments, dispatcher.script, dispatcher.environment) is None
    assert slurm.jobs() == {}


def test_without_slurm_s_programs_a_line_says_what_is_needed(
    dispatcher_of: MakeDispatcher,
):
    dispatcher = dispatcher_of(environment={b"PATH": b"/nowhere"})

    dispatcher.slurm.submit()
    dispatcher.settle()

    needed = "there is no sbatch in PATH: Slurm's client programs are needed here"
    assert dispatcher.news == [Refused(f"sbatch: cannot be started: {needed}")]
    with pytest.raises(UsageError, match=needed):
        check(dispatcher.arguments, dispatcher.script, dispatcher.environment)


@pytest.mark.soak  # Slurm itself takes its time
@pytest.mark.timeout(300)
def test_while_nobody_answers_nothing_is_forgotten_nor_submitted_twice(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    dispatcher = dispatcher_of()
    pilot = dispatcher.start()

    slurm.stop_controller()
    try:
        question = check(dispatcher.arguments, dispatcher.script, dispatcher.environment)
        dispatcher.slurm.submit()
        dispatcher.until(lambda: dispatcher.heard(Silent), patience=90)
    finally:
        slurm.start_controller()

    assert question == "sbatch: Unable to contact slurm controller (connect failure)"
    dispatcher.until(lambda: dispatcher.heard(Answers), patience=90)
    dispatcher.settle()
    assert len(dispatcher.heard(Silent)) == 1
    assert not dispatcher.heard(Ended)
    told = len(dispatcher.heard(Submitted)) - 1 + len(dispatcher.heard(Refused))
    assert told == 1
    assert len(jobs_of(slurm, dispatcher)) == len(dispatcher.heard(Submitted))
    assert pilot in jobs_of(slurm, dispatcher)


def stub(folder: Path, program: str, text: str) -> None:
    path = folder / program
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def with_stubs(folder: Path, **programs: str) -> dict[bytes, bytes]:
    """An environment in which these are found before the real ones."""
    stubs = folder / "stubs"
    stubs.mkdir()
    for program, text in programs.items():
        stub(stubs, program, text)
    path = os.pathsep.join([str(stubs), os.environ["PATH"]])
    return dict(os.environb) | {b"PATH": os.fsencode(path)}


def test_a_submission_that_was_taken_though_sbatch_says_otherwise_is_found(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher, tmp_path: Path
):
    real = shutil.which("sbatch")
    lost = f'{real} "$@" >&2; echo "sbatch: error: Socket timed out on send/recv" >&2; exit 1'
    dispatcher = dispatcher_of(environment=with_stubs(tmp_path, sbatch=lost))

    dispatcher.slurm.submit()
    dispatcher.settle()

    [submitted] = dispatcher.heard(Submitted)
    assert not dispatcher.heard(Refused)
    assert isinstance(submitted, Submitted)
    assert list(jobs_of(slurm, dispatcher)) == [submitted.pilot]


def test_a_program_that_hangs_is_killed_with_all_that_it_has_started(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher, tmp_path: Path
):
    hangs = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    environment = with_stubs(tmp_path, sbatch=hangs)
    dispatcher = dispatcher_of(environment=environment, patience_seconds=0.5)

    dispatcher.slurm.submit()
    dispatcher.settle()

    assert dispatcher.news == [Refused("sbatch: it was not answered in time")]
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not lives(pid), "it is gone")


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- an earlier dispatcher


def test_after_a_restart_the_pilots_that_there_are_are_found_again(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    first = dispatcher_of("--nodelist=node1", gpus_per_pilot=4)
    running, waiting = first.start(), first.submit()
    other = dispatcher_of("--nodelist=node2").start()

    second = dispatcher_of("--nodelist=node1", name=first.name, resumed=True)
    second.until(lambda: second.heard(Answers))

    found = {each.pilot for each in second.heard(Submitted) if isinstance(each, Submitted)}
    assert found == {running, waiting}
    assert second.has_begun(running)
    assert second.news[-1] == Answers()
    assert slurm.jobs().keys() == {running, waiting, other}


def test_a_pilot_that_ended_meanwhile_is_nothing_to_find(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    first = dispatcher_of(command="exit 0")
    first.end_of(first.submit())

    second = dispatcher_of(name=first.name, resumed=True)
    second.until(lambda: second.heard(Answers))

    assert second.news == [Answers()]


def test_after_a_restart_nothing_is_submitted_before_slurm_has_answered(
    dispatcher_of: MakeDispatcher, tmp_path: Path
):
    environment = with_stubs(tmp_path, squeue="exit 1", sbatch=f"touch {tmp_path}/submitted")
    dispatcher = dispatcher_of(environment=environment, resumed=True)

    dispatcher.slurm.submit()
    dispatcher.until(lambda: dispatcher.heard(Silent))
    dispatcher.news += dispatcher.slurm.take(dispatcher.clock.now())

    assert dispatcher.news == [Silent("squeue: it does not say why")]
    assert not (tmp_path / "submitted").exists()
    assert dispatcher.slurm.wake_at() > dispatcher.clock.now()


# --- what it costs


def test_slurm_is_asked_rarely(slurm: SlurmCluster, dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of(poll_seconds=20.0)
    pilot = dispatcher.submit()
    first_look = dispatcher.slurm.wake_at() - dispatcher.clock.now()
    wait_until(lambda: slurm.jobs()[pilot] == "RUNNING", "it runs")

    dispatcher.slurm.look_soon(dispatcher.clock.now())
    dispatcher.until(lambda: dispatcher.has_begun(pilot))
    later = dispatcher.slurm.wake_at() - dispatcher.clock.now()

    assert 0 < first_look <= 5
    assert 30 < later <= 60


def test_no_program_of_slurm_s_is_left_as_a_zombie(
    slurm: SlurmCluster, dispatcher_of: MakeDispatcher
):
    dispatcher = dispatcher_of()
    dispatcher.start()

    dispatcher.until(lambda: dispatcher.slurm.pids() == [])


def test_somebody_else_may_await_the_children(slurm: SlurmCluster, dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of()
    dispatcher.slurm.submit()
    dispatcher.news += dispatcher.slurm.take(dispatcher.clock.now())
    [pid] = dispatcher.slurm.pids()

    os.waitpid(pid, 0)
    dispatcher.slurm.ended(pid)
    dispatcher.news += dispatcher.slurm.take(dispatcher.clock.now())

    assert len(dispatcher.heard(Submitted)) == 1
    assert pid not in dispatcher.slurm.pids()
