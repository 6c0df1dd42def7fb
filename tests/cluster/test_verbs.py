"""What can be asked of several hosts: a look at them, who is there, and one more by hand."""

import json
import os
import subprocess
import sys

from tests.cli.harness import MOMENT, ROOT
from tests.lab import Lab
from tests.stub_nvml import StubGpu
from tests.waiting import wait_until

WAITS = "while ! test -e go; do sleep 0.05; done"


def test_a_look_at_hosts_shows_their_gpus_and_leaves_nothing_behind(lab: Lab):
    one, two = lab.boot("gpu1", "gpu2", gpus=2)

    with one.stranger(0):
        done = lab.run(
            "--dry-run", "--json", "--hosts", "gpu1,gpu2", *MOMENT, commands=["a", "b", "c", "d"]
        )

    assert done.status == 0, done.err
    found = json.loads(done.out)
    verdicts = {gpu["gpu"]: gpu["verdict"] for gpu in found["gpus"]}
    assert verdicts == {
        "gpu1/0": "BUSY", "gpu1/1": "FREE", "gpu2/0": "FREE", "gpu2/1": "FREE",
    }  # fmt: skip
    wait_until(lambda: not one.agents() and not two.agents(), "agents are gone")
    assert list((lab.state / "runs").iterdir()) == []
    assert list((lab.state / "agents" / "runs").iterdir()) == []


def test_a_look_says_which_hosts_cannot_be_seen(lab: Lab):
    _, two = lab.boot("gpu1", "gpu2", gpus=1)
    two.power_off()

    done = lab.run("--dry-run", "--hosts", "gpu1,gpu2", *MOMENT, commands=["a"])

    assert done.status == 0
    assert "cannot reach gpu2" in done.err
    assert "gpu1/0" in done.out


def test_a_look_at_hosts_of_which_none_can_be_seen_fails_in_a_line(lab: Lab):
    [host] = lab.boot("gpu1", gpus=1)
    host.power_off()

    done = lab.run("--dry-run", "--hosts", "gpu1", *MOMENT, commands=["a"])

    assert done.status == 255
    assert done.err.splitlines()[-1] == "smartsched: no host's GPUs could be seen"


def test_hosts_of_a_run_are_shown_and_another_one_joins_by_hand(lab: Lab):
    _, two = lab.boot("gpu1", "gpu2", gpus=1)
    listing = lab.list_of([WAITS] * 2)
    session = lab.start("--hosts", "gpu1", *MOMENT, str(listing))
    session.says("job 1 started on GPU gpu1/0")

    hosts = json.loads(lab.run("hosts", "--json").out)
    agent = subprocess.Popen(
        [*two.enter, sys.executable, "-m", "smartsched", "agent", "--join", hosts["join"]],
        env=two.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    session.says("job 2 started on GPU gpu2/0")
    table = lab.run("hosts").out

    assert [host["host"] for host in hosts["hosts"]] == ["gpu1"]
    assert [line.split()[:2] for line in table.splitlines()[1:3]] == [
        ["gpu1", "here"],
        ["gpu2", "here"],
    ]
    (lab.folder / "go").touch()
    assert session.end().status == 0
    agent.communicate(timeout=30)
    assert agent.returncode == 0


def test_a_run_of_one_box_has_no_hosts_to_show(lab: Lab):
    lab.machine.add_gpu(StubGpu(0))
    session = lab.start(*MOMENT, str(lab.list_of([WAITS])))
    session.says("started")

    done = lab.run("hosts")
    (lab.folder / "go").touch()

    assert done.status == 2
    assert "uses this box alone" in done.err
    assert session.end().status == 0


def test_without_the_packages_it_says_what_to_install(lab: Lab):
    hidden = lab.base / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import sys\nfor name in ('distributed', 'cryptography'): sys.modules[name] = None\n"
    )
    path = os.pathsep.join([str(hidden), str(ROOT)])

    done = lab.run("--hosts", "gpu1", commands=["true"], PYTHONPATH=path)

    assert done.status == 2, done.err
    assert done.err == (
        "smartsched: --hosts needs more packages: pip install 'smartsched[cluster]'\n"
    )


def test_a_run_of_one_box_imports_nothing_of_the_engine(lab: Lab):
    lab.machine.add_gpu(StubGpu(0))

    done = lab.run("-v", *MOMENT, commands=["true"], PYTHONPROFILEIMPORTTIME="1")

    assert done.status == 0
    names = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "smartsched.loop" in names
    assert not {n for n in names if n.split(".")[0] in ("distributed", "dask", "cryptography")}


def test_one_command_is_run_on_whichever_host_has_a_free_gpu(lab: Lab):
    one, _ = lab.boot("gpu1", "gpu2", gpus=1)

    with one.stranger(0):
        done = lab.run("--hosts", "gpu1,gpu2", *MOMENT, "--", "sh", "-c", "hostname; exit 7")

    assert done.status == 7
    assert [log.read_text() for log in lab.job_logs()] == ["gpu2\n"]
