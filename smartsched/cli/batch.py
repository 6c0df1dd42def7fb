"""An agent in a job of a batch system's: what it is granted there, and until when; and that what is
ended together with that job is no failure of the commands that ran in it."""

import signal
from collections.abc import Collection, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from smartsched.config import cores_of_batch_job, end_of_batch_job, offered_gpus
from smartsched.core.actions import Launch
from smartsched.core.events import (
    Event,
    RunAdopted,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPostponed,
    RunRevoked,
)
from smartsched.core.model import Ending, Killed, Lost, Run, RunKey, Timestamp
from smartsched.errors import UsageError
from smartsched.ports import LocalLauncher

# The batch system signals all processes of its job one after the other: a run may be seen to end
# before our own signal has come. One that looks like that is waited with for longer; the others may
# have caught the signal, and have saved their state, or not.
_IN_DOUBT_SECONDS = 2.0
_IN_SOME_DOUBT_SECONDS = 0.25
_WHY = "its pilot was ended"
_News = RunExited | RunCleared | RunPostponed


class Pilot:
    """The job that we are in."""

    def __init__(self, number: str) -> None:
        """Raises UsageError where no GPUs were granted: those of the node are others' then."""
        self.number = number
        self.cores = cores_of_batch_job()
        self.is_ended = False  # by the batch system; to be set by whoever hears its signal
        if offered_gpus() is None:
            raise UsageError(
                "this job was granted no GPU (CUDA_VISIBLE_DEVICES is not set): ask for some in the"
                " options of sbatch, as with --gres=gpu:1"
            )

    def leaves_at(self, warn_seconds: float) -> Timestamp:
        """inf: nobody has said until when."""
        end = end_of_batch_job()
        return float("inf") if end is None else end - warn_seconds

    def launcher(self, launcher: LocalLauncher) -> LocalLauncher:
        return _Launcher(launcher, self)


class _Doubt(Struct, frozen=True):
    event: RunExited
    until: Timestamp


class _Launcher:
    """A LocalLauncher. Runs that are ended with the job are lost, and not failed."""

    def __init__(self, launcher: LocalLauncher, pilot: Pilot) -> None:
        self._launcher = launcher
        self._pilot = pilot
        self._asked: set[RunKey] = set()  # to end, by us
        self._doubts: dict[RunKey, _Doubt] = {}
        self._later: list[RunCleared] = []  # of runs whose end is in doubt

    def launch(self, launch: Launch, now: Timestamp) -> RunLaunched | RunPostponed | RunExited:
        return self._launcher.launch(launch, now)

    def adopt(
        self, run: Run, now: Timestamp
    ) -> Sequence[RunLaunched | RunRevoked | RunAdopted] | None:
        return self._launcher.adopt(run, now)

    def terminate(self, run: RunKey) -> None:
        if self._may_ask(run):
            self._launcher.terminate(run)

    def checkpoint(self, run: RunKey) -> None:
        if self._may_ask(run):
            self._launcher.checkpoint(run)

    def kill(self, run: RunKey) -> None:
        if self._may_ask(run):
            self._launcher.kill(run)

    def take(self, now: Timestamp) -> Sequence[_News]:
        return [*self._certain(now), *self._news(now)]

    def written(self, events: Sequence[Event]) -> None:
        self._launcher.written(events)

    def living(self) -> Collection[RunKey]:
        return {*self._launcher.living(), *self._doubts}

    def wake_at(self) -> Timestamp:
        return min([self._launcher.wake_at(), *(doubt.until for doubt in self._doubts.values())])

    def _may_ask(self, run: RunKey) -> bool:
        if run in self._launcher.living():
            self._asked.add(run)
            return True
        return False

    def _news(self, now: Timestamp) -> Iterator[_News]:
        for event in self._launcher.take(now):
            if isinstance(event, RunExited) and event.run not in self._asked:
                if self._pilot.is_ended:
                    yield self._judged(event)
                else:
                    self._doubts[event.run] = _Doubt(event, now + _doubt_seconds(event.ending))
            elif isinstance(event, RunCleared) and event.run in self._doubts:
                self._later.append(event)
            else:
                yield event

    def _certain(self, now: Timestamp) -> Iterator[_News]:
        """Those that it is known of by now who has ended them."""
        for run, doubt in list(self._doubts.items()):
            if self._pilot.is_ended or now >= doubt.until:
                del self._doubts[run]
                yield self._judged(doubt.event)
        for cleared in [each for each in self._later if each.run not in self._doubts]:
            self._later.remove(cleared)
            yield cleared

    def _judged(self, event: RunExited) -> RunExited:
        """What ends well after the job was told to end may have saved its state; it has not done
        its work."""
        return replace(event, ending=Lost(_WHY)) if self._pilot.is_ended else event


def _doubt_seconds(ending: Ending) -> float:
    return _IN_DOUBT_SECONDS if may_be_the_systems(ending) else _IN_SOME_DOUBT_SECONDS


def may_be_the_systems(ending: Ending) -> bool:
    """Whether a batch system that ends its job would end a run so."""
    return ending in (Killed(signal.SIGTERM), Killed(signal.SIGKILL))
