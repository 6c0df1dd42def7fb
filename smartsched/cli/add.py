"""`smartsched add`: more jobs for a run that lives."""

import argparse

from smartsched.cli.asking import RemoteParser

_DESCRIPTION = """\
Give a living run more jobs: one command behind --, or a list on standard input as smartsched
itself reads it. They run in the present folder. A run with no job left ends: see --keep-open."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    parser = _parser()
    options, argv = words, None
    if "--" in words:
        position = words.index("--")
        options, argv = words[:position], words[position + 1 :]
        if not argv:
            parser.error("there is no command after --")
    args = parser.parse(options)
    from smartsched.cli import adding

    return adding.main(args, argv)


def _parser() -> RemoteParser:
    parser = RemoteParser("add", _DESCRIPTION, is_argument=False)
    parser.usage = "smartsched add [--name RUN] [--state DIR] [-- COMMAND ARG...] [< commands.txt]"
    return parser
