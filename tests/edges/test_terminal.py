"""Drawing in place, byte by byte; on real terminals it is tried in tests/cli."""

import pytest

from smartsched.edges.terminal import Canvas


class Paper:
    """A stream that remembers; it has no size, so that 80 columns and 24 rows are taken for it."""

    def __init__(self) -> None:
        self.text = ""
        self.behind = False

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def fileno(self) -> int:
        return -1

    def is_behind(self) -> bool:
        return self.behind

    def take(self) -> str:
        text, self.text = self.text, ""
        return text


def test_a_terminal_that_does_not_say_its_size_has_the_usual_one():
    assert Canvas(Paper(), whole=True).size() == (79, 24)


def test_a_picture_is_overwritten_and_the_cursor_waits_on_its_first_line():
    paper = Paper()
    canvas = Canvas(paper, whole=False)
    canvas.open()
    canvas.show(["a", "b", "c"])
    paper.take()

    canvas.show(["d", "e"])

    assert paper.take() == "\x1b[?7l\rd\x1b[K\r\ne\x1b[K\x1b[J\r\x1b[1A\x1b[?7h"


@pytest.mark.parametrize(("width", "erased"), [(79, True), (80, False), (81, True), (160, False)])
def test_a_line_that_fills_its_rows_keeps_its_last_letter(width: int, erased: bool):
    paper = Paper()
    canvas = Canvas(paper, whole=False)
    canvas.open()
    canvas.show(["a"])
    paper.take()

    canvas.above("x" * width, width)

    assert paper.take().startswith("\r" + "x" * width + ("\x1b[K" if erased else "") + "\r\n")


def test_what_nobody_would_see_in_time_is_not_drawn():
    paper = Paper()
    canvas = Canvas(paper, whole=True)
    canvas.open()
    paper.take()
    paper.behind = True

    canvas.show(["old news"])

    assert paper.take() == ""


@pytest.mark.parametrize(
    ("whole", "last"), [(True, "\x1b[?1049l\x1b[?25h"), (False, "\r\x1b[J\x1b[?25h")]
)
def test_in_the_end_the_picture_is_gone_and_the_cursor_is_back(whole: bool, last: str):
    paper = Paper()
    canvas = Canvas(paper, whole=whole)
    canvas.open()
    canvas.show(["a"])
    paper.take()

    canvas.close()
    canvas.close()

    assert paper.take() == last
    canvas.above("said afterwards", 15)
    assert paper.take() == "said afterwards\n"
