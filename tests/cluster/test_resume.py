"""A dispatcher of several hosts that dies, and the one that goes on with its run."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.harness import MOMENT, Session
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
from tests.stub_nvml import StubGpu
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
    [logs] = (lab.folder / "smartsched-logs").iterdir()
    assert {path.suffix for path in logs.iterdir()} == {".log"}  # no mark of the first one either


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


def test_a_shorter_lease_does_not_count_for_what_began_under_a_longer_one(lab: Lab):
    [gpu1] = lab.boot("gpu1", gpus=1)
    session = start(lab, [gated(lab, "1")], "--lease", "10m")
    begun(lab, "1")

    crash(lab, session)
    session = resumed(lab, "--lease", "10s")
    session.says("started anew after 10m 16s")
    session.says("gpu1 is here")
    gpu1.freeze(gpu1.agent())
    session.says("started anew if nothing is heard of it within 10m 16s")
    gpu1.thaw(gpu1.agent())
    open_gate(lab)

    assert session.end().status == 0, dump(lab)
    all_once(lab, "1")
    nobody_is_left(lab)


def test_who_keeps_jobs_of_lost_hosts_can_say_that_they_are_gone(lab: Lab):
    gpu1, _ = lab.boot("gpu1", "gpu2", gpus=1)
    session = start(lab, [gated(lab, "1"), gated(lab, "2")], "--on-lost", "keep")
    begun(lab, "1", "2")

    crash(lab, session)
    gpu1.power_off()
    session = resumed(lab, "--assume-gone")
    session.says("is lost: its host gpu1 was out of reach")
    assert session.err.count("is lost:") == 1  # the other host has come back
    open_gate(lab)

    assert session.end().status == 0, dump(lab)
    assert lab.accounts.doubles() == []
    assert set(outcomes(lab).values()) == {"ok"}


@pytest.mark.soak  # leases take their time
def test_jobs_without_an_agent_are_gone_once_the_user_says_so(lab: Lab):
    lab.boot("gpu1", gpus=1)
    lab.machine.add_gpu(StubGpu(0, uuid="GPU-of-the-head"))
    until_told = f"echo here >> done; until test -e {lab.base}/go; do sleep 0.05; done"
    listing = str(lab.list_of([f"{until_told}; echo there >> done"]))
    session = lab.start(*MOMENT, listing)
    wait_until(lambda: lab.lines("done") == ["here"], "it runs", session.dump)
    session.says("job 1 started")
    crash(lab, session)

    refused = lab.run("--resume", "--hosts", "gpu1")
    open_gate(lab)
    wait_until(lambda: len(lab.lines("done")) == 2, "it is gone", session.dump)
    done = lab.run("--resume", "--hosts", "gpu1", "--assume-gone")

    assert refused.status == 255
    assert "let them end first" in refused.err
    assert done.status == 0, dump(lab)
    assert lab.lines("done") == 2 * ["here", "there"]
