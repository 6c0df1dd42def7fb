"""Jobs end when their lease does, whatever became of whoever started them: real processes."""

import errno
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from smartsched.core.events import RunAdopted, RunPostponed
from smartsched.core.model import Exited, JobId, Killed, Lost, RunKey
from smartsched.edges import processes
from smartsched.edges.lease import LEASE, Lease, remote_kind, uptime_seconds
from smartsched.edges.processes import LONGEST_ARGUMENT_BYTES
from smartsched.errors import StateError, UsageError
from tests.edges.jobs import Dispatcher, launch_of, lease_for
from tests.edges.predecessors import Predecessor
from tests.waiting import wait_until

MakeDispatcher = Callable[..., Dispatcher]
RUN = RunKey(JobId(1), 1)
GRACE_SECONDS = 1.0
SHORT_SECONDS = 1.5  # a lease that runs out while the test waits
LONG_SECONDS = 3600.0
OUT_OF_REACH = Lost("its host was out of reach for longer than --lease")
AWHILE = 2.0  # long enough for whatever polls to show it


@pytest.fixture
def lease(tmp_path: Path) -> Lease:
    """Not renewed yet."""
    return Lease("token", grace_seconds=GRACE_SECONDS, places=[tmp_path])


@pytest.fixture
def dispatcher(dispatcher_of: MakeDispatcher, lease: Lease) -> Dispatcher:
    """Its jobs are under the lease, which runs out in an hour."""
    renew(lease, LONG_SECONDS)
    return dispatcher_of(lease=lease)


@pytest.fixture
def predecessor(tmp_path: Path) -> Iterator[Predecessor]:
    predecessor = Predecessor(tmp_path, lease_seconds=3.0)
    yield predecessor
    predecessor.kill_jobs()


def renew(lease: Lease, seconds: float) -> None:
    lease.renew(uptime_seconds() + seconds)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def alive_of(run_name: str) -> list[int]:
    """Whatever carries the name of this run, wherever it went."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("SMARTSCHED_RUN") == run_name and alive(process.pid):
                found.append(process.pid)
    return found


def watchdog_of(leader_pid: int) -> int:
    """It is in the job's session, and leads a group of its own."""

    def found() -> list[int]:
        pids = []
        for process in psutil.process_iter():
            with suppress(OSError):
                of_session = os.getsid(process.pid) == leader_pid != process.pid
                if of_session and os.getpgid(process.pid) == process.pid:
                    pids.append(process.pid)
        return pids

    wait_until(lambda: len(found()) == 1, "there is one watchdog")
    return found()[0]


def leader_of(dispatcher: Dispatcher, job: int = 1) -> int:
    record = dispatcher.record(job)
    dispatcher.until(lambda: record.exists() and record.read_text().endswith("\n"))
    return int(record.read_text().split()[0])


def signals_of(pid: int, field: str) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith(field))
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- jobs whose lease runs out


DAEMON = (
    "import os, signal, time\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "if os.fork(): os._exit(0)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "os.closerange(0, 1000)\n"
    "time.sleep(600)\n"
)


def started(dispatcher: Dispatcher, lease: Lease, commands: Sequence[str]) -> list[RunKey]:
    """Jobs 1, 2 and so on, however long that takes; they end together."""
    runs = []
    for job, command in enumerate(commands, 1):
        renew(lease, 2 * SHORT_SECONDS)
        runs.append(dispatcher.start(command, job))
    return runs


PIDS = "echo $! > pid-$SMARTSCHED_JOB"
OWN = "echo $$ > pid-$SMARTSCHED_JOB"
WAYS_OF_JOBS = [
    f"{OWN}; sleep 600",
    f"trap '' TERM; {OWN}; sleep 600; sleep 600",
    f"sleep 600 & {PIDS}; sleep 600 & wait",
    f"timeout 600 sleep 600 & {PIDS}; wait",  # a group of its own
    f"set -m; sleep 600 & {PIDS}; wait",
    f"setsid sleep 600 & {PIDS}; wait",
    f"(trap '' TERM; setsid sleep 600 & {PIDS}); sleep 600",
    f"setsid env -i sleep 600 & {PIDS}; wait",  # only its parents tell whose it is
    f"setsid -f sh -c '{OWN}; sleep 600'; sleep 600",  # only its environment does
    f'{sys.executable} -c "{DAEMON}"; {OWN}; sleep 600',
    f"{OWN}; kill -STOP $$; sleep 600",
    f"sleep 600 0<&- 1>&- 2>&- & {PIDS}; wait",
    f"{OWN}; sleep 600; : {'x' * LONGEST_ARGUMENT_BYTES}",
]


def test_with_the_lease_all_of_a_job_ends_whatever_it_is_made_of(
    dispatcher: Dispatcher, lease: Lease
):
    runs = started(dispatcher, lease, WAYS_OF_JOBS)
    files = [Path(f"pid-{run.job}") for run in runs]

    def all_have_begun() -> bool:
        renew(lease, SHORT_SECONDS)
        return all(file.exists() and file.read_text() for file in files)

    dispatcher.until(all_have_begun)
    pids = [int(file.read_text()) for file in files]

    endings = [dispatcher.exit_of(run).ending for run in runs]

    assert endings == [OUT_OF_REACH] * len(runs)
    wait_until(lambda: not alive_of(dispatcher.run_name), "all of them are gone")
    wait_until(lambda: not any(map(alive, pids)), "all of them are gone, nameless ones too")
    for event in [event for run in runs for event in dispatcher.exits_of(run)]:
        if event.leftovers:
            dispatcher.cleared(event.run)


def test_a_lease_that_is_renewed_keeps_jobs_going_until_it_is_not(
    dispatcher: Dispatcher, lease: Lease
):
    seconds = 2 * SHORT_SECONDS
    renew(lease, seconds)
    run = dispatcher.start("while :; do sleep 0.05; done")
    began = uptime_seconds()

    while uptime_seconds() < began + 1.5 * seconds:
        renew(lease, seconds)
        dispatcher.waiter.wait(dispatcher.clock.now() + 0.2)
        dispatcher.take()
    assert dispatcher.events == []

    assert dispatcher.exit_of(run).ending == OUT_OF_REACH
    assert uptime_seconds() - began > 2.4 * seconds


def test_no_job_ends_before_its_lease(dispatcher: Dispatcher, lease: Lease):
    ends = uptime_seconds() + SHORT_SECONDS
    lease.renew(ends)
    run = dispatcher.start("trap 'cut -d\" \" -f1 /proc/uptime; exit' TERM; sleep 600 & wait")

    dispatcher.exit_of(run)

    assert float(dispatcher.said()[0]) >= ends - 0.02


def test_a_job_that_saves_its_state_when_asked_is_lost_all_the_same_and_at_once(
    dispatcher_of: MakeDispatcher, tmp_path: Path
):
    """What it says then is not that its work is done. The grace is not waited for."""
    lease = lease_for(tmp_path, "patient", SHORT_SECONDS, grace_seconds=600)
    dispatcher = dispatcher_of(lease=lease)
    run = dispatcher.start("trap 'echo saved; exit 0' TERM; sleep 600 & wait")

    event = dispatcher.exit_of(run)

    assert (event.ending, event.leftovers) == (OUT_OF_REACH, 0)
    assert dispatcher.said() == ["saved"]


def test_a_job_has_the_grace_to_save_its_state(dispatcher: Dispatcher, lease: Lease):
    renew(lease, SHORT_SECONDS)
    run = dispatcher.start(
        f"trap 'sleep {GRACE_SECONDS / 2}; echo saved; exit 0' TERM; sleep 600 & wait"
    )

    assert dispatcher.exit_of(run).ending == OUT_OF_REACH

    assert dispatcher.said() == ["saved"]


def test_that_the_lease_ended_it_is_known_until_its_end_is_on_record(
    dispatcher: Dispatcher, lease: Lease
):
    dispatcher.writes = False
    renew(lease, SHORT_SECONDS)
    run = dispatcher.start("sleep 600")
    assert not lease.expired(run)

    event = dispatcher.exit_of(run)
    assert lease.expired(run)

    dispatcher.processes.written([event])
    assert not lease.expired(run)


def test_crowds_end_at_the_same_moment(dispatcher: Dispatcher, lease: Lease):
    runs = started(dispatcher, lease, ["sleep 600 & (setsid sleep 600 &) ; wait"] * 30)

    endings = [dispatcher.exit_of(run).ending for run in runs]

    assert endings == [OUT_OF_REACH] * 30
    wait_until(lambda: not alive_of(dispatcher.run_name))


def test_the_lease_of_one_job_is_no_other_s(
    dispatcher_of: MakeDispatcher, dispatcher: Dispatcher, tmp_path: Path
):
    other = dispatcher_of(lease=lease_for(tmp_path, "other", SHORT_SECONDS, GRACE_SECONDS))
    kept = dispatcher.start("sleep 600 & echo $!; wait")
    ended = other.start("sleep 600", 2)

    assert other.exit_of(ended).ending == OUT_OF_REACH

    dispatcher.until(dispatcher.said)
    assert alive(int(dispatcher.said()[0]))
    dispatcher.take()
    assert dispatcher.exits_of(kept) == []


# --- and nobody who could care


@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_jobs_end_with_their_lease_though_whoever_started_them_cannot_end_them(
    predecessor: Predecessor, fate: str
):
    began = uptime_seconds()
    jobs = predecessor.launch(
        "trap '' TERM; sleep 600; sleep 600",
        "setsid -f sleep 600; (setsid sleep 600 & sleep 600)",
        f'{sys.executable} -c "{DAEMON}"; sleep 600',
    )
    assert all(alive(job.process.pid) for job in jobs)

    if fate == "killed":
        predecessor.die()
    else:
        predecessor.stop()

    wait_until(lambda: not predecessor.jobs(), "all jobs are gone")
    # on a busy machine later, but nothing else ends them
    assert uptime_seconds() - began > 3.0


@pytest.fixture
def successor(
    dispatcher_of: MakeDispatcher, predecessor: Predecessor, tmp_path: Path
) -> Callable[[float], Dispatcher]:
    """Kills the predecessor and makes who comes after it, and renews the same lease."""

    def make(lease_seconds: float) -> Dispatcher:
        predecessor.die()
        lease = lease_for(tmp_path, predecessor.run_name, lease_seconds, GRACE_SECONDS)
        return dispatcher_of(run_name=predecessor.run_name, lease=lease)

    return make


def test_who_comes_after_finds_the_lease_and_renews_it(
    predecessor: Predecessor, successor: Callable[[float], Dispatcher]
):
    [job] = predecessor.launch("until [ -e gate ]; do sleep 0.02; done; exit 5")
    began = uptime_seconds()
    dispatcher = successor(LONG_SECONDS)
    adopted = dispatcher.processes.adopt(job.running, dispatcher.clock.now())
    assert [type(event) for event in adopted or ()] == [RunAdopted]

    dispatcher.until(lambda: uptime_seconds() > began + 4.0)
    assert dispatcher.events == []
    Path("gate").touch()

    assert dispatcher.exit_of(job.key).ending == Exited(5)


@pytest.mark.parametrize("leaves", [True, False], ids=["agent", "no agent"])
def test_a_job_that_the_lease_has_ended_is_never_taken_for_done_whatever_became_of_the_mark(
    predecessor: Predecessor,
    successor: Callable[[float], Dispatcher],
    tmp_path: Path,
    leaves: bool,
):
    """A reboot empties /tmp."""
    [job] = predecessor.launch("trap 'exit 0' TERM; sleep 600 & wait")
    if leaves:
        predecessor.die()
    wait_until(lambda: not predecessor.jobs())
    shutil.rmtree(tmp_path / f"smartsched-{os.getuid()}")
    dispatcher = successor(LONG_SECONDS)

    dispatcher.processes.adopt(job.running, dispatcher.clock.now())

    assert dispatcher.exit_of(job.key).ending == OUT_OF_REACH


def test_a_job_that_has_ended_in_time_is_done_though_its_host_was_out_of_reach_then(
    predecessor: Predecessor, successor: Callable[[float], Dispatcher], tmp_path: Path
):
    [job] = predecessor.launch("exit 0")
    predecessor.die()
    wait_until(lambda: not predecessor.jobs())
    shutil.rmtree(tmp_path / f"smartsched-{os.getuid()}")
    dispatcher = successor(LONG_SECONDS)

    dispatcher.processes.adopt(job.running, dispatcher.clock.now())

    assert dispatcher.exit_of(job.key).ending == Exited(0)


def test_who_comes_too_late_is_told_that_the_lease_has_ended_the_job(
    predecessor: Predecessor, successor: Callable[[float], Dispatcher]
):
    [job] = predecessor.launch("trap 'exit 0' TERM; sleep 600 & wait")
    predecessor.die()
    wait_until(lambda: not predecessor.jobs())
    dispatcher = successor(LONG_SECONDS)

    assert dispatcher.processes.adopt(job.running, dispatcher.clock.now()) == []

    assert dispatcher.exit_of(job.key).ending == OUT_OF_REACH


# --- what may befall the lease and the watchdog


@pytest.mark.parametrize("damage", ["removed", "folder removed", "garbage", "torn", "a folder"])
def test_where_the_lease_cannot_be_read_the_last_that_was_read_counts(
    dispatcher: Dispatcher, lease: Lease, damage: str
):
    ends = uptime_seconds() + SHORT_SECONDS
    lease.renew(ends)
    run = dispatcher.start("sleep 600")
    file = lease.folder / LEASE
    if damage in ("garbage", "torn"):
        file.write_text({"garbage": "x" * 5000, "torn": "000099999999 000000000001 0000"}[damage])
    elif damage == "folder removed":
        shutil.rmtree(lease.folder)
    else:
        file.unlink()
        if damage == "a folder":
            file.mkdir()

    event = dispatcher.exit_of(run)

    assert uptime_seconds() >= ends
    assert event.ending == OUT_OF_REACH


def test_a_folder_that_was_tidied_away_is_there_again_in_time(dispatcher: Dispatcher, lease: Lease):
    renew(lease, SHORT_SECONDS)
    run = dispatcher.start("until [ -e gate ]; do sleep 0.02; done; exit 5")
    shutil.rmtree(lease.folder.parent)
    renew(lease, LONG_SECONDS)
    began = uptime_seconds()

    dispatcher.until(lambda: uptime_seconds() > began + SHORT_SECONDS + 0.5)
    Path("gate").touch()

    assert dispatcher.exit_of(run).ending == Exited(5)


def test_when_only_the_wrapper_is_killed_its_job_is_ended_and_not_by_the_lease(
    dispatcher: Dispatcher,
):
    run = dispatcher.start("trap '' TERM; (setsid sleep 600 & echo $!); sleep 600; sleep 600")
    dispatcher.until(dispatcher.said)

    os.kill(leader_of(dispatcher), signal.SIGKILL)

    assert dispatcher.exit_of(run).ending == Killed(signal.SIGKILL)
    dispatcher.cleared(run)
    assert alive_of(dispatcher.run_name) == []


@pytest.mark.parametrize("asked", ["exit 0", ":"], ids=["saves its state", "ignores it"])
def test_a_job_whose_watchdog_was_killed_is_stopped_and_lost(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, asked: str
):
    """Else nothing would end it where its host is cut off."""
    monkeypatch.setattr(processes, "_LOOK_AT_WATCHDOGS_SECONDS", 0.2)
    run = dispatcher.start(f"trap '{asked}' TERM; echo ready; while :; do sleep 0.02; done")
    dispatcher.until(dispatcher.said)
    watchdog = watchdog_of(leader_of(dispatcher))
    looks_at = uptime_seconds() + 1.0
    dispatcher.until(lambda: uptime_seconds() > looks_at)
    assert dispatcher.events == []

    os.kill(watchdog, signal.SIGKILL)

    ending = dispatcher.exit_of(run).ending
    assert isinstance(ending, Lost)
    assert "watchdog" in ending.why
    wait_until(lambda: not alive_of(dispatcher.run_name))


def test_the_watchdog_of_a_job_that_was_taken_over_is_looked_at_too(
    predecessor: Predecessor,
    successor: Callable[[float], Dispatcher],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(processes, "_LOOK_AT_WATCHDOGS_SECONDS", 0.2)
    [job] = predecessor.launch("sleep 600")
    dispatcher = successor(LONG_SECONDS)
    dispatcher.processes.adopt(job.running, dispatcher.clock.now())
    looks_at = uptime_seconds() + 1.0
    dispatcher.until(lambda: uptime_seconds() > looks_at)

    os.kill(watchdog_of(job.process.pid), signal.SIGKILL)

    ending = dispatcher.exit_of(job.key).ending
    assert isinstance(ending, Lost)
    assert "watchdog" in ending.why


def test_signals_that_ask_jobs_to_end_or_to_save_their_state_do_not_end_the_watchdog(
    dispatcher: Dispatcher, lease: Lease
):
    renew(lease, 4.0)
    run = dispatcher.start("sleep 600")
    watchdog = watchdog_of(leader_of(dispatcher))
    asking = {
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1,
        signal.SIGUSR2, signal.SIGPIPE, signal.SIGXCPU, signal.SIGTSTP,
    }  # fmt: skip
    wait_until(lambda: asking <= signals_of(watchdog, "SigIgn"))
    assert not asking & signals_of(watchdog, "SigCgt")

    for signum in {*asking, signal.SIGALRM, signal.SIGSTOP, signal.SIGCONT}:
        os.kill(watchdog, signum)
    os.kill(watchdog, signal.SIGCONT)

    assert dispatcher.exit_of(run).ending == OUT_OF_REACH


def test_a_job_that_was_stopped_for_longer_than_its_lease_never_goes_on(
    dispatcher: Dispatcher, lease: Lease
):
    renew(lease, SHORT_SECONDS)
    run = dispatcher.start("echo ready; while :; do sleep 0.05; done")
    dispatcher.until(dispatcher.said)

    os.killpg(leader_of(dispatcher), signal.SIGSTOP)

    assert dispatcher.exit_of(run).ending == OUT_OF_REACH


def test_a_checkpoint_signal_reaches_the_command_under_a_lease(dispatcher: Dispatcher):
    run = dispatcher.start(
        "trap 'echo saved; exit 3' USR1; echo ready; while :; do sleep 0.02; done"
    )
    dispatcher.until(dispatcher.said)

    dispatcher.processes.checkpoint(run)

    assert dispatcher.exit_of(run).ending == Exited(3)
    assert dispatcher.said() == ["ready", "saved"]


# --- while the lease is kept


def test_a_job_that_ends_leaves_no_watchdog(dispatcher: Dispatcher):
    run = dispatcher.start("until [ -e gate ]; do sleep 0.02; done; exit 4")
    watchdog = watchdog_of(leader_of(dispatcher))

    Path("gate").touch()
    event = dispatcher.exit_of(run)

    assert (event.ending, event.leftovers, alive(watchdog)) == (Exited(4), 0, False)


def test_what_a_job_leaves_behind_is_left_to_the_dispatcher_that_lives(dispatcher: Dispatcher):
    run = dispatcher.start("sleep 600 & echo $!; exit 3")

    event = dispatcher.exit_of(run)

    assert (event.ending, event.leftovers) == (Exited(3), 1)
    assert alive(int(dispatcher.said()[0]))
    dispatcher.processes.kill(run)
    dispatcher.cleared(run)


def test_what_a_job_leaves_behind_while_its_host_is_cut_off_stays_under_the_lease(
    dispatcher: Dispatcher, lease: Lease
):
    now = uptime_seconds()
    ends, renewed = int((now + 3.0) * 100), max(0, int((now - 60) * 100))
    (lease.folder / LEASE).write_text(f"{ends:012d} {renewed:012d} {ends:012d}\n")
    run = dispatcher.start("(setsid sleep 600 & echo $!); exit 3")
    dispatcher.until(dispatcher.said)
    stray = int(dispatcher.said()[0])

    event = dispatcher.exit_of(run)

    assert uptime_seconds() >= now + 3.0
    assert (event.ending, event.leftovers, alive(stray)) == (Exited(3), 0, False)


def test_what_was_left_behind_goes_on_when_the_host_is_back(dispatcher: Dispatcher, lease: Lease):
    now = uptime_seconds()
    ends, renewed = int((now + 20.0) * 100), max(0, int((now - 60) * 100))
    (lease.folder / LEASE).write_text(f"{ends:012d} {renewed:012d} {ends:012d}\n")
    run = dispatcher.start("(setsid sleep 600 & echo $!); exit 3")
    dispatcher.until(dispatcher.said)

    def has_ended() -> bool:
        renew(lease, LONG_SECONDS)
        return bool(dispatcher.exits_of(run))

    dispatcher.until(has_ended)

    event = dispatcher.exit_of(run)
    assert (event.ending, event.leftovers) == (Exited(3), 1)
    assert alive(int(dispatcher.said()[0]))
    dispatcher.processes.kill(run)
    dispatcher.cleared(run)


def test_a_watchdog_sleeps(dispatcher: Dispatcher):
    dispatcher.start("sleep 600")
    watchdog = watchdog_of(leader_of(dispatcher))

    def switches() -> int:
        return int(psutil.Process(watchdog).num_ctx_switches().voluntary)

    wait_until(lambda: psutil.Process(watchdog).status() == psutil.STATUS_SLEEPING)
    until_settled = uptime_seconds() + 0.5
    wait_until(lambda: uptime_seconds() > until_settled)
    before, until = switches(), uptime_seconds() + AWHILE
    wait_until(lambda: uptime_seconds() > until)

    assert switches() == before


def test_names_that_the_watchdog_uses_are_those_of_the_command_as_before(
    dispatcher_of: MakeDispatcher, lease: Lease
):
    renew(lease, LONG_SECONDS)
    names = ("lease", "mark", "ends", "grace", "now", "left", "found", "tags", "said", "known")
    environment = {b"PATH": os.environb[b"PATH"], b"LC_ALL": b"C"}
    environment |= {name.encode(): b"mine" for name in names}
    dispatcher = dispatcher_of(environment=environment, lease=lease)

    dispatcher.run("cat /proc/$$/environ; :")

    seen = dict(entry.split("=", 1) for entry in dispatcher.log().split("\0") if entry)
    assert {name: seen.get(name) for name in names} == dict.fromkeys(names, "mine")
    assert seen["LC_ALL"] == "C"


# --- without a lease


@pytest.mark.parametrize("seconds", [None, -1.0])
def test_nothing_is_started_without_a_lease_that_lasts(
    dispatcher_of: MakeDispatcher, lease: Lease, seconds: float | None
):
    if seconds is not None:
        renew(lease, seconds)
    dispatcher = dispatcher_of(lease=lease)
    fds = len(os.listdir("/proc/self/fd"))

    event = dispatcher.launch(launch_of("touch ran"))

    assert isinstance(event, RunPostponed)
    assert "the lease of this host has run out" in event.why
    assert not Path("ran").exists()
    assert len(os.listdir("/proc/self/fd")) == fds


def test_without_bash_no_lease_can_be_kept_and_one_is_told(
    dispatcher_of: MakeDispatcher, lease: Lease, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    with pytest.raises(UsageError, match="no bash on this host"):
        dispatcher_of(lease=lease)


# --- the file


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_only_we_may_read_what_is_kept(tmp_path: Path):
    lease = lease_for(tmp_path, "token")

    modes = [mode_of(path) for path in (lease.folder.parent, lease.folder, lease.folder / LEASE)]
    assert modes == [0o700, 0o700, 0o600]
    assert lease.folder.parent.parent == tmp_path


def test_a_token_always_leads_to_the_same_lease(tmp_path: Path):
    first, again, other = (Lease(t, grace_seconds=0, places=[tmp_path]) for t in ("a", "a", "b"))

    assert first.folder == again.folder != other.folder
    assert str(tmp_path) in str(first.folder)


@pytest.mark.parametrize("token", ["", ".", "..", "a/b", ".hidden", "-x", "a\n", "x" * 300])
def test_a_token_that_is_no_name_is_refused(tmp_path: Path, token: str):
    with pytest.raises(ValueError, match="no name"):
        Lease(token, grace_seconds=0, places=[tmp_path])


def test_whoever_reads_a_lease_finds_a_whole_one(lease: Lease):
    renew(lease, 1.0)
    file = lease.folder / LEASE
    until = time.monotonic() + 0.3
    seconds = 1.0
    with file.open("rb") as first:
        while time.monotonic() < until:
            renew(lease, seconds := seconds + 1.0)
            expiry, renewed, again = file.read_text().split()
            assert expiry == again
            assert int(expiry) - int(renewed) == pytest.approx(seconds * 100, abs=2)
        assert len(first.read().split()) == 3
    assert os.listdir(lease.folder) == [LEASE]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_nobody_s_job(lease: Lease, monkeypatch: pytest.MonkeyPatch, error: int):
    renew(lease, 1.0)
    before = (lease.folder / LEASE).stat()

    def full(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "rename", full)
    ends = uptime_seconds() + 1234.0
    lease.renew(ends)

    file = lease.folder / LEASE
    assert file.read_text().split()[0] == f"{int(ends * 100):012d}"
    assert (file.stat().st_ino, file.stat().st_size) == (before.st_ino, before.st_size)


def test_where_the_lease_cannot_be_renewed_that_is_said(lease: Lease):
    renew(lease, 1.0)
    shutil.rmtree(lease.folder)
    lease.folder.touch()

    with pytest.raises(StateError, match="cannot renew the lease in"):
        renew(lease, 2.0)


@pytest.mark.parametrize("which", ["ours", "token"])
def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path: Path, which: str):
    precious = tmp_path / "precious"
    precious.mkdir(0o700)
    ours = tmp_path / f"smartsched-{os.getuid()}"
    if which == "token":
        ours.mkdir(0o700)
    (ours if which == "ours" else ours / "token").symlink_to(precious)

    with pytest.raises(StateError, match=r"smartsched-\d"):
        lease_for(tmp_path, "token")

    assert list(precious.iterdir()) == []


def test_a_folder_that_others_may_enter_is_not_used(tmp_path: Path):
    ours = tmp_path / f"smartsched-{os.getuid()}"
    ours.mkdir()
    ours.chmod(0o755)

    with pytest.raises(StateError, match="others may enter it"):
        lease_for(tmp_path, "token")


def test_a_place_where_anybody_may_replace_what_is_ours_is_not_used(tmp_path: Path):
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)

    with pytest.raises(StateError, match="anybody may replace"):
        lease_for(place, "token")

    place.chmod(0o1777)
    lease_for(place, "token")


def test_a_folder_of_somebody_else_is_not_used_but_the_next_place(tmp_path: Path):
    if os.getuid() != 0:
        pytest.skip("only root can give folders away")
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    squatted = places[0] / "smartsched-0"
    squatted.mkdir(0o700)
    os.chown(squatted, 54321, 54321)

    with pytest.raises(StateError, match="belongs to somebody else"):
        Lease("token", grace_seconds=0, places=places[:1])

    assert Lease("token", grace_seconds=0, places=places).folder.parent.parent == places[1]


def test_whoever_comes_next_keeps_the_lease_where_it_was_kept(tmp_path: Path):
    """Somebody stands in the way of the first place, and later he does not."""
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    in_the_way = places[0] / f"smartsched-{os.getuid()}"
    in_the_way.touch()
    kept = Lease("token", grace_seconds=0, places=places)
    in_the_way.unlink()

    again = Lease("token", grace_seconds=0, places=places)
    other = Lease("other", grace_seconds=0, places=places)

    assert again.folder == kept.folder
    assert other.folder.parent.parent == places[0]


def test_a_link_in_place_of_the_lease_is_replaced_and_not_followed(lease: Lease, tmp_path: Path):
    (tmp_path / "precious").write_text("precious")
    for name in (LEASE, "lease.new"):
        (lease.folder / name).symlink_to(tmp_path / "precious")

    with pytest.raises(StateError):
        renew(lease, 1.0)
    (lease.folder / "lease.new").unlink()
    renew(lease, 1.0)

    assert (tmp_path / "precious").read_text() == "precious"
    assert not (lease.folder / LEASE).is_symlink()


def test_nothing_stays_when_it_is_no_more_needed(lease: Lease):
    renew(lease, 1.0)
    (lease.folder / "0001.1.ended").touch()

    lease.remove()

    assert not lease.folder.exists()
    lease.remove()


def test_what_nobody_came_back_for_is_forgotten_after_a_month(tmp_path: Path):
    old, recent = (lease_for(tmp_path, name) for name in ("old", "recent"))
    for lease, days in ((old, 31), (recent, 29)):
        long_ago = time.time() - days * 86_400
        os.utime(lease.folder, (long_ago, long_ago))

    Lease("new", grace_seconds=0, places=[tmp_path])

    assert (old.folder.exists(), recent.folder.exists()) == (False, True)


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:30 / /home rw,relatime - nfs4 server:/home rw,vers=4.2
24 22 0:31 / /tmp rw - tmpfs tmpfs rw
25 22 0:32 / /scratch\\040space rw - lustre mds:/scratch rw
26 22 0:33 / /mnt rw - fuse.sshfs you@there: rw
27 22 0:34 / /var/tmp rw - nfs server:/tmp rw
28 27 0:35 / /var/tmp rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/srv", None), ("/home", "nfs4"), ("/home/me/x", "nfs4"), ("/homes", None),
        ("/tmp", None), ("/scratch space/x", "lustre"), ("/mnt", "fuse.sshfs"), ("/var/tmp", None),
    ],
)  # fmt: skip
def test_a_file_system_of_another_host_is_known(tmp_path: Path, place: str, kind: str | None):
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(MOUNTS)

    assert remote_kind(Path(place), mountinfo) == kind


def test_without_a_place_of_this_host_that_is_said(tmp_path: Path):
    with pytest.raises(StateError, match="--on-lost keep"):
        Lease("token", grace_seconds=0, places=[tmp_path / "nowhere"])


def test_what_is_known_of_one_run_is_not_of_another(lease: Lease):
    renew(lease, 1.0)
    (lease.folder / "0001.1.ended").touch()

    assert [lease.expired(RunKey(JobId(1), attempt)) for attempt in (1, 2, 11)] == [
        True, False, False,
    ]  # fmt: skip
    lease.forget(RUN)
    lease.forget(RUN)
    assert not lease.expired(RUN)
