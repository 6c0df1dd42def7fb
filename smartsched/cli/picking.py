"""How `pick` finds free GPUs: it decides as a dispatcher with one job does, and never starts it."""

import argparse
import json
import signal
import sys
from contextlib import ExitStack

from msgspec import Struct
from msgspec.structs import replace

from smartsched.cli.claiming import claim_files_for
from smartsched.cli.limits import settle
from smartsched.cli.looking import Onlooker
from smartsched.cli.wiring import check_source
from smartsched.config import Config, flag
from smartsched.core.actions import Claim, Launch, Refresh, Release
from smartsched.core.apply import apply
from smartsched.core.decide import Decision, decide
from smartsched.core.events import JobAccepted, RunExited, WaitTimedOut
from smartsched.core.impossible import why_no_job_can_start
from smartsched.core.model import ClaimRefused, GpuKey, JobSpec, NotStarted, Placement, Timestamp
from smartsched.core.sight import hear, let_go
from smartsched.core.units import parse_positive_count, parse_positive_duration
from smartsched.edges.claim_files import ClaimFiles
from smartsched.edges.claims import LOCK_PATIENCE_SECONDS, FolderClaims, NoClaims
from smartsched.edges.holder import hold_open
from smartsched.errors import (
    EXIT_INTERRUPTED,
    EXIT_NONE_PICKED,
    EXIT_WAIT_TIMED_OUT,
    StateError,
    UsageError,
)

_LOCK_RETRY_SECONDS = 0.02


def pick(args: argparse.Namespace) -> int:
    """The exit status."""
    hold_seconds = None
    if args.hold is not None:
        hold_seconds = flag("--hold", parse_positive_duration, args.hold)
    flag("-n", parse_positive_count, args.gpus_per_job)
    if args.wait:
        flag("--wait", parse_positive_duration, args.wait)
    args.wait_timeout = args.wait or None
    config = settle(args, "pick")
    if hold_seconds is not None and config.claims is None:
        raise UsageError("--hold holds a claim: it cannot be used with --no-claims or pretend GPUs")
    check_source(args)
    with ExitStack() as stack:
        onlooker = Onlooker(config)
        stack.callback(onlooker.close)
        return _Pick(stack, onlooker, config, waits=args.wait is not None).main(
            hold_seconds, as_object=args.json
        )


class _InterruptedError(Exception):
    """Raised only while we wait, so that claims are given up."""


def _interrupt() -> None:
    raise _InterruptedError


class _None(Struct, frozen=True):
    """There are not so many."""

    why: str
    status: int


class _Pick:
    """Decides as a dispatcher does that has one job, and never starts it."""

    def __init__(
        self, stack: ExitStack, onlooker: Onlooker, config: Config, *, waits: bool
    ) -> None:
        self._onlooker = onlooker
        self._clock = onlooker.clock
        self._state = onlooker.state
        self._config = config
        self._waits = waits
        self._has_told = False
        self._asked_at: dict[tuple[GpuKey, ...], Timestamp] = {}  # of what is not answered yet
        self._files = claim_files_for(config)
        self._claims: FolderClaims | NoClaims = (
            NoClaims() if self._files is None else FolderClaims(self._files, _complain)
        )
        stack.callback(self._claims.close)

    def main(self, hold_seconds: float | None, *, as_object: bool) -> int:
        """The exit status."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._onlooker.waiter.on_signal(signum, _interrupt)
        try:
            picked = self._pick()
            if isinstance(picked, _None):
                _complain(picked.why)
                return picked.status
            holder = None
            if hold_seconds is not None and self._files is not None:
                holder = self._hold(self._files, picked, hold_seconds)
        except _InterruptedError:
            return EXIT_INTERRUPTED
        _show(picked, holder, as_object=as_object)
        return 0

    def _pick(self) -> Placement | _None:
        state = self._onlooker.begin()
        if (why := why_no_job_can_start(state)) is not None:
            raise UsageError(why.replace("it needs", "-n asks for", 1))
        for note in self._config.notes:
            _complain(note)
        now = self._clock.now()
        apply(state, JobAccepted(now, state.next_job(), JobSpec("pick", "the command line")))
        window_closes_at = self._onlooker.window_closes_at()
        while True:
            self._onlooker.take()
            now = self._clock.now()
            if (locked := self._hear(now)) is not None:
                return locked
            decision = decide(state, now)
            self._act(decision, now)
            if (outcome := _outcome(decision)) is not None:
                return outcome
            if decision.waiting is not None and not self._is_worth_waiting(now, window_closes_at):
                why = decision.waiting.why.replace("a command needs", "-n asks for", 1)
                return _None(_in_full(why), EXIT_NONE_PICKED)
            self._onlooker.waiter.wait(self._wake_at(decision, window_closes_at))

    def _hear(self, now: Timestamp) -> _None | None:
        """What came of claims. Who does not wait asks for no GPU twice, and not for another one
        when nobody can tell whose they are."""
        for answer in self._claims.take(now):
            waited = answer.at - self._asked_at.pop(answer.gpus, answer.at)
            if isinstance(answer, ClaimRefused) and not self._waits:
                if waited >= LOCK_PATIENCE_SECONDS:
                    return _None(answer.why[0][1], EXIT_NONE_PICKED)
                answer = replace(answer, at=float("inf"))
            hear(self._state, answer)
        return None

    def _act(self, decision: Decision, now: Timestamp) -> None:
        looks = []
        for action in decision.actions:
            match action:
                case Claim(gpus):
                    self._claims.ask(gpus, now)
                    self._asked_at.setdefault(tuple(gpu for gpu, _ in gpus), now)
                case Release(gpus):
                    self._claims.release(gpus, now)
                    let_go(self._state, gpus)
                case Refresh(gpu, after):
                    looks.append((gpu, after))
                case _:
                    pass  # there are no runs
        if looks:
            self._onlooker.sampler.refresh(looks, now)

    def _is_worth_waiting(self, now: Timestamp, window_closes_at: Timestamp) -> bool:
        if self._waits:
            if not self._has_told and not self._config.quiet:
                self._tell_that_we_wait()
            self._has_told = True
            return True
        if now >= window_closes_at or not self._onlooker.window_is_open():
            return False
        if not self._has_told:
            self._has_told = True
            self._onlooker.say_that_it_takes_time()
        return True

    def _tell_that_we_wait(self) -> None:
        many = self._config.policy.gpus_per_job
        _complain(f"waiting for {'a free GPU' if many == 1 else f'{many} free GPUs'}")

    def _wake_at(self, decision: Decision, window_closes_at: Timestamp) -> Timestamp:
        wake_at = min(decision.wake_at, self._onlooker.sampler.wake_at(), self._claims.wake_at())
        return wake_at if self._waits else min(wake_at, window_closes_at)

    def _hold(self, files: ClaimFiles, picked: Placement, seconds: float) -> int:
        """The pid of who holds them. Raises StateError."""
        now = self._clock.now()
        give_up_at = now + LOCK_PATIENCE_SECONDS
        while not files.lock():
            if self._clock.now() >= give_up_at:
                raise StateError(
                    f"cannot hold GPU {picked.labels}: somebody holds the claims' lock"
                )
            self._onlooker.waiter.wait(self._clock.now() + _LOCK_RETRY_SECONDS)
        try:
            shares = {gpu.key: (0, now) for gpu in picked.gpus}
            return files.hand_over(shares, lambda fd, path: hold_open(fd, path, seconds))
        finally:
            files.unlock()


def _outcome(decision: Decision) -> Placement | _None | None:
    """None: it is not decided yet."""
    for event in decision.events:
        match event:
            case WaitTimedOut():
                why = decision.waiting.why if decision.waiting is not None else ""
                return _None(f"--wait ran out: {_in_full(why)}", EXIT_WAIT_TIMED_OUT)
            case RunExited(ending=NotStarted(why)):
                return _None(why, EXIT_NONE_PICKED)
            case _:
                pass
    launches = (action for action in decision.actions if isinstance(action, Launch))
    return next((launch.placement for launch in launches), None)


def _in_full(why: str) -> str:
    """As a line of its own."""
    return f"no GPU is free: {why}" if why.startswith("GPU ") else why


def _show(picked: Placement, holder: int | None, *, as_object: bool) -> None:
    value = ",".join(gpu.visible for gpu in picked.gpus)
    if not as_object:
        print(value)
        return
    gpus = [{"gpu": gpu.label, "uuid": gpu.key.uuid, "host": gpu.key.host} for gpu in picked.gpus]
    found = {"smartsched_pick": 1, "cuda_visible_devices": value, "gpus": gpus, "holder": holder}
    print(json.dumps(found, indent=2))


def _complain(text: str) -> None:
    print(f"smartsched: {text}", file=sys.stderr)
