"""How much each process of one GPU uses it, from what the driver credits to whom.

What the driver knows is little. Once to six times a second (nvidia-smi's manual) it notes how busy
the GPU is and *one* process that is active at that moment, to whom it credits all of it (NVIDIA's
open-gpu-kernel-modules, ctrl2080perf.h: NV2080_CTRL_PERF_GPUMON_ENGINE_UTIL_SAMPLE).
nvmlDeviceGetProcessUtilization tells of the processes with a credit since a given time and leaves
out the others (nvml.h); whether anything was noted at all does not show. Hence:

- A credit counts for 2 s: of a GPU that is read again at once there is nothing new to tell.
- To be left out means 0 only where something else proves it: the GPU itself did nothing; or the
  process was there for 30 s on end in which all that the GPU did was credited to others. Of two
  that take turns, one may go uncredited for a second; whoever goes uncredited in the 30 to 180
  notes of 30 s uses less than 10 to 2 % (3/n, with 95 % confidence).
- The work of MPS clients may be credited to their server: to be left out means nothing then.
- Otherwise it is not known. nvtop and nvitop say 0 there, also of processes at full load whose
  driver credits nobody (Syllo/nvtop#177; likewise Project-HAMi/HAMi#2015).
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

_COUNTS_SECONDS = 2.0
_PROOF_SECONDS = 30.0
_LATENESS_US = 1_000_000  # what was noted becomes known up to a second later


class Credit(NamedTuple):
    """What the driver says of a process: of all since it was last asked, where it is told so."""

    pid: int
    at_us: int  # when noted last, in microseconds since 1970
    percent: int


class _Known(NamedTuple):
    percent: int
    at: float


class ProcessUsage:
    """Of one GPU. Times are of any clock that runs evenly, but for those in microseconds, which
    are of the driver's: since 1970."""

    def __init__(self) -> None:
        self._newest_us = 0
        self._asked_us = 0
        self._known: dict[int, _Known] = {}
        self._unseen_since: dict[int, float] = {}
        self._explained_at = float("-inf")

    def ask_since(self, now_us: int) -> int:
        """From when on credits are to be asked for now.

        The newest seen, so that none counts twice, but no longer ago than the last question: the
        driver would average over all of a time in which there was nobody to ask for.
        """
        if now_us < self._asked_us:
            self._asked_us = self._newest_us = 0  # the clock was set back
        asked_us, self._asked_us = self._asked_us or now_us, now_us
        return max(self._newest_us, asked_us - _LATENESS_US)

    def learn(
        self,
        noted: Iterable[Credit],
        pids: Collection[int],
        *,
        since_us: int,
        busy: bool,
        now: float,
    ) -> None:
        """`pids`: those that the driver lists; `busy`: the GPU did something, or may have.

        Drivers also tell of pids that are not there and of times long ago, with numbers like
        37100 % (Syllo/nvtop#110).
        """
        self._forget_all_but(pids)
        for pid in pids:
            self._unseen_since.setdefault(pid, now)
        for credit in sorted(noted, key=lambda credit: credit.at_us):
            if credit.pid in pids and since_us < credit.at_us <= self._asked_us + _LATENESS_US:
                self._newest_us = max(self._newest_us, credit.at_us)
                self._known[credit.pid] = _Known(min(credit.percent, 100), now)
                self._unseen_since[credit.pid] = self._explained_at = now
        if busy and now - self._explained_at > _COUNTS_SECONDS:
            self._unseen_since = dict.fromkeys(pids, now)

    def percent(self, pid: int, *, busy: bool, hides: bool, now: float) -> int | None:
        """None: not known. `hides`: its work may be credited to somebody else."""
        known = self._known.get(pid)
        if known is not None and now - known.at <= _COUNTS_SECONDS:
            return known.percent
        unseen_seconds = now - self._unseen_since.get(pid, now)
        if not busy or (unseen_seconds >= _PROOF_SECONDS and not hides):
            return 0
        return None

    def _forget_all_but(self, pids: Collection[int]) -> None:
        self._known = {pid: known for pid, known in self._known.items() if pid in pids}
        self._unseen_since = {p: since for p, since in self._unseen_since.items() if p in pids}
