"""`--notify`: people elsewhere are told, and whatever becomes of that, the run goes on."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from smartsched.edges.notify import scheme
from tests.cli.harness import MOMENT, Box
from tests.stub_nvml import GIB, stranger_process
from tests.waiting import wait_until

SECRET = "hunter2"


class Service:
    """Takes what is sent to it."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        taken = self.taken

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the base class's name
                length = int(self.headers["Content-Length"])
                taken.append(json.loads(self.rfile.read(length)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"json://me:{SECRET}@127.0.0.1:{self._server.server_port}/{SECRET}"

    @property
    def titles(self) -> list[str]:
        return [each["title"] for each in self.taken]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a service that takes a connection and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"json://me:{SECRET}@127.0.0.1:{listening.getsockname()[1]}"


def dead_url() -> str:
    """Where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"json://me:{SECRET}@127.0.0.1:{unused.getsockname()[1]}"


def everything_on_disk(box: Box) -> bytes:
    places = [box.state, box.folder]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return b"".join(path.read_bytes() for path in files)


def test_a_first_failure_and_the_end_are_told(box: Box, service: Service):
    commands = [f"exit 7 --token {SECRET}", "exit 1", "true"]

    done = box.run(*MOMENT, "--name", "r", "--notify", service.url, commands=commands)

    assert done.status == 2
    assert sorted(title.split()[-1] for title in service.titles) == ["done", "failed"]
    told = {each["title"]: each["message"] for each in service.taken}
    assert "1 job ok, 2 failed" in told["smartsched r is done"]
    assert SECRET not in json.dumps(service.taken)


def test_its_secrets_are_in_no_file_no_message_and_no_environment(box: Box, service: Service):
    commands = ["env", "true"]

    done = box.run(*MOMENT, "--name", "r", "-v", commands=commands, SMARTSCHED_NOTIFY=service.url)

    assert service.titles == ["smartsched r is done"]
    assert SECRET not in done.err + done.out
    assert SECRET.encode() not in everything_on_disk(box)


def test_a_resumed_run_says_that_nobody_is_told(box: Box, service: Service):
    box.run(*MOMENT, "--name", "r", "--notify", service.url, commands=["true", "exit 3"])

    silent = box.run("--resume-failed", "r")
    again = box.run("--resume-failed", "r", "--notify", service.url)

    assert "nobody is notified: the URLs of --notify are not remembered" in silent.err
    assert "nobody is notified" not in again.err
    assert service.titles.count("smartsched r is done") == 2
    assert SECRET.encode() not in everything_on_disk(box)


def test_a_service_that_is_not_there_is_mentioned_once_by_its_scheme(box: Box):
    done = box.run(*MOMENT, "--notify", dead_url(), commands=["exit 1", "true"])

    assert done.status == 1
    assert done.err.count("a notice by json could not be sent") == 1
    assert SECRET not in done.err


def test_a_service_that_never_answers_keeps_nobody(box: Box, silent: str):
    began = time.monotonic()
    commands = ["exit 1", *["true"] * 20]

    done = box.run(*MOMENT, "--notify", silent, commands=commands)

    assert done.status == 1
    assert time.monotonic() - began < 30
    assert [record["outcome"] for record in box.events("job_finished")].count("ok") == 20
    wait_until(box.is_quiet, "who still tries gives up")


def test_a_stall_is_told_with_who_is_there(box: Box, service: Service):
    with stranger_process() as stranger:
        box.machine.add_stranger(0, 40 * GIB, stranger.pid)
        options = (*MOMENT, "--gpus", "0", "--notify", service.url, "--notify-stall", "1s")
        session = box.start(*options, "--name", "r", "--", "true")
        wait_until(lambda: service.taken, "the stall is told", session.dump)
        box.machine.remove_stranger(stranger.pid)
        assert session.end().status == 0

    assert service.titles[0] == "smartsched r: nothing could start for 1.0s"
    assert service.taken[0]["message"].startswith("because GPU 0: memory > 10% (")
    assert service.titles[1:] == ["smartsched r is done"]


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ([f"bogus://{SECRET}"], "--notify: the URL (bogus://…) is none that apprise can use"),
        ([SECRET], "--notify: the URL (?://…) is none that apprise can use"),
        (["json://localhost", f"slack://{SECRET}"], "--notify: URL 2 (slack://…) is none"),
    ],
)
def test_what_is_no_url_is_one_line_before_anything_runs(box: Box, urls: list[str], said: str):
    options = [word for url in urls for word in ("--notify", url)]

    done = box.run(*MOMENT, *options, commands=["touch ran"])

    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert SECRET not in done.err
    assert len(done.err.splitlines()) == 1
    assert not (box.folder / "ran").exists()
    assert list((box.state / "runs").iterdir()) == []


def test_without_the_library_one_line_says_how_to_install_it(box: Box):
    hide = "import sys; sys.modules['apprise'] = None; from smartsched.cli import main; "
    words = [*MOMENT, "--notify", "json://localhost", "--", "touch", "ran"]
    argv = [sys.executable, "-c", f"{hide}sys.exit(main({words!r}))"]

    done = subprocess.run(
        argv, env=box.env, cwd=box.folder, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("is not installed: pip install 'smartsched[notify]'\n")
    assert len(done.stderr.splitlines()) == 1
    assert not (box.folder / "ran").exists()


@pytest.mark.parametrize("value", ["0", "soon", "-1s"])
def test_a_time_that_cannot_be_is_one_line(box: Box, value: str):
    done = box.run(f"--notify-stall={value}", commands=["true"])

    assert done.status == 2
    assert done.err.startswith("smartsched: --notify-stall: ")


@pytest.mark.parametrize(
    ("url", "named"),
    [("slack://token/x", "slack"), (" MailTos://me:pw@host", "mailtos"), ("token", "?"), ("", "?"),
     ("\x1b[31m://x", "?"), ("a" * 99 + "://", "?")],
)  # fmt: skip
def test_of_a_url_nothing_is_said_but_its_scheme(url: str, named: str):
    assert scheme(url) == named
