"""A real sshd on a loopback port, for this user alone, and a client that knows only it."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.waiting import wait_until

_DAEMONS = ("sshd", "/usr/sbin/sshd", "/usr/local/sbin/sshd")
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # where Debian's looks, when it is run by root
_TRIES = 5  # a free port may be taken by somebody else before sshd has it


class Sshd:
    """Hosts are aliases in the client's configuration; all are this one, or should be."""

    def __init__(self, folder: Path, daemon: str) -> None:
        self._folder = folder
        self._daemon = daemon
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[str, str] = {}
        self._hosts: dict[str, str] = {}
        self.port = 0
        self.log = folder / "sshd.log"
        self.user = pwd.getpwuid(os.getuid()).pw_name
        for key in ("host_key", "other_host_key", "user_key", "other_user_key"):
            _make_key(folder / key)
        shutil.copyfile(folder / "user_key.pub", folder / "authorized_keys")

    def start(self) -> None:
        for _ in range(_TRIES):
            self.port = free_port()
            self._write_server_configuration()
            self._process = subprocess.Popen(
                [self._daemon, "-D", "-f", self._folder / "sshd_config", "-E", self.log]
            )
            wait_until(self._listens_or_ended, "sshd listens", self.said)
            if self._process.poll() is None:
                return
        pytest.fail(f"sshd does not run: {self.said()}")

    def fresh_host(self, alias: str, **options: object) -> str:
        """One that ssh knows by this name; `options` are those of ssh_config(5), which come before
        what all hosts have."""
        given = {"HostName": "127.0.0.1", "Port": self.port, "HostKeyAlias": alias}
        given |= {"IdentityFile": self._folder / "user_key"} | options
        self._known[alias] = "host_key"
        self._hosts[alias] = _lines({f"  {name}": value for name, value in given.items()})
        self._write_client_configuration()
        return alias

    def change_key_of(self, alias: str) -> None:
        self._known[alias] = "other_host_key"
        self._write_client_configuration()

    def forget_key_of(self, alias: str) -> None:
        self._known[alias] = ""
        self._write_client_configuration()

    def other_key(self) -> Path:
        """Of a user, who is not let in with it."""
        return self._folder / "other_user_key"

    def client(self) -> Path:
        """A folder for PATH with an `ssh` that reads our configuration and no other: the real one
        finds the user's by the list of users, whatever HOME says."""
        real = shutil.which("ssh")
        assert real is not None
        folder = self._folder / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "ssh").write_text(
            f'#!/bin/sh\nexec {real} -F {self._folder / "ssh_config"} "$@"\n'
        )
        (folder / "ssh").chmod(0o755)
        self._write_client_configuration()
        return folder

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def _listens_or_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None or f"port {self.port}" in self.said()

    def _write_server_configuration(self) -> None:
        (self._folder / "sshd_config").write_text(
            _lines(
                {
                    "ListenAddress": "127.0.0.1",
                    "Port": self.port,
                    "HostKey": self._folder / "host_key",
                    "PidFile": "none",
                    "AuthorizedKeysFile": self._folder / "authorized_keys",
                    "StrictModes": "no",  # the folders above are the tests'
                    "UsePAM": "no",
                    "PasswordAuthentication": "no",
                    "KbdInteractiveAuthentication": "no",
                    "PermitRootLogin": "prohibit-password",
                    "MaxStartups": "100",
                    "LogLevel": "VERBOSE",
                }
            )
        )

    def _write_client_configuration(self) -> None:
        known = [
            f"{alias} {(self._folder / f'{key}.pub').read_text()}"
            for alias, key in self._known.items()
            if key
        ]
        (self._folder / "known_hosts").write_text("".join(known))
        everywhere = {
            "UserKnownHostsFile": self._folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "User": self.user,
        }
        hosts = [f"Host {alias}\n{options}" for alias, options in self._hosts.items()]
        everybody = _lines({f"  {name}": value for name, value in everywhere.items()})
        (self._folder / "ssh_config").write_text(f"{''.join(hosts)}Host *\n{everybody}")


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _lines(options: Mapping[str, object]) -> str:
    return "".join(f"{name} {value}\n" for name, value in options.items())


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def _missing() -> str | None:
    """What a real ssh needs and is not here."""
    if not any(shutil.which(daemon) for daemon in _DAEMONS):
        return "no sshd to connect to (openssh-server)"
    if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        return "no ssh to connect with (openssh-client)"
    if pwd.getpwuid(os.getuid()).pw_shell.endswith(("nologin", "false")):
        return "this user may not log in"
    return None


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One for all tests of a module."""
    if (why := _missing()) is not None:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have an sshd: {why}")
        pytest.skip(why)
    if os.getuid() == 0:
        _PRIVILEGE_SEPARATION.mkdir(0o755, exist_ok=True)
    daemon = next(found for name in _DAEMONS if (found := shutil.which(name)))
    server = Sshd(tmp_path_factory.mktemp("sshd"), str(Path(daemon).absolute()))
    server.start()
    try:
        yield server
    finally:
        server.stop()
