"""Claims on GPUs of all hosts: each is made where the GPU is."""

from collections.abc import Collection, Sequence

from smartsched.core.actions import Claim, Release
from smartsched.core.model import ClaimAnswer, GpuKey, HostName, Timestamp
from smartsched.fleet.hosts import Hosts


class FleetClaims:
    """Claims, in the loop's sense."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def ask(self, gpus: Sequence[tuple[GpuKey, int]], now: Timestamp) -> None:
        """They are on one host. What is wanted there is asked for again when it comes back."""
        keys = tuple(gpu for gpu, _ in gpus)
        host = self._hosts.of(keys[0].host, now)
        host.wanted.update(gpus)
        if keys not in host.asks and host.here:
            host.asks.add(keys)
            self._hosts.send(host, Claim(tuple(gpus)))

    def release(self, gpus: Collection[GpuKey], now: Timestamp) -> None:
        by_host: dict[HostName, list[GpuKey]] = {}
        for gpu in gpus:
            by_host.setdefault(gpu.host, []).append(gpu)
        for name, keys in by_host.items():
            host = self._hosts.by_name.get(name)
            if host is None:
                continue  # gone for good, and all claims with it
            for key in keys:
                host.wanted.pop(key, None)
            host.asks = {ask for ask in host.asks if not set(keys) & set(ask)}
            self._hosts.send(host, Release(tuple(keys)))

    def take(self, now: Timestamp) -> Sequence[ClaimAnswer]:
        answers, self._hosts.answers = self._hosts.answers, []
        return answers

    def wake_at(self) -> Timestamp:
        return float("inf")  # the GPUs' source wakes for all of us
