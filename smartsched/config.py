"""Flags and environment become one frozen Config; nothing else reads either."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import takewhile
from typing import Any, Literal, TypeVar

from msgspec import Struct

from smartsched.core.freeness import Share, Size, Thresholds
from smartsched.core.halt import parse_halt
from smartsched.core.host_list import HostSpec, parse_hosts
from smartsched.core.hours import NO_CAP, Cap, parse_cap
from smartsched.core.policy import Policy
from smartsched.core.preference import Preference, parse_preference
from smartsched.core.sampling import SECRETS, sampler_arguments
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
_HIGHEST_PORT = 65535
# An agent that is silent for so long counts as gone; a shorter lease would end jobs before.
_SHORTEST_LEASE_SECONDS = 10
_OF_SEVERAL_HOSTS = {
    "remote_command", "lease", "on_lost", "sync_logs", "pilots", "gpus_per_pilot",
}  # fmt: skip
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
(_NOTIFY,) = SECRETS
T = TypeVar("T")
OutputMode = Literal["log", "tag", "raw"]


class Cluster(Struct, frozen=True):
    """Where more than this box is to be used."""

    hosts: tuple[HostSpec, ...]
    remote_command: str | None  # None: the usual one
    listen: str  # an address of this host; "": all
    port: int  # 0: any that is free
    lease_seconds: float | None  # None: runs go on whoever is out of reach
    syncs_logs: bool
    slurm: tuple[str, ...] | None  # options of sbatch; None: there are no pilots
    pilots: int
    gpus_per_pilot: int


class Config(Struct, frozen=True):
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
    cluster: Cluster | None  # None: this box alone
    notify: tuple[str, ...]  # URLs, with secrets in them
    notify_stall_seconds: float
    notes: tuple[str, ...]  # what the user may not expect and should know

    def __repr__(self) -> str:
        return f"Config of {self.policy.run_id}"  # without secrets


def configure(args: argparse.Namespace, run_name: str, run_id: str = "") -> Config:
    """Raises UsageError for a value that cannot be, naming the flag. `run_id`: what tells the run
    from others of its name; "": the name does."""
    selection, notes = _selection(args)
    cluster = _cluster(args)
    output = _output_mode(args, cluster)
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
        spans_hosts=cluster is not None,
        hosts_may_come=cluster is not None and cluster.slurm is None and not cluster.hosts,
        gpus_per_pilot=0 if cluster is None or cluster.slurm is None else cluster.gpus_per_pilot,
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
        shell=shell_for(args.shell),
        working_directory=args.wd,
        quiet=args.quiet,
        verbose=args.verbose,
        progress=_progress(args, output),
        color=color,
        sampler_arguments=sampler_arguments(args.interval, args.simulate, args.replay),
        nice=None if args.nice is None else flag("--nice", _parse_nice, args.nice),
        checkpoint_signal=_checkpoint_signal(args.checkpoint_signal),
        claims=_claims(args),
        on_finish=args.on_finish,
        joblog=args.joblog,
        json_log=args.json_log,
        cluster=cluster,
        notify=tuple(args.notify),
        notify_stall_seconds=flag("--notify-stall", parse_positive_duration, args.notify_stall),
        notes=notes,
    )


def spans_hosts(args: argparse.Namespace) -> bool:
    """Whether more than this box is to be used."""
    return any(each is not None for each in (args.hosts, args.slurm, args.listen))


def _cluster(args: argparse.Namespace) -> Cluster | None:
    if not spans_hosts(args):
        return None
    if args.replay is not None:
        raise UsageError("--replay plays one box: leave out --hosts, --slurm and --listen")
    listen, port = ("", 0) if args.listen is None else flag("--listen", _parse_listen, args.listen)
    lease = flag("--lease", parse_positive_duration, args.lease)
    if lease < _SHORTEST_LEASE_SECONDS:
        raise UsageError(f"--lease: {args.lease} is too short: give {_SHORTEST_LEASE_SECONDS}s")
    slurm = None if args.slurm is None else flag("--slurm", _parse_words, args.slurm)
    if slurm is not None:
        from smartsched.core.slurm import check_options

        check_options(slurm)
    return Cluster(
        hosts=() if args.hosts is None else parse_hosts(args.hosts),
        remote_command=args.remote_command,
        listen=listen,
        port=port,
        lease_seconds=None if args.on_lost == "keep" else lease,
        syncs_logs=args.sync_logs,
        slurm=slurm,
        pilots=flag("--pilots", parse_positive_count, args.pilots),
        gpus_per_pilot=_gpus_per_pilot(args, slurm or ()),
    )


def _gpus_per_pilot(args: argparse.Namespace, slurm: Sequence[str]) -> int:
    """Those that Slurm is asked for in its own words count."""
    from smartsched.core.slurm import gpus_named

    named = gpus_named(slurm, os.environb)
    if args.gpus_per_pilot is None:
        return named or 1
    asked = flag("--gpus-per-pilot", parse_positive_count, args.gpus_per_pilot)
    if named not in (None, asked):
        raise UsageError(f"--gpus-per-pilot is {asked}, and --slurm asks for {named}: say it once")
    return asked


def _parse_words(text: str) -> tuple[str, ...]:
    import shlex

    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{text!r} cannot be taken apart into words: {error}") from error


def _parse_listen(text: str) -> tuple[str, int]:
    """ "10.0.0.1:7000", "[fe80::1]:7000", ":7000", "10.0.0.1"."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([\w.-]*))(?::(\d{1,5}))?", text.strip())
    if found is None or int(found[3] or 0) > _HIGHEST_PORT:
        raise UsageError(f"{text!r} is no address: write it as in 10.0.0.1:7000, or :7000")
    return found[1] or found[2] or "", int(found[3] or 0)


def _output_mode(args: argparse.Namespace, cluster: Cluster | None) -> OutputMode:
    if cluster is None:
        return args.output or ("raw" if args.command is not None else "log")
    if args.output not in (None, "log"):
        raise UsageError(
            f"--output {args.output} goes with one box: on other hosts jobs write logs, which"
            " --sync-logs brings here"
        )
    return "log"


def offered_gpus() -> Selection | None:
    """Of the GPUs of this host, those that its agent may offer: what CUDA_VISIBLE_DEVICES grants
    (so does a batch system). None: all of them. Raises UsageError for what cannot be read."""
    granted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if granted is None:
        return None
    devices = _before_the_first_invalid(granted)
    if not devices.strip(" ,") or devices == "NoDevFiles":  # as Slurm says it
        return Selection((), "CUDA_VISIBLE_DEVICES")
    try:
        return Selection(parse_ids(devices), "CUDA_VISIBLE_DEVICES")
    except UsageError as error:
        raise UsageError(f"CUDA_VISIBLE_DEVICES={granted!r} of this host {error}") from error


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
    if args.slurm is None:  # else jobs of a pilot whose time is over give way as well
        yield from _of_no_effect_on_giving_way(args, policy, flags)
    yield from _of_no_effect_on_hosts(args, flags)
    if "claims" in flags and (args.simulate is not None or args.replay is not None):
        yield "--claims goes with real GPUs: pretend ones are nobody else's"


def _of_no_effect_on_giving_way(
    args: argparse.Namespace, policy: Policy, flags: Collection[str]
) -> Iterator[str]:
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


def _of_no_effect_on_hosts(args: argparse.Namespace, flags: Collection[str]) -> Iterator[str]:
    of_slurm = {"pilots", "gpus_per_pilot"}
    lonely = set() if args.slurm is not None else of_slurm.intersection(flags)
    if not spans_hosts(args):
        lonely |= _OF_SEVERAL_HOSTS.intersection(flags)
    for option in sorted(lonely):
        goes_with = "--slurm" if option in of_slurm else "--hosts, --slurm or --listen"
        yield f"--{option.replace('_', '-')} goes with {goes_with}"
    starts_none = spans_hosts(args) and args.hosts is None and args.slurm is None
    if starts_none and "remote_command" in flags:
        yield "--remote-command goes with --hosts or --slurm: whoever joins by hand has begun"
    if spans_hosts(args) and args.on_lost == "keep" and "lease" in flags:
        yield "--lease goes with --on-lost requeue: what is kept has none"


def batch_job() -> str | None:
    """The number of the job of Slurm's that we are in; None: we are in none."""
    return os.environ.get("SLURM_JOB_ID")


def end_of_batch_job() -> float | None:
    """When its time is over, in Unix seconds; None: it does not say."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(end) if end.isdecimal() else None


def cores_of_batch_job() -> int | None:
    """Those of this node that the job was granted; None: it does not say."""
    cores = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return int(cores) if cores.isdecimal() else None


def came_by_ssh_from() -> str | None:
    """The address that our ssh session comes from (ssh(1): SSH_CONNECTION); None: there is none."""
    return os.environ.get("SSH_CONNECTION", "").partition(" ")[0] or None


def environment_of_agents() -> dict[str, str]:
    """An agent is part of no job, though somebody may start one there."""
    return {name: text for name, text in os.environ.items() if name not in SET_BY_US}


def variables() -> dict[str, str]:
    """What the environment says to us or of us."""
    return {name: text for name, text in os.environ.items() if name.startswith("SMARTSCHED_")}


def keep_from_children() -> None:
    """What holds secrets of ours is no part of the environment of jobs."""
    for name in SECRETS:
        os.environ.pop(name, None)


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
    if inherited is None or _has_own_gpus(args):
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
    if args.gpus is not None or _has_own_gpus(args):
        return None
    return _before_the_first_invalid(inherited or "") or None


def _has_own_gpus(args: argparse.Namespace) -> bool:
    """Whether it is about other GPUs than those of this box."""
    return args.simulate is not None or args.replay is not None or spans_hosts(args)


def _before_the_first_invalid(devices: str) -> str:
    """CUDA itself reads the list up to the first negative number (CUDA C++ Programming Guide,
    "CUDA Environment Variables")."""
    return ",".join(takewhile(lambda device: device.strip() != "-1", devices.split(",")))


def shell_for(asked: str | None) -> str:
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
