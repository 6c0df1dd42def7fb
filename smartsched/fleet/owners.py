"""Which host speaks for a GPU: one machine under two names would be used twice."""

from collections.abc import Callable

from smartsched.core.model import UNREAD, HostName, Snapshot
from smartsched.core.state import State
from smartsched.fleet.host import Host


class Owners:
    def __init__(self, state: State) -> None:
        """`state` is looked at, never changed."""
        self._state = state
        self._by_uuid: dict[str, HostName] = {}

    def other(
        self, host: Host, snapshot: Snapshot, is_here: Callable[[HostName], bool]
    ) -> HostName | None:
        """Who else speaks for GPUs of the host, or has runs on them and may come back. None: from
        now on it is this one."""
        given: dict[str, HostName] = {}
        if host.hello is None or not host.hello.pilot:  # what a batch system grants was taken back
            given = {gpu.uuid: gpu.host for gpu in self._state.holds}
        for gpu in snapshot.gpus:
            uuid = gpu.key.uuid
            if uuid.startswith(UNREAD) or uuid in snapshot.withheld:
                continue
            owner = given.get(uuid) or self._by_uuid.get(uuid, host.name)
            if owner != host.name and (uuid in given or is_here(owner)):
                return owner
            self._by_uuid[uuid] = host.name
        return None

    def forget(self, host: HostName) -> None:
        """It speaks for none any more."""
        self._by_uuid = {uuid: name for uuid, name in self._by_uuid.items() if name != host}
