"""Drives the real program against the stub driver, as a user would."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.stub_nvml import TRAIN, StubMachine
from tests.waiting import PATIENCE_SECONDS, wait_until

PROGRAM = (sys.executable, "-m", "smartsched")
ROOT = Path(__file__).parents[2]
MOMENT = ("--free-for", "0", "--interval", "100ms")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


class Session:
    """One invocation that is still going on; its output goes to files."""

    def __init__(
        self,
        folder: Path,
        argv: Sequence[str],
        env: dict[str, str],
        stdin: int,
        cwd: Path | None = None,
    ) -> None:
        number = len(list(folder.glob("out-*")))
        self._out, self._err = folder / f"out-{number}", folder / f"err-{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                argv, env=env, stdin=stdin, stdout=out, stderr=err, cwd=cwd or folder
            )

    @property
    def out(self) -> str:
        return self._out.read_bytes().decode("utf-8", "surrogateescape")

    @property
    def err(self) -> str:
        return self._err.read_bytes().decode("utf-8", "surrogateescape")

    def says(self, text: str) -> None:
        """Wait until it has said this, on either stream."""
        wait_until(lambda: text in self.err or text in self.out, f"it says {text!r}", self.dump)

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def crash(self) -> None:
        """As a machine that runs out of memory does it: the dispatcher and its sampler are gone,
        jobs are not."""
        ours = _samplers_of(self.process.pid)
        self.process.kill()
        self.process.wait()
        for sampler in ours:
            with suppress(psutil.Error):
                sampler.kill()

    def end(self) -> Done:
        self.process.wait(PATIENCE_SECONDS)
        return Done(self.process.returncode, self.out, self.err)

    def dump(self) -> str:
        return f"stdout:\n{self.out}\nstderr:\n{self.err}"


class Box:
    """A user's shell on a box with stub GPUs."""

    def __init__(self, folder: Path, machine: StubMachine) -> None:
        self.folder = folder
        self.machine = machine
        self.env = os.environ | machine.env | {"PYTHONPATH": str(ROOT)}
        self._sessions: list[Session] = []

    def start(
        self,
        *args: str,
        stdin: int = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        become: Sequence[str] = (),
    ) -> Session:
        """`become`: a program that becomes somebody else and then runs what follows."""
        argv = [*become, *PROGRAM, *args]
        session = Session(self.folder, argv, self.env | (env or {}), stdin, cwd)
        self._sessions.append(session)
        return session

    def run(self, *args: str, commands: Sequence[str | bytes] | None = None, **env: str) -> Done:
        if commands is None:
            return self.start(*args, env=env).end()
        with self.list_of(commands).open("rb") as listing:
            return self.start(*args, stdin=listing.fileno(), env=env).end()

    def list_of(self, commands: Sequence[str | bytes]) -> Path:
        path = self.folder / f"commands-{len(list(self.folder.glob('commands-*')))}.txt"
        lines = [c if isinstance(c, bytes) else os.fsencode(c) for c in commands]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    def training(self, name: str, *options: str) -> str:
        """A command that trains, and writes down on which GPU."""
        log = str(self.folder / "training.log")
        argv = [sys.executable, "-I", "-S", str(TRAIN), "--id", name, "--log", log, *options]
        return shlex.join(argv)

    def trained(self, what: str = "start") -> list[tuple[str, str, float]]:
        """(id, GPU UUID, monotonic seconds) of every line of that kind, in their order."""
        log = self.folder / "training.log"
        lines = log.read_text().splitlines() if log.exists() else []
        words = [line.split() for line in lines]
        return [(w[1], w[2], float(w[4])) for w in words if w[0] == what]

    def job_logs(self) -> list[Path]:
        return sorted(self.folder.glob("smartsched-logs/*/*.log"))

    @property
    def state(self) -> Path:
        """Below it is all that is remembered of runs."""
        return Path(self.env["XDG_STATE_HOME"]) / "smartsched"

    def run_folder(self, name: str | None = None) -> Path:
        """Of that run, or of the only one."""
        if name is not None:
            return self.state / "runs" / name
        [folder] = (self.state / "runs").iterdir()
        return folder

    def journal(self, name: str | None = None) -> list[dict[str, Any]]:
        """The whole lines of a run's journal; none as long as there is no run."""
        try:
            text = (self.run_folder(name) / "events.jsonl").read_text()
        except (OSError, ValueError):
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def events(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        return [record for record in self.journal(name) if record["event"] == kind]

    def lines(self, name: str) -> list[str]:
        """Of a file that jobs append to."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def processes(self) -> list[int]:
        """Everybody who was started from here and lives, dispatchers too."""
        mark = f"NVML_STUB_DIR={self.machine.env['NVML_STUB_DIR']}".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                environment = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                if mark in environment and alive(int(name)):
                    found.append(int(name))
        return found

    def is_quiet(self) -> bool:
        """Nobody is left behind."""
        return not self.processes()

    def close(self) -> None:
        for session in self._sessions:
            if session.process.poll() is None:  # of a test that failed: its jobs go with it
                for _ in range(3):
                    session.process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    session.process.wait(PATIENCE_SECONDS)
                session.process.kill()
                session.process.wait()
        for pid in self.processes():  # jobs whose dispatcher a test has killed
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _samplers_of(pid: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(pid).children()
    except psutil.Error:
        return []
    return [child for child in children if _is_sampler(child)]


def _is_sampler(process: psutil.Process) -> bool:
    try:
        return "sample" in process.cmdline()
    except psutil.Error:
        return False


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@contextmanager
def a_pipe() -> Iterator[tuple[int, int]]:
    """A reading end to hand over, and a writing end."""
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        for fd in (reading, writing):
            try:
                os.close(fd)
            except OSError:
                continue
