"""Pilots on a real Slurm, with the real agent: a list is run on what it grants, and on no more."""

import json
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests import slurm as fixtures
from tests.cli.harness import MOMENT, ROOT, Box, Session
from tests.lab.accounts import Accounts
from tests.slurm import SlurmCluster
from tests.sshd import Sshd, sshd
from tests.stub_nvml import StubGpu, StubMachine
from tests.waiting import wait_until

__all__ = ["sshd"]  # the fixture
slurm_cluster, slurm = fixtures.slurm_cluster, fixtures.slurm

GPUS = 4
# All nodes are this machine, and have the same GPUs.
ONE_NODE = "--nodelist=node1 --time=30"
ENDLESS = "#!/bin/sh\nexec sleep 600\n"


class PilotBox(Box):
    """A user's shell on a box with Slurm."""

    def __init__(self, folder: Path, machine: StubMachine, slurm: SlurmCluster) -> None:
        (folder / "work").mkdir(parents=True)
        super().__init__(folder / "work", machine)
        self.slurm = slurm
        self.accounts = Accounts(folder / "accounts")

    def begin(
        self, commands: Sequence[str], *options: str, slurm: str = ONE_NODE, **env: str
    ) -> Session:
        about = ["--listen", "127.0.0.1", *MOMENT, "--grace", "1s", "--lease", "10s"]
        listing = str(self.list_of(commands))
        return self.start("--slurm", slurm, *about, *options, listing, env=env)

    def gated(self, job: str, *options: str, gate: str = "go") -> str:
        """A job that is accounted for, and ends when that gate is opened."""
        return self.accounts.job(job, "--until", str(self.folder / gate), *options)

    def open(self, gate: str = "go") -> None:
        (self.folder / gate).touch()

    def begun(self, *jobs: str, times: int = 1) -> None:
        """Wait until these have had their GPUs so often."""

        def so_often() -> bool:
            counts = Counter(entry.job for entry in self.accounts.entries("start"))
            return all(counts[job] >= times for job in jobs)

        wait_until(so_often, f"{jobs} have begun", self.dump)

    def all_once(self, *jobs: str) -> None:
        """Each came to its end once, and never were there two of them."""
        assert sorted(self.accounts.ended()) == sorted(jobs), self.dump()
        assert self.accounts.doubles() == [], self.dump()

    def pilots(self) -> list[str]:
        """All that there were, by what they have left behind."""
        return sorted(path.name for path in self.state.glob("runs/*/pilots/*.log"))

    def agents(self) -> list[psutil.Process]:
        found = [psutil.Process(pid) for pid in self.processes()]
        return [process for process in found if "agent" in process.cmdline()]

    def is_on_record(self, text: str) -> bool:
        records = self.state.glob("agents/runs/*/jobs/**/*")
        return any(text in record.read_text() for record in records if record.is_file())

    def nothing_is_left(self, *, one_may_begin: bool = False) -> None:
        """`one_may_begin`: a pilot that waited, when the others leave: cancelled at that moment, it
        has no time to clear up its folder."""
        assert self.slurm.jobs() == {}
        wait_until(self.is_quiet, "nobody is left behind", self.dump)
        left = [path for path in self.state.glob("agents/*/*") if any(path.glob("jobs/*"))]
        assert left == []
        assert len(list(self.state.glob("agents/*/*"))) <= one_may_begin

    def dump(self) -> str:
        logs = [f"{path}:\n{path.read_text()}" for path in self.state.glob("runs/*/pilots/*")]
        said = [session.dump() for session in self._sessions]
        return "\n".join([*said, *logs, str(self.slurm.jobs()), *map(str, self.accounts.entries())])


@pytest.fixture
def box(slurm: SlurmCluster, tmp_path: Path, stub_library: Path) -> Iterator[PilotBox]:
    machine = StubMachine(tmp_path / "machine", stub_library, [StubGpu(n) for n in range(GPUS)])
    box = PilotBox(tmp_path / "box", machine, slurm)
    yield box
    box.close()  # or it would submit others


def submitted(slurm: SlurmCluster, *options: str) -> str:
    """A job of somebody else's, which runs."""
    job = slurm.tell("sbatch", "--parsable", "-o", "/dev/null", *options, stdin=ENDLESS)
    wait_until(lambda: slurm.jobs().get(job) == "RUNNING", "it runs", slurm.logs)
    return job


def test_a_list_is_run_on_what_slurm_grants_and_on_no_more(box: PilotBox):
    other = submitted(box.slurm, "--gres=gpu:1", "--nodelist=node1")
    jobs = [str(number) for number in range(1, 21)]

    session = box.begin(
        [box.accounts.job(job, "--seconds", "0.05") for job in jobs],
        "--pilots", "4", "--gpus-per-pilot", "2",
    )  # fmt: skip
    done = session.end()

    assert done.status == 0, box.dump()
    box.all_once(*jobs)
    granted = {StubGpu(index).uuid for index in (1, 2)}
    assert {uuid for entry in box.accounts.entries("start") for uuid in entry.uuids} == granted
    assert len(box.pilots()) == 1  # there was no room for others
    assert box.slurm.jobs() == {other: "RUNNING"}
    box.slurm.tell("scancel", other)


def test_pilots_end_by_themselves_when_nothing_is_left_to_do(box: PilotBox):
    session = box.begin([box.gated("1"), box.gated("2", gate="later")], "--pilots", "2")
    box.begun("1", "2")

    box.open()
    wait_until(lambda: len(box.slurm.jobs()) == 1, "one has ended", box.dump)
    box.open("later")

    assert session.end().status == 0, box.dump()
    box.nothing_is_left()
    assert "CANCELLED" not in box.dump()


@pytest.mark.parametrize("make", ["{program}", "SOME=thing && {program}"])
def test_a_remote_command_is_a_line_of_bash(box: PilotBox, make: str):
    program = make.format(program=shlex.join([sys.executable, "-m", "smartsched"]))

    session = box.begin([box.gated("1")], "--remote-command", program)
    box.begun("1")
    box.slurm.tell("scancel", "--batch", "--signal=USR2", *box.slurm.jobs())
    box.open()

    assert session.end().status == 0, box.dump()
    assert box.accounts.doubles() == []
    box.nothing_is_left()


def test_it_is_told_that_pilots_wait_and_why(box: PilotBox):
    other = submitted(box.slurm, f"--gres=gpu:{GPUS}", "--nodelist=node1")
    session = box.begin([box.accounts.job("1")])

    session.says("waiting: Slurm: 1 pilot waits (")
    hosts = json.loads(box.run("hosts", "--json").out)
    table = box.run("hosts").out
    assert hosts["pilots"].startswith("1 pilot waits (")
    assert hosts["hosts"] == []
    assert f"Slurm: {hosts['pilots']}\n" in table

    box.slurm.tell("scancel", other)
    assert session.end().status == 0, box.dump()
    box.nothing_is_left()


def test_what_waits_in_slurm_s_queue_is_withdrawn_when_the_run_is_ended(box: PilotBox):
    other = submitted(box.slurm, f"--gres=gpu:{GPUS}", "--nodelist=node1")
    session = box.begin([box.accounts.job("1")])
    session.says("1 pilot waits")

    session.signal(signal.SIGINT)

    assert session.end().status == 130, box.dump()
    assert box.slurm.jobs() == {other: "RUNNING"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--partition=nonesuch", "--slurm: sbatch: invalid partition specified: nonesuch"),
        ("--array=1-4", "--slurm: --array cannot be given: --pilots says how many there are"),
        ("--time='", '--slurm: "--time=\'" cannot be taken apart into words: No closing quotation'),
        ("--gpus=3", "--gpus-per-pilot is 2, and --slurm asks for 3: say it once"),
    ],
)
def test_wrong_options_are_refused_in_a_line_before_anything_begins(
    box: PilotBox, options: str, why: str
):
    done = box.begin([box.accounts.job("1")], "--gpus-per-pilot", "2", slurm=options).end()

    assert done.status == 2
    assert done.err.startswith(f"smartsched: {why}")
    assert done.err.count("\n") == 1
    assert list(box.state.glob("runs/*")) == []
    assert list(box.folder.glob("smartsched-logs/*")) == []
    assert box.slurm.jobs() == {}


def test_without_slurm_s_programs_it_says_so(box: PilotBox):
    done = box.begin([box.accounts.job("1")], PATH=str(Path(sys.executable).parent)).end()

    assert done.status == 2
    assert done.err == (
        "smartsched: --slurm: there is no sbatch in PATH: Slurm's client programs are needed here\n"
    )


def test_a_job_that_no_pilot_is_large_enough_for_fails_at_once(box: PilotBox):
    session = box.begin(["true  # smartsched: gpus=3"], "--gpus-per-pilot", "2")

    done = session.end()

    assert done.status == 1
    assert "it needs 3 GPUs on one host, and a pilot has 2 (--gpus-per-pilot)" in done.err
    assert box.pilots() == []


def test_nothing_is_submitted_for_a_look(box: PilotBox):
    done = box.begin([box.accounts.job("1")], "--dry-run").end()

    assert done.status == 2
    assert done.err == (
        "smartsched: which GPUs Slurm will grant cannot be seen before: leave out --slurm\n"
    )
    assert box.slurm.jobs() == {}


def test_jobs_of_a_pilot_that_is_warned_save_their_state_and_go_on_in_another_one(box: PilotBox):
    command = f"{box.gated('1', '--usr1-exit', '0')}"
    session = box.begin([command], "--checkpoint-signal", "USR1", "--yield-grace", "30s")
    box.begun("1")
    [first] = box.slurm.jobs()

    box.slurm.tell("scancel", "--batch", "--signal=USR2", first)
    session.says("leaves soon: nothing more is started there")
    session.says("job 1 was stopped after")
    box.begun("1", times=2)
    box.open()

    assert session.end().status == 0, box.dump()
    box.all_once("1")
    assert len(box.accounts.entries("usr1")) == 1
    assert len(box.pilots()) == 2
    box.nothing_is_left()


def test_jobs_of_a_pilot_that_somebody_cancels_are_started_anew(box: PilotBox):
    session = box.begin(
        [box.gated("1"), box.gated("2", "--term-exit", "3")], "--gpus-per-pilot", "2"
    )
    box.begun("1", "2")
    [first] = box.slurm.jobs()

    box.slurm.tell("scancel", first)
    box.begun("1", "2", times=2)
    box.open()

    done = session.end()
    assert done.status == 0, box.dump()
    box.all_once("1", "2")
    assert len(box.pilots()) == 2
    box.nothing_is_left()


def test_jobs_of_a_pilot_that_is_killed_at_once_are_started_anew_after_the_lease(box: PilotBox):
    session = box.begin([box.gated("1")])
    box.begun("1")

    for process in box.agents():
        process.kill()
    session.says("out of reach")
    box.begun("1", times=2)
    box.open()

    assert session.end().status == 0, box.dump()
    box.all_once("1")
    box.nothing_is_left()


def test_a_resumed_dispatcher_finds_its_pilots_and_submits_none_twice(box: PilotBox):
    jobs = ["1", "2", "3", "4", "5", "6"]
    session = box.begin([box.gated(job) for job in jobs], "--pilots", "3", "--gpus-per-pilot", "2")
    box.begun("1", "2", "3", "4")
    wait_until(lambda: len(box.slurm.jobs()) == 3, "three are submitted", box.dump)
    before = box.slurm.jobs()

    session.crash()
    session = box.start("--resume")
    session.says("4 running when it was left")
    wait_until(lambda: session.err.count("is here, with 2 GPUs") == 2, "both are back", box.dump)
    assert box.slurm.jobs().keys() == before.keys()
    box.open()

    assert session.end().status == 0, box.dump()
    box.all_once(*jobs)
    assert {f"pilot-{number}.log" for number in before} >= set(box.pilots())
    box.nothing_is_left(one_may_begin=True)


def test_what_has_ended_in_pilots_that_are_gone_is_not_run_once_more(box: PilotBox):
    commands = [box.gated("1", gate="early"), box.gated("2")]
    session = box.begin(commands, "--gpus-per-pilot", "2")
    box.begun("1", "2")

    session.crash()
    box.open("early")
    wait_until(lambda: box.accounts.ended() == ["1"], "the first ends meanwhile", box.dump)
    wait_until(lambda: box.is_on_record("exit 0"), "its wrapper says so", box.dump)
    box.slurm.cancel_all()
    session = box.start("--resume")
    session.says("job 1 ok")
    box.begun("2", times=2)
    box.open()

    assert session.end().status == 0, box.dump()
    box.all_once("1", "2")
    box.nothing_is_left()


def test_hosts_and_pilots_are_used_together(
    box: PilotBox, sshd: Sshd, tmp_path: Path, stub_library: Path, monkeypatch: pytest.MonkeyPatch
):
    host = StubMachine(tmp_path / "host", stub_library, [StubGpu(0, uuid="GPU-of-the-host")])
    there = {**host.env, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path / "of-the-host")}
    program = tmp_path / "program"
    argv = shlex.join([sys.executable, "-m", "smartsched"])
    variables = shlex.join(f"{name}={value}" for name, value in there.items())
    program.write_text(
        f'#!/bin/sh\ntest -n "$SLURM_JOB_ID" || export {variables}\nexec {argv} "$@"\n'
    )
    program.chmod(0o755)
    name = sshd.fresh_host("gpu9")
    path = f"{sshd.client()}:{os.environ['PATH']}"

    session = box.begin(
        [box.gated(job) for job in "123"],
        "--hosts", name, "--remote-command", str(program), "--pilots", "2",
        PATH=path,
    )  # fmt: skip
    box.begun("1", "2", "3")
    hosts = json.loads(box.run("hosts", "--json").out)
    box.open()

    assert session.end().status == 0, box.dump()
    box.all_once("1", "2", "3")
    assert hosts["pilots"] == "2 pilots run"
    assert len(hosts["hosts"]) == 3
    assert "GPU-of-the-host" in {e.uuids[0] for e in box.accounts.entries("start")}
    assert len(box.pilots()) == 2
    box.nothing_is_left()


@pytest.mark.soak
def test_pilots_that_never_join_are_given_up_and_the_run_ends(box: PilotBox):
    session = box.begin([box.accounts.job("1")], "--remote-command", "/nonexistent/smartsched")

    done = session.end()

    assert done.status == 1, box.dump()
    assert "ended without having joined (FAILED (NonZeroExitCode)): " in done.err
    assert "/nonexistent/smartsched: No such file or directory; its log: " in done.err
    assert "no more pilots are submitted: 3 pilots in a row ended without having joined" in done.err
    assert "to go on with what is left: smartsched --resume" in done.err
    box.nothing_is_left()


def test_a_pilot_that_comes_to_its_time_limit_is_replaced(box: PilotBox):
    command = box.gated("1", "--usr1-exit", "0")
    session = box.begin([command], "--checkpoint-signal", "USR1", slurm="--nodelist=node1 --time=1")
    box.begun("1")

    wait_until(lambda: len(box.accounts.entries("start")) == 2, "again", box.dump, 240.0)
    box.open()

    assert session.end().status == 0, box.dump()
    box.all_once("1")
    assert len(box.accounts.entries("usr1")) == 1
    assert "TIME LIMIT" not in box.dump()
    box.nothing_is_left()
