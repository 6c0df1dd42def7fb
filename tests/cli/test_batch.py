"""An agent in a batch job: what ends together with that job has not failed."""

import signal
from collections.abc import Sequence

import pytest

from smartsched.cli.batch import Pilot
from smartsched.core.actions import Launch
from smartsched.core.events import Event, RunCleared, RunExited, RunLaunched
from smartsched.core.model import Ending, Exited, JobId, Killed, Lost, Run, RunKey
from smartsched.errors import UsageError

T0 = 1000.0
RUN = RunKey(JobId(1), 1)
LOST = Lost("its pilot was ended")


class Runs:
    """A LocalLauncher, of which tests say what has happened."""

    def __init__(self) -> None:
        self.news: list[RunExited | RunCleared] = []
        self.lives = {RUN}
        self.asked: list[RunKey] = []

    def ends(self, ending: Ending, leftovers: int = 0) -> None:
        self.news.append(RunExited(T0, RUN, ending, leftovers))
        self.lives.clear()

    def launch(self, launch: Launch, now: float) -> RunLaunched:
        raise NotImplementedError

    def adopt(self, run: Run, now: float) -> Sequence[RunLaunched]:
        raise NotImplementedError

    def take(self, _: float) -> Sequence[RunExited | RunCleared]:
        news, self.news = self.news, []
        return news

    def terminate(self, run: RunKey) -> None:
        self.asked.append(run)

    checkpoint = kill = terminate

    def living(self) -> set[RunKey]:
        return self.lives

    def wake_at(self) -> float:
        return float("inf")

    def written(self, events: Sequence[Event]) -> None: ...


@pytest.fixture
def pilot(monkeypatch: pytest.MonkeyPatch) -> Pilot:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return Pilot("17")


def test_without_gpus_that_were_granted_there_is_no_pilot():
    with pytest.raises(UsageError, match="this job was granted no GPU"):
        Pilot("17")


@pytest.mark.parametrize("ending", [Exited(0), Exited(3), Killed(signal.SIGSEGV)])
def test_runs_end_as_they_do_anywhere_unless_the_job_is_ended_in_a_moment(
    pilot: Pilot, ending: Ending
):
    """They may have caught the signal that comes to us as well."""
    runs = Runs()
    launcher = pilot.launcher(runs)

    runs.ends(ending)

    assert launcher.take(T0) == []
    assert launcher.wake_at() == T0 + 0.25
    assert launcher.take(T0 + 0.25) == [RunExited(T0, RUN, ending, 0)]


@pytest.mark.parametrize("ending", [Exited(0), Exited(3), Killed(signal.SIGTERM)])
def test_what_ends_after_the_job_was_told_to_end_is_lost(pilot: Pilot, ending: Ending):
    runs = Runs()
    launcher = pilot.launcher(runs)

    pilot.is_ended = True
    runs.ends(ending)

    assert launcher.take(T0) == [RunExited(T0, RUN, LOST, 0)]


@pytest.mark.parametrize("ending", [Exited(0), Exited(3), Killed(signal.SIGKILL)])
def test_what_ends_just_before_the_job_was_told_to_end_is_lost(pilot: Pilot, ending: Ending):
    runs = Runs()
    launcher = pilot.launcher(runs)
    runs.ends(ending)
    assert launcher.take(T0) == []

    pilot.is_ended = True

    assert launcher.take(T0 + 0.2) == [RunExited(T0, RUN, LOST, 0)]


def test_a_run_that_is_killed_may_have_been_so_with_the_job(pilot: Pilot):
    runs = Runs()
    launcher = pilot.launcher(runs)
    runs.ends(Killed(signal.SIGTERM), leftovers=1)
    runs.news.append(RunCleared(T0, RUN))

    assert launcher.take(T0) == []
    assert set(launcher.living()) == {RUN}
    assert launcher.wake_at() == T0 + 2
    launcher.terminate(RUN)
    pilot.is_ended = True

    assert launcher.take(T0 + 1) == [RunExited(T0, RUN, LOST, 1), RunCleared(T0, RUN)]
    assert set(launcher.living()) == set()
    assert runs.asked == []


def test_if_the_job_goes_on_it_was_killed_by_somebody_else(pilot: Pilot):
    runs = Runs()
    launcher = pilot.launcher(runs)
    runs.ends(Killed(signal.SIGTERM))

    assert launcher.take(T0) == []
    assert launcher.take(T0 + 2) == [RunExited(T0, RUN, Killed(signal.SIGTERM), 0)]


def test_what_we_have_asked_to_end_is_told_at_once_as_it_is(pilot: Pilot):
    runs = Runs()
    launcher = pilot.launcher(runs)
    launcher.terminate(RUN)
    pilot.is_ended = True
    runs.ends(Killed(signal.SIGTERM))

    assert launcher.take(T0) == [RunExited(T0, RUN, Killed(signal.SIGTERM), 0)]
