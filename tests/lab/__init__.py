"""Several pretend hosts on one Linux machine, with real processes and a real network between them.

    with Lab(tmp_path / "lab", stub_library) as lab:  # or the fixture `lab`
        gpu1, gpu2, gpu3 = lab.boot("gpu1", "gpu2", "gpu3", gpus=4)
        session = lab.start("--hosts", "gpu1,gpu2,gpu3", str(lab.list_of([lab.accounts.job("1")])))
        gpu2.cut(); gpu2.heal(); gpu3.power_off(); gpu3.power_on(); gpu1.freeze(gpu1.agent())

A lab has a network of its own, so that any number of them can be there at once. The dispatcher's
side is a host too, `head`, 10.77.0.1, with a pretend ssh; there the lab is a `Box` without a GPU.
Needs iproute2, util-linux and hostname.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.cli.harness import Box, Session
from tests.lab.accounts import Accounts, Entry
from tests.lab.host import Host, has_program, home_env
from tests.lab.spaces import HEAD_ADDRESS, Head, needs_namespaces
from tests.lab.strangers import Colleagues, HostIsOffError, Visit
from tests.stub_nvml import StubMachine

__all__ = [
    "HEAD_ADDRESS",
    "Accounts",
    "Colleagues",
    "Entry",
    "Host",
    "HostIsOffError",
    "Lab",
    "Visit",
    "needs_namespaces",
]

_SSH = Path(__file__).with_name("ssh.py")


class Lab(Box):
    """A user's shell on the dispatcher's host, and the hosts around it."""

    def __init__(self, folder: Path, library: Path) -> None:
        """`library`: the folder of the stub driver's."""
        folder.mkdir(parents=True)
        self.base = folder.resolve()
        self.shared = self.base / "shared"
        """The file system that hosts have in common: `home`, and `work` where commands are run."""
        for name in ("home", "work"):
            (self.shared / name).mkdir(parents=True)
        super().__init__(self.shared / "work", StubMachine(self.base / "machine", library))
        self.hosts: dict[str, Host] = {}
        self.accounts = Accounts(self.base / "accounts")
        self._library = library
        self._ssh_log = self.base / "ssh.log"
        self._furnish()
        self.head = Head(self.base / "etc-hosts")

    def _furnish(self) -> None:
        programs = self.base / "bin"
        has_program(programs)
        ssh = ["env", f"LAB_SSH_LOG={self._ssh_log}", sys.executable, "-I", "-S", str(_SSH)]
        has_program(programs, "ssh", ssh)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        claims = str(self.base / "claims")
        self.env |= {**home_env(self.shared), "PATH": path, "SMARTSCHED_CLAIMS": claims}

    def boot(self, *names: str, gpus: int = 4, private_home: bool = False) -> list[Host]:
        """New hosts, with so many GPUs each. `private_home`: of the shared files it has none."""
        added = []
        for name in names:
            number, folder = len(self.hosts) + 1, self.base / "hosts" / name
            host = Host(
                name,
                number,
                self.head,
                folder,
                self.shared,
                self._library,
                gpus=gpus,
                private_home=private_home,
            )
            self.hosts[name] = host
            self.head.name(name, host.address)
            added.append(host)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Host.power_on, added))
        return added

    def start(
        self,
        *args: str,
        stdin: int = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        become: Sequence[str] = (),
    ) -> Session:
        """smartsched, on the dispatcher's host; its pid is the session's."""
        there = [*self.enter(cwd), *become]
        return super().start(*args, stdin=stdin, env=env, cwd=cwd, become=there)

    def enter(self, cwd: Path | None = None) -> list[str]:
        """What to put before a command that shall run on the dispatcher's host."""
        return [*self.head.enter, "env", "-C", str(cwd or self.folder)]

    def ssh(
        self,
        *arguments: str,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> "subprocess.Popen[bytes]":
        """As the dispatcher would call it."""
        argv = [*self.enter(), "ssh", *arguments]
        return subprocess.Popen(argv, env=self.env, stdin=stdin, stdout=stdout, stderr=stderr)

    def ssh_calls(self) -> list[list[str]]:
        """The arguments of every ssh so far."""
        lines = self._ssh_log.read_text().splitlines() if self._ssh_log.exists() else []
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Ends everything at once, whatever state it is in."""
        with ExitStack() as stack:  # whatever fails, the rest is done
            stack.callback(self.head.close)
            for host in self.hosts.values():
                stack.callback(host.power_off)
            for session in self._sessions:
                stack.callback(session.process.wait)
                session.process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
