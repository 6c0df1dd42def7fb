"""A dispatcher that dies: a process that launches jobs and is killed, so that another can adopt."""

import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

from smartsched.core.model import (
    Job,
    JobId,
    JobSpec,
    Lingering,
    ProcessId,
    Run,
    RunKey,
    Running,
    RunStatus,
    Starting,
    Stopping,
)
from tests.edges.jobs import placement
from tests.waiting import wait_until

_ROOT = Path(__file__).parents[2]
_PROGRAM = """
import json, sys
from contextlib import ExitStack
from pathlib import Path
from tests.edges.jobs import Dispatcher, launch_of, lease_for

folder, run_name, lease_seconds, *commands = sys.argv[1:]
with ExitStack() as stack:
    lease = lease_for(Path(folder), run_name, float(lease_seconds)) if lease_seconds else None
    dispatcher = Dispatcher(stack, Path(folder), run_name=run_name, lease=lease)
    for job, command in enumerate(commands, 1):
        event = dispatcher.launch(launch_of(command, job))
        print(json.dumps([event.at, *event.process]), flush=True)
    sys.stdin.read()  # until it is killed, or whoever started it is gone
"""


@dataclass(frozen=True, slots=True)
class Launched:
    """What a predecessor knew of a job."""

    key: RunKey
    at: float
    process: ProcessId
    log: str

    def run(self, status: RunStatus) -> Run:
        return Run(self.key, Job(self.key.job, JobSpec("", "list:1"), attempts=1), status)

    @property
    def starting(self) -> Run:
        return self.run(Starting(self.at, placement("3")))

    @property
    def running(self) -> Run:
        return self.running_as(self.process)

    def running_as(self, process: ProcessId) -> Run:
        return self.run(Running(self.at, placement("3"), process, self.log))

    def stopping(self, *, killed_at: float | None) -> Run:
        status = Stopping(
            self.at, placement("3"), self.process, self.log, self.at, "asked", killed_at
        )
        return self.run(status)

    @property
    def lingering(self) -> Run:
        return self.run(Lingering(self.at, placement("3"), asked=False, killed_at=None))


class Predecessor:
    """Whose jobs go on without it."""

    def __init__(self, folder: Path, lease_seconds: float | None = None) -> None:
        """`lease_seconds`: how long its jobs may run, unless somebody renews their lease; None:
        they are under none."""
        self._lease_seconds = "" if lease_seconds is None else str(lease_seconds)
        self.run_name = f"test-{uuid.uuid4()}"
        self.folder = folder
        self._dispatcher: subprocess.Popen[str] | None = None

    def launch(self, *commands: str) -> list[Launched]:
        """Jobs 1, 2 and so on."""
        self._dispatcher = subprocess.Popen(
            [
                *(sys.executable, "-c", _PROGRAM, str(self.folder), self.run_name),
                *(self._lease_seconds, *commands),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
        )
        assert self._dispatcher.stdout is not None
        launched = []
        for job in range(1, len(commands) + 1):
            at, pid, ticks, boot = json.loads(self._dispatcher.stdout.readline())
            key = RunKey(JobId(job), 1)
            log = str(self.folder / "logs" / f"{job:04d}.log")
            launched.append(Launched(key, at, ProcessId(pid, ticks, boot), log))
        return launched

    def die(self) -> None:
        """As by an out-of-memory killer: nothing is tidied up."""
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            dispatcher.kill()
            dispatcher.communicate()

    def stop(self) -> None:
        """As a debugger does, or a terminal."""
        assert self._dispatcher is not None
        self._dispatcher.send_signal(signal.SIGSTOP)

    def jobs(self) -> list[psutil.Process]:
        """Whatever lives of its run. Known by a name that nobody else has ever had."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("SMARTSCHED_RUN") == self.run_name
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def kill_jobs(self) -> None:
        """For the end of a test; psutil does not signal whoever got a pid later."""

        def nobody_is_left() -> bool:
            jobs = self.jobs()
            for process in jobs:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            return not jobs

        self.die()
        wait_until(nobody_is_left, "nobody is left of the run")
