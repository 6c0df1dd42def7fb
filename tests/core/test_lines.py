"""What commands ask for themselves, as lines of a list are read."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core import lines
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


PIECES = st.lists(
    st.sampled_from(
        [
            b"\\",
            b"\\\n",
            b"\n",
            b"\r\n",
            b" ",
            b"#",
            b"a",
            b"'",
            b'"',
            b"\0",
            b"\xff",
            b"\t\\\n",
            b"# smartsched:",
            b" gpus=2",
            b" mem=9",
            b"\xef\xbb\xbf",
            b"x" * 30,
        ]
    ),
    max_size=20,
).map(b"".join)


@given(PIECES, st.integers(1, 7))
def test_any_bytes_are_commands_or_lines_that_are_named_whole_or_in_pieces(data: bytes, size: int):
    whole, pieces = LineSplitter("list"), LineSplitter("list")

    found = [*whole.feed(data), *whole.end()]
    again = [e for at in range(0, len(data), size) for e in pieces.feed(data[at : at + size])]

    assert [*again, *pieces.end()] == found
    assert whole.offset == pieces.offset == len(data)
    for entry in found:
        assert entry.source.startswith("list:")
        if isinstance(entry, JobSpec):
            os.fsencode(entry.command)


@given(PIECES)
def test_no_command_is_longer_than_the_longest_however_many_lines_it_has(data: bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "LONGEST_COMMAND_BYTES", 20)
        for entry in LineSplitter("list").feed(data * 3 + b"\n"):
            assert isinstance(entry, BadLine) or len(os.fsencode(entry.command)) <= 20


@pytest.mark.parametrize("line", [b"--lr 0.1 \\\n", b" \\\n", b"\\\n", b"\t\t\\\n", b"# x \\\n"])
@pytest.mark.timeout(60)
def test_a_command_of_very_many_lines_takes_no_longer_for_each_of_them(line: bytes):
    splitter = LineSplitter("list")

    found = [*splitter.feed(line * 300_000), *splitter.end()]

    assert len(found) <= 1
