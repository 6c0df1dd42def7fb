"""Writes to a descriptor whose reader may be slow, asleep or gone, and never waits for it."""

import io
import os
import select

# What poll() promises of a pipe (POSIX PIPE_BUF); terminals promise less and rarely need it.
_WRITE_BYTES = 4096
_MOST_UNWRITTEN_BYTES = 1 << 20
_LAST_CHANCE_SECONDS = 1.0


class PatientStream(io.TextIOBase):
    """A text stream. What its reader does not take is kept, up to a bound; then it is dropped and
    said so. A reader who is gone is nobody's trouble."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unwritten = bytearray()
        self._dropped_lines = 0
        self._gone = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    encoding = "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def fileno(self) -> int:
        return self._fd

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        if len(self._unwritten) > _MOST_UNWRITTEN_BYTES:
            self._dropped_lines += data.count(b"\n")
        elif not self._gone:
            self._unwritten += data
        return len(text)

    def is_behind(self) -> bool:
        """Whether something that was written has not been taken yet."""
        return bool(self._unwritten)

    def flush(self) -> None:
        """As much as is taken without waiting."""
        while self._unwritten and not self._gone and self._is_taken(0):
            self._write_some()
        if self._dropped_lines and not self._unwritten:
            said = f"smartsched: {self._dropped_lines} lines were dropped; nobody read them\n"
            self._unwritten += said.encode()
            self._dropped_lines = 0

    def finish(self) -> None:
        """As much as is taken within a moment."""
        while self._unwritten and not self._gone and self._is_taken(_LAST_CHANCE_SECONDS):
            self._write_some()

    def _is_taken(self, seconds: float) -> bool:
        return bool(self._poll.poll(seconds * 1000))

    def _write_some(self) -> None:
        try:
            del self._unwritten[: os.write(self._fd, self._unwritten[:_WRITE_BYTES])]
        except BlockingIOError:
            return
        except OSError:
            self._gone = True
            self._unwritten.clear()
