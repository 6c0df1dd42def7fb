"""Who is kept out, and what is never opened, run or written: real sockets, real certificates."""

import json
import os
import pickle
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import psutil
import pytest

from smartsched.core.credentials import Credentials
from smartsched.edges.authority import Authority
from smartsched.edges.engine.tls import agents_context, dispatchers_context
from tests.edges.engine.ends import ROOT, RUN, End
from tests.waiting import wait_until

FLOOD = 1500


@pytest.fixture
def port(dispatcher: End) -> int:
    found: int = dispatcher.wait_for("Up")["port"]
    return found


def is_closed(connection: socket.socket) -> bool:
    """Once what has come before was read."""
    connection.settimeout(20)
    try:
        while connection.recv(4096):
            pass
    except (ConnectionError, ssl.SSLError):
        return True
    return True


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def greeting(**facts: object) -> bytes:
    usual = {
        "smartsched-engine": 1,
        "run_id": RUN,
        "name": "gpu9",
        "begun_at_ns": 1,
        "mark": "m",
        "patience_seconds": 10,
    }
    return frame(json.dumps({**usual, **facts}).encode())


def connected(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port)))


# --- who comes in


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, greeting()])
def test_plain_tcp_is_refused(dispatcher: End, port: int, words: bytes):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(words)

        assert is_closed(connection)
    assert dispatcher.wait_for("Refused")["why"] == "it did not begin with TLS"


def test_dasks_own_tcp_is_refused(dispatcher: End, port: int):
    """Its client would send pickles."""
    script = (
        "import asyncio, distributed, sys\n"
        f"asyncio.run(distributed.core.connect('tcp://127.0.0.1:{port}', timeout=3))\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode != 0
    assert "CommClosedError" in done.stderr or "Timed out" in done.stderr
    assert "Came" not in dispatcher.kinds()


def test_tls_without_a_certificate_is_refused(dispatcher: End, port: int):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    with connected(port, context) as connection:
        assert is_closed(connection)

    assert "no certificate of this user's" in dispatcher.wait_for("Refused")["why"]


def test_a_certificate_of_another_users_authority_is_refused(
    dispatcher: End, port: int, foreign: Authority, agents: Credentials
):
    theirs = foreign.issue("agent", "gpu1")
    context = agents_context(
        Credentials(agents.authority_pem, theirs.certificate_pem, theirs.key_pem)
    )

    with connected(port, context) as connection:
        assert is_closed(connection)

    assert "no certificate of this user's" in dispatcher.wait_for("Refused")["why"]


def test_a_dispatchers_certificate_is_not_an_agents(
    dispatcher: End, port: int, dispatchers: Credentials
):
    with connected(port, agents_context(dispatchers)) as connection:
        assert is_closed(connection)

    assert "no certificate of this user's" in dispatcher.wait_for("Refused")["why"]


def test_an_agent_of_another_run_is_refused_and_told_so(
    dispatcher: End, agent_of: Callable[..., End]
):
    agent = agent_of(dispatcher, run_id="20300101-000000-bbbb")

    assert "of another run" in agent.wait_for("NotReached")["why"]
    assert "of another run" in dispatcher.wait_for("Refused")["why"]
    assert "Came" not in dispatcher.kinds()


def test_an_agent_leaves_a_dispatcher_of_another_run(
    start: Callable[..., End], dispatchers: Credentials, agent_of: Callable[..., End]
):
    """Whatever that one thinks of it."""
    port_of_old_run = start("dispatcher", dispatchers, run_id="20300101-000000-bbbb")
    agent = agent_of(port_of_old_run)

    refused = agent.wait_for("NotReached")

    assert refused["why"] == ("the dispatcher there is of another run, 20300101-000000-bbbb")


@pytest.mark.parametrize("whose", ["another user's dispatcher", "an agent of one's own"])
def test_an_agent_leaves_a_dispatcher_that_is_none(
    whose: str, agents: Credentials, foreign: Authority, start: Callable[..., End]
):
    shown = foreign.issue("dispatcher", "localhost")
    if whose == "an agent of one's own":
        shown = agents
    context = dispatchers_context(shown)
    context.verify_mode = ssl.CERT_NONE
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        agent = start("agent", agents, addresses=[f"127.0.0.1:{port}"], name="gpu1")
        connection, _ = server.accept()

        with pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True).recv(1)

        assert "no dispatcher of this user's" in agent.wait_for("NotReached")["why"]
        assert "Connected" not in agent.kinds()


@pytest.mark.parametrize(
    "words",
    [
        b"",
        frame(b"no json"),
        frame(b"[1, 2]"),
        frame(b'{"smartsched-engine": 2}'),
        greeting(begun_at_ns="soon"),
        greeting(patience_seconds=0),
        greeting(patience_seconds=float("nan")),
        struct.pack(">I", 100_000) + b"x" * 5000,
    ],
)
def test_who_does_not_greet_is_refused(
    dispatcher: End, port: int, agents: Credentials, words: bytes
):
    with connected(port, agents_context(agents)) as connection:
        connection.sendall(words)

        assert is_closed(connection)
    assert dispatcher.wait_for("Refused")["why"]


# --- what nobody can make it do


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_not_even_an_agent_can_run_code_by_a_message(
    dispatcher: End, port: int, agents: Credentials, tmp_path: Path, agent_of: Callable[..., End]
):
    """Where Dask itself would unpickle what a message brings."""
    bomb = pickle.dumps(Bomb(tmp_path / "bombed"))
    header = msgpack.packb({"num-sub-frames": 0, "pickled-obj": bomb})
    messages = [
        msgpack.packb({"op": "run_function", "function": bomb, "args": (), "kwargs": {}}),
        msgpack.packb({"op": "register_scheduler_plugin", "plugin": bomb, "name": "x"}),
        msgpack.packb({"op": "register-worker", "address": {"__Pickled__": 1}, "h": header}),
        msgpack.packb({"__Pickled__": 1}),
        bomb,
        b"\xc1",
    ]
    for message in messages:
        with connected(port, agents_context(agents)) as connection:
            connection.sendall(greeting())
            hands = msgpack.packb({"compression": None, "python": [3, 11], "pickle-protocol": 4})
            connection.sendall(frame(hands) + frame(message))
            wait_until(lambda c=connection: c.recv(4096))  # type: ignore[misc]
            connection.sendall(b"")

    agent = agent_of(dispatcher)
    agent.wait_for("Connected")
    assert not (tmp_path / "bombed").exists()
    assert dispatcher.process.poll() is None


def test_an_agent_listens_nowhere_and_a_dispatcher_once(
    dispatcher: End, agent_of: Callable[..., End], port: int
):
    agent = agent_of(dispatcher)
    agent.wait_for("Connected")
    dispatcher.wait_for("Came")

    assert agent.listening() == []
    assert [found.laddr.port for found in dispatcher.listening()] == [port]


def test_the_users_own_settings_of_dask_change_nothing(
    start: Callable[..., End], dispatchers: Credentials, agents: Credentials, tmp_path: Path
):
    folder = tmp_path / "home" / ".config" / "dask"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_text("a: [b\n")
    other = tmp_path / "other"
    other.mkdir()
    evil = {
        "temporary-directory": str(tmp_path / "here"),
        "distributed": {
            "scheduler": {"http": {"routes": ["distributed.http.health"]}, "preload": ["evil"]},
            "worker": {"http": {"routes": ["distributed.http.health"]}, "preload": ["evil"]},
            "comm": {"require-encryption": False, "default-scheme": "tcp"},
            "logging": {"distributed": "debug"},
        },
    }
    (other / "evil.yaml").write_text(json.dumps(evil))
    variables = {
        "DASK_CONFIG": str(other),
        "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": "['evil']",
        "DASK_DISTRIBUTED__ADMIN__EVENT_LOOP": "uvloop",
        "DASK_LOGGING__DISTRIBUTED": "debug",
        "HOME": str(tmp_path / "home"),
    }

    dispatcher = start("dispatcher", dispatchers, variables)
    port = dispatcher.wait_for("Up")["port"]
    agent = start("agent", agents, variables, addresses=[f"127.0.0.1:{port}"], name="gpu1")

    agent.wait_for("Connected")
    assert [found.laddr.port for found in dispatcher.listening()] == [port]
    assert agent.listening() == []


def test_nothing_is_written_and_no_signal_is_touched(tmp_path: Path, scratch: Path):
    """Neither on the terminal nor in the folder, and the environment is as it was."""
    script = """
import os, signal, sys
from pathlib import Path
from typing import Any
handlers = [signal.getsignal(n) for n in signal.valid_signals() if n not in (9, 19)]
variables = dict(os.environ)
from smartsched.edges.authority import Authority
from smartsched.edges.clock import SteadyClock
from smartsched.edges.engine.hub import Came, Hub
from smartsched.edges.engine.link import Link
from smartsched.edges.waiter import Waiter
waiter, clock = Waiter(SteadyClock()), SteadyClock()
authority = Authority(Path(sys.argv[1]))
hub = Hub(waiter, authority.issue("dispatcher", "x"), run_id="r")
link = Link(waiter, authority.issue("agent", "x"), addresses=[f"localhost:{hub.port}"],
            name="a", run_id="r", hello=b"")
path = list(sys.path)
while not any(isinstance(news, Came) for news in hub.take()):
    waiter.wait(clock.now() + 1)
hub.drop("a")
link.close(); hub.close(); waiter.close()
assert handlers == [signal.getsignal(n) for n in signal.valid_signals() if n not in (9, 19)]
assert variables == dict(os.environ)
assert path == sys.path and not any("dask" in folder for folder in path), sys.path
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "authority")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir() == []
    assert list(scratch.iterdir()) == []


# --- a flood


@pytest.fixture
def may_open_many() -> Iterator[None]:
    """Descriptors, for the test's own part."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FLOOD + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("words", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["idle", "half TLS"])
def test_a_flood_of_connections_disturbs_nobody(
    dispatcher: End, port: int, agent_of: Callable[..., End], words: bytes, may_open_many: None
):
    agent = agent_of(dispatcher)
    agent.wait_for("Connected")
    process = psutil.Process(dispatcher.process.pid)
    before_bytes = process.memory_info().rss
    flood = []
    for _ in range(FLOOD):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", port))
        flood.append(connection)
    for connection in flood:
        try:
            connection.send(words)
        except OSError:
            continue

    slowest = 0.0
    for number in range(1, 21):
        began = time.monotonic()
        agent.tell("send", "", "still here?")
        dispatcher.wait_for("Said", number)
        dispatcher.tell("send", "gpu1", "yes")
        agent.wait_for("Message", number)
        slowest = max(slowest, time.monotonic() - began)
        assert process.num_fds() < 400

    assert slowest < 5.0
    assert process.memory_info().rss - before_bytes < 50 << 20
    newcomer = agent_of(dispatcher, name="gpu2")
    newcomer.wait_for("Connected", timeout=30)
    for connection in flood:
        connection.close()
    assert "Went" not in dispatcher.kinds()
    wait_until(lambda: process.num_fds() < 60, "the flood is over", timeout=30)


def test_who_shows_nothing_is_sent_away_after_some_seconds(dispatcher: End, port: int):
    began = time.monotonic()

    with socket.create_connection(("127.0.0.1", port)) as connection:
        assert is_closed(connection)

    assert 2.0 < time.monotonic() - began < 15.0
    assert dispatcher.wait_for("Refused")["why"] == "it did not show in time who it is"


def test_a_key_is_in_no_text(agents: Credentials):
    assert "PRIVATE" not in repr(agents)
    assert "PRIVATE" not in str({"credentials": agents})


def test_signals_stay_with_the_main_thread(dispatcher: End, agent_of: Callable[..., End]):
    """Which alone may be woken by them."""
    agent = agent_of(dispatcher)
    agent.wait_for("Connected")
    for end in (dispatcher, agent):
        for task in Path(f"/proc/{end.process.pid}/task").iterdir():
            status = (task / "status").read_text()
            blocked = int(status.split("SigBlk:")[1].split()[0], 16)
            is_main = task.name == str(end.process.pid)
            assert bool(blocked >> (signal.SIGTERM - 1) & 1) != is_main
