"""Options for several hosts: what they mean, what is refused, what of them is remembered."""

from pathlib import Path

import pytest

from smartsched.cli.parser import parse, parse_again, remembered
from smartsched.config import Config, configure, inherited_gpus, offered_gpus
from smartsched.core.model import GpuReading
from smartsched.errors import UsageError
from tests.builders import a_sample


def settled(*words: str) -> Config:
    return configure(parse(words), "night")


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as refused:
        settled(*words)
    return str(refused.value)


def test_without_hosts_it_is_about_this_box():
    config = settled()

    assert config.cluster is None
    assert not config.policy.spans_hosts


def test_hosts_have_names_users_and_ports():
    cluster = settled("--hosts", "gpu1,ada@gpu2:2222").cluster

    assert cluster is not None
    assert [(h.name, h.user, h.port) for h in cluster.hosts] == [
        ("gpu1", None, None),
        ("gpu2", "ada", 2222),
    ]
    assert cluster.lease_seconds == 300


def test_a_file_of_hosts_is_read_once_and_remembered(tmp_path: Path):
    file = tmp_path / "hosts"
    file.write_text("# ours\ngpu1\n\nada@gpu2:2222  # the new one\n")
    args = parse(["--hosts-file", str(file), "--hosts", "gpu3"])
    file.unlink()

    again = parse_again([], remembered(args))

    assert again.hosts == "gpu3,gpu1,ada@gpu2:2222"


def test_a_wrong_line_in_a_file_of_hosts_is_named(tmp_path: Path):
    file = tmp_path / "hosts"
    file.write_text("gpu1\n-oProxyCommand=evil\n")

    with pytest.raises(UsageError, match=f"{file}:2: .* option to ssh"):
        parse(["--hosts-file", str(file)])


def test_a_file_of_hosts_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(["--hosts-file", "nowhere"])

    assert "cannot read nowhere: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hosts", "a,,b"], "nothing between the commas"),
        (["--hosts", "a", "--lease", "1s"], "too short: give 10s"),
        (["--hosts", "a", "--lease", "soon"], "--lease"),
        (["--hosts", "a", "--output", "tag"], "goes with one box"),
        (["--listen", "10.0.0.1:99999"], "no address"),
        (["--listen", "a b"], "no address"),
        (["--slurm", "--comment='x"], "cannot be taken apart"),
        (["--slurm", "", "--pilots", "0"], "--pilots"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_refused(words: list[str], said: str):
    assert said in refusal(*words)


def test_a_recording_is_of_one_box(tmp_path: Path):
    recording = tmp_path / "day.jsonl"
    recording.touch()

    assert "one box" in refusal("--hosts", "a", "--replay", str(recording))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("10.0.0.1:7000", ("10.0.0.1", 7000)),
        (":7000", ("", 7000)),
        ("gpu-login", ("gpu-login", 0)),
        ("[::1]:7000", ("::1", 7000)),
    ],
)
def test_a_place_to_listen_at(text: str, where: tuple[str, int]):
    cluster = settled("--listen", text).cluster

    assert cluster is not None
    assert (cluster.listen, cluster.port) == where


@pytest.mark.parametrize("words", [["--slurm", "--qos=low"], ["--slurm=--qos=low"]])
def test_options_of_sbatch_may_look_like_ours(words: list[str]):
    cluster = settled(*words).cluster

    assert cluster is not None
    assert cluster.slurm == ("--qos=low",)


def test_who_keeps_lost_jobs_has_no_lease():
    cluster = settled("--hosts", "a", "--on-lost", "keep").cluster

    assert cluster is not None
    assert cluster.lease_seconds is None


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["--lease", "1h"], "--lease goes with --hosts, --slurm or --listen"),
        (["--pilots", "2"], "--pilots goes with --slurm"),
        (["--sync-logs"], "--sync-logs goes with --hosts, --slurm or --listen"),
        (["--hosts", "a", "--pilots", "2"], "--pilots goes with --slurm"),
        (
            ["--hosts", "a", "--lease", "1h", "--on-lost", "keep"],
            "--lease goes with --on-lost requeue: what is kept has none",
        ),
        (
            ["--listen", ":7000", "--remote-command", "x"],
            "--remote-command goes with --hosts or --slurm: whoever joins by hand has begun",
        ),
    ],
    ids=" ".join,
)
def test_an_option_that_changes_nothing_is_mentioned(words: list[str], note: str):
    assert note in settled(*words).notes


def test_what_is_granted_here_limits_no_other_host(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    config = settled("--hosts", "a")

    assert config.policy.selection.wanted is None
    assert inherited_gpus(parse(["--hosts", "a"])) is None


def indices(readings: list[GpuReading]) -> list[int]:
    selection = offered_gpus()
    return [r.index for r in readings if selection is None or selection.admits(r)]


@pytest.mark.parametrize(
    ("granted", "offered"),
    [
        (None, [0, 1, 2, 3]),
        ("1,3", [1, 3]),
        ("2,-1,3", [2]),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_an_agent_offers_what_it_was_granted(
    granted: str | None, offered: list[int], monkeypatch: pytest.MonkeyPatch
):
    if granted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", granted)

    assert indices([a_sample(index) for index in range(4)]) == offered


def test_what_was_granted_and_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")

    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES='all' of this host"):
        offered_gpus()
