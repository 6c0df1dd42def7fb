"""What the shell offers when TAB is pressed: asked of the parsers themselves, so that nothing is
listed twice.

The shell's script (`smartsched --print-completion bash`) runs smartsched again with what was typed
in variables of argcomplete's; that answers and ends it.
"""

import argparse
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

from smartsched.cli.verbs import VERBS, verb

SHELLS = ("bash", "zsh", "fish")


class Completer(Protocol):
    def __call__(self, prefix: str, **kwargs: Any) -> Iterable[str] | Mapping[str, str]: ...


def is_asked() -> bool:
    return "_ARGCOMPLETE" in os.environ


def script(shell: str) -> str:
    """For the shell to read at its start."""
    from argcomplete.shell_integration import shellcode

    return str(shellcode(["smartsched"], shell=shell))


def complete() -> None:
    """Answer the shell, and exit."""
    import argcomplete
    from argcomplete.lexers import split_line

    line = os.environ.get("COMP_LINE", "")
    before = line[: int(os.environ.get("COMP_POINT", len(line)))]
    _, _, _, words, _ = split_line(before)
    if len(words) > 1 and words[1] in VERBS:
        parser = verb(words[1]).build_parser()
        os.environ["_ARGCOMPLETE"] = "2"  # the verb stands where else the program does
        _equip(parser, {})
    else:
        from smartsched.cli.parser import build_parser

        parser = build_parser()
        _equip(parser, VERBS if len(words) == 1 else {})
    nothing = cast("Any", None)  # of which nobody knows what it can be
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=nothing)


def _equip(parser: argparse.ArgumentParser, first_words: Mapping[str, str]) -> None:
    """Say of each value what it can be, by what the help calls it."""
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    files, folders = FilesCompleter(), DirectoriesCompleter()
    by_name: dict[str, Completer] = {"FILE": files, "PATH": files, "DIR": folders, "RUN": _runs}
    for action in parser._actions:
        completer = by_name.get(str(action.metavar))
        if action.dest == "files" and first_words:
            completer = _either(first_words, files)
        if completer is not None and action.choices is None:
            action.completer = completer  # type: ignore[attr-defined]


def _either(words: Mapping[str, str], files: Completer) -> Completer:
    def completer(prefix: str, **kwargs: Any) -> Mapping[str, str]:
        return {**words, **dict.fromkeys(files(prefix, **kwargs), "")}

    return completer


def _runs(prefix: str, **kwargs: Any) -> list[str]:
    from smartsched.cli.host import this_host
    from smartsched.cli.session import state_folder
    from smartsched.edges.runs import Runs

    state = argparse.Namespace(state=getattr(kwargs["parsed_args"], "state", None))
    names = Runs(state_folder(state), this_host()).names()
    return [name for name in names if name.startswith(prefix)]
