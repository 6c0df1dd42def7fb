"""Both ends of the engine as processes of their own, which tests may stop, kill and look into.

A process tells what it has heard as JSON, a line each, and does what it reads, a line each:
`["send", HOST, TEXT]`, `["drop", HOST]`, `["close"]`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from msgspec.structs import asdict

from smartsched.core.credentials import Credentials
from smartsched.edges.clock import SteadyClock
from smartsched.edges.waiter import Waiter
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
RUN = "20300101-000000-aaaa"


@dataclass
class End:
    """The parent's view of such a process."""

    process: subprocess.Popen[str]
    heard: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def tell(self, *words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def kinds(self) -> list[str]:
        return [news["kind"] for news in self.heard]

    def wait_for(self, kind: str, times: int = 1, timeout: float = 60.0) -> dict[str, Any]:
        wait_until(
            lambda: self.kinds().count(kind) >= times,
            f"it has heard {kind}",
            lambda: f"{self.heard}",
            timeout,
        )
        return [news for news in self.heard if news["kind"] == kind][times - 1]

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._listener.join(10.0)
        assert not self._listener.is_alive(), "something else has its output, and lives"
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def listening(self) -> list[Any]:
        connections = [c for c in psutil.net_connections("all") if c.pid == self.process.pid]
        return [c for c in connections if c.status == psutil.CONN_LISTEN or c.type == 2]

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard.append(json.loads(line))  # others look at it meanwhile


def start(
    role: str,
    credentials: Credentials,
    variables: dict[str, str] | None = None,
    *,
    where: Sequence[str] = (),
    python: str = sys.executable,
    **options: Any,
) -> End:
    """`where`: what is put before the command. `options`: of the Hub or the Link."""
    process = subprocess.Popen(
        [*where, python, "-m", "tests.edges.engine.ends"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
    )
    end = End(process)
    settings = {"role": role, "credentials": asdict(credentials), "options": options}
    assert process.stdin is not None
    process.stdin.write(json.dumps(settings) + "\n")
    process.stdin.flush()
    return end


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    waiter = Waiter(clock := SteadyClock())
    credentials = Credentials(**settings["credentials"])
    options = settings["options"]
    end: Any
    if settings["role"] == "dispatcher":
        from smartsched.edges.engine.hub import Hub

        end = Hub(waiter, credentials, **{"run_id": RUN, "listen": "127.0.0.1", **options})
        say("Up", {"port": end.port})
    else:
        from smartsched.edges.engine.link import Link

        options["hello"] = options.get("hello", "hello").encode()
        end = Link(waiter, credentials, **{"run_id": RUN, **options})
    words: list[list[str]] = []
    connections: dict[str, str] = {}  # the last of each host
    begun = bytearray()

    def read() -> None:
        begun.extend(os.read(0, 1 << 20))
        *lines, rest = begun.split(b"\n")
        begun[:] = rest
        words.extend(map(json.loads, lines))

    waiter.watch(0, read)
    while True:
        waiter.wait(clock.now() + 60)
        for news in end.take():
            facts = {
                name: value.decode() if isinstance(value, bytes) else value
                for name, value in asdict(news).items()
            }
            say(type(news).__name__, facts)
            if type(news).__name__ == "Came":
                connections[news.host] = news.connection
        while words:
            match words.pop(0):
                case ["send", host, text]:
                    end.send(*([connections[host]] if host else []), text.encode())
                case ["drop", host]:
                    end.drop(connections[host])
                case ["close"]:
                    end.close()
                    return
                case _:  # "leave": without a goodbye
                    return


def say(kind: str, facts: dict[str, Any]) -> None:
    print(json.dumps({"kind": kind, **facts}), flush=True)


if __name__ == "__main__":
    main()
