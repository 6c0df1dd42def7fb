"""`smartsched grid`: a list of commands out of a template and the values of its parameters."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from smartsched.cli.verbs import VerbParser
from smartsched.errors import UsageError

if TYPE_CHECKING:
    from smartsched.core.grid.values import Values

_USAGE = "smartsched grid TEMPLATE -p NAME VALUE... [-p NAME VALUE...]... [OPTIONS]"

_DESCRIPTION = """\
Write a command for each combination of values, one a line, for smartsched or for a file."""

_EPILOG = """\
the template, in quotes, comes first, or last behind --:
  {lr}        a value of the parameter lr, quoted for the shell where it stands
  {lr:raw}    the same, not quoted: -p flags "" "--fast --small"
  {{ and }}   braces, as in --config '{{"lr": {lr}}}'

values:
  0.1 1e-3 -1 adam       as they are
  int:1:10  int:0:100:20 whole numbers: first, last, step
  lin:0:1:11             evenly spaced: first, last, how many
  log:1e-5:1e-1:5        likewise, with equal ratios
  uniform:0:1            only with --n-samples: from the first up to the second
  loguniform:1e-5:1e-1   likewise, evenly in the logarithm
  choice:a,b,c           likewise, one of these
  text:log:1:2           what is behind text: as it is
What begins with - and a digit is a value, what else begins with - an option; as values:
  -p flag=--fast,--slow  -p flag text:--fast text:--slow

examples:
  smartsched grid "python train.py --lr {lr} --bs {bs}" -p lr 0.1 0.01 -p bs 32 64 | smartsched
  smartsched grid "python train.py --lr {lr}" -p lr loguniform:1e-5:1e-1 --n-samples 50
  smartsched grid "python train.py --arch {arch} --bs {bs}  # smartsched: gpus={n}" \\
      -p arch small big -p bs 64 32 -p n 1 2 --zip arch bs n"""

_PARAMETER = ("-p", "--parameter")
_ZIP = "--zip"
_OPTIONS = {*_PARAMETER, _ZIP, "-h", "--help", "--n-samples", "--seed", "--sampling-mode"}
_NEGATIVE = re.compile(r"-\.?\d|-(inf|nan)\b", re.ASCII)
_LINES_AT_ONCE = 1000


def main(words: list[str]) -> int:
    commands = commands_for(words)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever stopped reading has seen enough
    while lines := [os.fsencode(command) + b"\n" for command in islice(commands, _LINES_AT_ONCE)]:
        sys.stdout.buffer.write(b"".join(lines))
        sys.stdout.buffer.flush()
    return 0


def commands_for(words: Sequence[str]) -> Iterator[str]:
    """Everything is checked before the first of them. Raises UsageError; exits after --help."""
    before, behind = _split_at_dashes(words)
    rest, groups = _taken_out(before)
    args = build_parser().parse_args(rest)
    from smartsched.core.grid.search import Search

    template = _template([*args.template, *behind])
    parameters = _parameters([group for option, group in groups if option != _ZIP])
    zipped = [_names(group) for option, group in groups if option == _ZIP]
    search = Search(template, parameters, zipped)
    most = None if args.n_samples is None else _parsed("--n-samples", args.n_samples)
    if args.sampling_mode == "grid":
        return search.in_order(most)
    return search.at_random(_parsed("--seed", args.seed), most)


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser("grid", _DESCRIPTION)
    parser.usage, parser.epilog = _USAGE, _EPILOG
    add = parser.add_argument
    add("template", metavar="TEMPLATE", nargs="*", help="a command, with {NAME} for values")
    # -p and --zip are here for --help: what follows them may begin with a dash.
    add(
        *_PARAMETER,
        metavar="NAME VALUE...",
        help="a parameter and its values; also as NAME=VALUE,VALUE",
    )
    add(
        _ZIP,
        metavar="NAME NAME...",
        help="these go together, the first value of one with the first of the others, and so on",
    )
    add("--n-samples", metavar="N", help="only so many of the combinations, none of them twice")
    add(
        "--sampling-mode",
        choices=("shuffled_grid", "grid"),
        default="shuffled_grid",
        help="at random, or in the order of nested loops (default: %(default)s)",
    )
    add(
        "--seed",
        metavar="N",
        default="0",
        help="another one is another order and another sample; the same seed writes the same list"
        " anywhere, and of --n-samples the larger begins with the smaller (default: %(default)s)",
    )
    return parser


def _split_at_dashes(words: Sequence[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return list(words[:at]), list(words[at + 1 :])


def _taken_out(words: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What argparse can read, and what follows each -p and --zip."""
    rest: list[str] = []
    groups: list[tuple[str, list[str]]] = []
    takes_more = False
    for word in words:
        option, attached = _option_in(word)
        if option is None and takes_more:
            groups[-1][1].append(word)
        elif option in (*_PARAMETER, _ZIP):
            groups.append((option, [] if attached is None else [attached]))
        else:
            rest.append(word)
            takes_more = False
            continue
        # NAME=VALUE,VALUE is complete.
        takes_more = "=" not in "".join(groups[-1][1][:1])
    return rest, groups


def _option_in(word: str) -> tuple[str | None, str | None]:
    """The option and what is attached to it. Raises UsageError for one that there is not."""
    if not word.startswith("-") or word == "-" or _NEGATIVE.match(word):
        return None, None
    option, equals, attached = word.partition("=")
    if option not in _OPTIONS:
        hint = f"a template goes in quotes, and a value like this is written text:{word}"
        raise UsageError(f"there is no option {word}: {hint}")
    return option, attached if equals else None


def _template(words: Sequence[str]) -> str:
    if not words:
        raise UsageError("there is no template: write it before the first -p, or last behind --")
    if len(words) > 1:
        raise UsageError(f"there is one template, in quotes: {words[1]!r} is left over")
    return words[0]


def _parameters(groups: Iterable[Sequence[str]]) -> "dict[str, Values]":
    from smartsched.core.grid.template import NAME
    from smartsched.core.grid.values import split_at_commas, values_of

    parameters: dict[str, Values] = {}
    for group in groups:
        name, equals, text = group[0].partition("=") if group else ("", "", "")
        if not NAME.fullmatch(name):
            raise UsageError(f"-p {name!r} is no name: letters, digits and _ . -, a letter first")
        if name in parameters:
            raise UsageError(f"-p {name} is there twice: write all its values behind one")
        try:
            parameters[name] = values_of(split_at_commas(text) if equals else group[1:])
        except UsageError as error:
            raise UsageError(f"-p {name}: {error}") from error
    return parameters


def _names(group: Iterable[str]) -> list[str]:
    return [name for word in group for name in word.split(",")]


def _parsed(option: str, text: str) -> int:
    from smartsched.core.grid.numbers import parse_whole
    from smartsched.core.units import parse_positive_count

    try:
        return parse_whole(text) if option == "--seed" else parse_positive_count(text)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from error
