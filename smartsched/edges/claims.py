"""What dispatchers of a box tell each other about the GPUs that they use."""

from collections.abc import Collection, Sequence
from math import inf

from smartsched.core.model import ClaimGranted, ClaimRefused, GpuKey, Timestamp


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
