"""Plays back what `smartsched sample` recorded."""

from collections.abc import Collection

from msgspec.structs import replace

from smartsched.core import codec
from smartsched.core.model import Seen, Snapshot
from smartsched.errors import BadSnapshotError, UsageError

_HOW = "record one with smartsched sample > FILE"


class Recording:
    """At its own pace; after its end its last snapshot stands still.

    Only the position in the file is kept, so that a recording may be as long as it likes.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._lines = open(path, "rb")  # noqa: SIM115  # open for as long as it plays
        except OSError as error:
            raise UsageError(f"--replay: cannot read {path}: {error.strerror}; {_HOW}") from error
        self._number = 0
        try:
            self._now = self._next()
            self._ahead = self._next()
        except UsageError:
            self.close()
            raise
        if self._now is None:
            self.close()
            raise UsageError(f"--replay: {path} holds no sample; {_HOW}")
        self._starts_at: float | None = None

    def read(self, monotonic_s: float, only: Collection[str] | None) -> Seen:
        """What was the case so long after the recording's start as now is after the first call."""
        assert self._now is not None
        if self._starts_at is None:
            self._starts_at = monotonic_s - codec.wall_seconds(self._now)
        moment = monotonic_s - self._starts_at
        while self._ahead is not None and codec.wall_seconds(self._ahead) <= moment:
            self._now, self._ahead = self._ahead, self._next()
        observation = codec.decode(self._now, taken_at=0.0)
        if only is None or not isinstance(observation, Snapshot):
            return observation
        gpus = tuple(gpu for gpu in observation.gpus if gpu.key.uuid in only)
        return replace(observation, gpus=gpus, whole=False)

    def close(self) -> None:
        self._lines.close()

    def _next(self) -> codec.Fields | None:
        """The next whole snapshot or trouble; answers to requests hold only a part."""
        for line in self._lines:
            self._number += 1
            if not line.strip():
                continue
            fields = self._parse(line)
            if fields.get("whole", True):
                return fields
        return None

    def _parse(self, line: bytes) -> codec.Fields:
        try:
            fields = codec.parse(line)
            codec.decode(fields, taken_at=codec.wall_seconds(fields))
        except BadSnapshotError as error:
            if not line.endswith(b"\n"):  # the recording was cut off while it was written
                return {"whole": False}
            place = f"{self._path}:{self._number}"
            raise UsageError(
                f"--replay: {place}: {error}; take that line out, or {_HOW}"
            ) from error
        return fields
