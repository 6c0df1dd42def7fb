"""Jobs as real processes: what they are given, how they end, and what they leave behind."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from smartsched.core.actions import Launch
from smartsched.core.events import RunExited, RunLaunched, RunPostponed
from smartsched.core.model import Exited, Killed, NotStarted, RunKey
from smartsched.edges import processes
from smartsched.edges.outputs import Untouched
from smartsched.edges.processes import LONGEST_ARGUMENT_BYTES
from tests.edges.jobs import Dispatcher, launch_of
from tests.waiting import wait_until

MakeDispatcher = Callable[..., Dispatcher]
LONG = "x" * LONGEST_ARGUMENT_BYTES
# A variable that is no name makes bash the wrapper's interpreter instead of /bin/sh.
PLAIN = {b"PATH": os.environb[b"PATH"]}
ODD = PLAIN | {b"no.name": b"1"}
ANY_WRAPPER = pytest.mark.parametrize("environment", [PLAIN, ODD], ids=["sh", "bash"])


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class FailingOutput(Untouched):
    """An Output that cannot be opened at first."""

    def __init__(self, error: int) -> None:
        self.error: int | None = error

    def open(self, run: RunKey, launch: Launch) -> list[tuple[Any, ...]]:
        error, self.error = self.error, None
        if error is not None:
            raise OSError(error, os.strerror(error))
        return super().open(run, launch)


def test_a_job_sees_its_gpus_and_who_it_is(dispatcher: Dispatcher):
    run = dispatcher.start("env", 7, 2, "3", "0")
    dispatcher.exit_of(run)

    seen = dict(line.split("=", 1) for line in dispatcher.log(7, 2).splitlines() if "=" in line)
    assert seen["CUDA_VISIBLE_DEVICES"] == "3,0"
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert seen["PYTHONUNBUFFERED"] == "1"
    assert seen["SMARTSCHED_RUN"] == dispatcher.run_name
    assert seen["SMARTSCHED_JOB"] == "7"
    assert seen["SMARTSCHED_ATTEMPT"] == "2"
    assert seen["SMARTSCHED_GPUS"] == "3,0"
    assert seen["SMARTSCHED_GPU_UUIDS"] == "GPU-3,GPU-0"


def test_inherited_gpus_are_overwritten_and_everything_else_is_kept(dispatcher_of: MakeDispatcher):
    environment = {
        b"PATH": os.environb[b"PATH"],
        b"CUDA_VISIBLE_DEVICES": b"5",
        b"CUDA_DEVICE_ORDER": b"FASTEST_FIRST",
        b"SMARTSCHED_JOB": b"99",
        b"PYTHONUNBUFFERED": b"",
        b"ODD": b"\xff",
    }
    dispatcher = dispatcher_of(environment=environment)

    dispatcher.run(
        "echo $CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER $SMARTSCHED_JOB"
        ' "<$PYTHONUNBUFFERED>"; printf %s "$ODD" | od -An -tx1'
    )

    assert dispatcher.said() == ["3", "PCI_BUS_ID", "1", "<>", "ff"]


def test_a_job_has_a_session_and_group_of_its_own_led_by_its_wrapper(dispatcher: Dispatcher):
    event = dispatcher.launch(launch_of("ps -o ppid=,pgid=,sid= -p $$"))
    assert isinstance(event, RunLaunched)
    dispatcher.exit_of(event.run)

    parent, group, session = map(int, dispatcher.said())
    assert parent == group == session == event.process.pid
    assert session != os.getsid(0)


def test_a_job_s_stdin_is_empty(dispatcher: Dispatcher):
    assert dispatcher.run("readlink /proc/self/fd/0; cat") == Exited(0)

    assert dispatcher.said() == ["/dev/null"]


def inheritable_fds() -> set[str]:
    """What whoever started the tests hands on to everybody."""
    fds = [int(name) for name in os.listdir("/proc/self/fd")]
    return {
        str(fd) for fd in fds if Path(f"/proc/self/fd/{fd}").exists() and os.get_inheritable(fd)
    }


@ANY_WRAPPER
def test_a_job_inherits_no_descriptors(
    dispatcher_of: MakeDispatcher, environment: dict[bytes, bytes]
):
    pipes = [os.pipe() for _ in range(5)]

    dispatcher_of(environment=environment).run("ls /proc/self/fd > fds")

    for fds in pipes:
        for fd in fds:
            os.close(fd)
    # 3 is the folder that ls itself reads
    assert set(Path("fds").read_text().split()) - inheritable_fds() <= {"0", "1", "2", "3"}


def test_stdout_and_stderr_go_to_the_log_in_order(dispatcher: Dispatcher):
    dispatcher.run("echo 1; echo 2 >&2; echo 3; echo 4 >&2")

    assert dispatcher.said() == ["1", "2", "3", "4"]


@pytest.mark.parametrize("code", [0, 1, 2, 125, 126, 127, 128, 165, 192, 255])
def test_an_exit_status_is_passed_on(dispatcher: Dispatcher, code: int):
    assert dispatcher.run(f"exit {code}") == Exited(code)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_death_by_signal_is_told_as_one(dispatcher: Dispatcher, signum: signal.Signals):
    assert dispatcher.run(f"ulimit -c 0; kill -{int(signum)} $$") == Killed(signum)


@ANY_WRAPPER
def test_signals_are_as_a_terminal_would_leave_them(
    dispatcher_of: MakeDispatcher, environment: dict[bytes, bytes]
):
    dispatcher = dispatcher_of(environment=environment)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        dispatcher.run("grep -E '^Sig(Blk|Ign)' /proc/self/status")
    finally:
        signal.signal(signal.SIGHUP, hangup)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    of_glibc = 0b11 << 31  # 32 and 33 are its own; its posix_spawn lets children ignore them
    _, blocked, _, ignored = dispatcher.said()
    assert (int(blocked, 16), int(ignored, 16) & ~of_glibc) == (0, 0)


def test_a_pipe_s_writer_ends_when_its_reader_has_seen_enough(dispatcher: Dispatcher):
    assert dispatcher.run("yes | head -1; echo ${PIPESTATUS[0]}") == Exited(0)

    assert dispatcher.said() == ["y", str(128 + signal.SIGPIPE)]


def test_bytes_that_are_not_utf8_reach_the_shell_unharmed(dispatcher: Dispatcher):
    odd = b"\xff\xe9 \xc3\xa9"

    dispatcher.run(f"printf %s '{odd.decode('utf-8', 'surrogateescape')}'")

    assert dispatcher.log().encode("utf-8", "surrogateescape") == odd


def test_without_its_shell_nothing_is_started(dispatcher_of: MakeDispatcher):
    event = dispatcher_of(shell="/no/such/shell").launch(launch_of("true"))

    assert isinstance(event, RunExited)
    assert isinstance(event.ending, NotStarted)
    assert "/no/such/shell" in event.ending.why
    assert event.leftovers == 0


def test_a_log_folder_that_somebody_removed_is_made_again(dispatcher: Dispatcher):
    Path(dispatcher.logs.path(launch_of("true").run)).parent.rmdir()

    assert dispatcher.run("echo something") == Exited(0)
    assert dispatcher.log() == "something\n"


def test_while_the_log_cannot_be_opened_the_job_waits_and_the_log_is_blamed(dispatcher: Dispatcher):
    folder = Path(dispatcher.logs.path(launch_of("true").run)).parent
    folder.rmdir()
    folder.symlink_to("nowhere/at/all")

    event = dispatcher.launch(launch_of("true"))

    assert isinstance(event, RunPostponed)
    assert "logs" in event.why


def test_a_log_that_is_a_link_is_not_followed(dispatcher: Dispatcher, tmp_path: Path):
    (tmp_path / "precious").write_text("precious")
    os.symlink(tmp_path / "precious", dispatcher.logs.path(launch_of("true").run))

    event = dispatcher.launch(launch_of("echo something"))

    assert isinstance(event, RunPostponed)
    assert (tmp_path / "precious").read_text() == "precious"


def test_an_environment_too_large_is_said_so(dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of(environment={b"LARGE": b"x" * (1 << 18)})

    event = dispatcher.launch(launch_of("true"))

    assert isinstance(event, RunExited)
    assert isinstance(event.ending, NotStarted)
    assert os.strerror(errno.E2BIG) in event.ending.why


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC])
def test_what_is_wanting_now_postpones_the_job(dispatcher_of: MakeDispatcher, error: int):
    dispatcher = dispatcher_of(output=lambda _: FailingOutput(error))

    event = dispatcher.launch(launch_of("true"))

    assert isinstance(event, RunPostponed)
    assert os.strerror(error) in event.why
    assert dispatcher.run("exit 4") == Exited(4)


def test_too_many_processes_postpone_the_job(tmp_path: Path):
    if os.getuid() == 0:
        pytest.skip("no limit of processes binds root")
    code = f"""
import resource, sys
from contextlib import ExitStack
from pathlib import Path
from tests.edges.jobs import Dispatcher, launch_of
with ExitStack() as stack:
    dispatcher = Dispatcher(stack, Path({str(tmp_path)!r}))
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    print(type(dispatcher.launch(launch_of("true"))).__name__)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["RunPostponed"], done.stderr


def test_a_postponed_long_command_starts_on_the_next_try(dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of(output=lambda _: FailingOutput(errno.EAGAIN))
    launch = launch_of(f"exit 4 # {LONG}")
    assert isinstance(dispatcher.launch(launch), RunPostponed)

    event = dispatcher.launch(launch)

    assert isinstance(event, RunLaunched)
    assert dispatcher.exit_of(launch.run).ending == Exited(4)


def test_a_job_that_never_started_leaves_nothing_behind(dispatcher_of: MakeDispatcher):
    dispatcher = dispatcher_of(shell="/no/such/shell")

    dispatcher.launch(launch_of(f"true # {LONG}"))

    assert list(dispatcher.attempts_folder.iterdir()) == []


@pytest.mark.parametrize("length", [LONGEST_ARGUMENT_BYTES - 1, LONGEST_ARGUMENT_BYTES, 1 << 21])
def test_a_command_of_any_length_runs(dispatcher: Dispatcher, length: int):
    start = 'echo "$0"; ps -o args= -p $$ | wc -c; exit 5 # '

    assert dispatcher.run(start + "x" * (length - len(start))) == Exited(5)


def test_a_job_is_known_by_when_it_began_as_the_kernel_has_it(dispatcher: Dispatcher):
    events = [
        dispatcher.launch(launch_of(f"while [ ! -e gate ]; do sleep 0.02; done # {n}", n))
        for n in range(1, 6)
    ]

    for event in events:
        assert isinstance(event, RunLaunched)
        stat_line = Path(f"/proc/{event.process.pid}/stat").read_text()
        assert event.process.start_ticks == int(stat_line.rpartition(")")[2].split()[19])
    Path("gate").touch()
    for event in events:
        dispatcher.exit_of(event.run)


def test_a_long_command_s_script_is_private_and_gone_afterwards(dispatcher: Dispatcher):
    run = dispatcher.start(f"while [ ! -e gate ]; do sleep 0.02; done; exit 5 # {LONG}")
    [script] = dispatcher.attempts_folder.glob("*.script")

    assert stat.S_IMODE(script.stat().st_mode) == 0o600
    Path("gate").touch()
    assert dispatcher.exit_of(run).ending == Exited(5)
    assert list(dispatcher.attempts_folder.iterdir()) == []


def test_while_there_is_no_room_for_what_outlives_us_a_job_waits(dispatcher: Dispatcher):
    dispatcher.attempts_folder.rmdir()
    dispatcher.attempts_folder.touch()

    event = dispatcher.launch(launch_of("true"))

    assert isinstance(event, RunPostponed)
    assert str(dispatcher.attempts_folder) in event.why
    dispatcher.attempts_folder.unlink()
    dispatcher.attempts_folder.mkdir()
    assert dispatcher.run("exit 4") == Exited(4)


def test_a_job_in_the_background_is_a_leftover_until_it_is_asked_to_end(dispatcher: Dispatcher):
    run = dispatcher.start("sleep 600 & echo $!")

    event = dispatcher.exit_of(run)
    assert event.ending == Exited(0)
    assert event.leftovers == 1
    [pid] = map(int, dispatcher.said())
    assert alive(pid)

    dispatcher.processes.terminate(run)
    dispatcher.cleared(run)
    assert not alive(pid)


@pytest.mark.parametrize(
    "escape",
    [
        "setsid sleep 600 & echo $!",
        "(setsid sleep 600 & echo $!)",
        "(setsid bash -c 'sleep 600 & echo $!; exit' & wait)",
        "setsid -f bash -c '(env -u SMARTSCHED_X sleep 600 & echo $!)'; while [ ! -s $LOG ]; do"
        " sleep 0.02; done",
    ],
)
def test_whoever_left_the_session_is_found_and_ended(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, escape: str
):
    path = dispatcher.logs.path(launch_of("").run)

    run = dispatcher.start(f"LOG={path}; {escape}; while [ ! -s {path} ]; do sleep 0.02; done")

    assert dispatcher.exit_of(run).leftovers > 0
    [pid] = map(int, dispatcher.said())
    dispatcher.processes.terminate(run)
    dispatcher.cleared(run)
    assert not alive(pid)


def test_a_running_job_s_escaped_children_are_asked_to_end_with_it(dispatcher: Dispatcher):
    run = dispatcher.start("(setsid sleep 600 & echo $!); sleep 600 & echo $!; wait")
    dispatcher.until(lambda: len(dispatcher.said()) == 2)

    dispatcher.processes.terminate(run)

    assert dispatcher.exit_of(run).ending == Killed(signal.SIGTERM)
    wait_until(lambda: not any(map(alive, map(int, dispatcher.said()))))


def test_a_job_that_ignores_sigterm_is_killed_with_all_it_started(dispatcher: Dispatcher):
    run = dispatcher.start(
        "trap 'echo asked' TERM; (trap '' TERM; setsid sleep 600 & echo $!)"
        "; while :; do sleep 0.05; done"
    )
    dispatcher.until(lambda: len(dispatcher.said()) == 1)
    dispatcher.processes.terminate(run)
    dispatcher.until(lambda: "asked" in dispatcher.said())
    assert dispatcher.events == []

    dispatcher.processes.kill(run)

    assert dispatcher.exit_of(run).ending == Killed(signal.SIGKILL)
    wait_until(lambda: not alive(int(dispatcher.said()[0])))


def test_a_stopped_job_ends_when_asked(dispatcher: Dispatcher):
    run = dispatcher.start("echo $$; kill -STOP $$; sleep 600")
    dispatcher.until(
        lambda: (
            dispatcher.said()
            and psutil.Process(int(dispatcher.said()[0])).status() == psutil.STATUS_STOPPED
        )
    )
    assert dispatcher.events == []

    dispatcher.processes.terminate(run)

    assert dispatcher.exit_of(run).ending == Killed(signal.SIGTERM)


def test_one_job_s_end_is_not_another_s(dispatcher: Dispatcher):
    first = dispatcher.start("sleep 600 & wait", 1)
    second = dispatcher.start("(setsid sleep 600 & echo $!); sleep 600 & wait", 2)
    dispatcher.until(lambda: dispatcher.said(2))
    bystander = int(dispatcher.said(2)[0])

    dispatcher.processes.terminate(first)

    event = dispatcher.exit_of(first)
    assert (event.ending, alive(bystander)) == (Killed(signal.SIGTERM), True)
    assert [e.run for e in dispatcher.events if isinstance(e, RunExited)] == [first]
    dispatcher.processes.kill(second)
    assert dispatcher.exit_of(second).ending == Killed(signal.SIGKILL)


@pytest.fixture
def other_child() -> Iterator[subprocess.Popen[bytes]]:
    """A child of ours that is no job, like the sampler."""
    child = subprocess.Popen(["sleep", "600"])
    yield child
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_the_sampler_is_nobody_s_leftover(
    dispatcher_of: MakeDispatcher, other_child: subprocess.Popen[bytes]
):
    dispatcher = dispatcher_of(other_children=lambda: [other_child.pid])
    run = dispatcher.start("true")

    assert dispatcher.exit_of(run).leftovers == 0
    dispatcher.processes.close()
    assert alive(other_child.pid)
    other_child.kill()


def test_nothing_of_five_hundred_jobs_stays(dispatcher: Dispatcher):
    fds_before = os.listdir("/proc/self/fd")
    runs = [dispatcher.start("true", job) for job in range(1, 251)]
    for run in runs:
        dispatcher.exit_of(run)
    for job in range(251, 501):
        dispatcher.start("sleep 0.01 & exit 0", job)
    dispatcher.until(lambda: len(dispatcher.events) >= 500)
    dispatcher.until(lambda: not dispatcher.children())

    assert os.listdir("/proc/self/fd") == fds_before
    assert not dispatcher.children()


def test_exits_come_once_each_in_a_crowd(dispatcher: Dispatcher):
    runs = [dispatcher.start(f"exit {job}", job) for job in range(1, 61)]

    endings = {run.job: dispatcher.exit_of(run).ending for run in runs}

    assert endings == {job: Exited(job) for job in range(1, 61)}
    assert len([e for e in dispatcher.events if isinstance(e, RunExited)]) == 60


def test_closing_ends_jobs_and_leftovers(dispatcher: Dispatcher):
    dispatcher.start("sleep 600 & echo $!; (setsid sleep 600 & echo $!); wait", 1)
    ended = dispatcher.start("sleep 600 & echo $!", 2)
    dispatcher.exit_of(ended)
    dispatcher.until(lambda: len(dispatcher.said(1)) == 2)

    dispatcher.processes.close()

    pids = map(int, dispatcher.said(1) + dispatcher.said(2))
    assert not any(map(alive, pids))


def test_closing_asks_those_too_who_came_meanwhile(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processes, "_CLOSING_ROUNDS", 300)  # on a busy machine Python begins late
    Path("late.py").write_text(
        "import signal\n"
        "signal.sigwait({signal.SIGTERM})\n"  # it was born with that blocked, and misses none
        "open('late', 'w').write('asked')\n"
    )
    Path("first.py").write_text(
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "open('ready', 'w').close()\n"
        "signal.sigwait({signal.SIGTERM})\n"
        "late = [sys.executable, '-I', '-S', 'late.py']\n"
        "os.posix_spawn(late[0], late, os.environ, setsid=True)\n"
    )
    dispatcher.start(f"setsid {sys.executable} first.py & sleep 600")
    dispatcher.until(Path("ready").exists)

    dispatcher.processes.close()

    assert Path("late").read_text() == "asked"


def test_closing_waits_until_those_are_gone_who_had_to_be_killed(dispatcher: Dispatcher):
    dispatcher.start("trap '' TERM; sleep 600 & echo $!; wait")
    dispatcher.until(dispatcher.said)

    dispatcher.processes.close()

    [pid] = map(int, dispatcher.said())
    assert not alive(pid)


def test_a_child_that_ends_while_nobody_waits_is_reaped(dispatcher: Dispatcher):
    run = dispatcher.start("(sleep 0.05 &) ; exit 0")
    dispatcher.exit_of(run)
    dispatcher.until(lambda: not dispatcher.children())


def test_the_limit_of_open_files_of_the_job_is_ours(dispatcher: Dispatcher):
    dispatcher.run("ulimit -Sn")

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert dispatcher.said() == [str(soft) if soft != resource.RLIM_INFINITY else "unlimited"]


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def released(gate: Path, readers: Callable[[], int], count: int) -> None:
    """Let go of everybody who reads the pipe, at once, when so many do."""
    holder = os.open(gate, os.O_RDWR)
    wait_until(lambda: readers() >= count)
    os.close(holder)


@ANY_WRAPPER
def test_the_record_holds_the_wrapper_s_pid_and_in_the_end_the_status(
    dispatcher_of: MakeDispatcher, environment: dict[bytes, bytes]
):
    dispatcher = dispatcher_of(environment=environment)
    dispatcher.writes = False
    event = dispatcher.launch(launch_of("while [ ! -e gate ]; do sleep 0.02; done; exit 41"))
    assert isinstance(event, RunLaunched)
    dispatcher.until(lambda: dispatcher.record().exists() and dispatcher.record().read_text())
    assert dispatcher.record().read_text() == f"{event.process.pid}\n"

    Path("gate").touch()

    assert dispatcher.exit_of(event.run).ending == Exited(41)
    assert dispatcher.record().read_text() == f"{event.process.pid}\nexit 41\n"
    assert stat.S_IMODE(dispatcher.record().parent.stat().st_mode) == 0o700


def test_a_record_goes_only_when_the_end_of_its_run_is_in_the_journal(dispatcher: Dispatcher):
    dispatcher.writes = False
    event = dispatcher.exit_of(dispatcher.start("exit 3"))
    assert dispatcher.record().read_text().endswith("exit 3\n")

    dispatcher.processes.written([event])

    assert list(dispatcher.attempts_folder.iterdir()) == []


def test_the_record_of_a_run_that_lingers_stays_until_it_is_cleared(dispatcher: Dispatcher):
    run = dispatcher.start("sleep 600 & exit 3")
    assert dispatcher.exit_of(run).leftovers == 1
    assert dispatcher.record().exists()

    dispatcher.processes.kill(run)
    dispatcher.cleared(run)

    assert list(dispatcher.attempts_folder.iterdir()) == []


@ANY_WRAPPER
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_the_wrapper_outlives_a_signal_to_its_group_and_tells_its_command_s_own_status(
    dispatcher_of: MakeDispatcher, environment: dict[bytes, bytes], signum: signal.Signals
):
    dispatcher = dispatcher_of(environment=environment)
    dispatcher.writes = False
    event = dispatcher.launch(
        launch_of(f"trap 'exit 7' {signum.name[3:]}; echo ready; while :; do sleep 0.02; done")
    )
    assert isinstance(event, RunLaunched)
    dispatcher.until(lambda: "ready" in dispatcher.said())

    os.killpg(event.process.pid, signum)

    assert dispatcher.exit_of(event.run).ending == Exited(7)
    assert dispatcher.record().read_text().endswith("exit 7\n")


def test_a_signal_to_the_wrapper_alone_does_not_end_it(dispatcher: Dispatcher):
    event = dispatcher.launch(launch_of("while [ ! -e gate ]; do sleep 0.02; done; exit 4"))
    assert isinstance(event, RunLaunched)
    dispatcher.until(dispatcher.record().exists)
    wait_until(lambda: int(caught(event.process.pid), 16) & 1 << (signal.SIGTERM - 1))

    os.kill(event.process.pid, signal.SIGTERM)
    Path("gate").touch()

    assert dispatcher.exit_of(event.run).ending == Exited(4)


def caught(pid: int) -> str:
    """Which signals a process catches."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("SigCgt"))


@ANY_WRAPPER
@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGINT]
)
def test_nothing_but_the_command_writes_to_its_log(
    dispatcher_of: MakeDispatcher, environment: dict[bytes, bytes], signum: signal.Signals
):
    dispatcher = dispatcher_of(environment=environment)

    ending = dispatcher.run(f"ulimit -c 0; echo mine; kill -{int(signum)} $$")

    assert ending == Killed(signum)
    assert dispatcher.log() == "mine\n"


def test_a_job_that_is_terminated_leaves_a_clean_log(dispatcher: Dispatcher):
    run = dispatcher.start("echo ready; exec sleep 600")
    dispatcher.until(dispatcher.said)

    dispatcher.processes.terminate(run)

    assert dispatcher.exit_of(run).ending == Killed(signal.SIGTERM)
    assert dispatcher.log() == "ready\n"


@ANY_WRAPPER
def test_a_wrapper_that_cannot_make_its_record_starts_nothing_and_the_job_waits(
    dispatcher_of: MakeDispatcher,
    environment: dict[bytes, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    dispatcher = dispatcher_of(environment=environment)
    nowhere = str(tmp_path / "nowhere" / "record")
    monkeypatch.setattr(dispatcher.attempts, "record_path", lambda _: nowhere)

    dispatcher.start("touch ran")
    dispatcher.until(lambda: dispatcher.events)

    [event] = dispatcher.events
    assert isinstance(event, RunPostponed), event
    assert not Path("ran").exists()


def test_an_attempt_that_has_begun_is_never_launched_again(dispatcher: Dispatcher):
    dispatcher.writes = False
    dispatcher.run("echo once >> runs")

    event = dispatcher.launch(launch_of("echo twice >> runs; exit 3"))

    assert isinstance(event, RunLaunched)
    assert dispatcher.processes.wake_at() == float("-inf")
    (ended,) = dispatcher.processes.take(event.at)
    assert isinstance(ended, RunExited)
    assert ended.ending == Exited(0)
    assert Path("runs").read_text() == "once\n"
    assert dispatcher.record().exists()


def environment_of_job(dispatcher: Dispatcher) -> dict[bytes, bytes]:
    """What the user's shell was started with: the `:` keeps it from being replaced by cat."""
    assert dispatcher.run("cat /proc/$$/environ; :") == Exited(0)
    data = dispatcher.log().encode("utf-8", "surrogateescape")
    return dict(entry.split(b"=", 1) for entry in data.split(b"\0") if entry)


# What shells keep for themselves: where they are, how deep, and what they ran last.
OF_SHELLS = {b"PWD", b"OLDPWD", b"SHLVL", b"_"}


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {b"BASH_FUNC_x%%": b"() {  echo from a function\n}"},
        {b"no.name": b"1", b"1st": b"2", b"with space": b"3", b"\xff": b"\xfe", b"a-b": b""},
    ],
    ids=["names", "function", "others"],
)
def test_the_environment_passes_through_the_wrapper_unchanged(
    dispatcher_of: MakeDispatcher, odd: dict[bytes, bytes]
):
    environment = PLAIN | odd | {
        b"EMPTY": b"",
        b"LINES_OF": b"a\nb\n",
        b"BYTES": b"\xff = \xfe",
        b"ENV": b"/nowhere",
        b"LC_ALL": b"C",
        b"_private": b"x",
    }  # fmt: skip
    dispatcher = dispatcher_of(environment=environment)

    seen = environment_of_job(dispatcher)

    added = {name: value for name, value in seen.items() if name not in environment}
    assert {name: seen.get(name) for name in environment} == environment
    assert {name for name in added if not name.startswith((b"SMARTSCHED_", b"CUDA_"))} <= (
        OF_SHELLS | {b"PYTHONUNBUFFERED"}
    )


def test_an_exported_function_can_be_called_by_jobs(dispatcher_of: MakeDispatcher):
    environment = PLAIN | {b"BASH_FUNC_module%%": b"() {  echo loading $1\n}"}

    dispatcher_of(environment=environment).run("module cuda > said")

    assert Path("said").read_text() == "loading cuda\n"


@pytest.mark.parametrize("odd", [{}, {b"no.name": b"1"}], ids=["sh", "bash"])
def test_bash_reads_its_startup_file_once(
    dispatcher_of: MakeDispatcher, tmp_path: Path, odd: dict[bytes, bytes]
):
    startup = tmp_path / "startup"
    startup.write_text(f"echo read >> {tmp_path / 'readings'}\n")
    environment = PLAIN | odd | {b"BASH_ENV": os.fsencode(startup), b"ENV": os.fsencode(startup)}

    dispatcher_of(environment=environment).run("true")

    assert (tmp_path / "readings").read_text() == "read\n"


def test_options_of_shells_in_the_environment_do_not_change_what_jobs_get(
    dispatcher_of: MakeDispatcher,
):
    environment = PLAIN | {b"SHELLOPTS": b"braceexpand:hashall", b"BASH_FUNC_x%%": b"() {  :\n}"}

    # our wrapper is a bash -p then, and a job that were so too would not read its BASH_ENV
    dispatcher_of(environment=environment).run("set -o | grep privileged > said; x")

    assert Path("said").read_text().split() == ["privileged", "off"]


def test_a_job_runs_in_the_folder_of_its_spec_and_we_stay_where_we_are(
    dispatcher: Dispatcher, tmp_path: Path
):
    (tmp_path / "elsewhere").mkdir()
    before = os.getcwd()

    event = dispatcher.launch(launch_of("pwd -P; exit 5", directory=str(tmp_path / "elsewhere")))

    assert isinstance(event, RunLaunched)
    assert os.getcwd() == before
    assert dispatcher.exit_of(event.run).ending == Exited(5)
    assert dispatcher.log() == f"{tmp_path / 'elsewhere'}\n"


def test_without_its_folder_a_job_is_not_started_and_we_stay_where_we_are(
    dispatcher: Dispatcher, tmp_path: Path
):
    before, fds = os.getcwd(), open_fds()

    event = dispatcher.launch(launch_of("touch ran", directory=str(tmp_path / "gone")))

    assert isinstance(event, RunExited)
    assert isinstance(event.ending, NotStarted)
    assert str(tmp_path / "gone") in event.ending.why
    assert (os.getcwd(), open_fds()) == (before, fds)
    assert list(dispatcher.attempts_folder.iterdir()) == []
    assert dispatcher.run("exit 4", 2) == Exited(4)


def test_a_dispatcher_whose_own_folder_was_removed_still_starts_jobs_elsewhere(
    dispatcher: Dispatcher, tmp_path: Path
):
    (tmp_path / "elsewhere").mkdir()
    Path.cwd().rmdir()

    event = dispatcher.launch(launch_of("exit 5", directory=str(tmp_path / "elsewhere")))

    assert isinstance(event, RunLaunched)
    assert dispatcher.exit_of(event.run).ending == Exited(5)
    os.chdir(tmp_path)


@pytest.mark.parametrize("signum", [9, 15, 11, 2])
def test_a_status_above_128_is_told_as_the_signal_that_shells_mean_by_it(
    dispatcher: Dispatcher, signum: int
):
    assert dispatcher.run(f"exit {128 + signum}") == Killed(signum)


def test_a_child_killed_inside_the_command_is_told_as_its_shell_tells_it(dispatcher: Dispatcher):
    assert dispatcher.run("sh -c 'kill -9 $$'") == Killed(9)
    assert dispatcher.run("sh -c 'kill -9 $$'; exit 3", 2) == Exited(3)


def test_all_of_64_jobs_that_end_at_the_same_moment_are_told_once_with_their_own_status(
    dispatcher: Dispatcher,
):
    os.mkfifo("gate")
    runs = [
        dispatcher.start(f"exec 3< gate; echo $$ > ready-{job}; read x <&3; exit {job}", job)
        for job in range(1, 65)
    ]

    released(Path("gate"), lambda: len(list(Path().glob("ready-*"))), 64)

    endings = {run.job: dispatcher.exit_of(run).ending for run in runs}
    assert endings == {job: Exited(job) for job in range(1, 65)}
    assert len(dispatcher.events) == 64
    assert list(dispatcher.attempts_folder.iterdir()) == []


def test_a_job_that_ignores_sigterm_goes_on_and_is_told_by_how_it_ends(dispatcher: Dispatcher):
    run = dispatcher.start(
        "trap '' TERM; echo ready; until [ -e gate ]; do sleep 0.02; done; exit 6"
    )
    dispatcher.until(dispatcher.said)

    dispatcher.processes.terminate(run)
    Path("gate").touch()

    assert dispatcher.exit_of(run).ending == Exited(6)


def test_a_daemon_that_forked_twice_is_found_and_ended(dispatcher: Dispatcher):
    daemon = (
        "import os, time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "os.chdir('/'); [os.close(fd) for fd in (0, 1, 2)]\n"
        f"open({str(Path('daemon').absolute())!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    run = dispatcher.start(
        f'{sys.executable} -c "{daemon}"; until [ -s daemon ]; do sleep 0.02; done'
    )

    assert dispatcher.exit_of(run).leftovers == 1
    pid = int(Path("daemon").read_text())
    assert alive(pid)
    dispatcher.processes.terminate(run)
    dispatcher.cleared(run)
    assert not alive(pid)


def test_a_job_that_closes_its_output_ends_as_any_other(dispatcher: Dispatcher):
    assert dispatcher.run("exec 0<&- 1>&- 2>&-; sleep 0.05; exit 9") == Exited(9)


def test_whoever_is_no_run_s_is_told_to_whom_it_concerns(
    dispatcher_of: MakeDispatcher, other_child: subprocess.Popen[bytes]
):
    ended: list[int] = []
    dispatcher = dispatcher_of(other_children=lambda: [other_child.pid], on_other_end=ended.append)
    dispatcher.run("true")
    assert ended == []

    other_child.kill()
    dispatcher.until(lambda: ended)

    assert ended == [other_child.pid]
