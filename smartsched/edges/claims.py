"""Claims GPUs among all the dispatchers of a box: asks, waits its turn, and says what came of it.

What is claimed stands in files, which may be read or written only under a lock that all share, and
that anybody may hold for ever: then every GPU counts as taken. Nothing here sleeps or knows a file;
whoever asks is told when to come back.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from typing import NamedTuple, Protocol

from smartsched.core.model import (
    Claimed,
    ClaimGranted,
    ClaimRefused,
    GpuKey,
    GpuUuid,
    Timestamp,
)
from smartsched.errors import StateError

LOCK_PATIENCE_SECONDS = 2.0
# The honest hold the lock for about a millisecond, of which nobody wants to hear.
TELL_AFTER_SECONDS = 0.25
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.02, 0.1
# When nobody waits for an answer: claims that we gave up, or that somebody removed.
_IDLE_RETRY_SECONDS = 1.0
_LOOK_EVERY_SECONDS = 1.0


class Share(NamedTuple):
    """What is ours of a GPU."""

    memory_bytes: int  # reserved there; 0: not known, or the whole card
    since: Timestamp


class Files(Protocol):
    """Where all dispatchers of the box write down what they claim."""

    @property
    def folder(self) -> object: ...
    def lock(self) -> bool:
        """Whether we have it now; False: somebody else has. Raises StateError if nobody can."""
        ...

    def unlock(self) -> None: ...
    def others(self) -> Mapping[str, object]:
        """Under the lock: by UUID, what others have claimed. To find out who (its `str`) may take
        its time. Raises StateError if it cannot be said."""
        ...

    def write(self, shares: Mapping[GpuKey, Share]) -> None:
        """Under the lock: say what is ours. Raises StateError, and says what it said before."""
        ...

    def is_listed(self) -> bool:
        """Whether others can still read what we wrote."""
        ...

    def complaints(self) -> Sequence[str]:
        """News of files that are not as they should be, one line each."""
        ...

    def close(self) -> None: ...


class FolderClaims:
    """Claims that others see and respect. It raises nothing."""

    def __init__(self, files: Files, warn: Callable[[str], None]) -> None:
        """`warn` is told what a user should know, one line at a time."""
        self._files = files
        self._warn = warn
        self._held: dict[GpuKey, Share] = {}
        self._asks: dict[tuple[GpuKey, ...], _Ask] = {}
        self._answers: list[ClaimGranted | ClaimRefused] = []
        self._is_stale = False  # whether others read something else than what we hold
        self._retry_at = self._look_at = -inf
        self._retry_after_seconds = FIRST_RETRY_SECONDS
        self._has_told = False  # that we wait, since we could last do something

    def ask(self, gpus: Sequence[tuple[GpuKey, int]], now: Timestamp) -> None:
        """Claim all of these (a GPU and the bytes reserved there), or none; `take` says what came
        of it. What is ours already is granted. Asking again before that changes nothing."""
        keys = tuple(gpu for gpu, _ in gpus)
        if keys in self._asks or any(answer.gpus == keys for answer in self._answers):
            return
        self._asks[keys] = _Ask(dict(gpus), now)
        self._settle(now)

    def release(self, gpus: Collection[GpuKey], now: Timestamp) -> None:
        """What was asked for together with one of these, and not answered yet, is withdrawn."""
        gone = set(gpus)
        self._asks = {keys: ask for keys, ask in self._asks.items() if gone.isdisjoint(keys)}
        self._answers = [answer for answer in self._answers if gone.isdisjoint(answer.gpus)]
        if not gone.isdisjoint(self._held):
            self._held = {gpu: share for gpu, share in self._held.items() if gpu not in gone}
            self._is_stale = True
            self._settle(now)

    def take(self, now: Timestamp) -> Sequence[ClaimGranted | ClaimRefused]:
        """The answers since the last call."""
        if self._held and now >= self._look_at:
            # When a user's last login ends, logind removes what is his in /dev/shm (RemoveIPC).
            self._look_at = now + _LOOK_EVERY_SECONDS
            self._is_stale = self._is_stale or not self._files.is_listed()
        if self._is_pending() and now >= self._due_at():
            self._settle(now)
        answers, self._answers = self._answers, []
        return answers

    def wake_at(self) -> Timestamp:
        if self._answers:
            return self._answers[0].at
        return self._due_at() if self._is_pending() else inf

    def close(self) -> None:
        """Give up all claims, for good."""
        self._held, self._asks, self._answers, self._is_stale = {}, {}, [], False
        self._files.close()

    def _is_pending(self) -> bool:
        return bool(self._asks) or self._is_stale

    def _due_at(self) -> Timestamp:
        limits = [ask.since + LOCK_PATIENCE_SECONDS for ask in self._asks.values()]
        return min([self._retry_at, *limits])

    def _settle(self, now: Timestamp) -> None:
        try:
            if not self._files.lock():
                self._locked_out(now)
                return
            try:
                against, taken = self._claim(now)
            finally:
                self._files.unlock()
        except StateError as error:
            self._refuse(list(self._asks), str(error), now)
            self._retry_at = now + _IDLE_RETRY_SECONDS
            return
        # Not under the lock: names are looked up, and a terminal may be slow.
        for keys, obstacles in against.items():
            why = tuple((gpu, str(claimant)) for gpu, claimant in obstacles)
            others = _on_the_host_of(keys, taken)
            self._answers.append(
                ClaimRefused(now, keys, why, others) if why else ClaimGranted(now, keys, others)
            )
        self._asks, self._is_stale = {}, False
        self._retry_at, self._retry_after_seconds = -inf, FIRST_RETRY_SECONDS
        self._has_told = False
        for complaint in self._files.complaints():
            self._warn(complaint)

    def _claim(
        self, now: Timestamp
    ) -> tuple[dict[tuple[GpuKey, ...], list[tuple[GpuKey, object]]], Mapping[str, object]]:
        """What speaks against each ask, and all that others have claimed; the asks against which
        nothing speaks are claimed."""
        taken = self._files.others() if self._asks else {}
        held = dict(self._held)
        against = {}
        for keys, ask in self._asks.items():
            obstacles = [
                (gpu, taken[gpu.uuid]) for gpu in keys if gpu not in held and gpu.uuid in taken
            ]
            if not obstacles:
                for gpu, memory_bytes in ask.gpus.items():
                    held[gpu] = Share(memory_bytes, held[gpu].since if gpu in held else now)
            against[keys] = obstacles
        if held != self._held or self._is_stale:
            self._files.write(held)
        self._held = held
        return against, taken

    def _locked_out(self, now: Timestamp) -> None:
        waited = max([now - ask.since for ask in self._asks.values()], default=0.0)
        if waited >= TELL_AFTER_SECONDS and not self._has_told:
            self._has_told = True
            self._warn(f"waiting for the claims in {self._files.folder}: somebody holds their lock")
        late = [k for k, ask in self._asks.items() if now - ask.since >= LOCK_PATIENCE_SECONDS]
        why = f"the claims of this box are locked by somebody ({self._files.folder})"
        self._refuse(late, why, now)
        most = LAST_RETRY_SECONDS if self._asks else _IDLE_RETRY_SECONDS
        self._retry_at = now + min(self._retry_after_seconds, most)
        self._retry_after_seconds = min(2 * self._retry_after_seconds, most)

    def _refuse(self, asks: Collection[tuple[GpuKey, ...]], why: str, now: Timestamp) -> None:
        for keys in asks:
            del self._asks[keys]
            self._answers.append(ClaimRefused(now, keys, tuple((gpu, why) for gpu in keys)))


def _on_the_host_of(keys: tuple[GpuKey, ...], taken: Mapping[str, object]) -> Claimed | None:
    """The box is one host, where what is asked for is."""
    if not keys:
        return None
    host = keys[0].host
    return tuple((GpuKey(host, GpuUuid(uuid)), str(claimant)) for uuid, claimant in taken.items())


class _Ask(NamedTuple):
    gpus: Mapping[GpuKey, int]
    since: Timestamp


class NoClaims:
    """Asks nobody and tells nobody: whatever is wanted is granted."""

    def __init__(self) -> None:
        self._answers: list[ClaimGranted | ClaimRefused] = []

    def ask(self, gpus: Sequence[tuple[GpuKey, int]], now: Timestamp) -> None:
        self._answers.append(ClaimGranted(now, tuple(gpu for gpu, _ in gpus)))

    def release(self, gpus: Collection[GpuKey], now: Timestamp) -> None:
        self._answers = [answer for answer in self._answers if set(gpus).isdisjoint(answer.gpus)]

    def take(self, now: Timestamp) -> Sequence[ClaimGranted | ClaimRefused]:
        answers, self._answers = self._answers, []
        return answers

    def wake_at(self) -> Timestamp:
        return self._answers[0].at if self._answers else inf

    def close(self) -> None:
        self._answers = []
