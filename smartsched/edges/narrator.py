"""Tells people what happens: the wording of every line, wherever the lines go."""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from smartsched.core import words
from smartsched.core.decide import Decision, idles
from smartsched.core.events import (
    DrainRequested,
    Event,
    LineRejected,
    RunExited,
    RunKilled,
    RunLaunched,
    RunPlaced,
    RunPostponed,
    RunStopping,
    StopRequested,
    WaitTimedOut,
)
from smartsched.core.model import (
    Ending,
    Exited,
    HostName,
    JobSpec,
    Killed,
    NotStarted,
    Placement,
    Run,
    RunKey,
    Running,
    Stopping,
    Timestamp,
)
from smartsched.core.state import State
from smartsched.core.survey import gpu_rows

Tone = Literal["plain", "good", "bad", "notice"]
_COMMAND_WIDTH = 100
_TAIL_LINES = 5
_MOST_FAILURES_LISTED = 20
_SAY_WHY_WAITING_AFTER_SECONDS = 2.0  # while nothing runs
_SAY_WHY_IDLING_AFTER_SECONDS = 10.0  # while something does
_SAY_WHY_WAITING_AGAIN_SECONDS = 60.0
_SAY_WHY_IDLING_AGAIN_SECONDS = 600.0
_SAY_WHAT_IS_NEW_AFTER_SECONDS = 10.0
_DIGITS = re.compile(r"[\d.]+")


class View(Protocol):
    """Where lines go, and perhaps a live picture below them."""

    def line(self, at: Timestamp, text: str, tone: Tone) -> None: ...
    def refresh(self, state: State, now: Timestamp) -> None: ...
    def wake_at(self) -> Timestamp: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Told:
    """What is needed of a run to tell of its end."""

    spec: JobSpec
    placement: Placement
    since: Timestamp
    log: str | None = None
    stopped: bool = False  # because the user asked


class Narrator:
    """An Observer."""

    def __init__(
        self,
        view: View,
        *,
        tail: Callable[[str, int], list[str]],
        quiet: bool,
        verbose: bool,
        single: bool,
        logs: str | None,
    ) -> None:
        """`single`: there is just one command, whose end needs no summary. `logs`: where they are;
        None: there are none."""
        self._view = view
        self._tail = tail
        self._quiet = quiet
        self._verbose = verbose
        self._single = single
        self._logs = logs
        self._runs: dict[RunKey, _Told] = {}
        self._failures: list[str] = []
        self._began: Timestamp | None = None
        self._waiting_since: Timestamp | None = None
        self._said_why_at: Timestamp = float("-inf")
        self._say_why_at: Timestamp = float("inf")
        self._said_kind = ""
        self._said_postponed = ""
        self._troubles: dict[HostName, str] = {}
        self._verdicts: dict[str, str] = {}

    def recorded(  # noqa: C901  # a table: one case an event
        self, event: Event, state: State, now: Timestamp
    ) -> None:
        if self._began is None:
            self._began = now
        match event:
            case RunPlaced(_, key, placement):
                self._runs[key] = _Told(state.runs[key].job.spec, placement, now)
            case RunLaunched(_, key, _, log):
                self._runs[key].log = log
                self._started(key, now)
            case RunExited(_, key, ending, leftovers):
                self._ended(self._runs.pop(key), key, ending, leftovers, now)
            case RunPostponed(_, key, why):
                del self._runs[key]
                self._postponed(key, why, now)
            case RunStopping(_, key):
                if key in self._runs:
                    self._runs[key].stopped = True
            case RunKilled(_, key):
                self._say(now, f"job {key.job} did not end when asked; killing it", "notice")
            case LineRejected(_, source, why):
                self._list_failure(f"{source}: {why}")
                self._view.line(now, f"{source}: {why}; this line is left out", "bad")
            case DrainRequested() | StopRequested() | WaitTimedOut():
                self._closing(event, state, now)
            case _:
                pass

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        self._tell_troubles(state, now)
        if decision.waiting is None or (state.runs and not idles(state)):
            self._waiting_since = None
            self._say_why_at = float("inf")
        else:
            self._maybe_say_why(decision.waiting.why, now, hurry=not state.runs)
        if self._verbose:
            self._tell_verdicts(state, now)
        self._view.refresh(state, now)

    def warn(self, text: str, now: Timestamp) -> None:
        """Something the user should know that no event tells of."""
        self._say(now, text, "notice")

    def wake_at(self) -> Timestamp:
        return min(self._say_why_at, self._view.wake_at())

    def finish(self, state: State, now: Timestamp) -> None:
        """The summary."""
        for run in state.runs.values():
            self._view.line(now, _left_alive(run), "bad")
        if self._single and not state.totals.rejected:
            return
        totals = state.totals
        self._view.line(now, self._summary(state, now), "bad" if self._failures else "good")
        for failure in self._failures:
            self._view.line(now, f"  {failure}", "bad")
        unlisted = totals.failed + totals.rejected - len(self._failures)
        if unlisted > 0:
            self._view.line(now, f"  and {words.count(unlisted, 'more failure')}", "bad")

    def _summary(self, state: State, now: Timestamp) -> str:
        totals = state.totals
        parts = [f"{words.count(totals.ok, 'job')} ok", f"{totals.failed:,} failed"]
        if totals.stopped:
            parts.append(f"{totals.stopped:,} stopped")
        if state.runs:
            parts.append(f"{len(state.runs):,} still there")
        if totals.rejected:
            parts.append(f"{words.count(totals.rejected, 'line')} left out")
        if state.queue:
            more = " and the rest of the input" if state.input_open else ""
            parts.append(f"{len(state.queue):,}{more} not started")
        elif state.input_open:
            parts.append("the rest of the input not read")
        wall = words.duration(now - (self._began if self._began is not None else now))
        hours = totals.gpu_seconds / 3600
        where = f"; logs in {self._logs}" if self._logs and totals.finished else ""
        return f"{', '.join(parts)}; {wall}, {hours:.2f} GPU-hours{where}"

    def _started(self, key: RunKey, now: Timestamp) -> None:
        told = self._runs[key]
        told.since = now
        command = _command(told.spec)
        self._say(now, f"job {key.job} started on GPU {told.placement.labels}: {command}", "plain")

    def _ended(
        self, told: _Told, key: RunKey, ending: Ending, leftovers: int, now: Timestamp
    ) -> None:
        lasted = words.duration(now - told.since)
        where = f"on GPU {told.placement.labels}"
        if ending == Exited(0):
            if not self._single:
                self._say(now, f"job {key.job} ok after {lasted} {where}", "good")
        elif told.stopped:
            text = f"job {key.job} stopped: {_how(ending)} after {lasted} {where}"
            self._say(now, text, "notice")
        else:
            how = "" if isinstance(ending, NotStarted) else f" after {lasted}"
            text = f"job {key.job} failed: {_how(ending)}{how} {where}: {_command(told.spec)}"
            self._failed(text, told, now)
        if leftovers:
            processes = "1 process" if leftovers == 1 else f"{leftovers} processes"
            text = f"job {key.job} left {processes} behind; stopping what is left"
            self._say(now, text, "notice")

    def _failed(self, text: str, told: _Told, now: Timestamp) -> None:
        self._list_failure(text if told.log is None else f"{text} ({told.log})")
        self._view.line(now, text, "bad")
        if told.log is None:
            return
        self._view.line(now, f"  its log: {words.printable(told.log)}", "bad")
        for line in self._tail(told.log, _TAIL_LINES):
            self._view.line(now, f"  | {words.shortened(words.printable(line), 200)}", "plain")

    def _list_failure(self, text: str) -> None:
        if len(self._failures) < _MOST_FAILURES_LISTED:
            self._failures.append(text)

    def _closing(
        self, event: DrainRequested | StopRequested | WaitTimedOut, state: State, now: Timestamp
    ) -> None:
        running = words.count(len(state.runs), "running job")
        match event:
            case WaitTimedOut():
                text = "no GPU came free in time; giving up"
            case DrainRequested(_, why) if state.runs:
                text = f"{why}: starting nothing more; waiting for {running}"
                text += " (Ctrl-C, or SIGTERM, to stop them)"
            case DrainRequested(_, why):
                text = f"{why}: starting nothing more"
            case StopRequested(_, why):
                text = f"{why}: stopping {running}" if state.runs else f"{why}: stopping"
        self._view.line(now, text, "notice")

    def _maybe_say_why(self, why: str, now: Timestamp, *, hurry: bool) -> None:
        patience = _SAY_WHY_WAITING_AFTER_SECONDS if hurry else _SAY_WHY_IDLING_AFTER_SECONDS
        again = _SAY_WHY_WAITING_AGAIN_SECONDS if hurry else _SAY_WHY_IDLING_AGAIN_SECONDS
        if self._waiting_since is None:
            self._waiting_since = now
        kind = _DIGITS.sub("", why)
        if kind != self._said_kind:  # something else than a number has changed
            again = _SAY_WHAT_IS_NEW_AFTER_SECONDS if hurry else _SAY_WHY_WAITING_AGAIN_SECONDS
        self._say_why_at = max(self._waiting_since + patience, self._said_why_at + again)
        if now >= self._say_why_at:
            self._said_why_at, self._said_kind = now, kind
            self._say_why_at = float("inf")  # until the next decision
            self._say(now, f"waiting: {why}", "notice")

    def _tell_troubles(self, state: State, now: Timestamp) -> None:
        troubles = {host: trouble.why for host, trouble in state.troubles.items()}
        for host in troubles.keys() - self._troubles.keys():
            self._say(now, f"nothing new is started: {troubles[host]}", "notice")
        for _ in self._troubles.keys() - troubles.keys():
            self._say(now, "the driver answers again", "notice")
        self._troubles = troubles

    def _postponed(self, key: RunKey, why: str, now: Timestamp) -> None:
        if why != self._said_postponed:
            self._say(now, f"job {key.job} cannot be started yet: {why}; trying again", "notice")
        self._said_postponed = why

    def _tell_verdicts(self, state: State, now: Timestamp) -> None:
        for row in gpu_rows(state, now):
            if self._verdicts.get(row.key.uuid) != row.word:
                self._verdicts[row.key.uuid] = row.word
                why = f": {'; '.join(row.reasons)}" if row.reasons else ""
                self._view.line(now, f"GPU {row.label} {row.word}{why}", "plain")

    def _say(self, at: Timestamp, text: str, tone: Tone) -> None:
        if not self._quiet:
            self._view.line(at, text, tone)


def _left_alive(run: Run) -> str:
    where = f"on GPU {run.status.placement.labels}"
    match run.status:
        case Stopping(pid=pid) | Running(pid=pid):
            return f"job {run.job.id} cannot be killed and is still there (pid {pid}) {where}"
        case _:
            return f"job {run.job.id} left processes behind that cannot be killed {where}"


def _command(spec: JobSpec) -> str:
    return words.shortened(words.printable(spec.command), _COMMAND_WIDTH)


def _how(ending: Ending) -> str:
    match ending:
        case Killed(signum):
            return f"killed by {_signal_name(signum)}"
        case Exited(code) if code > 128 and _signal_name(code - 128).startswith("SIG"):
            return f"exit status {code} (128 + {_signal_name(code - 128)})"
        case Exited(code):
            return f"exit status {code}"
        case NotStarted(why):
            return f"could not be started: {why}"


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
