"""`smartsched pause`: a run starts nothing more until it is continued."""

import argparse

from smartsched.cli.asking import RemoteParser

_DESCRIPTION = """\
Let a run start nothing more until smartsched continue; what runs goes on."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    args = _parser().parse(words)
    from smartsched.cli.remote import request

    return request(args, "pause")


def _parser() -> RemoteParser:
    return RemoteParser("pause", _DESCRIPTION, is_argument=True)
