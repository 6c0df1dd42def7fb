"""Commands out of lines: of files and pipes, read only as far as they are wanted."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smartsched.core.model import BadLine, JobSpec
from smartsched.edges import intake
from smartsched.edges.clock import SteadyClock
from smartsched.edges.intake import Input, Lines, LineSplitter, OneCommand, open_inputs
from smartsched.edges.waiter import Waiter
from smartsched.errors import UsageError
from tests.waiting import wait_until

MANY = 10_000


def split(*chunks: bytes) -> list[JobSpec | BadLine]:
    splitter = LineSplitter("list")
    found = [entry for chunk in chunks for entry in splitter.feed(chunk)]
    return [*found, *splitter.end()]


def commands(*chunks: bytes) -> list[str]:
    found = split(*chunks)
    assert not [entry for entry in found if isinstance(entry, BadLine)]
    return [entry.command for entry in found if isinstance(entry, JobSpec)]


def lines_of(path: Path) -> Lines:
    return Lines(open_inputs([str(path)]), None)


def texts(found: Sequence[JobSpec | BadLine]) -> list[str]:
    return [entry.command if isinstance(entry, JobSpec) else entry.why for entry in found]


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    waiter = Waiter(SteadyClock())
    yield waiter
    waiter.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    for fd in (read_fd, write_fd):
        with suppress(OSError):  # the test may have closed it
            os.close(fd)


def test_blank_lines_and_comments_are_skipped_and_numbers_still_count_them():
    found = split(b"\n  \t\n# no\n   # neither\necho # yes\n")

    assert found == [JobSpec("echo # yes", "list:5")]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"a \\\n b\n", ["a  b"]),
        (b"a\\\nb\\\nc\n", ["abc"]),
        (b"a \\\r\n b\r\n", ["a  b"]),
        (b"a \\\\\nb\n", ["a \\\\", "b"]),
        (b"a \\\\\\\n b\n", ["a \\\\ b"]),
        (b"a \\\n", ["a "]),
        (b"a \\", ["a "]),
        (b"a \\\n\nb\n", ["a ", "b"]),
        (b"# no \\\nb\n", ["b"]),
        (b"  \\\n# no \\\nb\n", ["b"]),
        (b"a \\\n# part\n", ["a # part"]),
        (b"\\\nb\n", ["b"]),
        (b"\\", []),
    ],
    ids=repr,
)
def test_a_backslash_at_the_end_of_a_line_continues_it(lines: bytes, expected: list[str]):
    assert commands(lines) == expected


def test_a_continued_command_is_named_by_its_first_line():
    assert split(b"\na \\\nb\n\nc\n") == [JobSpec("a b", "list:2"), JobSpec("c", "list:5")]


def test_crlf_ends_a_line_and_a_lone_cr_does_not():
    assert commands(b"a\r\nb\rc\r\n\r\nd\r") == ["a", "b\rc", "d"]


def test_a_byte_order_mark_is_no_part_of_the_first_command():
    assert commands(b"\xef\xbb\xbfa\nb\n") == ["a", "b"]
    assert commands(b"\xef\xbb", b"\xbf# comment\nb\n") == ["b"]


def test_bytes_that_are_not_utf8_come_back_as_they_were():
    line = bytes(range(1, 256)).replace(b"\n", b"").replace(b"\r", b"").strip() + b"."

    [command] = commands(line + b"\n")

    assert command.encode("utf-8", "surrogateescape") == line


def test_a_nul_byte_is_an_error_that_names_its_line_and_the_others_still_come():
    found = split(b"a\nb\0c\nd\n")

    assert found[0] == JobSpec("a", "list:1")
    assert isinstance(found[1], BadLine)
    assert found[1].source == "list:2"
    assert "NUL" in found[1].why
    assert found[2] == JobSpec("d", "list:3")


@pytest.mark.parametrize("line", [b"x" * 4000, b"x" * 300 + b" \\\n" + b"y" * 900], ids=len)
def test_a_line_that_is_too_long_is_named_and_the_next_one_comes(
    line: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intake, "LONGEST_COMMAND_BYTES", 1000)
    data = line + b"\nnext\n"

    found = split(*(data[at : at + 100] for at in range(0, len(data), 100)))

    assert isinstance(found[0], BadLine)
    assert found[0].source == "list:1"
    assert isinstance(found[1], JobSpec)
    assert found[1].command == "next"


def test_a_list_of_one_endless_line_keeps_little_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake, "LONGEST_COMMAND_BYTES", 1000)

    found = split(*[b"x" * 100] * 50)

    assert [type(entry) for entry in found] == [BadLine]


def test_a_line_of_the_most_that_fits_is_taken_from_a_file(tmp_path: Path):
    path = tmp_path / "list"
    path.write_bytes(b": " + b"x" * (intake.LONGEST_COMMAND_BYTES - 2) + b"\nnext\n")

    lines = lines_of(path)
    found: list[str] = []
    while not lines.ended():
        found += texts(lines.take(9))

    assert [len(found[0]), found[1]] == [intake.LONGEST_COMMAND_BYTES, "next"]


@given(
    st.lists(st.sampled_from([b"\\", b"\n", b"\r", b"#", b" ", b"a", b"\0", b"\xff", b"\xc3\xa9"])),
    st.lists(st.integers(0, 40)),
)
@example([b"a", b"\\", b"\r", b"\n", b"b"], [1, 2, 3])
def test_however_the_bytes_are_cut_the_commands_are_the_same(parts: list[bytes], cuts: list[int]):
    data = b"".join(parts)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]

    pieces = [data[a:b] for a, b in pairwise(places)]

    assert split(*pieces) == split(data)


def test_files_come_one_after_the_other_each_with_its_own_numbers(tmp_path: Path):
    (tmp_path / "one").write_bytes(b"a\nb \\")
    (tmp_path / "two").write_bytes(b"")
    (tmp_path / "three").write_bytes(b"\xef\xbb\xbfc")
    paths = [str(tmp_path / name) for name in ("one", "two", "three")]
    lines = Lines(open_inputs(paths), None)

    found = lines.take(9)

    assert found == [
        JobSpec("a", f"{paths[0]}:1"),
        JobSpec("b ", f"{paths[0]}:2"),
        JobSpec("c", f"{paths[2]}:1"),
    ]
    assert lines.ended()


def test_only_as_many_commands_as_wanted_are_handed_out(tmp_path: Path):
    (tmp_path / "list").write_bytes(b"a\nb\nc\n")
    lines = lines_of(tmp_path / "list")

    taken = [texts(lines.take(2)), texts(lines.take(0)), texts(lines.take(2)), texts(lines.take(2))]

    assert taken == [["a", "b"], [], ["c"], []]
    assert lines.ended()


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_cannot_be_read_is_a_usage_error_that_names_it(name: str):
    with pytest.raises(UsageError, match=name):
        open_inputs([name])


def test_a_file_without_permission_is_a_usage_error(tmp_path: Path):
    path = tmp_path / "list"
    path.touch(mode=0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")

    with pytest.raises(UsageError, match="Permission denied"):
        open_inputs([str(path)])


def test_a_missing_file_reminds_of_the_dashes():
    with pytest.raises(UsageError, match="--"):
        open_inputs(["python"])


def test_of_a_huge_file_little_is_read_ahead(tmp_path: Path):
    path = tmp_path / "list"
    path.write_bytes(b"true\n" * 1_000_000)
    [source] = open_inputs([str(path)])
    lines = Lines([source], None)

    for _ in range(50):
        assert texts(lines.take(3)) == ["true"] * 3

    assert os.lseek(source.fd, 0, os.SEEK_CUR) <= 1 << 17
    lines.close()


def test_a_pipe_s_command_is_there_as_soon_as_its_line_is(waiter: Waiter, pipe: tuple[int, int]):
    read_fd, write_fd = pipe
    lines = Lines([Input(read_fd, "stdin")], waiter)
    assert lines.take(9) == []

    os.write(write_fd, b"first\nsec")
    waiter.wait(time.time() + 30)
    assert texts(lines.take(9)) == ["first"]
    assert lines.take(9) == []

    os.write(write_fd, b"ond\n")
    waiter.wait(time.time() + 30)
    assert texts(lines.take(9)) == ["second"]
    assert not lines.ended()

    os.write(write_fd, b"last")
    os.close(write_fd)
    wait_until(lambda: lines.take(0) == [] and texts(lines.take(9)) == ["last"])
    assert lines.ended()


def test_a_pipe_that_says_nothing_does_not_make_anybody_wait(pipe: tuple[int, int]):
    lines = Lines([Input(pipe[0], "stdin")], None)
    done = threading.Thread(target=lines.take, args=(1,), daemon=True)

    done.start()
    done.join(10)

    assert not done.is_alive()
    assert not lines.ended()


def test_nobody_is_woken_by_input_that_nobody_takes(waiter: Waiter, pipe: tuple[int, int]):
    read_fd, write_fd = pipe
    lines = Lines([Input(read_fd, "stdin")], waiter)
    assert lines.take(1) == []
    os.write(write_fd, b"a\nb\n")
    began = time.monotonic()
    waiter.wait(time.time() + 30)
    assert time.monotonic() - began < 20

    began = time.monotonic()
    waiter.wait(time.time() + 0.3)

    assert time.monotonic() - began > 0.2
    assert texts(lines.take(1)) == ["a"]


def test_an_input_that_fails_half_way_is_an_error_and_the_next_one_comes(tmp_path: Path):
    (tmp_path / "list").write_bytes(b"a\n")
    folder = os.open(tmp_path, os.O_RDONLY)
    lines = Lines([Input(folder, "broken"), *open_inputs([str(tmp_path / "list")])], None)

    found = lines.take(9)

    assert isinstance(found[0], BadLine)
    assert found[0].source == "broken"
    assert "directory" in found[0].why
    assert texts(found[1:]) == ["a"]


def test_closing_lets_go_of_every_descriptor(tmp_path: Path):
    (tmp_path / "list").write_bytes(b"a\n" * MANY)
    before = os.listdir("/proc/self/fd")
    lines = Lines(open_inputs([str(tmp_path / "list")] * 3), None)
    lines.take(1)

    lines.close()

    assert os.listdir("/proc/self/fd") == before
    assert lines.current_fd() is None


def test_standard_input_is_a_copy_that_closes_without_the_original():
    [source] = open_inputs(["-"])

    assert source.name == "stdin"
    assert source.fd != 0
    assert not os.get_inheritable(source.fd)
    os.close(source.fd)
    os.fstat(0)


def test_one_command_comes_once():
    only = OneCommand("python train.py")

    taken = [only.ended(), texts(only.take(0)), texts(only.take(9)), only.ended(), only.take(9)]

    assert taken == [False, [], ["python train.py"], True, []]
