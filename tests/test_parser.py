"""Words of the command line into options."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from smartsched.cli.parser import LATEST, parse, parse_again, remembered


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
        (["--guard=yes"], "--guard"),
        (["--name"], "--name"),
        (["--retries"], "--retries"),
        (["--no-adopt"], "--no-adopt goes with --resume"),
        (["--resume", "--", "true"], "leave out -- COMMAND"),
        (["--resume", "--name", "x"], "leave out --name"),
        (["--resume-failed", "--name", "x"], "leave out --name"),
        (["--resume", "--dry-run"], "--dry-run cannot be used with --resume"),
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
        ["--retries", "few", "--simulate", "2", "--", "true"],
        ["--retry-delay", "-1s", "--simulate", "2", "--", "true"],
        ["--timeout", "0", "--simulate", "2", "--", "true"],
        ["--halt", "soon", "--simulate", "2", "--", "true"],
        ["--name", "a/b", "--simulate", "2", "--", "true"],
        ["--name", "", "--simulate", "2", "--", "true"],
        ["--resume", "nosuch"],
        ["--resume"],
        ["--resume-failed"],
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
    for option in (
        "--max-mem", "--gpus", "--dry-run", "--simulate", "--replay", "--wait-timeout", "--retries",
        "--retry-delay", "--timeout", "--halt", "--no-guard", "--on-finish", "--name", "--resume",
        "--resume-failed", "--no-adopt", "--state", "--joblog", "--json-log",
    ):  # fmt: skip
        assert option in done.stdout


def test_the_version_is_the_package_s():
    from smartsched import __version__

    python = platform.python_version()
    expected = f"smartsched {__version__} (Python {python}, no NVIDIA driver)\n"
    assert said(["--version"]).stdout == expected


# --- going on with a run


@pytest.mark.parametrize(
    ("words", "run", "files"),
    [
        (["list.txt"], None, ["list.txt"]),
        (["--resume"], LATEST, []),
        (["--resume", "monday"], "monday", []),
        (["--resume=monday", "list.txt"], "monday", ["list.txt"]),
        (["list.txt", "--resume"], LATEST, ["list.txt"]),
        (["--resume", "--retries", "3"], LATEST, []),
        (["--resume-failed"], LATEST, []),
        (["--resume-failed", "--resume", "monday"], "monday", []),
    ],
)
def test_which_run_is_gone_on_with(words: list[str], run: str | None, files: list[str]):
    args = parse(words)

    assert (args.resume, args.files) == (run, files)


def again(before: Sequence[str], words: Sequence[str]) -> dict[str, object]:
    """The options of a run that began with the first words and is resumed with the second."""
    return vars(parse_again(words, remembered(parse(before))))


ASKED_FOR = [
    "--retries=3", "--retry-delay=5s", "--timeout=2h", "--halt=soon,fail=3", "--no-guard",
    "--on-finish=notify-send done", "--joblog=jobs.tsv", "--json-log=+events.json", "--gpus=0,1",
    "--max-mem=20%", "--free-for=3s", "--grace=1m", "--logs=out", "--wd=.", "--shell=sh",
    "--visible=uuid", "--ignore-user=bob", "--ignore-pid=7", "--simulate=4", "--output=tag",
]  # fmt: skip


def test_a_resumed_run_has_the_options_it_began_with():
    first = vars(parse(ASKED_FOR))

    later = again(ASKED_FOR, ["--resume"])

    assert {name for name in first if first[name] != later[name]} == {"resume", "flags"}


def test_only_what_differs_from_the_defaults_is_remembered():
    """And where the logs are: by default that depends on the folder."""
    chosen = json.loads(remembered(parse(["--retries=3", "--max-mem=10%"])))

    assert chosen.pop("logs").endswith("/smartsched-logs")
    assert chosen == {"retries": "3"}


def test_options_given_when_resuming_win():
    later = again(["--retries=3", "--no-guard", "--gpus=0"], ["--resume", "--retries=9", "--guard"])

    assert (later["retries"], later["guard"], later["gpus"]) == ("9", True, "0")


def test_options_given_when_resuming_are_remembered_in_turn():
    second = parse_again(["--resume", "--retries=9"], remembered(parse(["--timeout=1h"])))

    third = parse_again(["--resume"], remembered(second))

    assert (third.retries, third.timeout) == ("9", "1h")


@pytest.mark.parametrize(
    ("before", "word", "chosen"),
    [
        ("--no-claims", "--claims=/there", {"no_claims": False, "claims": "/there"}),
        ("--claims=/there", "--no-claims", {"no_claims": True, "claims": None}),
        ("--simulate=4", "--replay=/there", {"simulate": None, "replay": "/there"}),
        ("--replay=/there", "--simulate=4", {"simulate": "4", "replay": None}),
    ],
)
def test_of_options_that_exclude_each_other_the_one_given_last_counts(
    before: str, word: str, chosen: dict[str, object]
):
    second = parse_again(["--resume", word], remembered(parse([before])))
    third = parse_again(["--resume"], remembered(second))

    for args in (second, third):
        assert {name: vars(args)[name] for name in chosen} == chosen


def test_what_belongs_to_one_invocation_is_not_remembered():
    words = ["--name=monday", "--state=here", "-q", "-v", "--progress", "--no-color", "list.txt"]

    assert json.loads(remembered(parse(words))).keys() == {"logs"}
    words = ["--resume", "--resume-failed", "--no-adopt"]
    assert json.loads(remembered(parse(words))).keys() == {"logs"}
    assert json.loads(remembered(parse(["--dry-run", "--json"]))).keys() == {"logs"}
    assert json.loads(remembered(parse(["--", "python", "train.py"]))).keys() == {"logs"}


@pytest.mark.parametrize("name", ["files", "command", "resume", "state", "dry_run", "quiet"])
def test_what_belongs_to_one_invocation_is_not_taken_from_the_past(name: str):
    args = parse_again(["--resume"], json.dumps({name: "of old"}))

    assert getattr(args, name) != "of old"


def test_options_that_this_version_does_not_know_are_ignored():
    args = parse_again(["--resume"], '{"teleport": "far", "retries": "2"}')

    assert args.retries == "2"
    assert not hasattr(args, "teleport")


def test_ids_of_gpus_are_told_from_files_when_resuming():
    assert again(["--gpus", "0"], ["--resume", "--gpus", "1", "2", "list.txt"])["gpus"] == "1,2"


PATHS = ["--logs=out", "--wd=sub", "--replay=day", "--joblog=jobs.tsv", "--json-log=+log.json"]


def test_paths_mean_the_same_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args = parse(PATHS)
    options = remembered(args)
    monkeypatch.chdir(tmp_path)

    later = parse_again(["--resume"], options)

    for name in ("logs", "wd", "replay", "joblog", "json_log"):
        assert getattr(later, name) == getattr(args, name)
        assert os.path.isabs(getattr(later, name).removeprefix("+"))


def test_logs_stay_where_they_were_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args = parse([])
    options = remembered(args)
    monkeypatch.chdir(tmp_path)

    assert parse_again(["--resume"], options).logs == args.logs


@pytest.mark.parametrize("option", ["--logs", "--wd", "--state", "--joblog", "--json-log"])
def test_a_path_may_begin_with_the_home_folder(option: str):
    """A shell does not expand the tilde in `--logs=~/out`."""
    args = parse([f"{option}=~/out"])

    name = option.removeprefix("--").replace("-", "_")
    assert getattr(args, name) == os.path.expanduser("~/out")


def test_a_log_that_is_appended_to_may_lie_in_the_home_folder():
    assert parse(["--joblog=+~/out"]).joblog == "+" + os.path.expanduser("~/out")
