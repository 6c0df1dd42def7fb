"""What users set for good: in files and in the environment, in place of flags.

The later wins: the administrator's defaults, the user's file, the folder's file, the environment,
flags. What can be set are the long options of the main command, as its parser knows them.
"""

import argparse
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from smartsched.config import SET_BY_US, variables
from smartsched.edges.settings_file import Entry, ForeignFileError, read_settings
from smartsched.errors import UsageError

ADMINISTRATORS = Path("/etc/smartsched/config.toml")
FOLDERS = "smartsched.toml"
LIMITS = "limits"  # the administrator's table of what users cannot exceed

# What is said of one invocation, and would be a trap if it held for all.
_FLAGS_ONLY = {
    "resume", "resume_failed", "no_adopt", "assume_gone", "name", "dry_run", "json", "simulate",
    "replay", "print_completion",
}  # fmt: skip
# A folder's file may have come with a download: it neither runs programs, nor sends anything, nor
# names files that are written over.
_NOT_BY_FOLDER = {
    "on_finish", "shell", "notify", "joblog", "json_log", "state", "claims", "no_claims",
    "hosts", "hosts_file", "remote_command", "listen", "slurm",
}  # fmt: skip
# URLs with passwords in them, and commas too: in the environment, blanks stand between them.
SECRET = {"notify"}
_LISTS_OF_IDS = ("gpus", "exclude", "prefer")
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class Setting(Struct, frozen=True):
    """The value of an option, as its parser would have made it of words, and where it is from."""

    value: Any
    source: Literal["file", "environment"]
    place: str  # FILE:LINE, or the name of the variable


class Settings(Struct, frozen=True):
    by_option: Mapping[str, Setting] = field(default_factory=dict)  # by the parser's `dest`
    notes: tuple[str, ...] = ()  # what the user may not expect and should know

    def values(self) -> dict[str, Any]:
        return {name: setting.value for name, setting in self.by_option.items()}

    def only(self, names: Collection[str]) -> "Settings":
        chosen = {n: s for n, s in self.by_option.items() if n in names}
        return replace(self, by_option=chosen)

    def without(self, names: Collection[str]) -> "Settings":
        return self.only(self.by_option.keys() - names)


class File(Struct, frozen=True):
    """One of the files in which something can be set."""

    path: Path
    shown: str
    whose: Literal["administrator", "user", "folder"]


def read(parser: argparse.ArgumentParser) -> Settings:
    """All that is set. Raises UsageError for what cannot be meant, naming file and line."""
    return merged(parser, files(), variables())


def merged(
    parser: argparse.ArgumentParser, files: Sequence[File], environment: Mapping[str, str]
) -> Settings:
    """Likewise, of these files and variables. The later wins, also over an option that cannot be
    beside it."""
    found: dict[str, Setting] = {}
    notes: list[str] = []
    options = settable(parser)
    layers = [_from_file(file, options, notes) for file in files]
    layers.append(_from_environment(environment, parser))
    for layer in layers:
        set_here = dict(layer)
        for name, setting in set_here.items():
            if setting.value:
                _oust(found, set_here, name, setting, parser)
        found |= set_here
    return Settings(found, tuple(notes))


def _oust(
    found: dict[str, Setting],
    set_here: Mapping[str, Setting],
    name: str,
    setting: Setting,
    parser: argparse.ArgumentParser,
) -> None:
    """An option that is set drops those that cannot be beside it, unless they stand in one place:
    then nobody knows what was meant."""
    for rival in rivals(parser, name):
        if rival in set_here and set_here[rival].value:
            one, other = _dashed(name), _dashed(rival)
            raise UsageError(f"{setting.place}: {one} cannot be beside {other}: leave one out")
        found.pop(rival, None)


def files() -> list[File]:
    """Where something can be set, the later wins."""
    import platformdirs

    user = platformdirs.user_config_path("smartsched", appauthor=False) / "config.toml"
    return [
        File(ADMINISTRATORS, str(ADMINISTRATORS), "administrator"),
        File(user, str(user), "user"),
        File(Path(FOLDERS), f"./{FOLDERS}", "folder"),
    ]


def settable(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options that can be set, by the key under which they are."""
    return {key: action for key, action in _long_options(parser) if action.dest not in _FLAGS_ONLY}


def rivals(parser: argparse.ArgumentParser, name: str) -> set[str]:
    """Options that exclude this one."""
    names: set[str] = set()
    for group in parser._mutually_exclusive_groups:
        together = {action.dest for action in group._group_actions}
        names |= together if name in together else set()
    return names - {name}


def variable_of(key: str) -> str:
    """What the environment calls an option; "": it cannot be set there."""
    name = f"SMARTSCHED_{key.upper().replace('-', '_')}"
    return "" if name in SET_BY_US else name


def setting_of(name: str) -> str | None:
    """What is set for an option, for verbs that have it as well. None: nothing is."""
    from smartsched.cli.parser import build_parser

    setting = read(build_parser()).by_option.get(name)
    return None if setting is None else setting.value


def preset(verb: argparse.ArgumentParser) -> Settings:
    """Let a verb's options that the main command has as well be as they are set. Flags win then.
    What is set, for `blamed`."""
    from smartsched.cli.parser import build_parser

    keys = settable(verb)
    set_for = read(build_parser()).only({action.dest for action in keys.values()})
    verb.set_defaults(**set_for.values())
    return set_for


def blamed(error: UsageError, settings: Settings) -> UsageError:
    """The same error, led by where the option that it is about was set."""
    about = re.match(r"--([a-z-]+)", str(error))
    setting = settings.by_option.get(about[1].replace("-", "_")) if about else None
    return error if setting is None else UsageError(f"{setting.place}: {error}")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _long_options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        names = [name for name in action.option_strings if name.startswith("--")]
        # of help and version, which are no options but questions
        if names and action.default is not argparse.SUPPRESS:
            yield names[0].removeprefix("--"), action


# --- files


def _from_file(
    file: File, options: Mapping[str, argparse.Action], notes: list[str]
) -> Iterator[tuple[str, Setting]]:
    try:
        entries = read_settings(file.path, file.shown)
    except ForeignFileError as error:
        if file.whose != "folder":
            raise
        notes.append(str(error))  # he who works in a folder of others cannot help it
        return
    for entry in entries or ():
        place = f"{file.shown}:{entry.line}"
        if entry.key[0] == LIMITS and file.whose == "administrator":
            continue
        try:
            key = _known(entry, options, file)
            yield options[key].dest, Setting(_value(key, options[key], entry.value), "file", place)
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from error


def _known(entry: Entry, options: Mapping[str, argparse.Action], file: File) -> str:
    key = ".".join(entry.key)
    if entry.key[0] == LIMITS:
        raise UsageError(f"[{LIMITS}] is the administrator's, in {ADMINISTRATORS}: leave it out")
    if key in options:
        if file.whose == "folder" and options[key].dest in _NOT_BY_FOLDER:
            raise UsageError(
                f"{key} cannot be set by a folder's file, which may be of others' making: give"
                " the flag, or set it in your own file"
            )
        return key
    if key.replace("-", "_") in _FLAGS_ONLY:
        raise UsageError(f"{key} cannot be set, it is said of one run: give --{key} as a flag")
    if (switch := key.removeprefix("no-")) in options:
        raise UsageError(f"there is no setting {key}: write {switch} = false")
    raise UsageError(f"there is no setting {key}{or_rather(key, options)}")


def or_rather(word: str, words: Collection[str]) -> str:
    """What somebody who has mistyped a word may have meant."""
    from difflib import get_close_matches

    meant = get_close_matches(word, words, 1)
    see = "`smartsched config` lists what there is"
    return f": do you mean {meant[0]}?" if meant else f": {see}"


def _value(key: str, action: argparse.Action, value: Any) -> Any:
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{key} is either true or false, without quotes")
        return value
    how = f'write it as in {key} = "{_example(action)}"'
    if isinstance(value, list):
        return _list(key, action, [_text(key, part, how) for part in value])
    text = _text(key, value, how)
    return [_converted(key, action, text)] if _takes_many(action) else _converted(key, action, text)


def _list(key: str, action: argparse.Action, texts: list[str]) -> Any:
    if _takes_many(action):
        return [_converted(key, action, text) for text in texts]
    if key in _LISTS_OF_IDS:
        return _converted(key, action, ",".join(texts))
    raise UsageError(f'{key} is one value, no list: write it as in {key} = "{_example(action)}"')


def _text(key: str, value: Any, how: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{key} is text or a number: {how}")
    if value == "":
        raise UsageError(f"{key} is empty: leave it out, or {how}")
    if "\0" in str(value):
        raise UsageError(f"{key} has a null character in it, which no option can take: {how}")
    return str(value)


def _takes_many(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*")


def _converted(key: str, action: argparse.Action, text: str) -> Any:
    try:
        value = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
        raise UsageError(f"{key}: {text!r} cannot be that: {error}") from error
    if action.choices is not None and value not in action.choices:
        raise UsageError(f"{key} cannot be {text!r}: it is one of {', '.join(action.choices)}")
    return value


def _example(action: argparse.Action) -> str:
    if action.choices is not None:
        return str(next(iter(action.choices)))
    return str(action.default or str(action.metavar).split("|", maxsplit=1)[0])


# --- the environment


def _from_environment(
    environment: Mapping[str, str], parser: argparse.ArgumentParser
) -> Iterator[tuple[str, Setting]]:
    """A variable that is empty counts as not there. What is no option, and not like one either, is
    of somebody else's making, and left alone."""
    options = {variable_of(key): action for key, action in settable(parser).items()}
    flags = {variable_of(key): key for key, action in _long_options(parser)}
    for variable, text in environment.items():
        if variable in SET_BY_US or not text:
            continue
        where = f"{variable} in the environment"
        if (action := options.get(variable)) is not None:
            yield action.dest, Setting(_of_text(where, action, text), "environment", variable)
        elif variable in flags:
            raise UsageError(f"{where}: --{flags[variable]} cannot be set: give it as a flag")
        else:
            _check_spelling(variable, [name for name in options if name])


def _check_spelling(variable: str, known: Collection[str]) -> None:
    from difflib import get_close_matches

    # of nothing but its prefix, every variable would be like every other
    tails = {name.removeprefix("SMARTSCHED_"): name for name in known}
    meant = get_close_matches(variable.removeprefix("SMARTSCHED_"), tails, 1, 0.8)
    if meant:
        raise UsageError(
            f"{variable} in the environment is no option: do you mean {tails[meant[0]]}? If not,"
            f" unset {variable}"
        )


def _of_text(where: str, action: argparse.Action, text: str) -> Any:
    if action.nargs == 0:
        if text.lower() not in _YES + _NO:
            raise UsageError(f"{where} is {text!r}: make it 1 or 0")
        return text.lower() in _YES
    if _takes_many(action):
        parts = text.split() if action.dest in SECRET else text.split(",")
        return [_converted(where, action, part) for part in parts if part]
    return _converted(where, action, text)
