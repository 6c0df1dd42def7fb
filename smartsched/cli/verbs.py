"""The verbs beside the main job. Each is a module of this package, imported when it is asked for,
with `build_parser()` and `main(words)`, which gives the exit status."""

import argparse
from importlib import import_module
from typing import NoReturn, Protocol, cast

from smartsched.errors import UsageError

# What `smartsched --help` says of them, in its order. A module has the verb's name; where Python
# does not allow that, an underscore follows.
VERBS = {
    "status": "[RUN] [--json] [--watch]",
    "log": "JOB [-f]",
    "add": "[-- COMMAND ARG...] [< commands.txt]",
    "cancel": "JOB... | --all",
    "retry": "JOB... | --failed",
    "pause": "[RUN]",
    "continue": "[RUN]",
    "set": "OPTION... [RUN]",
    "runs": "[--json] [--remove RUN... | --prune AGE]",
    "grid": "TEMPLATE -p NAME VALUE... [--n-samples N] [--seed N] | smartsched",
    "gpus": "[--watch] [--json] [OPTIONS]",
    "pick": "[-n N] [--wait [TIME]] [--hold TIME] [OPTIONS]",
    "report": "[RUN] [-o FILE] [--format html|svg|png]",
    "shapes": "[--json] [--forget SHAPE... | --forget-all]",
    "doctor": "[--json]",
    "config": "[--json] [OPTIONS]",
    "hosts": "[RUN] [--json]",
    "agent": "--join FILE|- [--host NAME] [--pilot]",
    "sample": "[--interval 1s] [--once]",
}


class Verb(Protocol):
    def build_parser(self) -> argparse.ArgumentParser: ...
    def main(self, words: list[str]) -> int: ...


class VerbParser(argparse.ArgumentParser):
    """Says what is wrong in one line. Options may not be abbreviated: what is clear today would be
    ambiguous once there is another."""

    def __init__(self, verb: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            f"smartsched {verb}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}{what_to_do(self, message)}")


def verb(name: str) -> Verb:
    """The module of one of VERBS."""
    from keyword import iskeyword

    module = import_module(
        f"smartsched.cli.{name}_" if iskeyword(name) else f"smartsched.cli.{name}"
    )
    return cast("Verb", module)


def what_to_do(parser: argparse.ArgumentParser, message: str) -> str:
    """After a parser's complaint: what its first unknown word may have meant, or where to look."""
    see = f"; see {parser.prog} --help"
    _, said, unknown = message.partition("unrecognized arguments: ")
    unknown = unknown.split(" ")[0].split("=")[0]
    if not said or not unknown.startswith("--"):
        return see
    from difflib import get_close_matches

    meant = get_close_matches(unknown, parser._option_string_actions, 1)
    return f": do you mean {meant[0]}?" if meant else see


def usage_lines() -> str:
    return "\n".join(f"       smartsched {name} {how}" for name, how in VERBS.items())
