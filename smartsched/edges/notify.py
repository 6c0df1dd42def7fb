"""Sends notices to people elsewhere (`--notify`), each by a process of its own that ends by itself.

URLs hold secrets. They go to that process through memory that has no name, not by its arguments or
environment, which others can see, and of a URL nothing is ever said but its scheme.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Sequence

from smartsched.core.decide import Decision
from smartsched.core.events import Event, JobFinished, JobRequeued, RunExited, RunLaunched
from smartsched.core.gpu_time import standings
from smartsched.core.model import EndedRun, RunKey, Timestamp
from smartsched.core.notices import Notice, StallClock, finish, first_failure, is_stalled, stall
from smartsched.core.state import State
from smartsched.errors import UsageError

_CHILD = "from smartsched.edges.notify import child; child()"
# A sender that a service keeps waiting for longer is ended by the system.
_DEADLINE_SECONDS = 60
_CHECK_SECONDS = 30.0
_LOOK_AGAIN_SECONDS = 60.0  # whether what waits is stalled
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,30})://", re.IGNORECASE | re.ASCII)
_HOW_TO_INSTALL = "--notify needs a library that is not installed: pip install 'smartsched[notify]'"
_RESET_SIGNALS = [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD,
    signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGALRM,
]  # fmt: skip


def scheme(url: str) -> str:
    """All that may be said of it."""
    found = _SCHEME.match(url.strip())
    return found[1].lower() if found else "?"


def check(urls: Sequence[str]) -> None:
    """Before anything runs. Raises UsageError without the library, or for what is no URL of any
    service that it knows."""
    import importlib.util
    import subprocess

    if importlib.util.find_spec("apprise") is None:
        raise UsageError(_HOW_TO_INSTALL)
    asked = json.dumps({"urls": list(urls), "check": True}).encode("utf-8", "backslashreplace")
    try:
        done = subprocess.run(  # noqa: S603  # ourselves
            [sys.executable, "-P", "-c", _CHILD],
            input=asked,
            capture_output=True,
            timeout=_CHECK_SECONDS,
            check=False,
        )
        wrong = [int(number) for number in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        raise UsageError(f"--notify: apprise does not work: {type(error).__name__}") from None
    if wrong:
        number = f"URL {wrong[0] + 1}" if len(urls) > 1 else "the URL"
        raise UsageError(
            f"--notify: {number} ({scheme(urls[wrong[0]])}://…) is none that apprise can use: see"
            " https://github.com/caronc/apprise/wiki for how each service writes them"
        )


class NoNotices:
    """Where nobody wants to be told."""

    def pids(self) -> Collection[int]:
        return ()

    def ended(self, pid: int) -> None: ...

    def finish(self, state: State, now: Timestamp) -> None: ...

    def is_settled(self) -> bool:
        return True

    def close(self) -> None: ...


class Notices:
    """An Observer that sends what should be told."""

    def __init__(
        self,
        urls: Sequence[str],
        run_name: str,
        state: State,
        stall_seconds: float,
        now: Timestamp,
        when_failed: Callable[[str], None],
    ) -> None:
        """`when_failed` is told, once for each URL, what could not be sent."""
        self._urls = urls
        self._run_name = f"smartsched {run_name}"
        self._began = now
        self._when_failed = when_failed
        self._ended: dict[RunKey, EndedRun] = dict(state.ended)
        self._failed = False
        self._stall = StallClock(stall_seconds)
        self._look_at: Timestamp = float("-inf")
        self._sending: dict[int, tuple[int, int]] = {}  # by pid: which URL, and what it answers to
        self._blamed: set[int] = set()

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        match event:
            case RunLaunched():
                self._stall.started()
            case RunExited(run=run) if run in state.ended:
                self._ended[run] = state.ended[run]
            case JobRequeued(run=run):
                self._ended.pop(run, None)
            case JobFinished(run=run, outcome=outcome):
                ended = self._ended.pop(run, None)
                if outcome == "failed" and ended is not None and not self._failed:
                    self._failed = True
                    self._send(first_failure(self._run_name, ended))
            case _:
                pass

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        lasted = self._stall.look(state, decision.waiting, now)
        if lasted is None or decision.waiting is None or now < self._look_at:
            return
        self._look_at = now + _LOOK_AGAIN_SECONDS
        found = standings(state, decision.waiting, now)
        if is_stalled(state, found):
            self._stall.told()
            self._send(stall(self._run_name, lasted, found, decision.waiting))

    def wake_at(self) -> Timestamp:
        return max(self._stall.wake_at(), self._look_at)

    def finish(self, state: State, now: Timestamp) -> None:
        self._send(finish(self._run_name, state, now - self._began))

    def pids(self) -> Collection[int]:
        return list(self._sending)

    def ended(self, pid: int) -> None:
        """A child of ours ended, perhaps one of these."""
        if pid not in self._sending:
            return
        number, answer = self._sending.pop(pid)
        is_sent = os.pread(answer, 2, 0) == b"ok"
        os.close(answer)
        if not is_sent:
            self._blame(number, "it was not taken, or not in time")

    def is_settled(self) -> bool:
        return not self._sending

    def close(self) -> None:
        """What is still being sent goes on by itself."""
        for _, answer in self._sending.values():
            os.close(answer)
        self._sending.clear()

    def _send(self, notice: Notice) -> None:
        for number, url in enumerate(self._urls):
            asked = {"urls": [url], "title": notice.title, "body": notice.body}
            try:
                self._spawn(number, json.dumps(asked).encode("utf-8", "backslashreplace"))
            except OSError as error:
                self._blame(number, error.strerror or str(error))

    def _spawn(self, number: int, asked: bytes) -> None:
        question, answer = os.memfd_create("notice"), os.memfd_create("answer")
        try:
            os.write(question, asked)
            os.lseek(question, 0, os.SEEK_SET)
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-c", _CHILD],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, question, 0),
                    (os.POSIX_SPAWN_DUP2, answer, 1),
                    (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=_RESET_SIGNALS,
            )
        except OSError:
            os.close(answer)
            raise
        finally:
            os.close(question)
        self._sending[pid] = (number, answer)

    def _blame(self, number: int, why: str) -> None:
        if number not in self._blamed:
            self._blamed.add(number)
            self._when_failed(f"a notice by {scheme(self._urls[number])} could not be sent: {why}")


def child() -> None:
    """What the sending process does: read what to send, send it, say "ok"."""
    signal.alarm(_DEADLINE_SECONDS)
    asked = json.loads(sys.stdin.buffer.read())
    sink = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that a library prints is an answer
    if asked.get("check"):
        os.write(sink, json.dumps(_unusable(asked["urls"])).encode())
    elif _deliver(asked["urls"], asked["title"], asked["body"]):
        os.write(sink, b"ok")


def _unusable(urls: Iterable[str]) -> list[int]:
    import apprise

    return [number for number, url in enumerate(urls) if not apprise.Apprise().add(url)]


def _deliver(urls: Iterable[str], title: str, body: str) -> bool:
    import apprise

    service = apprise.Apprise()
    if not all(service.add(url) for url in urls):
        return False
    return bool(service.notify(body=body, title=title))
