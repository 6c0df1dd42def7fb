"""What 50 agents cost their dispatcher, with real processes: `python -m tests.benchmarks.cluster`.

Each agent reports 4 KB a second, and each report is answered with 200 bytes. Prints the processor
time of the dispatcher's process, its memory above what it has without them, how long a message
takes from `send` to the agent's loop, how soon a killed agent is known, and an agent's memory; and
with one whole agent, how long it takes from an order to what the job does first.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from msgspec.structs import asdict

from smartsched.core.credentials import Credentials
from smartsched.edges.clock import SteadyClock
from smartsched.edges.waiter import Waiter
from tests.benchmarks.order import order_to_start

if TYPE_CHECKING:
    from smartsched.edges.engine.hub import Hub

REPORT, ANSWER = b"r" * 4096, b"a" * 200
PING, PING_EVERY_SECONDS = b"ping ", 0.1
MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--processes", type=int, default=5, help="in which the agents live")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--jobs", type=int, default=100, help="that are ordered to start")
    parser.add_argument("--json", action="store_true", help="for a history of results")
    parser.add_argument("--be-agents", metavar="SETTINGS", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.be_agents:
        be_agents(**json.loads(args.be_agents), **json.load(sys.stdin))
        return
    results = {
        **measure(args.agents, args.processes, args.seconds),
        **order_to_start(args.jobs),
    }
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:<58}{value:10.2f}")


def measure(agents: int, processes: int, seconds: float) -> dict[str, float]:
    waiter = Waiter(clock := SteadyClock())
    before_mib = rss_mib()
    with tempfile.TemporaryDirectory() as folder:
        from smartsched.edges.authority import Authority

        authority = Authority(Path(folder) / "authority")
        ours, theirs = authority.issue("dispatcher", "localhost"), authority.issue("agent", "a")
    from smartsched.edges.engine.hub import Came, Hub, Said, Went

    hub = Hub(waiter, ours, listen="127.0.0.1", run_id="bench")
    alone_mib = rss_mib()
    crowd = [
        start_agents(hub.port, theirs, range(first, agents, processes))
        for first in range(processes)
    ]
    here: dict[str, str] = {}
    latencies: list[float] = []
    reports = 0

    def turn(until: float) -> None:
        nonlocal reports
        waiter.wait(until)
        for news in hub.take():
            match news:
                case Came(host, connection):
                    here[host] = connection
                case Went(host, why=why):
                    raise SystemExit(f"{host} went: {why}")
                case Said(message=message) if message.startswith(PING):
                    latencies.append(float(message.removeprefix(PING)))
                case Said(connection=connection):
                    reports += 1
                    hub.send(connection, ANSWER)
                case _:
                    pass

    while len(here) < agents:
        turn(clock.now() + 1)
    settled_at = clock.now() + 3
    while clock.now() < settled_at:
        turn(settled_at)
    reports, began, used = 0, time.monotonic(), cpu_seconds()
    next_ping = 0
    hosts = sorted(here)
    ends_at = clock.now() + seconds
    while clock.now() < ends_at:
        turn(ends_at - seconds + next_ping * PING_EVERY_SECONDS)
        if clock.now() >= ends_at - seconds + next_ping * PING_EVERY_SECONDS:
            hub.send(here[hosts[next_ping % agents]], PING + repr(time.monotonic()).encode())
            next_ping += 1
    took, used = time.monotonic() - began, cpu_seconds() - used
    with_agents_mib = rss_mib()
    agent_mib, agents_cpu = theirs_of(crowd)
    known_after = seconds_until_known(hub, waiter, clock, crowd[0])
    for process in crowd:
        process.kill()
        process.wait()
    hub.close()
    return {
        f"{agents} agents: reports/s": reports / took,
        "  the dispatcher's share of a core, %": 100 * used / took,
        "  its memory above that without the engine, MiB": with_agents_mib - before_mib,
        "    of which by Dask with nobody there, MiB": alone_mib - before_mib,
        "  send to the agent's loop, fastest tenth, ms": 1000
        * sorted(latencies)[len(latencies) // 10],
        "  send to the agent's loop, median ms": 1000 * statistics.median(latencies),
        "  send to the agent's loop, 95 %, ms": 1000 * sorted(latencies)[-len(latencies) // 20],
        "  a killed agent is known after, ms": 1000 * known_after,
        f"  an agents' process of {len(range(0, agents, processes))}: memory, MiB": agent_mib,
        "  all the agents' processes' share of a core, %": 100 * agents_cpu,
    }


def start_agents(port: int, credentials: Credentials, names: range) -> subprocess.Popen[bytes]:
    settings = {"port": port, "names": [f"host{name}" for name in names]}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.cluster", "--be-agents", json.dumps(settings)],
        stdin=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"credentials": asdict(credentials)}).encode())
    process.stdin.close()
    return process


def be_agents(port: int, names: list[str], credentials: dict[str, str]) -> None:
    from smartsched.edges.engine.link import Link, Message

    waiter = Waiter(clock := SteadyClock())
    links = [
        Link(
            waiter,
            Credentials(**credentials),
            addresses=[f"127.0.0.1:{port}"],
            name=name,
            run_id="bench",
            hello=b"hello",
        )
        for name in names
    ]
    next_reports = [clock.now() + number / len(links) for number in range(len(links))]
    while True:
        waiter.wait(min(next_reports))
        now = time.monotonic()
        for link in links:
            for news in link.take():
                if isinstance(news, Message) and news.message.startswith(PING):
                    sent = float(news.message.removeprefix(PING))
                    link.send(PING + repr(now - sent).encode())
        for number, link in enumerate(links):
            if clock.now() >= next_reports[number]:
                next_reports[number] += 1
                link.send(REPORT)


def seconds_until_known(
    hub: "Hub", waiter: Waiter, clock: SteadyClock, process: subprocess.Popen[bytes]
) -> float:
    from smartsched.edges.engine.hub import Went

    process.kill()
    began = time.monotonic()
    while not any(isinstance(news, Went) for news in hub.take()):
        waiter.wait(clock.now() + 1)
    return time.monotonic() - began


def theirs_of(crowd: list[subprocess.Popen[bytes]]) -> tuple[float, float]:
    processes = [psutil.Process(process.pid) for process in crowd]
    now = time.time()
    share = sum(sum(p.cpu_times()[:2]) / (now - p.create_time()) for p in processes)
    return processes[0].memory_info().rss / MIB, share


def rss_mib() -> float:
    return psutil.Process().memory_info().rss / MIB


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    main()
