"""The manual: up to date with the options, and rendered without a complaint."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from smartsched.cli.parser import build_parser
from smartsched.cli.verbs import VERBS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/smartsched.1"


def test_the_manual_is_up_to_date():
    pytest.importorskip("argparse_manpage")
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "60"}

    made = subprocess.run(
        [sys.executable, ROOT / "docs/make_manual.py"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )

    assert made.stdout == PAGE.read_text(), "run `make man`"


def test_man_renders_it_without_a_complaint():
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    env = os.environ | {"MANWIDTH": "100", "MANPAGER": "cat", "LC_ALL": "C.UTF-8"}

    done = subprocess.run(
        ["man", "--warnings=w", "-l", PAGE], env=env, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    options = [name for action in build_parser()._actions for name in action.option_strings]
    missing = [name for name in options if name not in done.stdout and name != "-h"]
    assert missing in ([], ["--help"])
    assert [name for name in VERBS if f"smartsched {name}" not in done.stdout] == []


def test_an_installation_puts_it_where_man_looks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())

    shared = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {"docs/smartsched.1": "share/man/man1/smartsched.1"}
