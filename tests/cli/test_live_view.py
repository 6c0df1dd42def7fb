"""The live view on a real terminal (a pty), of several sizes."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

import pytest

from tests.cli.harness import MOMENT, PROGRAM, Box
from tests.cli.tmux import OpenTerminal, Terminal
from tests.waiting import wait_until

A_FRAME = "\x1b[?7l"  # of every picture once
COLOUR = re.compile(r"\x1b\[[\d;]*3[0-7][\d;]*m")


def on_a_terminal(
    box: Box, *args: str, columns: int = 100, rows: int = 30, env: dict[str, str] | None = None
) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [*PROGRAM, *args],
        env=box.env | {"TERM": "xterm-256color", "COLUMNS": str(columns)} | (env or {}),
        cwd=box.folder,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = bytearray()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
    os.close(ours)
    return process.wait(10), seen.decode("utf-8", "replace")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_it_shows_gpus_jobs_and_counts_and_ends_with_the_summary(box: Box, columns: int):
    box.machine.set(3, used_bytes=40 << 30)
    listing = box.list_of(["sleep 1; echo [bold]$SMARTSCHED_JOB"] * 4 + ["exit 5"])

    status, seen = on_a_terminal(box, *MOMENT, str(listing), columns=columns)

    assert status == 1
    assert "OURS" in seen
    assert "running" in seen
    assert "job 1 started on GPU 0" in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r|\n", "", seen)
    assert "4 jobs ok, 1 failed" in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r|\n", "", seen)
    assert "Traceback" not in seen


def test_many_gpus_fit_a_small_terminal(box: Box):
    listing = box.list_of(["sleep 0.5"] * 20)

    status, seen = on_a_terminal(
        box, "--simulate", "64", "--free-for", "0", str(listing), columns=60, rows=12
    )

    assert status == 0
    assert "more GPUs" in seen


@pytest.mark.parametrize(("args", "env"), [(("--no-color",), {}), ((), {"NO_COLOR": "1"})])
def test_no_colour_where_none_is_wanted(box: Box, args: tuple[str, ...], env: dict[str, str]):
    listing = box.list_of(["sleep 0.5", "false"])

    _, coloured = on_a_terminal(box, *MOMENT, str(listing))
    _, plain = on_a_terminal(box, *MOMENT, *args, str(listing), env=env)

    assert COLOUR.search(coloured)
    assert not COLOUR.search(plain)


@pytest.mark.parametrize("how", [("--no-progress",), ("-q",), ("--output", "tag")])
def test_no_live_view_where_it_would_be_in_the_way(box: Box, how: tuple[str, ...]):
    status, seen = on_a_terminal(box, *MOMENT, *how, str(box.list_of(["sleep 0.3; echo out"])))

    assert status == 0
    assert "OURS" not in seen
    assert "1 job ok" in seen


def test_a_dumb_terminal_gets_plain_lines(box: Box):
    status, seen = on_a_terminal(box, *MOMENT, str(box.list_of(["true"])), env={"TERM": "dumb"})

    assert status == 0
    assert "\x1b" not in seen


def test_a_dumb_terminal_gets_plain_lines_though_more_is_asked_for(box: Box):
    listing = str(box.list_of(["true"]))

    status, seen = on_a_terminal(box, *MOMENT, "--progress", listing, env={"TERM": "dumb"})

    assert status == 0
    assert "\x1b" not in seen


def is_whole(screen: list[str], gpus: int) -> bool:
    """Lines with the time, then one picture: a header, a line for each GPU in order, the counts."""
    lines = [line for line in screen if line]
    headers = [number for number, line in enumerate(lines) if line.startswith("GPU ")]
    if len(headers) != 1:
        return False
    above, below = lines[: headers[0]], lines[headers[0] + 1 :]
    labels = [line.split()[0] for line in below[:gpus]]
    counts = " ".join(below[gpus:])
    return (
        labels == [str(index) for index in range(gpus)]
        and " done of 500 · " in counts
        and counts.count(" running") == 1
        and len(below) <= gpus + 2
        and not any(" GiB  " in line for line in above)
    )


def becomes_whole(terminal: Terminal) -> None:
    wait_until(
        lambda: is_whole(terminal.screen(), 16),
        f"it shows 16 GPUs once in {terminal.columns} columns",
        terminal.dump,
    )


@pytest.mark.parametrize("columns", [80, 200])
def test_it_follows_the_size_of_the_terminal_and_leaves_nothing_behind(
    box: Box, terminal: OpenTerminal, columns: int
):
    """With 16 GPUs and 500 jobs, of which some end at any moment."""
    listing = box.list_of(["sleep 0.1"] * 100 + ["until test -e go; do sleep 0.1; done"] * 400)
    shown = terminal(columns, 32)
    shown.start(
        "--simulate", "16", "--free-for", "0", "--max-mem", "100%", "--max-util", "100%",
        "--interval", "200ms", str(listing),
    )  # fmt: skip

    becomes_whole(shown)
    for width, height in ((280 - columns, 32), (61, 24), (columns, 32)):
        shown.resize_and_see(width, height, A_FRAME)
        becomes_whole(shown)
    shown.press("C-c", "C-c")
    shown.shows("ended with 130")

    assert shown.cursor_is_shown()
    # As it was written: what a terminal makes of lines while it rewraps is its own matter.
    started = re.findall(r"job (\d+) started on ", shown.written())
    assert started == [str(number) for number in range(1, len(started) + 1)]
    assert not any(line.startswith("GPU ") for line in shown.screen())
    for erases_before_it_draws in ("\x1b[2J", "\x1b[2K", "\r\x1b[J\x1b[?7l"):
        assert erases_before_it_draws not in shown.written()
