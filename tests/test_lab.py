"""The pretend hosts are hosts: what tests of several rely on, shown on the lab itself."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.harness import MOMENT, ROOT, alive
from tests.lab import HEAD_ADDRESS, Colleagues, Host, HostIsOffError, Lab
from tests.lab.spaces import members
from tests.stub_nvml import GIB, StubGpu
from tests.waiting import PATIENCE_SECONDS, wait_until

# Long enough for whatever comes over a link that is not cut, and for what retransmits.
A_WHILE_SECONDS = 1.0


@contextmanager
def talking(lab: Lab, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """An ssh that is talked to by its streams."""
    with lab.ssh(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: "subprocess.Popen[bytes]", line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.flush()


def heard(process: "subprocess.Popen[bytes]", within_seconds: float = PATIENCE_SECONDS) -> bytes:
    """What comes next; empty when the stream was closed. Fails when nothing comes."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], within_seconds)
    assert ready, "nothing comes"
    return os.read(process.stdout.fileno(), 4096)


def is_silent(process: "subprocess.Popen[bytes]") -> bool:
    """Nothing comes, neither words nor an end."""
    assert process.stdout is not None
    return not select.select([process.stdout], [], [], A_WHILE_SECONDS)[0]


def ssh(lab: Lab, *arguments: str, said: bytes = b"") -> tuple[int, str, str]:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with lab.ssh(*arguments, **streams) as process:
        out, err = process.communicate(said, timeout=PATIENCE_SECONDS)
        return process.returncode, out.decode(), err.decode()


def test_hosts_have_a_name_an_address_and_pids_of_their_own(lab: Lab):
    hosts = lab.boot("gpu1", "gpu2", "gpu3")
    first = [host.run("sh", "-c", "hostname; hostname -I; echo /proc/[0-9]*") for host in hosts]

    for host, done in zip(hosts, first, strict=True):
        name, address, processes = done.out.splitlines()
        assert (name, address.split()[0]) == (host.name, host.address)
        assert len(processes.split()) == 2  # PID 1 and the one that asks
    assert len({host.address for host in hosts}) == 3


def test_hosts_know_each_other_and_the_dispatchers_host_by_name(lab: Lab):
    gpu1, gpu2 = lab.boot("gpu1", "gpu2")
    port = "import socket, sys; print(socket.create_connection((sys.argv[1], 22)).getpeername()[0])"

    there = gpu1.run(sys.executable, "-c", port, "gpu2")
    names = gpu2.run("getent", "hosts", "head", "gpu1")

    assert there.out.strip() == gpu2.address
    assert names.out.split() == [HEAD_ADDRESS, "head", gpu1.address, "gpu1"]


def test_boots_differ_in_id_and_machines_in_theirs(lab: Lab):
    gpu1, gpu2 = lab.boot("gpu1", "gpu2")
    boot_id, machine_id = "/proc/sys/kernel/random/boot_id", "/etc/machine-id"
    first, other = gpu1.run("cat", boot_id, machine_id), gpu2.run("cat", boot_id, machine_id)
    here = {Path(path).read_text().strip() for path in (boot_id, machine_id) if Path(path).exists()}

    gpu1.power_off()
    gpu1.power_on()
    again = gpu1.run("cat", boot_id, machine_id)

    told = [*first.out.split(), *other.out.split(), again.out.split()[0]]
    assert len({*told, *here}) == len(told) + len(here)
    assert again.out.split()[1:] == first.out.split()[1:]


def test_files_for_the_moment_are_the_hosts_own_and_gone_after_a_boot(lab: Lab):
    gpu1, gpu2 = lab.boot("gpu1", "gpu2")
    places = ["/tmp", "/run", "/dev/shm"]
    for place in places:
        assert gpu1.run("touch", f"{place}/lab-test").status == 0
    look = ["sh", "-c", "ls -d /tmp/lab-test /run/lab-test /dev/shm/lab-test | wc -l"]

    assert [host.run(*look).out.strip() for host in (gpu1, gpu2)] == ["3", "0"]
    assert not any((Path(place) / "lab-test").exists() for place in places)
    gpu1.power_off()
    gpu1.power_on()
    assert gpu1.run(*look).out.strip() == "0"


def test_the_home_is_shared_unless_it_is_the_hosts_own(lab: Lab):
    [shared] = lab.boot("gpu1")
    [alone] = lab.boot("gpu2", private_home=True)
    for host in (shared, alone):
        host.run("sh", "-c", "echo of $(hostname) > ~/note")

    assert (lab.shared / "home" / "note").read_text() == "of gpu1\n"
    assert alone.run("sh", "-c", "cat ~/note; ls ~/..").out == "of gpu2\nhome\n"
    assert lab.folder.is_dir()


def test_a_cut_link_loses_everything_in_silence_and_a_healed_one_goes_on(lab: Lab):
    [gpu1] = lab.boot("gpu1")
    with talking(lab, "gpu1", "exec cat") as echo:
        say(echo, b"before\n")
        assert heard(echo) == b"before\n"

        gpu1.cut()
        say(echo, b"meanwhile\n")
        assert is_silent(echo)
        assert echo.poll() is None
        gpu1.heal()

        assert heard(echo) == b"meanwhile\n"


def test_a_cut_host_runs_on(lab: Lab):
    [gpu1] = lab.boot("gpu1")
    with talking(lab, "gpu1", "echo up; until test -e go; do sleep 0.01; done; touch seen") as it:
        assert heard(it) == b"up\n"
        gpu1.cut()
        (lab.shared / "home" / "go").touch()

        wait_until(lambda: (lab.shared / "home" / "seen").exists(), "it saw the file")
        assert is_silent(it)


def test_a_host_without_power_runs_nothing_and_says_nothing(lab: Lab):
    gpu1, gpu2 = lab.boot("gpu1", "gpu2")
    with talking(lab, "gpu1", "sleep 600 & setsid sleep 600 & echo $$; exec cat") as echo:
        assert heard(echo).strip().isdigit()
        wait_until(lambda: len(gpu1.processes("sleep 600")) == 2, "they sleep")
        sleepers = gpu1.processes("sleep 600")
        gpu1.freeze(sleepers[0])

        gpu1.power_off()

        assert not any(alive(pid) for pid in sleepers)
        assert is_silent(echo)  # as long as nobody tells the client, it waits
    assert gpu2.run("true").status == 0
    with pytest.raises(HostIsOffError), gpu1.stranger(0):
        pass


def test_a_host_that_has_booted_answers_and_is_empty(lab: Lab):
    [gpu1] = lab.boot("gpu1")
    visit = gpu1.stranger(0)
    with visit:
        gpu1.power_off()
        gpu1.power_on()

        assert ssh(lab, "gpu1", "echo anew")[:2] == (0, "anew\n")
        assert gpu1.machine.registered_pids() == frozenset()
    wait_until(lambda: gpu1.processes() == [], "whoever served ssh has left")


def test_an_old_connection_to_a_host_that_has_booted_is_refused(lab: Lab):
    [gpu1] = lab.boot("gpu1")
    with talking(lab, "gpu1", "exec cat") as echo:
        say(echo, b"before\n")
        assert heard(echo) == b"before\n"
        gpu1.power_off()
        gpu1.power_on()

        say(echo, b"after\n")

        assert echo.wait(PATIENCE_SECONDS) == 255


def test_a_process_that_is_frozen_does_nothing_until_it_is_thawed(lab: Lab):
    [gpu1] = lab.boot("gpu1")
    with talking(lab, "gpu1", "exec cat") as echo:
        say(echo, b"before\n")
        assert heard(echo) == b"before\n"
        [cat] = gpu1.processes("^cat$")

        gpu1.freeze(cat)
        say(echo, b"meanwhile\n")
        assert is_silent(echo)
        gpu1.thaw(cat)

        assert heard(echo) == b"meanwhile\n"


def test_ssh_hands_on_all_streams_and_the_status(lab: Lab):
    lab.boot("gpu1")
    text = os.urandom(1 << 20)

    status, out, err = ssh(lab, "gpu1", "sha256sum; echo no >&2; exit 7", said=text)
    here = subprocess.run(["sha256sum"], input=text, capture_output=True, check=True)

    assert (status, out, err) == (7, here.stdout.decode(), "no\n")


def test_ssh_takes_its_options_and_joins_the_words_of_the_command(lab: Lab):
    lab.boot("gpu1")
    options = ["-x", "-oBatchMode=yes", "-o", "ConnectTimeout 5", "-p22", "-T"]

    done = ssh(lab, *options, "me@gpu1", "--", "echo", "'a  b'", "$((1+1))")

    assert done == (0, "a  b 2\n", "")
    assert lab.ssh_calls()[-1][:2] == options[:2]


def test_a_command_by_ssh_finds_a_clean_environment_in_the_home(lab: Lab):
    [gpu1] = lab.boot("gpu1")
    lab.env["OF_THE_DISPATCHER"] = "1"

    status, out, _ = ssh(lab, "gpu1", "pwd; env")
    home, *variables = out.splitlines()
    env = dict(line.split("=", 1) for line in variables)

    assert (status, home) == (0, str(lab.shared / "home"))
    assert "OF_THE_DISPATCHER" not in env
    client, client_port, server, port = env["SSH_CONNECTION"].split()
    assert (client, server, port) == (HEAD_ADDRESS, gpu1.address, "22")
    assert env["SSH_CLIENT"] == f"{client} {client_port} {port}"


@pytest.mark.parametrize("what", ["power_off", "cut"])
def test_ssh_gives_up_on_a_host_that_does_not_answer(lab: Lab, what: str):
    [gpu3] = lab.boot("gpu3")
    getattr(gpu3, what)()

    done = ssh(lab, "gpu3", "true")

    assert done == (255, "", "ssh: connect to host gpu3 port 22: Connection timed out\r\n")


def test_ssh_knows_no_host_that_is_not_there(lab: Lab):
    status, _, err = ssh(lab, "gpu9", "true")

    assert status == 255
    assert err.startswith("ssh: Could not resolve hostname gpu9: ")


def test_ssh_that_was_told_to_asks_whether_the_server_is_alive(lab: Lab):
    [gpu1] = lab.boot("gpu1")
    options = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"]
    with talking(lab, *options, "gpu1", "exec cat") as echo:
        say(echo, b"before\n")
        assert heard(echo) == b"before\n"

        gpu1.cut()

        assert echo.wait(PATIENCE_SECONDS) == 255


def test_a_command_whose_ssh_was_killed_goes_on_and_finds_its_streams_closed(lab: Lab):
    [gpu1] = lab.boot("gpu1")
    command = "trap '' PIPE; echo up; read line; echo lost 2> why || touch went-on"
    with talking(lab, "gpu1", command) as it:
        assert heard(it) == b"up\n"
        it.kill()

        wait_until(lambda: (lab.shared / "home" / "went-on").exists(), "it went on")
    wait_until(lambda: gpu1.processes() == [], "it has ended")


def test_ssh_lasts_until_the_output_is_closed(lab: Lab):
    lab.boot("gpu1")
    leave = "until test -e go; do sleep 0.01; done"

    assert ssh(lab, "gpu1", f"({leave}) < /dev/null > log 2>&1 & echo left")[1] == "left\n"
    with talking(lab, "gpu1", f"({leave}) & echo left") as it:
        assert heard(it) == b"left\n"
        assert is_silent(it)
        (lab.shared / "home" / "go").touch()
        assert heard(it) == b""


def test_each_host_has_gpus_of_its_own(lab: Lab):
    hosts = lab.boot("gpu1", "gpu2") + lab.boot("gpu3", gpus=2)

    seen = [json.loads(host.smartsched("sample", "--once").out) for host in hosts]

    uuids = [[gpu["uuid"] for gpu in snapshot["gpus"]] for snapshot in seen]
    assert [len(of_host) for of_host in uuids] == [4, 4, 2]
    assert len({uuid for of_host in uuids for uuid in of_host}) == 10


def test_a_stranger_is_in_the_way_on_his_host_only(lab: Lab):
    hosts = lab.boot("gpu1", "gpu2", gpus=1)
    gpu1 = hosts[0]
    look = ["--dry-run", *MOMENT]

    with gpu1.stranger(0, 40 * GIB) as visit:
        busy, free = [host.smartsched(*look) for host in hosts]

    assert (busy.status, free.status) == (3, 0), busy.out + free.out
    assert "cat" in busy.out  # who it is, as his host knows
    assert gpu1.smartsched(*look).status == 0
    assert (visit.host, visit.uuid) == ("gpu1", gpu1.machine.gpu(0).uuid)
    assert visit.came < visit.left


def test_colleagues_come_and_go_whatever_becomes_of_the_hosts(lab: Lab):
    hosts = lab.boot("gpu1", "gpu2", gpus=2)

    with Colleagues(hosts, seed=3, longest_seconds=0.3) as colleagues:
        wait_until(lambda: len(colleagues.visits) > 2, "some have come")
        hosts[0].power_off()
        had_come = len(colleagues.visits)
        wait_until(lambda: len(colleagues.visits) > had_come + 2, "others have come")

    assert {visit.host for visit in colleagues.visits[had_come + 1 :]} == {"gpu2"}
    wait_until(lambda: hosts[1].processes() == [], "all have left")


def start(host: Host, command: str) -> "subprocess.Popen[bytes]":
    assigned = host.env | {"CUDA_VISIBLE_DEVICES": "0"}
    return subprocess.Popen([*host.enter, "sh", "-c", command], env=assigned)


def test_the_accounts_tell_what_ran_where(lab: Lab):
    [gpu1] = lab.boot("gpu1")

    assert start(gpu1, lab.accounts.job("5", "--exit", "3")).wait() == 3

    begin, started, end = lab.accounts.entries()
    assert [entry.word for entry in (begin, started, end)] == ["begin", "start", "end"]
    assert (end.job, end.attempt, end.host) == ("5", 1, "gpu1")
    assert end.uuids == (gpu1.machine.gpu(0).uuid,)
    assert begin.at < end.at
    assert lab.accounts.ended() == ["5"]
    assert lab.accounts.doubles() == []


def test_a_second_copy_at_the_same_time_is_noticed_and_a_later_one_is_none(lab: Lab):
    gpu1, gpu2 = lab.boot("gpu1", "gpu2", gpus=1)
    job = lab.accounts.job("5", "--until", str(lab.base / "go"))
    first = start(gpu1, job)
    wait_until(lambda: lab.accounts.entries("start"), "it runs")

    second = start(gpu2, job).wait()
    gpu1.power_off()
    first.wait()
    third = start(gpu2, job)
    wait_until(lambda: len(lab.accounts.entries("start")) == 2, "it runs again")
    (lab.base / "go").touch()

    assert (second, third.wait()) == (94, 0)
    assert [entry.host for entry in lab.accounts.doubles()] == ["gpu2"]
    assert lab.accounts.ended() == ["5"]


def test_a_start_beside_a_stranger_is_noticed(lab: Lab):
    [gpu1] = lab.boot("gpu1", gpus=1)
    start(gpu1, lab.accounts.job("1")).wait()
    with gpu1.stranger(0) as visit:
        start(gpu1, lab.accounts.job("2")).wait()
    start(gpu1, lab.accounts.job("3")).wait()

    assert [entry.job for entry in lab.accounts.beside([visit], 0)] == ["2"]
    assert lab.accounts.beside([visit], PATIENCE_SECONDS) == []


def test_an_agent_is_told_from_the_shell_that_starts_it(lab: Lab):
    [gpu1] = lab.boot("gpu1")
    (gpu1.bin / "smartsched").write_text("#!/bin/sh\nread line\n")
    with talking(lab, "gpu1", "smartsched agent --join -; echo $?"):
        wait_until(gpu1.agents, "it runs")
        shells = gpu1.processes("smartsched agent")

        killed = gpu1.kill_agent()

        assert killed in shells
        assert len(shells) == 2
        assert gpu1.agents() == []


def test_smartsched_runs_on_the_dispatchers_host(lab: Lab):
    lab.machine.add_gpu(StubGpu(0))

    session = lab.start(*MOMENT, str(lab.list_of(["hostname > name; pwd"])), "--output", "raw")
    done = session.end()

    assert done.status == 0, done.err
    assert done.out == f"{lab.folder}\n"
    assert lab.lines("name") == ["head"]
    assert lab.events("run_began")[0]["host"] == "head"


def test_the_pid_of_a_session_is_the_dispatchers(lab: Lab):
    lab.machine.add_gpu(StubGpu(0))
    session = lab.start(*MOMENT, str(lab.list_of(["sleep 600"])))
    session.says("job 1 started")

    argv = Path(f"/proc/{session.process.pid}/cmdline").read_bytes().split(b"\0")
    session.signal(signal.SIGTERM)

    assert b"smartsched" in argv
    assert session.end().status != 0
    wait_until(lab.is_quiet, "nobody is left", session.dump)


def test_two_labs_at_once_know_nothing_of_each_other(lab: Lab, tmp_path: Path, stub_library: Path):
    with Lab(tmp_path / "another", stub_library) as another:
        [here], [there] = lab.boot("gpu1"), another.boot("gpu1")
        here.cut()

        assert here.address == there.address
        assert ssh(another, "gpu1", "echo there")[1] == "there\n"


def test_nothing_is_left_of_a_lab_that_was_closed_in_the_middle(tmp_path: Path, lab: Lab):
    gpu1, gpu2 = lab.boot("gpu1", "gpu2")
    lab.machine.add_gpu(StubGpu(0))
    session = lab.start(*MOMENT, str(lab.list_of(["trap '' TERM; sleep 600; sleep 600"])))
    session.says("job 1 started")
    hanging = lab.ssh("gpu1", "sleep 600", stdin=subprocess.DEVNULL)
    wait_until(lambda: gpu1.processes("sleep 600"), "it sleeps")
    gpu1.cut()
    gpu2.power_off()
    ours = [hanging.pid, *gpu1.processes(), *lab.head.processes()]

    lab.close()

    assert len(ours) > 5
    hanging.wait()
    assert not any(alive(pid) for pid in ours)
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_hosts_go_down_with_a_test_that_is_killed(tmp_path: Path, stub_library: Path):
    program = (
        "import sys, time, pathlib, tests.lab as lab\n"
        "lab = lab.Lab(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "[host] = lab.boot('gpu1')\n"
        "print(host.init_pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    lab_and_library = [str(tmp_path / "lab"), str(stub_library)]
    argv = [sys.executable, "-c", program, *lab_and_library]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT) as test:
        assert test.stdout is not None
        init_pid = int(test.stdout.readline())
        network = members("net", init_pid)
        test.kill()

    assert init_pid in network
    wait_until(lambda: not any(alive(pid) for pid in network), "all are gone")
