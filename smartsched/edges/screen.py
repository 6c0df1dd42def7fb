"""What is drawn with rich: the live view of a run, the tables of --dry-run and `shapes`.

Imported only when shown. Nothing that others wrote (commands, names) is taken for markup.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from smartsched.core import words
from smartsched.core.footprint import Footprint
from smartsched.core.model import Run, Running, Stopping, Timestamp
from smartsched.core.standing import why_none_is_free
from smartsched.core.state import Closing, State
from smartsched.core.survey import GpuRow, Survey, gpu_rows
from smartsched.core.users import process_words

_STYLES = {"FREE": "green", "BUSY": "red", "UNKNOWN": "yellow", "OURS": "cyan"}
_TONES = {"plain": "", "good": "green", "bad": "red", "notice": "yellow"}
_SHORTEST_REFRESH_SECONDS = 0.2
_ELAPSED_EVERY_SECONDS = 1.0
_DRAWING_SHARE = 0.004
_WIDTH_OF_PIPES = 1000
_MOST_LINES_OF_WAITING = 4
_HEADER_AND_ELLIPSIS = 2


def print_survey(found: Survey, notes: Sequence[str], *, color: bool) -> None:
    """The whole of --dry-run, on stdout. A pipe gets full lines, a terminal gets what fits."""
    _print(lambda console: _draw_survey(console, found, notes), color=color)


def print_shapes(shapes: Sequence[tuple[str, Footprint, float]]) -> None:
    """The table of `smartsched shapes`, likewise; with each, when it was last used (Unix time)."""
    _print(lambda console: console.print(_shape_table(shapes)), color=False)


def _print(draw: Callable[[Console], None], *, color: bool) -> None:
    console = console_on(sys.stdout, color=color)
    with console.capture() as capture:
        draw(console)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _draw_survey(console: Console, found: Survey, notes: Sequence[str]) -> None:
    console.print(_survey_table(found.rows))
    for note in notes:
        console.print(Text(f"note: {note}", "yellow"))
    for job, placement in found.starts:
        command = words.shortened(words.printable(job.spec.command), 100)
        console.print(Text(f"would start {placement.words}: {command}"))
    for job, why in found.impossible:
        command = words.shortened(words.printable(job.spec.command), 100)
        console.print(Text(f"would fail, since {why}: {command}", "red"))
    if found.waits:
        waiting = words.count(len(found.waits), "command")
        console.print(Text(f"would wait: {waiting}, the first of them"))
        first = words.shortened(words.printable(found.waits[0].spec.command), 100)
        console.print(Text(f"  {first}"))
        console.print(Text(f"  because {found.waits_because}"))


class _Console(Console):
    """One that leaves it to its user what a reader who is gone means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console_on(stream: TextIO, *, color: bool) -> Console:
    return _Console(
        file=stream,
        width=None if stream.isatty() else _WIDTH_OF_PIPES,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def _survey_table(rows: Sequence[GpuRow]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("GPU", justify="right")
    table.add_column("name", overflow="fold")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("util", justify="right", no_wrap=True)
    table.add_column("verdict")
    table.add_column("why, and who uses it", overflow="fold", ratio=1)
    for row in rows:
        table.add_row(
            row.label,
            Text(words.printable(row.name)),
            row.memory_words,
            _utilization(row),
            Text(row.word, _STYLES[row.word]),
            _details(row),
        )
    return table


def _shape_table(shapes: Sequence[tuple[str, Footprint, float]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("command shape", overflow="fold")
    for title in ("runs", "peak memory", "util", "mean / longest", "last used"):
        table.add_column(title, justify="right", no_wrap=True)
    for shape, known, last_used in shapes:
        percent = known.utilization_percent
        table.add_row(
            Text(words.printable(shape)),
            f"{known.runs:,}",
            words.size(known.peak_bytes),
            "-" if percent is None else words.percent(percent),
            f"{words.duration(known.mean_seconds)} / {words.duration(known.longest_seconds)}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(last_used)),
        )
    return table


def _details(row: GpuRow) -> Text:
    lines = [Text(words.printable(reason)) for reason in row.reasons]
    if row.claim and row.claim not in row.reasons:
        lines.append(Text(words.printable(row.claim)))
    lines += [Text(process_words(process), "dim") for process in row.processes]
    return Text("\n").join(lines)


def _utilization(row: GpuRow) -> str:
    if row.utilization_mean_percent is None:
        return "-"
    mean, most = round(row.utilization_mean_percent), row.utilization_max_percent
    return f"{mean}%" if mean == most else f"{mean}% (max {most}%)"


class Canvas(Protocol):
    """Where lines are drawn in place, with others scrolling by above them. Raises OSError when the
    terminal is gone."""

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        ...

    def open(self) -> None: ...
    def show(self, lines: Sequence[str]) -> None: ...
    def above(self, line: str, width: int) -> None: ...
    def close(self) -> None: ...


def drawn(console: Console, picture: RenderableType, columns: int, rows: int) -> list[str]:
    """Its lines, with colours and all: none longer than that, and not more. Blanks at their ends
    are left out: terminals that become narrower would wrap them."""
    options = console.options.update_width(columns)
    found = []
    for segments in console.render_lines(picture, options, pad=False)[:rows]:
        line = Text.assemble(*((text, style or "") for text, style, _ in segments))
        line.rstrip()
        with console.capture() as capture:
            console.print(line, soft_wrap=True, end="")
        found.append(capture.get())
    return found


class LiveView:
    """A View that is redrawn in place, with lines scrolling by above it."""

    def __init__(
        self, stream: TextIO, canvas: Canvas, *, color: bool, expected_commands: int | None
    ) -> None:
        """`expected_commands`: how long the list is, roughly; None: nobody knows."""
        self._console = console_on(stream, color=color)
        self._canvas = canvas
        self._expected = expected_commands
        self._began: Timestamp | None = None
        self._drawn_at: Timestamp = float("-inf")
        self._draw_at: Timestamp = float("-inf")
        self._happened: tuple[int, ...] = ()
        self._news = True
        self._guarded(canvas.open)

    def line(
        self, at: Timestamp, text: str, tone: Literal["plain", "good", "bad", "notice"]
    ) -> None:
        stamp = time.strftime("%H:%M:%S ", time.localtime(at))
        said = Text.assemble((stamp, "dim"), (words.printable(text), _TONES[tone]))
        with self._console.capture() as capture:  # the terminal wraps it, and anew when it changes
            self._console.print(said, soft_wrap=True)
        self._guarded(lambda: self._canvas.above(capture.get().rstrip("\n"), said.cell_len))

    def resized(self) -> None:
        """What is drawn fits no more."""
        self._drawn_at = self._draw_at = float("-inf")

    def refresh(self, state: State, now: Timestamp) -> None:
        if self._began is None:
            self._began = now
        happened = (state.totals.finished, len(state.runs), len(state.queue), state.closing)
        self._news = self._news or happened != self._happened
        self._happened = happened
        due = self._drawn_at + _SHORTEST_REFRESH_SECONDS if self._news else self._draw_at
        if now < due:
            self._draw_at = due
            return
        began = time.process_time()
        columns, rows = self._canvas.size()
        picture = self._picture(state, now, columns, rows)
        lines = drawn(self._console, picture, columns, rows - 1)
        self._guarded(lambda: self._canvas.show(lines))
        # A clock that ticks is worth no more than this share of a core.
        pause = max((time.process_time() - began) / _DRAWING_SHARE, _ELAPSED_EVERY_SECONDS)
        self._drawn_at, self._draw_at, self._news = now, now + pause, False

    def wake_at(self) -> Timestamp:
        return self._draw_at

    def close(self) -> None:
        self._guarded(self._canvas.close)

    def _guarded(self, draw: Callable[[], None]) -> None:
        try:
            draw()
        except OSError:  # the terminal is gone; the jobs are not concerned
            self._draw_at = float("inf")

    def _picture(self, state: State, now: Timestamp, columns: int, rows: int) -> Group:
        below = [self._counts(state, now)]
        if state.queue and not state.runs:  # else the rows say enough
            why = words.printable(why_none_is_free(state, now))
            if why:
                most = min(_MOST_LINES_OF_WAITING, max(rows - 6, 1)) * columns
                below.append(Text(words.shortened(f"waiting: {why}", most), "yellow"))
        lines = sum(len(text.wrap(self._console, columns)) for text in below)
        room = rows - 1 - lines - _HEADER_AND_ELLIPSIS
        return Group(_live_table(state, now, max(room, 1)), *below)

    def _counts(self, state: State, now: Timestamp) -> Text:
        totals = state.totals
        began = self._began if self._began is not None else now
        of_all = f" of {self._expected:,}" if self._expected and state.input_open else ""
        parts = [
            f"{totals.ok:,} done{of_all}",
            f"{len(state.runs):,} running",
            f"{len(state.queue):,}{'+' if state.input_open else ''} waiting",
        ]
        text = Text(" · ".join(parts))
        if totals.failed + totals.rejected:
            text += Text(f" · {totals.failed + totals.rejected:,} failed", "bold red")
        text += Text(f" · {words.duration(now - began)}")
        if (eta := self._eta_seconds(state, now)) is not None:
            text += Text(f" · about {words.duration(eta)} to go")
        if state.closing is not Closing.NO:
            text += Text(
                " · " + ("draining" if state.closing is Closing.DRAIN else "stopping"),
                "bold yellow",
            )
        return text

    def _eta_seconds(self, state: State, now: Timestamp) -> float | None:
        """By the mean of what has finished, at the present number of runs."""
        totals = state.totals
        if not totals.finished or not state.runs:
            return None
        mean = totals.gpu_seconds / totals.finished
        left = [max(mean - (now - run.status.since), 0.0) for run in state.runs.values()]
        waiting = len(state.queue)
        if state.closing is not Closing.NO:
            waiting = 0
        elif state.input_open:
            if self._expected is None:
                return None
            waiting = max(self._expected - totals.finished - len(state.runs), waiting)
        return (waiting * mean + sum(left)) / len(state.runs)


def _live_table(state: State, now: Timestamp, most_rows: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("GPU", justify="right", no_wrap=True)
    table.add_column("others' memory", justify="right", no_wrap=True)
    table.add_column("util", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("job, or why not", no_wrap=True, overflow="ellipsis", ratio=1)
    rows = gpu_rows(state, now)
    for row in rows[:most_rows]:
        runs = [state.runs[h.run] for h in state.holds_on(row.key) if h.run in state.runs]
        table.add_row(
            row.label,
            _others(row),
            _utilization(row),
            Text(row.word, _STYLES[row.word]),
            _doing(runs, row, now),
        )
    if len(rows) > most_rows:
        table.add_row("", "", "", "", Text(f"and {len(rows) - most_rows} more GPUs", "dim"))
    return table


def _others(row: GpuRow) -> str:
    if row.strangers_memory_bytes is None or row.memory_total_bytes is None:
        return "?"
    used, total = row.strangers_memory_bytes, row.memory_total_bytes
    return f"{words.size(used)} / {words.size(total)}"


def _doing(runs: list[Run], row: GpuRow, now: Timestamp) -> Text:
    doing = [text for run in runs if (text := _job(run, now))]
    if not doing:
        return Text(words.printable("; ".join(row.reasons)), "dim")
    return Text("   ".join(doing), "cyan")


def _job(run: Run, now: Timestamp) -> str:
    status = run.status
    if not isinstance(status, Running | Stopping):
        return ""
    since = status.since if isinstance(status, Running) else status.started_at
    command = words.shortened(words.printable(run.job.spec.command), 200)
    return f"{run.job.words}  {words.duration(now - since)}  {command}"
