"""What a dispatcher makes of the jobs of one that was killed: real jobs, really orphaned."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from smartsched.core.events import Event, RunAdopted, RunCleared, RunLaunched, RunRevoked
from smartsched.core.model import Exited, JobId, Killed, Lost, ProcessId, Run, RunKey, Shell
from smartsched.core.tag import variables_of
from smartsched.edges import family
from smartsched.edges.family import Family
from tests.edges.jobs import Dispatcher
from tests.edges.predecessors import Launched, Predecessor
from tests.waiting import wait_until

MakeDispatcher = Callable[..., Dispatcher]
UNTIL_GATE = "echo ready; until [ -e gate ]; do sleep 0.02; done"


@pytest.fixture
def predecessor(tmp_path: Path) -> Iterator[Predecessor]:
    predecessor = Predecessor(tmp_path)
    yield predecessor
    predecessor.kill_jobs()


@pytest.fixture
def successor(dispatcher_of: MakeDispatcher, predecessor: Predecessor) -> Callable[[], Dispatcher]:
    """Kills the predecessor and makes the dispatcher that comes after it."""

    def make() -> Dispatcher:
        predecessor.die()
        return dispatcher_of(run_name=predecessor.run_name)

    return make


@pytest.fixture
def bystander(dispatcher_of: MakeDispatcher) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is part of no run. Leads a group and a session, as a job would."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    assert process.poll() is None, "somebody signalled a process that is not part of any run"
    process.kill()
    process.wait()


@pytest.fixture(params=["pidfd", "no pidfd"])
def any_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no pidfd":
        monkeypatch.setattr(os, "pidfd_open", no_pidfd)


def no_pidfd(pid: int, flags: int = 0) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def said(launched: Launched) -> list[str]:
    path = Path(launched.log)
    return path.read_text().split() if path.exists() else []


def when_said(count: int, *launched: Launched) -> None:
    wait_until(lambda: all(len(said(job)) >= count for job in launched))


def lives(process: ProcessId) -> bool:
    return Family(tuple).lives(process)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone(launched: Launched) -> bool:
    return not alive(launched.process.pid)


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def adopt(dispatcher: Dispatcher, *runs: Run) -> list[Event]:
    """What is news of them, but for those that just go on."""
    now = dispatcher.clock.now()
    events = [event for run in runs for event in dispatcher.processes.adopt(run, now) or ()]
    return [event for event in events if not isinstance(event, RunAdopted)]


@pytest.mark.usefixtures("any_kernel")
def test_jobs_outlive_their_dispatcher_and_are_told_with_their_true_status(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    jobs = predecessor.launch(*[f"{UNTIL_GATE}; exit {code}" for code in (0, 7, 255)])
    when_said(1, *jobs)
    dispatcher = successor()

    assert adopt(dispatcher, *[job.running for job in jobs]) == []
    dispatcher.take()
    assert dispatcher.events == []
    Path("gate").touch()

    endings = [dispatcher.exit_of(job.key) for job in jobs]
    assert [event.ending for event in endings] == [Exited(0), Exited(7), Exited(255)]
    assert [event.leftovers for event in endings] == [0, 0, 0]
    assert len(dispatcher.events) == 3
    assert list(dispatcher.attempts_folder.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.usefixtures("any_kernel")
def test_an_adopted_job_that_a_signal_ends_is_told_so(
    predecessor: Predecessor, successor: Callable[[], Dispatcher], signum: signal.Signals
):
    [job] = predecessor.launch(f"ulimit -c 0; {UNTIL_GATE}; kill -{int(signum)} $$")
    when_said(1, job)
    dispatcher = successor()
    adopt(dispatcher, job.running)

    Path("gate").touch()

    assert dispatcher.exit_of(job.key).ending == Killed(signum)


def test_an_end_is_noticed_at_once(predecessor: Predecessor, successor: Callable[[], Dispatcher]):
    [job] = predecessor.launch(f"{UNTIL_GATE}; exit 3")
    when_said(1, job)
    dispatcher = successor()
    adopt(dispatcher, job.running)
    dispatcher.take()
    assert dispatcher.processes.wake_at() == float("inf")

    Path("gate").touch()
    dispatcher.waiter.wait(dispatcher.clock.now() + 30)
    dispatcher.take()

    assert [event.run for event in dispatcher.events] == [job.key]


@pytest.mark.usefixtures("any_kernel")
def test_what_ended_meanwhile_is_told_with_the_time_of_its_record(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    ok, failed, killed = predecessor.launch("exit 0", "exit 5", "kill -9 $$")
    wait_until(lambda: gone(ok) and gone(failed) and gone(killed))
    dispatcher = successor()
    for job in (ok, failed, killed):
        os.utime(dispatcher.record(job.key.job), (ok.at, ok.at - 5))

    adopt(dispatcher, ok.running, failed.running, killed.stopping(killed_at=None))

    events = [dispatcher.exit_of(job.key) for job in (ok, failed, killed)]
    assert [event.ending for event in events] == [Exited(0), Exited(5), Killed(9)]
    assert [event.at for event in events] == pytest.approx([ok.at - 5] * 3, abs=1e-3)


def test_a_record_from_the_future_ends_its_run_now(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch("exit 5")
    wait_until(lambda: gone(job))
    dispatcher = successor()
    os.utime(dispatcher.record(), (job.at, job.at + 1e6))

    adopt(dispatcher, job.running)

    event = dispatcher.exit_of(job.key)
    assert job.at <= event.at <= dispatcher.clock.now()


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_vanished_without_a_record_is_lost(
    predecessor: Predecessor, successor: Callable[[], Dispatcher], when: str
):
    [job] = predecessor.launch(f"{UNTIL_GATE}; exit 3")
    when_said(1, job)
    dispatcher = successor()
    if when == "after":
        adopt(dispatcher, job.running)

    assert lives(job.process)
    os.killpg(job.process.pid, signal.SIGKILL)
    if when == "before":
        wait_until(lambda: gone(job))
        adopt(dispatcher, job.running)

    event = dispatcher.exit_of(job.key)
    assert event.ending == Lost()
    if event.leftovers:  # on a busy machine they take a moment to die
        dispatcher.cleared(job.key)


def test_what_we_killed_is_killed_and_not_lost(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch(f"{UNTIL_GATE}; exit 3")
    when_said(1, job)
    dispatcher = successor()
    assert lives(job.process)
    os.killpg(job.process.pid, signal.SIGKILL)
    wait_until(lambda: gone(job))

    adopt(dispatcher, job.stopping(killed_at=job.at))

    assert dispatcher.exit_of(job.key).ending == Killed(signal.SIGKILL)


def test_a_job_whose_wrapper_was_killed_is_lost_and_what_lives_of_it_is_left_over(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch("echo $$; exec sleep 600")
    when_said(1, job)
    [command] = map(int, said(job))
    dispatcher = successor()
    adopt(dispatcher, job.running)

    assert lives(job.process)
    os.kill(job.process.pid, signal.SIGKILL)

    event = dispatcher.exit_of(job.key)
    assert (event.ending, event.leftovers) == (Lost(), 1)
    dispatcher.processes.terminate(job.key)
    dispatcher.cleared(job.key)
    assert not alive(command)


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("off_by", [-1, 1, 12345])
def test_whoever_got_a_job_s_pid_later_is_neither_adopted_nor_signalled(
    predecessor: Predecessor,
    bystander: subprocess.Popen[bytes],
    successor: Callable[[], Dispatcher],
    off_by: int,
):
    [job] = predecessor.launch("exit 4")
    wait_until(lambda: gone(job))
    dispatcher = successor()
    forged = ProcessId(bystander.pid, start_of(bystander.pid) + off_by, boot())

    adopt(dispatcher, job.running_as(forged))
    dispatcher.processes.terminate(job.key)
    dispatcher.processes.kill(job.key)

    event = dispatcher.exit_of(job.key)
    assert (event.ending, event.leftovers) == (Exited(4), 0)
    dispatcher.processes.close()
    assert bystander.poll() is None


@pytest.mark.usefixtures("any_kernel")
def test_a_process_of_another_boot_is_not_adopted(
    predecessor: Predecessor,
    bystander: subprocess.Popen[bytes],
    successor: Callable[[], Dispatcher],
):
    [job] = predecessor.launch("kill -KILL $PPID")
    wait_until(lambda: gone(job))
    dispatcher = successor()
    other = ProcessId(bystander.pid, start_of(bystander.pid), "00000000-another-boot")

    adopt(dispatcher, job.running_as(other))
    dispatcher.processes.terminate(job.key)
    dispatcher.processes.kill(job.key)

    assert dispatcher.exit_of(job.key).ending in (Lost(), Killed(signal.SIGKILL))
    assert bystander.poll() is None


@pytest.mark.parametrize("pid", [0, 1, 2**22 + 5, 2**40, 2**62])
def test_a_pid_that_cannot_be_a_job_s_is_a_job_that_is_gone(
    predecessor: Predecessor,
    bystander: subprocess.Popen[bytes],
    successor: Callable[[], Dispatcher],
    pid: int,
):
    [job] = predecessor.launch("kill -KILL $PPID")
    wait_until(lambda: gone(job))
    dispatcher = successor()

    adopt(dispatcher, job.running_as(ProcessId(pid, 5, boot())))

    assert dispatcher.exit_of(job.key).ending == Lost()


def test_a_run_that_had_not_begun_never_will(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch("exit 0")
    wait_until(lambda: gone(job))
    dispatcher = successor()
    dispatcher.attempts.remove(job.key)

    [event] = adopt(dispatcher, job.starting)

    assert isinstance(event, RunRevoked)
    assert event.run == job.key
    assert dispatcher.record().read_bytes() == b"revoked\n"
    dispatcher.processes.written([event])
    assert dispatcher.record().read_bytes() == b"revoked\n"  # for a wrapper that is late
    dispatcher.take()
    assert dispatcher.events == []


def test_where_no_room_is_left_to_revoke_a_run_nobody_says_that_it_had_not_begun(
    predecessor: Predecessor,
    successor: Callable[[], Dispatcher],
    monkeypatch: pytest.MonkeyPatch,
):
    [job] = predecessor.launch("exit 0")
    wait_until(lambda: gone(job))
    dispatcher = successor()
    dispatcher.attempts.remove(job.key)

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(dispatcher.attempts, "revoke", full)
        assert dispatcher.processes.adopt(job.starting, dispatcher.clock.now()) is None
    assert job.key not in dispatcher.processes.living()

    assert [type(event) for event in adopt(dispatcher, job.starting)] == [RunRevoked]


@pytest.mark.usefixtures("any_kernel")
def test_a_run_that_began_just_before_its_dispatcher_died_is_adopted(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch(f"{UNTIL_GATE}; exit 6")
    when_said(1, job)
    dispatcher = successor()

    [event] = adopt(dispatcher, job.starting)

    assert isinstance(event, RunLaunched)
    assert (event.process, event.log) == (job.process, job.log)
    Path("gate").touch()
    assert dispatcher.exit_of(job.key).ending == Exited(6)


def test_a_run_that_began_and_ended_just_before_is_told_with_its_status(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch("exit 6")
    wait_until(lambda: gone(job))
    dispatcher = successor()

    [event] = adopt(dispatcher, job.starting)

    assert isinstance(event, RunLaunched)
    assert dispatcher.exit_of(job.key).ending == Exited(6)


def test_a_record_that_names_somebody_else_s_pid_leads_to_nobody(
    predecessor: Predecessor,
    bystander: subprocess.Popen[bytes],
    successor: Callable[[], Dispatcher],
):
    [job] = predecessor.launch("kill -KILL $PPID")
    wait_until(lambda: gone(job))
    dispatcher = successor()
    dispatcher.record().write_text(f"{bystander.pid}\n")

    [event] = adopt(dispatcher, job.starting)
    dispatcher.processes.terminate(job.key)
    dispatcher.processes.kill(job.key)

    assert isinstance(event, RunLaunched)
    assert event.process.boot == ""
    assert isinstance(dispatcher.exit_of(job.key).ending, Lost | Killed)
    assert bystander.poll() is None


def test_a_wrapper_that_is_about_to_say_who_it_is_is_waited_for(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch(f"{UNTIL_GATE}; exit 8")
    when_said(1, job)
    dispatcher = successor()
    record = dispatcher.record()
    whole = record.read_bytes()
    record.write_bytes(b"")
    writer = subprocess.Popen(
        ["/bin/sh", "-c", 'sleep 0.3; cat > "$1"', "sh", str(record)], stdin=subprocess.PIPE
    )
    assert writer.stdin is not None
    writer.stdin.write(whole)
    writer.stdin.close()

    [event] = adopt(dispatcher, job.starting)
    writer.wait()

    assert isinstance(event, RunLaunched)
    assert event.process == job.process
    Path("gate").touch()
    dispatcher.until(lambda: dispatcher.exits_of(job.key))


def test_a_wrapper_that_died_before_it_said_who_it_is_is_lost(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch("true")
    wait_until(lambda: gone(job))
    dispatcher = successor()
    dispatcher.record().write_bytes(b"")

    [event] = adopt(dispatcher, job.starting)

    assert isinstance(event, RunLaunched)
    assert dispatcher.exit_of(job.key).ending == Lost()


def test_a_run_without_leftovers_is_cleared_at_once(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch("true")
    wait_until(lambda: gone(job))
    dispatcher = successor()

    adopt(dispatcher, job.lingering)
    dispatcher.take()

    assert [type(event) for event in dispatcher.events] == [RunCleared]
    assert list(dispatcher.attempts_folder.iterdir()) == []


@pytest.mark.usefixtures("any_kernel")
def test_leftovers_of_an_earlier_dispatcher_s_run_are_found_and_ended(
    predecessor: Predecessor,
    bystander: subprocess.Popen[bytes],
    successor: Callable[[], Dispatcher],
):
    [job] = predecessor.launch("sleep 600 & echo $!; (setsid sleep 600 & echo $!); exit 0")
    when_said(2, job)
    wait_until(lambda: gone(job))
    dispatcher = successor()

    adopt(dispatcher, job.lingering)
    dispatcher.take()
    assert dispatcher.events == []
    assert all(map(alive, map(int, said(job))))

    dispatcher.processes.terminate(job.key)
    dispatcher.cleared(job.key)
    assert not any(map(alive, map(int, said(job))))


def test_whoever_waits_for_another_comes_before_it_though_pids_began_anew(
    monkeypatch: pytest.MonkeyPatch,
):
    """Else a shell whose child was asked to end before it may go on, and end well."""
    monkeypatch.setattr(family, "_adopt_orphans", lambda: False)
    everybody = psutil.process_iter
    monkeypatch.setattr(psutil, "process_iter", lambda: reversed(list(everybody())))
    script = "sh -c 'sh -c \"sleep 600; :\"; :'; :"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as shell:
        below = psutil.Process(shell.pid)
        try:
            wait_until(lambda: len(below.children(recursive=True)) == 3)
            generations = [below]
            while children := generations[-1].children():
                generations += children
            run = Shell(shell.pid, "test/1.1", is_known=True)

            members = Family(tuple).members(run, [run])

            assert members == generations[1:]
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


@pytest.mark.parametrize("is_reaped", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("moment", ["before the list is read", "as it is read", "thereafter"])
def test_who_is_begun_as_we_look_by_somebody_who_dies_is_found(
    monkeypatch: pytest.MonkeyPatch, moment: str, everywhere: bool, is_reaped: bool
):
    """As daemons are."""
    ours = Family(tuple)
    if everywhere:
        ours.look_everywhere()
    run_id = f"test.{uuid4()}"
    script = (
        "import os; os.read(0, 1);"
        "print(os.posix_spawnp('sleep', ['sleep', '600'], os.environ, setsid=True), flush=True)"
    )
    first = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", script],
        env=dict(os.environ) | variables_of(run_id, RunKey(JobId(1), 1)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert first.stdin is not None
    assert first.stdout is not None
    stdin, stdout = first.stdin, first.stdout

    def die() -> None:
        """Once."""
        if not stdin.closed:
            stdin.close()
            wait_until(lambda: psutil.Process(first.pid).status() == psutil.STATUS_ZOMBIE)
            if is_reaped:
                first.wait()
            begun.append(int(stdout.readline()))
            # in the midst of its exec it has no environment
            wait_until(lambda: run_id in psutil.Process(begun[0]).environ().values())

    begun: list[int] = []
    read, candidates = psutil.pids, Family._candidates
    readings = iter(["before the list is read", "as it is read"])

    def read_late() -> list[int]:
        pids = read()
        if next(readings, None) == moment:
            die()
        return pids

    def candidates_late(family: Family) -> list[tuple[psutil.Process, bool]]:
        found = list(candidates(family))
        die()
        return found

    monkeypatch.setattr(psutil, "pids", read_late)
    monkeypatch.setattr(Family, "_candidates", candidates_late)
    shell, other = (Shell(first.pid, f"{run_id}/{job}/1", is_known=False) for job in (1, 2))

    members = ours.members(shell, [shell, other])

    [pid] = begun
    stdout.close()
    os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # where orphans are not adopted
        os.waitpid(pid, 0)
    first.wait()
    assert [process.pid for process in members] == [pid]


def test_who_gets_another_parent_as_we_ask_for_his_is_found(monkeypatch: pytest.MonkeyPatch):
    run_id = f"test.{uuid4()}"
    ours = Family(tuple)
    parents, candidates = psutil.Process.parents, Family._candidates
    begun: list[subprocess.Popen[str]] = []

    def parents_late(process: psutil.Process) -> list[psutil.Process]:
        found = parents(process)
        for parent in found:
            if parent.pid == begun[0].pid:
                parent.kill()
                begun[0].wait()
                return found[:1]  # he was gone as his own parent was asked for
        return found

    def candidates_late(family: Family) -> list[tuple[psutil.Process, bool]]:
        found = list(candidates(family))
        begun.append(
            subprocess.Popen(
                ["sh", "-c", "sleep 600 & echo $!; wait"],
                env=dict(os.environ) | variables_of(run_id, RunKey(JobId(1), 1)),
                stdout=subprocess.PIPE,
                start_new_session=True,
                text=True,
            )
        )
        assert begun[0].stdout is not None
        pids.append(int(begun[0].stdout.readline()))
        begun[0].stdout.close()
        return found

    pids: list[int] = []
    monkeypatch.setattr(psutil.Process, "parents", parents_late)
    monkeypatch.setattr(Family, "_candidates", candidates_late)
    shells = [Shell(0, f"{run_id}/{job}/1", is_known=False) for job in (1, 2)]

    members = ours.members(shells[0], shells)

    os.kill(pids[0], signal.SIGKILL)
    os.waitpid(pids[0], 0)
    assert pids[0] in [process.pid for process in members]


TREE = "(setsid sleep 600 & echo $!); sleep 600 & echo $!; (sleep 600 & echo $!); echo $$; wait"


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_all_processes_of_an_adopted_run_are_ended_and_nobody_else(
    predecessor: Predecessor,
    bystander: subprocess.Popen[bytes],
    successor: Callable[[], Dispatcher],
    how: str,
):
    job, other = predecessor.launch(TREE, TREE)
    when_said(4, job, other)
    dispatcher = successor()
    adopt(dispatcher, job.running, other.running)

    if how == "terminate":
        dispatcher.processes.terminate(job.key)
        expected = Killed(signal.SIGTERM)
    else:
        dispatcher.processes.kill(job.key)
        expected = Killed(signal.SIGKILL)

    assert dispatcher.exit_of(job.key).ending == expected
    wait_until(lambda: not any(map(alive, map(int, said(job)))))
    assert all(map(alive, [*map(int, said(other)), other.process.pid, bystander.pid]))
    assert dispatcher.exits_of(other.key) == []


def test_an_adopted_job_that_is_stopped_ends_when_asked(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch("echo $$; kill -STOP $$; sleep 600")
    when_said(1, job)
    [pid] = map(int, said(job))
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    dispatcher = successor()
    adopt(dispatcher, job.running)

    dispatcher.processes.terminate(job.key)

    assert dispatcher.exit_of(job.key).ending == Killed(signal.SIGTERM)


def test_an_adopted_job_that_ignores_sigterm_is_killed(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch("trap 'echo asked' TERM; echo $$; while :; do sleep 0.02; done")
    when_said(1, job)
    dispatcher = successor()
    adopt(dispatcher, job.running)
    dispatcher.processes.terminate(job.key)
    dispatcher.until(lambda: "asked" in said(job))
    assert dispatcher.events == []

    dispatcher.processes.kill(job.key)

    assert dispatcher.exit_of(job.key).ending == Killed(signal.SIGKILL)
    wait_until(lambda: not alive(int(said(job)[0])))


def test_another_run_s_jobs_are_never_touched(
    predecessor: Predecessor, successor: Callable[[], Dispatcher], tmp_path: Path
):
    (tmp_path / "other").mkdir()
    stranger = Predecessor(tmp_path / "other")
    try:
        [job] = predecessor.launch(TREE)
        [theirs] = stranger.launch(TREE)
        when_said(4, job, theirs)
        stranger.die()
        dispatcher = successor()
        adopt(dispatcher, job.running)

        dispatcher.processes.kill(job.key)
        dispatcher.exit_of(job.key)
        dispatcher.processes.close()

        assert all(map(alive, [*map(int, said(theirs)), theirs.process.pid]))
    finally:
        stranger.kill_jobs()


def test_jobs_of_both_dispatchers_run_side_by_side(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    [job] = predecessor.launch(f"{UNTIL_GATE}; exit 3")
    when_said(1, job)
    dispatcher = successor()
    adopt(dispatcher, job.running)

    own = dispatcher.start("exit 4", 2)
    assert dispatcher.exit_of(own).ending == Exited(4)
    lingering = dispatcher.start("sleep 600 & exit 5", 3)
    assert dispatcher.exit_of(lingering).leftovers == 1
    dispatcher.processes.terminate(lingering)
    dispatcher.cleared(lingering)

    Path("gate").touch()
    event = dispatcher.exit_of(job.key)
    assert (event.ending, event.leftovers) == (Exited(3), 0)


def test_an_adopted_run_s_descriptors_are_let_go(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    jobs = predecessor.launch(*[f"{UNTIL_GATE}; exit 3"] * 8)
    when_said(1, *jobs)
    dispatcher = successor()
    before = len(os.listdir("/proc/self/fd"))

    adopt(dispatcher, *[job.running for job in jobs])
    Path("gate").touch()
    for job in jobs:
        dispatcher.exit_of(job.key)

    assert len(os.listdir("/proc/self/fd")) == before


def test_who_is_gone_and_who_is_a_zombie_does_not_live(dispatcher: Dispatcher):
    child = subprocess.Popen(["true"])
    identity = ProcessId(child.pid, start_of(child.pid), boot())
    wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)

    assert not lives(identity)
    child.wait()
    assert not lives(identity)
    assert lives(ProcessId(os.getpid(), start_of(os.getpid()), boot()))
    assert not lives(ProcessId(0, 0, ""))
    assert not lives(ProcessId(0, 0, boot()))


@pytest.mark.usefixtures("any_kernel")
def test_how_long_an_adopted_job_has_run_does_not_depend_on_the_clock(
    predecessor: Predecessor, successor: Callable[[], Dispatcher]
):
    """Somebody may have set it since: what the kernel knows of the process decides."""
    [job] = predecessor.launch(UNTIL_GATE)
    when_said(1, job)
    dispatcher = successor()
    now = dispatcher.clock.now() + 3600

    events = dispatcher.processes.adopt(job.running, now)

    assert events is not None
    [event] = events
    assert isinstance(event, RunAdopted)
    assert 0 <= now - event.since < 60
    Path("gate").touch()
    dispatcher.exit_of(job.key)
