"""The options of the main command."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from smartsched.cli.completion import SHELLS
from smartsched.cli.verbs import usage_lines, what_to_do
from smartsched.errors import EXIT_USAGE

if TYPE_CHECKING:
    from smartsched.cli.settings import Settings

_USAGE = f"""\
smartsched [OPTIONS] < commands.txt
       smartsched [OPTIONS] FILE...
       smartsched [OPTIONS] -- COMMAND ARG...
       smartsched --resume [RUN] [OPTIONS] [FILE...]
       smartsched --dry-run [--json] [OPTIONS]
{usage_lines()}"""

_DESCRIPTION = """\
Run every command of a list, each on a GPU that other people leave free, and end when all are done.
A GPU is free while everybody else's use of it stays below all thresholds for the whole window."""

_EPILOG = """\
examples:
  smartsched --max-mem 20% < commands.txt    run a list next to colleagues' jobs on a shared box
  smartsched --dry-run                       which GPUs count as free, and why the others do not
  smartsched -- python train.py --lr 0.1     wait for a free GPU, run one command, exit as it does
  smartsched --resume                        go on after a crash, a reboot, Ctrl-C: what is left
  tail -f -n 0 gpu.queue | smartsched        a queue: each line starts as it arrives
  smartsched --simulate 4 commands.txt       try it without a GPU

signals:
  Ctrl-C or SIGHUP once: start nothing more, let running jobs finish. Twice, or SIGTERM: stop them
  (SIGTERM, --grace, SIGKILL). Once more: kill them now.

exit status:
  0 all jobs succeeded; 1-100 that many failed; 101 more than that; 2 wrong usage; 3 --dry-run found
  no free GPU; 124 --wait-timeout; 130 interrupted; 255 anything else. With -- COMMAND: its own.

Each job sees CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER=PCI_BUS_ID, PYTHONUNBUFFERED=1 unless set,
SMARTSCHED_JOB, SMARTSCHED_ATTEMPT, SMARTSCHED_GPUS, SMARTSCHED_GPU_UUIDS, SMARTSCHED_RUN, and
SMARTSCHED_NAME where it has one (# smartsched: name=big)."""


_WISHES = """\
one command may ask for itself in a comment behind it, which the shell passes over:
  python train.py  # smartsched: gpus=2 mem=24GiB util=60% priority=5 timeout=2h name=big"""


_HOSTS = """\
needs pip install 'smartsched[cluster]' here and on the hosts; smartsched hosts shows them:"""


_OF_IDS = ("--gpus", "--exclude", "--prefer")
# What is asked for by --resume without a name.
LATEST = ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"smartsched: {message}{what_to_do(self, message)}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


class _PrintCompletion(argparse.Action):
    """Prints, and exits with 0."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        from smartsched.cli.completion import script

        del namespace, option_string
        print(script(values))
        parser.exit()


class _Version(argparse.Action):
    """Prints, and exits with 0: what it takes to find out is for those who ask."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        from smartsched.cli.version import words

        del namespace, values, option_string
        print(words())
        parser.exit()


def parse(
    words: Sequence[str], on_flags: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> argparse.Namespace:
    """Exits with 0 after --help and --version, with 2 on what cannot be parsed. `on_flags` is told
    what they say before any file of settings is read, and how often to sample by default."""
    options, command = _split_off_command(list(words))
    parser = build_parser()
    flags = given(parser, options)
    on_flags({"interval": parser.get_default("interval"), **flags})
    from smartsched.cli import settings  # not for --help, which is to come at once

    args = _layered(parser, settings.read(parser), {}, flags)
    args.command = command
    if command is not None and args.files:
        build_parser().error("give either FILEs or -- COMMAND, not both")
    _join_resume(args)
    _check_resume(args)
    _make_absolute(args)
    _read_hosts(args)
    return args


def given(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """The options that these words name, and nothing of the others. Exits as `parse` does."""
    unset = object()
    lists = {a.dest for a in parser._actions if isinstance(a, argparse._AppendAction)}
    start = {a.dest: None if a.dest in lists else unset for a in parser._actions}
    joined = _join_gpu_ids(_join_options_of_others(list(words)))
    args = parser.parse_args(joined, argparse.Namespace(**start))
    return {
        name: value
        for name, value in vars(args).items()
        if value is not unset and (value is not None or name not in lists)
    }


def _layered(
    parser: argparse.ArgumentParser,
    settings: "Settings",
    before: dict[str, Any],
    flags: dict[str, Any],
) -> argparse.Namespace:
    """Options by what is set, what they were before, and by flags: the later wins."""
    from smartsched.cli.settings import rivals

    lower = parser_defaults(parser)
    for values in (settings.values(), before, flags):
        for name, value in values.items():
            if value:
                lower |= {rival: parser.get_default(rival) for rival in rivals(parser, name)}
        lower |= values
    overruled = {*before, *flags}.union(*(rivals(parser, name) for name in (*before, *flags)))
    return argparse.Namespace(**lower, settings=settings.without(overruled), flags={*flags})


def parser_defaults(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options where nobody says anything."""
    return vars(parser.parse_args([]))


def _join_resume(args: argparse.Namespace) -> None:
    """--resume-failed is --resume, and takes a name as well."""
    if args.resume_failed is not None:
        args.resume = args.resume_failed or args.resume or LATEST
    args.resume_failed = args.resume_failed is not None


def _check_resume(args: argparse.Namespace) -> None:
    wrong = None
    if args.resume is None:
        lonely = [name for name in ("no_adopt", "assume_gone") if getattr(args, name)]
        wrong = f"--{lonely[0].replace('_', '-')} goes with --resume" if lonely else None
    elif args.command is not None:
        wrong = "a run is resumed with its own command: leave out -- COMMAND"
    elif args.name is not None:
        wrong = "a resumed run keeps its name: leave out --name"
    elif args.dry_run:
        wrong = "--dry-run cannot be used with --resume: it looks at what a new run would do"
    if wrong is not None:
        build_parser().error(wrong)


def _make_absolute(args: argparse.Namespace) -> None:
    """A run may be resumed from another folder."""
    import os

    for option in ("logs", "wd", "replay", "state", "claims"):
        if (path := getattr(args, option)) == "":
            build_parser().error(f"--{option} needs the name of a file or folder")
        if path is not None:
            setattr(args, option, os.path.abspath(os.path.expanduser(path)))
    for option in ("joblog", "json_log"):
        if (path := getattr(args, option)) is not None:
            plus = "+" if path.startswith("+") else ""
            place = os.path.expanduser(path.removeprefix("+"))
            setattr(args, option, plus + os.path.abspath(place))


def _read_hosts(args: argparse.Namespace) -> None:
    """The file is read once: a run that is resumed has the hosts that it had. Raises UsageError."""
    if args.hosts is None and args.hosts_file is None:
        return
    from smartsched.core.host_list import as_text, parse_hosts

    files = []
    if args.hosts_file is not None:
        try:
            with open(args.hosts_file, encoding="utf-8", errors="replace") as file:
                files.append((args.hosts_file, file.read()))
        except OSError as error:
            build_parser().error(f"--hosts-file: cannot read {args.hosts_file}: {error.strerror}")
    args.hosts, args.hosts_file = as_text(parse_hosts(args.hosts, files)), None


# What a living run can be told: thresholds, caps, manners, what becomes of failures.
SETTABLE = {
    "max_mem", "max_util", "min_free_mem", "max_procs", "free_for", "ignore_user", "ignore_pid",
    "gpus_per_job", "jobs_per_gpu", "job_mem", "job_util", "oom_retries", "jobs", "max_gpus",
    "leave_free", "prefer", "on_contention", "polite", "yield_grace", "grace", "retries",
    "retry_delay", "timeout", "halt", "guard", "keep_open",
}  # fmt: skip
# What belongs to one invocation, not to the run.
_NOT_REMEMBERED = {
    "files", "command", "resume", "resume_failed", "no_adopt", "assume_gone", "name", "state",
    "dry_run", "json", "progress", "quiet", "verbose", "no_color", "settings",
    "flags",
    "notify",  # its URLs hold secrets
}  # fmt: skip
# What belongs to the box, unless a flag says so: its dispatchers have to agree on it now.
_OF_THE_BOX = {"claims", "no_claims"}
# In place of the URLs: that there were some. No option has this name.
HAD_NOTICES = "had_notices"


def remembered(args: argparse.Namespace) -> str:
    """What a later --resume goes by: the options other than by default, as a JSON object."""
    import json

    defaults = argparse.Namespace(**parser_defaults(build_parser()))
    _make_absolute(defaults)
    of_the_box = _OF_THE_BOX & args.settings.by_option.keys()
    chosen = {
        name: value
        for name, value in vars(args).items()
        if name not in _NOT_REMEMBERED | of_the_box
        and (value != vars(defaults).get(name) or name == "logs")
    }
    if args.notify:
        chosen[HAD_NOTICES] = True
    return json.dumps(chosen, sort_keys=True)


def parse_again(words: Sequence[str], options: str) -> argparse.Namespace:
    """The same words as before, with these remembered options where they say nothing. What is set
    in files and in the environment was looked at when the run began: by now it counts for what
    belongs to this invocation, or to the box."""
    import json

    from smartsched.cli import settings

    options_given, _ = _split_off_command(list(words))
    parser = build_parser()
    known = {
        name: value
        for name, value in json.loads(options).items()
        if name in parser_defaults(parser) and name not in _NOT_REMEMBERED
    }
    of_now = settings.read(parser).only(_NOT_REMEMBERED | _OF_THE_BOX)
    args = _layered(parser, of_now, known, given(parser, options_given))
    args.command = None
    _join_resume(args)
    _make_absolute(args)
    _read_hosts(args)
    return args


def _split_off_command(words: list[str]) -> tuple[list[str], str | None]:
    if "--" not in words:
        return words, None
    position = words.index("--")
    argv = words[position + 1 :]
    if not argv:
        build_parser().error("there is no command after --: write it there")
    import shlex

    return words[:position], as_bytes_see_it(shlex.join(argv))


def as_bytes_see_it(text: str) -> str:
    """Arguments were decoded by the locale; commands travel as UTF-8 with surrogate escapes."""
    import os

    return os.fsencode(text).decode("utf-8", "surrogateescape")


def _join_options_of_others(words: list[str]) -> list[str]:
    """`--slurm --partition=gpu` -> `--slurm=--partition=gpu`: what follows is no option of ours."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--slurm" and word != "--":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


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


def parse_verb(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The words of a verb that takes some of these options (the `add_...` below), with what is set
    for them; of the others, what they are by default. Exits, or raises UsageError, on what cannot
    be parsed."""
    main = build_parser()
    flags = given(parser, words)
    from smartsched.cli import settings

    set_for = settings.read(main).only({action.dest for action in parser._actions})
    asked = vars(_layered(parser, set_for, {}, flags))
    args = argparse.Namespace(**{**parser_defaults(main), "command": None, **asked})
    _join_resume(args)
    _make_absolute(args)
    return args


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
    add_gpus(parser.add_argument_group("which GPUs count as free (other people's use)"))
    _add_jobs(parser.add_argument_group("jobs"))
    _add_packing(parser.add_argument_group("what a job gets", _WISHES))
    _add_manners(parser.add_argument_group("sharing the box"))
    _add_failures(parser.add_argument_group("when jobs fail"))
    _add_hosts(parser.add_argument_group("several hosts", _HOSTS))
    _add_run(parser.add_argument_group("the run, and going on with it"))
    _add_output(parser.add_argument_group("what is seen"))
    _add_notices(parser.add_argument_group("being told elsewhere"))
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


def add_gpus(group: argparse._ActionsContainer) -> None:
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
    add_visible(group)
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


def add_visible(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--visible",
        choices=("index", "uuid"),
        default="index",
        help="how CUDA_VISIBLE_DEVICES names the GPU; MIG instances are always named by UUID"
        " (default: %(default)s)",
    )


def _add_packing(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-n",
        "--gpus-per-job",
        metavar="N",
        default="1",
        help="GPUs for each job; 0: it needs none (default: %(default)s)",
    )
    add(
        "--jobs-per-gpu",
        metavar="N|auto",
        default="1",
        help="so many jobs share a GPU; auto: up to 3, as their memory and utilisation allow, by"
        " what others of the same command have used; the first has it for itself (default: 1)",
    )
    add(
        "--job-mem",
        metavar="SIZE|auto",
        help="memory that a job uses on each of its GPUs: it goes only where that is left",
    )
    add("--job-util", metavar="60%", help="how busy a job keeps its GPU")
    add(
        "--oom-retries",
        metavar="N",
        default="2",
        help="try a job that ran out of memory beside others of this run again: with more, then on"
        " a GPU for itself; known by its log, so not with --output raw (default: %(default)s)",
    )
    add("--nice", metavar="N", help="run the jobs at this niceness, 0 to 19")


def _add_manners(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    hours = "; by the hour: 2@09-18,6@18-09"
    add("-j", "--jobs", metavar="N", help=f"at most so many jobs at once{hours}")
    add("--max-gpus", metavar="N", help=f"be on at most so many GPUs{hours}")
    add("--leave-free", metavar="K", help=f"never take the last K free GPUs{hours}")
    add_prefer(group)
    add(
        "--on-contention",
        choices=("drain", "requeue", "ignore"),
        help="when others come to a GPU where jobs run: start nothing more there; also stop the"
        " jobs and queue them again; go on as if nobody had come (default: drain)",
    )
    add(
        "--polite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="--on-contention requeue --leave-free 1",
    )
    add(
        "--yield-grace",
        metavar="TIME",
        default="2s",
        help="between asking a job to give way and killing it (default: %(default)s)",
    )
    add(
        "--checkpoint-signal",
        metavar="SIG",
        help="what jobs that give way are sent, such as USR1, to save their state; they then have"
        " --grace, as long as memory is left for the others",
    )
    add_claims(group)


def add_prefer(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--prefer",
        metavar="ORDER",
        help="which free GPU first: emptiest (default), fullest, first, last, or ids such as 3,2",
    )


def add_claims(group: argparse._ActionsContainer) -> None:
    claims = group.add_mutually_exclusive_group()
    claims.add_argument(
        "--claims",
        metavar="DIR",
        help="where dispatchers of this box tell each other which GPUs they use"
        " (default: SMARTSCHED_CLAIMS, else /dev/shm or /tmp)",
    )
    claims.add_argument("--no-claims", action="store_true", help="neither tell nor ask them")


def _add_failures(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--retries",
        metavar="N",
        default="0",
        help="try a job that failed again, up to N more times, on another GPU if there is one"
        " (default: %(default)s)",
    )
    add(
        "--retry-delay",
        metavar="TIME",
        default="1s",
        help="before the first of them; doubles each time (default: %(default)s)",
    )
    add("--timeout", metavar="TIME", help="stop an attempt that takes longer; it has failed")
    add(
        "--halt",
        metavar="WHEN",
        help="soon,fail=3: start nothing more once 3 jobs have failed; now,fail=10%%: stop the"
        " running ones too once a tenth of the finished jobs has failed",
    )
    add(
        "--guard",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="withhold a GPU on which 3 jobs in a row fail within 10 s while others do well, and"
        " try those jobs elsewhere; start nothing more when that is so on every GPU (default: on)",
    )
    add(
        "--on-finish",
        metavar="CMD",
        help="run this for every finished job, with SMARTSCHED_JOB, SMARTSCHED_OUTCOME (ok,"
        " failed, stopped, cancelled), SMARTSCHED_EXIT_STATUS, SMARTSCHED_COMMAND ... to go by",
    )


def _add_notices(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--notify",
        metavar="URL",
        action="append",
        default=[],
        help="tell this service, in apprise's URLs, of the end, of a first failure and of a stall;"
        " may be repeated. Others on the box see command lines: SMARTSCHED_NOTIFY is not seen",
    )
    group.add_argument(
        "--notify-stall",
        metavar="TIME",
        default="2h",
        help="how long nothing could start before it is told (default: %(default)s)",
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--name", metavar="NAME", help="what to call this run (default: the time and a number)")
    add(
        "--keep-open",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="stay when all jobs are done, for those that smartsched add brings; Ctrl-C ends it",
    )
    add(
        "--resume",
        metavar="RUN",
        nargs="?",
        const=LATEST,
        help="go on with a run (default: the latest of this folder): adopt what still runs, start"
        " what was not started. With a list, that is what is to be done, but for what is done",
    )
    add(
        "--resume-failed",
        metavar="RUN",
        nargs="?",
        const=LATEST,
        help="likewise, and try failed jobs again",
    )
    add(
        "--no-adopt",
        action="store_true",
        help="with --resume: stop jobs that still run, and start them anew",
    )
    add(
        "--assume-gone",
        action="store_true",
        help="with --resume: jobs of a container, a machine or a host that is gone are lost",
    )
    add(
        "--state",
        metavar="DIR",
        help="where runs are remembered (default: ~/.local/state/smartsched)",
    )


def _add_hosts(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--hosts",
        metavar="LIST",
        help="use the GPUs of these hosts, by your own ssh: gpu1,gpu2,user@gpu3:22",
    )
    add("--hosts-file", metavar="FILE", help="likewise, one host a line")
    add(
        "--remote-command",
        metavar="TEXT",
        help="how a host's shell runs smartsched, such as 'source venv/bin/activate && smartsched'"
        " (default: smartsched; in pilots: the same program as here)",
    )
    add(
        "--listen",
        metavar="[ADDRESS][:PORT]",
        help="where hosts are waited for (default: any address, a free port); alone: hosts join by"
        " smartsched agent --join",
    )
    add(
        "--lease",
        metavar="TIME",
        default="5m",
        help="for so long jobs go on on a host that is out of reach, and on all of them when this"
        " process is gone, unless --resume comes before (default: %(default)s)",
    )
    add(
        "--on-lost",
        choices=("requeue", "keep"),
        default="requeue",
        help="then they are stopped there and started anew elsewhere; or go on, whatever is gone,"
        " and are waited for (default: %(default)s)",
    )
    add(
        "--sync-logs",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="bring logs here from hosts that write them to disks of their own",
    )
    add(
        "--slurm",
        metavar="OPTIONS",
        help="use GPUs that Slurm grants: submit pilots with these options of sbatch, such as"
        " '--partition=gpu --time=8:00:00'",
    )
    add("--pilots", metavar="N", default="1", help="at most so many (default: %(default)s)")
    add(
        "--gpus-per-pilot",
        metavar="N",
        help="that each of them asks for (default: 1, or what OPTIONS say)",
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
        "--joblog",
        metavar="FILE",
        help="a line per finished job in GNU parallel's columns, GPU as Host; +FILE appends",
    )
    add("--json-log", metavar="FILE", help="a JSON object per event; +FILE appends")
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the live view (default: where stderr is a terminal)",
    )
    add("-q", "--quiet", action="store_true", help="only failures and the summary")
    add("-v", "--verbose", action="store_true", help="also every change of a GPU's verdict")
    add_no_color(group)
    add("-h", "--help", action="help", help="show this and exit")
    add(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="show the version, with Python's and the driver's, and exit",
    )
    add(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        default=argparse.SUPPRESS,
        help="print what makes the shell complete; in ~/.bashrc:"
        ' eval "$(smartsched --print-completion bash)"',
    )


def add_no_color(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--no-color", action="store_true", help="no colours (NO_COLOR=1 does the same)"
    )


def _add_trial(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--dry-run",
        action="store_true",
        help="run nothing; say which GPUs count as free and why the others do not, and what would"
        " start. Exit 0 if one is free, 3 if none is",
    )
    add("--json", action="store_true", help="with --dry-run: one JSON object")
    add_source(group)


def add_source(group: argparse._ActionsContainer) -> None:
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
