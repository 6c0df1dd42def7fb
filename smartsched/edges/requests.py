"""What the user asks for by signals: the first Ctrl-C or a hangup drains, more than that stops."""

import signal

from smartsched.core.events import DrainRequested, StopRequested
from smartsched.core.model import Timestamp
from smartsched.ports import FdWatcher

_DRAINING = (signal.SIGINT, signal.SIGHUP)
_STOPPING = (signal.SIGTERM, signal.SIGQUIT)


class SignalRequests:
    """Where the surroundings ignore a signal (nohup does with SIGHUP), it stays ignored."""

    def __init__(self, fds: FdWatcher, *, single: bool) -> None:
        """`single`: there is one command only, and a Ctrl-C can but mean that."""
        self._caught: list[signal.Signals] = []
        self._drained = single
        for signum in (*_DRAINING, *_STOPPING):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                fds.on_signal(signum, lambda signum=signum: self._caught.append(signum))  # type: ignore[misc]

    def take(self, now: Timestamp) -> list[DrainRequested | StopRequested]:
        caught, self._caught = self._caught, []
        return [self._request(signum, now) for signum in caught]

    def _request(self, signum: signal.Signals, now: Timestamp) -> DrainRequested | StopRequested:
        # A closed terminal may say so more than once; only a person insists.
        insists = signum is signal.SIGINT and self._drained
        self._drained = True
        if insists or signum in _STOPPING:
            return StopRequested(now, signum.name)
        return DrainRequested(now, signum.name)
