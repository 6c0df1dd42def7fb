"""`smartsched grid`: words into a list, and the list into shells, pipes and smartsched itself."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from smartsched.cli.grid import commands_for
from smartsched.errors import UsageError
from tests.cli.harness import MOMENT, PROGRAM

GRID = (*PROGRAM, "grid")
IN_ORDER = ("--sampling-mode", "grid")


def grid(
    *words: str | bytes, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*GRID, *words],
        env=os.environ | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


# --- how the words are read


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["-p", "a", "1", "2"], ["1", "2"]),
        (["--parameter", "a", "1", "2"], ["1", "2"]),
        (["-p", "a", "-1", "-0.5", "-1e-3", "-.5", "-inf"], ["-1", "-0.5", "-1e-3", "-.5", "-inf"]),
        (["-p", "a", "-1", "-2", "--seed", "-3"], ["-1", "-2"]),
        (["-p", "a", "-", ""], ["-", "''"]),
        (["-p", "a=-1,--fast,x"], ["-1", "--fast", "x"]),
        (["--parameter=a=x,y"], ["x", "y"]),
        (["-p", "a", "text:--fast", "text:-x,y"], ["--fast", "-x,y"]),
        (["-p", "a", "x=1", "y=2"], ["x=1", "y=2"]),
        (["-p", "a=int:1:3"], ["1", "2", "3"]),
        (["-p", "a", '{"b": {c}}'], ["'{\"b\": {c}}'"]),
    ],
    ids=str,
)
def test_values_follow_the_name_up_to_the_next_option(words: list[str], values: list[str]):
    assert list(commands_for(["x {a}", *IN_ORDER, *words])) == [f"x {value}" for value in values]


@pytest.mark.parametrize(
    "words",
    [
        ["x {a}", "-p", "a", "1"],
        ["--seed", "3", "x {a}", "-p", "a", "1"],
        ["-p", "a", "1", "--seed", "3", "x {a}"],
        ["-p", "a", "1", "--", "x {a}"],
        ["-p", "a=1", "x {a}"],
    ],
    ids=str,
)
def test_the_template_comes_first_or_behind_something_that_is_complete(words: list[str]):
    assert list(commands_for(words)) == ["x 1"]


def test_a_template_may_begin_with_a_dash():
    assert list(commands_for(["-p", "a", "1", "--", "-x {a}"])) == ["-x 1"]


@pytest.mark.parametrize("zipped", [["--zip", "a", "b"], ["--zip=a,b"], ["--zip", "a,b"]], ids=str)
def test_zipped_parameters_are_named_together(zipped: list[str]):
    words = ["x {a} {b}", "-p", "a", "1", "2", *zipped, "-p", "b", "3", "4", *IN_ORDER]

    assert list(commands_for(words)) == ["x 1 3", "x 2 4"]


def test_the_list_is_shuffled_and_the_same_again_unless_another_seed_is_given():
    words = ["x {a}", "-p", "a", "int:1:20"]

    first = list(commands_for(words))

    assert sorted(first) == sorted(commands_for([*words, *IN_ORDER])) != first
    assert list(commands_for([*words, "--seed", "0"])) == first
    assert list(commands_for([*words, "--seed", "1"])) != first
    assert list(commands_for([*words, "--n-samples", "5"])) == first[:5]


def test_a_list_that_was_written_once_is_written_for_ever():
    words = ["x {a} {b} {c}", "-p", "a=loguniform:1e-5:1e-1", "-p", "b", "0", "lin:1:2:4"]
    words += ["-p", "c=uniform:-1:1", "--n-samples", "4", "--seed", "7"]

    assert list(commands_for(words)) == [
        "x 0.0001044056 2 -0.013126",
        "x 0.003781952 1.333333 0.787572",
        "x 0.09881708 1 -0.450746",
        "x 0.004170038 1.666667 0.258868",
    ]


X = "x {a}"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "no template"),
        (["-p", "a", "1", X], "no template: write it before"),
        ([X], "there are no values"),
        ([X, "-p"], "'' is no name"),
        ([X, "-p", "a"], "-p a: there are no values"),
        ([X, "-p", "a="], "-p a: there are no values"),
        ([X, "-p", "{a}", "1"], "'{a}' is no name"),
        ([X, "-p", "1", "a"], "'1' is no name"),
        ([X, "-p", "a", "1", "-p", "a", "2"], "-p a is there twice"),
        ([X, "-p", "a", "lin:0:1"], "-p a: 'lin:0:1' cannot be read"),
        ([X, "y", "-p", "a", "1"], "'y' is left over"),
        ([X, "-p", "a=1", "2"], "'2' is left over"),
        ([X, "-p", "a", "1", "--", "y"], "'y' is left over"),
        (["python", "x.py", "--lr", "{lr}", "-p", "lr", "1"], "no option --lr: a template goes in"),
        ([X, "-p", "a", "1", "--foo"], "no option --foo"),
        ([X, "-p", "a", "--fast", "--slow"], "text:--fast"),
        ([X, "-p", "a", "-x"], "no option -x"),
        ([X, "-pa", "1"], "no option -pa"),
        ([X, "-p", "a", "1", "--n-sample", "1"], "no option --n-sample"),
        ([X, "-p", "a", "1", "2", "--n-samples", "3"], "3 is more than there are: 2 combinations"),
        ([X, "-p", "a", "1", "--n-samples", "0"], "--n-samples: '0' is too few"),
        ([X, "-p", "a", "1", "--n-samples", "few"], "--n-samples: 'few'"),
        ([X, "-p", "a", "1", "--n-samples"], "--n-samples"),
        ([X, "-p", "a", "1", "--seed", "x"], "--seed: 'x' is no whole number"),
        ([X, "-p", "a", "1", "--sampling-mode", "random"], "--sampling-mode"),
        ([X, "-p", "a", "uniform:0:1"], "say how often with --n-samples"),
        ([X, "-p", "a", "1", "--zip", "a"], "--zip needs two"),
        ([X, "-p", "a", "1", "--zip"], "--zip needs two"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_says_why(words: list[str], why: str):
    with pytest.raises(UsageError, match=why):
        commands_for(words)


# --- the program


@pytest.mark.parametrize(
    "words",
    [
        [],
        [X],
        [X, "-p", "a", "1", "1"],
        [X, "-p", "a", "b\nc"],
        [X, "-p", "a", "1", "--foo"],
        ["x {a} {b}", "-p", "a", "1"],
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_and_no_list(words: list[str]):
    done = grid(*words)

    assert (done.returncode, done.stdout) == (2, b"")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(b"smartsched: ")


def test_help_says_how_values_are_written_and_fits_a_terminal():
    done = grid("--help", env={"COLUMNS": "100"})

    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert max(map(len, text.splitlines())) <= 100
    for word in ("-p", "--zip", "--seed", "--n-samples", "log:1e-5:1e-1:5", "{lr:raw}", "text:"):
        assert word in text


def test_bytes_that_are_not_utf8_come_out_as_they_went_in():
    done = grid(b"echo \xff {a}", "-p", "a", b"\xe9", env={"LC_ALL": "C"})

    assert done.stdout == b"echo \xff '\xe9'\n"


def test_a_reader_that_has_seen_enough_ends_it_without_a_word():
    million = f"int:1:{10**6}"
    argv = [*GRID, "x {a} {b}", "-p", "a", million, "-p", "b", million]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"x ")

        process.stdout.close()

        assert process.stderr.read() == b""
        process.wait(60)


SAYS_ITS_PEAK = """
import sys
from smartsched.cli import main
status = main(sys.argv[1:])
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(line.split()[1], file=sys.stderr)
sys.exit(status)
"""


def peak_kib(*words: str, lines: int) -> int:
    """Of the process that writes so many lines."""
    done = subprocess.run(
        [sys.executable, "-c", SAYS_ITS_PEAK, "grid", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
        timeout=110,
    )
    assert done.stdout.count(b"\n") == lines
    return int(done.stderr)


def test_a_million_shuffled_combinations_take_no_more_memory_than_a_few():
    few = peak_kib("x {a} {b}", "-p", "a", "int:1:10", "-p", "b", "int:1:100", lines=1000)

    many = peak_kib("x {a} {b}", "-p", "a", "int:1:1000", "-p", "b", "int:1:1000", lines=10**6)

    assert many < few + 3 * 1024


NASTY = [
    "", " ", "a b", "it's", '"', "\\", "\\\\", "$HOME", "$(false)", "`false`", "*", "~", "#", "!!",
    ";false", "&", "|", ">x", "a\tb", "-n", "%s", "{a}", "é", "'\"'\"'", "\\'", "a'\\''b", "$'x'",
]  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize(
    "place", ["{v}", "'{v}'", '"{v}"', '"$(printf %s {v})"', "''{v}\"\"", "'\"'{v}", "$(( 0 )){v}"]
)
def test_a_shell_sees_each_value_as_it_was_given(shell: str, place: str):
    """Each is written behind another argument, for an empty one to be seen."""
    words = [f"printf '%s\\0' {place}", *IN_ORDER, "-p", "v", *(f"text:{value}" for value in NASTY)]
    script = "\n".join(commands_for(words))

    seen = subprocess.run([shell], input=script.encode(), capture_output=True, check=True).stdout

    before, after = {"'\"'{v}": ('"', ""), "$(( 0 )){v}": ("0", "")}.get(place, ("", ""))
    assert seen.decode().split("\0")[:-1] == [f"{before}{value}{after}" for value in NASTY]


def test_an_argument_in_json_holds_the_values():
    words = ['printf %s \'{{"lr": {lr}, "opt": "{opt}"}}\'', "-p", "lr=1e-3", "-p", "opt=it's"]
    [command] = commands_for(words)

    seen = subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout

    assert json.loads(seen) == {"lr": 0.001, "opt": "it's"}


def run_here(first: Sequence[str], then: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """first | then"""
    with subprocess.Popen(first, stdout=subprocess.PIPE) as writer:
        done = subprocess.run(
            then, stdin=writer.stdout, capture_output=True, text=True, timeout=60, check=False
        )
    assert writer.returncode == 0
    return done


def test_the_list_goes_through_a_pipe_into_a_run():
    words = ["echo got {a} {b}  # smartsched: gpus={n}", "-p", "a", "it's", "-1", "-p", "b"]
    words += ["lin:0:1:2", "-p", "n", "1", "2", "--zip", "a", "n"]
    simulated = ("--simulate", "2,seed=2", *MOMENT, "--max-mem", "100%", "--max-util", "100%")

    done = run_here([*GRID, *words], [*PROGRAM, *simulated, "--output", "tag"])

    assert done.returncode == 0, done.stderr
    got = sorted(line.partition("got ")[2] for line in done.stdout.splitlines())
    assert got == ["-1 0", "-1 1", "it's 0", "it's 1"]
