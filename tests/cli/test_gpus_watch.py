"""`gpus --watch` on a real terminal, which changes its size meanwhile."""

import os
import re
import signal

import pytest

from tests.cli.tmux import OpenTerminal, Terminal
from tests.waiting import wait_until

PRETENDED = ("gpus", "--watch", "--simulate", "16", "--interval", "200ms")
COLOUR = re.compile(r"\x1b\[[\d;]*[34][0-7][\d;]*m")
BARS = "▁▂▃▄▅▆▇█"
A_FRAME = "\x1b[H"


def is_whole(screen: list[str], gpus: int) -> bool:
    """A title, a header, a line for each GPU in order, how to end, and nothing else."""
    lines = [line for line in screen if line]
    labels = [line.split()[0] for line in lines[2:-1]]
    return (
        labels == [str(index) for index in range(gpus)]
        and lines[1].split()[0] == "GPU"
        and lines[-1].startswith("q or Ctrl-C")
        and len(lines) == gpus + 3
    )


def becomes_whole(terminal: Terminal, gpus: int) -> list[str]:
    wait_until(
        lambda: is_whole(terminal.screen(), gpus),
        f"it shows {gpus} GPUs in {terminal.columns} columns and nothing else",
        terminal.dump,
    )
    return terminal.screen()


@pytest.mark.parametrize("columns", [80, 200])
def test_it_fills_the_terminal_and_follows_its_size(terminal: OpenTerminal, columns: int):
    shown = terminal(columns, 30)
    shown.start(*PRETENDED)

    before = becomes_whole(shown, 16)
    for narrow in (280 - columns, 61, columns):
        shown.resize_and_see(narrow, 30, A_FRAME)
        after = becomes_whole(shown, 16)
        assert max(map(len, after)) <= narrow
    shown.resize(columns, 12)
    shown.shows("and 8 more GPUs")

    assert any(bar in line for line in before for bar in BARS)
    assert ("Pretend GPU" in "".join(before)) == (columns == 200)
    for erases_before_it_draws in ("\x1b[2J", "\x1b[2K", "\x1b[H\x1b[J"):
        assert erases_before_it_draws not in shown.written()


@pytest.mark.parametrize(
    ("how", "status"),
    [("q", 0), ("C-c", 0), (signal.SIGTERM, 143)],
    ids=["q", "Ctrl-C", "SIGTERM"],
)
def test_whatever_ends_it_the_terminal_is_as_it_was(
    terminal: OpenTerminal, how: str | signal.Signals, status: int
):
    shown = terminal(80, 24)
    shown.start(*PRETENDED)
    becomes_whole(shown, 16)
    assert not shown.cursor_is_shown()
    assert shown.is_on_other_screen()

    if isinstance(how, str):
        shown.press(how)
    else:
        os.kill(shown.pid(), how)
    screen = shown.shows(f"ended with {status}", "icanon")

    assert [line for line in screen if line] == [
        "the shell before", f"ended with {status}", "icanon",
    ]  # fmt: skip
    assert shown.cursor_is_shown()
    assert not shown.is_on_other_screen()


def test_no_colour_where_none_is_wanted(terminal: OpenTerminal):
    shown = terminal(80, 24)
    shown.start(*PRETENDED, env={"NO_COLOR": "1"})

    becomes_whole(shown, 16)

    assert not COLOUR.search(shown.written())


def test_a_dumb_terminal_gets_lines_without_colour_or_movement(terminal: OpenTerminal):
    shown = terminal(80, 24)
    shown.start(*PRETENDED, env={"TERM": "dumb"})

    shown.shows("GPU 15 ")

    assert "\x1b" not in shown.written()
    shown.press("C-c")
    shown.shows("ended with 0")


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(terminal: OpenTerminal):
    shown = terminal(80, 24)
    shown.start(*PRETENDED)
    becomes_whole(shown, 16)

    os.kill(shown.pid(), signal.SIGTSTP)
    wait_until(lambda: not shown.is_on_other_screen(), "it lets go", shown.dump)
    assert shown.cursor_is_shown()
    os.kill(shown.pid(), signal.SIGCONT)

    becomes_whole(shown, 16)
    assert not shown.cursor_is_shown()
    shown.press("q")
    shown.shows("ended with 0", "icanon")
