"""Settings files: TOML, the line of every value, and whose files are believed.

A file of settings decides what is done in a user's name. One that belongs to somebody else, or that
others may write, is not read: it may lie in a folder that is shared.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from smartsched.errors import UsageError

_LARGEST_BYTES = 1 << 20
_PART = re.compile(
    r"""\#[^\n]*
      | \"{3}(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}
      | '{3}(?:[^']++|'{1,2}(?!'))*+'{3,5}
      | "(?:[^"\\]++|\\.)*+"
      | '[^']*'
      | [\n\[\]{}]
      | (?P<plain>[^\n\[\]{}"'\#]++)""",
    re.VERBOSE | re.DOTALL,
)
# A key has one between its parts, and tomllib takes time that grows with their square.
_MOST_DOTS_IN_A_LINE = 64


class Entry(Struct, frozen=True):
    """One value of a file, or a table without any."""

    key: tuple[str, ...]  # with the names of its tables before it
    value: Any
    line: int  # of the file, where it begins; the first one is 1


class ForeignFileError(UsageError):
    """The file is somebody else's: nothing that the user could mend."""


def read_settings(path: Path, shown: str) -> list[Entry] | None:
    """What a file says, in its order; None: there is no such file. `shown`: what to call it.

    Raises ForeignFileError for a file of another user than this one and root, and UsageError for
    one that others may write, that cannot be read, or that is no TOML.
    """
    try:
        text = _read(path, shown)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"cannot read {shown}: {error.strerror}") from error
    try:
        return list(_entries(text, shown))
    except RecursionError as error:
        raise UsageError(f"{shown} is nested deeper than any settings are: flatten it") from error


def _read(path: Path, shown: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for ever
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{shown} is no plain file: remove it, or make it one")
        # where a link leads may be ours; that it leads there is by whoever made it
        for uid in (os.lstat(path).st_uid, status.st_uid):
            if uid not in (0, os.geteuid()):
                raise ForeignFileError(
                    f"{shown} was not read: it belongs to {_name_of(uid)}, and settings are taken"
                    " from you and root alone"
                )
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(f"{shown} may be written by others: chmod go-w {shown}")
        data = file.read(_LARGEST_BYTES + 1)
    if len(data) > _LARGEST_BYTES:
        raise UsageError(f"{shown} is larger than 1 MiB, which no settings are: put another there")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{shown}:{line}: it is not UTF-8: save it as that") from error


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _entries(text: str, shown: str) -> Iterator[Entry]:
    """tomllib does not say where a value stands: it is asked for one statement after the other."""
    import tomllib

    _check_keys(text, shown)
    try:
        tomllib.loads(text)
    except ValueError as error:  # a TOMLDecodeError, or of a number without end
        raise UsageError(_not_toml(str(error), text, shown)) from error
    table: tuple[str, ...] = ()
    for statement, line in _statements(text):
        said = tomllib.loads(statement)
        if statement.startswith("["):
            [(table, _)] = _leaves(said)
            yield Entry(table, {}, line)
            continue
        for key, value in _leaves(said):
            if _is_beyond_toml(value):
                raise UsageError(f"{shown}:{line}: no number is that large")
            yield Entry((*table, *key), value, line)


def _check_keys(text: str, shown: str) -> None:
    dots = 0
    for part in _PART.finditer(text):
        dots = 0 if part[0] == "\n" else dots + (part["plain"] or "").count(".")
        if dots > _MOST_DOTS_IN_A_LINE:
            line = text.count("\n", 0, part.start()) + 1
            raise UsageError(f"{shown}:{line}: no key of a setting has that many parts")


def _statements(text: str) -> Iterator[tuple[str, int]]:
    """Of what is known to be TOML, each with its first line: it ends at the end of a line, unless
    that is between brackets or within a text."""
    depth, begin, line = 0, 0, 1
    for part in _PART.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part[0], 0)
        if part[0] == "\n" and not depth:
            yield text[begin : part.end()].lstrip(" \t"), line
            line += text.count("\n", begin, part.end())
            begin = part.end()
    yield text[begin:].lstrip(" \t"), line


def _is_beyond_toml(value: Any) -> bool:
    """Its numbers have 64 bits; Python's reader takes longer ones, which cannot be shown."""
    match value:
        case int():
            return abs(value) >= 2**63
        case list():
            return any(map(_is_beyond_toml, value))
        case dict():
            return any(map(_is_beyond_toml, value.values()))
        case _:
            return False


def _leaves(said: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values, each with the path to it; of a table's header, the table."""
    if isinstance(said, list) and said and isinstance(said[0], dict):
        said = said[0]  # [[name]]
    if not isinstance(said, dict) or (above and not said):
        yield above, said
        return
    for name, value in said.items():
        yield from _leaves(value, (*above, name))


def _not_toml(why: str, text: str, shown: str) -> str:
    at = re.search(r" \(at line (\d+), column \d+\)$", why)
    line = int(at[1]) if at else text.rstrip().count("\n") + 1
    why = re.sub(r" \(at .*\)$", "", why)
    return f'{shown}:{line}: this is no TOML ({why}): write it as in max-mem = "20%"'
