"""Words of the command line into options."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

import pytest

from smartsched.cli.parser import parse


def said(words: Sequence[str | bytes], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smartsched", *words],
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def complaint(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("smartsched: ")
    return captured.err


@pytest.mark.parametrize(
    ("words", "gpus", "files"),
    [
        (["--gpus", "0", "1", "2", "list.txt"], "0,1,2", ["list.txt"]),
        (["--gpus", "0,1", "2-3", "list.txt"], "0,1,2-3", ["list.txt"]),
        (["--gpus", "0", "list.txt", "1"], "0", ["list.txt", "1"]),
        (["--gpus=0", "list.txt"], "0", ["list.txt"]),
        (["--gpus", "GPU-8f6a", "MIG-11", "list.txt"], "GPU-8f6a,MIG-11", ["list.txt"]),
        (["--gpus", "0:1", "1:2"], "0:1,1:2", []),
        (["--gpus", "0", "--max-mem", "20%", "1"], "0", ["1"]),
        (["list.txt", "--gpus", "0", "1"], "0,1", ["list.txt"]),
        (["--gpus", "0", "1", "-"], "0,1", ["-"]),
        (["--gpus", "0", "01.txt"], "0", ["01.txt"]),
    ],
    ids=" ".join,
)
def test_gpus_takes_ids_and_leaves_files(words: list[str], gpus: str, files: list[str]):
    args = parse(words)

    assert (args.gpus, args.files) == (gpus, files)


def test_exclude_takes_ids_as_gpus_does():
    args = parse(["--exclude", "0", "1", "--gpus", "0-3", "list.txt"])

    assert (args.exclude, args.gpus, args.files) == ("0,1", "0-3", ["list.txt"])


def test_what_follows_the_dashes_is_one_command_for_the_shell():
    args = parse(["--max-mem", "20%", "--", "python", "train.py", "--lr", "0.1", "--gpus", "0 1"])

    assert shlex.split(args.command) == [
        "python", "train.py", "--lr", "0.1", "--gpus", "0 1",
    ]  # fmt: skip
    assert args.max_mem == "20%"
    assert args.gpus is None
    assert args.files == []


@pytest.mark.parametrize(
    "argument", ["", "a b", "$HOME", "'", '"', "\\", "*", "a\nb", "#", "é", "--", "!"]
)
def test_arguments_reach_the_command_as_they_were_given(argument: str):
    command = parse(["--", "printf", "%s", argument]).command

    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert done.stdout == os.fsencode(argument)


@pytest.mark.parametrize("locale", ["C.UTF-8", "C", "en_US.ISO-8859-1"])
def test_arguments_that_are_not_utf8_reach_the_command_in_any_locale(locale: str):
    code = (
        "import os, sys; from smartsched.cli.parser import parse;"
        "command = parse(sys.argv[1:]).command;"
        "os.write(1, command.encode('utf-8', 'surrogateescape'))"
    )
    command = [os.fsencode(sys.executable), b"-c", code.encode(), b"--", b"echo", b"\xff\xe9\xc3"]

    done = subprocess.run(
        command,
        env=os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=True,
    )

    assert done.stdout == b"echo '\xff\xe9\xc3'"


def test_dashes_without_a_command_are_an_error(capsys: pytest.CaptureFixture[str]):
    assert "no command" in complaint(["--"], capsys)


def test_files_and_a_command_are_an_error(capsys: pytest.CaptureFixture[str]):
    assert "not both" in complaint(["list.txt", "--", "true"], capsys)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--no-such"], "--no-such"),
        (["--max-me", "20%"], "--max-me"),
        (["--max-mem"], "--max-mem"),
        (["--output", "loud"], "--output"),
        (["--visible", "name"], "--visible"),
        (["--simulate", "4", "--replay", "x"], "--replay"),
    ],
)
def test_what_cannot_be_parsed_is_one_line_that_names_it(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
):
    assert named in complaint(words, capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["--no-such"],
        ["--max-mem", "much", "--", "true"],
        ["--gpus", "0", "0", "--", "true"],
        ["missing.txt"],
        ["--json"],
        ["--simulate", "none", "--", "true"],
        ["--simulate", "2", "--gpus", "7", "--", "true"],
        ["--wd", "missing", "--simulate", "2", "--", "true"],
        ["--replay", "missing", "--", "true"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_in_status_2_and_one_line(words: list[str]):
    done = said(words)

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("smartsched: ")


def test_help_names_every_option_and_fits_a_terminal():
    done = said(["--help"], COLUMNS="100")

    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
    for option in ("--max-mem", "--gpus", "--dry-run", "--simulate", "--replay", "--wait-timeout"):
        assert option in done.stdout


def test_the_version_is_the_package_s():
    from smartsched import __version__

    assert said(["--version"]).stdout.split() == ["smartsched", __version__]
