"""How many jobs came to what."""

from msgspec import Struct


class Totals(Struct):
    accepted: int = 0
    rejected: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0  # the user does not want them any more
    stopped: int = 0  # because the user asked; they run when the run is resumed
    dropped: int = 0  # not on the list that the run was resumed with
    gpu_seconds: float = 0.0
    yields: int = 0  # runs that gave way to other people
    yielded_gpu_seconds: float = 0.0  # that they had taken

    @property
    def finished(self) -> int:
        return self.ok + self.failed + self.cancelled + self.stopped
