"""Submits, watches and cancels the pilots of a run; how many there should be, others decide.

What Slurm has under the name of the run is what there is: a submission of which it is not known
what came of it, or one by an earlier dispatcher, is found by that name rather than made again.
"""

import os
from collections.abc import Mapping, Sequence

from msgspec import Struct

from smartsched.core import slurm
from smartsched.core.model import Timestamp
from smartsched.core.pilot_news import (
    Answers,
    Ended,
    Ends,
    PilotNews,
    Refused,
    Runs,
    Silent,
    Submitted,
    Waits,
)
from smartsched.core.slurm import PilotId, SlurmJob, complaint
from smartsched.edges.slurm.programs import Program, Programs, Said
from smartsched.ports import FdWatcher

# Longer than Slurm's programs themselves wait for an answer, as most are set up.
_PATIENCE_SECONDS = 60.0
# What runs is known from its agent; Slurm has to tell only of its end.
_RUNNING_TAKES_TIMES = 3.0
_LOOK_AFTER_A_CHANGE_SECONDS = 5.0
_FIRST_BACKOFF_SECONDS = 5.0
_LONGEST_BACKOFF_SECONDS = 300.0
_SOME_SECONDS = 60.0  # the end of a pilot is told again when it has moved by more


class _Known(Struct):
    phase: slurm.Phase | None = None  # None: nothing was told of it yet
    reason: str = ""
    ends_at: Timestamp | None = None
    is_missing: bool = False  # Slurm did not name it the last time


class Slurm:
    """One of its programs runs at a time, and nobody waits for it."""

    def __init__(
        self,
        fds: FdWatcher,
        *,
        arguments: Sequence[str],
        script: str,
        name: str,
        environment: Mapping[bytes, bytes],
        resumed: bool,
        poll_seconds: float = 20.0,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """`arguments`, `script`: as `core.slurm` makes them. `name`: of the jobs, this run's alone,
        without commas. `resumed`: whether to look first for pilots that there are already."""
        self._programs = Programs(fds, environment, patience_seconds)
        self._arguments = list(arguments)
        self._script = os.fsencode(script)
        self._name = name
        self._poll_seconds = poll_seconds
        self._pilots: dict[PilotId, _Known] = {}
        self._to_submit = 0
        self._to_withdraw: set[PilotId] = set()
        self._to_cancel: set[PilotId] = set()
        self._cancel_at: Timestamp = float("-inf")
        self._cancel_failures = 0  # in a row
        self._unclear: list[str] = []  # submissions that may have been taken, and what was said
        self._is_known = not resumed
        self._is_silent = False
        self._look_at: Timestamp = float("-inf") if resumed else float("inf")
        self._silences = 0  # in a row
        self._news: list[PilotNews] = []

    def submit(self) -> None:
        """One more pilot. Submitted or Refused follows, however long that takes."""
        self._to_submit += 1

    def withdraw(self, pilot: PilotId) -> None:
        """Cancel it if it has not begun."""
        self._to_withdraw.add(pilot)

    def cancel(self, pilot: PilotId) -> None:
        """Whatever it does; its processes are told to end, and killed after Slurm's KillWait."""
        self._to_cancel.add(pilot)

    def submit_no_more(self) -> None:
        """What has not been submitted yet is refused."""
        self._news += [Refused("it is not wanted any more")] * self._to_submit
        self._to_submit = 0

    def look_soon(self, now: Timestamp) -> None:
        """Something has happened to one of them."""
        if not self._is_silent:
            self._look_at = min(self._look_at, now)

    def take(self, now: Timestamp) -> Sequence[PilotNews]:
        """What is new since the last call."""
        self._listen(now)
        while not self._programs.is_busy() and (program := self._due(now)) is not None:
            self._start(program, now)
            self._listen(now)
        news, self._news = self._news, []
        return news

    def wake_at(self) -> Timestamp:
        if self._news:
            return float("-inf")
        if self._programs.is_busy():
            return self._programs.wake_at()
        return min(self._due_times().values())

    def is_settled(self) -> bool:
        """Whether nothing that was asked for is still to be done."""
        left = self._to_submit or self._to_withdraw or self._to_cancel or self._unclear
        return not left and not self._programs.is_busy()

    def pids(self) -> list[int]:
        """Of children that run, or that nobody has awaited yet."""
        return self._programs.pids()

    def ended(self, pid: int) -> None:
        """Somebody has awaited a child of ours, perhaps one of these."""
        self._programs.ended(pid)

    def close(self) -> None:
        """Pilots go on."""
        self._programs.close()

    # --- what is done next

    def _due(self, now: Timestamp) -> Program | None:
        due = ((at, program) for program, at in self._due_times().items() if at <= now)
        return next((program for _, program in due), None)

    def _due_times(self) -> dict[Program, Timestamp]:
        """By how urgent they are."""
        times: dict[Program, Timestamp] = {"squeue": self._look_at}
        if self._is_known and not self._is_silent and not self._unclear:
            if self._to_cancel or self._to_withdraw:
                times["scancel"] = self._cancel_at
            if self._to_submit:
                times["sbatch"] = float("-inf")
        return times

    def _start(self, program: Program, now: Timestamp) -> None:
        match program:
            case "squeue":
                arguments = slurm.squeue_arguments(self._name, os.getuid())
                self._programs.start("squeue", arguments, now)
            case "scancel":
                # what was withdrawn may have begun in between, and work
                chosen = frozenset(self._to_cancel or self._to_withdraw)
                condition = [] if self._to_cancel else ["--state=PENDING"]
                arguments = [*condition, *sorted(chosen)]
                self._programs.start("scancel", arguments, now, concerns=chosen)
            case "sbatch":
                self._to_submit -= 1
                self._programs.start("sbatch", self._arguments, now, stdin=self._script)

    # --- what came of it

    def _listen(self, now: Timestamp) -> None:
        said = self._programs.take(now)
        if said is None:
            return
        match said.program:
            case "sbatch":
                self._conclude_submission(said, now)
            case "scancel":
                self._conclude_cancellation(said, now)
            case "squeue" if said.is_fine:
                self._reconcile(slurm.parse_jobs(said.output), now)
            case "squeue":
                self._fall_silent(complaint("squeue", said.errors), now)

    def _conclude_submission(self, said: Said, now: Timestamp) -> None:
        pilot = slurm.parse_submitted(said.output)
        if pilot is not None:
            self._welcome(pilot)
            self._look_after_a_change(now)
        elif not said.has_run:
            self._news.append(Refused(complaint("sbatch", said.errors)))
        else:
            self._unclear.append(complaint("sbatch", said.errors))
            self.look_soon(now)

    def _conclude_cancellation(self, said: Said, now: Timestamp) -> None:
        if said.is_fine:
            self._to_withdraw -= said.concerns
            self._to_cancel -= said.concerns
            self._cancel_failures = 0
            self._look_after_a_change(now)
            return
        # they may be gone by now: that a look shows
        self._cancel_at = now + _backoff(self._cancel_failures)
        self._cancel_failures += 1
        self.look_soon(now)

    def _fall_silent(self, why: str, now: Timestamp) -> None:
        if not self._is_silent:
            self._news.append(Silent(why))
        self._is_silent = True
        self._look_at = now + _backoff(self._silences)
        self._silences += 1

    def _welcome(self, pilot: PilotId) -> None:
        if pilot not in self._pilots:
            self._pilots[pilot] = _Known()
            self._news.append(Submitted(pilot))

    # --- what there is

    def _reconcile(self, jobs: Sequence[SlurmJob], now: Timestamp) -> None:
        named = {job.pilot: job for job in jobs}
        for pilot, job in named.items():
            if pilot not in self._pilots and job.phase != "ended":
                self._welcome(pilot)
                del self._unclear[:1]
        self._news += [Refused(why) for why in self._unclear]
        self._unclear.clear()
        for pilot in list(self._pilots):
            self._compare(pilot, named.get(pilot), now)
        self._to_cancel &= self._pilots.keys()
        self._to_withdraw &= self._pilots.keys()
        if self._is_silent or not self._is_known:
            self._news.append(Answers())
        self._is_silent, self._is_known, self._silences = False, True, 0
        self._plan_the_next_look(now)

    def _compare(self, pilot: PilotId, job: SlurmJob | None, now: Timestamp) -> None:
        known = self._pilots[pilot]
        if job is None and not known.is_missing:
            known.is_missing = True  # it may be too new
            return
        if job is None or job.phase == "ended":
            how = "Slurm knows it no more" if job is None else _how(job)
            del self._pilots[pilot]
            self._news.append(Ended(pilot, how))
            return
        ends_at = None if job.seconds_left is None else now + job.seconds_left
        is_news = (known.phase, known.reason) != (job.phase, job.reason)
        if job.phase == "runs":
            is_news = is_news or _has_moved(known.ends_at, ends_at)
        known.is_missing = False
        if is_news:
            known.phase, known.reason, known.ends_at = job.phase, job.reason, ends_at
            self._news.append(_news_of(job, ends_at))

    def _plan_the_next_look(self, now: Timestamp) -> None:
        if not self._pilots:
            self._look_at = float("inf")
            return
        all_run = all(k.phase == "runs" and not k.is_missing for k in self._pilots.values())
        self._look_at = now + self._poll_seconds * (_RUNNING_TAKES_TIMES if all_run else 1.0)

    def _look_after_a_change(self, now: Timestamp) -> None:
        after = min(_LOOK_AFTER_A_CHANGE_SECONDS, self._poll_seconds)
        self._look_at = min(self._look_at, now + after)


def _backoff(failures: int) -> float:
    return min(_FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 16), _LONGEST_BACKOFF_SECONDS)


def _how(job: SlurmJob) -> str:
    return f"{job.state} ({job.reason})" if job.reason else job.state


def _has_moved(before: Timestamp | None, now: Timestamp | None) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(before - now) > _SOME_SECONDS


def _news_of(job: SlurmJob, ends_at: Timestamp | None) -> PilotNews:
    match job.phase:
        case "waits":
            return Waits(job.pilot, job.reason)
        case "runs":
            return Runs(job.pilot, job.node, ends_at)
        case _:
            return Ends(job.pilot)
