"""`smartsched report`: afterwards, or while it lasts, what a run did with the GPUs, on one page."""

import argparse
import os
import secrets
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from smartsched.cli.host import this_host
from smartsched.cli.remote import beginning
from smartsched.cli.report import _FORMATS, build_parser
from smartsched.cli.session import runs_of, state_folder
from smartsched.core.chart_data import datasets
from smartsched.core.charts import Theme, shares_chart, timeline
from smartsched.core.telling import Told, tell
from smartsched.edges import pictures
from smartsched.edges.clock import SteadyClock, on_the_wall
from smartsched.edges.history import HISTORY
from smartsched.edges.page import page
from smartsched.edges.past import PastRun
from smartsched.edges.runs import JOURNAL, Runs, open_own_file, parse_run_name
from smartsched.errors import StateError, UsageError

_LOCK = "lock"
_SLIDE_PIXELS = 1200


def main(args: argparse.Namespace) -> int:
    _complete(args)
    pictures.check()
    runs = runs_of(args)
    name = _which(runs, args)
    clock = SteadyClock()
    with closing(PastRun(state_folder(args) / "runs" / name, open_own_file)) as run:
        told = tell(
            run.events(JOURNAL),
            run.history(HISTORY),
            now=clock.now() if run.is_held_here(_LOCK, this_host()) else None,
            local_offset=clock.local_offset(),
            show_time=on_the_wall,
        )
    if told is None:
        raise StateError(f"run {name} has no whole record yet: there is nothing to report")
    content = _content(told, args.format)
    target = args.output or f"smartsched-report-{name}.{args.format}"
    if target == "-":
        sys.stdout.buffer.write(content)
        return 0
    _write(Path(target), content)
    print(f"{told.title}: {target}")
    return 0


def _complete(args: argparse.Namespace) -> None:
    for option in ("state", "output"):
        if getattr(args, option) == "":
            build_parser().error(
                f"--{option} needs the name of a {'folder' if option == 'state' else 'file'}"
            )
    if args.state is not None:
        args.state = os.path.abspath(os.path.expanduser(args.state))
    if args.run is not None:
        args.run = parse_run_name(args.run)
    if args.format is None:
        ending = Path(args.output or "").suffix.lower().removeprefix(".")
        args.format = ending if ending in _FORMATS else "html"


def _which(runs: Runs, args: argparse.Namespace) -> str:
    names = runs.names()
    if args.run is not None:
        if args.run not in names:
            known = f"; there are {', '.join(names[:5])}" if names else ""
            raise UsageError(f"there is no run {args.run}{known}")
        return str(args.run)
    here = os.getcwd()
    began = [(name, run) for name in names if (run := beginning(runs, name)) is not None]
    if not began:
        raise UsageError(f"there is no run to report in {state_folder(args) / 'runs'}")
    of_here = [(name, run) for name, run in began if run.directory == here]
    return max(of_here or began, key=lambda pair: pair[1].at)[0]


def _content(told: Told, kind: str) -> bytes:
    if kind == "html":
        return _page(told)
    data = datasets(told.scene)
    spec = timeline(told.scene, data, "light", _SLIDE_PIXELS)
    spec |= {"datasets": data, "title": _heading(told.title)}
    return pictures.as_svg(spec) if kind == "svg" else pictures.as_png(spec)


def _heading(title: str) -> dict[str, Any]:
    return {"text": title, "anchor": "start", "fontSize": 16, "offset": 12}


def _page(told: Told) -> bytes:
    scene, data = told.scene, datasets(told.scene)
    themes: tuple[Theme, Theme] = ("light", "dark")
    charts: dict[str, Any] = {
        "timeline": {theme: timeline(scene, data, theme, "container") for theme in themes},
        "shares": {theme: shares_chart(scene, theme, "container") for theme in themes},
    }
    tables = {"jobs": told.jobs.as_object(), "shapes": told.shapes.as_object()}
    return page(
        title=told.title,
        nonce=secrets.token_urlsafe(16),
        facts=told.facts,
        advice=told.advice,
        remarks=told.remarks,
        notes=told.notes,
        data={"datasets": data, **charts, **tables},
        drawing_script=pictures.drawing_script(_cache()),
    )


def _cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("smartsched", appauthor=False)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: another report that is there stays until this one is."""
    building = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        building.write_bytes(content)
        building.replace(path)
    except OSError as error:
        building.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
