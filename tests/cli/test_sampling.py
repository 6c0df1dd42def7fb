"""The sampler begins before everything else is loaded, and is never left behind."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import psutil
import pytest

from smartsched.cli.sampling import Ahead, SamplerProcess
from smartsched.core.sampling import sampler_arguments
from tests.cli.harness import Box
from tests.edges.jobs import our_children
from tests.waiting import wait_until

PRETEND = {"simulate": "2", "interval": "1s"}


@pytest.fixture(autouse=True)
def nobody_else() -> Iterator[None]:
    """All that a test begins has ended after it."""
    others = our_children()
    yield
    for pid in our_children() - others:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
        os.waitpid(pid, 0)


def test_who_was_begun_ahead_is_taken_once_and_then_there_are_others():
    others = our_children()
    with Ahead() as ahead:
        ahead.begin(PRETEND)
        [begun] = our_children() - others
        process = SamplerProcess(sampler_arguments("1s", "2", None), ahead)

        first, second = process(), process()

    assert first.pid == begun
    assert our_children() - others == {first.pid, second.pid}
    for each in (first, second):
        wait_until(partial(_says_something, each.lines_fd))
        for fd in each[1:]:
            os.close(fd)


def test_who_was_told_something_else_is_not_taken_and_ends():
    others = our_children()
    with Ahead() as ahead:
        ahead.begin(PRETEND)
        [begun] = our_children() - others

        ahead.settle({"interval": "2s", "simulate": "2"})

        wait_until(lambda: begun not in _living(our_children()))
        assert ahead.take() is None


def test_who_was_told_the_same_goes_on():
    others = our_children()
    with Ahead() as ahead:
        ahead.begin(PRETEND)
        ahead.settle(PRETEND | {"replay": None, "hosts": None})

        assert len(our_children() - others) == 1


def test_an_error_meanwhile_leaves_nobody_behind():
    others, fds = our_children(), set(os.listdir("/proc/self/fd"))
    with suppress(RuntimeError), Ahead() as ahead:
        ahead.begin(PRETEND)
        raise RuntimeError

    wait_until(lambda: _living(our_children()) == _living(others))
    assert set(os.listdir("/proc/self/fd")) <= fds


@pytest.mark.parametrize(
    "flags", [{"resume": ""}, {"hosts": "a"}, {"hosts_file": "f"}, {"slurm": ""}, {"listen": "x"}]
)
def test_where_the_options_do_not_tell_what_is_sampled_nobody_begins(flags: dict[str, str]):
    others = our_children()
    with Ahead() as ahead:
        ahead.begin(PRETEND | flags)

        assert our_children() == others


def test_an_interval_from_a_file_of_settings_holds(box: Box):
    (box.folder / "smartsched.toml").write_text('interval = "100ms"\n')

    session = box.start("--free-for", "0", "--", "sh", "-c", "touch ran; sleep 600")
    wait_until((box.folder / "ran").exists, dump=session.dump)
    children = psutil.Process(session.process.pid).children()
    told = []
    for each in children:
        with suppress(psutil.Error):  # who was told something else has been killed
            words = each.cmdline()
            told += [words[words.index("--interval") + 1]] if "sample" in words else []

    assert told == ["100ms"]
    session.signal(signal.SIGTERM)
    session.signal(signal.SIGTERM)
    session.end()
    wait_until(box.is_quiet)


def test_a_list_that_is_not_there_is_told_and_no_sampler_stays(box: Box):
    done = box.run("nothing.txt")

    assert (done.status, done.err.count("\n")) == (2, 1)
    wait_until(box.is_quiet)


def _says_something(fd: int) -> bool:
    try:
        return b"smartsched_sample" in os.read(fd, 1 << 16)
    except BlockingIOError:
        return False


def _living(pids: set[int]) -> set[int]:
    living = set()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                living.add(pid)
    return living
