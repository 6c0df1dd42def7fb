"""The options of the main command."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from smartsched import __version__
from smartsched.errors import EXIT_USAGE

_USAGE = """\
smartsched [OPTIONS] < commands.txt
       smartsched [OPTIONS] FILE...
       smartsched [OPTIONS] -- COMMAND ARG...
       smartsched --dry-run [--json] [OPTIONS]
       smartsched sample [--interval 1s]"""

_DESCRIPTION = """\
Run every command of a list, each on a GPU that other people leave free, and end when all are done.
A GPU is free while everybody else's use of it stays below all thresholds for the whole window."""

_EPILOG = """\
examples:
  smartsched --max-mem 20% < commands.txt    run a list next to colleagues' jobs on a shared box
  smartsched --dry-run                       which GPUs count as free, and why the others do not
  smartsched -- python train.py --lr 0.1     wait for a free GPU, run one command, exit as it does
  tail -f -n 0 gpu.queue | smartsched        a queue: each line starts as it arrives
  smartsched --simulate 4 commands.txt       try it without a GPU

signals:
  Ctrl-C or SIGHUP once: start nothing more, let running jobs finish. Twice, or SIGTERM: stop them
  (SIGTERM, --grace, SIGKILL). Once more: kill them now.

exit status:
  0 all jobs succeeded; 1-100 that many failed; 101 more than that; 2 wrong usage; 3 --dry-run found
  no free GPU; 124 --wait-timeout; 130 interrupted; 255 anything else. With -- COMMAND: its own.

Each job sees CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER=PCI_BUS_ID, PYTHONUNBUFFERED=1 unless set,
SMARTSCHED_JOB, SMARTSCHED_ATTEMPT, SMARTSCHED_GPUS, SMARTSCHED_GPU_UUIDS and SMARTSCHED_RUN."""


_OF_IDS = ("--gpus", "--exclude")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"smartsched: {message}; see smartsched --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Exits with 0 after --help and --version, with 2 on what cannot be parsed."""
    options, command = _split_off_command(list(words))
    args = build_parser().parse_args(_join_gpu_ids(options))
    args.command = command
    if command is not None and args.files:
        build_parser().error("give either FILEs or -- COMMAND, not both")
    return args


def _split_off_command(words: list[str]) -> tuple[list[str], str | None]:
    if "--" not in words:
        return words, None
    position = words.index("--")
    argv = words[position + 1 :]
    if not argv:
        build_parser().error("there is no command after --")
    import shlex

    return words[:position], _as_bytes_see_it(shlex.join(argv))


def _as_bytes_see_it(text: str) -> str:
    """Arguments were decoded by the locale; commands travel as UTF-8 with surrogate escapes."""
    import os

    return os.fsencode(text).decode("utf-8", "surrogateescape")


def _join_gpu_ids(words: list[str]) -> list[str]:
    """`--gpus 0 1 2 FILE` -> `--gpus 0,1,2 FILE`: an option of many values would eat the file."""
    if not any(word.startswith(_OF_IDS) for word in words):
        return words
    from smartsched.core.selection import looks_like_ids

    joined: list[str] = []
    ids_may_follow = False
    for word in words:
        if ids_may_follow and looks_like_ids(word) and looks_like_ids(joined[-1].split("=")[-1]):
            joined[-1] += f",{word}"
            continue
        after = joined[-1] if joined else ""
        ids_may_follow = after in _OF_IDS or word.startswith(tuple(f"{o}=" for o in _OF_IDS))
        joined.append(word)
    return joined


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="smartsched",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    _add_commands(parser.add_argument_group("commands"))
    _add_gpus(parser.add_argument_group("which GPUs count as free (other people's use)"))
    _add_jobs(parser.add_argument_group("jobs"))
    _add_output(parser.add_argument_group("what is seen"))
    _add_trial(parser.add_argument_group("trying it out"))
    return parser


def _add_commands(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "files",
        nargs="*",
        metavar="FILE",
        help="lists of shell commands, one a line; - or none: standard input. Blank lines and"
        " lines that begin with # are skipped, a backslash at the end continues a line",
    )


def _add_gpus(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--gpus",
        metavar="IDS",
        help="only these: 0 1 2, 0,1,2, 0-3, UUIDs or beginnings of them"
        " (default: CUDA_VISIBLE_DEVICES, else all)",
    )
    add("--exclude", metavar="IDS", help="all but these")
    add(
        "--max-mem",
        metavar="20%|4GiB",
        default="10%",
        help="memory used by others, up to and including (default: %(default)s)",
    )
    add(
        "--max-util",
        metavar="10%",
        default="10%",
        help="utilisation, up to and including (default: %(default)s)",
    )
    add("--min-free-mem", metavar="SIZE", help="memory that must be left free")
    add("--max-procs", metavar="N", help="others' compute processes (default: any number)")
    add(
        "--free-for",
        metavar="TIME",
        default="10s",
        help="the window: below every threshold for so long (default: %(default)s)",
    )
    add(
        "-i",
        "--interval",
        metavar="TIME",
        default="1s",
        help="time between samples (default: %(default)s)",
    )
    add(
        "--ignore-user",
        metavar="NAME",
        action="append",
        default=[],
        help="count this user's processes as not there; may be repeated",
    )
    add(
        "--ignore-pid",
        metavar="PID",
        action="append",
        default=[],
        help="count this process as not there; may be repeated",
    )


def _add_jobs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--shell", metavar="PATH", help="runs the commands (default: bash, else /bin/sh)")
    add("--wd", metavar="DIR", help="run the commands in this folder")
    add(
        "--visible",
        choices=("index", "uuid"),
        default="index",
        help="how CUDA_VISIBLE_DEVICES names the GPU; MIG instances are always named by UUID"
        " (default: %(default)s)",
    )
    add(
        "--grace",
        metavar="TIME",
        default="10s",
        help="between SIGTERM and SIGKILL when jobs are stopped (default: %(default)s)",
    )
    add(
        "--wait-timeout",
        metavar="TIME",
        help="give up with 124 when no GPU came free for a first command in this time",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        choices=("log", "tag", "raw"),
        help="jobs' output: a log file each; or to stdout, each line behind its job and GPU; or"
        " untouched (default: log, with -- COMMAND raw)",
    )
    add(
        "--logs",
        metavar="DIR",
        default="smartsched-logs",
        help="logs go to DIR/<run>/0001.log ... (default: ./%(default)s)",
    )
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the live view (default: where stderr is a terminal)",
    )
    add("-q", "--quiet", action="store_true", help="only failures and the summary")
    add("-v", "--verbose", action="store_true", help="also every change of a GPU's verdict")
    add("--no-color", action="store_true", help="no colours (NO_COLOR=1 does the same)")
    add("-h", "--help", action="help", help="show this and exit")
    add("--version", action="version", version=f"smartsched {__version__}")


def _add_trial(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--dry-run",
        action="store_true",
        help="run nothing; say which GPUs count as free and why the others do not, and what would"
        " start. Exit 0 if one is free, 3 if none is",
    )
    add("--json", action="store_true", help="with --dry-run: one JSON object")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--simulate",
        metavar="N[,seed=S]",
        help="N pretend GPUs with pretend colleagues coming and going; commands do run",
    )
    source.add_argument(
        "--replay",
        metavar="FILE",
        help="GPUs as recorded by `smartsched sample > FILE`, in place of the driver",
    )
