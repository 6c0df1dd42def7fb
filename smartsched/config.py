"""Flags and environment become one frozen Config; nothing else reads either."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from smartsched.core.freeness import Share, Size, Thresholds
from smartsched.core.policy import Policy
from smartsched.core.selection import Selection, parse_ids
from smartsched.core.strangers import Ignored
from smartsched.errors import UsageError

T = TypeVar("T")
OutputMode = Literal["log", "tag", "raw"]
_UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", re.ASCII)
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_SECONDS = 365 * 86400.0
_SHORTEST_INTERVAL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the user decided."""

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
    notes: tuple[str, ...]  # what the user may not expect and should know


def configure(args: argparse.Namespace, run_name: str) -> Config:
    """Raises UsageError for a value that cannot be, naming the flag."""
    selection, notes = _selection(args)
    output: OutputMode = args.output or ("raw" if args.command is not None else "log")
    interval = parse_interval(args.interval)
    policy = Policy(
        run_name=run_name,
        thresholds=_thresholds(args),
        selection=selection,
        visible_by=args.visible,
        grace_seconds=_flag("--grace", parse_duration, args.grace),
        interval_seconds=interval,
        wait_timeout_seconds=None
        if args.wait_timeout is None
        else _flag("--wait-timeout", parse_duration, args.wait_timeout),
    )
    color = not args.no_color and not os.environ.get("NO_COLOR")
    return Config(
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
        notes=notes,
    )


def sampler_arguments(args: argparse.Namespace, interval: float) -> tuple[str, ...]:
    """What the sampler child is told."""
    arguments = ["sample", "--interval", f"{interval}s"]
    if args.simulate is not None:
        arguments += ["--simulate", args.simulate]
    if args.replay is not None:
        arguments += ["--replay", os.path.abspath(args.replay)]
    return tuple(arguments)


def _thresholds(args: argparse.Namespace) -> Thresholds:
    return Thresholds(
        max_memory=_flag("--max-mem", parse_limit, args.max_mem),
        max_utilization_percent=_flag("--max-util", parse_percent, args.max_util),
        min_free_bytes=None
        if args.min_free_mem is None
        else _flag("--min-free-mem", parse_size, args.min_free_mem),
        max_processes=None
        if args.max_procs is None
        else _flag("--max-procs", parse_count, args.max_procs),
        free_for_seconds=_flag("--free-for", parse_duration, args.free_for),
        ignored=Ignored(
            users=frozenset(_split(args.ignore_user)),
            pids=frozenset(
                _flag("--ignore-pid", parse_count, pid) for pid in _split(args.ignore_pid)
            ),
        ),
    )


def _split(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]


def _selection(args: argparse.Namespace) -> tuple[Selection, tuple[str, ...]]:
    excluded = () if args.exclude is None else _flag("--exclude", parse_ids, args.exclude)
    if args.gpus is not None:
        return Selection(_flag("--gpus", parse_ids, args.gpus), "--gpus", excluded), ()
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


def _before_the_first_invalid(devices: str) -> str:
    """CUDA itself reads the list up to the first negative number (CUDA C++ Programming Guide,
    "CUDA Environment Variables")."""
    return devices.split("-1", 1)[0] if re.search(r"(^|,)-1", devices) else devices


def _shell(asked: str | None) -> str:
    import shutil

    if asked is not None:
        found = shutil.which(asked)
        if found is None:
            raise UsageError(f"--shell: {asked} is not there or cannot be executed")
        return os.path.abspath(found)
    return shutil.which("bash") or "/bin/sh"


def _progress(args: argparse.Namespace, output: OutputMode) -> bool:
    if args.progress is not None:
        return bool(args.progress)
    jobs_write_to_the_terminal = output != "log" and sys.stdout.isatty()
    dumb = os.environ.get("TERM", "") in ("", "dumb")
    single = args.command is not None
    return sys.stderr.isatty() and not (jobs_write_to_the_terminal or dumb or single or args.quiet)


def _flag(name: str, parse: Callable[[str], T], value: str) -> T:
    try:
        return parse(value)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def parse_size(text: str) -> int:
    """ "4GiB", "4G" and "4gb" are 4 x 2^30 bytes, as nvidia-smi counts; a unit is required."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or not found[2]:
        raise UsageError(f"{text!r} is no size: write it as 4GiB or 512MiB")
    return round(float(found[1]) * 1024.0 ** _UNITS[found[2].upper()])


def parse_percent(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise UsageError(f"{text!r} is no percentage: write it as 20%")
    return value


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


def parse_duration(text: str) -> float:
    """ "10s", "2h", "1m30s", "500ms"; a bare number is seconds."""
    stripped = text.strip()
    parts = list(_DURATION.finditer(stripped))
    whole = "".join(part[0] for part in parts)
    bare = sum(1 for part in parts if not part[2])
    if not stripped or whole != stripped or (bare and len(parts) > 1):
        raise UsageError(f"{text!r} is no duration: write it as 10s, 5m or 2h")
    seconds = sum(float(part[1]) * _SECONDS[part[2]] for part in parts)
    if seconds > _LONGEST_SECONDS:
        raise UsageError(f"{text!r} is longer than a year")
    return seconds


def parse_interval(text: str) -> float:
    """The value of --interval."""
    seconds = _flag("--interval", parse_duration, text)
    if seconds < _SHORTEST_INTERVAL_SECONDS:
        raise UsageError(f"--interval: {text} is too short; 50ms is the shortest")
    return seconds


def parse_count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        raise UsageError(f"{text!r} is no whole number")
    return int(text)
