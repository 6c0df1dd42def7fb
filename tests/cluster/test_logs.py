"""Where logs of jobs on other hosts are to be found."""

from pathlib import Path

from tests.cli.harness import MOMENT
from tests.lab import Lab
from tests.waiting import wait_until

HOSTS = ("--hosts", "gpu1", *MOMENT)


def logs_here(lab: Lab) -> list[str]:
    return [path.read_text() for path in lab.job_logs()]


def test_where_a_file_system_is_shared_the_log_lies_where_it_would_on_one_box(lab: Lab):
    lab.boot("gpu1", gpus=1)

    done = lab.run(*HOSTS, commands=["hostname; echo said"])

    assert done.status == 0, done.err
    assert logs_here(lab) == ["gpu1\nsaid\n"]
    [launched] = lab.events("run_launched")
    assert launched["log"] == str(lab.job_logs()[0])


def test_nothing_but_logs_is_left_in_their_folder(lab: Lab):
    lab.boot("gpu1", gpus=1)

    lab.run(*HOSTS, commands=["true"])

    [folder] = (lab.folder / "smartsched-logs").iterdir()
    assert [path.name for path in folder.iterdir()] == ["0001.log"]


def test_a_folder_for_logs_that_the_user_has_made_stays_though_nothing_came_to_lie_there(lab: Lab):
    lab.boot("gpu1", gpus=1)
    (lab.folder / "mine").mkdir()

    done = lab.run(*HOSTS, "--logs", "mine", "--dry-run", commands=["true"])

    assert done.status == 0, done.err
    assert list((lab.folder / "mine").iterdir()) == []


def test_without_a_shared_file_system_logs_stay_there_and_the_user_is_told_where(lab: Lab):
    lab.boot("gpu1", gpus=1, private_home=True)

    done = lab.run(*HOSTS, "--wd", "/tmp", commands=["echo said; exit 3"])

    assert done.status == 1
    assert logs_here(lab) == []
    [launched] = lab.events("run_launched")
    assert launched["log"].startswith("gpu1:/")
    assert "gpu1:/" in done.err
    asked = lab.run("log", "1")
    path = launched["log"].removeprefix("gpu1:")
    assert asked.status == 2
    assert asked.err == (
        f"smartsched: the log of job 1 lies on gpu1: ssh gpu1 'cat {path}';"
        " --sync-logs brings logs here\n"
    )


def test_logs_are_brought_here_on_demand(lab: Lab):
    lab.boot("gpu1", gpus=1, private_home=True)
    much = "i=0; while [ $i -lt 40000 ]; do echo line $i of a long log; i=$((i+1)); done"

    done = lab.run(*HOSTS, "--wd", "/tmp", "--sync-logs", commands=[much, "echo two; exit 3"])

    assert done.status == 1
    long, short = logs_here(lab)
    assert long.splitlines() == [f"line {i} of a long log" for i in range(40000)]
    assert short == "two\n"
    assert "two" in done.err  # the end of the log of a job that failed


def test_a_log_is_here_while_its_job_goes_on(lab: Lab):
    lab.boot("gpu1", gpus=1, private_home=True)
    listing = lab.list_of(["echo begun; while ! test -e /tmp/go; do sleep 0.05; done; echo over"])
    session = lab.start(*HOSTS, "--wd", "/tmp", "--sync-logs", str(listing))

    wait_until(lambda: logs_here(lab) == ["begun\n"], "its first line is here", session.dump)
    lab.hosts["gpu1"].run("touch", "/tmp/go")

    assert session.end().status == 0
    assert logs_here(lab) == ["begun\nover\n"]


def test_a_log_is_whole_though_the_agent_was_another_one_in_between(lab: Lab):
    [host] = lab.boot("gpu1", gpus=1, private_home=True)
    listing = lab.list_of(["echo begun; while ! test -e /tmp/go; do sleep 0.05; done; echo over"])
    session = lab.start(*HOSTS, "--wd", "/tmp", "--sync-logs", str(listing))
    wait_until(lambda: logs_here(lab) == ["begun\n"], "its first line is here", session.dump)

    host.kill_agent()
    wait_until(lambda: len(lab.ssh_calls()) > 1, "another agent is started", session.dump)
    host.run("touch", "/tmp/go")

    assert session.end().status == 0
    assert logs_here(lab) == ["begun\nover\n"]
    assert Path(lab.events("run_launched")[0]["log"]).parent.parent.name == "smartsched-logs"


def test_a_log_for_which_there_is_no_room_here_stays_there_and_the_user_is_told_where(lab: Lab):
    lab.boot("gpu1", gpus=1, private_home=True)
    (lab.folder / "smartsched-logs" / "night" / "0001.log").mkdir(parents=True)  # in its way
    options = ("--wd", "/tmp", "--sync-logs", "--name", "night")

    done = lab.run(*HOSTS, *options, commands=["echo said"])

    assert done.status == 0, done.err
    [line] = [line for line in done.err.splitlines() if "not all logs have come from gpu1" in line]
    folder = line.rpartition(" in ")[2]
    assert (folder.startswith("/"), Path(folder).name) == (True, "night")
