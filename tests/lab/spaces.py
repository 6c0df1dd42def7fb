"""Linux namespaces by means of iproute2 and util-linux: whether they may be made, the dispatcher's
side of a lab, and the way into any of them. Knows nothing of GPUs, ssh or smartsched.

Whoever is not root makes them inside a user namespace, in which he is.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from tests.waiting import wait_until

HEAD = "head"
HEAD_ADDRESS = "10.77.0.1"
HEAD_MAC = "02:00:00:00:00:01"
BRIDGE = "lab"
SUDO = () if os.geteuid() == 0 else ("--user", "--map-root-user")
TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname", "env")

_ENTER = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
# The dark port leads nowhere: the bridge has a link though all hosts are off.
_BRIDGED = f"""\
link set lo up
link add {BRIDGE} address {HEAD_MAC} type bridge
link set {BRIDGE} up
link add dark type veth peer name darkness
link set darkness up
link set dark master {BRIDGE} up
addr add {HEAD_ADDRESS}/24 dev {BRIDGE}
"""
_HEAD_SCRIPT = f"""\
set -eu
mount --bind "$1" /etc/hosts
hostname {HEAD}
printf '%s' "$2" | ip -batch -
echo up
exec cat
"""
# What a boot does, in short.
_PROBE_SCRIPT = f"""\
set -eu
printf '%s' '{_BRIDGED}' | ip -batch -
ip link add port type veth peer name eth0
ip link set port master {BRIDGE} up
unshare --mount --uts --ipc --net --pid --fork sh -euc '
  mount -t tmpfs tmpfs /dev/shm
  echo another > /dev/shm/boot_id
  mount -t proc proc /proc
  mount --bind /dev/shm/boot_id /proc/sys/kernel/random/boot_id
  hostname probe'
"""


def needs_namespaces() -> None:
    """Skips where none may be made; root in CI has to be able to."""
    why = why_no_namespaces()
    if why is None:
        return
    if os.environ.get("CI") and os.geteuid() == 0:
        pytest.fail(f"CI must be able to make namespaces, several hosts are not tested: {why}")
    pytest.skip(f"no pretend hosts: {why}")


@cache
def why_no_namespaces() -> str | None:
    """None: they can be made."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"install iproute2, util-linux and hostname: there is no {', '.join(missing)}"
    argv = ["unshare", *SUDO, "--mount", "--uts", "--net", "sh", "-c", _PROBE_SCRIPT]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"namespaces cannot be made: {done.stderr.strip()}"


def entering(pid: int, *spaces: str) -> list[str]:
    """What to put before a command, so that it runs in these namespaces of a process."""
    return ["nsenter", f"--target={pid}", *_ENTER, *(f"--{space}" for space in spaces)]


class Head:
    """The dispatcher's side: a network, a name and an /etc/hosts of its own, but the PIDs of the
    test. A process that does nothing holds them; it ends with whoever made it, however that ends.
    """

    def __init__(self, hosts_file: Path) -> None:
        hosts_file.write_text(f"127.0.0.1 localhost\n{HEAD_ADDRESS} {HEAD}\n")
        self.hosts_file = hosts_file
        space = ["unshare", *SUDO, "--mount", "--uts", "--net"]
        self._keeper = subprocess.Popen(
            [*space, "sh", "-c", _HEAD_SCRIPT, "head", str(hosts_file), _BRIDGED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"up\n", "the head of the lab did not come up"

    @property
    def enter(self) -> list[str]:
        return entering(self._keeper.pid, "mount", "uts", "net")

    def name(self, name: str, address: str) -> None:
        """In the /etc/hosts that all share."""
        with self.hosts_file.open("a") as file:
            file.write(f"{address} {name}\n")

    def ip(self, *lines: str) -> None:
        """Commands of ip(8), without the `ip`."""
        done = subprocess.run(
            [*self.enter, "ip", "-batch", "-"],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{lines}: {done.stderr}"

    def processes(self) -> list[int]:
        """Everybody in this network but the keeper; none when it is closed."""
        if self._keeper.poll() is not None:  # its pid may be another's, in the test's own network
            return []
        return [pid for pid in members("net", self._keeper.pid) if pid != self._keeper.pid]

    def close(self) -> None:
        wait_until(self._is_deserted, "nobody is left at the head of the lab")
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        self._keeper.wait()

    def _is_deserted(self) -> bool:
        """Kills whoever is still there; who is being started is seen the next time."""
        pids = self.processes()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids


def members(space: str, pid: int) -> list[int]:
    """The processes that share a namespace with this one, itself included."""
    shared = _space_of(pid, space)
    numbers = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [number for number in numbers if shared and _space_of(number, space) == shared]


def _space_of(pid: int, space: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/{space}")
    except OSError:  # gone, a zombie, or somebody else's
        return None


def kept_below(top: Path, *paths: Path) -> list[Path]:
    """Of these, the outermost that lie below a folder."""
    below = sorted({p.resolve() for p in paths if p.resolve().is_relative_to(top)})
    return [p for p in below if not any(p != q and p.is_relative_to(q) for q in below)]
