"""The administrator's limits, which hold for every run and for all that changes one.

They stand in the table [limits] of /etc/smartsched/config.toml. No option and no variable leads
elsewhere; still, they are manners and no fence: users can start programs without smartsched.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from smartsched.cli.settings import ADMINISTRATORS, LIMITS, or_rather
from smartsched.config import Config, configure
from smartsched.core import limits
from smartsched.core.hours import Cap, parse_cap
from smartsched.core.limits import Limits
from smartsched.core.policy import Policy
from smartsched.edges.settings_file import Entry, read_settings
from smartsched.errors import UsageError

_KEYS = ("max-gpus", "leave-free")


def settle(args: argparse.Namespace, run_name: str, run_id: str = "") -> Config:
    """What `configure` makes of the options, within the limits, with notes of what was set and
    what was limited. Raises UsageError."""
    config = configure(args, run_name, run_id)
    policy, notes = limited(config.policy)
    set_notes = args.settings.notes if "settings" in args else ()
    return replace(config, policy=policy, notes=(*config.notes, *set_notes, *notes))


def limited(policy: Policy, file: Path = ADMINISTRATORS) -> tuple[Policy, tuple[str, ...]]:
    """The policy as far as the administrator of this box allows it, and a note if that is less
    than it was. Raises UsageError if what he has written cannot be meant."""
    return limits.limited(policy, read_limits(file))


def read_limits(file: Path = ADMINISTRATORS) -> Limits:
    """Raises UsageError if what the administrator has written cannot be meant."""
    found: dict[str, tuple[Cap, str]] = {}
    for entry in read_settings(file, str(file)) or ():
        if entry.key[0] != LIMITS or entry.value == {}:
            continue
        place = f"{file}:{entry.line}"
        try:
            found[entry.key[-1]] = _cap(entry), place
        except UsageError as error:
            raise UsageError(f"{place}: {error}; tell the administrator of this box") from error
    none = (Cap(()), "")
    (most, most_place), (left, left_place) = (found.get(key, none) for key in _KEYS)
    return Limits(most, left, most_place, left_place)


def _cap(entry: Entry) -> Cap:
    key = ".".join(entry.key[1:]) or LIMITS
    if key not in _KEYS:
        raise UsageError(f"there is no limit {key}{or_rather(key, _KEYS)}")
    if isinstance(entry.value, bool) or not isinstance(entry.value, str | int):
        raise UsageError(f'{key} is a number, or by the hour: write it as in {key} = "2@09-18"')
    return _named(key, parse_cap, str(entry.value))


def _named(key: str, parse: Callable[[str], Cap], text: str) -> Cap:
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error
