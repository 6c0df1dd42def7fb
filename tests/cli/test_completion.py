"""What shells offer at TAB: asked of real ones."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from smartsched.cli.verbs import VERBS
from tests.cli.harness import ROOT

# The shell's words for: complete what was typed, and print a candidate a line.
ASK = {
    "bash": """
source <(smartsched --print-completion bash)
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
eval "COMP_WORDS=(${1%% < *})"; [[ $1 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete smartsched "${COMP_WORDS[-1]}" ''
printf '%s\\n' "${COMPREPLY[@]}"
""",
    # zsh completes only in its line editor: so one is run in a terminal of zsh's own
    "zsh": """
zmodload zsh/zpty
zpty z zsh -f -i
read_until() { local all= part; while zpty -r z part; do all+=$part; [[ $all == *$1* ]] && break
  done; print -rn -- "$all"; }
zpty -w z 'PS1= ; stty -echo; autoload -Uz compinit; compinit -u -D'
zpty -w z 'eval "$(smartsched --print-completion zsh)"'
zpty -w z 'compadd() { builtin compadd -O hits "$@"; print -rl -- $hits; builtin compadd "$@" }'
zpty -w z 'zle -C ask complete-word ask_ ; ask_() { _main_complete; print -r END""-OF-IT; exit }'
zpty -w z 'bindkey "^I" ask; echo READY""_NOW'
read_until READY_NOW > /dev/null
zpty -w -n z "$1"$'\\t'
read_until END-OF-IT | tr -d '\\r'
""",
    "fish": """
smartsched --print-completion fish | source
complete --do-complete "$argv[1]" | string split -f 1 \\t
""",
}


@pytest.fixture(params=list(ASK))
def shell(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def smartsched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PATH, as after an installation; and a folder with a list in it."""
    program = tmp_path / "bin/smartsched"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m smartsched "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TERM", "dumb")
    Path("sweep.txt").touch()
    Path("folder").mkdir()


def offered(shell: str, typed: str) -> set[str]:
    last = ["-c", ASK[shell], "shell", typed] if shell != "fish" else ["-c", ASK[shell], typed]
    done = subprocess.run(
        [shell, *last],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr, done.stderr
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@pytest.mark.usefixtures("smartsched")
def test_verbs_and_files_come_first(shell: str):
    found = offered(shell, "smartsched s")

    assert {name for name in VERBS if name.startswith("s")} | {"sweep.txt"} <= found
    assert "config" not in found


@pytest.mark.usefixtures("smartsched")
def test_options_and_what_they_can_be(shell: str):
    assert {"--on-contention", "--on-finish"} <= offered(shell, "smartsched --on-")
    assert {"log", "tag", "raw"} <= offered(shell, "smartsched --output ")


@pytest.mark.usefixtures("smartsched")
def test_options_of_a_verb_are_its_own(shell: str):
    found = offered(shell, "smartsched shapes --forget")

    assert {"--forget", "--forget-all"} <= found
    assert not {name for name in found if name.startswith("--free")}


@pytest.mark.usefixtures("smartsched")
def test_folders_and_runs_where_they_belong(shell: str, tmp_path: Path):
    (tmp_path / "state/smartsched/runs/monday").mkdir(parents=True)

    folders = {name.rstrip("/") for name in offered(shell, "smartsched --logs ")}

    assert "folder" in folders
    assert "sweep.txt" not in folders
    assert "monday" in offered(shell, "smartsched --resume mo")
