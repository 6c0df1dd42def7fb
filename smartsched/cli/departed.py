"""What pilots that have ended have left behind: an agent that could not reach its dispatcher any
more has told nobody how runs have ended, but their own records say it.

It is for the file system that nodes share; where there is none, nothing is found.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from smartsched.cli.batch import may_be_the_systems
from smartsched.cli.host import this_host
from smartsched.cli.hosting import token_of
from smartsched.core.events import RunExited, RunLaunched
from smartsched.core.model import (
    HostName,
    ProcessId,
    Run,
    Running,
    Starting,
    Stopping,
    Timestamp,
)
from smartsched.edges.attempts import Attempts
from smartsched.edges.processes import as_shells_say
from smartsched.edges.runs import JOBS, RunFolder, Runs

_ENDED = "ended"


def mark_the_end(folder: RunFolder) -> None:
    """The batch system has told us to end: what ends from now on, it may have ended."""
    with suppress(OSError):
        os.close(folder.open_file(_ENDED, os.O_WRONLY | os.O_CREAT))


class Departed:
    """The folders of agents that are gone for good."""

    def __init__(self, agents: Path, run_id: str) -> None:
        """`agents`: the folder in which agents remember what they look after."""
        self._agents = agents
        self._run_id = run_id

    def endings(
        self, host: HostName, runs: Iterable[Run], now: Timestamp
    ) -> Iterator[RunLaunched | RunExited]:
        """How these have ended there, as far as that is certain."""
        folder = self._folder_of(host)
        attempts, doubtful_from = Attempts(folder / JOBS), _changed_at(folder / _ENDED)
        for run in runs:
            record = attempts.read(run.key)
            if record is None or record.status is None or record.changed_at >= doubtful_from:
                continue
            ending, at = as_shells_say(record.status), min(now, record.changed_at)
            if may_be_the_systems(ending):
                continue
            if isinstance(run.status, Starting):
                process = ProcessId(record.pid or 0, 0, "")
                yield RunLaunched(run.status.since, run.key, process, None)
            if isinstance(run.status, Starting | Running | Stopping):
                yield RunExited(at, run.key, ending, leftovers=0)

    def forget(self, host: HostName) -> None:
        """Nothing that is there is of use any more, unless somebody holds it."""
        folder = self._folder_of(host)
        if Runs(self._agents, this_host()).who_holds(folder.name) is None:
            shutil.rmtree(folder, ignore_errors=True)

    def _folder_of(self, host: HostName) -> Path:
        return self._agents / "runs" / token_of(self._run_id, host)


def _changed_at(path: Path) -> float:
    """inf: it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")
