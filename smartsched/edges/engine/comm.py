"""Our channels as a transport of Dask's, by the interface that Dask documents for those who bring
one (`distributed.comm`): addresses `smartsched://…`, no listening socket for an agent, msgpack and
never pickle, so that no message can run code.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]
from distributed.comm.core import Comm, CommClosedError, Connector, Listener
from distributed.comm.registry import Backend, backends

from smartsched.edges.engine.channel import Channel, LostError
from smartsched.edges.engine.door import Door, Entrance
from smartsched.edges.engine.greeting import Greeting
from smartsched.edges.engine.inside import note_addresses

SCHEME = "smartsched"
_PREFIX = f"{SCHEME}://"
HandleComm = Callable[[Comm], Awaitable[None]]


class ChannelComm(Comm):
    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        note_addresses(self, self.local_address, self.peer_address)

    @property
    def local_address(self) -> str:
        return _PREFIX + "here"

    @property
    def peer_address(self) -> str:
        return _PREFIX + self._channel.peer

    @property
    def same_host(self) -> bool:
        return True  # so nothing is compressed

    async def read(self, deserializers: object = None) -> Any:
        try:
            frame = await self._channel.read()
            return msgpack.unpackb(frame, use_list=False, strict_map_key=False)
        except LostError as error:
            raise CommClosedError(str(error)) from error
        except (ValueError, msgpack.UnpackException) as error:
            self._channel.abort("it sent what is no message")
            raise CommClosedError(str(error)) from error

    async def write(self, msg: Any, serializers: object = None, on_error: object = None) -> int:
        """A batch goes as many frames: together they could be too long for one."""
        written = 0
        try:
            for part in msg if isinstance(msg, list) else [msg]:
                frame: bytes = msgpack.packb(part)
                self._channel.write(frame)
                written += len(frame)
            await self._channel.drain()
        except LostError as error:
            raise CommClosedError(str(error)) from error
        return written

    async def close(self) -> None:
        await self._channel.close()

    def abort(self) -> None:
        self._channel.abort("closed here")

    def closed(self) -> bool:
        return self._channel.is_lost


class _DispatchersListener(Listener):
    def __init__(self, entrance: Entrance, handle_comm: HandleComm) -> None:
        self._entrance = entrance
        self._handle_comm = handle_comm
        self._door: Door | None = None

    async def start(self) -> None:
        self._door = Door(self._entrance, self._welcome)
        self._door.open()

    def stop(self) -> None:
        door, self._door = self._door, None
        if door is not None:
            door.close()

    @property
    def listen_address(self) -> str:
        return _PREFIX + "dispatcher"

    contact_address = listen_address

    async def _welcome(self, channel: Channel, greeting: Greeting) -> None:
        comm = ChannelComm(channel)
        try:
            await self.on_connection(comm)
            self._entrance.arrived(channel, greeting)
            await self._handle_comm(comm)
        except Exception as error:  # noqa: BLE001  # nobody else would close it
            channel.abort(f"it does not talk as Dask does: {error}")


class _NoListener(Listener):
    """An agent's: nobody can connect to it."""

    prefix = _PREFIX  # a worker logs it

    async def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    @property
    def listen_address(self) -> str:
        return _PREFIX + "agent"

    contact_address = listen_address


class _ReadyConnector(Connector):
    """Gives Dask the connection that we have made, once."""

    async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> Comm:
        ready: list[Channel] = arguments.get("ready", [])
        if not ready:
            # not an OSError: Dask would try again and again
            raise RuntimeError("Dask shall make no connections of its own")
        return ChannelComm(ready.pop())


class _OurBackend(Backend):
    def get_connector(self) -> Connector:
        return _ReadyConnector()

    def get_listener(
        self, loc: str, handle_comm: HandleComm, deserialize: bool, **arguments: Any
    ) -> Listener:
        entrance = arguments.get("entrance")
        return _NoListener() if entrance is None else _DispatchersListener(entrance, handle_comm)

    def get_address_host(self, loc: str) -> str:
        return loc

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        return loc, 0

    def resolve_address(self, loc: str) -> str:
        return loc

    def get_local_address_for(self, loc: str) -> str:
        return "here"


def register() -> None:
    backends.setdefault(SCHEME, _OurBackend())
