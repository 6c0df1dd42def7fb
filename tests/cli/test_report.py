"""`smartsched report`, of real runs and made-up ones, looked at in a real browser."""

import os
import signal
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from smartsched.core.events import Event, GpuReleased, RunBegan, RunClosed
from smartsched.core.gpu_time import Standing
from smartsched.core.history import Noter
from smartsched.core.model import Exited
from smartsched.core.records import encode
from tests.builders import GIB, T0, a_key, a_part, a_run, begun, exited, finished, listed
from tests.cli.browser import Browser, a_browser
from tests.cli.harness import MOMENT, Box
from tests.waiting import wait_until

HOSTILE = "echo '</script><script>window.harmed = true</script><img src=x onerror=harm()>'"
SECRET = "hunter2-of-theirs"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To put together what draws in a page takes seconds: done once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def shell(box: Box, cache: Path) -> Box:
    box.env["XDG_CACHE_HOME"] = str(cache)
    return box


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with a_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def keep(box: Box, name: str, events: Sequence[Event], history: Sequence[bytes] = ()) -> None:
    """A run as it lies on the disk, begun in the folder of the box unless its events say else."""
    folder = box.state / "runs" / name
    folder.mkdir(0o700, parents=True)
    lines = b"".join(encode(event, seq) for seq, event in enumerate(events, start=1))
    (folder / "events.jsonl").write_bytes(lines)
    if history:
        (folder / "history.jsonl").write_bytes(b"".join(history))


def began(box: Box, name: str, at: float = T0, directory: str | None = None) -> RunBegan:
    where = str(box.folder) if directory is None else directory
    return RunBegan(at, name, a_key().host, where, ("list",), None, "{}", name)


def many(box: Box, jobs: int, gpus: int = 16, seconds: float = 20.0) -> list[Event]:
    """One after the other on each GPU; every tenth fails."""
    commands = [f"python train.py --seed {number}" for number in range(jobs)]
    events: list[Event] = [began(box, "many"), *listed(*commands)]
    for start in range(0, jobs, gpus):
        at = T0 + start // gpus * seconds
        here = range(start + 1, min(start + gpus, jobs) + 1)
        for job in here:
            events += begun(job, a_part((job - 1) % gpus), at=at)
        for job in here:
            fails = job % 10 == 0
            events.append(exited(job, at=at + seconds, ending=Exited(1 if fails else 0)))
            events.append(finished(job, "failed" if fails else "ok", at=at + seconds))
            key = a_key((job - 1) % gpus)
            events.append(GpuReleased(at + seconds, key, a_run(job)))
    return events


def bars_drawn(browser: Browser) -> list[tuple[int, int, str, str]]:
    """Of each bar, as it is on the canvas: where it begins and ends in milliseconds, the label of
    its row, and its colour."""
    found: list[list[Any]] = browser.run(
        """
        const view = window.report.views.timeline, x = view.scale("x"), y = view.scale("y");
        const marks = [];
        const visit = (item) => {
          if (item.marktype === "rect" && item.name === "bars_marks") marks.push(...item.items);
          for (const child of item.items || []) visit(child);
        };
        visit(view.scenegraph().root);
        return marks.map(m => [
          +x.invert(m.x), +x.invert(m.x + m.width), Math.floor(y.invert(m.y + 1)), m.fill,
        ]);
        """
    )
    return [(round(b), round(e), str(row), fill) for b, e, row, fill in found]


# --- of real runs


def test_a_run_keeps_what_others_did_and_its_report_shows_all_of_it(shell: Box, browser: Browser):
    shell.machine.add_stranger(0, 40 * GIB, os.getpid())
    commands: list[str | bytes] = [shell.training(n, "--seconds", "0.5") for n in "abcd"]
    commands += ["exit 3", HOSTILE, b"echo \xff\xfe # not UTF-8"]
    done = shell.run(*MOMENT, "--gpus", "0-2", "--name", "real", commands=commands)
    assert done.status == 1

    made = shell.run("report")

    page = shell.folder / "smartsched-report-real.html"
    assert (made.status, made.err) == (0, "")
    assert made.out == "smartsched run real: smartsched-report-real.html\n"
    assert stat.S_IMODE((shell.run_folder() / "history.jsonl").stat().st_mode) == 0o600
    browser.requested()
    browser.look_at(page)
    assert browser.complaints() == ""
    assert browser.run("return window.harmed") is None
    assert {url.split(":")[0] for url in browser.requested()} <= {"file", "data"}
    check_bars(shell, browser)
    assert browser.column("jobs", 3) == ["ok"] * 4 + ["failed"] + ["ok"] * 2
    assert HOSTILE in browser.column("jobs", 2)
    assert "echo \\xff\\xfe # not UTF-8" in browser.column("jobs", 2)
    uses = browser.run("return window.report.views.timeline.data('uses')")
    assert {row["use"] for row in uses if row["gpu"] == "0"} == {"other people"}


def check_bars(box: Box, browser: Browser) -> None:
    """As many as the journal has starts, from their starts to their ends, in the rows of their
    GPUs; to a pixel."""
    offset = time.localtime().tm_gmtoff
    starts = {tuple(e["run"]): e["at"] for e in box.events("run_launched")}
    ends = {tuple(e["run"]): e["at"] for e in box.events("run_exited")}
    where = {tuple(e["run"]): e["placement"][0]["label"] for e in box.events("run_placed")}
    expected = sorted(
        (1000 * (at + offset), 1000 * (ends[run] + offset), where[run])
        for run, at in starts.items()
    )
    drawn = sorted((begin, end, row) for begin, end, row, _ in bars_drawn(browser))
    pixel = browser.run("const x = window.report.views.timeline.scale('x');"
                        "return x.invert(1) - x.invert(0)")  # fmt: skip
    assert len(drawn) == len(expected)
    for (begin, end, row), (at, until, label) in zip(drawn, expected, strict=True):
        assert abs(begin - at) <= 2 * pixel + 2
        assert abs(end - until) <= 2 * pixel + 2
        assert row == label


def test_what_the_history_says_of_others_has_no_command_of_theirs(shell: Box):
    stranger = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "--token", SECRET]
    )
    try:
        shell.machine.add_stranger(0, 40 * GIB, stranger.pid)
        shell.run(*MOMENT, "--gpus", "0,1", "--name", "real", commands=["sleep 1", "sleep 1"])
    finally:
        stranger.kill()
        stranger.wait()

    kept = (shell.run_folder() / "history.jsonl").read_text()

    assert "memory > 10% (" in kept
    assert SECRET not in kept


def test_a_run_that_goes_on_is_reported_without_disturbing_it(shell: Box):
    session = shell.start(*MOMENT, "--name", "alive", "--", "sleep", "600")
    wait_until(lambda: shell.events("run_launched"), "it runs", session.dump)
    before = (shell.run_folder() / "lock").read_bytes()

    made = shell.run("report", "alive", "-o", "now.html")

    assert (made.status, made.err) == (0, "")
    assert "The run still goes on" in (shell.folder / "now.html").read_text()
    assert (shell.run_folder() / "lock").read_bytes() == before
    session.signal(signal.SIGTERM)
    session.end()
    shell.run("report", "alive", "-o", "now.html")
    assert "The run still goes on" not in (shell.folder / "now.html").read_text()


# --- in the browser


def test_tables_are_sorted_and_searched(shell: Box, browser: Browser):
    keep(shell, "many", many(shell, 400))
    shell.run("report", "many")
    browser.look_at(shell.folder / "smartsched-report-many.html")

    def click(title: str) -> str:
        sorted_by: str = browser.run(
            "const th = [...document.querySelectorAll('#jobs th')]"
            ".find(th => th.textContent === arguments[0]);"
            "th.querySelector('button').click(); return th.getAttribute('aria-sort')",
            title,
        )
        return sorted_by

    assert browser.column("jobs", 1)[:3] == ["1", "2", "3"]
    assert (click("job"), click("job")) == ("ascending", "descending")
    assert browser.column("jobs", 1)[:3] == ["400", "399", "398"]
    assert click("state") == "ascending"
    assert set(browser.column("jobs", 3)[:40]) == {"failed"}
    states = browser.run(
        "return [...document.querySelectorAll('#jobs th')].map(th => th.getAttribute('aria-sort'))"
    )
    assert sorted(states)[:2] == ["ascending", "none"]
    field = browser.driver.find_element("id", "search")
    field.send_keys("SEED 39 ok")
    assert browser.run("return document.getElementById('count').textContent") == "13 of 400"
    field.clear()


def test_light_and_dark_follow_the_readers_system(shell: Box, browser: Browser):
    keep(shell, "many", many(shell, 20))
    shell.run("report", "many")
    page = shell.folder / "smartsched-report-many.html"

    def look() -> tuple[str, str]:
        background = "return getComputedStyle(document.body).backgroundColor"
        return browser.run(background), bars_drawn(browser)[0][3]

    browser.look_at(page)
    light = look()
    browser.prefer("dark")
    wait_until(lambda: browser.run("return window.report.drawn") == "dark", "it is drawn again")
    dark = look()
    browser.look_at(page, "light")

    assert light[0] != dark[0]
    assert light[1] != dark[1]
    assert look() == light


def test_five_thousand_jobs_stay_usable(shell: Box, browser: Browser):
    keep(shell, "many", many(shell, 5000), long_history(16, 3000))
    assert shell.run("report", "many").status == 0
    page = shell.folder / "smartsched-report-many.html"

    began = time.monotonic()
    browser.look_at(page)
    took = time.monotonic() - began

    assert took < 20  # two seconds on a machine with nothing else to do
    assert browser.complaints() == ""
    assert len(bars_drawn(browser)) == 5000
    assert len(browser.column("jobs", 1)) < 1000  # more are made as they come into sight
    assert page.stat().st_size < 8 * 2**20
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    wait_until(lambda: len(browser.column("jobs", 1)) > 300, "more rows come into sight")


def long_history(gpus: int, looks: int) -> list[bytes]:
    noter = Noter()
    lines = [noter.begin(T0)]
    for look in range(looks):
        found = [
            Standing(a_key(n), str(n), "GPU", 80 * GIB, look % 7 * GIB, 0, look % 100, "ours", "")
            for n in range(gpus)
        ]
        lines += noter.note(found, 3, "no GPU is free", T0 + 2 * look)
    return lines


# --- which run, and where to


def test_the_latest_run_of_this_folder_is_meant_or_else_the_latest_of_all(shell: Box):
    closed = RunClosed(T0 + 9, complete=True, failed=0)
    keep(shell, "old", [began(shell, "old", T0), closed])
    keep(shell, "here", [began(shell, "here", T0 + 1), closed])
    keep(shell, "elsewhere", [began(shell, "elsewhere", T0 + 2, "/"), closed])
    (shell.folder / "other").mkdir()

    assert shell.run("report", "--format", "svg").out.startswith("smartsched run here: ")
    there = shell.start("report", "--format", "svg", cwd=shell.folder / "other").end()
    assert there.out.startswith("smartsched run elsewhere: ")


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_for_slides_needs_no_browser(shell: Box, kind: str):
    keep(shell, "many", many(shell, 30))
    target = shell.folder / f"slide.{kind}"

    done = shell.run("report", "many", "-o", str(target))

    assert (done.status, done.err) == (0, "")
    if kind == "png":
        assert target.read_bytes().startswith(b"\x89PNG\r\n")
    else:
        assert ET.fromstring(target.read_text()).tag.endswith("svg")
        assert "GPU 15" in target.read_text()


def test_a_page_can_go_to_standard_output(shell: Box):
    keep(shell, "many", many(shell, 3))

    done = shell.run("report", "many", "-o", "-")

    assert done.out.startswith("<!DOCTYPE html>")
    assert not list(shell.folder.glob("*.html"))


def test_a_journal_whose_last_line_is_torn_is_reported_up_to_there(shell: Box):
    keep(shell, "many", many(shell, 3))
    with (shell.run_folder("many") / "events.jsonl").open("ab") as journal:
        journal.write(b'{"seq":99,"ev')

    assert shell.run("report", "many", "-o", "-").status == 0


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["nowhere"], 2, "there is no run nowhere; there are many"),
        (["../many"], 2, "'../many' cannot be the name of a run"),
        (["-o", ""], 2, "--output needs the name of a file"),
        (["-o", "nowhere/x.svg"], 2, "cannot write nowhere/x.svg: No such file or directory"),
        (["--format", "pdf"], 2, "--format: invalid choice: 'pdf'"),
        (["many", "more"], 2, "unrecognized arguments: more"),
        (["--state", "empty"], 2, "there is no run to report in"),
        (["damaged"], 255, "events.jsonl is damaged in line 2: its checksum does not match"),
        (["hollow"], 255, "run hollow has no whole record yet"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_reported_is_one_line(
    shell: Box, options: list[str], status: int, said: str
):
    keep(shell, "many", many(shell, 3))
    for name in ("damaged", "hollow"):
        keep(shell, name, [began(shell, name)])
    with (shell.run_folder("damaged") / "events.jsonl").open("ab") as journal:
        journal.write(b"garbage\n")
    (shell.run_folder("hollow") / "events.jsonl").write_bytes(b"")

    done = shell.run("report", *options)

    assert (done.status, done.out) == (status, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_without_the_library_one_line_says_how_to_install_it(shell: Box):
    keep(shell, "many", many(shell, 3))
    hide = "import sys; sys.modules['vl_convert'] = None; from smartsched.cli import main; "
    argv = [sys.executable, "-c", f"{hide}sys.exit(main(['report', 'many']))"]

    done = subprocess.run(
        argv, env=shell.env, cwd=shell.folder, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("is not installed: pip install 'smartsched[report]'\n")
    assert len(done.stderr.splitlines()) == 1


def test_help_tells_of_it(shell: Box):
    assert "smartsched report [RUN]" in shell.run("--help").out
    assert "--format" in shell.run("report", "--help").out
