"""What was learned of command shapes, kept for later runs: a file per host in the user's state
folder, which all of the user's dispatchers on that host write.

Of a command it holds the shape and no more (see core/shapes.py). It is only a help: whatever is
wrong with it, jobs run, and are measured anew.
"""

import errno
import fcntl
import json
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from smartsched.core.apply import MOST_SHAPES
from smartsched.core.decide import Decision
from smartsched.core.events import Event, RunMeasured
from smartsched.core.footprint import NO_RUNS, Footprint
from smartsched.core.model import HostName, Timestamp
from smartsched.core.shapes import LONGEST, shape_of
from smartsched.core.state import State
from smartsched.core.words import count, printable, shortened
from smartsched.errors import StateError, UsageError
from smartsched.ports import Begin, Work

_FOLDER = "shapes"
_VERSION = 1  # of what the file says
_LARGEST_BYTES = 8 * 2**20  # the most shapes at their longest are smaller
_WRITTEN_EVERY_SECONDS = 30.0
_TRIED_AGAIN_AFTER_SECONDS = 1.0  # while another dispatcher writes, which takes some milliseconds
_PATIENCE_SECONDS = 1.0  # of who has no other occasion
_LOOK_EVERY_SECONDS = 0.02
# Runs that wait to be written down, as many as end in a busy half minute: where nothing can be
# written, they must not fill the memory.
_MOST_NOTED = 10_000
# What is more than that was not written by us, and might not be reckoned with.
_MOST_RUNS = 10**9
_MOST_BYTES = 2**50
_MOST_SECONDS = 1e9
_LATEST = 2**35
_LOCKED = "is being written by somebody else"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Learned(Struct, frozen=True):
    footprint: Footprint
    last_used: int  # when a run of it last ended well: Unix seconds

    def fields(self) -> dict[str, object]:
        """As they are written to the file."""
        footprint = self.footprint
        return {
            "runs": footprint.runs,
            "peak_bytes": footprint.peak_bytes,
            "utilization_percent": footprint.utilization_percent,
            "mean_seconds": footprint.mean_seconds,
            "longest_seconds": footprint.longest_seconds,
            "last_used": self.last_used,
        }


class FootprintFile:
    """An Observer. The file, its folder, and all else come into being with the first that is
    learned."""

    def __init__(
        self,
        state: Path,
        host: HostName,
        open_own_file: Callable[[int, str, int], int],
        warn: Callable[[str], None],
        begin: Begin | None = None,
    ) -> None:
        """`begin`: begins what nobody waits for; None: nothing is going to be recorded.
        `open_own_file` opens what has that name in an open folder, with these flags, and raises
        OSError for all but plain files of the user's own."""
        self._state = state
        self._name = re.sub(r"[^\w.-]", "_", host, flags=re.ASCII)
        self._open_own_file = open_own_file
        self._warn = warn
        self._begin = begin
        self._noted: deque[RunMeasured] = deque(maxlen=_MOST_NOTED)
        self._saving: tuple[Work, list[RunMeasured]] | None = None
        self._write_at: Timestamp = float("-inf")
        self._began_at: Timestamp = float("-inf")
        self._has_complained = False

    @property
    def path(self) -> Path:
        return self._state / _FOLDER / f"{self._name}.json"

    def load(self) -> dict[str, Footprint]:
        """By shape, what was used longest ago first. Warns, once, of what cannot be."""
        return {shape: learned.footprint for shape, learned in self.shapes().items()}

    def shapes(self) -> dict[str, Learned]:
        """Likewise, with all that is known of them."""
        try:
            with self._folder(make=False) as folder:
                known, wrong = self._read(folder)
        except FileNotFoundError:
            return {}
        except (OSError, StateError) as error:
            known, wrong = {}, _why(error)
        if wrong is not None:
            self._warn(
                f"what earlier runs used is not known, or not all of it: {self.path} {wrong}"
            )
        return known

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        if isinstance(event, RunMeasured):
            self._noted.append(event)

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        """The disk may take seconds, for which nobody waits."""
        if self.is_saving():
            self._write_at = max(self._write_at, now + _TRIED_AGAIN_AFTER_SECONDS)
            return
        if self._saving is not None:
            is_done = self._hear_of_saving()
            pause = _WRITTEN_EVERY_SECONDS if is_done else _TRIED_AGAIN_AFTER_SECONDS
            self._write_at = self._began_at + pause
        if now >= self.wake_at():
            assert self._begin is not None
            runs, self._noted = list(self._noted), deque(maxlen=_MOST_NOTED)
            self._saving = self._begin(lambda: self._save(runs, patience_seconds=0.0)), runs
            self._began_at = now
            self._write_at = now + _TRIED_AGAIN_AFTER_SECONDS

    def is_saving(self) -> bool:
        return self._saving is not None and self._saving[0].is_at_work

    def wake_at(self) -> Timestamp:
        """While something is being written, to see what has become of that."""
        return self._write_at if self._noted or self._saving is not None else float("inf")

    def close(self) -> None:
        if self._saving is not None:
            self._hear_of_saving()
        if not self._noted:
            return
        try:
            self._save(self._noted, _PATIENCE_SECONDS)
        except BlockingIOError:
            self._complain(_LOCKED)
        except (OSError, StateError) as error:
            self._complain(_why(error))

    def forget(self, shapes: Iterable[str]) -> None:
        """These shapes, or those of these commands.

        Raises UsageError for one that is not known, and then forgets none; StateError if it cannot
        be done.
        """
        known = self.shapes()
        forgotten = set()
        for text in shapes:
            shape = text if text in known else shape_of(text)
            if shape not in known:
                what = shortened(printable(text), 200)
                raise UsageError(
                    f"--forget: nothing was learned of {what}; `smartsched shapes` shows what is"
                    " known"
                )
            forgotten.add(shape)
        with self._told_to() as folder:
            known, _ = self._read(folder)
            for shape in forgotten:
                known.pop(shape, None)
            self._replace(folder, known)

    def forget_all(self) -> None:
        """Raises StateError if it cannot be done."""
        if os.path.lexists(self.path):
            with self._told_to() as folder, suppress(FileNotFoundError):
                os.unlink(self.path.name, dir_fd=folder)

    @contextmanager
    def _told_to(self) -> Iterator[int]:
        """The folder, locked, on behalf of a user who waits for it."""
        try:
            with self._locked(_PATIENCE_SECONDS) as folder:
                yield folder
        except (OSError, StateError) as error:
            raise StateError(f"cannot forget anything: {self.path} {_why(error)}") from error

    def _save(self, runs: Collection[RunMeasured], patience_seconds: float) -> None:
        """Raises BlockingIOError while somebody else holds the lock, OSError, StateError."""
        with self._locked(patience_seconds) as folder:
            known, _ = self._read(folder)
            _learn(known, runs)
            self._replace(folder, known)

    def _hear_of_saving(self) -> bool:
        """Waits for it. Whether that is all for now: it is not while somebody else holds the
        lock."""
        assert self._saving is not None
        (saving, runs), self._saving = self._saving, None
        saving.wait()
        if saving.error is None:
            return True
        self._noted = deque([*runs, *self._noted], maxlen=_MOST_NOTED)
        if isinstance(saving.error, BlockingIOError):
            return False
        self._complain(_why(saving.error))
        return True

    def _complain(self, why: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            self._warn(f"what jobs use is not kept for later runs: {self.path} {why}")

    @contextmanager
    def _locked(self, patience_seconds: float) -> Iterator[int]:
        """The folder, in which nobody else writes meanwhile. Raises BlockingIOError if somebody
        does for so long."""
        until = time.monotonic() + patience_seconds
        with self._folder(make=True) as folder, ExitStack() as stack:
            lock = self._open_own_file(folder, f"{self._name}.lock", os.O_RDWR | os.O_CREAT)
            stack.callback(os.close, lock)
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise
                time.sleep(_LOOK_EVERY_SECONDS)
            yield folder

    @contextmanager
    def _folder(self, *, make: bool) -> Iterator[int]:
        """Ours, and nobody else may enter: made so if it is not. Where the state folder is, is the
        user's choice, also by a link; below it there are none."""
        with ExitStack() as stack:
            state = os.open(self._state, _FOLDER_FLAGS)
            stack.callback(os.close, state)
            if make:
                with suppress(FileExistsError):
                    os.mkdir(_FOLDER, 0o700, dir_fd=state)
            fd = os.open(_FOLDER, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=state)
            stack.callback(os.close, fd)
            status = os.fstat(fd)
            if status.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "its folder belongs to somebody else")
            if stat.S_IMODE(status.st_mode) & 0o077:
                os.fchmod(fd, 0o700)
            yield fd

    def _read(self, folder: int) -> tuple[dict[str, Learned], str | None]:
        """What is there, and what is wrong with it; None: nothing. Raises OSError for what is no
        file of ours, and StateError for one that we would spoil."""
        try:
            fd = self._open_own_file(folder, self.path.name, os.O_RDONLY)
        except FileNotFoundError:
            return {}, None
        with open(fd, "rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
        return _decode(data)

    def _replace(self, folder: int, known: dict[str, Learned]) -> None:
        """At once and for good: whoever reads it, and whatever crashes, finds one or the other."""
        unfinished = f"{self._name}.new"
        with suppress(FileNotFoundError):  # of one that died here
            os.unlink(unfinished, dir_fd=folder)
        fd = self._open_own_file(folder, unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with open(fd, "wb", buffering=0) as file:
                data = _encode(known)
                while data:
                    data = data[file.write(data) :]
                os.fsync(fd)
            os.rename(unfinished, self.path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with suppress(OSError):
                os.unlink(unfinished, dir_fd=folder)
            raise


def _learn(known: dict[str, Learned], runs: Collection[RunMeasured]) -> None:
    """In the order in which they ended."""
    for run in runs:
        before = known.pop(run.shape, None)
        footprint = NO_RUNS if before is None else before.footprint
        known[run.shape] = Learned(
            footprint.with_run(run.peak_bytes, run.utilization_percent, run.seconds),
            round(run.at),
        )


def _encode(known: dict[str, Learned]) -> bytes:
    shapes = {shape: learned.fields() for shape, learned in _latest(known).items()}
    return json.dumps({"smartsched_shapes": _VERSION, "shapes": shapes}).encode() + b"\n"


def _decode(data: bytes) -> tuple[dict[str, Learned], str | None]:
    if len(data) > _LARGEST_BYTES:
        return {}, "is too large to be ours"
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}, "is no JSON"
    match content:
        case {"smartsched_shapes": int(version)} if version > _VERSION:
            raise StateError("was written by a newer smartsched")
        case {"smartsched_shapes": 1, "shapes": dict(shapes)}:
            found = {shape: _learned(shape, fields) for shape, fields in shapes.items()}
            known = {shape: learned for shape, learned in found.items() if learned is not None}
            wrong = len(found) - len(known)
            return _latest(known), f"has {count(wrong, 'shape')} that cannot be" if wrong else None
        case _:
            return {}, "is no list of shapes"


def _learned(shape: str, fields: object) -> Learned | None:
    """None: it cannot be."""
    if len(shape) > LONGEST or not shape.isprintable():
        return None
    match fields:
        case {
            "runs": int(runs),
            "peak_bytes": int(peak_bytes),
            "utilization_percent": (int() | float() | None) as percent,
            "mean_seconds": (int() | float()) as mean_seconds,
            "longest_seconds": (int() | float()) as longest_seconds,
            "last_used": (int() | float()) as last_used,
        } if (
            1 <= runs <= _MOST_RUNS
            and 0 <= peak_bytes <= _MOST_BYTES
            and (percent is None or 0 <= percent <= 100)
            and 0 <= mean_seconds <= _MOST_SECONDS
            and 0 <= longest_seconds <= _MOST_SECONDS
            and 0 <= last_used <= _LATEST
        ):
            mean, longest = float(mean_seconds), float(longest_seconds)
            busy = None if percent is None else float(percent)
            footprint = Footprint(int(runs), int(peak_bytes), busy, mean, longest)
            return Learned(footprint, round(last_used))
        case _:
            return None


def _latest(known: dict[str, Learned]) -> dict[str, Learned]:
    """Those that are kept, what was used longest ago first."""
    ordered = sorted(known.items(), key=lambda item: item[1].last_used)
    return dict(ordered[-MOST_SHAPES:])


def _why(error: OSError | StateError) -> str:
    if isinstance(error, StateError):
        return str(error)
    if isinstance(error, BlockingIOError):
        return _LOCKED
    return "is a link" if error.errno == errno.ELOOP else f"cannot be used: {error.strerror}"
