"""Everything of Dask `distributed` that is used here and not documented by it. Checked in 2026.7.1
and 2026.8.0, where all of it is the same; look here first when a later version breaks.

Documented and used elsewhere: `SchedulerPlugin`, `Worker.log_event`, and the interface of those who
bring a transport of their own (`distributed.comm`: Backend, Listener, Connector, Comm).
"""

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from distributed import Scheduler, SchedulerPlugin, Security, Worker
from distributed.comm.core import Comm, CommClosedError

# The op under which a dispatcher's message travels to a `Worker`.
_OP = "smartsched"
_KEPT_BY_A_WORKER = {"heartbeat", "keep-alive"}  # it starts and stops these two by name
_NEVER_SECONDS = 3.6e9


def note_addresses(comm: Any, local: str, peer: str) -> None:
    """`distributed.comm.core.connect` reads these of every comm, by these names."""
    comm._local_addr, comm._peer_addr = local, peer


class Passport(Security):
    """`Server` and its pool ask this what to give our transport; Dask's own TLS is not used.

    `get_connection_args` and `get_listen_args` are not documented, nor what they are asked."""

    def __init__(self, connecting: dict[str, Any], listening: dict[str, Any]) -> None:
        super().__init__(require_encryption=True)  # type: ignore[no-untyped-call]
        self._connecting, self._listening = connecting, listening

    def get_connection_args(self, role: str) -> dict[str, Any]:
        return dict(self._connecting)

    def get_listen_args(self, role: str) -> dict[str, Any]:
        return dict(self._listening)


class OurScheduler(Scheduler):
    """Knows who is there and passes messages; plans nothing."""

    def __init__(self, passport: Passport, plugins: tuple[SchedulerPlugin, ...]) -> None:
        with _Scratch() as scratch:
            super().__init__(
                protocol="smartsched",
                security=passport,
                plugins=plugins,
                extensions={},
                dashboard=False,
                local_directory=scratch,
            )
            _leave(self)
        # What peers may ask for, by name: `Server.handlers`, and of those who have registered
        # `stream_handlers`. Everything else of Dask's, that which runs code included, is gone.
        self.handlers = {"register-worker": self.add_worker}
        self.stream_handlers = {
            "log-event": self.log_worker_event,
            "keep-alive": _nothing,
            "worker-status-change": _nothing,
        }
        # ticks, monitors, idle checks: half of an idle scheduler's cost
        self.periodic_callbacks.clear()

    def start_http_server(self, *arguments: Any, **named: Any) -> None:
        """Listens on a port of its own even without a dashboard."""

    def tell(self, address: str, message: bytes) -> None:
        """By `worker_send`, which also finds out about workers that are gone."""
        self.worker_send(address, {"op": _OP, "data": message})


class OurWorker(Worker):
    """Works on nothing; is there, and passes messages."""

    def __init__(
        self,
        passport: Passport,
        *,
        name: str,
        mark: str,
        hello: bytes,
        on_message: Callable[[bytes], None],
        patience_seconds: float,
    ) -> None:
        with _Scratch() as scratch:
            super().__init__(
                "smartsched://dispatcher",
                protocol="smartsched",
                security=passport,
                name=f"{name} {mark}",
                contact_address=f"smartsched://{mark}",
                startup_information={"hello": lambda _: hello},
                metrics={},
                extensions={},
                nthreads=1,
                memory_limit=0,
                executor="offload",
                death_timeout=patience_seconds,
                heartbeat_interval=_NEVER_SECONDS,
                local_directory=scratch,
            )
            _leave(self)
        # a pool of threads that is only shut down, and that in a thread of yet another pool
        self.executors.pop("actor").shutdown(wait=False)
        self.handlers = {}
        self.stream_handlers = {
            _OP: lambda data: on_message(data),
            "close": self.close,
            "remove-worker": _nothing,
        }
        for callback in self.periodic_callbacks.keys() - _KEPT_BY_A_WORKER:
            del self.periodic_callbacks[callback]

    def start_http_server(self, *arguments: Any, **named: Any) -> None:
        """As with the scheduler."""

    async def heartbeat(self) -> None:
        """Would need a second connection; the transport sees to who is alive."""

    async def handle_scheduler(self, comm: Comm) -> None:
        """As Dask's own, which ends the whole process when a close of the worker fails."""
        try:
            with suppress(CommClosedError):
                await self.handle_stream(comm)
        finally:
            await self.close(executor_wait=False, nanny=False)


class _Scratch(tempfile.TemporaryDirectory[str]):
    """Dask makes folders when a server is made: in memory, so that neither a full disk nor a slow
    one keeps an agent from coming back."""

    def __init__(self) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None  # noqa: S108  # a folder of its own there
        super().__init__(prefix="smartsched-", dir=memory, ignore_cleanup_errors=True)


def _leave(server: Scheduler | Worker) -> None:
    """The scratch folder: nothing of ours is in it, and it must not be where modules are found."""
    if server.local_directory in sys.path:
        sys.path.remove(server.local_directory)
    if server._workdir is not None:
        server._workdir.release()  # type: ignore[no-untyped-call]
        server._workdir = None


def _nothing(**arguments: Any) -> None:
    pass
