"""What `status` and `runs` show, drawn with rich; on a terminal as wide as it is, in a pipe in
whole lines. Nothing that others wrote (commands, names) is taken for markup."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from smartsched.core import words

_WIDTH_OF_PIPES = 1000
_MOST_WAITING, _MOST_GIVEN_UP = 10, 10
_WATCH_SECONDS = 1.0
_PHASES = {
    "running": "green",
    "paused": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "halted": "red",
    "silent": "red",
    "left": "yellow",
    "ended": "green",
}
_EXPLAINED = {
    "silent": "lives but does not answer (is it stopped?); as its journal says",
    "left": "does not live; some of it is left to be done",
    "ended": "has ended; all is done",
}
_HOST_STANDS = {"here": "green", "leaving": "yellow", "away": "red"}
_STANDS = {"alive": "green", "left": "yellow", "complete": "", "damaged": "red"}


class RunRow(Protocol):
    """What there is to be said of one of all runs."""

    @property
    def run(self) -> str: ...
    @property
    def stands(self) -> str: ...
    @property
    def began(self) -> float | None: ...
    @property
    def folder(self) -> str | None: ...
    @property
    def ok(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def cancelled(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def has_requests(self) -> bool: ...


def print_status(facts: Mapping[str, Any], *, color: bool) -> None:
    _print(_status(facts), color=color)


def watch_status(look: Callable[[], Mapping[str, Any]], *, color: bool, as_json: bool) -> None:
    """Until the run ends. In a pipe or on a dumb terminal, one picture below the other; as JSON, an
    object a line."""
    console = _console(color=color)
    if as_json or not console.is_terminal or console.is_dumb_terminal:
        while True:
            facts = look()
            if as_json:
                sys.stdout.write(json.dumps(facts) + "\n")
                sys.stdout.flush()
            else:
                _print(_status(facts), color=color)
            if facts["held_by"] is None:
                return
            time.sleep(_WATCH_SECONDS)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            facts = look()
            live.update(_status(facts, console.size.height - 1), refresh=True)
            if facts["held_by"] is None:
                return
            time.sleep(_WATCH_SECONDS)


def print_runs(rows: Sequence[RunRow], *, color: bool) -> None:
    table = _table("run", "stands", "began", ">ok", ">failed", ">cancelled", ">left", "folder")
    for row in rows:
        began = "?" if row.began is None else _date(row.began)
        stands = Text(row.stands, _STANDS[row.stands])
        if row.has_requests and row.stands != "alive":
            stands += Text(" (requests wait)")
        left = str(row.left) if row.left or row.stands != "left" else "?"
        table.add_row(
            row.run,
            stands,
            began,
            f"{row.ok:,}",
            f"{row.failed:,}",
            f"{row.cancelled:,}",
            left,
            Text(words.printable(row.folder or "?")),
        )
    _print(table, color=color)


def print_hosts(
    hosts: Sequence[Mapping[str, Any]], pilots: str | None, join: str, *, color: bool
) -> None:
    """`pilots`: how they stand; None: there are none. `join`: what adds a host by hand."""
    table = _table("host", "stands", ">GPUs", ">in use", "jobs", "node", "why it is not used")
    for host in hosts:
        node = "" if host["node"] in (None, host["host"]) else host["node"]
        table.add_row(
            Text(words.printable(host["host"])),
            Text(host["standing"], _HOST_STANDS[host["standing"]]),
            str(host["gpus"]),
            str(host["gpus_in_use"]),
            ",".join(map(str, host["running"])) or "-",
            Text(words.printable(node)),
            Text(words.printable(host["why"]), "yellow"),
        )
    lines = [] if pilots is None else [Text(f"Slurm: {words.printable(pilots)}")]
    lines.append(Text(f"one more joins, on that host, by: {join}", "dim"))
    _print(Group(table, *lines), color=color)


def _status(facts: Mapping[str, Any], height: int | None = None) -> RenderableType:
    """`height`: lines that there is room for; None: any number."""
    most = len(facts["running"]) if height is None else max(3, height - 8)
    parts: list[RenderableType] = [_headline(facts)]
    if facts["running"]:
        parts.append(_running(facts["running"][:most]))
        if len(facts["running"]) > most:
            parts.append(Text(f"and {len(facts['running']) - most} more running", "dim"))
    rest = None if height is None else max(0, height - 6 - len(facts["running"][:most]))
    parts += _list("waiting", facts["waiting"], facts["jobs"]["waiting"], _MOST_WAITING, rest)
    if why := facts["waiting_because"]:
        parts.append(Text(f"waiting: {words.printable(why)}", "yellow"))
    if height is None:
        gone = facts["given_up"]
        for outcome in ("failed", "cancelled"):
            some = [job for job in gone if job["outcome"] == outcome]
            parts += _list(outcome, some, facts["jobs"][outcome], _MOST_GIVEN_UP, None)
    return Group(*parts)


def _headline(facts: Mapping[str, Any]) -> Text:
    jobs, phase = facts["jobs"], facts["phase"]
    text = Text(f"run {facts['run']} ") + Text(_EXPLAINED.get(phase, f"is {phase}"), _PHASES[phase])
    text += Text(f": {words.count(jobs['ok'], 'job')} ok")
    text += Text(f", {jobs['failed']:,} failed", "bold red" if jobs["failed"] else "")
    for what in ("cancelled", "stopped", "running", "waiting"):
        if jobs[what]:
            text += Text(f", {jobs[what]:,} {what}")
    if facts["more_to_come"]:
        text += Text(", more to come")
    return text + Text(f"; {facts['gpu_seconds'] / 3600:.2f} GPU-hours")


def _running(runs: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(">job", "GPU", ">for", "doing", "command")
    for run in runs:
        seconds = run["seconds"]
        doing = "" if run["doing"] == "running" else run["doing"]
        table.add_row(
            _called(run),
            ",".join(run["gpus"]) or "-",
            "" if seconds is None else words.duration(seconds),
            Text(doing, "yellow"),
            Text(words.printable(run["command"])),
        )
    return table


def _list(
    what: str, jobs: Sequence[Mapping[str, Any]], count: int, most: int, room: int | None
) -> list[RenderableType]:
    shown = min(most, len(jobs)) if room is None else min(most, len(jobs), max(0, room - 1))
    if not shown:
        return []
    table = _table(f">{what}", "command")
    for job in jobs[:shown]:
        table.add_row(_called(job), Text(words.printable(job["command"])))
    more = [Text(f"and {count - shown:,} more {what}", "dim")] if count > shown else []
    return [table, *more]


def _called(job: Mapping[str, Any]) -> Text:
    name = f" ({job['name']})" if job["name"] else ""
    return Text(f"{job['job']}{name}")


def _table(*titles: str) -> Table:
    """`>`: to the right. The last column has the rest of the line, on one line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    for title in titles[:-1]:
        right = title.startswith(">")
        table.add_column(title.lstrip(">"), justify="right" if right else "left", no_wrap=True)
    table.add_column(titles[-1], no_wrap=True, overflow="ellipsis", ratio=1)
    return table


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _console(*, color: bool) -> Console:
    return Console(
        width=None if sys.stdout.isatty() else _WIDTH_OF_PIPES,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _print(what: RenderableType, *, color: bool) -> None:
    console = _console(color=color)
    with console.capture() as capture:
        console.print(what)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
