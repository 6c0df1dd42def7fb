"""Turns the bytes of a list into commands."""

from collections.abc import Iterator

from smartsched.core.directives import wishes_in
from smartsched.core.model import BadLine, JobSpec
from smartsched.errors import UsageError

LONGEST_COMMAND_BYTES = 16 << 20
_UTF8_BOM = b"\xef\xbb\xbf"


class LineSplitter:
    """Turns bytes of one input into commands.

    Blank lines and comments are skipped, a backslash at a line's end continues it, CRLF ends a line
    as LF does. Bytes that are not UTF-8 travel as surrogate escapes.
    """

    def __init__(self, name: str, directory: str = "", line: int = 0, offset: int = 0) -> None:
        """`line` and `offset`: what of the input was read before."""
        self._name = name
        self._directory = directory
        self._rest = bytearray()
        self._dropped = 0  # bytes of the present line that are too many to be kept
        self.line_number = line
        self.offset = offset  # behind the last whole line
        self._command = bytearray()  # of lines so far that say they go on
        self._began_at = 0
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[JobSpec | BadLine]:
        self._rest += data
        if b"\n" in data:
            *lines, rest = self._rest.split(b"\n")
            self._rest = rest
            for line in lines:
                self.offset += self._dropped + len(line) + 1
                self._dropped = 0
                yield from self._line(bytes(line))
        if len(self._rest) > LONGEST_COMMAND_BYTES:
            self._too_long = True
            self._dropped += len(self._rest)
            self._rest.clear()

    def end(self) -> Iterator[JobSpec | BadLine]:
        self.offset += self._dropped + len(self._rest)
        if self._rest or self._too_long:
            yield from self._line(bytes(self._rest))
        if self._command:  # the last line said that it goes on; take it at what it has
            yield from self._finish(bytes(self._command))

    def _line(self, line: bytes) -> Iterator[JobSpec | BadLine]:
        self.line_number += 1
        if self.line_number == 1:
            line = line.removeprefix(_UTF8_BOM)
        line = line.removesuffix(b"\r")
        if not self._command:
            self._began_at = self.line_number
        is_comment = bytes(self._command[:2]) in (b"", b" ") and line.lstrip().startswith(b"#")
        if _goes_on(line) and not is_comment:
            self._command += line[:-1]
            if self._command.isspace():
                self._command = bytearray(b" ")  # it begins later
            self._check_length()
            return
        yield from self._finish(bytes(self._command) + line)

    def _check_length(self) -> None:
        if len(self._command) > LONGEST_COMMAND_BYTES:
            self._too_long = True
            self._command = bytearray(b" ")

    def _finish(self, command: bytes) -> Iterator[JobSpec | BadLine]:
        too_long, self._too_long = self._too_long, False
        self._command.clear()
        source = f"{self._name}:{self._began_at}"
        command = command.lstrip()
        if too_long or len(command) > LONGEST_COMMAND_BYTES:
            yield BadLine(source, f"longer than {LONGEST_COMMAND_BYTES >> 20} MiB")
        elif not command or command.startswith(b"#"):
            return
        elif b"\0" in command:
            yield BadLine(source, "holds a NUL byte, which no shell can take")
        else:
            yield spec_of(command.decode("utf-8", "surrogateescape"), source, self._directory)


def spec_of(text: str, source: str, directory: str) -> JobSpec | BadLine:
    """What a command asks for; `source`: where it stands, `directory`: where it is to run."""
    try:
        return JobSpec(text, source, directory, wishes_in(text))
    except UsageError as error:
        return BadLine(source, str(error), may_be_mended=True)


def _goes_on(line: bytes) -> bool:
    backslashes = len(line) - len(line.rstrip(b"\\"))
    return backslashes % 2 == 1
