"""An authority, and ends that are gone after the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from smartsched.core.credentials import Credentials
from smartsched.edges.authority import Authority
from smartsched.edges.clock import SteadyClock
from smartsched.edges.waiter import Waiter
from tests.edges.engine import ends

pytest.importorskip("distributed", reason="needs smartsched[cluster]")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "authority")


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another user's."""
    return Authority(tmp_path_factory.mktemp("foreign") / "authority")


@pytest.fixture(scope="session")
def dispatchers(authority: Authority) -> Credentials:
    return authority.issue("dispatcher", "localhost")


@pytest.fixture(scope="session")
def agents(authority: Authority) -> Credentials:
    return authority.issue("agent", "gpu1")


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    waiter = Waiter(SteadyClock())
    yield waiter
    waiter.close()


@pytest.fixture
def start() -> Iterator[Callable[..., ends.End]]:
    """Starts an end as a process: `start("agent", credentials, {variables}, addresses=…)`."""
    with ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> ends.End:
            end = ends.start(*arguments, **options)
            stack.callback(end.end)
            return end

        yield start


@pytest.fixture
def dispatcher(start: Callable[..., ends.End], dispatchers: Credentials) -> ends.End:
    return start("dispatcher", dispatchers, silent_after_seconds=2.0)


@pytest.fixture
def agent_of(start: Callable[..., ends.End], agents: Credentials) -> Callable[..., ends.End]:
    """An agent of a dispatcher, gpu1 unless told otherwise."""

    def agent_of(dispatcher: ends.End, *more: dict[str, str], **rest: Any) -> ends.End:
        port = dispatcher.wait_for("Up")["port"]
        named = {"name": "gpu1", "silent_after_seconds": 2.0, **rest}
        return start("agent", agents, *more, addresses=[f"127.0.0.1:{port}"], **named)

    return agent_of


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The folder in which temporary files are made."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder
