"""The GPUs of all hosts, as one source."""

from collections.abc import Sequence

from smartsched.core.messages import Look
from smartsched.core.model import GpuKey, GpuUuid, HostName, Observation, Timestamp
from smartsched.fleet.hosts import Hosts


class FleetGpus:
    """A GpuSource."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def take(self, now: Timestamp) -> Sequence[Observation]:
        self._hosts.pump(now)
        self._hosts.announce()
        self._hosts.tell_unwanted()
        taken, self._hosts.observations = self._hosts.observations, []
        return taken

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        """What is asked for already, and answered by something late enough, is not asked again."""
        due: dict[HostName, list[GpuUuid]] = {}
        for gpu, after in gpus:
            host = self._hosts.of(gpu.host, now)
            if host.here and host.looks.get(gpu, float("-inf")) < after:
                host.looks[gpu] = now
                due.setdefault(host.name, []).append(gpu.uuid)
        for name, uuids in due.items():
            self._hosts.send(self._hosts.by_name[name], Look(tuple(uuids)))

    def wake_at(self) -> Timestamp:
        return self._hosts.wake_at()
