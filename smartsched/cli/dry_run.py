"""`smartsched --dry-run`: which GPUs count as free, why the others do not, what would start."""

import argparse
import json
import os
import select
import stat
import sys
from collections.abc import Iterator, Sequence

from smartsched.cli.claiming import OthersClaims
from smartsched.cli.host import this_host
from smartsched.cli.limits import settle
from smartsched.cli.looking import Onlooker
from smartsched.cli.sampling import Ahead
from smartsched.cli.session import state_folder
from smartsched.cli.wiring import check_source, new_run_name
from smartsched.config import Config
from smartsched.core import words
from smartsched.core.apply import apply
from smartsched.core.events import JobAccepted
from smartsched.core.footprint import Footprint
from smartsched.core.model import BadLine, JobSpec
from smartsched.core.survey import Survey, as_json, survey
from smartsched.edges.footprints import FootprintFile
from smartsched.edges.intake import Lines, open_inputs
from smartsched.edges.runs import open_own_file
from smartsched.errors import EXIT_NONE_FREE, UsageError

# What is looked at of a list; nobody has so many GPUs that more of it could start at once.
_MOST_COMMANDS = 1000
# A pipe whose other end says nothing for so long may stay open for ever (a shell over ssh).
_SILENCE_SECONDS = 0.5


def main(args: argparse.Namespace, ahead: Ahead) -> int:
    config = settle(args, new_run_name())
    check_source(args)
    onlooker = _onlooker(args, config, ahead)
    try:
        commands = list(_commands(config))
        notes = config.notes
        if len(commands) == _MOST_COMMANDS:
            notes += (f"looked at the first {_MOST_COMMANDS:,} commands of the list only",)
        state = onlooker.begin()
        onlooker.watch_for_the_window()
        state.footprints = _what_is_known(args)
        now = onlooker.clock.now()
        if config.cluster is None:  # else each agent knows what is claimed on its host
            OthersClaims(config, lambda text: print(text, file=sys.stderr)).see(state, now)
        for spec in commands:
            apply(state, JobAccepted(now, state.next_job(), spec))
        found = survey(state, onlooker.clock.now())
    finally:
        onlooker.close()
    _show(found, config, notes, as_object=args.json)
    return 0 if found.any_free else EXIT_NONE_FREE


def _onlooker(args: argparse.Namespace, config: Config, ahead: Ahead) -> Onlooker:
    if config.cluster is None:
        return Onlooker(config, ahead=ahead)
    from smartsched.cli.overlooking import HostsOnlooker

    return HostsOnlooker(args, config)


def _what_is_known(args: argparse.Namespace) -> dict[str, Footprint]:
    """Of commands, by what earlier runs of them used."""
    if args.simulate is not None or args.replay is not None:
        return {}
    file = FootprintFile(state_folder(args), this_host(), open_own_file, lambda _: None)
    return file.load()


def _commands(config: Config) -> Iterator[JobSpec]:
    if config.command is not None:
        yield JobSpec(config.command, "the command line")
        return
    if not config.inputs and not _stdin_holds_commands():
        return
    inputs = open_inputs(config.inputs or ("-",))
    lines = Lines(inputs)
    found = 0
    while found < _MOST_COMMANDS and not lines.ended():
        arrived = lines.take(_MOST_COMMANDS - found)
        found += len(arrived)
        yield from _specs(arrived)
        if not arrived and not lines.ended() and not _something_comes(lines):
            print(
                f"smartsched: stdin is still open; looking at {words.count(found, 'command')}",
                file=sys.stderr,
            )
            break
    lines.close()


def _specs(lines: Sequence[JobSpec | BadLine]) -> Iterator[JobSpec]:
    for line in lines:
        if isinstance(line, JobSpec):
            yield line
        elif line.may_be_mended:
            raise UsageError(f"{line.source}: {line.why}")
        else:
            print(f"smartsched: {line.source}: {line.why}", file=sys.stderr)


def _stdin_holds_commands() -> bool:
    try:
        return not os.isatty(0) and not stat.S_ISCHR(os.fstat(0).st_mode)
    except OSError:
        return False


def _something_comes(lines: Lines) -> bool:
    fd = lines.current_fd()
    return fd is not None and bool(select.select([fd], [], [], _SILENCE_SECONDS)[0])


def _show(found: Survey, config: Config, notes: Sequence[str], *, as_object: bool) -> None:
    if as_object:
        print(json.dumps(as_json(found, config.policy, notes), indent=2))
        return
    from smartsched.edges.screen import print_survey

    print_survey(found, notes, color=config.color)
