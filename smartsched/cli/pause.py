"""`smartsched pause`: a run starts nothing more until it is continued."""

import argparse

from smartsched.cli.remote import RemoteParser, request

_DESCRIPTION = """\
Let a run start nothing more until smartsched continue; what runs goes on."""


def build_parser() -> argparse.ArgumentParser:
    return _parser()


def main(words: list[str]) -> int:
    return request(_parser().parse(words), "pause")


def _parser() -> RemoteParser:
    return RemoteParser("pause", _DESCRIPTION, is_argument=True)
