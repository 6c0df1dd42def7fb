"""Draws the README's pictures, dry-run.svg and live-view.svg, into this folder.

What the program itself draws is recorded, of the pretend GPUs and colleagues of `--simulate`. Time
is virtual: the pictures are made at once, and are the same whoever makes them.
"""

import contextlib
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from smartsched.core.apply import apply, replay
from smartsched.core.events import JobAccepted, RunBegan
from smartsched.core.model import Exited, GpuSample, JobSpec, Snapshot
from smartsched.core.policy import Policy
from smartsched.core.sight import see
from smartsched.core.state import State
from smartsched.core.survey import survey
from smartsched.edges.narrator import Narrator
from smartsched.edges.screen import LiveView, print_survey
from smartsched.loop import Loop
from smartsched.simulation.box import HOST, PretendBox, PretendJob, VirtualClock, commands_at_once
from smartsched.simulation.colleagues import GIB, Colleagues, Visit

_FOLDER = Path(__file__).parent
_GPUS, _SEED = 4, 2  # as in `make demo`
_BOX = f"--simulate {_GPUS},seed={_SEED}"
_BEGINS_AT = 1_760_000_400.0  # a morning, at nine
_SECONDS = 75  # of the run, when its picture is taken
_COLUMNS, _ROWS = 104, 19  # of its terminal
_COMMANDS = [
    f"python train.py --lr {lr} --bs {bs}" for lr in ("0.1", "0.03", "0.01") for bs in (32, 64, 128)
]
_DIVERGES = _COMMANDS[2]


def main() -> None:
    # what a terminal tells programs of itself
    os.environ.update(TERM="xterm-256color", COLORTERM="", COLUMNS=str(_COLUMNS), TZ="UTC")
    os.environ.pop("NO_COLOR", None)
    time.tzset()
    _save("dry-run", f"smartsched {_BOX} --dry-run < sweep.txt", _dry_run())
    _save("live-view", f"smartsched {_BOX} --on-contention requeue sweep.txt", _live_view())


def _dry_run() -> list[str]:
    clock = VirtualClock(_BEGINS_AT)
    state = State(Policy("picture"))
    readings = Colleagues(_GPUS, _SEED).readings(HOST, 0.0)
    see(state, Snapshot(HOST, clock.now(), readings, whole=True), clock.now())
    for command in _COMMANDS:
        apply(state, JobAccepted(clock.now(), state.next_job(), JobSpec(command, "sweep.txt")))
    with contextlib.redirect_stdout(_Terminal()) as terminal:
        print_survey(survey(state, clock.now()), (), color=True)
    return terminal.getvalue().splitlines()


def _live_view() -> list[str]:
    box = PretendBox(
        _GPUS, _job, commands_at_once(_COMMANDS), clock=VirtualClock(_BEGINS_AT), visits=_visits()
    )
    canvas = _Canvas()
    view = LiveView(_Terminal(), canvas, color=True, expected_commands=None)
    world = replace(box.world(None), observer=_narrator(view))
    loop = Loop(world, replay(Policy("picture", on_contention="requeue"), [_begin(box)]))
    ends_at = _BEGINS_AT + _SECONDS
    while box.clock.time < ends_at:
        decision = loop.tick()
        world.waiter.wait(min(loop.wake_at(decision), ends_at))
    view.resized()  # so that it is drawn once more, as it stands
    view.refresh(loop.state, box.clock.now())
    return canvas.screen()


def _begin(box: PretendBox) -> RunBegan:
    began = RunBegan(box.clock.now(), "sweep", HOST, "/", ("sweep.txt",), None, "{}")
    box.append(began)
    return began


def _narrator(view: LiveView) -> Narrator:
    return Narrator(
        view,
        tail=lambda _path, _most: [],
        quiet=False,
        verbose=False,
        single=False,
        logs=None,
        run_name="sweep",
        how_to_go_on="smartsched --resume sweep",
        here="/",
    )


def _job(command: str) -> PretendJob:
    if command == _DIVERGES:
        return PretendJob(14.0, 6 * GIB, Exited(1))
    return PretendJob(60.0 + 9.0 * _COMMANDS.index(command), 6 * GIB)


def _visits() -> dict[int, list[Visit]]:
    """What the pretend colleagues do, second by second."""
    colleagues, found = Colleagues(_GPUS, _SEED), dict[int, dict[int, Visit]]()
    for second in range(_SECONDS + 60):
        for reading in colleagues.readings(HOST, float(second)):
            assert isinstance(reading, GpuSample)
            for process in reading.processes:
                at = _BEGINS_AT + second
                known = found.setdefault(reading.index, {})
                visit = Visit(
                    at,
                    at + 1,
                    process.memory_bytes or 0,
                    reading.utilization_percent or 0,
                    process.user or "?",
                    process.command or "?",
                    process.pid,
                )
                known[process.pid] = replace(known.get(process.pid, visit), ends=at + 1)
    return {index: list(visits.values()) for index, visits in found.items()}


class _Terminal(io.StringIO):
    """One that remembers."""

    def isatty(self) -> bool:
        return True


@dataclass
class _Canvas:
    """Where the live view draws."""

    scrolled: list[str] = field(default_factory=list)
    shown: Sequence[str] = ()

    def size(self) -> tuple[int, int]:
        return _COLUMNS, _ROWS

    def open(self) -> None: ...

    def show(self, lines: Sequence[str]) -> None:
        self.shown = lines

    def above(self, line: str, width: int) -> None:
        self.scrolled.append(line)

    def close(self) -> None: ...

    def screen(self) -> list[str]:
        """What of it fits on the terminal."""
        room = _ROWS - len(self.shown)
        fitting: list[str] = []
        for line in reversed(self.scrolled):
            room -= len(Text.from_ansi(line).wrap(Console(width=_COLUMNS), _COLUMNS))
            if room < 0:
                break
            fitting.insert(0, line)
        return [*fitting, *self.shown]


def _save(name: str, command: str, lines: Sequence[str]) -> None:
    console = Console(
        record=True, file=io.StringIO(), width=_COLUMNS, force_terminal=True, highlight=False
    )
    for line in lines:
        console.print(Text.from_ansi(line))
    console.save_svg(str(_FOLDER / f"{name}.svg"), title=command, unique_id=name)


if __name__ == "__main__":
    main()
