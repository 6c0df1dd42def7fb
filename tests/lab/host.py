"""One pretend host: namespaces, GPUs, people and faults. Knows the network, but no dispatcher."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cli.harness import PROGRAM, ROOT, Done, alive
from tests.lab.spaces import BRIDGE, HEAD_ADDRESS, HEAD_MAC, Head, entering, kept_below, members
from tests.lab.strangers import HostIsOffError, stranger
from tests.stub_nvml import GIB, StubGpu, StubMachine
from tests.waiting import PATIENCE_SECONDS, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from tests.lab.strangers import Visit

PLAIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HERE = Path(__file__).parent
_PYTHON = (sys.executable, "-I", "-S")
_SPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
_PRIVATE = (Path("/tmp"), Path("/run"), Path("/dev/shm"))


class Host:
    """A machine that has a name, an address and PIDs of its own, and a switch for its power.

    Its /tmp, /run and /dev/shm are its own and empty after every boot; other files are everybody's,
    but for the home and what lies beside it where `private_home`. The claim folder is its own.
    """

    def __init__(
        self,
        name: str,
        number: int,
        head: Head,
        folder: Path,
        shared: Path,
        library: Path,
        *,
        gpus: int = 4,
        private_home: bool = False,
    ) -> None:
        self.name, self.folder, self.gpus = name, folder, gpus
        self.address = f"10.77.0.{10 + number}"
        self.bin = folder / "bin"
        """First in the PATH of whoever comes by ssh; has smartsched, until a test takes it away."""
        self._mac, self._port = f"02:00:00:00:00:{10 + number:02x}", f"port{number}"
        self._head, self._shared, self._library = head, shared, library
        self._process: subprocess.Popen[bytes] | None = None
        self.init_pid = 0
        self._is_cut = False
        self._furnish(number, private_home=private_home)

    def _furnish(self, number: int, *, private_home: bool) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "stage").mkdir()
        (self.folder / "machine-id").write_text(uuid.uuid4().hex + "\n")
        if private_home:
            (self.folder / "tree" / "home").mkdir(parents=True)
        has_program(self.bin)
        gpus = [
            StubGpu(index, uuid=f"GPU-{number:08d}-0000-4000-8000-{index:012d}")
            for index in range(self.gpus)
        ]
        self.machine = StubMachine(self.folder / "machine", self._library, gpus)

    @property
    def env(self) -> dict[str, str]:
        """What a user finds who comes by ssh, but for what ssh adds."""
        user = pwd.getpwuid(0).pw_name
        cache = os.environ.get("PYTHONPYCACHEPREFIX")
        return {
            **home_env(self._shared),
            **self.machine.env,
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/sh",
            "PATH": f"{self.bin}:{PLAIN_PATH}",
            "LANG": "C.UTF-8",
            "SMARTSCHED_CLAIMS": str(self.folder / "claims"),
            **({"PYTHONPYCACHEPREFIX": cache} if cache else {}),
        }

    @property
    def enter(self) -> list[str]:
        """What to put before a command that shall run here. Raises HostIsOffError."""
        if not self.is_on:
            raise HostIsOffError(self.name)
        spaces = entering(self.init_pid, "mount", "uts", "ipc", "net", "pid")
        return [*spaces, "env", "-C", str(self._shared / "home")]

    def run(self, *argv: str) -> Done:
        """Somebody at the machine itself; a cut link is no hindrance to him."""
        done = subprocess.run(
            [*self.enter, *argv],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def smartsched(self, *args: str) -> Done:
        return self.run(str(self.bin / "smartsched"), *args)

    # Its power and its network.

    @property
    def is_on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def power_on(self) -> None:
        """Boots: nothing runs but what waits for ssh, and the boot has another id."""
        assert self._process is None, f"{self.name} is on"
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        for path in (self.machine.directory / "procs").iterdir():  # pids begin anew
            path.unlink()
        with (self.folder / "console").open("ab") as console:
            process = subprocess.Popen(
                self._boot(),
                env=self.env | {"KEPT": self._kept()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                start_new_session=True,
            )
        try:
            self.init_pid = int(self._hear(process))
            self._plug_in()
            assert process.stdin is not None
            process.stdin.write(b"plugged\n")
            process.stdin.flush()
            assert self._hear(process) == b"up\n"
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._process = process

    def power_off(self) -> None:
        """As when the plug is pulled: nothing says goodbye, and nothing runs when this returns."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:  # else the pid may be another's
            # The cable first: whoever is killed resets his connections.
            self._head.ip(f"link delete {self._port}")
            os.kill(self.init_pid, signal.SIGKILL)
        process.wait()  # for PID 1, which goes when all others have
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def cut(self) -> None:
        """From now on the network loses all packets from and to it, and tells neither side.

        Both ends of its cable still see a link; the far one just leads nowhere.
        """
        self._is_cut = True
        if self.is_on:
            self._head.ip(f"link set {self._port} nomaster")

    def heal(self) -> None:
        """Connections that live go on when they next try; after a long cut that takes a while."""
        self._is_cut = False
        if self.is_on:
            self._head.ip(f"link set {self._port} master {BRIDGE}")

    # Its processes, by the pids that the test knows them by.

    def processes(self, pattern: str = "") -> list[int]:
        """Those whose command line matches; a space is between its words. Without PID 1."""
        if not self.is_on:
            return []
        pids = [pid for pid in members("pid", self.init_pid) if pid != self.init_pid]
        return [pid for pid in pids if alive(pid) and re.search(pattern, " ".join(_argv(pid)))]

    def agents(self) -> list[int]:
        return [pid for pid in self.processes() if _is_agent(_argv(pid))]

    def agent(self) -> int:
        """The only one."""
        [pid] = self.agents()
        return pid

    def kill_agent(self) -> int:
        """As the machine does it when memory runs out. Returns which it was."""
        pid = self.agent()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), "the agent is gone")
        return pid

    def freeze(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self, *pids: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def stranger(self, gpu: int, mem_bytes: int = 40 * GIB) -> AbstractContextManager[Visit]:
        """Somebody else uses that GPU (its index) meanwhile."""
        return stranger(self, gpu, mem_bytes)

    def _boot(self) -> list[str]:
        network = [self.name, self.address, HEAD_ADDRESS, HEAD_MAC]
        sshd = [*_PYTHON, str(_HERE / "ssh.py"), "--serve"]
        init = [*_PYTHON, str(_HERE / "init.py"), *sshd]
        places = [str(self._head.hosts_file), str(self.folder), str(self._shared)]
        boot = ["sh", str(_HERE / "boot.sh"), *network, *places, *init]
        return [*self._head.enter, "unshare", *_SPACES, "--fork", "--kill-child", *boot]

    def _kept(self) -> str:
        named = [os.environ.get("PYTHONPYCACHEPREFIX", ""), *self.machine.env.values()]
        paths = [Path(p) for text in named for p in text.split(os.pathsep) if p]
        paths += [self._shared.parent, ROOT, Path(sys.prefix), Path(sys.base_prefix)]
        return "\n".join(str(path) for top in _PRIVATE for path in kept_below(top, *paths))

    def _plug_in(self) -> None:
        # Neighbours are told, not asked for: a host that does not answer is silent, not unknown.
        self._head.ip(
            f"link add {self._port} type veth"
            f" peer name eth0 address {self._mac} netns {self.init_pid}",
            f"link set {self._port} {'nomaster' if self._is_cut else f'master {BRIDGE}'} up",
            f"neigh replace {self.address} lladdr {self._mac} dev {BRIDGE} nud permanent",
        )

    def _hear(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{self.name} does not boot:\n{(self.folder / 'console').read_text()}"
        return line


def home_env(shared: Path) -> dict[str, str]:
    home = shared / "home"
    return {
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / ".local" / "state"),
        "XDG_CONFIG_HOME": str(home / ".config"),
    }


def has_program(folder: Path, name: str = "smartsched", argv: Iterable[str] = PROGRAM) -> None:
    """Puts a program of that name there, as an installation would."""
    folder.mkdir(exist_ok=True)
    words = " ".join(f"'{word}'" for word in argv)
    (folder / name).write_text(f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec {words} \"$@\"\n")
    (folder / name).chmod(0o755)


def _argv(pid: int) -> list[str]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []
    return [os.fsdecode(word) for word in words]


def _is_agent(argv: Sequence[str]) -> bool:
    """`smartsched agent ...`, but no shell that was told to run it."""
    return any(
        verb == "agent" and Path(program).name == "smartsched" for program, verb in pairwise(argv)
    )
