"""How the fleet's messages travel: as bytes over the engine's hub."""

from collections.abc import Callable

from msgspec.structs import replace

from smartsched.core import wire
from smartsched.core.messages import Came, Connection, Garbled, News, Orders, Said, Went
from smartsched.core.model import HostName, Timestamp
from smartsched.edges.clock import SteadyClock
from smartsched.edges.engine import hub as engine
from smartsched.edges.engine.channel import LARGEST_MESSAGE_BYTES
from smartsched.edges.engine.hub import Hub
from smartsched.errors import BadMessageError


class HubTransport:
    """A Transport whose messages are bytes."""

    def __init__(self, hub: Hub, clock: SteadyClock, warn: Callable[[str], None]) -> None:
        self._hub = hub
        self._clock = clock
        self._warn = warn

    def send(self, connection: Connection, orders: Orders) -> bool:
        message = wire.encode_orders(replace(orders, sent_at=self._clock.now()))
        if len(message) > LARGEST_MESSAGE_BYTES:
            return False
        self._hub.send(connection, message)
        return True

    def take(self, now: Timestamp) -> list[News]:
        return [said for news in self._hub.take() if (said := self._read(news)) is not None]

    def drop(self, connection: Connection, why: str, keep_out_seconds: float = 0.0) -> None:
        self._hub.drop(connection, why, keep_out_seconds)

    def wake_at(self) -> Timestamp:
        return float("inf")  # its descriptor wakes us

    def _read(self, news: engine.News) -> News | None:
        if isinstance(news, engine.Refused):
            self._warn(f"somebody at {news.peer} was not let in: {news.why}")
            return None
        host, connection = HostName(news.host), news.connection
        try:
            match news:
                case engine.Came(hello=hello):
                    return Came(host, wire.decode_hello(hello), connection)
                case engine.Said(message=message, at_monotonic=at):
                    report = wire.decode_report(message, host)
                    return Said(host, report, self._clock.at_monotonic(at), connection)
                case engine.Went(why=why):
                    return Went(host, why, connection)
        except BadMessageError as error:
            return Garbled(host, str(error), connection)
