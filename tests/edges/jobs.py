"""A real Processes with a real Waiter, driven by hand as the loop drives it."""

import os
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

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
from smartsched.edges.clock import SteadyClock
from smartsched.edges.family import Family
from smartsched.edges.outputs import LogFiles
from smartsched.edges.processes import Output, Processes
from smartsched.edges.scripts import ScriptFolder
from smartsched.edges.waiter import Waiter

PATIENCE_SECONDS = 30.0
HOST = HostName("here")


def placement(*labels: str) -> Placement:
    return Placement(
        tuple(PlacedGpu(GpuKey(HOST, GpuUuid(f"GPU-{label}")), label, label) for label in labels)
    )


def launch_of(
    command: str, job: int = 1, attempt: int = 1, gpus: tuple[str, ...] = ("3",)
) -> Launch:
    key = RunKey(JobId(job), attempt)
    return Launch(key, JobSpec(command, "list:1"), placement(*gpus))


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
    ) -> None:
        # jobs are known by it: tests that run at the same time must not find each other's
        self.run_name = f"test-{uuid.uuid4()}"
        self.clock = SteadyClock()
        self.waiter = Waiter(self.clock)
        stack.callback(self.waiter.close)
        self.logs = LogFiles(folder)
        self.output: Output = self.logs if output is None else output(self.waiter)
        self.scripts = ScriptFolder(self.run_name)
        self.processes = Processes(
            self.waiter,
            shell=shell,
            environment=dict(os.environb) if environment is None else environment,
            run_name=self.run_name,
            output=self.output,
            scripts=self.scripts,
            family=Family(other_children),
        )
        stack.callback(self.processes.close)
        self.events: list[RunExited | RunCleared] = []

    def start(self, command: str, job: int = 1, attempt: int = 1, *gpus: str) -> RunKey:
        launch = launch_of(command, job, attempt, gpus or ("3",))
        event = self.launch(launch)
        assert isinstance(event, RunLaunched), event
        return launch.run

    def launch(self, launch: Launch) -> RunLaunched | RunPostponed | RunExited:
        return self.processes.launch(launch, self.clock.now())

    def until(self, condition: Callable[[], object]) -> None:
        """Do as the loop does until the condition is true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"still not so; seen: {self.events}"
            now = self.clock.now()
            self.waiter.wait(min(now + 0.02, self.processes.wake_at()))
            self.events += self.processes.take(self.clock.now())

    def exit_of(self, run: RunKey) -> RunExited:
        def exits() -> list[RunExited]:
            return [e for e in self.events if isinstance(e, RunExited) and e.run == run]

        self.until(exits)
        [event] = exits()
        return event

    def cleared(self, run: RunKey) -> None:
        self.until(lambda: any(isinstance(e, RunCleared) and e.run == run for e in self.events))

    def run(self, command: str, job: int = 1) -> Ending:
        return self.exit_of(self.start(command, job)).ending

    def log(self, job: int = 1) -> str:
        path = self.logs.path(RunKey(JobId(job), 1))
        return Path(path).read_text(errors="surrogateescape") if os.path.exists(path) else ""

    def said(self, job: int = 1) -> list[str]:
        return self.log(job).split()
