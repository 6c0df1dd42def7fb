"""`smartsched set`: other thresholds and caps for a run that lives."""

import argparse
import re
from copy import copy
from typing import Any

from smartsched.cli.asking import RemoteParser
from smartsched.cli.parser import SETTABLE
from smartsched.cli.parser import build_parser as main_parser

_DESCRIPTION = """\
Change options of a living run; they mean what they mean for smartsched itself. `default` takes a
value back. They stay with the run when it is resumed."""
_DEFAULT = re.compile(r" \(default: [^()]*(\([^()]*\))?[^()]*\)|\(default\)")


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    parser = _parser()
    args = parser.parse(words)
    options = {name: value for name in SETTABLE if (value := getattr(args, name)) is not None}
    if not options:
        parser.error("say what to change, such as --max-mem 30%")
    from smartsched.cli.remote import request

    return request(args, "set", options={name: _given(value) for name, value in options.items()})


def _given(value: Any) -> Any:
    return None if value in ("default", ["default"]) else value


def _parser() -> RemoteParser:
    parser = RemoteParser("set", _DESCRIPTION, is_argument=True)
    for action in main_parser()._actions:  # as argparse's own `parents` do
        if action.dest in SETTABLE:
            option = copy(action)
            option.default = None  # as it is
            option.help = _DEFAULT.sub("", option.help or "")
            if option.choices is not None:
                option.choices = [*option.choices, "default"]
            parser._add_action(option)  # likewise
    return parser
