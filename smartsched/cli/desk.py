"""The dispatcher's end of requests: those that change options are worked out here, where the
options are understood."""

import argparse
import json
from collections.abc import Sequence
from copy import copy

from msgspec.structs import replace

from smartsched.cli.limits import settle
from smartsched.cli.parser import SETTABLE, build_parser, remembered
from smartsched.core.impossible import impossible, why_no_job_can_start
from smartsched.core.model import Timestamp
from smartsched.core.policy import Policy
from smartsched.core.requests import Answer, SetOptions, Unusable
from smartsched.core.state import State
from smartsched.edges.inbox import FileInbox
from smartsched.errors import UsageError
from smartsched.ports import NewOptions, Request


class Desk:
    """An Inbox."""

    def __init__(self, inbox: FileInbox, args: argparse.Namespace, state: State, name: str) -> None:
        """`args`: what the run goes by."""
        self._inbox = inbox
        self._args = args
        self._state = state
        self._name = name
        self._notes = settle(args, name).notes

    def take(self, now: Timestamp) -> Sequence[Request | NewOptions]:
        return [
            self._worked_out(request) if isinstance(request, SetOptions) else request
            for request in self._inbox.take(now)
        ]

    def answer(self, request: str, answer: Answer) -> None:
        self._inbox.answer(request, answer)

    def _worked_out(self, request: SetOptions) -> NewOptions | Unusable:
        try:
            args, words = changed(self._args, request)
            policy = self._state.policy
            config = settle(args, self._name, policy.run_id)
            seen = [watch.latest for watch in self._state.gpus.values()]
            if config.policy.preference != policy.preference:
                config.policy.preference.check(seen)
            new = replace(config.policy, selection=policy.selection)
            _check_leaves_hope(self._state, new)
        except UsageError as error:
            return Unusable(request.id, f"{error}; nothing was changed")
        self._args = args
        limited = [note for note in config.notes if note not in self._notes]
        return NewOptions(request.id, remembered(args), new, "; ".join([words, *limited]))


def _check_leaves_hope(state: State, policy: Policy) -> None:
    """Jobs that wait must not fail for good since a cap was lowered. Raises UsageError."""
    before = set(impossible(state))
    by_then = replace(state, policy=policy)
    no_job, hopeless = why_no_job_can_start(by_then), impossible(by_then)
    if no_job is not None:
        raise UsageError(f"no job could start any more: {no_job} (smartsched pause stops starting)")
    if lost := [why for asked, why in hopeless.items() if asked not in before]:
        raise UsageError(f"jobs that wait could never start then: {lost[0]}")


def changed(args: argparse.Namespace, request: SetOptions) -> tuple[argparse.Namespace, str]:
    """With the options of a request, and in words what they change. Raises UsageError."""
    defaults = vars(build_parser().parse_args([]))
    changed, words = copy(args), []
    for name, value in request.options.items():
        option = f"--{name.replace('_', '-')}"
        if name not in SETTABLE:
            raise UsageError(f"{option} cannot be changed while the run lives")
        default = defaults[name]
        if value is not None and not _is_like(value, default):
            raise UsageError(f"{option} cannot be {json.dumps(value)}")
        setattr(changed, name, default if value is None else value)
        words.append(f"{option} {_shown(getattr(args, name))} -> {_shown(getattr(changed, name))}")
    if not words:
        raise UsageError("there is no option to be changed")
    return changed, ", ".join(words)


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, list):
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, str)


def _shown(value: object) -> str:
    match value:
        case None | []:
            return "(none)"
        case bool():
            return "on" if value else "off"
        case list():
            return ",".join(value)
        case _:
            return str(value)
