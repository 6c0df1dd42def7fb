"""Drives the real program against the stub driver, as a user would."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

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

    def __init__(self, folder: Path, argv: Sequence[str], env: dict[str, str], stdin: int) -> None:
        number = len(list(folder.glob("out-*")))
        self._out, self._err = folder / f"out-{number}", folder / f"err-{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                argv, env=env, stdin=stdin, stdout=out, stderr=err, cwd=folder
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
        self, *args: str, stdin: int = subprocess.DEVNULL, env: dict[str, str] | None = None
    ) -> Session:
        session = Session(self.folder, [*PROGRAM, *args], self.env | (env or {}), stdin)
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

    def close(self) -> None:
        for session in self._sessions:
            if session.process.poll() is None:  # of a test that failed: its jobs go with it
                for _ in range(3):
                    session.process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    session.process.wait(PATIENCE_SECONDS)
                session.process.kill()
                session.process.wait()


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
