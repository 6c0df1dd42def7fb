"""Says where commands run on hosts that lack the folder where they should: that is to be no
surprise. A Part of the Recruiters that recruits nobody."""

from collections.abc import Callable

from smartsched.core import words
from smartsched.core.model import HostAway, HostName, Timestamp
from smartsched.fleet.hosts import Hosts


class StandIns:
    def __init__(self, directory: str, warn: Callable[[str], None]) -> None:
        """`directory`: where they should."""
        self._directory = directory
        self._warn = warn
        self._hosts: Hosts | None = None
        self._told: set[HostName] = set()

    def serve(self, hosts: Hosts) -> None:
        """Before anything else."""
        self._hosts = hosts

    def take(self, now: Timestamp) -> list[HostAway]:
        return []

    def came(self, host: HostName, now: Timestamp) -> None:
        assert self._hosts is not None
        hello = self._hosts.by_name[host].hello
        there = None if hello is None else hello.more.get("directory")
        if there and there != self._directory and host not in self._told:
            self._told.add(host)
            where = words.printable(str(there))
            self._warn(f"{host}: there is no {self._directory}; commands run in {where} there")

    def went(self, host: HostName, now: Timestamp, *, again_in_seconds: float) -> None: ...
    def wake_at(self) -> Timestamp:
        return float("inf")
