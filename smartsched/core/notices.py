"""What people who are elsewhere are told of a run: that a first job failed, that nothing could
start for long, that it ended. It goes through other people's services: no command is told but its
shape, which has no values in it, and no command of anybody else's."""

from msgspec import Struct

from smartsched.core import words
from smartsched.core.endings import how_it_ended
from smartsched.core.gpu_time import Standing, stalled_because
from smartsched.core.model import EndedRun, Timestamp, Wait
from smartsched.core.shapes import shape_of
from smartsched.core.state import Closing, State


class Notice(Struct, frozen=True):
    title: str
    body: str


def first_failure(run_name: str, ended: EndedRun) -> Notice:
    how = words.printable(how_it_ended(ended))
    lasted = words.duration(ended.seconds)
    shape = shape_of(ended.job.spec.command)
    return Notice(
        f"{run_name}: {words.printable(ended.job.words)} failed",
        f"{how} after {lasted} {ended.placement.words}: {shape}\n"
        "It is the first that failed; of others, only the end of the run tells.",
    )


def finish(run_name: str, state: State, seconds: float) -> Notice:
    totals = state.totals
    left = bool(state.queue or state.interrupted or state.runs or state.input_open)
    ended = "is halted" if state.halted else "ended with work left" if left else "is done"
    parts = [f"{words.count(totals.ok, 'job')} ok", f"{totals.failed:,} failed"]
    if totals.stopped:
        parts.append(f"{totals.stopped:,} stopped")
    if totals.rejected:
        parts.append(f"{words.count(totals.rejected, 'line')} left out")
    if state.queue:
        parts.append(f"{len(state.queue):,}{'+' if state.input_open else ''} not started")
    hours = f"{totals.gpu_seconds / 3600:.2f} GPU-hours"
    body = f"{', '.join(parts)}; {words.duration(seconds)}, {hours}"
    return Notice(f"{run_name} {ended}", body)


def stall(run_name: str, seconds: float, found: list[Standing], waiting: Wait) -> Notice:
    lasted = words.duration(seconds)
    return Notice(
        f"{run_name}: nothing could start for {lasted}",
        f"because {stalled_because(found, waiting)}",
    )


def may_stall(state: State, waiting: Wait | None) -> bool:
    """Whether something waits that nobody asked to wait."""
    return waiting is not None and bool(state.queue) and state.closing is Closing.NO


def is_stalled(state: State, found: list[Standing]) -> bool:
    """Whether it is others who keep jobs from starting: while all GPUs are ours, or as many as the
    user's caps allow, all is well."""
    if not state.runs:
        return True
    uses = {standing.use for standing in found}
    return "capped" not in uses and not uses.isdisjoint(
        {"strangers", "window", "claimed", "unknown"}
    )


class StallClock:
    """Since when nothing could start."""

    def __init__(self, after_seconds: float) -> None:
        self._after_seconds = after_seconds
        self._since: Timestamp | None = None
        self._told = False

    def started(self) -> None:
        self._since, self._told = None, False

    def look(self, state: State, waiting: Wait | None, now: Timestamp) -> float | None:
        """For how long by now, where that is long enough and was not told yet; else None."""
        if not may_stall(state, waiting):
            self._since = None
            return None
        self._since = now if self._since is None else self._since
        lasted = now - self._since
        return lasted if lasted >= self._after_seconds and not self._told else None

    def told(self) -> None:
        self._told = True

    def wake_at(self) -> Timestamp:
        if self._since is None or self._told:
            return float("inf")
        return self._since + self._after_seconds
