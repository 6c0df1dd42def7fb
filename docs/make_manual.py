"""Writes the manual, smartsched.1, to standard output: it is made of the parsers."""

import argparse
import sys
from itertools import groupby, pairwise
from typing import Any, cast

from argparse_manpage.manpage import Manpage

from smartsched import __version__
from smartsched.cli.parser import build_parser
from smartsched.cli.verbs import VERBS, verb

_WHAT_IT_IS = "run a list of commands on the GPUs of a shared box that are free"
# The paragraphs of the parser's epilog, and whether their lines stand as they are.
_OF_THE_EPILOG = (("examples", True), ("signals", False), ("exit status", False))
_FILES = """\
.TP
.I ~/.config/smartsched/config.toml
settings of yours, under the options' long names: max\\-mem = "20%"
.TP
.I ./smartsched.toml
settings for runs that begin in a folder
.TP
.I /etc/smartsched/config.toml
the administrator's defaults, and limits for all
.TP
.I ~/.local/state/smartsched
runs, and what was learned of commands
"""


def main() -> None:
    parser = build_parser()
    synopsis = _plain(str(parser.usage).replace("       smartsched", "smartsched"))
    sections = _sections(str(parser.epilog))
    parser.usage = parser.epilog = None
    _add_verbs(parser)
    page = Manpage(parser, format="single-commands-section")
    page.description = _WHAT_IT_IS
    page.manual, page.source, page.date = "User Commands", f"smartsched {__version__}", ""
    page.add_section("synopsis", "=", synopsis)
    for title, text in [*sections, ("files", _FILES)]:
        page.add_section(title, "=", text)
    sys.stdout.write(str(page))


def _add_verbs(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(title="verbs", parser_class=argparse.ArgumentParser)
    for name in VERBS:
        verbs.add_parser(name, help="")
        its_own = verb(name).build_parser()
        # argparse breaks lines by the terminal that we happen to be in, and by Python's version
        its_own.usage = f"smartsched {name} {VERBS[name]}"
        its_own.description = _with_tables(str(its_own.description))
        cast("dict[str, Any]", verbs._name_parser_map)[name] = its_own


def _with_tables(text: str) -> str:
    """Lines that are indented stay as they are."""
    lines: list[str] = []
    for is_table, group in groupby(text.splitlines(), lambda line: line.startswith(" ")):
        block = list(group)
        lines += [".nf", *block, ".fi"] if is_table else block
    return "\n".join(lines)


def _sections(epilog: str) -> list[tuple[str, str]]:
    """The paragraphs with a title, and what follows them: what jobs see."""
    starts = [(epilog.index(f"{title}:\n"), title, as_it_is) for title, as_it_is in _OF_THE_EPILOG]
    end = epilog.rindex("\n\n")
    found = []
    for (start, title, as_it_is), (stop, *_) in pairwise([*starts, (end, "", False)]):
        text = epilog[start + len(title) + 2 : stop]
        lines = [line.removeprefix("  ") for line in text.strip("\n").splitlines()]
        found.append((title, _plain("\n".join(lines)) if as_it_is else _escaped("\n".join(lines))))
    return [*found, ("environment", _escaped(epilog[end:].strip("\n")))]


def _plain(text: str) -> str:
    """Lines that stay as they are."""
    return f".nf\n{_escaped(text)}\n.fi"


def _escaped(text: str) -> str:
    lines = text.replace("\\", "\\\\").replace("-", "\\-").splitlines()
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


if __name__ == "__main__":
    main()
