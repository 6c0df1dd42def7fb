"""A real terminal: programs run inside tmux, which understands what they write as terminals do."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.cli.harness import PROGRAM, Box
from tests.waiting import wait_until


def needs_tmux() -> None:
    """Skips where there is none; in CI there has to be."""
    if shutil.which("tmux") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have tmux: nothing that is drawn is tested")
        pytest.skip("no tmux to look at what is drawn with")


class Terminal:
    """One that can be resized and looked at, and keeps all bytes that were written to it."""

    def __init__(self, box: Box, *, columns: int, rows: int) -> None:
        self._box = box
        self._folder = box.folder
        self._raw = box.folder / "terminal"
        self._status = box.folder / "status"
        self._socket = box.folder / "tmux"
        self.columns, self.rows = columns, rows

    def start(self, *args: str, env: dict[str, str] | None = None) -> None:
        """Runs smartsched; its status is on the screen when it has ended."""
        settings = {**self._box.env, **(env or {})}
        for name in ("COLUMNS", "LINES", "TMUX"):
            settings.pop(name, None)
        settings.setdefault("LANG", "C.UTF-8")
        script = self._folder / "in-terminal.sh"
        pairs = [f"{name}={value}" for name, value in settings.items() if name != "TERM"]
        # the terminal's own TERM, unless the test is about another
        term = [f"TERM={env['TERM']}"] if env and "TERM" in env else []
        command = shlex.join(["env", *pairs, *term, *PROGRAM, *args])
        script.write_text(
            f"cd {shlex.quote(str(self._folder))}\n"
            f"until test -e {shlex.quote(str(self._raw))}; do sleep 0.01; done\n"
            f"printf 'the shell before\\n'\n{command}\n"
            f"echo ended with $?; stty -a | grep -o -- '-\\?icanon'\n"
            f"echo $$ > {shlex.quote(str(self._status))}; exec cat\n"
        )
        size = ["-x", str(self.columns), "-y", str(self.rows)]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-s", "t", *size, f"bash {script}")
        self._tmux("set-option", "-g", "history-limit", "5000")
        self._tmux("pipe-pane", "-t", "t", f"cat > {shlex.quote(str(self._raw))}")

    def resize(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._tmux("resize-window", "-t", "t", "-x", str(columns), "-y", str(rows))

    def resize_and_see(self, columns: int, rows: int, frame: str) -> None:
        """Wait until it was drawn anew; `frame` is what every picture has in its bytes once."""
        self.resize(columns, rows)
        drawn = self.written().count(frame) + 2  # one may have been on its way
        wait_until(lambda: self.written().count(frame) >= drawn, "it is drawn anew", self.dump)

    def dump(self) -> str:
        return "\n".join(self.screen())

    def press(self, *keys: str) -> None:
        """As tmux calls them: q, C-c."""
        self._tmux("send-keys", "-t", "t", *keys)

    def screen(self) -> list[str]:
        """The lines on it, without blanks at their ends."""
        out = self._tmux("capture-pane", "-p", "-t", "t")
        return [line.rstrip() for line in out.splitlines()]

    def everything(self) -> list[str]:
        """Also what has scrolled away; lines that the terminal has wrapped are one."""
        out = self._tmux("capture-pane", "-p", "-J", "-S", "-", "-t", "t")
        return [line.rstrip() for line in out.splitlines()]

    def shows(self, *texts: str) -> list[str]:
        """Wait until all of these are on the screen; the screen then."""

        def seen() -> bool:
            screen = "\n".join(self.screen())
            return all(text in screen for text in texts)

        wait_until(seen, f"the terminal shows {texts}", self.dump)
        return self.screen()

    def cursor_is_shown(self) -> bool:
        return self._tmux("display-message", "-p", "-t", "t", "#{cursor_flag}").strip() == "1"

    def is_on_other_screen(self) -> bool:
        return self._tmux("display-message", "-p", "-t", "t", "#{alternate_on}").strip() == "1"

    def written(self) -> str:
        """All bytes, as they were written."""
        return self._raw.read_bytes().decode("utf-8", "replace")

    def pid(self) -> int:
        """Of the program."""
        shell = self._tmux("display-message", "-p", "-t", "t", "#{pane_pid}").strip()
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(children[0])

    def close(self) -> None:
        subprocess.run(
            ["tmux", "-S", str(self._socket), "kill-server"], check=False, capture_output=True
        )

    def _tmux(self, *words: str) -> str:
        argv = ["tmux", "-S", str(self._socket), *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout


OpenTerminal: TypeAlias = Callable[[int, int], Terminal]
"""Of so many columns and rows."""
