"""What `gpus --watch` draws: a line for each GPU, as wide as the terminal, with its last minutes.

Imported only when shown. Nothing that others wrote (commands, names) is taken for markup.
"""

import time
from collections.abc import Sequence

from msgspec import Struct
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from smartsched.core import words
from smartsched.core.model import Timestamp
from smartsched.core.survey import GpuRow, who_and_why_not
from smartsched.core.traces import History, sparkline

_STYLES = {"FREE": "green", "BUSY": "red", "UNKNOWN": "yellow", "OURS": "cyan"}
_NARROW, _WIDE, _WIDEST = 60, 110, 150
_HEADER_AND_FOOTER = 3


class Watched(Struct, frozen=True):
    """The picture as a rich renderable."""

    height: int  # in lines, at most

    rows: Sequence[GpuRow]
    history: History
    now: Timestamp
    host: str
    notes: Sequence[str]
    how_to_end: str
    ascii_only: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        notes = [Text(words.shortened(f"note: {note}", width), "yellow") for note in self.notes]
        room = max(self.height - _HEADER_AND_FOOTER - len(notes), 1)
        shown = self.rows if len(self.rows) <= room else self.rows[: max(room - 1, 1)]
        parts: list[RenderableType] = [self._title(width), self._table(shown, width)]
        if len(shown) < len(self.rows):
            parts.append(Text(f"and {len(self.rows) - len(shown)} more GPUs", "dim"))
        yield Group(*parts, *notes, Text(words.shortened(self.how_to_end, width), "dim"))

    def _title(self, width: int) -> Text:
        counts = [
            f"{count} {word.lower()}"
            for word in ("FREE", "BUSY", "UNKNOWN")
            if (count := sum(1 for row in self.rows if row.word == word))
        ]
        parts = [
            time.strftime("%H:%M:%S", time.localtime(self.now)),
            ", ".join(counts) or "no GPU",
            f"last {words.duration(self.history.span_seconds)}",
            words.printable(self.host),
        ]
        return Text(words.shortened(" · ".join(parts), width), "bold")

    def _table(self, rows: Sequence[GpuRow], width: int) -> Table:
        bars = 10 if width < _WIDE else 20 if width < _WIDEST else 30
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.expand = True
        table.add_column("GPU", justify="right", no_wrap=True)
        if width >= _WIDE:
            table.add_column("name", no_wrap=True, overflow="ellipsis", max_width=28)
        table.add_column("memory", justify="right", no_wrap=True)
        if width >= _WIDE:
            table.add_column("", no_wrap=True)
        table.add_column("util", justify="right", no_wrap=True, min_width=4)
        if width >= _NARROW:
            table.add_column("", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("who, and why not", no_wrap=True, overflow="ellipsis", ratio=1)
        for row in rows:
            table.add_row(*self._cells(row, width, bars))
        return table

    def _cells(self, row: GpuRow, width: int, bars: int) -> list[Text]:
        key, now = row.key, self.now
        cells = [Text(row.label)]
        if width >= _WIDE:
            cells.append(Text(words.printable(row.name)))
        cells.append(Text(row.memory_words))
        if width >= _WIDE:
            cells.append(self._bars(self.history.memory(key, now, bars), "blue"))
        busy = row.utilization_now_percent
        cells.append(Text("-" if busy is None else f"{busy}%"))
        if width >= _NARROW:
            cells.append(self._bars(self.history.utilization(key, now, bars), "magenta"))
        cells.append(Text(row.word, _STYLES[row.word]))
        cells.append(_who(row))
        return cells

    def _bars(self, values: Sequence[float | None], style: str) -> Text:
        return Text(sparkline(values, ascii_only=self.ascii_only), style)


def _who(row: GpuRow) -> Text:
    who, why_not = who_and_why_not(row)
    return Text(who) + Text((" · " if who and why_not else "") + why_not, "dim")
