"""Standard streams that are closed, full, slow or gone: the jobs are not concerned."""

import fcntl
import os
import shlex
import signal
import subprocess

import pytest

from tests.cli.harness import MOMENT, PROGRAM, Box, a_pipe
from tests.waiting import PATIENCE_SECONDS, wait_until

SMALLEST_PIPE_BYTES = 4096  # less than a screenful of what is said of jobs


def shell(box: Box, words: str) -> subprocess.CompletedProcess[str]:
    """Runs it with `smartsched` standing for the program."""
    text = words.replace("smartsched", shlex.join(PROGRAM), 1)
    return subprocess.run(
        ["bash", "-c", text],
        env=box.env,
        cwd=box.folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("mode", ["--output log", "--output tag", "-q"])
def test_jobs_run_though_standard_streams_are_closed(box: Box, closed: str, mode: str):
    listing = box.list_of(["echo said; touch did"])

    done = shell(box, f"smartsched {shlex.join(MOMENT)} {mode} {listing} {closed}")

    assert done.returncode == 0, done.stderr
    assert (box.folder / "did").exists()
    assert [log.read_text() for log in box.job_logs()] in ([], ["said\n"])
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (f"smartsched --dry-run {shlex.join(MOMENT)} > /dev/full", 255),
        (f"smartsched --dry-run --json {shlex.join(MOMENT)} > /dev/full", 255),
        ("smartsched sample --once > /dev/full", 255),
        (f"smartsched --dry-run {shlex.join(MOMENT)} >&-", 0),
        ("smartsched sample --once >&-", 0),
    ],
)
def test_output_that_goes_nowhere_is_no_reason_for_a_traceback(box: Box, words: str, status: int):
    done = shell(box, words)

    assert done.returncode == status
    assert len(done.stderr.splitlines()) == (status != 0)


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_any_encoding_of_the_terminal_will_do(box: Box, encoding: str):
    box.machine.set(0, history=[(t / 10, 0 if t > 20 else 5) for t in range(100, 0, -1)])

    done = box.run("--dry-run", PYTHONIOENCODING=encoding)

    assert done.status == 0
    assert "Traceback" not in done.err


@pytest.mark.parametrize("mode", [("--output", "tag"), ("--progress",)])
def test_a_reader_who_has_seen_enough_ends_nothing(box: Box, mode: tuple[str, ...]):
    listing = box.list_of([f"echo said; until test -e go; do sleep 0.01; done; touch did-{n}"
                           for n in range(6)])  # fmt: skip
    with a_pipe() as (reading, writing):
        process = subprocess.Popen(
            [*PROGRAM, *MOMENT, *mode, str(listing)],
            env=box.env,
            cwd=box.folder,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
        )
        os.read(reading, 1)
    (box.folder / "go").touch()

    assert process.wait(PATIENCE_SECONDS) == 0
    assert len(list(box.folder.glob("did-*"))) == 6


def test_a_reader_who_never_reads_stalls_no_jobs(box: Box):
    """`2>&1 | less`, or Ctrl-S."""
    names = [f"{'x' * 90}-{number}" for number in range(150)]
    listing = box.list_of([f": {name}" for name in names] + ["touch did"])
    with a_pipe() as (_, writing):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE_BYTES)
        process = subprocess.Popen(
            [*PROGRAM, *MOMENT, str(listing)],
            env=box.env,
            cwd=box.folder,
            stdin=subprocess.DEVNULL,
            stderr=writing,
        )

        assert process.wait(PATIENCE_SECONDS) == 0
        assert (box.folder / "did").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_who_waits_for_a_reader_of_its_output_can_be_stopped(box: Box, signum: signal.Signals):
    listing = box.list_of(["head -c 3000000 /dev/zero | tr '\\0' x | fold; touch did"])
    with a_pipe() as (_, writing):
        process = subprocess.Popen(
            [*PROGRAM, *MOMENT, "--output", "tag", "--grace", "300ms", str(listing)],
            env=box.env,
            cwd=box.folder,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: _is_full(writing), "the pipe is full")

        def insist() -> bool:
            process.send_signal(signum)
            return process.poll() is not None

        wait_until(insist, "it ends")
        assert process.returncode in (130, -signum)  # the last one may meet it on its way out


def _is_full(fd: int) -> bool:
    import select

    return not select.select([], [fd], [], 0)[1]
