"""Tells people what happens: the wording of every line, wherever the lines go."""

import re
from collections.abc import Callable
from typing import Literal, Protocol

from smartsched.core import words
from smartsched.core.actions import Claim
from smartsched.core.blame import words_on_memory
from smartsched.core.decide import Decision, time_limit
from smartsched.core.endings import how_it_ended
from smartsched.core.events import (
    DrainRequested,
    Event,
    GpuReleased,
    GpuWithheld,
    Halted,
    JobAccepted,
    JobFinished,
    JobRequeued,
    JobsAdded,
    JobsCancelled,
    JobsRetried,
    LineRejected,
    OptionsSet,
    RunAdopted,
    RunContinued,
    RunExited,
    RunKilled,
    RunLaunched,
    RunPaused,
    RunPlaced,
    RunPostponed,
    RunRevoked,
    RunStopping,
    StopRequested,
    WaitTimedOut,
)
from smartsched.core.guard import THE_COMMAND_FAILS
from smartsched.core.model import (
    EndedRun,
    HostName,
    JobId,
    JobSpec,
    Lost,
    NotStarted,
    Run,
    RunKey,
    Running,
    Starting,
    Stopping,
    Timestamp,
    Wait,
)
from smartsched.core.selection import label
from smartsched.core.standing import BEING_STARTED, idles
from smartsched.core.state import State, is_out_of_reach
from smartsched.core.survey import gpu_rows
from smartsched.core.totals import Totals

Tone = Literal["plain", "good", "bad", "notice"]
_COMMAND_WIDTH = 100
_TAIL_LINES = 5
_MOST_FAILURES_LISTED = 20
_MOST_NUMBERS = 10
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
        run_name: str,
        how_to_go_on: str,
        here: str,
    ) -> None:
        """`single`: there is just one command, whose end needs no summary. `logs`: where they are;
        None: there are none. `how_to_go_on`: what to type for the rest of the run. `here`: paths
        below it are told without it."""
        self._view = view
        self._tail = tail
        self._quiet = quiet
        self._verbose = verbose
        self._single = single
        self._logs = logs
        self._run_name = run_name
        self._how_to_go_on = how_to_go_on
        self._here = here.rstrip("/") + "/"
        self._ended: dict[RunKey, tuple[EndedRun, int]] = {}  # and its leftovers
        self._held: dict[RunKey, str] = {}  # of runs that ran out of memory
        self._failures: list[tuple[JobId | None, str]] = []  # None: of a line
        self._last_failure: EndedRun | None = None
        self._began: Timestamp | None = None
        self._waiting_since: Timestamp | None = None
        self._said_why_at: Timestamp = float("-inf")
        self._say_why_at: Timestamp = float("inf")
        self._said_kind = ""
        self._said_postponed = ""
        self._troubles: dict[HostName, str] = {}
        self._present: set[HostName] = set()
        self._leaving: set[HostName] = set()
        self._verdicts: dict[str, str] = {}

    def recorded(  # noqa: C901, PLR0912  # a table: one case an event
        self, event: Event, state: State, now: Timestamp
    ) -> None:
        if self._began is None:
            self._began = now
        match event:
            case JobAccepted() | RunPlaced() | GpuReleased():  # half of all that happens
                pass
            case RunLaunched(_, key):
                self._started(state.runs[key], now)
            case RunAdopted(_, key, since):
                run = state.runs[key]
                where = run.status.placement.words
                lasts = words.duration(now - since)
                text = f"{run.job.words} still runs {where}, for {lasts}: {_command(run.job.spec)}"
                self._say(now, text, "plain")
            case RunExited(_, key, _, leftovers):
                self._ended[key] = (state.ended[key], leftovers)
                if event.out_of_memory:
                    self._held[key] = words_on_memory(state, state.ended[key])
            case JobFinished(_, key):
                self._finished(*self._ended.pop(key), event, now)
                self._held.pop(key, None)
            case JobRequeued(_, key):
                self._requeued(*self._ended.pop(key), event, now)
            case RunPostponed(_, key, why):
                self._postponed(_job(state, key), why, now)
            case RunRevoked(_, key):
                self._say(now, f"{_job(state, key)} had not begun yet; queued again", "notice")
            case RunStopping(_, key, "timeout"):
                lasted = words.duration(time_limit(state, state.runs[key]) or 0)
                self._say(now, f"{_job(state, key)} has run for {lasted}; stopping it", "notice")
            case RunStopping(_, key, "contention", who):
                where = state.runs[key].status.placement.words
                text = f"{_job(state, key)} gives way {where} to {words.printable(who)}"
                self._say(now, text, "notice")
            case RunKilled(_, key):
                self._say(now, f"{_job(state, key)} did not end when asked; killing it", "notice")
            case LineRejected(_, source, why):
                self._list_failure(None, f"{source}: {why}")
                self._view.line(now, f"{source}: {why}; this line is left out", "bad")
            case JobsAdded(first=first, specs=specs):
                self._added(first, len(specs), now)
            case JobsCancelled(jobs=jobs):
                self._say(now, f"cancelled by request: {_numbers(jobs)}", "notice")
            case JobsRetried(jobs=jobs) if jobs:
                self._retried(jobs, now)
            case RunPaused():
                self._say(now, "paused by request: starting nothing more", "notice")
            case RunContinued():
                self._say(now, "continued by request", "notice")
            case OptionsSet():
                self._say(now, "options were changed by request", "notice")
            case GpuWithheld():
                self._withheld(event, state, now)
            case Halted():
                self._halted(event, state, now)
            case DrainRequested() | StopRequested() | WaitTimedOut():
                self._closing(event, state, now)
            case _:
                pass

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        self._tell_troubles(state, now)
        if any(isinstance(action, Claim) for action in decision.actions):
            # what others have claimed is asked for again and again: that is waiting, too
            self._say_why_at = float("inf")
        elif decision.waiting is None or (state.runs and not idles(state)):
            self._waiting_since = None
            self._say_why_at = float("inf")
        else:
            hurry = not state.runs
            often = hurry and bool(state.queue)
            self._maybe_say_why(decision.waiting, now, hurry=hurry, often=often)
        if self._verbose:
            self._tell_verdicts(state, now)
        self._view.refresh(state, now)

    def resumed(self, state: State, now: Timestamp) -> None:
        """What the run has come to so far."""
        self._began = now
        self._ended = {key: (ended, 0) for key, ended in state.ended.items()}
        totals = state.totals
        parts = [f"{words.count(totals.ok, 'job')} ok", f"{totals.failed:,} failed"]
        if state.runs:
            parts.append(f"{len(state.runs):,} running when it was left")
        if queued := len(state.queue) + len(state.interrupted):
            more = " and what is left of the list" if state.input_open else ""
            parts.append(f"{queued:,}{more} to be run")
        elif state.input_open:
            parts.append("the rest of the list to be run")
        self._say(now, f"going on with run {self._run_name}: {', '.join(parts)}", "notice")

    def warn(self, text: str, now: Timestamp) -> None:
        """Something the user should know that no event tells of."""
        self._say(now, text, "notice")

    def wake_at(self) -> Timestamp:
        return min(self._say_why_at, self._view.wake_at())

    def finish(self, state: State, now: Timestamp) -> None:
        """The summary."""
        for run in state.runs.values():
            self._view.line(now, _left_alive(state, run), "bad")
        totals = state.totals
        left = bool(state.queue or state.interrupted or (state.input_open and totals.accepted))
        left = left or any(_is_out_of_reach(state, run) for run in state.runs.values())
        if self._single and not totals.rejected and not left:
            return
        bad = bool(self._failures or totals.failed)
        self._view.line(now, self._summary(state, now), "bad" if bad else "good")
        for _, failure in self._failures:
            self._view.line(now, f"  {failure}", "bad")
        earlier = state.before.failed + state.before.rejected
        unlisted = totals.failed + totals.rejected - len(self._failures) - earlier
        if unlisted > 0:
            self._view.line(now, f"  and {words.count(unlisted, 'more failure')}", "bad")
        if earlier > 0:
            self._view.line(now, f"  and {words.count(earlier, 'failure')} before", "bad")
        if left:
            text = f"to go on with what is left: {self._how_to_go_on}"
            self._view.line(now, text, "notice")

    def _summary(self, state: State, now: Timestamp) -> str:
        totals = state.totals
        parts = [f"{words.count(totals.ok, 'job')} ok", f"{totals.failed:,} failed"]
        if totals.cancelled:
            parts.append(f"{totals.cancelled:,} cancelled")
        if totals.stopped:
            parts.append(f"{totals.stopped:,} stopped")
        if state.runs:
            parts.append(f"{len(state.runs):,} still there")
        if totals.dropped:
            parts.append(f"{totals.dropped:,} no longer on the list")
        if totals.rejected:
            parts.append(f"{words.count(totals.rejected, 'line')} left out")
        if state.queue:
            more = " and the rest of the input" if state.input_open else ""
            parts.append(f"{len(state.queue):,}{more} not started")
        elif state.input_open:
            parts.append("the rest of the input not read")
        wall = words.duration(now - (self._began if self._began is not None else now))
        where = f"; logs in {self._logs}" if self._logs and totals.finished else ""
        return f"{', '.join(parts)}; {wall}, {_gpu_time(totals)}{where}"

    def _started(self, run: Run, now: Timestamp) -> None:
        text = f"{run.job.words} started {run.status.placement.words}"
        tried = run.job.failures + run.job.losses
        again = f" (try {tried + 1})" if tried else ""
        self._say(now, f"{text}{again}: {_command(run.job.spec)}", "plain")

    def _finished(
        self, ended: EndedRun, leftovers: int, event: JobFinished, now: Timestamp
    ) -> None:
        job, where = ended.job.words, ended.placement.words
        match event.outcome:
            case "ok":
                if not self._single:
                    text = f"{job} ok after {words.duration(ended.seconds)} {where}"
                    self._say(now, text, "good")
            case "stopped":
                lasted = words.duration(ended.seconds)
                text = f"{job} stopped: {how_it_ended(ended)} after {lasted} {where}"
                self._say(now, text, "notice")
            case "cancelled":
                text = f"{job} cancelled after {words.duration(ended.seconds)} {where}"
                if isinstance(ended.ending, Lost) and ended.ending.why:
                    text += f": {ended.ending.why}"
                self._say(now, text, "notice")
            case "failed":
                self._failed(ended, now)
        self._tell_leftovers(job, leftovers, now)

    def _requeued(
        self, ended: EndedRun, leftovers: int, event: JobRequeued, now: Timestamp
    ) -> None:
        job = ended.job.words
        match event.why:
            case "survivor":
                text = f"{job} was stopped; it is queued again"
            case "lost":
                text = f"{job} is lost: {how_it_ended(ended)}; it is queued again"
            case "contention":
                lasted = words.duration(ended.seconds)
                where = ended.placement.words
                text = f"{job} gave way after {lasted} {where}; it is queued again"
            case "leaving":
                lasted = words.duration(ended.seconds)
                where = ended.placement.words
                text = f"{job} was stopped after {lasted} {where}, which goes; it is queued again"
            case "strangers_grew":
                text = f"{job} ran out of memory since others took more; it is queued again"
            case "packed_too_tightly":
                alone = "on a GPU for itself" if event.alone else self._more_room(event)
                text = f"{job} ran out of memory beside others of this run; {alone}"
            case "failed":
                delay = words.duration(event.not_before - now)
                text = f"{job} failed: {self._ending_of(ended)}; trying again in {delay}"
        self._say(now, text, "notice")
        self._tell_leftovers(job, leftovers, now)

    def _more_room(self, event: JobRequeued) -> str:
        return f"queued again with {words.size(event.needs_bytes or 0)} for it"

    def _added(self, first: JobId, how_many: int, now: Timestamp) -> None:
        numbers = f"job {first}" if how_many == 1 else f"jobs {first}-{first + how_many - 1}"
        self._say(now, f"added by request: {numbers}", "notice")

    def _retried(self, jobs: tuple[JobId, ...], now: Timestamp) -> None:
        self._failures = [failure for failure in self._failures if failure[0] not in jobs]
        self._say(now, f"queued again by request: {_numbers(jobs)}", "notice")

    def _failed(self, ended: EndedRun, now: Timestamp) -> None:
        text = f"{ended.job.words} failed: {self._ending_of(ended)}: {_command(ended.job.spec)}"
        log = self._shown(ended.log)
        self._list_failure(ended.job.id, text if log is None else f"{text} ({log})")
        self._view.line(now, text, "bad")
        self._last_failure = ended
        self._show_log(ended, now)

    def _show_log(self, ended: EndedRun, now: Timestamp) -> None:
        if ended.log is None:
            return
        self._view.line(now, f"  its log: {self._shown(ended.log)}", "bad")
        for line in self._tail(ended.log, _TAIL_LINES):
            self._view.line(now, f"  | {words.shortened(words.printable(line), 200)}", "plain")

    def _ending_of(self, ended: EndedRun) -> str:
        started = not isinstance(ended.ending, NotStarted)
        memory = f"; it ran out of the GPU's memory{self._held.get(ended.key, '')}"
        lasted = f" after {words.duration(ended.seconds)}" if started else ""
        where = f" {ended.placement.words}" if started or ended.placement.gpus else ""
        return f"{how_it_ended(ended)}{lasted}{where}{memory if ended.out_of_memory else ''}"

    def _shown(self, path: str | None) -> str | None:
        return None if path is None else words.printable(path.removeprefix(self._here))

    def _tell_leftovers(self, job: str, leftovers: int, now: Timestamp) -> None:
        if leftovers:
            processes = "1 process" if leftovers == 1 else f"{leftovers} processes"
            text = f"{job} left {processes} behind; stopping what is left"
            self._say(now, text, "notice")

    def _withheld(self, event: GpuWithheld, state: State, now: Timestamp) -> None:
        watch = state.gpus.get(event.gpu)
        name = (
            label(watch.latest, with_host=state.policy.spans_hosts)
            if watch is not None
            else event.gpu.uuid
        )
        jobs = {run.job for run in event.runs}
        self._failures = [failure for failure in self._failures if failure[0] not in jobs]
        numbers = ", ".join(str(job) for job in sorted(jobs))
        text = (
            f"GPU {name} is withheld: jobs {numbers} failed there at once, one after the other,"
            " while others do well elsewhere; they are tried on other GPUs (--no-guard: not so)"
        )
        self._view.line(now, text, "bad")

    def _halted(self, event: Halted, state: State, now: Timestamp) -> None:
        running = words.count(len(state.runs), "running job")
        what = f"stopping {running}" if event.stop else f"waiting for {running}"
        text = f"{event.why}: starting nothing more"
        self._view.line(now, f"{text}; {what}" if state.runs else text, "bad")
        if event.why.startswith(THE_COMMAND_FAILS) and self._last_failure is not None:
            self._show_log(self._last_failure, now)
            text = f"to go on all the same: {self._how_to_go_on} --no-guard"
            self._view.line(now, text, "notice")

    def _list_failure(self, job: JobId | None, text: str) -> None:
        if len(self._failures) < _MOST_FAILURES_LISTED:
            self._failures.append((job, text))

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

    def _maybe_say_why(self, wait: Wait, now: Timestamp, *, hurry: bool, often: bool) -> None:
        patience = _SAY_WHY_WAITING_AFTER_SECONDS if hurry else _SAY_WHY_IDLING_AFTER_SECONDS
        again = _SAY_WHY_WAITING_AGAIN_SECONDS if often else _SAY_WHY_IDLING_AGAIN_SECONDS
        again_if_new = _SAY_WHAT_IS_NEW_AFTER_SECONDS if hurry else _SAY_WHY_WAITING_AGAIN_SECONDS
        if self._waiting_since is None:
            self._waiting_since = now
        self._say_why_at = max(self._waiting_since + patience, self._said_why_at + again_if_new)
        if now < self._say_why_at:
            return  # whatever it is
        why = wait.why
        kind = _DIGITS.sub("", why)
        if kind == self._said_kind:  # nothing but numbers may have changed
            self._say_why_at = max(self._say_why_at, self._said_why_at + again)
        if now >= self._say_why_at:
            self._said_why_at, self._said_kind = now, kind
            self._say_why_at = float("inf")  # until the next decision
            self._say(now, f"waiting: {why}", "notice")

    def _tell_hosts(self, state: State, now: Timestamp) -> None:
        troubles = {host: trouble.why for host, trouble in state.troubles.items()}
        for host, why in troubles.items():
            kind = _DIGITS.sub("", why)
            if kind != self._troubles.get(host) and why != BEING_STARTED:
                self._say(now, why if host in why else f"{host}: {why}", "notice")
            self._troubles[host] = kind
        for host in [host for host in self._troubles if host not in troubles]:
            del self._troubles[host]
            self._present.discard(host)
        self._present &= state.hosts.keys()
        seen = state.hosts.keys() & state.cards.keys() - troubles.keys()
        for host in sorted(seen - self._present):
            self._present.add(host)
            has = words.count(len([key for key in state.gpus if key.host == host]), "GPU")
            self._say(now, f"{host} is here, with {has}", "plain")
        for name, host_now in state.hosts.items():
            if host_now.leaves and name not in self._leaving:
                self._leaving.add(name)
                self._say(now, f"{name} leaves soon: nothing more is started there", "notice")

    def _tell_troubles(self, state: State, now: Timestamp) -> None:
        if state.policy.spans_hosts:
            self._tell_hosts(state, now)
            return
        troubles = {host: trouble.why for host, trouble in state.troubles.items()}
        for host in troubles.keys() - self._troubles.keys():
            self._say(now, f"nothing new is started: {troubles[host]}", "notice")
        for _ in self._troubles.keys() - troubles.keys():
            self._say(now, "the driver answers again", "notice")
        self._troubles = troubles

    def _postponed(self, job: str, why: str, now: Timestamp) -> None:
        if why != self._said_postponed:
            self._say(now, f"{job} cannot be started yet: {why}; trying again", "notice")
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


def _gpu_time(totals: Totals) -> str:
    text = f"{totals.gpu_seconds / 3600:.2f} GPU-hours"
    if not totals.yields:
        return text
    runs = words.count(totals.yields, "run")
    return (
        f"{text}, {totals.yielded_gpu_seconds / 3600:.2f} of them in {runs} that gave way to others"
    )


def _is_out_of_reach(state: State, run: Run) -> bool:
    return is_out_of_reach(state, run.status.placement.host)


def _left_alive(state: State, run: Run) -> str:
    where = run.status.placement.words
    if _is_out_of_reach(state, run):
        return f"{run.job.words} may still run {where}, which is out of reach"
    match run.status:
        case Stopping(process=process) | Running(process=process):
            return (
                f"{run.job.words} cannot be killed and is still there (pid {process.pid}) {where}"
            )
        case Starting():
            return f"{run.job.words} may be about to start {where}"
        case _:
            return f"{run.job.words} left processes behind that cannot be killed {where}"


def _job(state: State, key: RunKey) -> str:
    """What to call the job of a run, which may be queued again by now."""
    if key in state.runs:
        return state.runs[key].job.words
    job = next((job for job in state.queue if job.id == key.job), None)
    return f"job {key.job}" if job is None else job.words


def _numbers(jobs: tuple[JobId, ...]) -> str:
    if not jobs:
        return "no job"
    if len(jobs) > _MOST_NUMBERS:
        return words.count(len(jobs), "job")
    return f"job{'' if len(jobs) == 1 else 's'} {', '.join(map(str, jobs))}"


def _command(spec: JobSpec) -> str:
    return words.shortened(words.printable(spec.command), _COMMAND_WIDTH)
