"""How an agent comes to be: by a file for joining, which holds a key, or not at all."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from smartsched import __version__
from smartsched.core import join as joins
from smartsched.core.credentials import Credentials
from smartsched.core.join import Join
from smartsched.edges.authority import Authority
from tests.cli.harness import PROGRAM, ROOT


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return Authority(tmp_path / "state" / "authority").issue("agent", "night")


def a_join(credentials: Credentials, **fields: Any) -> Join:
    about: dict[str, Any] = {
        "version": __version__,
        "run_id": "night.4f2a",
        "run_name": "night",
        "host": "gpu1",
        "addresses": ("127.0.0.1:1",),  # nobody listens there
        "credentials": credentials,
        "sampler_arguments": ("sample", "--simulate", "2"),
        "directory": os.getcwd(),
        "other_directory": "",
        "logs": os.path.abspath("smartsched-logs"),
        "logs_mark": ".mark",
        "sends_logs": False,
        "shell": None,
        "nice": None,
        "checkpoint_signal": None,
        "claims": None,
        "lease_seconds": 60.0,
        "grace_seconds": 1.0,
        "patience_seconds": 10.0,
    }
    known = {field: about[field] for field in about} | fields
    return Join(**{**_defaults(), **known})


def _defaults() -> dict[str, Any]:
    """Of fields that came later."""
    from msgspec import NODEFAULT, structs

    return {
        field.name: field.default
        for field in structs.fields(Join)
        if field.default is not NODEFAULT
    }


def written(data: bytes, mode: int = 0o600) -> Path:
    path = Path("join").absolute()
    path.write_bytes(data)
    path.chmod(mode)
    return path


def agent(*args: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "agent", *args],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        input=stdin.decode(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_is_said_of_joining_survives_the_way(credentials: Credentials):
    join = a_join(credentials)

    assert joins.decode(joins.encode(join)) == join
    assert "PRIVATE" not in repr(join)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no file for joining a run"),
        (b"{}", "is no file for joining a run, or of another version"),
        (b"\xff\xfe", "is no file for joining a run"),
        (b'{"smartsched_join": 1}', "is no file for joining a run"),
        (b"[" * 100_000, "is no file for joining a run"),
    ],
    ids=["empty", "another", "bytes", "bare", "deep"],
)
def test_what_is_no_file_for_joining_is_refused_in_a_line(data: bytes, said: str):
    by_file, by_stdin = agent("--join", str(written(data))), agent("--join", "-", stdin=b"x")

    assert by_file.returncode == 2
    assert said in by_file.stderr
    assert len(by_file.stderr.splitlines()) == 1
    assert by_stdin.returncode == 2
    assert by_stdin.stderr.startswith("smartsched: what came on standard input: ")


def test_a_dispatcher_of_another_version_is_not_joined(credentials: Credentials):
    join = a_join(credentials, version="0.0.1")

    done = agent("--join", "-", stdin=joins.encode(join))

    assert done.returncode == 2
    assert done.stderr == (
        f"smartsched: this host has smartsched {__version__}, and the dispatcher 0.0.1:"
        " install the same\n"
    )


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_file_that_others_may_read_is_refused(credentials: Credentials, mode: int):
    path = written(joins.encode(a_join(credentials)), mode)

    done = agent("--join", str(path))

    assert done.returncode == 2
    assert "holds a key, and others may read it: chmod 600 it" in done.stderr


def test_a_link_to_a_file_for_joining_is_not_followed(credentials: Credentials):
    written(joins.encode(a_join(credentials)))
    os.symlink("join", "link")

    done = agent("--join", "link")

    assert done.returncode == 2
    assert "cannot open link" in done.stderr


def test_a_pilot_is_in_a_batch_job_or_none(credentials: Credentials):
    path = written(joins.encode(a_join(credentials)))

    done = agent("--join", str(path), "--pilot")

    assert done.returncode == 2
    assert "there is no SLURM_JOB_ID here" in done.stderr


def test_there_is_one_agent_of_a_run_on_a_host(credentials: Credentials):
    data = joins.encode(a_join(credentials))
    first = subprocess.Popen(
        [*PROGRAM, "agent", "--join", str(written(data))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stderr is not None
        assert "cannot reach 127.0.0.1:1" in first.stderr.readline()  # it is up

        by_file = agent("--join", "join")
        by_dispatcher = agent("--join", "-", stdin=data)
    finally:
        first.terminate()
        first.communicate(timeout=30)

    assert by_file.returncode == 255
    assert "an agent of run night is on this host already" in by_file.stderr
    assert (by_dispatcher.returncode, by_dispatcher.stderr) == (0, "")
    assert by_dispatcher.stdout.startswith("joined: an agent is here already")
    assert first.returncode == 0


def test_an_agent_of_which_nothing_is_left_to_do_leaves_nothing(credentials: Credentials):
    process = subprocess.Popen(
        [*PROGRAM, "agent", "--join", str(written(joins.encode(a_join(credentials))))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.readline()

    process.terminate()

    assert process.wait(30) == 0
    state = Path(os.environ["XDG_STATE_HOME"]) / "smartsched"
    assert list((state / "agents" / "runs").iterdir()) == []
    process.stderr.close()


def test_no_key_is_in_what_an_agent_shows_of_itself(credentials: Credentials):
    process = subprocess.Popen(
        [*PROGRAM, "agent", "--join", str(written(joins.encode(a_join(credentials))))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.readline()

    shown = [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    process.terminate()
    process.communicate(timeout=30)

    key = json.loads(Path("join").read_text())["credentials"]["key_pem"].splitlines()[1]
    assert not any(key.encode() in text for text in shown)


@pytest.mark.parametrize("name", ["a b", "a/b", "x,y", "-q", "", "\x1b[31m", "n" * 300])
def test_what_cannot_be_a_name_of_a_host_is_refused(name: str):
    done = agent("--join", "join", f"--host={name}")

    assert done.returncode == 2
    assert "is no name of a host: write it as in gpu2" in done.stderr
    assert done.stderr.count("\n") == 1
