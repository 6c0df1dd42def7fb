"""`smartsched config`: what is set, and where."""

import argparse
import json
import re
from typing import Any

from msgspec import Struct

from smartsched.cli import settings
from smartsched.cli.limits import read_limits, settle
from smartsched.cli.parser import build_parser as build_main_parser
from smartsched.cli.parser import given, parse
from smartsched.cli.verbs import VerbParser
from smartsched.core.hours import words as cap_words
from smartsched.errors import UsageError

_DESCRIPTION = """\
Show what every option is without a flag, and where that is set. With options of the main command
behind it, what they would make of that. The output is such a file itself.

The later wins:
  /etc/smartsched/config.toml         the administrator's defaults, and limits for all
  ~/.config/smartsched/config.toml    yours (XDG_CONFIG_HOME counts)
  ./smartsched.toml                   the folder's, if it is yours or root's
  SMARTSCHED_MAX_MEM=20% ...          the environment
  --max-mem 20% ...                   flags"""

_NOT_SET = "default"


class _Row(Struct, frozen=True):
    """An option, its value, and where it is from."""

    key: str
    value: Any  # None: it has none
    source: str  # default, file, environment, flag
    place: str | None  # FILE:LINE, or a variable; None: not of these


def main(words: list[str]) -> int:
    args, options = build_parser().parse_known_args(words)
    chosen = parse(options)
    if chosen.files or chosen.command is not None:
        raise UsageError("smartsched config runs nothing: give it options only")
    try:
        notes = settle(chosen, "config").notes
    except UsageError as error:
        raise settings.blamed(error, chosen.settings) from error
    rows = _rows(chosen, options)
    limits = read_limits()
    told = {
        "max-gpus": (cap_words(limits.most_gpus), limits.most_gpus_place),
        "leave-free": (cap_words(limits.leave_free), limits.leave_free_place),
    }
    told = {key: (cap, place) for key, (cap, place) in told.items() if cap}
    if args.json:
        _print_object(rows, told, notes)
    else:
        _print_file(rows, told, notes)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("config", _DESCRIPTION)
    parser.usage = "smartsched config [--json] [OPTIONS]"
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _rows(chosen: argparse.Namespace, options: list[str]) -> list[_Row]:
    parser = build_main_parser()
    flags = given(parser, [word for word in options if word != "--"])
    rows = []
    for key, action in settings.settable(parser).items():
        value = parser.get_default(action.dest)
        source, place = _NOT_SET, None
        if action.dest in flags:
            value, source = getattr(chosen, action.dest), "flag"
        elif (setting := chosen.settings.by_option.get(action.dest)) is not None:
            value, source, place = setting.value, setting.source, setting.place
        if action.dest in settings.SECRET and value:
            value = ["(secret)"] * len(value)
        rows.append(_Row(key, value or None if value == [] else value, source, place))
    return rows


def _print_file(
    rows: list[_Row], limits: dict[str, tuple[str, str]], notes: tuple[str, ...]
) -> None:
    lines = [_line(row) for row in rows]
    width = min(max(len(line) for line, _ in lines), 40)
    for line, where in lines:
        print(f"{line:<{width}}  # {where}")
    for key, (cap, place) in limits.items():
        print(f"# the administrator's limit: {key} = {_toml(cap)}, {place}")
    for note in notes:
        print(f"# {note}")


def _line(row: _Row) -> tuple[str, str]:
    said = f"{row.key} = {_toml(row.value)}" if row.value is not None else f"# {row.key} ="
    match row.source:
        case "environment":
            return said, f"{row.place} in the environment"
        case "file":
            return said, str(row.place)
        case source:
            return said, source if row.value is not None else "not set"


def _toml(value: Any) -> str:
    """JSON's strings, lists, true and false are TOML's as well, but for control characters that
    JSON leaves alone, and that no terminal should get."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _print_object(
    rows: list[_Row], limits: dict[str, tuple[str, str]], notes: tuple[str, ...]
) -> None:
    told = {
        "smartsched_config": 1,
        "files": [str(file.path.absolute()) for file in settings.files() if file.path.exists()],
        "options": {
            row.key: {"value": row.value, "source": row.source, "place": row.place} for row in rows
        },
        "limits": {key: {"value": cap, "place": place} for key, (cap, place) in limits.items()},
        "notes": list(notes),
    }
    print(json.dumps(told, indent=2))
