"""Other people on pretend hosts, who come and go."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Self

from tests.stub_nvml import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.lab.host import Host


@dataclass
class Visit:
    """On a GPU of a host, in monotonic seconds; he may be gone earlier, with his host's power."""

    host: str
    uuid: str
    came: float
    left: float = inf


class HostIsOffError(RuntimeError):
    """Nobody can work on a host without power."""


@contextmanager
def stranger(host: Host, gpu: int, mem_bytes: int = 40 * GIB) -> Iterator[Visit]:
    """A process on that host holds so much of that GPU (its index) meanwhile."""
    with subprocess.Popen(
        [*host.enter, "sh", "-c", "echo $$; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        pid = process.stdout.readline()  # as the host calls it
        if not pid:
            raise HostIsOffError(host.name)
        visit = Visit(host.name, host.machine.gpu(gpu).uuid, time.monotonic())
        host.machine.add_stranger(gpu, mem_bytes, int(pid))
        try:
            yield visit
        finally:
            visit.left = time.monotonic()
            host.machine.remove_stranger(int(pid))
            # closing his stdin, at the end of this block, ends him


class Colleagues(threading.Thread):
    """Come to random GPUs of these hosts, one at a time, and leave after a while.

    with Colleagues(hosts, seed=7) as colleagues: ...; then look at `colleagues.visits`.
    """

    def __init__(self, hosts: Sequence[Host], seed: int, longest_seconds: float = 5.0) -> None:
        super().__init__()
        self.visits: list[Visit] = []
        self._hosts = hosts
        self._pick = random.Random(seed)
        self._longest_seconds = longest_seconds
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            host = self._pick.choice(self._hosts)
            gpu = self._pick.randrange(host.gpus)
            stay, away = self._pick.uniform(0.2, self._longest_seconds), self._pick.uniform(0, 0.3)
            try:
                with stranger(host, gpu) as visit:
                    self.visits.append(visit)
                    self._over.wait(stay)
            except HostIsOffError:
                pass
            self._over.wait(away)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
