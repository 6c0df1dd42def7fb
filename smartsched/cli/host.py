"""Which host this is, and whose processes can be seen from here."""

import os

from smartsched.core.model import HostName


def this_place() -> str:
    """Where processes of ours can be seen: the machine, its boot, the PID namespace. What is not
    known is left empty."""
    machine, boot = _text("/etc/machine-id"), _text("/proc/sys/kernel/random/boot_id")
    return f"{machine}/{boot}/{_pid_namespace()}"


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def this_host() -> HostName:
    return HostName(os.uname().nodename)
