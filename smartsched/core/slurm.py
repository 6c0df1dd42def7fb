"""What Slurm's programs are told and what they say, as texts: nothing here starts one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NewType, TypeAlias

from msgspec import Struct

from smartsched.core import words
from smartsched.core.tag import VARIABLES
from smartsched.errors import UsageError

PilotId = NewType("PilotId", str)
"""Slurm's number of the job that a pilot is."""

Phase: TypeAlias = Literal["waits", "runs", "ends", "ended"]

WARNING_SIGNAL = "USR2"
# For saving and ending, at the most: the rest of it is for work.
MOST_OF_ITS_TIME = 0.25
JOBS_FORMAT = "%A|%T|%L|%N|%r"
# Slurm keeps it in 16 bits.
_LONGEST_WARNING_SECONDS = 65535
_LONGEST_COMPLAINT = 300
_WAITING = {
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
    "SPECIAL_EXIT", "POWER_UP_NODE",
}  # fmt: skip
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL",
    "OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
}  # fmt: skip
_LIMIT = re.compile(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", re.ASCII)
_NUMBER_OF_GPUS = re.compile(r"(?:^|[:=])(\d+)(?:\(\S*\))?$", re.ASCII)
_SAFE = re.compile(r"[\w./+@%:,=~ -]+", re.ASCII)
_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", re.ASCII)
_SUBMITTED = re.compile(r"^(\d+)(?:;\S*)?$", re.ASCII | re.MULTILINE)
_NOISE = re.compile(
    r"^(?:\S*/)?s(?:batch|queue|cancel): (?:error: |fatal: )?"
    r"|^Batch job submission failed: |^allocation failure: "
)
_GPU_OPTIONS = {
    "gpus": "G", "gpus-per-node": "", "gpus-per-task": "", "gpus-per-socket": "",
    "tres-per-task": "", "tres-per-job": "",
}  # fmt: skip
_GPU_VARIABLES = {
    b"SBATCH_GPUS", b"SBATCH_GPUS_PER_NODE", b"SBATCH_GPUS_PER_TASK", b"SBATCH_GPUS_PER_SOCKET",
}  # fmt: skip
_ONE_TASK = "a pilot is one task on one node; ask for its processors with --cpus-per-task"
_SIGNS_OF_TROUBLE = (
    "Unable to contact slurm controller", "Socket timed out", "Zero Bytes were transmitted",
    "Resource temporarily unavailable", "Slurm backup controller", "Unexpected message received",
    "Invalid authentication credential", "Protocol authentication error",
    "slurm_persist_conn", "try again", "retry", "QOSMaxSubmitJobPerUserLimit",
    "AssocMaxSubmitJobLimit", "AssocGrpSubmitJobsLimit", "Job violates accounting/QOS policy",
)  # fmt: skip
# Long and short names of what cannot be left to the user, and why.
_NOT_FOR_USERS = {
    ("array", "a"): "--pilots says how many there are",
    ("wrap", ""): "pilots run smartsched's own script",
    ("wait", "W"): "nobody waits for a pilot to end",
    ("test-only", ""): "pilots would never be submitted",
    ("job-name", "J"): "pilots are known by their name",
    ("output", "o"): "it is where smartsched looks for what a pilot said",
    ("input", "i"): "pilots read nothing",
    ("signal", ""): "smartsched sets it, so that jobs are told before the time limit",
    ("requeue", ""): "smartsched itself replaces a pilot that has ended",
    ("parsable", ""): "smartsched sets it",
    ("help", "h"): "it submits nothing",
    ("usage", ""): "it submits nothing",
    ("version", "V"): "it submits nothing",
}
_MUST_BE_ONE = {("nodes", "N"), ("ntasks", "n")}
# Of a job that we run in ourselves: true of that one only. These are true everywhere.
_OF_THE_CLUSTER = {b"SLURM_CONF", b"SLURM_CONF_SERVER", b"SLURM_CLUSTERS", b"SLURM_JWT"}
_NEVER_HANDED_ON = {
    b"SBATCH_WAIT", b"SBATCH_ARRAY_INX", b"SBATCH_TEST_ONLY", b"SBATCH_REQUEUE", b"SBATCH_SIGNAL",
    b"CUDA_VISIBLE_DEVICES", b"ROCR_VISIBLE_DEVICES", b"HIP_VISIBLE_DEVICES", b"GPU_DEVICE_ORDINAL",
    *(name.encode() for name in VARIABLES),
}  # fmt: skip


class SlurmJob(Struct, frozen=True):
    """What squeue says of one."""

    pilot: PilotId
    phase: Phase
    state: str  # Slurm's word
    seconds_left: float | None  # before its time limit; None: it has none, or nobody knows; some
    # versions say a year where there is none
    node: str  # "": none yet
    reason: str  # Slurm's word for why it waits, or for how it ended; "": it has none


def check_options(options: Sequence[str]) -> None:
    """Of sbatch, as the user gave them. Raises UsageError for what a pilot cannot be given."""
    for (long, short), why in _NOT_FOR_USERS.items():
        if any(_values(options, long, short)):
            raise UsageError(f"--slurm: --{long} cannot be given: {why}")
    for long, short in _MUST_BE_ONE:
        if any(value not in ("1", "1-1") for value in _values(options, long, short)):
            raise UsageError(f"--slurm: --{long} cannot be more than 1: {_ONE_TASK}")
    if ":" in options:
        raise UsageError(f"--slurm: no jobs of several parts (:): {_ONE_TASK}")


def names_gpus(options: Sequence[str], environment: Mapping[bytes, bytes]) -> bool:
    """Whether the user says himself which GPUs a pilot is given: then it is not said again."""
    if any(_values(options, long, short) for long, short in _GPU_OPTIONS.items()):
        return True
    gres = _values(options, "gres", "")
    if gres or b"SBATCH_GRES" not in environment:
        asks = any("gpu" in value for value in gres)
    else:
        asks = b"gpu" in environment[b"SBATCH_GRES"]
    return asks or not _GPU_VARIABLES.isdisjoint(environment)


def gpus_named(options: Sequence[str], environment: Mapping[bytes, bytes]) -> int | None:
    """How many GPUs a pilot has, if the user says that himself; None: he does not, or not so that
    it could be told."""
    given = [v for long, short in _GPU_OPTIONS.items() for v in _values(options, long, short)]
    given += [value for value in _values(options, "gres", "") if "gpu" in value]
    given = given or [
        environment[name].decode("ascii", "replace")
        for name in sorted((_GPU_VARIABLES | {b"SBATCH_GRES"}) & environment.keys())
    ]
    parts = [part for part in (given[-1].split(",") if given else ()) if _names_gpus(part)]
    found = [_NUMBER_OF_GPUS.search(part) for part in parts]
    return sum(int(number[1]) if number else 1 for number in found) or None


def time_limit_seconds(options: Sequence[str], environment: Mapping[bytes, bytes]) -> float | None:
    """Of a pilot, as the user gave it; None: he gave none, or none that can be told."""
    inherited = environment.get(b"SBATCH_TIMELIMIT", b"").decode("ascii", "replace")
    text = (_values(options, "time", "t") or [inherited])[-1]
    found = _LIMIT.fullmatch(text)
    if found is None:
        return None
    days, numbers = found[1], [int(part) for part in found[2].split(":")]
    if days:  # days-hours:minutes:seconds
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:  # minutes, minutes:seconds
        hours, minutes, seconds = (0, *numbers, 0)[:3]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds) or None


def warn_seconds(wanted: float, limit: float | None) -> float:
    """How long before a pilot's time is over its jobs are told; `limit`: of its time. A pilot of a
    short time is warned later, or it would never be of use."""
    return wanted if limit is None else min(wanted, MOST_OF_ITS_TIME * limit)


def sbatch_arguments(
    options: Sequence[str],
    environment: Mapping[bytes, bytes],
    *,
    gpus_per_pilot: int,
    name: str,
    log_folder: str,
    warn_seconds: float,
) -> list[str]:
    """The user's options, then ours: of one that is given twice, sbatch takes the last."""
    warn = min(max(round(warn_seconds), 1), _LONGEST_WARNING_SECONDS)
    folder = log_folder.replace("%", "%%")
    return [
        "--parsable",
        *options,
        *_gpus(options, environment, gpus_per_pilot),
        "--nodes=1",
        "--ntasks=1",
        f"--job-name={name}",
        f"--output={folder}/pilot-%j.log",
        # only to the batch script, which the agent replaces: jobs are told by the agent
        f"--signal=B:{WARNING_SIGNAL}@{warn}",
        "--no-requeue",  # Slurm would start it once more under the same number
    ]


def script(command: str, arguments: str) -> str:
    """What a pilot runs: `command` is a line of a shell, to which the arguments are added. Slurm's
    warning goes to this process alone: to the agent, where it can take the place of the shell. Else
    the shell lives until the agent has ended, and the dispatcher warns it."""
    if _is_one_program(command):
        # until the agent listens, it must not end it: no shell can undo that, but Python can
        return f"#!/bin/bash\ntrap '' {WARNING_SIGNAL}\nexec {command} {arguments}\n"
    return f"#!/bin/bash\ntrap : TERM {WARNING_SIGNAL}\n{command} {arguments}\n"


def squeue_arguments(name: str, user_id: int) -> list[str]:
    """All jobs of this user and name that Slurm remembers, also those that have just ended."""
    return [
        "--noheader",
        f"--user={user_id}",
        f"--name={name}",
        "--states=all",
        f"--format={JOBS_FORMAT}",
    ]


def sbatch_environment(environment: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What pilots and their jobs inherit, but for what is true only of where we run ourselves."""
    in_a_job = b"SLURM_JOB_ID" in environment
    return {
        name: value
        for name, value in environment.items()
        if name not in _NEVER_HANDED_ON
        and not (in_a_job and name.startswith(b"SLURM") and name not in _OF_THE_CLUSTER)
    }


def plain_environment(environment: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """For squeue and scancel, without the user's habits, which would hide jobs from them."""
    habits = (b"SQUEUE_", b"SCANCEL_")
    return {name: value for name, value in environment.items() if not name.startswith(habits)}


def parse_submitted(text: str) -> PilotId | None:
    """What `sbatch --parsable` said; None: nothing was submitted, or that is not known."""
    found = _SUBMITTED.search(text)
    return None if found is None else PilotId(found[1])


def parse_jobs(text: str) -> list[SlurmJob]:
    """What squeue said. Lines that are no jobs are left out."""
    rows = (line.split("|", 4) for line in text.splitlines())
    return [_job(*row) for row in rows if len(row) == 5 and row[0].isdecimal()]


def parse_seconds_left(text: str) -> float | None:
    """ "1-02:03:04", "03:04"; None: there is no limit, or it is not known."""
    if text.strip() == "INVALID":  # as it is said of less than nothing
        return 0.0
    found = _LEFT.fullmatch(text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def complaint(program: str, text: str) -> str:
    """What a program of Slurm's said to stderr, as one line."""
    lines: list[str] = []
    for line in text.splitlines():
        said = line.strip()
        while said != (said := _NOISE.sub("", said)):
            pass
        if said and not said.startswith("Try ") and said not in lines:
            lines.append(said)
    said = words.printable("; ".join(lines[-3:])) or "it does not say why"
    return f"{program}: {words.shortened(said, _LONGEST_COMPLAINT)}"


def may_pass(complaint: str) -> bool:
    """Whether it is about Slurm's own trouble, not about what was asked of it."""
    return any(sign in complaint for sign in _SIGNS_OF_TROUBLE)


def _gpus(
    options: Sequence[str], environment: Mapping[bytes, bytes], gpus_per_pilot: int
) -> list[str]:
    """--gres is understood by every Slurm that knows GPUs, --gpus-per-node not; but a second --gres
    would take the place of the user's."""
    if names_gpus(options, environment):
        return []
    if any(_values(options, "gres", "")):
        return [f"--gpus-per-node={gpus_per_pilot}"]
    return [f"--gres=gpu:{gpus_per_pilot}"]


def _is_one_program(command: str) -> bool:
    """Whether nothing but a program is run, with words that a shell does not change."""
    first, *_ = command.split() or [""]
    is_builtin = first in ("source", ".", "eval", "exec", "module", "conda")
    return _SAFE.fullmatch(command) is not None and "=" not in first and not is_builtin


def _names_gpus(part: str) -> bool:
    """ "4", "a100:4" of --gpus; "gpu:a100:4" of --gres, beside other things."""
    return "gpu" in part or not any(part.startswith(other) for other in ("shard", "mps", "nvme"))


def _job(number: str, state: str, left: str, node: str, reason: str) -> SlurmJob:
    # "None" is Slurm's word for no reason
    why = "" if reason.strip() == "None" else words.printable(reason.strip())
    return SlurmJob(
        PilotId(number), _phase(state), state, parse_seconds_left(left), node.strip(), why
    )


def _phase(state: str) -> Phase:
    """A word that we do not know is of something that is there: unknown is not gone."""
    if state in _WAITING:
        return "waits"
    if state == "COMPLETING":
        return "ends"
    return "ended" if state in _OVER else "runs"


def _values(options: Sequence[str], long: str, short: str) -> list[str]:
    """What an option was given, each time; "-" stands for no value."""
    return list(_given(options, long, short))


def _given(options: Sequence[str], long: str, short: str) -> Iterator[str]:
    for number, word in enumerate(options):
        following = options[number + 1] if number + 1 < len(options) else "-"
        if word == f"--{long}" or (short and word == f"-{short}"):
            yield following or "-"
        elif word.startswith(f"--{long}="):
            yield word.partition("=")[2] or "-"
        elif short and word.startswith(f"-{short}") and not word.startswith("--"):
            yield word[2:].removeprefix("=")
