"""Runs on several hosts: who is used, for what, and where."""

from itertools import combinations

from tests.cluster.runs import (
    accounted,
    all_once,
    another_version,
    begun,
    dump,
    gated,
    hosts_of,
    lines_about,
    nobody_is_left,
    open_gate,
    start,
    started,
    without_smartsched,
)
from tests.lab import Entry, Lab
from tests.lab.host import has_program
from tests.waiting import wait_until


def test_a_host_that_cannot_be_used_gets_one_line_and_is_tried_again(lab: Lab):
    _, bare, old, late = lab.boot("gpu1", "bare", "old", "late", gpus=1)
    without_smartsched(bare)
    another_version(old)
    late.power_off()

    commands = [gated(lab, job) for job in "123"]
    session = start(lab, commands, hosts="gpu1,bare,old,late,nowhere")
    begun(lab, "1")
    session.says("there is no smartsched on bare")
    session.says("cannot start on old: this host has smartsched 0.0.1")
    session.says("cannot reach nowhere")
    session.says("cannot reach late")
    late.power_on()
    has_program(bare.bin)
    begun(lab, "2", "3")
    open_gate(lab)

    done = session.end()
    assert done.status == 0, dump(lab)
    all_once(lab, "123")
    assert {host for job in "123" for host in hosts_of(lab, job)} == {"gpu1", "bare", "late"}
    said = {name: len(lines_about(done.err, name)) for name in ("bare", "late", "old", "nowhere")}
    # The second line: it is here. While it starts, its port may be closed, which is news.
    late_again = "Connection refused" in done.err
    assert said == {"bare": 2, "late": 2 + late_again, "old": 1, "nowhere": 1}, done.err
    nobody_is_left(lab)


def test_a_machine_that_is_named_twice_is_used_once(lab: Lab):
    [gpu1] = lab.boot("gpu1", gpus=1)
    lab.head.name("twin", gpu1.address)
    session = start(lab, [gated(lab, "1"), lab.accounts.job("2")], hosts="gpu1,twin")
    begun(lab, "1")

    session.says("it is the same machine as")
    wait_until(lambda: len(gpu1.agents()) == 1, "one agent has left", session.dump)
    open_gate(lab)

    done = session.end()
    assert done.status == 0, dump(lab)
    all_once(lab, "12")
    told = [line for line in done.err.splitlines() if "it is the same machine as" in line]
    assert sum("waiting: " not in line for line in told) == 1
    first, second = (e for word in ("start",) for e in lab.accounts.entries(word))
    assert first.uuids == second.uuids
    nobody_is_left(lab)


def test_a_job_of_several_gpus_has_them_on_one_host_and_one_of_none_runs_anywhere(lab: Lab):
    lab.boot("gpu1", "gpu2", gpus=4)
    threes = [gated(lab, job) + "  # smartsched: gpus=3" for job in ("1", "2")]
    nones = [gated(lab, job) + "  # smartsched: gpus=0" for job in ("3", "4", "5", "6")]
    eight = lab.accounts.job("8") + "  # smartsched: gpus=8"
    session = start(lab, [eight, *threes, lab.accounts.job("7") + "  # smartsched: gpus=4", *nones])

    begun(lab, *"123456")
    session.says("job 1 failed")
    assert "7" not in started(lab)
    open_gate(lab)
    done = session.end()

    assert done.status == 1, dump(lab)
    all_once(lab, "1234567")
    [why] = lines_about(done.err, "job 1 failed")[:1]
    assert "needs 8 GPUs" in why, why
    given = {entry.job: entry for entry in lab.accounts.entries("start")}
    assert [len(given[job].uuids) for job in "1237"] == [3, 3, 0, 4]
    for entry in given.values():
        assert all(uuid.startswith(f"GPU-0000000{entry.host[-1]}") for uuid in entry.uuids)
    assert {given["1"].host, given["2"].host} == {"gpu1", "gpu2"}
    assert {given[job].host for job in "3456"} == {"gpu1", "gpu2"}
    nobody_is_left(lab)


def test_commands_run_where_they_would_here_or_in_another_folder_that_is_there(lab: Lab):
    shared, alone, bare = lab.boot("gpu1", gpus=1) + lab.boot(
        "gpu2", "gpu3", gpus=1, private_home=True
    )
    assert alone.run("mkdir", "/tmp/there").status == 0
    commands = [
        f"echo of $(hostname); pwd > {lab.base}/$(hostname); {gated(lab, job)}" for job in "12"
    ]
    nones = [gated(lab, job) + "  # smartsched: gpus=0" for job in "345"]
    session = start(lab, [*commands, *nones], "--wd", "/tmp/there")
    begun(lab, *"12345")
    session.says("gpu3: there is no folder /tmp/there, nor")
    session.says(f"gpu1: there is no /tmp/there; commands run in {lab.folder} there")
    assert "gpu2: there is no" not in session.err
    open_gate(lab)

    done = session.end()
    assert done.status == 0, dump(lab)
    all_once(lab, "12345")
    assert len(lines_about(done.err, bare.name)) == 1
    assert (lab.base / "gpu1").read_text() == f"{lab.folder}\n"
    assert (lab.base / "gpu2").read_text() == "/tmp/there\n"
    logs = {log.name: log.read_text() for log in lab.job_logs()}
    [job] = [job for job in "12" if hosts_of(lab, job) == [shared.name]]
    assert logs[f"000{job}.log"] == "of gpu1\n"
    nobody_is_left(lab)


def test_a_command_whose_own_folder_is_not_there_runs_in_no_other(lab: Lab):
    [gpu1] = lab.boot("gpu1", gpus=1, private_home=True)
    session = start(lab, [gated(lab, "1")], "--wd", "/tmp")
    begun(lab, "1")

    added = lab.run("add", "--", "touch", "mistaken")
    open_gate(lab)

    done = session.end()
    assert added.status == 0, added.err
    assert done.status == 1, dump(lab)
    assert f"No such file or directory: {lab.folder} on GPU gpu1/0" in done.err
    assert gpu1.run("ls", "/tmp/mistaken").status != 0
    nobody_is_left(lab)


def test_two_dispatchers_never_have_a_job_on_the_same_gpu(lab: Lab):
    lab.boot("gpu1", "gpu2", gpus=2)
    jobs = [str(number) for number in range(1, 33)]
    commands = [lab.accounts.job(job, "--seconds", "0.3") for job in jobs]

    sessions = [start(lab, commands[:16]), start(lab, commands[16:])]

    assert [session.end().status for session in sessions] == [0, 0], dump(lab)
    all_once(lab, jobs)
    for one, other in combinations(stays(lab), 2):
        assert one[0].uuids != other[0].uuids or apart(one, other), accounted(lab)
    nobody_is_left(lab)


def stays(lab: Lab) -> list[tuple[Entry, Entry]]:
    """The beginning and the end of each job."""
    ends = {entry.job: entry for entry in lab.accounts.entries("end")}
    return [(entry, ends[entry.job]) for entry in lab.accounts.entries("start")]


def apart(one: tuple[Entry, Entry], other: tuple[Entry, Entry]) -> bool:
    return one[1].at <= other[0].at or other[1].at <= one[0].at
