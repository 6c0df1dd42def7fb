"""Settings files: where their values stand, and whose are believed."""

import os
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsched.edges.settings_file import Entry, ForeignFileError, read_settings
from smartsched.errors import UsageError

NOBODY = 65534


def entries(path: Path, text: str) -> list[Entry]:
    path.write_bytes(text.encode())
    found = read_settings(path, "here.toml")
    assert found is not None
    return found


def complaint(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        read_settings(path, "here.toml")
    return str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "here.toml"


def test_a_file_that_is_not_there_says_nothing(path: Path):
    assert read_settings(path, "here.toml") is None
    assert read_settings(path / "below", "here.toml") is None


def test_every_value_has_the_line_where_it_begins(path: Path):
    text = """\
# of mine

max-mem = "20%"  # a comment
ignore-user = [
  "bob",  # ]
  "carol",
]
on-finish = '''
[not.a.table]
x = 1
'''
polite = true
"""

    found = entries(path, text)

    assert found == [
        Entry(("max-mem",), "20%", 3),
        Entry(("ignore-user",), ["bob", "carol"], 4),
        Entry(("on-finish",), "[not.a.table]\nx = 1\n", 8),
        Entry(("polite",), True, 12),
    ]


def test_values_of_tables_are_named_with_them(path: Path):
    text = '[limits]\nmax-gpus = 4\n[a."b c"]\nd.e = 1\n[[list]]\nf = 2\ng = {h = 3}\n'

    found = entries(path, text)

    assert [(entry.key, entry.value, entry.line) for entry in found] == [
        (("limits",), {}, 1),
        (("limits", "max-gpus"), 4, 2),
        (("a", "b c"), {}, 3),
        (("a", "b c", "d", "e"), 1, 4),
        (("list",), {}, 5),
        (("list", "f"), 2, 6),
        (("list", "g", "h"), 3, 7),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("max-mem = 20%\n", 1),
        ('\npolite = yes\nmax-mem = "20%"', 2),
        ('a = 1\nb = """\n never ends\n', 3),
        ("a = 1\na = 2\n", 2),
        ("a = 1\r\n\r\nb\r\n", 3),
    ],
)
def test_what_is_no_toml_is_named_with_its_line(path: Path, text: str, line: int):
    path.write_bytes(text.encode())

    assert complaint(path).startswith(f"here.toml:{line}: this is no TOML (")


def test_what_is_not_utf_8_is_named_with_its_line(path: Path):
    path.write_bytes(b'a = 1\nb = "\xff"\n')

    assert complaint(path) == "here.toml:2: it is not UTF-8: save it as that"


def test_an_editor_may_have_put_a_mark_at_the_beginning(path: Path):
    assert entries(path, "\ufeffpolite = true\r\n") == [Entry(("polite",), True, 1)]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(path: Path, mode: int):
    path.write_text("polite = true\n")
    path.chmod(mode)

    assert complaint(path) == "here.toml may be written by others: chmod go-w here.toml"


def test_what_is_no_plain_file_is_refused_at_once(path: Path):
    os.mkfifo(path)

    assert complaint(path) == "here.toml is no plain file: remove it, or make it one"


def test_a_folder_is_refused(path: Path):
    path.mkdir()

    assert "here.toml" in complaint(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to give files away")
def test_a_file_of_somebody_else_is_not_believed(path: Path):
    path.write_text("polite = true\n")
    os.chown(path, NOBODY, -1)

    with pytest.raises(ForeignFileError, match=r"here.toml was not read: it belongs to \w+, "):
        read_settings(path, "here.toml")


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to give files away")
def test_a_link_of_somebody_else_is_not_followed_to_a_file_of_ours(path: Path, tmp_path: Path):
    (tmp_path / "mine.toml").write_text("polite = true\n")
    path.symlink_to("mine.toml")
    os.chown(path, NOBODY, -1, follow_symlinks=False)

    with pytest.raises(ForeignFileError):
        read_settings(path, "here.toml")


def test_a_link_of_ours_is_followed(path: Path, tmp_path: Path):
    (tmp_path / "dotfiles.toml").write_text("polite = true\n")
    path.symlink_to("dotfiles.toml")

    assert read_settings(path, "here.toml") == [Entry(("polite",), True, 1)]


# --- whatever stands there


STATEMENTS = st.lists(
    st.sampled_from(
        [
            "",
            '  # a comment with ] and "',
            'KEY = "x"',
            "KEY = '#'  # ' too",
            'KEY = "a \\" # ] b"',
            'KEY = [\n  "]", # "\n\n  [1, 2],\n]',
            'KEY = """"[\n""\n\\"""" #"""""',
            "KEY = ''''#\n[x]\n'''''",
            'KEY = """"""',
            "KEY = ''",
            "KEY = {a = [\n1], b = '}'}",
            'KEY."a]".b = 1.5\r',
            "[KEY]  # [",
            "[[KEY.'x[']]",
        ]
    ),
    max_size=12,
)


@given(STATEMENTS)
def test_statements_of_every_form_are_found_where_they_begin(path: Path, statements: list[str]):
    lines, line = [], 1
    for statement in statements:
        if "KEY" in statement:
            lines.append(line)
        line += statement.count("\n") + 1
    text = "".join(
        statement.replace("KEY", f"k{number}") + "\n" for number, statement in enumerate(statements)
    )

    found = entries(path, text)

    assert sorted({entry.line for entry in found}) == lines
    for entry in found:
        value: Any = tomllib.loads(text)
        for name in entry.key:
            value = (value[0] if isinstance(value, list) else value)[name]
        assert entry.value in (value, {})


PIECES = st.sampled_from(
    [
        *"[]{}=.,#'\"\\\n\r \t",
        '"""',
        "'''",
        "a",
        "max-mem",
        "1",
        "-",
        "1e9",
        "nan",
        "true",
        "0x" + "f" * 60,
        "9" * 30,
        "2021-01-01",
        "\\u",
        "\0",
        "\x1b",
        "é",
    ]
)


@given(st.lists(PIECES, max_size=15).map("".join))
@settings(max_examples=300)
def test_any_text_is_read_or_told(path: Path, text: str):
    with suppress(UsageError):
        entries(path, text)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "9" * 5000,
        "a = 0x" + "f" * 5000,
        "a = [{b = [0x" + "f" * 5000 + "]}]",
        "a = 18446744073709551616",
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "{a=" * 5000 + "1" + "}" * 5000,
        ".".join("a" * 5000) + " = 1",
        ".".join(['"a"'] * 5000) + " = 1",
        "[" + ".".join("a" * 5000) + "]",
    ],
    ids=lambda text: text[:12],
)
def test_numbers_and_keys_without_end_are_told(path: Path, text: str):
    path.write_text(text)

    assert complaint(path).startswith("here.toml")


@pytest.mark.parametrize(
    "text",
    [
        "a = [\n" + "[1],\n" * 10_000 + "]",
        'a = """' + "\n" * 60_000 + '"""',
        "\n" * 60_000,
        ".".join("a" * 200_000) + " = 1",
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.timeout(20)
def test_a_long_file_is_read_in_no_time(path: Path, text: str):
    with suppress(UsageError):
        entries(path, text)
