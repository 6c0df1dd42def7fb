"""Hosts, links, agents and dispatchers that die: nothing runs twice, and nothing is lost."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster.runs import (
    GRACE_SECONDS,
    LEASE_SECONDS,
    MARGIN_SECONDS,
    all_once,
    begun,
    begun_in_vain,
    crash,
    dump,
    gated,
    hosts_of,
    nobody_is_left,
    open_gate,
    outcomes,
    start,
    without_smartsched,
)
from tests.lab import Colleagues, Lab
from tests.stub_nvml import GIB
from tests.waiting import wait_until

# What may lie between a deed and the record of it in the accounts.
SLACK_SECONDS = 0.5
# Reports come every second: as much earlier may the lease end.
REPORTS_SECONDS = 1.1
# What a job's own start takes, from the last look at its GPU to its own first word, on a busy
# machine too; others stay for longer than that.
A_START_SECONDS, LONG_VISIT_SECONDS = 2.0, 10.0
# What a watchdog takes beyond the grace, on a busy machine too (smartsched/edges/watchdog.py).
WATCHDOGS_SECONDS = 4.0


def test_the_death_of_an_agent_is_known_at_once_and_another_adopts_its_jobs(lab: Lab):
    gpu1, _ = lab.boot("gpu1", "gpu2", gpus=2)
    session = start(lab, [gated(lab, job) for job in "1234"])
    begun(lab, *"1234")

    at = time.monotonic()
    killed = gpu1.kill_agent()
    session.says("gpu1: out of reach")
    seconds = time.monotonic() - at
    session.says("still runs on GPU gpu1/0")
    session.says("still runs on GPU gpu1/1")
    assert gpu1.agent() != killed
    open_gate(lab)

    assert session.end().status == 0, dump(lab)
    assert seconds < 1
    all_once(lab, "1234")
    assert set(outcomes(lab).values()) == {"ok"}
    nobody_is_left(lab)


def waits(until: float) -> None:
    """The fault lasts until then (monotonic)."""
    wait_until(lambda: time.monotonic() >= until, "the time has come")


def mixed_jobs(lab: Lab, count: int, seed: int) -> list[str]:
    """Short ones, and some for as long as the gate is closed."""
    pick = random.Random(seed)
    short = ("--mem", str(GIB), "--seconds")
    return [
        gated(lab, str(number))
        if number % 40 == 5
        else lab.accounts.job(str(number), *short, f"{pick.uniform(0.05, 1):.2f}")
        for number in range(1, count + 1)
    ]


def test_no_job_runs_twice_or_is_lost_or_meets_anybody_whatever_dies(lab: Lab):
    count = 200
    off, cut, stopped = hosts = lab.boot("gpu1", "gpu2", "gpu3")
    with Colleagues(hosts, 6, LONG_VISIT_SECONDS) as some, Colleagues(hosts, 7) as others:
        session = start(lab, mixed_jobs(lab, count, seed=6))
        begun(lab, *"12345")
        wait_until(lambda: len(lab.accounts.ended()) > 20, "some have ended", session.dump)

        agent = stopped.agent()
        stopped.freeze(agent)
        off.power_off()
        cut.cut()
        at = time.monotonic()
        waits(at + 3)
        stopped.thaw(agent)
        waits(at + 5)
        crash(lab, session)
        waits(at + 6)
        session = lab.start("--resume")
        waits(at + 9)
        off.power_on()
        waits(at + LEASE_SECONDS + GRACE_SECONDS + WATCHDOGS_SECONDS)
        open_gate(lab)
        waits(at + 20)
        cut.heal()
        done = session.end()

    assert done.status == 0, dump(lab)
    assert lab.accounts.doubles() == []
    assert outcomes(lab) == dict.fromkeys(range(1, count + 1), "ok")
    assert set(lab.accounts.ended()) == {str(n) for n in range(1, count + 1)}
    in_vain = begun_in_vain(lab)
    for entry in in_vain:  # only what the plug or the lease has ended
        assert entry.host in (off.name, cut.name), dump(lab)
        assert entry.at < at + SLACK_SECONDS, dump(lab)
    ends = Counter(lab.accounts.ended())
    at_the_plug = {entry.job for entry in in_vain if entry.host == off.name}
    assert {job for job, times in ends.items() if times > 1} <= at_the_plug
    assert {entry.host for entry in lab.accounts.entries("end")} == set(lab.hosts)
    assert "and was given" not in done.err  # pids of different hosts are told apart
    for entry in lab.accounts.beside([*some.visits, *others.visits], A_START_SECONDS):
        # an agent that was stopped between an order and the start has not looked once more
        assert entry.host == stopped.name, dump(lab)
        assert at < entry.at < at + 3 + A_START_SECONDS, dump(lab)
    assert stopped.agents() == []
    nobody_is_left(lab)


def test_a_host_whose_agent_was_told_to_end_as_before_a_reboot_is_used_again(lab: Lab):
    [gpu1] = lab.boot("gpu1", gpus=2)
    session = start(lab, [gated(lab, "1") + "  # smartsched: gpus=2"])
    begun(lab, "1")

    os.kill(gpu1.agent(), signal.SIGTERM)
    session.says("gpu1: it has left")
    open_gate(lab)

    assert session.end().status == 0, dump(lab)
    assert hosts_of(lab, "1") == ["gpu1", "gpu1"]
    assert outcomes(lab) == {1: "ok"}
    nobody_is_left(lab)


@pytest.mark.skipif(not Path("/etc/machine-id").exists(), reason="machines have no ids here")
@pytest.mark.soak  # leases take their time
def test_another_machine_that_answers_to_a_hosts_name_does_not_make_its_jobs_run_twice(lab: Lab):
    """It knows nothing of them, and they go on until their lease is over."""
    first, other = lab.boot("gpu1", "gpu2", gpus=1, private_home=True)
    session = start(lab, [gated(lab, "1")], "--wd", "/tmp", hosts="gpu1")
    begun(lab, "1")

    lab.head.hosts_file.write_text(f"{other.address} gpu1\n")
    first.kill_agent()
    session.says("gpu1: out of reach: another machine answers to its name; its job is started")
    wait_until(lambda: hosts_of(lab, "1") == ["gpu1", "gpu2"], "it runs on the other", session.dump)
    open_gate(lab)

    assert session.end().status == 0, dump(lab)
    assert lab.accounts.doubles() == []
    assert outcomes(lab) == {1: "ok"}
    nobody_is_left(lab, other)


def test_what_is_out_of_reach_is_stopped_there_before_it_begins_elsewhere(lab: Lab):
    cut, stopped, killed = victims = lab.boot("gpu1", "gpu2", "gpu3", gpus=1)
    lab.boot("gpu4", gpus=3)
    jobs = [str(number) for number in range(1, 7)]
    stubborn = [gated(lab, job, "--ignore-term", gate=f"go-{job}") for job in jobs]
    session = start(lab, stubborn)
    begun(lab, *jobs)
    lost = {host.name: job for job in jobs for host in victims if hosts_of(lab, job) == [host.name]}
    for job in set(jobs) - set(lost.values()):
        open_gate(lab, f"go-{job}")
    wait_until(lambda: len(lab.accounts.ended()) == 3, "there is room elsewhere", session.dump)

    without_smartsched(killed)
    agent = stopped.agent()
    at = time.monotonic()
    cut.cut()
    stopped.freeze(agent)
    killed.kill_agent()
    session.says("gpu1: out of reach")
    assert time.monotonic() - at < 15
    is_there = {host: f"--id {lost[host.name]}[.]" for host in victims}
    wait_until(
        lambda: not any(host.processes(its_job) for host, its_job in is_there.items()),
        "their hosts have stopped them",
        session.dump,
    )
    gone_at = time.monotonic()
    wait_until(lambda: len(lab.accounts.entries("begin")) == 9, "they run again", session.dump)
    for job in lost.values():
        open_gate(lab, f"go-{job}")
    cut.heal()
    stopped.thaw(agent)

    assert session.end().status == 0, dump(lab)
    ends_at = at + LEASE_SECONDS - REPORTS_SECONDS
    all_once(lab, jobs, but=lost.values())
    for job in lost.values():
        [_, again] = [e for e in lab.accounts.entries("begin") if e.job == job]
        assert again.host == "gpu4"
        assert again.at > max(gone_at, ends_at + GRACE_SECONDS + MARGIN_SECONDS)
    assert ends_at < gone_at < at + LEASE_SECONDS + GRACE_SECONDS + WATCHDOGS_SECONDS + 1
    assert set(outcomes(lab).values()) == {"ok"}
    nobody_is_left(lab)


def test_with_on_lost_keep_jobs_go_on_out_of_reach_and_are_taken_up_again(lab: Lab):
    [gpu1] = lab.boot("gpu1", gpus=2)
    session = start(lab, [gated(lab, "1", gate="go-1"), gated(lab, "2")], "--on-lost", "keep")
    begun(lab, "1", "2")
    agent = gpu1.agent()

    gpu1.cut()
    at = time.monotonic()
    session.says("gpu1: out of reach")
    open_gate(lab, "go-1")
    waits(at + LEASE_SECONDS + GRACE_SECONDS + WATCHDOGS_SECONDS)
    gpu1.heal()
    session.says("job 1 ok")
    assert gpu1.agent() == agent
    open_gate(lab)

    assert session.end().status == 0, dump(lab)
    all_once(lab, "12")
    assert lab.events("job_requeued") == []
    nobody_is_left(lab)
