"""Lists of commands through the real program, on stub GPUs."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sys

import pytest

from tests.cli.harness import MOMENT, PROGRAM, Box, a_pipe, alive
from tests.stub_nvml import GIB
from tests.waiting import wait_until

# A job of one second that is said to have taken this long was not noticed when it ended.
HELD_UP_SECONDS = 6


def test_every_command_of_a_list_runs_once_and_its_failures_are_the_exit_status(box: Box):
    commands = [f"echo {n} >> done; exit {n % 3 // 2}" for n in range(12)]

    done = box.run(*MOMENT, "--no-guard", commands=commands)

    assert done.status == 4
    assert sorted(map(int, (box.folder / "done").read_text().split())) == list(range(12))
    assert "8 jobs ok, 4 failed" in done.err


def test_more_failures_than_a_status_can_tell_are_101(box: Box):
    assert box.run(*MOMENT, "-q", "--no-guard", commands=["false"] * 102).status == 101


def test_files_are_read_one_after_the_other_and_a_dash_is_stdin(box: Box):
    first, last = box.list_of(["echo first"]), box.list_of(["echo last"])

    done = box.run(
        *MOMENT, "--gpus", "0", "--output", "tag", str(first), "-", str(last), commands=["echo in"]
    )

    assert [line.split()[-1] for line in done.out.splitlines()] == ["first", "in", "last"]


def test_gpu_ids_may_stand_apart_and_a_file_may_follow_them(box: Box):
    listing = box.list_of(["echo $CUDA_VISIBLE_DEVICES"] * 6)

    done = box.run(*MOMENT, "--output", "raw", "--gpus", "1", "3", str(listing))

    assert set(done.out.split()) == {"1", "3"}


def test_odd_lines_run_as_their_writer_meant_them_and_bad_ones_are_named(box: Box):
    commands: list[str | bytes] = [
        "",
        "   # a comment \\",
        "echo one \\",
        "  and the same",
        b"echo crlf\r",
        b"printf '%s' '\xff\xfe' | od -An -tx1",
        b"echo nul\0 here",
        "echo pipe | tr p P && echo $((6*7)) > file; cat file",
        "  indented() { echo indented; }; indented",
    ]

    done = box.run(*MOMENT, "--gpus", "0", "--output", "raw", commands=commands)

    assert done.out.split("\n") == [
        "one and the same", "crlf", " ff fe", "PiPe", "42", "indented", "",
    ]  # fmt: skip
    assert "stdin:7: holds a NUL byte" in done.err
    assert done.status == 1


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1", "C.UTF-8"])
def test_bytes_pass_through_in_any_locale(box: Box, locale: str):
    command = "printf '%s' 'gr\xfc\xdf \u2603' | od -An -tx1".encode() + b" # \xff"

    done = box.run(*MOMENT, "--output", "raw", commands=[command], LC_ALL=locale, LANG=locale)

    assert done.out.split() == ["67", "72", "c3", "bc", "c3", "9f", "20", "e2", "98", "83"]
    assert done.status == 0


def test_a_line_longer_than_an_argument_may_be_runs_from_a_script(box: Box):
    long = "x" * (200 * 1024)

    command = f"printf {long} | wc -c; until test -e go; do sleep 0.01; done"
    session = box.start(*MOMENT, "--output", "raw", str(box.list_of([command])))
    session.says(str(len(long)))
    [script] = box.run_folder().glob("jobs/*.script")
    mode = stat.S_IMODE(script.stat().st_mode)
    (box.folder / "go").touch()

    assert session.end().status == 0
    assert mode == 0o600
    assert list(box.run_folder().glob("jobs/*")) == []
    assert stat.S_IMODE(box.state.stat().st_mode) == 0o700


def test_each_line_of_a_pipe_starts_as_it_arrives(box: Box):
    with a_pipe() as (reading, writing):
        session = box.start(*MOMENT, "--output", "raw", stdin=reading)
        os.close(reading)
        for word in ("early", "late"):
            os.write(writing, f"echo {word}\n".encode())
            session.says(word)
        assert session.process.poll() is None
        os.close(writing)

        assert session.end().status == 0


def test_a_job_sees_its_gpu_and_its_names_and_nothing_on_its_stdin(box: Box):
    show = "env | grep -E '^(CUDA|SMARTSCHED|PYTHONUNB)' | sort; cat; ps -o ppid=,pgid=,sid= $$"

    done = box.run(
        *MOMENT, "--gpus", "2", "--output", "raw", commands=[show], CUDA_VISIBLE_DEVICES="0,1"
    )

    *variables, ids = done.out.splitlines()
    seen = dict(line.split("=", 1) for line in variables)
    run = seen.pop("SMARTSCHED_RUN")
    assert seen.pop("SMARTSCHED_RUN_ID").startswith(f"{run}.")
    del seen["SMARTSCHED_CLAIMS"]  # the tests' own
    assert seen == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "2",
        "PYTHONUNBUFFERED": "1",
        "SMARTSCHED_ATTEMPT": "1",
        "SMARTSCHED_GPUS": "2",
        "SMARTSCHED_GPU_UUIDS": box.machine.gpu(2).uuid,
        "SMARTSCHED_JOB": "1",
    }
    assert run
    assert len(set(ids.split())) == 1  # its wrapper leads a group and session of their own


def test_pythonunbuffered_stays_as_the_user_set_it(box: Box):
    done = box.run(
        *MOMENT, "--output", "raw", commands=["echo [$PYTHONUNBUFFERED]"], PYTHONUNBUFFERED=""
    )

    assert done.out.strip() == "[]"


def test_gpus_are_named_by_uuid_where_asked(box: Box):
    done = box.run(
        *MOMENT, "--gpus", "1", "--visible", "uuid", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"
    )

    assert done.out.strip() == box.machine.gpu(1).uuid


def test_a_mig_instance_is_given_by_its_uuid(box: Box):
    instance = box.machine.add_mig(0, 2)

    done = box.run(*MOMENT, "--gpus", "0", "--output", "raw", commands=["env"])

    assert f"CUDA_VISIBLE_DEVICES={instance.uuid}\n" in done.out
    assert "SMARTSCHED_GPUS=0:2\n" in done.out


@pytest.mark.parametrize(
    ("argv", "status", "out"),
    [
        (["echo", "a  b", "$HOME", "it's"], 0, "a  b $HOME it's\n"),
        (["sh", "-c", "exit 42"], 42, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["no-such-command-anywhere"], 127, ""),
    ],
)
def test_one_command_is_run_as_given_and_its_status_is_ours(
    box: Box, argv: list[str], status: int, out: str
):
    done = box.run(*MOMENT, "--", *argv)

    assert (done.status, done.out) == (status, out)


def test_logs_hold_both_streams_and_sort_by_job(box: Box):
    done = box.run(*MOMENT, commands=["echo out; echo err >&2", "exit 3"])

    logs = box.job_logs()
    assert [log.name for log in logs] == ["0001.log", "0002.log"]
    assert logs[0].read_text() == "out\nerr\n"
    assert f"{logs[1].relative_to(box.folder)}" in done.err


def test_a_failure_is_told_with_its_status_place_and_last_words(box: Box):
    done = box.run(
        *MOMENT, "-q", commands=["seq 100; echo '\x1b[31mlast words' >&2; exit 7", "true"]
    )

    lines = done.err.splitlines()
    assert "job 1 failed: exit status 7 after" in lines[0]
    assert "on GPU 0: seq 100" in lines[0]
    assert "0001.log" in lines[1]
    assert lines[-1 - 2].endswith("| \\x1b[31mlast words")
    assert "started" not in done.err


def test_tagged_output_keeps_lines_whole(box: Box):
    chatty = f"{shlex.quote(sys.executable)} -c 'for i in range(300): print(\"A\" * 5000)'"

    done = box.run(*MOMENT, "--output", "tag", commands=[chatty, chatty.replace("A", "B")])

    lines = done.out.splitlines()
    assert len(lines) == 600
    assert set(lines) == {f"[1 gpu 0] {'A' * 5000}", f"[2 gpu 1] {'B' * 5000}"}


def test_what_a_job_leaves_behind_is_stopped_with_it(box: Box):
    daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0)"
    daemon += '; open("daemon", "w").write(str(os.getpid())); time.sleep(600)'
    commands = [
        "sleep 600 & echo $! > background",
        f"{sys.executable} -c '{daemon}'; until test -s daemon; do sleep 0.01; done",
        "env -i setsid sh -c 'echo $$ > nobody; exec sleep 600' &"
        " until test -s nobody; do sleep 0.01; done",
    ]

    done = box.run(*MOMENT, commands=commands)

    assert done.status == 0
    # the last job of all may be told to have left the hidden one as well
    assert sum(map(int, re.findall(r"left (\d+) process", done.err))) >= 2
    for name in ("background", "daemon", "nobody"):
        assert not alive(int((box.folder / name).read_text()))


def test_a_leftover_that_ignores_sigterm_is_killed_after_the_grace_period(box: Box):
    stubborn = "(trap '' TERM; echo $BASHPID > pid; while :; do sleep 0.05; done) &"
    command = stubborn + " until test -s pid; do sleep 0.01; done"

    done = box.run(*MOMENT, "--grace", "300ms", commands=[command])

    assert done.status == 0
    assert "killing it" in done.err
    assert not alive(int((box.folder / "pid").read_text()))


def test_a_dispatcher_within_a_job_leaves_nobody_behind_either(box: Box):
    inner = box.list_of(["trap '' TERM; echo $$ > inner; while :; do sleep 0.05; done"])
    command = shlex.join([*PROGRAM, *MOMENT, "--gpus", "1", "--grace", "1h", str(inner)])
    session = box.start(*MOMENT, "--gpus", "0", "--grace", "300ms", str(box.list_of([command])))
    wait_until((box.folder / "inner").exists, "the inner job runs", session.dump)

    session.process.terminate()

    assert session.end().status == 130
    assert not alive(int((box.folder / "inner").read_text()))


@pytest.mark.parametrize("mode", ["log", "tag"])
def test_children_that_a_shell_left_us_are_not_taken_for_a_jobs(box: Box, mode: str):
    program = shlex.join([*PROGRAM, *MOMENT, "--gpus", "0", "--output", mode])
    shell = (
        "sleep 600 > /dev/null 2>&1 & echo $! > inherited;"
        f" exec {program} < <(for n in 1 2 3; do echo true; sleep 0.2; done)"
    )

    done = subprocess.run(
        ["bash", "-c", shell], env=box.env, cwd=box.folder, capture_output=True, check=False
    )

    pid = int((box.folder / "inherited").read_text())
    assert alive(pid)
    os.kill(pid, 9)
    assert done.returncode == 0
    assert b"3 jobs ok" in done.stderr
    assert b"left" not in done.stderr


def test_a_hidden_writer_does_not_hold_up_the_others(box: Box):
    commands = [
        "until test -s hidden; do sleep 0.01; done; sleep 1",
        "env -i setsid sh -c 'ulimit -f 16000000; echo $$ > hidden; exec yes' &"
        " until test -s hidden; do :; done",  # of whoever is not stopped the disk is not full
    ]

    session = box.start(*MOMENT, "--output", "tag", str(box.list_of(commands)))
    session.says("stopping what is left")

    [lasted] = re.findall(r"job 1 ok after (\d+)", session.err)
    assert int(lasted) < HELD_UP_SECONDS
    hidden = int((box.folder / "hidden").read_text())
    wait_until(lambda: not alive(hidden), "the hidden one is stopped", session.dump)
    # there is more to be shown than anybody would wait for
    for _ in range(2):
        session.signal(signal.SIGTERM)
    assert session.end().status in (0, 130)


def test_a_log_folder_that_somebody_else_made_again_is_used_again(box: Box):
    again = "f=$(echo smartsched-logs/*); rm -r $f; mkdir $f"

    done = box.run(*MOMENT, "--gpus", "0", commands=["true", again, "echo 3"])

    assert done.status == 0
    assert [log.read_text() for log in box.job_logs()] == ["3\n"]


def test_a_log_folder_that_cannot_be_written_makes_jobs_wait_and_not_fail(box: Box):
    commands = ["true", "rm -rf smartsched-logs; touch smartsched-logs", "echo 3", "echo 4"]
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of(commands)))
    session.says("cannot be started yet")

    (box.folder / "smartsched-logs").unlink()

    done = session.end()
    assert done.status == 0
    assert "4 jobs ok" in done.err


def test_input_without_lines_does_not_make_it_deaf(box: Box):
    session = box.start(*MOMENT, "-v", "/dev/zero")
    session.says("GPU 0 FREE")

    session.process.terminate()

    assert session.end().status == 130


def test_a_program_is_no_list_of_commands(box: Box):
    done = box.run(*MOMENT, "/bin/ls")

    assert done.status == 2
    assert "is a program" in done.err


def test_logs_are_where_the_user_stands_wherever_the_jobs_run(box: Box):
    (box.folder / "sub").mkdir()

    done = box.run(*MOMENT, "--wd", "sub", commands=["pwd"])

    assert done.status == 0
    [log] = box.job_logs()
    assert log.read_text().strip() == str(box.folder / "sub")
    assert f"logs in {log.parent.relative_to(box.folder)}" in done.err


def test_an_inherited_choice_of_gpus_is_said(box: Box):
    done = box.run(*MOMENT, commands=["true"], CUDA_VISIBLE_DEVICES="1")

    assert "CUDA_VISIBLE_DEVICES=1 in the environment limits this" in done.err


def test_why_a_gpu_idles_is_said_while_others_run(box: Box):
    box.machine.set(1, error=15)
    session = box.start(
        *MOMENT,
        "--gpus",
        "0,1",
        str(box.list_of(["until test -e go; do sleep 0.01; done", "true"])),
    )

    session.says("waiting: GPU 1: the driver says: GPU is lost")
    (box.folder / "go").touch()

    assert session.end().status == 0


def test_jobs_get_no_descriptors_but_the_three(box: Box):
    done = box.run(*MOMENT, "--output", "log", commands=["ls -l /proc/self/fd | wc -l"])

    # the total, 0, 1, 2 and the folder that ls reads
    assert box.job_logs()[0].read_text().strip() == "5"
    assert done.status == 0


def test_an_empty_list_is_done_at_once(box: Box):
    done = box.run(*MOMENT, commands=["", "# nothing"])

    assert done.status == 0
    assert "0 jobs ok" in done.err
    assert not (box.folder / "smartsched-logs").exists()


def test_a_job_ending_hands_its_gpu_on_only_when_its_memory_is_back(box: Box):
    lingering = box.training("a", "--mem", str(30 * GIB), "--seconds", "0")
    box.machine.set(0, used_bytes=0)
    commands = [lingering, "echo next"]
    # the memory of job 1 stays in use though nobody visible holds it any more
    hold = f"; until test -e {box.folder}/let-go; do sleep 0.01; done"
    session = box.start(*MOMENT, "--gpus", "0", str(box.list_of([commands[0] + hold, commands[1]])))
    wait_until(lambda: box.trained(), "job 1 trains", session.dump)
    box.machine.set(0, used_bytes=30 * GIB)
    (box.folder / "let-go").touch()
    session.says("memory of job 1 has not come back")
    assert "job 2 started" not in session.err

    box.machine.set(0, used_bytes=0)

    done = session.end()
    assert done.status == 0
    assert "job 2 ok" in done.err


def test_it_reads_no_further_ahead_than_it_needs(box: Box):
    with a_pipe() as (reading, writing):
        session = box.start(*MOMENT, "--gpus", "0", stdin=reading)
        os.write(writing, b"sleep 600\n" + b"true\n" * 1000)
        session.says("job 1 started")

        assert _takes(writing) < 8 << 20
        session.process.terminate()

        assert session.end().status == 130


def _takes(fd: int) -> int:
    """How much a pipe takes until its reader wants no more."""
    os.set_blocking(fd, False)
    written = 0
    try:
        while written < 16 << 20:
            written += os.write(fd, b"true\n" * 10_000)
    except BlockingIOError:
        pass
    return written
