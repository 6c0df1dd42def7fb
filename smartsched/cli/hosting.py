"""How an agent comes to be on this host: from a join file to a folder of its own, and into the
background.

The folder is the run's on this host: it has the join file, what attempts leave behind, and a log;
whoever serves it holds its lock. An agent that is here already is only told where its dispatcher is
now.
"""

import argparse
import hashlib
import os
import signal
import stat
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from smartsched import __version__
from smartsched.cli.host import this_host
from smartsched.cli.session import default_state
from smartsched.core import join as joins
from smartsched.core.join import Join
from smartsched.core.model import HostName
from smartsched.edges.clock import SteadyClock
from smartsched.edges.runs import JOBS, RunFolder, Runs, open_own_file
from smartsched.errors import BadMessageError, StateError, UsageError

if TYPE_CHECKING:
    from smartsched.cli.batch import Pilot

JOIN, LOG = "join", "agent.log"
_LARGEST_JOIN_BYTES = 1 << 20
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UP = b"up\n"
_OLD_SECONDS = 30 * 86_400


def start_in_background(args: argparse.Namespace) -> int:
    """What a dispatcher asks for over ssh: says in a line what came of it."""
    join = _checked(sys.stdin.buffer.read(_LARGEST_JOIN_BYTES), "what came on standard input", args)
    runs = _runs(args)
    if _hand_over(runs, join):
        print(f"joined: an agent is here already on {this_host()}")
        return 0
    folder = _folder_for(runs, join)
    path = folder.path
    folder.close()
    _spawn(path, args)
    print(f"started an agent on {this_host()}")
    return 0


def join_by_file(args: argparse.Namespace) -> int:
    """By hand, or in a batch job: in the foreground."""
    from smartsched.cli.serving import serve

    source = JoinSource(args.join)
    join = _checked(_read_own(args.join), args.join, args)
    pilot = _pilot(args)
    runs = _runs(args)
    if _hand_over(runs, join):
        raise StateError(f"an agent of run {join.run_name} is on this host already")
    return serve(join, _folder_for(runs, join), pilot=pilot, source=source)


def serve_folder(args: argparse.Namespace) -> int:
    """In the background: whoever has spawned us waits for a word on descriptor 3."""
    from smartsched.cli.serving import serve

    os.set_inheritable(3, False)  # nobody whom we start is to keep it open
    path = Path(args.serve)
    folder = Runs(path.parent.parent, this_host()).open(path.name)
    join = read_join(folder)

    def is_up() -> None:
        with suppress(OSError):
            os.write(3, _UP)
            os.close(3)

    return serve(join, folder, pilot=_pilot(args), when_up=is_up)


class JoinSource:
    """The file by which an agent has joined; whoever goes on with the run writes it anew."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._came_at = self._look()

    def hand_on(self, folder: RunFolder, host: str) -> None:
        """Put it where the agent looks, if it is new."""
        came_at = self._look()
        if came_at in (0, self._came_at):
            return
        with suppress(UsageError, BadMessageError, OSError):
            join = joins.decode(_read_own(self._path))
            _write_join(folder.fd, replace(join, host=host))
            self._came_at = came_at

    def _look(self) -> int:
        """0: nobody knows."""
        try:
            return os.stat(self._path).st_mtime_ns
        except OSError:
            return 0


def read_join(folder: RunFolder) -> Join:
    """The latest that somebody has put there. Raises StateError."""
    try:
        fd = folder.open_file(JOIN, os.O_RDONLY)
        with open(fd, "rb") as file:
            return joins.decode(file.read(_LARGEST_JOIN_BYTES))
    except (OSError, BadMessageError) as error:
        raise StateError(f"cannot read {folder.path / JOIN}: {error}") from error


def join_came_at(folder: RunFolder) -> int:
    """When somebody has put the latest there, in nanoseconds since 1970; 0: nobody knows."""
    try:
        return os.stat(JOIN, dir_fd=folder.fd, follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0


def _checked(data: bytes, name: str, args: argparse.Namespace) -> Join:
    try:
        join = joins.decode(data)
    except BadMessageError as error:
        raise UsageError(f"{name}: {error}") from error
    if join.version != __version__:
        raise UsageError(
            f"this host has smartsched {__version__}, and the dispatcher {join.version}: install"
            " the same"
        )
    return replace(join, host=args.host or _name_of_pilot(args) or join.host or this_host())


def _name_of_pilot(args: argparse.Namespace) -> str:
    """Several may be on one machine, and of each Slurm knows the number."""
    return f"{this_host()}-{_batch_job()}" if args.pilot else ""


def _pilot(args: argparse.Namespace) -> "Pilot | None":
    from smartsched.cli.batch import Pilot

    return Pilot(_batch_job()) if args.pilot else None


def _batch_job() -> str:
    from smartsched.config import batch_job

    if (job := batch_job()) is None:
        raise UsageError("--pilot goes with a batch job: there is no SLURM_JOB_ID here")
    return job


def _read_own(path: str) -> bytes:
    """It holds a key: what others can read or write is not to be trusted any more."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"--join: cannot open {path}: {error.strerror}") from error
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise UsageError(f"--join: {path} is no plain file of yours")
        if found.st_mode & 0o077:
            raise UsageError(f"--join: {path} holds a key, and others may read it: chmod 600 it")
        return file.read(_LARGEST_JOIN_BYTES)


def _runs(args: argparse.Namespace) -> Runs:
    state = default_state() if args.state is None else Path(args.state).expanduser().absolute()
    return runs_of_agents(state)


def runs_of_agents(state: Path) -> Runs:
    """The folders of agents, below a state folder."""
    return Runs(state / "agents", this_host())


def _name_of(join: Join) -> str:
    """Of its folder. On a shared home, those of other hosts lie beside it."""
    return token_of(join.run_id, join.host)


def token_of(run_id: str, host: str) -> str:
    """What a run's agent on a host is known by there."""
    return hashlib.sha256(f"{run_id}\n{host}".encode()).hexdigest()[:24]


def _hand_over(runs: Runs, join: Join) -> bool:
    """Whether an agent is here; then it has the new file."""
    name = _name_of(join)
    if runs.who_holds(name) is None:
        return False
    fd = os.open(runs.path(name), _FOLDER_FLAGS)
    try:
        _write_join(fd, join)
    finally:
        os.close(fd)
    return runs.who_holds(name) is not None


def forget_old(
    runs: Runs, older_than_seconds: float = _OLD_SECONDS, *, records_too: bool = False
) -> int:
    """What agents have left behind that were killed, and that nobody came back to. How runs ended
    there is kept for whoever goes on with theirs, unless `records_too`; keys are not. How many
    agents that were."""
    oldest, forgotten = SteadyClock().now() - older_than_seconds, 0
    for name in runs.names():
        with suppress(StateError, OSError):  # somebody holds it, here or on another host
            path = runs.path(name)
            if max(each.lstat().st_mtime for each in (path, *path.iterdir())) >= oldest:
                continue
            with closing(runs.open(name)) as folder:
                if records_too or not any((path / JOBS).glob("*")):
                    folder.erase()
                    forgotten += 1
                else:
                    (path / JOIN).unlink(missing_ok=True)
    return forgotten


def _folder_for(runs: Runs, join: Join) -> RunFolder:
    """Ours, with the join file in it: there from the last agent, or made now."""
    forget_old(runs)
    name = _name_of(join)
    if runs.path(name).exists():
        folder = runs.open(name)
    else:
        new = runs.create(name)
        new.publish()
        folder = new.folder
    try:
        _write_join(folder.fd, join)
    except OSError as error:
        folder.close()
        raise StateError(f"cannot write {folder.path / JOIN}: {error.strerror}") from error
    return folder


def _write_join(folder_fd: int, join: Join) -> None:
    new = f"{JOIN}.{os.getpid()}"
    fd = open_own_file(folder_fd, new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with open(fd, "wb") as file:
        file.write(joins.encode(join))
    os.rename(new, JOIN, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)


def _spawn(path: Path, args: argparse.Namespace) -> None:
    """Wait until it is up. Its output goes to a file: the end of ssh's pipes would be its own."""
    log = os.open(path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    reading, writing = os.pipe()
    argv = [sys.executable, "-P", "-m", "smartsched", "agent", "--serve", str(path)]
    pid = os.posix_spawn(
        sys.executable,
        [*argv, "--pilot"] if args.pilot else argv,
        _environment(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, writing, 3),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM],
    )
    for fd in (log, writing):
        os.close(fd)
    with open(reading, "rb") as pipe:
        if pipe.readline() != _UP:
            os.waitpid(pid, 0)
            raise StateError(f"the agent did not come up: {_last_words(path)}")


def _last_words(path: Path) -> str:
    with suppress(OSError):
        lines = (path / LOG).read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1].removeprefix("smartsched: ")
    return f"see {path / LOG}"


def _environment() -> dict[str, str]:
    from smartsched.config import environment_of_agents

    return environment_of_agents()


def host_of(join: Join) -> HostName:
    return HostName(join.host)
