"""Commands out of lines: of files and pipes, read only as far as they are wanted."""

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smartsched.core import lines as command_lines
from smartsched.core.events import InputRead
from smartsched.core.lines import LineSplitter
from smartsched.core.model import BadLine, JobSpec, Position
from smartsched.edges.clock import SteadyClock
from smartsched.edges.intake import Input, Lines, OneCommand, open_inputs
from smartsched.edges.spool import Spool
from smartsched.edges.waiter import Waiter
from smartsched.errors import UsageError
from smartsched.ports import Arrived, Recall
from tests.builders import T0

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
    return Lines(open_inputs([str(path)]))


def texts(found: Sequence[JobSpec | BadLine]) -> list[str]:
    return [entry.command if isinstance(entry, JobSpec) else entry.why for entry in found]


class Copies:
    """Where a run keeps what it has read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, number: int, flags: int) -> int:
        return os.open(self.folder / f"list-{number}", flags, 0o600)

    def content(self, number: int) -> bytes:
        return (self.folder / f"list-{number}").read_bytes()


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    (tmp_path / "copies").mkdir()
    return Copies(tmp_path / "copies")


def commands_of(found: Sequence[Arrived]) -> list[str]:
    return texts([arrived.what for arrived in found if not isinstance(arrived.what, Recall)])


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """As a full disk: what goes beyond is refused. Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
    monkeypatch.setattr(command_lines, "LONGEST_COMMAND_BYTES", 1000)
    data = line + b"\nnext\n"

    found = split(*(data[at : at + 100] for at in range(0, len(data), 100)))

    assert isinstance(found[0], BadLine)
    assert found[0].source == "list:1"
    assert isinstance(found[1], JobSpec)
    assert found[1].command == "next"


def test_a_list_of_one_endless_line_keeps_little_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command_lines, "LONGEST_COMMAND_BYTES", 1000)

    found = split(*[b"x" * 100] * 50)

    assert [type(entry) for entry in found] == [BadLine]


def test_a_line_of_the_most_that_fits_is_taken_from_a_file(tmp_path: Path):
    path = tmp_path / "list"
    path.write_bytes(b": " + b"x" * (command_lines.LONGEST_COMMAND_BYTES - 2) + b"\nnext\n")

    lines = lines_of(path)
    found: list[str] = []
    while not lines.ended():
        found += texts(lines.take(9))

    assert [len(found[0]), found[1]] == [command_lines.LONGEST_COMMAND_BYTES, "next"]


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
    lines = Lines(open_inputs(paths))

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
    lines = Lines([source])

    for _ in range(50):
        assert texts(lines.take(3)) == ["true"] * 3

    assert os.lseek(source.fd, 0, os.SEEK_CUR) <= 1 << 17
    lines.close()


def test_a_pipe_s_command_is_there_as_soon_as_its_line_is(
    waiter: Waiter, pipe: tuple[int, int], copies: Copies
):
    read_fd, write_fd = pipe
    spool = Spool(copies.open, [Input(read_fd, "stdin")], ["stdin"], "/", waiter)
    assert spool.take(9) == []

    os.write(write_fd, b"first\nsec")
    waiter.wait(time.time() + 30)
    assert commands_of(spool.take(9)) == ["first"]
    assert spool.take(9) == []
    assert copies.content(0) == b"first\nsec"

    os.write(write_fd, b"ond\n")
    waiter.wait(time.time() + 30)
    assert commands_of(spool.take(9)) == ["second"]
    assert (spool.ended(), spool.finished(T0)) == (False, [])

    os.write(write_fd, b"last")
    os.close(write_fd)
    waiter.wait(time.time() + 30)
    assert commands_of(spool.take(9)) == ["last"]
    assert spool.ended()
    assert spool.finished(T0) == [InputRead(T0, 0, 17)]
    spool.close()


def test_a_pipe_that_says_nothing_does_not_make_anybody_wait(pipe: tuple[int, int]):
    lines = Lines([Input(pipe[0], "stdin")])
    done = threading.Thread(target=lines.take, args=(1,), daemon=True)

    done.start()
    done.join(10)

    assert not done.is_alive()
    assert not lines.ended()


def test_nobody_is_woken_by_input_that_nobody_takes(
    waiter: Waiter, pipe: tuple[int, int], copies: Copies
):
    read_fd, write_fd = pipe
    spool = Spool(copies.open, [Input(read_fd, "stdin")], ["stdin"], "/", waiter)
    assert spool.take(1) == []
    os.write(write_fd, b"a\nb\n")
    began = time.monotonic()
    waiter.wait(time.time() + 30)
    assert time.monotonic() - began < 20

    began = time.monotonic()
    waiter.wait(time.time() + 0.3)

    assert time.monotonic() - began > 0.2
    assert commands_of(spool.take(1)) == ["a"]
    spool.close()


def test_an_input_that_fails_half_way_is_an_error_and_the_next_one_comes(tmp_path: Path):
    (tmp_path / "list").write_bytes(b"a\n")
    folder = os.open(tmp_path, os.O_RDONLY)
    lines = Lines([Input(folder, "broken"), *open_inputs([str(tmp_path / "list")])])

    found = lines.take(9)

    assert isinstance(found[0], BadLine)
    assert found[0].source == "broken"
    assert "directory" in found[0].why
    assert texts(found[1:]) == ["a"]


def test_closing_lets_go_of_every_descriptor(tmp_path: Path):
    (tmp_path / "list").write_bytes(b"a\n" * MANY)
    before = os.listdir("/proc/self/fd")
    lines = Lines(open_inputs([str(tmp_path / "list")] * 3))
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
    only = OneCommand("python train.py", "/somewhere")

    taken = [only.ended(), only.take(0), only.take(9), only.ended(), only.take(9)]

    spec = JobSpec("python train.py", "the command line", "/somewhere")
    assert taken == [False, [], [Arrived(spec)], True, []]
    assert (only.finished(T0), only.has_more()) == ([], False)


def spooled(copies: Copies, *paths: Path) -> Spool:
    names = [path.name for path in paths]
    return Spool(copies.open, open_inputs([str(path) for path in paths]), names, "/wd")


def resumed(
    copies: Copies, names: Sequence[str], whole: Sequence[int], read_to: Position | None
) -> Spool:
    return Spool(copies.open, [], names, "/wd", whole=whole, read_to=read_to)


def rest_of(spool: Spool) -> list[Arrived]:
    """All that is left of it."""
    found: list[Arrived] = []
    while not spool.ended():
        found += spool.take(7)
    spool.close()
    return found


def test_a_file_is_copied_at_once_and_needed_no_more(tmp_path: Path, copies: Copies):
    path = tmp_path / "list"
    path.write_bytes(b"a\nb\n" * 50_000)
    spool = spooled(copies, path)

    path.write_bytes(b"changed\n")

    assert copies.content(0) == b"a\nb\n" * 50_000
    assert spool.finished(T0) == [InputRead(T0, 0, 200_000)]
    assert spool.finished(T0) == []
    assert commands_of(rest_of(spool)) == ["a", "b"] * 50_000


def test_commands_know_their_folder_and_how_far_the_input_was_read(tmp_path: Path, copies: Copies):
    path = tmp_path / "list"
    path.write_bytes(b"# no\na \\\n b\n\nc")

    found = rest_of(spooled(copies, path))

    assert found == [
        Arrived(JobSpec("a  b", "list:2", "/wd"), Position(0, 12, 3)),
        Arrived(JobSpec("c", "list:5", "/wd"), Position(0, 14, 5)),
    ]


def test_several_inputs_come_one_after_the_other(tmp_path: Path, copies: Copies):
    for name, data in (("one", b"a\nb \\"), ("two", b""), ("three", b"\xef\xbb\xbfc\n\0\n")):
        (tmp_path / name).write_bytes(data)
    spool = spooled(copies, *[tmp_path / name for name in ("one", "two", "three")])

    found = rest_of(spool)

    assert [arrived.what for arrived in found] == [
        JobSpec("a", "one:1", "/wd"),
        JobSpec("b ", "one:2", "/wd"),
        JobSpec("c", "three:1", "/wd"),
        BadLine("three:2", "holds a NUL byte, which no shell can take"),
    ]
    assert [arrived.read_to and arrived.read_to.number for arrived in found] == [0, 0, 2, 2]


def test_a_pipe_that_ends_first_waits_for_those_before_it(
    tmp_path: Path, pipe: tuple[int, int], waiter: Waiter, copies: Copies
):
    (tmp_path / "list").write_bytes(b"second\n")
    inputs = [Input(pipe[0], "stdin"), *open_inputs([str(tmp_path / "list")])]
    spool = Spool(copies.open, inputs, ["stdin", "list"], "/", waiter)

    assert (spool.take(9), copies.content(1)) == ([], b"second\n")
    os.write(pipe[1], b"first\n")
    os.close(pipe[1])
    waiter.wait(time.time() + 30)

    assert commands_of(rest_of(spool)) == ["first", "second"]


INPUTS = st.lists(
    st.lists(
        st.sampled_from(
            [b"\\", b"\n", b"\n", b"\r\n", b"#", b" ", b"a", b"bc", b"\0", b"\xff", b"\xef\xbb\xbf"]
        ),
        max_size=25,
    ).map(b"".join),
    min_size=1,
    max_size=3,
)


@given(INPUTS)
@example([b"\xef\xbb\xbfa\r\nb \\\r\n c\r\n\r\n# d \\\ne\n", b"", b"f \\\n"])
def test_resumed_anywhere_a_run_gets_just_the_rest(tmp_path: Path, inputs: list[bytes]):
    copies = Copies(Path(tempfile.mkdtemp(dir=tmp_path)))
    paths = [copies.folder / f"input-{number}" for number in range(len(inputs))]
    for path, data in zip(paths, inputs, strict=True):
        path.write_bytes(data)
    names, whole = [path.name for path in paths], range(len(inputs))
    everything = rest_of(spooled(copies, *paths))

    assert rest_of(resumed(copies, names, whole, None)) == everything
    for number, arrived in enumerate(everything, start=1):
        rest = rest_of(resumed(copies, names, whole, arrived.read_to))
        assert rest == everything[number:]


def test_a_line_that_was_too_long_is_not_met_again(
    tmp_path: Path, copies: Copies, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command_lines, "LONGEST_COMMAND_BYTES", 1000)
    (tmp_path / "list").write_bytes(b"a\n" + b"x" * 200_000 + b"\nb\n")
    first, bad, last = rest_of(spooled(copies, tmp_path / "list"))
    assert isinstance(bad.what, BadLine)

    assert rest_of(resumed(copies, ["list"], [0], first.read_to)) == [bad, last]
    assert rest_of(resumed(copies, ["list"], [0], bad.read_to)) == [last]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\nb\nrm -rf /home/me/ol", ["a", "b"]),
        (b"a\nb \\\n", ["a"]),
        (b"a\nb \\\nc", ["a"]),
        (b"torn", []),
        (b"", []),
    ],
)
def test_of_an_input_that_was_not_read_to_its_end_the_torn_last_line_is_dropped(
    copies: Copies, data: bytes, expected: list[str]
):
    (copies.folder / "list-0").write_bytes(data)

    spool = resumed(copies, ["stdin"], [], None)

    assert commands_of(rest_of(spool)) == expected


def test_after_an_input_that_was_not_read_to_its_end_the_next_one_comes(copies: Copies):
    (copies.folder / "list-0").write_bytes(b"a\ntorn")
    (copies.folder / "list-1").write_bytes(b"b\nc")

    spool = resumed(copies, ["stdin", "list"], [1], None)

    assert commands_of(rest_of(spool)) == ["a", "b", "c"]


def test_a_new_list_is_not_added_to_what_an_earlier_try_left(tmp_path: Path, copies: Copies):
    """A dispatcher that died between the copying and its record of the new list."""
    (copies.folder / "list-0").write_bytes(b"of an earlier try\n")
    (tmp_path / "list").write_bytes(b"a\n")

    found = rest_of(spooled(copies, tmp_path / "list"))

    assert commands_of(found) == ["a"]
    assert copies.content(0) == b"a\n"


def test_without_room_for_the_copy_of_a_pipe_nothing_is_lost(
    pipe: tuple[int, int], waiter: Waiter, copies: Copies
):
    read_fd, write_fd = pipe
    spool = Spool(copies.open, [Input(read_fd, "stdin")], ["stdin"], "/", waiter)
    os.write(write_fd, b"a\n")
    assert commands_of(spool.take(9)) == ["a"]
    os.write(write_fd, b"b\n" * 500)
    os.close(write_fd)

    with largest_file(10):
        found = [spool.take(9) for _ in range(3)]
        assert (found, spool.ended(), spool.finished(T0)) == ([[], [], []], False, [])
        assert copies.content(0) == b"a\n"

    assert commands_of(rest_of(spool)) == ["b"] * 500
    assert copies.content(0) == b"a\n" + b"b\n" * 500


WITHOUT_ROOM = """
import os, resource, sys
from smartsched.edges.intake import open_inputs
from smartsched.edges.spool import Spool
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
flags = os.O_RDWR | os.O_CREAT
try:
    spool = Spool(lambda n, _: os.open("copy", flags), open_inputs(["list"]), ["list"], "/")
    print(len(spool.take(1000)))
except OSError as error:
    print(error.strerror)
"""


def test_without_room_for_the_copy_of_a_file_nobody_waits_for_ever():
    Path("list").write_bytes(b"a\n" * 5000)

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ROOM], capture_output=True, text=True, timeout=15
    )

    assert done.stdout in ("File too large\n", "0\n"), done.stderr


def test_an_input_that_fails_half_way_is_told_and_the_next_one_comes(
    tmp_path: Path, copies: Copies
):
    (tmp_path / "list").write_bytes(b"a\n")
    folder = os.open(tmp_path, os.O_RDONLY)
    inputs = [Input(folder, "broken"), *open_inputs([str(tmp_path / "list")])]

    found = rest_of(Spool(copies.open, inputs, ["broken", "list"], "/"))

    assert isinstance(found[0].what, BadLine)
    assert "directory" in found[0].what.why
    assert commands_of(found[1:]) == ["a"]


def test_a_spool_says_whether_another_call_would_find_more(tmp_path: Path, copies: Copies):
    (tmp_path / "list").write_bytes(b"a\nb\nc\n")
    spool = spooled(copies, tmp_path / "list")

    assert (commands_of(spool.take(2)), spool.has_more(), spool.ended()) == (
        ["a", "b"],
        True,
        False,
    )
    assert commands_of(spool.take(2)) == ["c"]
    assert (spool.take(2), spool.has_more(), spool.ended()) == ([], False, True)
    spool.close()


def test_a_file_s_end_is_told_even_where_a_chunk_holds_just_as_much_as_was_wanted(
    tmp_path: Path, copies: Copies
):
    """Whoever passes over all that was taken must come back for the rest."""
    line = b"x" * 255 + b"\n"
    (tmp_path / "list").write_bytes(line * 512)
    spool = spooled(copies, tmp_path / "list")

    assert len(spool.take(256)) == 256
    assert spool.has_more()
    spool.close()


def test_a_closed_spool_holds_no_descriptor(tmp_path: Path, copies: Copies, pipe: tuple[int, int]):
    (tmp_path / "list").write_bytes(b"a\n" * 10)
    before = len(os.listdir("/proc/self/fd"))
    inputs = [Input(os.dup(pipe[0]), "stdin"), *open_inputs([str(tmp_path / "list")])]
    spool = Spool(copies.open, inputs, ["stdin", "list"], "/")
    spool.take(1)
    spool.sync()

    spool.close()

    assert len(os.listdir("/proc/self/fd")) == before
