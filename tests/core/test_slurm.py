"""What Slurm's programs are told, and what is made of what they say."""

import pytest

from smartsched.core.slurm import (
    PilotId,
    SlurmJob,
    check_options,
    complaint,
    gpus_named,
    may_pass,
    names_gpus,
    parse_jobs,
    parse_seconds_left,
    parse_submitted,
    plain_environment,
    sbatch_arguments,
    sbatch_environment,
    script,
    time_limit_seconds,
    warn_seconds,
)
from smartsched.errors import UsageError


def arguments(*options: str, environment: dict[bytes, bytes] | None = None, **more: object):
    values: dict[str, object] = {
        "gpus_per_pilot": 2,
        "name": "smartsched-night.4f2a",
        "log_folder": "/logs/night",
        "warn_seconds": 120.0,
    }
    return sbatch_arguments(options, environment or {}, **(values | more))  # type: ignore[arg-type]


def test_ours_come_after_the_user_s_options():
    assert arguments("--partition=gpu", "--time", "8:00:00") == [
        "--parsable",
        "--partition=gpu",
        "--time",
        "8:00:00",
        "--gres=gpu:2",
        "--nodes=1",
        "--ntasks=1",
        "--job-name=smartsched-night.4f2a",
        "--output=/logs/night/pilot-%j.log",
        "--signal=B:USR2@120",
        "--no-requeue",
    ]


@pytest.mark.parametrize(
    "options",
    [
        ("--gpus=4",),
        ("--gpus", "4"),
        ("-G4",),
        ("-G", "a100:4"),
        ("--gpus-per-node=a100:2",),
        ("--gpus-per-task=1",),
        ("--gres=gpu:a100:4",),
        ("--gres", "nvme:1,gpu:2"),
        ("--tres-per-task=gres/gpu:1",),
    ],
)
def test_who_names_gpus_himself_is_not_contradicted(options: tuple[str, ...]):
    assert names_gpus(options, {})
    assert not [word for word in arguments(*options) if "gpu:2" in word and word not in options]


@pytest.mark.parametrize("name", [b"SBATCH_GPUS", b"SBATCH_GPUS_PER_NODE"])
def test_nor_is_his_environment(name: bytes):
    assert "--gres=gpu:2" not in arguments(environment={name: b"1"})


def test_gres_in_the_environment_counts_until_an_option_replaces_it():
    environment = {b"SBATCH_GRES": b"gpu:v100:1"}

    assert names_gpus((), environment)
    assert not names_gpus(("--gres=nvme:1",), environment)


def test_the_user_s_other_gres_is_kept_beside_the_gpus():
    found = arguments("--gres=nvme:1")

    assert "--gres=nvme:1" in found
    assert "--gpus-per-node=2" in found
    assert "--gres=gpu:2" not in found


def test_an_option_that_only_begins_like_another_is_not_that_one():
    assert not names_gpus(("--gpu-bind=closest", "--gpu-freq=high", "--mem-per-gpu=8G"), {})
    check_options(("--nodelist=gpu1", "--ntasks-per-core=1", "--output-x", "--wait-all-nodes=0"))


def test_a_percent_sign_in_a_folder_is_none_of_sbatch_s_patterns():
    assert "--output=/a%%j/pilot-%j.log" in arguments(log_folder="/a%j")


@pytest.mark.parametrize(("seconds", "said"), [(0.2, 1), (90.4, 90), (1e9, 65535)])
def test_a_warning_is_of_as_many_seconds_as_slurm_can_count(seconds: float, said: int):
    assert f"--signal=B:USR2@{said}" in arguments(warn_seconds=seconds)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--array=1-4",), "--array cannot be given: --pilots says how many"),
        (("-a", "1-4"), "--array"),
        (("-a1-4",), "--array"),
        (("--wrap=hostname",), "--wrap"),
        (("-W",), "--wait"),
        (("--job-name", "x"), "--job-name"),
        (("-J", "x"), "--job-name"),
        (("-o", "x"), "--output"),
        (("--signal=USR1@60",), "--signal"),
        (("--test-only",), "--test-only"),
        (("--nodes=2",), "--nodes cannot be more than 1: a pilot is one task"),
        (("-N", "2"), "--nodes"),
        (("-n8",), "--ntasks cannot be more than 1"),
        (("--mem=1G", ":", "--mem=2G"), "no jobs of several parts"),
    ],
)
def test_what_a_pilot_cannot_be_given(options: tuple[str, ...], why: str):
    with pytest.raises(UsageError, match=why):
        check_options(options)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--partition=gpu", "--time=8:00:00", "--account", "lab", "-p", "gpu", "-A", "lab"),
        ("--nodes=1", "-n", "1", "-N1", "--cpus-per-task=8"),
        ("--exclude=bad1", "--constraint=a100|h100", "--mail-type=ALL", "-H", "--export=NONE"),
    ],
)
def test_what_else_there_is_is_the_user_s_own_business(options: tuple[str, ...]):
    check_options(options)


@pytest.mark.parametrize(
    "command",
    ["smartsched", "/opt/venv/bin/python -P -m smartsched", "apptainer exec x smartsched"],
)
def test_a_program_takes_the_place_of_the_shell_and_does_not_die_of_an_early_warning(command: str):
    assert script(command, "agent --join x").splitlines() == [
        "#!/bin/bash",
        "trap '' USR2",
        f"exec {command} agent --join x",
    ]


@pytest.mark.parametrize(
    "command",
    [
        "source v/bin/activate && smartsched",
        "X=1 smartsched",
        ". v; smartsched",
        "$HOME/smartsched",
    ],
)
def test_a_shell_that_has_more_to_do_lives_until_the_agent_has_ended(command: str):
    assert script(command, "agent").splitlines()[1:] == ["trap : TERM USR2", f"{command} agent"]


@pytest.mark.parametrize(
    ("option", "gpus"),
    [
        ("--gpus=4", 4),
        ("--gpus=a100:4", 4),
        ("-G3", 3),
        ("--gpus=a100:2,v100:1", 3),
        ("--gpus-per-node=h100:8", 8),
        ("--gres=gpu", 1),
        ("--gres=gpu:a100:2,nvme:100", 2),
        ("--gres=gpu:a100:4(S:0-1)", 4),
        ("--tres-per-task=gres/gpu=3", 3),
        ("--gres=nvme:1", None),
        ("--partition=gpu", None),
    ],
)
def test_how_many_gpus_a_pilot_has_by_the_user_s_own_words(option: str, gpus: int | None):
    assert gpus_named([option], {}) == gpus


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("5:30", 330),
        ("8:00:00", 28800),
        ("2-0", 172800),
        ("2-12:30", 217800),
        ("1-1:1:1", 90061),
        ("UNLIMITED", None),
        ("0", None),
        ("a while", None),
    ],
)
def test_time_limits_as_slurm_writes_them(text: str, seconds: float | None):
    assert time_limit_seconds([f"--time={text}"], {}) == seconds
    assert time_limit_seconds(["-t", text], {b"SBATCH_TIMELIMIT": b"7"}) == seconds
    assert time_limit_seconds([], {b"SBATCH_TIMELIMIT": text.encode()}) == seconds


def test_pilots_of_a_short_time_are_warned_later():
    assert warn_seconds(90, None) == 90
    assert warn_seconds(90, 3600) == 90
    assert warn_seconds(90, 120) == 30


def test_pilots_inherit_the_user_s_environment_but_not_our_gpus_and_job():
    environment = {
        b"PATH": b"/bin",
        b"WANDB_API_KEY": b"secret",
        b"BASH_FUNC_module%%": b"() { :; }",
        b"SBATCH_ACCOUNT": b"lab",
        b"SBATCH_WAIT": b"1",
        b"SLURM_CONF": b"/etc/slurm.conf",
        b"CUDA_VISIBLE_DEVICES": b"3",
        b"SMARTSCHED_RUN_ID": b"x",
        b"SMARTSCHED_JOB": b"1",
    }

    kept = {
        b"PATH", b"WANDB_API_KEY", b"BASH_FUNC_module%%", b"SBATCH_ACCOUNT", b"SLURM_CONF",
    }  # fmt: skip
    assert sbatch_environment(environment).keys() == kept


def test_a_dispatcher_in_a_job_of_slurm_s_does_not_hand_on_what_is_true_of_that_job():
    environment = {
        b"SLURM_JOB_ID": b"7",
        b"SLURM_JOB_END_TIME": b"1",
        b"SLURM_MEM_PER_NODE": b"4096",
        b"SLURMD_NODENAME": b"n1",
        b"SLURM_CONF": b"/etc/slurm.conf",
        b"HOME": b"/home/me",
    }

    assert sbatch_environment(environment).keys() == {b"SLURM_CONF", b"HOME"}


def test_the_user_s_habits_hide_no_pilot():
    environment = {b"SQUEUE_PARTITION": b"cpu", b"SCANCEL_STATE": b"PENDING", b"HOME": b"/"}

    assert plain_environment(environment) == {b"HOME": b"/"}


@pytest.mark.parametrize(
    ("text", "pilot"),
    [
        ("123\n", "123"),
        ("123;cluster\n", "123"),
        ("welcome to our cluster!\n123\n", "123"),
        ("", None),
        ("Submitted batch job x\n", None),
    ],
)
def test_what_sbatch_says_is_the_pilot_s_number(text: str, pilot: str | None):
    assert parse_submitted(text) == pilot


def test_what_squeue_says_of_each_job():
    text = (
        "CLUSTER: big\n"
        "12|RUNNING|7:59:58|gpu3|None\n"
        "13|PENDING|8:00:00||Resources\n"
        "14|PENDING|UNLIMITED||ReqNodeNotAvail, UnavailableNodes:n1|n2\n"
        "11|TIMEOUT|INVALID|gpu1|TimeLimit\n"
        "10|COMPLETING|0:01|gpu2|None\n"
        "9|NEW_WORD|0:01|gpu2|None\n"
        "torn|li"
    )

    assert parse_jobs(text) == [
        SlurmJob(PilotId("12"), "runs", "RUNNING", 28798.0, "gpu3", ""),
        SlurmJob(PilotId("13"), "waits", "PENDING", 28800.0, "", "Resources"),
        SlurmJob(
            PilotId("14"), "waits", "PENDING", None, "", "ReqNodeNotAvail, UnavailableNodes:n1|n2"
        ),
        SlurmJob(PilotId("11"), "ended", "TIMEOUT", 0.0, "gpu1", "TimeLimit"),
        SlurmJob(PilotId("10"), "ends", "COMPLETING", 1.0, "gpu2", ""),
        SlurmJob(PilotId("9"), "runs", "NEW_WORD", 1.0, "gpu2", ""),
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:42", 42.0),
        ("01:00", 60.0),
        ("1:00:00", 3600.0),
        ("1-02:03:04", 93784.0),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", 0.0),
        ("", None),
        ("N/A\n", None),
    ],
)
def test_how_much_of_the_time_is_left(text: str, seconds: float | None):
    assert parse_seconds_left(text) == seconds


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "sbatch: error: invalid partition specified: nope\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
            "sbatch: invalid partition specified: nope; Invalid partition name specified",
        ),
        (
            "sbatch: unrecognized option '--bogus'\nTry \"sbatch --help\" for more information\n",
            "sbatch: unrecognized option '--bogus'",
        ),
        (
            "allocation failure: Requested node configuration is not available\n",
            "sbatch: Requested node configuration is not available",
        ),
        ("/usr/bin/sbatch: unrecognized option '--x'", "sbatch: unrecognized option '--x'"),
        ("sbatch: \x1b[31mred\n", "sbatch: \\x1b[31mred"),
        ("", "sbatch: it does not say why"),
    ],
)
def test_a_complaint_is_one_line_that_a_terminal_shows(text: str, line: str):
    assert complaint("sbatch", text) == line


def test_trouble_of_slurm_s_own_may_pass():
    assert may_pass("sbatch: Unable to contact slurm controller (connect failure)")
    assert not may_pass("sbatch: Invalid partition name specified")
