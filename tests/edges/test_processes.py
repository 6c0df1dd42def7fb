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
from smartsched.edges.outputs import Untouched
from smartsched.edges.processes import LONGEST_ARGUMENT_BYTES
from tests.edges.jobs import Dispatcher, launch_of
from tests.waiting import wait_until

MakeDispatcher = Callable[..., Dispatcher]
LONG = "x" * LONGEST_ARGUMENT_BYTES


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def scripts(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.sh"))


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

    seen = dict(line.split("=", 1) for line in dispatcher.log(7).splitlines() if "=" in line)
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


def test_a_job_leads_a_session_and_group_of_its_own(dispatcher: Dispatcher):
    dispatcher.run("ps -o pid=,pgid=,sid= -p $$")

    pid, group, session = dispatcher.said()
    assert pid == group == session
    assert int(session) != os.getsid(0)


def test_a_job_s_stdin_is_empty(dispatcher: Dispatcher):
    assert dispatcher.run("readlink /proc/self/fd/0; cat") == Exited(0)

    assert dispatcher.said() == ["/dev/null"]


def test_a_job_inherits_no_descriptors(dispatcher: Dispatcher):
    pipes = [os.pipe() for _ in range(5)]

    dispatcher.run("ls /proc/self/fd")

    for fds in pipes:
        for fd in fds:
            os.close(fd)
    # 3 is the folder that ls itself reads
    assert dispatcher.said() == ["0", "1", "2", "3"]


def test_stdout_and_stderr_go_to_the_log_in_order(dispatcher: Dispatcher):
    dispatcher.run("echo 1; echo 2 >&2; echo 3; echo 4 >&2")

    assert dispatcher.said() == ["1", "2", "3", "4"]


@pytest.mark.parametrize("code", [0, 1, 126, 127, 255])
def test_an_exit_status_is_passed_on(dispatcher: Dispatcher, code: int):
    assert dispatcher.run(f"exit {code}") == Exited(code)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_death_by_signal_is_told_as_one(dispatcher: Dispatcher, signum: signal.Signals):
    assert dispatcher.run(f"ulimit -c 0; kill -{int(signum)} $$") == Killed(signum)


def test_signals_are_as_a_terminal_would_leave_them(dispatcher: Dispatcher):
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
    dispatcher = Dispatcher(stack, Path({str(tmp_path / "logs")!r}))
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


def test_a_long_command_that_never_started_leaves_no_script(
    dispatcher_of: MakeDispatcher, tmp_path: Path
):
    dispatcher = dispatcher_of(shell="/no/such/shell")

    dispatcher.launch(launch_of(f"true # {LONG}"))

    assert scripts(tmp_path / "state") == []
    dispatcher.scripts.close()


@pytest.mark.parametrize("length", [LONGEST_ARGUMENT_BYTES - 1, LONGEST_ARGUMENT_BYTES, 1 << 21])
def test_a_command_of_any_length_runs(dispatcher: Dispatcher, length: int):
    start = 'echo "$0"; ps -o args= -p $$ | wc -c; exit 5 # '

    assert dispatcher.run(start + "x" * (length - len(start))) == Exited(5)


def test_a_long_command_s_script_is_private_and_gone_afterwards(
    dispatcher: Dispatcher, tmp_path: Path
):
    run = dispatcher.start(f"while [ ! -e gate ]; do sleep 0.02; done; exit 5 # {LONG}")
    [script] = scripts(tmp_path / "state")

    assert stat.S_IMODE(script.stat().st_mode) == 0o600
    assert stat.S_IMODE(script.parent.stat().st_mode) == 0o700
    Path("gate").touch()
    assert dispatcher.exit_of(run).ending == Exited(5)
    assert not script.exists()
    dispatcher.scripts.close()
    assert not script.parent.exists()


def test_while_its_script_cannot_be_written_a_job_waits(
    dispatcher: Dispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a-file"))

    event = dispatcher.launch(launch_of(f"true # {LONG}"))

    assert isinstance(event, RunPostponed)
    assert "a-file" in event.why


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
    dispatcher.until(lambda: not psutil.Process().children())

    assert os.listdir("/proc/self/fd") == fds_before
    assert psutil.Process().children() == []


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


def test_a_child_that_ends_while_nobody_waits_is_reaped(dispatcher: Dispatcher):
    run = dispatcher.start("(sleep 0.05 &) ; exit 0")
    dispatcher.exit_of(run)
    dispatcher.until(lambda: not psutil.Process().children())


def test_the_limit_of_open_files_of_the_job_is_ours(dispatcher: Dispatcher):
    dispatcher.run("ulimit -Sn")

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert dispatcher.said() == [str(soft) if soft != resource.RLIM_INFINITY else "unlimited"]
