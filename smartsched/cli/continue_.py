"""`smartsched continue`: a run that was paused goes on."""

import argparse

from smartsched.cli.asking import RemoteParser

_DESCRIPTION = """\
Let a run that was paused start jobs again."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    args = _parser().parse(words)
    from smartsched.cli.remote import request

    return request(args, "continue")


def _parser() -> RemoteParser:
    return RemoteParser("continue", _DESCRIPTION, is_argument=True)
