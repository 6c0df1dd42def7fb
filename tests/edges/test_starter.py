"""Agents started through a real ssh and sshd; in place of smartsched is a script of the test."""

import gc
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from smartsched.core.host_list import HostSpec, parse_hosts
from smartsched.core.model import HostName, Timestamp
from smartsched.edges.clock import SteadyClock
from smartsched.edges.starter import News, NotStarted, SshStarter, Started
from smartsched.edges.waiter import Waiter
from smartsched.errors import StateError, UsageError
from tests.sshd import Sshd, sshd
from tests.waiting import PATIENCE_SECONDS

__all__ = ["sshd"]  # the fixture

SECRET = "open-sesame-7391"
GPU2 = HostName("gpu2")
AGENT = """#!/bin/sh
cat > {folder}/bundle
printf '%s\\n' "$@" > {folder}/arguments
echo "welcome" >&2
echo "started agent"
"""


class Box:
    """A real SshStarter and Waiter. Time is real, and may be skipped ahead."""

    def __init__(self, hosts: str, remote_command: str, *, reaps: bool, **options: Any) -> None:
        self.clock = SteadyClock()
        self.waiter = Waiter(self.clock)
        self.skipped = 0.0
        self.took_at = 0.0
        self.closed = False
        self.news: list[News] = []
        options = {"bundle": lambda _: SECRET.encode()} | options
        self.specs = parse_hosts(hosts)
        self.starter = SshStarter(self.waiter, self.specs, remote_command=remote_command, **options)
        if reaps:  # as a dispatcher does that has runs of its own
            self.waiter.on_signal(signal.SIGCHLD, self._reap)

    def now(self) -> Timestamp:
        return self.clock.now() + self.skipped

    def start(self, host: HostName = GPU2) -> None:
        self.starter.start(host, self.now())

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"still not so; seen: {self.news}"
            self.waiter.wait(min(self.clock.now() + 0.02, self.starter.wake_at() - self.skipped))
            self.take()

    def take(self) -> None:
        self.took_at = self.now()
        self.news += self.starter.take(self.took_at)

    def outcome(self, host: HostName = GPU2) -> News:
        """Of one attempt at it."""
        self.news.clear()
        self.start(host)
        self.until(lambda: self.news)
        [news] = self.news
        return news

    def why(self, host: HostName = GPU2) -> str:
        news = self.outcome(host)
        assert isinstance(news, NotStarted)
        return news.why

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.starter.close()
        self.until(lambda: not self.starter.pids())
        self.waiter.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.starter.ended(pid, status)


MakeBox = Callable[..., Box]


@pytest.fixture
def box_of(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBox]:
    boxes: list[Box] = []
    monkeypatch.setenv("PATH", f"{sshd.client()}:{os.environ['PATH']}")

    def make(remote_command: object, hosts: str = "gpu2", *, reaps: bool = False, **options: Any):
        boxes.append(Box(hosts, str(remote_command), reaps=reaps, **options))
        return boxes[-1]

    yield make
    for box in reversed(boxes):
        box.close()


@pytest.fixture(autouse=True)
def gpu2(sshd: Sshd) -> str:
    """The host, as it was before the last test changed it."""
    return sshd.fresh_host("gpu2")


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """In place of smartsched: notes what it is given, and says that it is up."""
    return script(tmp_path / "agent", AGENT.format(folder=tmp_path))


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def shell(path: Path, text: str) -> Path:
    return script(path, f"#!/bin/sh\n{text}\n")


# --- agents that come up


@pytest.mark.parametrize("reaps", [False, True], ids=["alone", "beside-runs"])
def test_an_agent_is_started_with_what_it_needs_on_its_stdin(
    box_of: MakeBox, agent: Path, tmp_path: Path, reaps: bool
):
    box = box_of(agent, reaps=reaps)

    assert box.outcome() == Started(GPU2)

    assert (tmp_path / "bundle").read_text() == SECRET
    assert (tmp_path / "arguments").read_text().split() == ["agent", "--join", "-"]
    assert box.starter.pids() == []
    assert box.starter.wake_at() == float("inf")


def test_a_large_bundle_arrives_whole(box_of: MakeBox, agent: Path, tmp_path: Path):
    bundle = os.urandom(1 << 20)
    box = box_of(agent, bundle=lambda _: bundle)

    assert box.outcome() == Started(GPU2)

    assert (tmp_path / "bundle").read_bytes() == bundle


@pytest.mark.parametrize(
    "option",
    [
        ("RemoteCommand", "tmux attach"),
        ("StdinNull", "yes"),
        ("SessionType", "none"),
        ("ForkAfterAuthentication", "yes"),
        ("IgnoreUnknown", "UseKeychain\n  UseKeychain yes"),
    ],
    ids=lambda option: option[0],
)
def test_what_a_user_has_set_for_his_own_sessions_is_no_hindrance(
    box_of: MakeBox, agent: Path, sshd: Sshd, tmp_path: Path, option: tuple[str, str]
):
    name, value = option
    known = subprocess.run(["ssh", "-G", "-o", f"{name}=none", "gpu2"], capture_output=True)
    if b"Bad configuration option" in known.stderr:
        pytest.skip(f"this ssh has no {name}")
    sshd.fresh_host("gpu2", **{name: value})

    assert box_of(agent).outcome() == Started(GPU2)

    assert (tmp_path / "bundle").read_text() == SECRET


def test_each_host_has_a_bundle_of_its_own(box_of: MakeBox, agent: Path, tmp_path: Path):
    def bundle(host: HostSpec) -> bytes:
        return f"for {host.name}".encode()

    assert box_of(agent, bundle=bundle).outcome() == Started(GPU2)

    assert (tmp_path / "bundle").read_text() == "for gpu2"


def test_the_remote_command_is_a_line_of_bash(box_of: MakeBox, tmp_path: Path):
    shell(
        tmp_path / "it's here",
        f'cat > /dev/null; printf "%s," "$X" "$@" > {tmp_path}/seen; echo joined',
    )
    (tmp_path / "activate").write_text("export X='a\\b'\n")
    box = box_of(f"""source {tmp_path}/activate && "{tmp_path}/it's here" """)

    assert box.outcome() == Started(GPU2, was_there=True)

    assert (tmp_path / "seen").read_text() == "a\\b,agent,--join,-,"


def test_what_is_secret_is_in_no_argument_or_environment(box_of: MakeBox, tmp_path: Path):
    box = box_of(
        shell(
            tmp_path / "agent",
            f"cat > {tmp_path}/bundle; echo $$ > {tmp_path}/pid;"
            f" until [ -e {tmp_path}/gate ]; do sleep 0.02; done; echo started",
        )
    )
    box.start()
    box.until(lambda: written(tmp_path / "pid"))

    seen = [
        contents(process / name)
        for process in Path("/proc").glob("[0-9]*")
        for name in ("cmdline", "environ")
    ]
    (tmp_path / "gate").touch()
    box.until(lambda: box.news)

    assert any(b"BatchMode=yes" in data for data in seen)
    assert not any(SECRET.encode() in data for data in seen)
    assert (tmp_path / "bundle").read_text() == SECRET


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_shells_print_before_does_not_matter(box_of: MakeBox, tmp_path: Path):
    noisy = shell(
        tmp_path / "agent",
        r"cat > /dev/null; head -c 300000 /dev/zero | tr '\0' x;"
        r" head -c 300000 /dev/zero >&2; printf '\n\033]0;gpu2\007started agent\n'",
    )

    assert box_of(noisy).outcome() == Started(GPU2)


def test_what_keeps_the_pipes_open_keeps_nobody_waiting(box_of: MakeBox, tmp_path: Path):
    """As the master of shared connections does, which ssh leaves behind."""
    lingering = shell(tmp_path / "agent", f"cat > /dev/null; sleep 600 & echo $! > {tmp_path}/pid;"
                      " echo started")  # fmt: skip
    box = box_of(lingering, hosts="localhost")

    assert box.outcome(HostName("localhost")) == Started(HostName("localhost"))

    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_an_agent_that_is_up_is_not_waited_for_though_its_ssh_stays(
    box_of: MakeBox, tmp_path: Path
):
    staying = shell(
        tmp_path / "agent",
        f"cat > /dev/null; echo started; echo $$ > {tmp_path}/pid; exec sleep 600",
    )
    box = box_of(staying)
    box.start()
    box.until(lambda: written(tmp_path / "pid") and heard(box, b"started"))

    box.skipped += 61
    box.until(lambda: box.news)

    assert box.news == [Started(GPU2)]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def written(path: Path) -> bool:
    return path.exists() and path.read_text().endswith("\n")


def heard(box: Box, text: bytes) -> bool:
    return any(text in attempt.output for attempt in box.starter._attempts.values())


@pytest.mark.parametrize("name", ["localhost", os.uname().nodename])
def test_on_this_host_it_is_started_without_ssh(
    box_of: MakeBox, agent: Path, tmp_path: Path, name: str
):
    box = box_of(agent, hosts=name, ssh="no-such-ssh")

    assert box.outcome(HostName(name)) == Started(HostName(name))

    assert (tmp_path / "bundle").read_text() == SECRET
    assert (tmp_path / "arguments").read_text().split() == ["agent", "--join", "-"]


def test_who_names_a_user_or_a_port_of_this_host_gets_ssh(box_of: MakeBox, sshd: Sshd, agent: Path):
    sshd.fresh_host("localhost")
    box = box_of(agent, hosts=f"{sshd.user}@localhost:{sshd.port}")
    localhost = HostName("localhost")

    box.start(localhost)
    box.take()

    [pid] = box.starter.pids()
    assert f"{sshd.user}@localhost" in psutil.Process(pid).cmdline()
    box.until(lambda: box.news)
    assert box.news == [Started(localhost)]


def test_an_agent_is_no_part_of_a_job_that_its_dispatcher_runs_in(
    box_of: MakeBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("SMARTSCHED_RUN_ID", "SMARTSCHED_JOB", "SMARTSCHED_ATTEMPT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SMARTSCHED_CLAIMS", "/claims")
    noting = shell(tmp_path / "agent", f"env > {tmp_path}/environment; echo started")

    box_of(noting, hosts="localhost").outcome(HostName("localhost"))

    seen = (tmp_path / "environment").read_text()
    assert "SMARTSCHED_CLAIMS=/claims" in seen
    assert "SMARTSCHED_RUN_ID" not in seen
    assert "SMARTSCHED_JOB" not in seen


# --- agents that do not


def test_a_host_without_smartsched_is_told_of_with_what_to_do(box_of: MakeBox):
    why = box_of("no-such-program").why()

    assert why.startswith("there is no smartsched on gpu2 (")
    assert "no-such-program" in why
    assert why.endswith("pip install it there, or name it with --remote-command")


@pytest.mark.parametrize("hosts", ["gpu2", "localhost"])
def test_what_smartsched_says_there_is_what_is_told(box_of: MakeBox, tmp_path: Path, hosts: str):
    other = shell(
        tmp_path / "agent",
        "echo 'some warning' >&2; echo 'smartsched: it is 0.1, not 0.2' >&2; exit 255",
    )

    why = box_of(other, hosts=hosts).why(HostName(hosts))

    assert why == f"cannot start on {hosts}: it is 0.1, not 0.2"


def test_a_host_where_nobody_listens_is_told_of(box_of: MakeBox, sshd: Sshd, agent: Path):
    with socket.socket() as deaf:  # bound, so that nobody else can listen there
        deaf.bind(("127.0.0.1", 0))
        sshd.fresh_host("gpu2", Port=deaf.getsockname()[1])

        why = box_of(agent).why()

    assert why.startswith("cannot reach gpu2: connect to host 127.0.0.1 port ")
    assert why.endswith("Connection refused")


def test_a_host_that_nobody_knows_is_told_of(box_of: MakeBox, sshd: Sshd, agent: Path):
    sshd.fresh_host("gpu2", HostName="nowhere.invalid")

    assert box_of(agent).why().startswith("cannot reach gpu2: Could not resolve hostname")


def test_a_host_key_that_has_changed_is_told_of(box_of: MakeBox, sshd: Sshd, agent: Path):
    sshd.change_key_of("gpu2")

    assert box_of(agent).why() == (
        "cannot reach gpu2: its host key is not the one known here: see what ssh gpu2 says"
    )


def test_a_host_key_that_is_not_known_is_told_of(box_of: MakeBox, sshd: Sshd, agent: Path):
    sshd.forget_key_of("gpu2")

    assert box_of(agent).why() == (
        "cannot reach gpu2: Host key verification failed: connect once by hand: ssh gpu2"
    )


def test_a_host_that_lets_us_not_in_is_told_of(box_of: MakeBox, sshd: Sshd, agent: Path):
    sshd.fresh_host("gpu2", IdentityFile=sshd.other_key())

    why = box_of(agent).why()

    assert "Permission denied (publickey)" in why
    assert why.endswith(": ssh gpu2 must work without a password")


def test_something_that_answers_and_is_no_agent_is_told_of(box_of: MakeBox):
    assert box_of("echo hello;").why() == (
        "there is no smartsched on gpu2 (bash: line 1: agent: command not found): pip install it"
        " there, or name it with --remote-command"
    )
    assert box_of("echo hello #").why() == (
        "cannot start on gpu2: instead of an agent, something else answered: hello"
    )


def test_without_ssh_here_it_says_so(box_of: MakeBox, agent: Path):
    assert box_of(agent, ssh="no-such-ssh").why() == (
        "cannot start on gpu2: there is no no-such-ssh here: install the OpenSSH client"
    )


def test_without_a_bundle_it_says_why(box_of: MakeBox, agent: Path):
    def bundle(_: HostSpec) -> bytes:
        raise StateError("the certificate authority has expired")

    box = box_of(agent, bundle=bundle)

    assert box.why() == "cannot start on gpu2: the certificate authority has expired"
    assert box.starter.pids() == []


def test_a_host_that_does_not_answer_is_given_up(box_of: MakeBox, sshd: Sshd, agent: Path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sshd.fresh_host("gpu2", Port=silent.getsockname()[1])
        box = box_of(agent)
        box.start()
        [pid] = box.starter.pids()
        assert box.starter.wake_at() <= box.now() + 60

        box.skipped += 61
        box.until(lambda: box.news)

    [news] = box.news
    assert isinstance(news, NotStarted)
    assert news.why == "gpu2 has not answered for 1m 00s"
    box.until(lambda: not psutil.pid_exists(pid))


def test_a_remote_command_that_is_no_line_is_refused_at_once(box_of: MakeBox):
    with pytest.raises(UsageError, match="--remote-command"):
        box_of("a\nb")


def test_an_end_that_somebody_else_saw_and_cannot_tell_is_judged_by_what_was_said(
    box_of: MakeBox, agent: Path, tmp_path: Path
):
    box = box_of(agent)
    box.start()
    [pid] = box.starter.pids()
    os.waitpid(pid, 0)
    box.starter.ended(pid)
    box.take()
    assert box.news == [Started(GPU2)]

    failing = box_of(shell(tmp_path / "failing", "echo 'smartsched: no' >&2; exit 3"))
    failing.start()
    [pid] = failing.starter.pids()
    os.waitpid(pid, 0)  # and tells nobody
    failing.until(lambda: failing.news)
    [news] = failing.news
    assert isinstance(news, NotStarted)
    assert news.why == "cannot start on gpu2: no"


# --- again and again


def test_it_is_tried_again_after_pauses_that_grow_to_a_minute(box_of: MakeBox, tmp_path: Path):
    box = box_of(shell(tmp_path / "agent", "exit 1"))
    pauses = []
    box.start()
    for _ in range(8):
        box.until(lambda: box.news)
        [news] = box.news
        assert isinstance(news, NotStarted)
        pauses.append(news.retry_at - box.took_at)
        box.news.clear()
        assert box.starter.pids() == []
        assert box.starter.wake_at() == news.retry_at
        box.skipped += news.retry_at - box.now() - 0.0005
        box.take()

    for pause, least in zip(pauses, [2, 4, 8, 16, 32, 60, 60, 60], strict=True):
        assert least - 0.001 < pause < least * 1.25 + 0.001


def test_hosts_that_fail_together_are_tried_apart_and_the_same_way_each_time(
    box_of: MakeBox, agent: Path
):
    def pauses() -> list[float]:
        box = box_of(agent, "a,b,c,d", ssh="no-such-ssh")
        for spec in box.specs:
            box.starter.start(spec.name, 1000.0)
        news = box.starter.take(1000.0)
        return [each.retry_at - 1000.0 for each in news if isinstance(each, NotStarted)]

    first = pauses()

    assert len({round(pause, 3) for pause in first}) == 4
    assert first == pauses()


def test_once_it_joined_the_next_failure_is_a_first_one(box_of: MakeBox, tmp_path: Path):
    box = box_of(shell(tmp_path / "agent", "exit 1"))
    box.outcome()
    box.outcome()

    box.starter.joined(GPU2)
    assert box.starter.wake_at() == float("inf")
    news = box.outcome()

    assert isinstance(news, NotStarted)
    assert news.retry_at - box.took_at < 2.501


def test_a_host_that_joined_meanwhile_is_not_tried_again(box_of: MakeBox, tmp_path: Path):
    box = box_of(
        shell(tmp_path / "agent", f"until [ -e {tmp_path}/gate ]; do sleep 0.02; done; exit 1")
    )
    box.start()

    box.starter.joined(GPU2)
    (tmp_path / "gate").touch()
    box.until(lambda: not box.starter.pids())
    box.take()

    assert box.news == []
    assert box.starter.wake_at() == float("inf")


def test_an_attempt_under_way_is_not_joined_by_another(box_of: MakeBox, agent: Path):
    box = box_of(agent)

    box.start()
    box.start()

    assert len(box.starter.pids()) == 1
    box.until(lambda: box.news)
    box.take()
    assert box.news == [Started(GPU2)]


def test_it_can_be_started_anew_after_it_went_away(box_of: MakeBox, agent: Path):
    box = box_of(agent)
    assert box.outcome() == Started(GPU2)
    box.starter.joined(GPU2)

    assert box.outcome() == Started(GPU2)


def test_one_that_fails_does_not_hold_up_the_others(box_of: MakeBox, sshd: Sshd, agent: Path):
    sshd.fresh_host("gpu3")
    sshd.fresh_host("gpu4", HostName="nowhere.invalid")
    box = box_of(agent, "gpu4,gpu2,gpu3")

    for spec in box.specs:
        box.start(spec.name)
    box.until(lambda: len(box.news) == 3)

    assert {news.host for news in box.news if isinstance(news, Started)} == {"gpu2", "gpu3"}
    assert {news.host for news in box.news if isinstance(news, NotStarted)} == {"gpu4"}


def test_of_many_hosts_a_few_are_tried_at_once_and_all_in_the_end(box_of: MakeBox, tmp_path: Path):
    fake_ssh = shell(
        tmp_path / "fake-ssh",
        f"touch {tmp_path}/on-$$; until [ -e {tmp_path}/gate ]; do sleep 0.02; done; echo started",
    )
    names = [f"host{number}" for number in range(40)]
    box = box_of("smartsched", ",".join(names), ssh=str(fake_ssh))

    for spec in box.specs:
        box.start(spec.name)
    box.until(lambda: len(list(tmp_path.glob("on-*"))) == 16)
    assert len(box.starter.pids()) == 16
    (tmp_path / "gate").touch()
    box.until(lambda: len(box.news) == 40)

    assert {news.host for news in box.news} == set(names)
    assert all(isinstance(news, Started) for news in box.news)


def test_closing_ends_what_is_under_way_and_leaves_no_descriptor(box_of: MakeBox, tmp_path: Path):
    gc.collect()  # what other tests have left
    before = set(os.listdir("/proc/self/fd"))
    box = box_of(
        shell(tmp_path / "agent", f"echo $$ > {tmp_path}/pid; exec sleep 600"), hosts="localhost"
    )
    box.start(HostName("localhost"))
    box.until(lambda: written(tmp_path / "pid"))
    [pid] = box.starter.pids()

    box.close()

    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert set(os.listdir("/proc/self/fd")) <= before


def test_without_pidfds_ends_are_looked_for(
    box_of: MakeBox, agent: Path, monkeypatch: pytest.MonkeyPatch
):
    def old_kernel(_: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", old_kernel)
    box = box_of(agent)
    box.start()
    box.take()
    assert box.starter.wake_at() <= box.now() + 0.2

    box.until(lambda: box.news)

    assert box.news == [Started(GPU2)]


def test_on_this_host_it_may_be_another_program(box_of: MakeBox, agent: Path, tmp_path: Path):
    elsewhere = shell(tmp_path / "elsewhere", "echo nothing; exit 1")

    here = box_of(elsewhere, hosts="localhost", local_command=str(agent))
    there = box_of(agent, local_command=str(elsewhere))

    assert here.outcome(HostName("localhost")) == Started(HostName("localhost"))
    assert there.outcome() == Started(GPU2)
