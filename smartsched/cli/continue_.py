"""`smartsched continue`: a run that was paused goes on."""

import argparse

from smartsched.cli.remote import RemoteParser, request

_DESCRIPTION = """\
Let a run that was paused start jobs again."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    return request(_parser().parse(words), "continue")


def _parser() -> RemoteParser:
    return RemoteParser("continue", _DESCRIPTION, is_argument=True)
