"""`smartsched --version`, which must be answered whatever the driver does."""

import platform

from smartsched import __version__
from tests.cli.harness import Box

OURS = f"smartsched {__version__} (Python {platform.python_version()}, "


def test_it_says_which_driver_there_is(box: Box):
    done = box.run("--version")

    assert (done.status, done.out, done.err) == (0, f"{OURS}driver 580.95.05)\n", "")


def test_a_driver_that_hangs_is_not_waited_for(box: Box):
    box.machine.hang("nvmlSystemGetDriverVersion")

    done = box.run("--version")

    assert (done.status, done.err) == (0, "")
    assert done.out == f"{OURS}an NVIDIA driver that does not answer)\n"
    box.machine.clear_faults()


def test_a_driver_that_fails_is_no_reason_to_fail(box: Box):
    box.machine.init_error(18)

    done = box.run("--version")

    assert (done.status, done.err) == (0, "")
    assert done.out == f"{OURS}an NVIDIA driver that does not answer)\n"


def test_where_it_is_set_what_cannot_be_the_version_is_told_all_the_same(box: Box):
    (box.folder / "smartsched.toml").write_text("nonsense\n")

    assert box.run("--version").out.startswith(OURS)
