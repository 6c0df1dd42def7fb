"""Another user of the dispatcher's host and of a host with an agent: he neither joins, nor reads,
nor makes anybody run what he likes."""

import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.runs import begun, gated, open_gate, start
from tests.lab import Lab
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can be somebody else"
)
# Not of the one that runs the tests: that may lie where others cannot go.
PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")
OTHER = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]

# Says a line for each attempt: what came of it.
KNOCK = r"""
import socket, ssl, sys
port, certificate, payload = int(sys.argv[1]), sys.argv[2], bytes.fromhex(sys.argv[3])
def attempt(name, wrap, say):
    try:
        with socket.create_connection(("10.77.0.1", port), 10) as bare:
            bare.settimeout(10)
            with wrap(bare) as connection:
                connection.sendall(say)
                print(name, "was let in" if connection.recv(1) else "was shown the door")
    except OSError as error:
        print(name, "was refused", type(error).__name__)
def context(certificate=None):
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    found.check_hostname, found.verify_mode = False, ssl.CERT_NONE
    if certificate:
        found.load_cert_chain(certificate)
    return found.wrap_socket
attempt("plain", lambda bare: bare, payload)
attempt("http", lambda bare: bare, b"GET /status HTTP/1.0\r\n\r\n")
attempt("stranger", context(), payload)
attempt("forger", context(certificate), payload)
"""


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._path}",)


def as_other(*argv: str, enter: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*enter, *OTHER, *argv], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """His own, by an authority of his own; one file with its key."""
    folder = tmp_path_factory.mktemp("forged")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=night", "-keyout", "key", "-out", "crt"],
        cwd=folder, capture_output=True, check=True,
    )  # fmt: skip
    both = Path("/tmp") / f"forged-{os.getpid()}.pem"
    both.write_text((folder / "crt").read_text() + (folder / "key").read_text())
    os.chown(both, 54321, 54321)
    yield both
    both.unlink()


def port_of(lab: Lab) -> str:
    return (lab.run_folder() / "port").read_text().strip()


def test_he_does_not_join_and_makes_nobody_run_his_code(lab: Lab, certificate: Path):
    if PYTHON is None or shutil.which("openssl") is None:
        pytest.skip("no Python or openssl that somebody else may use")
    lab.boot("gpu1", gpus=2)
    session = start(lab, [gated(lab, "1"), gated(lab, "2", gate="late")])
    begun(lab, "1", "2")
    trap = Path("/tmp") / f"sprung-{os.getpid()}"
    payload = pickle.dumps(Trap(str(trap))).hex()

    knocked = as_other(
        PYTHON, "-I", "-c", KNOCK, port_of(lab), str(certificate), payload, enter=lab.enter()
    )

    assert knocked.returncode == 0, knocked.stderr
    outcomes = knocked.stdout.splitlines()
    assert [line.split()[0] for line in outcomes] == ["plain", "http", "stranger", "forger"]
    assert not [line for line in outcomes if "was let in" in line]
    assert not trap.exists()
    session.says("was not let in")
    open_gate(lab)
    session.says("job 1 ok")  # nobody who is there was disturbed
    open_gate(lab, "late")
    assert session.end().status == 0


def test_he_reads_nothing_of_what_lets_agents_join(lab: Lab):
    [host] = lab.boot("gpu1", gpus=1)
    session = start(lab, [gated(lab, "1")])
    begun(lab, "1")
    state = lab.state
    for parent in [*state.parents, lab.base]:  # he may come as far as the folders of ours
        parent.chmod(0o755)
    secret = [
        state / "authority" / "authority.pem",
        lab.run_folder() / "join",
        lab.run_folder() / "events.jsonl",
        *(state / "agents" / "runs").glob("*/join"),
    ]

    here = as_other("cat", *map(str, secret), enter=lab.enter())
    there = as_other("sh", "-c", "cat /tmp/smartsched-0/*/lease; ls /tmp/smartsched-0",
                     enter=host.enter)  # fmt: skip

    assert len(secret) == 4
    assert (here.stdout, there.stdout) == ("", "")
    assert here.stderr.count("Permission denied") == len(secret)
    assert "Permission denied" in there.stderr
    open_gate(lab)
    assert session.end().status == 0


def test_he_finds_no_port_of_an_agent_and_one_of_the_dispatcher(lab: Lab):
    [host] = lab.boot("gpu1", gpus=1)
    session = start(lab, [gated(lab, "1")])
    begun(lab, "1")

    here = as_other("ss", "-Hltn", enter=lab.enter()).stdout.split("\n")
    there = as_other("ss", "-Hltn", enter=host.enter).stdout.split("\n")

    ports = [line.split()[3].rpartition(":")[2] for line in here if line]
    assert ports == [port_of(lab)]
    assert [line.split()[3].rpartition(":")[2] for line in there if line] == ["22"]  # its sshd
    open_gate(lab)
    assert session.end().status == 0


def test_he_does_not_end_or_renew_what_runs_on_a_host(lab: Lab):
    [host] = lab.boot("gpu1", gpus=1)
    session = start(lab, [gated(lab, "1")])
    begun(lab, "1")
    pids = [str(pid) for pid in host.processes("smartsched")]

    killed = as_other("sh", "-c", f"kill -9 {' '.join(pids)}", enter=lab.enter())
    wrote = as_other(
        "sh", "-c", "echo 1 > /tmp/smartsched-0/x; rm -r /tmp/smartsched-0", enter=host.enter
    )

    assert killed.returncode != 0
    assert "Permission denied" in wrote.stderr
    open_gate(lab)
    assert session.end().status == 0
    wait_until(lambda: not host.agents(), "its agent ends with the run")
