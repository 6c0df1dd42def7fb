"""A real Processes with a real Waiter, driven by hand as the loop drives it."""

import os
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

import psutil

from smartsched.core.actions import Launch
from smartsched.core.events import RunCleared, RunExited, RunLaunched, RunPostponed
from smartsched.core.model import (
    Ending,
    GpuKey,
    GpuUuid,
    HostName,
    JobId,
    JobSpec,
    PlacedGpu,
    Placement,
    RunKey,
)
from smartsched.edges.attempts import WRAPPER, Attempts, leased_wrapper
from smartsched.edges.clock import SteadyClock
from smartsched.edges.family import Family
from smartsched.edges.lease import Lease, uptime_seconds
from smartsched.edges.outputs import LogFiles
from smartsched.edges.processes import Output, Processes
from smartsched.edges.spawning import Spawner
from smartsched.edges.waiter import Waiter
from smartsched.edges.watchdog import watchdog

PATIENCE_SECONDS = 30.0
HOST = HostName("here")


def placement(*labels: str) -> Placement:
    return Placement(
        tuple(PlacedGpu(GpuKey(HOST, GpuUuid(f"GPU-{label}")), label, label) for label in labels)
    )


def launch_of(
    command: str,
    job: int = 1,
    attempt: int = 1,
    gpus: tuple[str, ...] = ("3",),
    directory: str = "",
) -> Launch:
    key = RunKey(JobId(job), attempt)
    return Launch(key, JobSpec(command, "list:1", directory), placement(*gpus))


def lease_for(
    folder: Path, run_name: str, seconds: float = 3600.0, grace_seconds: float = 2.0
) -> Lease:
    """Of the jobs of this run, from now on."""
    lease = Lease(run_name, grace_seconds=grace_seconds, places=[folder])
    lease.renew(uptime_seconds() + seconds)
    return lease


def our_children() -> set[int]:
    """Pids."""
    return {child.pid for child in psutil.Process().children()}


class Dispatcher:
    """Starts commands and waits for what becomes of them."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        environment: dict[bytes, bytes] | None = None,
        shell: str = "/bin/bash",
        output: Callable[[Waiter], Output] | None = None,
        other_children: Callable[[], Collection[int]] = tuple,
        on_other_end: Callable[[int], None] = lambda _: None,
        run_name: str | None = None,
        lease: Lease | None = None,
    ) -> None:
        """`folder`: of the run, perhaps begun by an earlier dispatcher of the same name. `lease`:
        of its runs; None: there is none."""
        self._others = our_children()
        # jobs are known by it: tests that run at the same time must not find each other's
        self.run_name = run_name or f"test-{uuid.uuid4()}"
        self.clock = SteadyClock()
        self.waiter = Waiter(self.clock)
        stack.callback(self.waiter.close)
        self.logs = LogFiles(folder / "logs", resumed=True)
        self.output: Output = self.logs if output is None else output(self.waiter)
        self.attempts_folder = folder / "jobs"
        self.attempts_folder.mkdir(0o700, exist_ok=True)
        self.attempts = Attempts(self.attempts_folder)
        spawner = Spawner(
            shell=shell,
            environment=dict(os.environb) if environment is None else environment,
            run_name=self.run_name,
            run_id=self.run_name,
            wrapper=WRAPPER if lease is None else leased_wrapper(watchdog()),
            lease=lease,
        )
        stack.callback(spawner.close)
        self.processes = Processes(
            self.waiter,
            run_id=self.run_name,
            spawner=spawner,
            output=self.output,
            attempts=self.attempts,
            family=Family(other_children),
            on_other_end=on_other_end,
            lease=lease,
        )
        stack.callback(self.processes.close)
        self.events: list[RunExited | RunCleared | RunPostponed] = []
        self.writes = True  # False: the journal is behind

    def start(self, command: str, job: int = 1, attempt: int = 1, *gpus: str) -> RunKey:
        launch = launch_of(command, job, attempt, gpus or ("3",))
        event = self.launch(launch)
        assert isinstance(event, RunLaunched), event
        return launch.run

    def launch(self, launch: Launch) -> RunLaunched | RunPostponed | RunExited:
        return self.processes.launch(launch, self.clock.now())

    def children(self) -> set[int]:
        """Of ours that came with it; what lasts as long as the session may be there as well."""
        return our_children() - self._others

    def until(self, condition: Callable[[], object]) -> None:
        """Do as the loop does until the condition is true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"still not so; seen: {self.events}"
            now = self.clock.now()
            self.waiter.wait(min(now + 0.02, self.processes.wake_at()))
            self.take()

    def take(self) -> None:
        """One tick of the loop."""
        events = self.processes.take(self.clock.now())
        self.events += events
        if self.writes:
            self.processes.written(events)

    def exits_of(self, run: RunKey) -> list[RunExited]:
        return [e for e in self.events if isinstance(e, RunExited) and e.run == run]

    def exit_of(self, run: RunKey) -> RunExited:
        self.until(lambda: self.exits_of(run))
        [event] = self.exits_of(run)
        return event

    def cleared(self, run: RunKey) -> None:
        self.until(lambda: any(isinstance(e, RunCleared) and e.run == run for e in self.events))

    def run(self, command: str, job: int = 1) -> Ending:
        return self.exit_of(self.start(command, job)).ending

    def log(self, job: int = 1, attempt: int = 1) -> str:
        path = self.logs.path(RunKey(JobId(job), attempt))
        return Path(path).read_text(errors="surrogateescape") if os.path.exists(path) else ""

    def said(self, job: int = 1) -> list[str]:
        return self.log(job).split()

    def record(self, job: int = 1, attempt: int = 1) -> Path:
        return Path(self.attempts.record_path(RunKey(JobId(job), attempt)))
