"""A dispatcher of several hosts that dies, and the one that goes on with its run."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.harness import Session
from tests.cluster.runs import (
    all_once,
    begun,
    crash,
    dump,
    exits,
    gated,
    nobody_is_left,
    open_gate,
    outcomes,
    start,
)
from tests.lab import Lab
from tests.waiting import wait_until

LISTEN = """\
import socket, sys
listening = socket.create_server(("", int(sys.argv[1])))
print("up", flush=True)
sys.stdin.read()
"""


@contextmanager
def somebody_at(lab: Lab, port: int) -> Iterator[None]:
    """Another program listens there meanwhile."""
    argv = [*lab.enter(), sys.executable, "-c", LISTEN, str(port)]
    with subprocess.Popen(
        argv, env=lab.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield
        process.kill()


def port_of(lab: Lab) -> int:
    return int((lab.run_folder() / "port").read_text())


def resumed(lab: Lab, *options: str) -> Session:
    return lab.start("--resume", *options)


def test_a_resumed_dispatcher_rejoins_the_agents_and_adopts_what_runs(lab: Lab):
    hosts = lab.boot("gpu1", "gpu2", gpus=2)
    jobs = [gated(lab, "1"), gated(lab, "2", gate="early"), gated(lab, "3"), gated(lab, "4")]
    jobs[1] += " --exit 3"
    session = start(lab, [*jobs, lab.accounts.job("5")])
    begun(lab, "1", "2", "3", "4")
    agents = [host.agent() for host in hosts]

    crash(lab, session)
    open_gate(lab, "early")
    wait_until(lambda: "2" in lab.accounts.ended(), "the second ends meanwhile")
    session = resumed(lab)
    session.says("job 2 failed: exit status 3")
    begun(lab, "5")
    assert [host.agent() for host in hosts] == agents
    open_gate(lab)

    done = session.end()
    assert done.status == 1, dump(lab)
    all_once(lab, "12345")
    assert outcomes(lab) == {1: "ok", 2: "failed", 3: "ok", 4: "ok", 5: "ok"}
    assert exits(lab)[2] == {"exited": 3}
    nobody_is_left(lab)


def test_agents_find_a_dispatcher_that_is_resumed_on_another_port(lab: Lab):
    [gpu1] = lab.boot("gpu1", gpus=2)
    session = start(lab, [gated(lab, "1"), gated(lab, "2")])
    begun(lab, "1", "2")
    agent, port = gpu1.agent(), port_of(lab)

    crash(lab, session)
    with somebody_at(lab, port):
        session = resumed(lab)
        session.says("gpu1 is here")
        assert port_of(lab) != port
        assert gpu1.agent() == agent
        open_gate(lab)

        assert session.end().status == 0, dump(lab)
    all_once(lab, "12")
    nobody_is_left(lab)


def test_agents_leave_when_their_dispatcher_is_gone_for_good_and_what_ended_is_not_forgotten(
    lab: Lab,
):
    [gpu1] = lab.boot("gpu1", gpus=3)
    endless = gated(lab, "3", gate="never")
    commands = [gated(lab, "1"), gated(lab, "2", "--exit", "4"), endless, lab.accounts.job("4")]
    session = start(lab, commands)
    begun(lab, "1", "2", "3")

    crash(lab, session)
    open_gate(lab)
    wait_until(lambda: gpu1.processes() == [], "nothing is left there", session.dump)
    open_gate(lab, "never")
    session = resumed(lab)

    done = session.end()
    assert done.status == 1, dump(lab)
    all_once(lab, "1234", but="3")
    assert "job 3 is lost: its host was out of reach for longer than --lease" in done.err
    assert outcomes(lab) == {1: "ok", 2: "failed", 3: "ok", 4: "ok"}
    assert exits(lab)[2] == {"exited": 4}
    nobody_is_left(lab)
