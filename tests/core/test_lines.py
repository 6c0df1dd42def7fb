"""What commands ask for themselves, as lines of a list are read."""

import pytest

from smartsched.core.lines import LineSplitter
from smartsched.core.model import BadLine, JobSpec, Wishes


def read(text: str) -> list[JobSpec | BadLine]:
    lines = LineSplitter("list")
    return [*lines.feed(text.encode()), *lines.end()]


def test_a_line_says_what_its_command_asks_for():
    (spec,) = read("python train.py  # smartsched: gpus=2 mem=24GiB priority=5 timeout=2h name=big")

    assert isinstance(spec, JobSpec)
    assert spec.wishes == Wishes(
        gpus=2, memory_bytes=24 << 30, priority=5, timeout_seconds=7200.0, name="big"
    )


def test_the_shell_gets_the_line_as_it_is():
    (spec,) = read("echo 1  # smartsched: gpus=0\n")

    assert isinstance(spec, JobSpec)
    assert spec.command == "echo 1  # smartsched: gpus=0"


def test_lines_that_ask_for_nothing_have_no_wishes():
    for spec in read("a\nb  # gpus=2\necho '# smartsched: gpus=2'\n"):
        assert isinstance(spec, JobSpec)
        assert spec.wishes == Wishes()


def test_a_line_that_asks_for_nothing_that_there_is_is_named_and_the_others_are_read():
    first, second = read("a\n\nb  # smartsched: gpu=2\n")

    assert isinstance(first, JobSpec)
    assert isinstance(second, BadLine)
    assert second.source == "list:3"
    assert "'gpu' cannot be asked for" in second.why
    assert second.may_be_mended


@pytest.mark.parametrize("text", ["a \0 b\n"])
def test_what_is_no_command_at_all_cannot_be_mended_before_the_run(text: str):
    (bad,) = read(text)

    assert isinstance(bad, BadLine)
    assert not bad.may_be_mended


def test_wishes_behind_a_line_that_goes_on_are_those_of_the_whole_command():
    (spec,) = read("python train.py \\\n  --lr 1  # smartsched: gpus=4\n")

    assert isinstance(spec, JobSpec)
    assert spec.wishes.gpus == 4
    assert spec.source == "list:1"
