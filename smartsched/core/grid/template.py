"""A command with places for values, and how a value is quoted for the place where it goes.

`{lr}` is such a place, `{{` and `}}` are braces. The shell that will run the command takes a value
for what it is wherever the place stands: bare, between quotes of either kind, or in a comment.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from msgspec import Struct

from smartsched.core.words import shortened
from smartsched.errors import UsageError

NAME = re.compile(r"[^\W\d][\w.-]*")

Quote: TypeAlias = Callable[[str], str]


class Place(Struct, frozen=True):
    """Where a value of this parameter goes."""

    name: str
    quote: Quote


Parts: TypeAlias = tuple[str | Place, ...]

_PIECE = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<place>[^{}]*)\}|(?P<lone>[{}])|[^{}]+")
# As lists of commands and shells read it: the line goes on.
_CONTINUED = re.compile(r"(?<!\\)((?:\\\\)*)\\\r?\n")
_SAFE = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_SPECIAL_IN_DOUBLE_QUOTES = re.compile(r"([\\\"$`])")
_RAW = "raw"


def parse_template(text: str) -> Parts:
    """Raises UsageError for what cannot be one line, or a place for a value."""
    text = _CONTINUED.sub(r"\1", text).lstrip().rstrip("\r\n")
    if "\n" in text or "\r" in text:
        raise UsageError("the template has a line break in it, and a command is one line")
    if not text:
        raise UsageError("the template is empty")
    shell = _ShellText()
    parts = [_part(piece, shell) for piece in _PIECE.finditer(text)]
    any_raw = any(isinstance(part, Place) and part.quote is as_it_is for part in parts)
    if (quote := shell.open_quote()) and not any_raw:
        raise UsageError(f"the template has a {quote} that is never closed")
    return tuple(_merged(parts))


def names_in(parts: Sequence[str | Place]) -> list[str]:
    """The parameters that there are places for, each once, in their order."""
    return list(dict.fromkeys(part.name for part in parts if isinstance(part, Place)))


def check_is_command(parts: Sequence[str | Place], given: Callable[[str], Sequence[str]]) -> None:
    """That no command would be skipped, or go on in the next line, where a list is read.

    `given`: the texts that the user wrote as values of a parameter; all others are numbers.
    Raises UsageError.
    """
    _check_beginning(parts, given)
    _check_end(parts, given)


def as_it_is(value: str) -> str:
    return value


def bare(value: str) -> str:
    """One word for the shell, whatever is in it; plain words stay plain."""
    return value if _SAFE.fullmatch(value) else f"'{in_single_quotes(value)}'"


def in_single_quotes(value: str) -> str:
    return value.replace("'", "'\\''")


def in_double_quotes(value: str) -> str:
    return _SPECIAL_IN_DOUBLE_QUOTES.sub(r"\\\1", value)


def _part(piece: re.Match[str], shell: "_ShellText") -> str | Place:
    if piece["lone"]:
        raise UsageError(_lone_brace(piece.string, piece.start()))
    if piece["place"] is not None:
        return _place(piece["place"], shell)
    literal = piece["brace"][0] if piece["brace"] else piece[0]
    shell.feed(literal)
    return literal


def _merged(parts: Iterable[str | Place]) -> Iterator[str | Place]:
    """Neighbouring texts are one."""
    for are_texts, group in groupby(parts, lambda part: isinstance(part, str)):
        if are_texts:
            yield "".join(str(part) for part in group)
        else:
            yield from group


def _place(inside: str, shell: "_ShellText") -> Place:
    name, colon, how = inside.partition(":")
    if not NAME.fullmatch(name):
        shown = shortened(inside, 40)
        raise UsageError(f"{{{shown}}} is no place for a value: for braces write {{{{{shown}}}}}")
    if colon and how != _RAW:
        raise UsageError(f"{{{shortened(inside, 40)}}}: there is only {{{name}}} or {{{name}:raw}}")
    quote = as_it_is if colon else shell.quote_for(name)
    shell.feed_value()
    return Place(name, quote)


def _lone_brace(text: str, at: int) -> str:
    brace = text[at]
    shown = shortened(text[at:], 20) if brace == "{" else f"…{text[max(at - 18, 0) : at + 1]}"
    return f"a {brace} stands alone in {shown!r}: for a brace write {brace}{brace}"


class _ShellText:
    """Follows the text of a command as far as it takes to know what quotes a place stands in."""

    def __init__(self) -> None:
        self._closers: list[str] = []  # what ends each of the constructs that are open, inmost last
        self._previous = " "  # an unquoted character; "" where what is before is quoted or a value
        self._escaped = False
        self._in_comment = False

    def feed(self, text: str) -> None:
        for character in text:
            if not self._in_comment:
                self._step(character)

    def feed_value(self) -> None:
        self._previous, self._escaped = "", False

    def quote_for(self, name: str) -> Quote:
        """Raises UsageError where no quoting would be right."""
        if self._in_comment:
            return as_it_is
        innermost = self._closers[-1] if self._closers else ""
        if innermost == "'":
            return in_single_quotes
        if self._previous == "$":
            shell_s = f"for the shell's variable write ${{{{{name}}}}}"
            raise UsageError(f"${{{name}}} has a $ before its value: {shell_s}, else leave out $")
        if self._escaped:
            raise UsageError(f"a backslash stands before {{{name}}} and would spoil its quotes")
        for closer, words in _WHERE_QUOTES_FAIL.items():
            if closer in self._closers:
                raise UsageError(f"{{{name}}} cannot be quoted {words}, or write {{{name}:raw}}")
        return in_double_quotes if innermost == '"' else bare

    def open_quote(self) -> str:
        """The inmost quote that was not closed; "" if all were."""
        quotes = [closer for closer in self._closers if closer in _QUOTES]
        return quotes[-1].removeprefix("$") if quotes else ""

    def _step(self, character: str) -> None:
        innermost = self._closers[-1] if self._closers else ""
        previous, self._previous = self._previous, character
        if innermost == "'":
            if character == "'":
                self._closers.pop()
        elif self._escaped:
            self._escaped, self._previous = False, ""
        elif character == "\\":
            self._escaped = True
        elif character == innermost.removeprefix("$"):
            self._closers.pop()
        elif innermost != "$'":
            self._open(character, previous, innermost)

    def _open(self, character: str, previous: str, innermost: str) -> None:
        after_dollar = previous == "$"
        if character in ("`", '"'):
            self._closers.append(character)
        elif character == "'" and not self._is_quoted(innermost):
            self._closers.append("$'" if after_dollar else "'")
        elif character == "(" and (after_dollar or innermost != '"'):
            self._closers.append(")")
        elif character == "{" and after_dollar:
            self._closers.append("}")
        elif character == "#" and innermost not in ('"', "}") and previous in _BEFORE_A_WORD:
            self._in_comment = True

    def _is_quoted(self, innermost: str) -> bool:
        """In "..." and "${...}" an apostrophe is one."""
        return innermost == '"' or (innermost == "}" and '"' in self._closers)


_BEFORE_A_WORD = tuple(" \t;&|()<>")
_QUOTES = ("'", "$'", '"', "`")
_WHERE_QUOTES_FAIL = {
    "`": "between backquotes: use $(...) instead",
    "$'": "in $'...': use '...' instead",
    "}": "in ${{...}}: assign it to a variable before",
}


def _check_beginning(parts: Sequence[str | Place], given: Callable[[str], Sequence[str]]) -> None:
    for part in parts:
        texts = _possible(part, given)
        if any(text.lstrip().startswith("#") for text in texts):
            raise UsageError("a command would begin with #: it would be skipped as a comment")
        if all(text.strip() for text in texts):
            return
    raise UsageError("a command would be blank")


def _check_end(parts: Sequence[str | Place], given: Callable[[str], Sequence[str]]) -> None:
    for part in reversed(parts):
        texts = _possible(part, given)
        if any(_is_continued(text) for text in texts):
            raise UsageError("a command would end in a backslash and go on in the next line")
        if all(texts):
            return


def _is_continued(text: str) -> bool:
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _possible(part: str | Place, given: Callable[[str], Sequence[str]]) -> Sequence[str]:
    """What may come out there; nothing: a number, which is harmless."""
    return (part,) if isinstance(part, str) else [part.quote(text) for text in given(part.name)]
