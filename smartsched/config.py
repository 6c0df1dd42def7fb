"""Flags and environment become one frozen Config; nothing else reads either."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal, TypeVar

from smartsched.core.freeness import Share, Size, Thresholds
from smartsched.core.halt import parse_halt
from smartsched.core.hours import NO_CAP, Cap, parse_cap
from smartsched.core.policy import Policy
from smartsched.core.preference import Preference, parse_preference
from smartsched.core.selection import Selection, parse_ids
from smartsched.core.strangers import Ignored
from smartsched.core.tag import HOOK_VARIABLE, VARIABLES
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

_NICEST = 19
# What jobs and --on-finish commands are told: it is about the run that they belong to, and says
# nothing of one that they begin.
SET_BY_US = frozenset(
    {HOOK_VARIABLE, *VARIABLES}
    | {
        f"SMARTSCHED_{name}"
        for name in (
            "ATTEMPTS", "COMMAND", "DIRECTORY", "EXIT_STATUS", "GPUS", "GPU_UUIDS", "LOG", "NAME",
            "OUTCOME", "RUN", "SECONDS", "SIGNAL", "STARTED_AT",
        )
    }
)  # fmt: skip
_NOTIFY = "SMARTSCHED_NOTIFY"
T = TypeVar("T")
OutputMode = Literal["log", "tag", "raw"]


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the user decided."""

    run_name: str
    policy: Policy
    command: str | None  # None: commands come from `inputs`
    inputs: tuple[str, ...]
    output: OutputMode
    logs: str
    shell: str
    working_directory: str | None  # None: where we are
    quiet: bool
    verbose: bool
    progress: bool
    color: bool
    sampler_arguments: tuple[str, ...]
    nice: int | None  # None: as we are
    checkpoint_signal: int | None  # None: runs that give way are asked to end
    claims: str | None  # a folder; "": the usual one; None: there are no claims
    on_finish: str | None
    joblog: str | None
    json_log: str | None
    notify: tuple[str, ...] = field(repr=False)  # URLs, with secrets in them
    notify_stall_seconds: float
    notes: tuple[str, ...]  # what the user may not expect and should know


def configure(args: argparse.Namespace, run_name: str, run_id: str = "") -> Config:
    """Raises UsageError for a value that cannot be, naming the flag. `run_id`: what tells the run
    from others of its name; "": the name does."""
    selection, notes = _selection(args)
    output: OutputMode = args.output or ("raw" if args.command is not None else "log")
    interval = flag("--interval", parse_interval, args.interval)
    policy = Policy(
        run_id=run_id or run_name,
        thresholds=_thresholds(args),
        selection=selection,
        visible_by=args.visible,
        grace_seconds=flag("--grace", parse_duration, args.grace),
        interval_seconds=interval,
        wait_timeout_seconds=None
        if args.wait_timeout is None
        else flag("--wait-timeout", parse_duration, args.wait_timeout),
        retries=flag("--retries", parse_count, args.retries),
        retry_delay_seconds=flag("--retry-delay", parse_duration, args.retry_delay),
        timeout_seconds=None
        if args.timeout is None
        else flag("--timeout", parse_positive_duration, args.timeout),
        halt=None if args.halt is None else flag("--halt", parse_halt, args.halt),
        guard=args.guard,
        tells=args.on_finish is not None,
        keeps_open=args.keep_open,
        most_gpuless=os.cpu_count() or 1,
        **_packing(args),
        **_manners(args),
    )
    notes += tuple(_of_no_effect(args, policy))
    color = wants_color(args)
    return Config(
        run_name=run_name,
        policy=policy,
        command=args.command,
        inputs=tuple(args.files),
        output=output,
        logs=args.logs,
        shell=_shell(args.shell),
        working_directory=args.wd,
        quiet=args.quiet,
        verbose=args.verbose,
        progress=_progress(args, output),
        color=color,
        sampler_arguments=sampler_arguments(args, interval),
        nice=None if args.nice is None else flag("--nice", _parse_nice, args.nice),
        checkpoint_signal=_checkpoint_signal(args.checkpoint_signal),
        claims=_claims(args),
        on_finish=args.on_finish,
        joblog=args.joblog,
        json_log=args.json_log,
        notify=tuple(args.notify),
        notify_stall_seconds=flag("--notify-stall", parse_positive_duration, args.notify_stall),
        notes=notes,
    )


def wants_color(args: argparse.Namespace) -> bool:
    return not args.no_color and not is_colorless()


def is_colorless() -> bool:
    """https://no-color.org"""
    return bool(os.environ.get("NO_COLOR"))


def run_of_this_job() -> str | None:
    """In a job: the name of the run that it is of."""
    return os.environ.get("SMARTSCHED_RUN")


def _of_no_effect(args: argparse.Namespace, policy: Policy) -> Iterator[str]:
    """What was asked for and changes nothing, beside what else was asked for."""
    flags = args.flags if "flags" in args else ()  # what is set for all runs is no matter of one
    if policy.on_contention != "requeue":
        how = "goes with --on-contention requeue or --polite: without, no job gives way"
        if "checkpoint_signal" in flags:
            yield f"--checkpoint-signal {how}"
        if "yield_grace" in flags:
            yield f"--yield-grace {how}"
    elif args.checkpoint_signal is not None:
        if policy.grace_seconds < policy.yield_grace_seconds and "grace" in flags:
            yield (
                f"--grace {args.grace} is shorter than --yield-grace {args.yield_grace}, which jobs"
                " that save their state have"
            )
    elif "grace" in flags and "yield_grace" not in flags:
        yield (
            f"--grace is not for jobs that give way: they have --yield-grace ({args.yield_grace}),"
            " or --grace where --checkpoint-signal lets them save their state"
        )
    if "claims" in flags and (args.simulate is not None or args.replay is not None):
        yield "--claims goes with real GPUs: pretend ones are nobody else's"


def variables() -> dict[str, str]:
    """What the environment says to us or of us."""
    return {name: text for name, text in os.environ.items() if name.startswith("SMARTSCHED_")}


def keep_from_children() -> None:
    """What holds secrets of ours is no part of the environment of jobs."""
    os.environ.pop(_NOTIFY, None)


def _packing(args: argparse.Namespace) -> dict[str, Any]:
    memory, percent = args.job_mem, args.job_util
    return {
        "gpus_per_job": flag("--gpus-per-job", parse_count, args.gpus_per_job),
        "jobs_per_gpu": "auto"
        if args.jobs_per_gpu == "auto"
        else flag("--jobs-per-gpu", parse_positive_count, args.jobs_per_gpu),
        "job_memory": memory if memory in (None, "auto") else flag("--job-mem", parse_size, memory),
        "job_utilization_percent": None
        if percent is None
        else flag("--job-util", parse_percent, percent),
        "oom_retries": flag("--oom-retries", parse_count, args.oom_retries),
    }


def _manners(args: argparse.Namespace) -> dict[str, Any]:
    leave_free = "1" if args.polite and args.leave_free is None else args.leave_free
    return {
        "is_polite": args.polite and args.leave_free is None,
        "most_jobs": _cap("--jobs", args.jobs, least=1),
        "most_gpus": _cap("--max-gpus", args.max_gpus),
        "leave_free": _cap("--leave-free", leave_free),
        "preference": Preference()
        if args.prefer is None
        else flag("--prefer", parse_preference, args.prefer),
        "on_contention": args.on_contention or ("requeue" if args.polite else "drain"),
        "yield_grace_seconds": flag("--yield-grace", parse_duration, args.yield_grace),
        "asks_for_checkpoints": args.checkpoint_signal is not None,
        "claims": _claims(args) is not None,
    }


def _cap(name: str, text: str | None, least: int = 0) -> Cap:
    return NO_CAP if text is None else flag(name, lambda t: parse_cap(t, least), text)


def _parse_nice(text: str) -> int:
    nice = parse_count(text)
    if nice > _NICEST:
        raise UsageError(f"{text!r} is no niceness: give a number from 0 to {_NICEST}")
    return nice


def _claims(args: argparse.Namespace) -> str | None:
    """Pretend GPUs are nobody else's."""
    if args.no_claims or args.simulate is not None or args.replay is not None:
        return None
    return args.claims or os.environ.get("SMARTSCHED_CLAIMS", "")


def _checkpoint_signal(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        signum = signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise UsageError(f"--checkpoint-signal: there is no signal {name!r}; try USR1") from None
    if signum in (signal.SIGKILL, signal.SIGSTOP):
        raise UsageError(
            f"--checkpoint-signal: no job can save its state on {signum.name}; try USR1"
        )
    return signum


def sampler_arguments(args: argparse.Namespace, interval: float) -> tuple[str, ...]:
    """What the sampler child is told."""
    arguments = ["sample", "--interval", f"{interval}s"]
    if args.simulate is not None:
        arguments += ["--simulate", args.simulate]
    if args.replay is not None:
        arguments += ["--replay", args.replay]
    return tuple(arguments)


def _thresholds(args: argparse.Namespace) -> Thresholds:
    return Thresholds(
        max_memory=flag("--max-mem", parse_limit, args.max_mem),
        max_utilization_percent=flag("--max-util", parse_percent, args.max_util),
        min_free_bytes=None
        if args.min_free_mem is None
        else flag("--min-free-mem", parse_size, args.min_free_mem),
        max_processes=None
        if args.max_procs is None
        else flag("--max-procs", parse_count, args.max_procs),
        free_for_seconds=flag("--free-for", parse_duration, args.free_for),
        ignored=Ignored(
            users=frozenset(_split(args.ignore_user)),
            pids=frozenset(
                flag("--ignore-pid", parse_count, pid) for pid in _split(args.ignore_pid)
            ),
        ),
    )


def _split(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]


def _selection(args: argparse.Namespace) -> tuple[Selection, tuple[str, ...]]:
    excluded = () if args.exclude is None else flag("--exclude", parse_ids, args.exclude)
    if args.gpus is not None:
        return Selection(flag("--gpus", parse_ids, args.gpus), "--gpus", excluded), ()
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if inherited is None or args.simulate is not None or args.replay is not None:
        return Selection(None, "--gpus", excluded), ()
    name = "CUDA_VISIBLE_DEVICES"
    try:
        wanted = parse_ids(_before_the_first_invalid(inherited))
    except UsageError as error:
        raise UsageError(
            f"{name}={inherited!r} in the environment {error}; unset it or use --gpus"
        ) from error
    note = f"{name}={inherited} in the environment limits this to those GPUs; --gpus overrides it"
    return Selection(wanted, name, excluded), (note,)


def inherited_gpus(args: argparse.Namespace) -> str | None:
    """What limits the choice of GPUs though no flag says so: to be remembered with the run, since
    another shell may resume it. None: nothing does."""
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if args.gpus is not None or args.simulate is not None or args.replay is not None:
        return None
    return _before_the_first_invalid(inherited or "") or None


def _before_the_first_invalid(devices: str) -> str:
    """CUDA itself reads the list up to the first negative number (CUDA C++ Programming Guide,
    "CUDA Environment Variables")."""
    return ",".join(takewhile(lambda device: device.strip() != "-1", devices.split(",")))


def _shell(asked: str | None) -> str:
    import shutil

    if asked is not None:
        found = shutil.which(asked)
        if found is None:
            raise UsageError(
                f"--shell: {asked} is not there or cannot be executed; name one such as /bin/sh"
            )
        return os.path.abspath(found)
    return shutil.which("bash") or "/bin/sh"


def _progress(args: argparse.Namespace, output: OutputMode) -> bool:
    if is_dumb_terminal() or not sys.stderr.isatty():
        return False
    if args.progress is not None:
        return bool(args.progress)
    jobs_write_to_the_terminal = output != "log" and sys.stdout.isatty()
    single = args.command is not None
    return not (jobs_write_to_the_terminal or single or args.quiet)


def is_dumb_terminal() -> bool:
    """Whether it can do no more than print one line below the other."""
    return os.environ.get("TERM", "") in ("", "dumb")


def flag(name: str, parse: Callable[[str], T], value: str) -> T:
    try:
        return parse(value)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def parse_limit(text: str) -> Share | Size:
    """ "20%" of the GPU's memory, or a size."""
    if text.strip().endswith("%"):
        return Share(parse_percent(text))
    try:
        return Size(parse_size(text))
    except UsageError:
        raise UsageError(
            f"{text!r} is neither a share such as 20% nor a size such as 4GiB"
        ) from None
