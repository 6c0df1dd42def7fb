"""Flags and environment into one Config; every complaint names its flag."""

import os
from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.cli.parser import parse
from smartsched.config import Config, configure, parse_limit
from smartsched.core.freeness import Share, Size
from smartsched.core.halt import Halt
from smartsched.core.selection import ByIndex, BySlot, ByUuid
from smartsched.core.units import (
    parse_count,
    parse_duration,
    parse_interval,
    parse_percent,
    parse_positive_count,
    parse_positive_duration,
    parse_size,
)
from smartsched.errors import UsageError

GIB = 2**30


def config_of(*words: str) -> Config:
    return configure(parse(words), "run")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4GiB", 4 * GIB),
        ("4G", 4 * GIB),
        ("4gb", 4 * GIB),
        (" 4 GiB ", 4 * GIB),
        ("512MiB", GIB // 2),
        ("1.5g", 3 * GIB // 2),
        ("1K", 1024),
        ("2TiB", 2048 * GIB),
        ("0G", 0),
    ],
)
def test_sizes(text: str, size_bytes: int):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "4", "4B", "4iB", "G", "-4G", "4GiBs", "1,5G", "4 G B", "٤G"])
def test_what_is_no_size(text: str):
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("10", 10.0),
        ("0", 0.0),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("2h", 7200.0),
        ("1m30s", 90.0),
        ("1h0.5m", 3630.0),
        ("365d", 365 * 86400.0),
        (" 5m ", 300.0),
    ],
)
def test_durations(text: str, seconds: float):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "-1s", "s", "1x", "1m30", "30 1m", "1 s", "1e3", "inf", "nan", "1.s", "366d"]
)
def test_what_is_no_duration(text: str):
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "percent"), [("20%", 20.0), ("20", 20.0), ("0%", 0.0), ("100%", 100.0), ("2.5%", 2.5)]
)
def test_percentages(text: str, percent: float):
    assert parse_percent(text) == percent


@pytest.mark.parametrize("text", ["", "%", "101%", "-1%", "nan%", "inf", "20%%", "much", "20 GiB"])
def test_what_is_no_percentage(text: str):
    with pytest.raises(UsageError, match="is no percentage"):
        parse_percent(text)


def test_limits_are_shares_or_sizes():
    assert parse_limit("20%") == Share(20.0)
    assert parse_limit("4GiB") == Size(4 * GIB)


@pytest.mark.parametrize("text", ["20", "", "4", "101%", "lots"])
def test_what_is_no_limit(text: str):
    with pytest.raises(UsageError):
        parse_limit(text)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "1234567890", "٣", "+1"])
def test_what_is_no_count(text: str):
    with pytest.raises(UsageError, match="is no whole number"):
        parse_count(text)


PARSERS: list[Callable[[str], float | Share | Size]] = [
    parse_size,
    parse_duration,
    parse_positive_duration,
    parse_interval,
    parse_percent,
    parse_limit,
    parse_count,
    parse_positive_count,
]
NEARLY = st.lists(
    st.sampled_from(["1", "0", "9" * 400, ".", "-", "e", "_", "+", "%", " ", "٣", "inf", "nan"])
    | st.sampled_from(["K", "M", "G", "T", "i", "B", "ms", "s", "m", "h", "d", "0x", "\n", "\0"]),
    max_size=6,
).map("".join)


@given(st.text() | NEARLY)
def test_any_text_is_a_value_or_a_usage_error(text: str):
    for parse_it in PARSERS:
        with suppress(UsageError):
            value = parse_it(text)
            assert isinstance(value, Share | Size) or (value >= 0 and isfinite(value))


@pytest.mark.parametrize("text", ["1" * 60_000, "1h" * 60_000, "1." * 60_000, " " * 60_000 + "x"])
@pytest.mark.timeout(20)
def test_a_long_text_is_refused_in_no_time(text: str):
    for parse_it in PARSERS:
        with suppress(UsageError):
            parse_it(text)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-mem", "much"),
        ("--max-util", "120%"),
        ("--min-free-mem", "20%"),
        ("--max-procs", "few"),
        ("--free-for", "ages"),
        ("--interval", "10ms"),
        ("--interval", "0"),
        ("--interval", "often"),
        ("--grace", "-1s"),
        ("--wait-timeout", "never"),
        ("--ignore-pid", "bob"),
        ("--retries", "-1"),
        ("--retries", "1.5"),
        ("--retries", "many"),
        ("--retry-delay", "soon"),
        ("--retry-delay", "-1s"),
        ("--timeout", "0"),
        ("--timeout", "0s"),
        ("--timeout", "never"),
        ("--halt", "soon"),
        ("--halt", "never"),
        ("--halt", "now,fail=0%"),
        ("--gpus", "0,0"),
        ("--gpus", "one"),
        ("--gpus", ","),
        ("--gpus", "3-1"),
        ("--gpus", "99999"),
        ("--exclude", "x"),
        ("--shell", "/no/such/shell"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_that_names_its_flag(flag: str, value: str):
    with pytest.raises(UsageError, match=flag):
        config_of(f"{flag}={value}")


def test_without_flags_the_documented_defaults_hold():
    config = config_of()

    thresholds = config.policy.thresholds
    assert thresholds.max_memory == Share(10.0)
    assert thresholds.max_utilization_percent == 10.0
    assert (thresholds.min_free_bytes, thresholds.max_processes) == (None, None)
    assert thresholds.free_for_seconds == 10.0
    assert config.policy.interval_seconds == 1.0
    assert config.policy.grace_seconds == 10.0
    assert config.policy.wait_timeout_seconds is None
    assert (config.policy.retries, config.policy.retry_delay_seconds) == (0, 1.0)
    assert (config.policy.timeout_seconds, config.policy.halt) == (None, None)
    assert (config.policy.guard, config.policy.tells) == (True, False)
    assert (config.on_finish, config.joblog, config.json_log) == (None, None, None)
    assert config.policy.selection.wanted is None
    assert (config.output, config.logs) == ("log", os.path.abspath("smartsched-logs"))
    assert os.path.basename(config.shell) in ("bash", "sh")
    assert config.notes == ()


@pytest.mark.parametrize(
    ("words", "note"),
    [
        ("--yield-grace=5s", "--yield-grace goes with --on-contention requeue or --polite"),
        ("--checkpoint-signal=USR1", "--checkpoint-signal goes with --on-contention requeue or"),
        (
            "--polite --grace=1m",
            "--grace is not for jobs that give way: they have --yield-grace (2s)",
        ),
        (
            "--polite --checkpoint-signal=USR1 --grace=1s",
            "--grace 1s is shorter than --yield-grace 2s, which jobs that save their state have",
        ),
        ("--simulate=4 --claims=here", "--claims goes with real GPUs"),
    ],
)
def test_an_option_that_changes_nothing_is_said_to(words: str, note: str):
    (said,) = config_of(*words.split()).notes

    assert said.startswith(note)


@pytest.mark.parametrize(
    "words",
    [
        "--grace=1m",
        "--polite --yield-grace=5s",
        "--polite --yield-grace=2s --grace=1m",
        "--on-contention=requeue --checkpoint-signal=USR1 --grace=1m",
        "--polite --checkpoint-signal=USR1 --yield-grace=20s",
        "--claims=here",
    ],
)
def test_of_options_that_change_something_nothing_is_said(words: str):
    assert config_of(*words.split()).notes == ()


def test_flags_become_the_policy():
    config = config_of(
        "--max-mem=4GiB", "--max-util=5%", "--min-free-mem=10G", "--max-procs=0", "--free-for=0",
        "--interval=50ms", "--grace=1m", "--wait-timeout=2h", "--visible=uuid",
        "--ignore-user=bob,eve", "--ignore-user=mallory", "--ignore-pid=1,2",
    )  # fmt: skip

    thresholds = config.policy.thresholds
    assert thresholds.max_memory == Size(4 * GIB)
    assert thresholds.min_free_bytes == 10 * GIB
    assert thresholds.max_processes == 0
    assert thresholds.free_for_seconds == 0.0
    assert thresholds.ignored.users == {"bob", "eve", "mallory"}
    assert thresholds.ignored.pids == {1, 2}
    assert config.policy.interval_seconds == 0.05
    assert config.policy.grace_seconds == 60.0
    assert config.policy.wait_timeout_seconds == 7200.0
    assert config.policy.visible_by == "uuid"


def test_flags_say_what_happens_when_jobs_fail():
    config = config_of(
        "--retries=3", "--retry-delay=1m", "--timeout=2h30m", "--halt=now,fail=10%", "--no-guard",
        "--on-finish=notify",
    )  # fmt: skip

    policy = config.policy
    assert (policy.retries, policy.retry_delay_seconds, policy.timeout_seconds) == (3, 60.0, 9000.0)
    assert policy.halt == Halt(stop=True, failures=None, percent=10)
    assert (policy.guard, policy.tells, config.on_finish) == (False, True, "notify")


def test_logs_of_jobs_are_absolute_and_say_whether_they_are_appended_to():
    config = config_of("--joblog=jobs.tsv", "--json-log=+events.json")

    assert config.joblog == os.path.abspath("jobs.tsv")
    assert config.json_log == "+" + os.path.abspath("events.json")


def test_gpus_are_indices_ranges_uuids_and_slots():
    config = config_of("--gpus", "0", "2-3", "GPU-8f", "1:2", "--exclude", "3")

    selection = config.policy.selection
    assert selection.wanted == (ByIndex(0), ByIndex(2), ByIndex(3), ByUuid("GPU-8f"), BySlot(1, 2))
    assert selection.excluded == (ByIndex(3),)


@pytest.mark.parametrize("words", [["0", "0"], ["0-2", "1"], ["GPU-a", "GPU-a"]])
def test_a_gpu_that_is_named_twice_is_an_error(words: list[str]):
    with pytest.raises(UsageError, match=r"--gpus: names GPU .* twice"):
        config_of("--gpus", *words)


@pytest.mark.parametrize(
    ("inherited", "wanted"),
    [
        ("2,0", (ByIndex(2), ByIndex(0))),
        ("GPU-8f6a,MIG-1", (ByUuid("GPU-8f6a"), ByUuid("MIG-1"))),
        ("1,-1,3", (ByIndex(1),)),
        (" 1 , 2 ", (ByIndex(1), ByIndex(2))),
    ],
)
def test_inherited_gpus_limit_the_choice_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, inherited: str, wanted: tuple[object, ...]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)

    config = config_of("list.txt")

    assert config.policy.selection.wanted == wanted
    assert config.policy.selection.wanted_by == "CUDA_VISIBLE_DEVICES"
    assert len(config.notes) == 1
    assert inherited in config.notes[0]


@pytest.mark.parametrize("inherited", ["", "-1", "NoDevFiles", "0,0", ","])
def test_inherited_gpus_that_name_none_are_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, inherited: str
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)

    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES.*--gpus"):
        config_of("list.txt")


@pytest.mark.parametrize("words", [["--gpus", "1"], ["--simulate", "2"], ["--replay", "x"]])
def test_inherited_gpus_do_not_matter_where_others_are_meant(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    config = config_of(*words)

    assert config.policy.selection.wanted_by == "--gpus"
    assert config.notes == ()


def test_one_command_s_output_is_untouched_unless_asked_for():
    assert config_of("--", "true").output == "raw"
    assert config_of("--output", "tag", "--", "true").output == "tag"


def test_the_sampler_is_told_what_it_needs(tmp_path: Path):
    assert config_of("--interval=2s").sampler_arguments == ("sample", "--interval", "2s")
    assert config_of("--simulate=3,seed=4").sampler_arguments[-2:] == ("--simulate", "3,seed=4")
    assert config_of("--replay=day").sampler_arguments[-2:] == ("--replay", os.path.abspath("day"))


def test_a_shell_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shell = tmp_path / "myshell"
    shell.symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert config_of("--shell", "myshell").shell == str(shell)
    assert config_of().shell == "/bin/sh"


@pytest.mark.parametrize(
    ("words", "value", "color"), [([], "", True), ([], "1", False), (["--no-color"], "", False)]
)
def test_colours_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, words: list[str], value: str, color: bool
):
    monkeypatch.setenv("NO_COLOR", value)

    assert config_of(*words).color is color
