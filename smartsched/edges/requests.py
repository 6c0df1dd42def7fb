"""What the user asks for by signals: the first Ctrl-C or a hangup drains, more than that stops."""

import signal

from smartsched.core.events import DrainRequested, StopRequested
from smartsched.core.model import Timestamp
from smartsched.ports import FdWatcher


class SignalRequests:
    """Where the surroundings ignore a signal (nohup does with SIGHUP), it stays ignored."""

    def __init__(self, fds: FdWatcher) -> None:
        self._caught: list[str] = []
        self._interrupts = 0
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                name = signum.name
                fds.on_signal(signum, lambda name=name: self._caught.append(name))  # type: ignore[misc]

    def take(self, now: Timestamp) -> list[DrainRequested | StopRequested]:
        caught, self._caught = self._caught, []
        return [self._request(name, now) for name in caught]

    def _request(self, name: str, now: Timestamp) -> DrainRequested | StopRequested:
        if name == "SIGINT":
            self._interrupts += 1
        if name == "SIGTERM" or self._interrupts > 1:
            return StopRequested(now, name)
        return DrainRequested(now, name)
