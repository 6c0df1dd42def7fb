"""How an agent is started on a host, and what its failure is called."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.host_list import parse_hosts
from smartsched.core.reaching import (
    agent_script,
    cannot_start,
    quoted,
    says_it_is_up,
    ssh_argv,
    too_late,
    why_not,
)
from smartsched.errors import UsageError

[GPU2] = parse_hosts("gpu2")
[FAR] = parse_hosts("ada@gpu2:2222")


def failure(code: int | None, errors: str = "", output: str = "", *, by_ssh: bool = True) -> str:
    return why_not(GPU2, code, output, errors, by_ssh=by_ssh)


def test_ssh_asks_nothing_and_is_told_only_what_the_user_told_us():
    argv = ssh_argv("ssh", GPU2, "smartsched agent --join -")

    assert argv[:2] == ["ssh", "-T"]
    assert "BatchMode=yes" in argv
    assert argv[-3:-1] == ["--", "gpu2"]
    assert "-p" not in argv


def test_user_and_port_are_handed_on():
    argv = ssh_argv("ssh", FAR, "x")

    assert argv[argv.index("-p") + 1] == "2222"
    assert argv[-2] == "ada@gpu2"


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "tcsh"])
@pytest.mark.parametrize(
    "text", ["plain", "a 'b' \"c\" $HOME", r"\ \\ \' '\\'", "`x` $(y) ; & | *"]
)
def test_a_quoted_text_is_one_word_in_any_shell(shell: str, text: str):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")

    said = subprocess.run(
        [shell, "-c", f"exec printf %s {quoted(text)}"], capture_output=True, timeout=60
    )

    assert said.stdout.decode() == text


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish", "tcsh"])
def test_the_whole_command_runs_in_any_login_shell(shell: str):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    command = ssh_argv("ssh", GPU2, agent_script("x='it'\\''s' && printf '%s|' \"$x\""))[-1]

    said = subprocess.run([shell, "-c", command], capture_output=True, timeout=60)

    assert said.stdout.decode() == "it's|agent|--join|-|"


@pytest.mark.parametrize("command", ["", "  ", "a\nb", "a\0b", "a\x1b[0m"])
def test_what_is_no_line_of_a_shell_is_refused(command: str):
    with pytest.raises(UsageError, match=r"^--remote-command: '.*' cannot be a line of a shell$"):
        agent_script(command)


@pytest.mark.parametrize(
    "output",
    [
        "joined\n",
        "started agent gpu2 (pid 7)\n",
        "Welcome to gpu2!\nstarted\n",
        "\x1b]0;gpu2\x07started\n",
        "\x1b[1mjoined\x1b[0m\n",
        "prompt without an end> joined\n",
    ],
)
def test_an_agent_is_heard_through_what_shells_print(output: str):
    assert says_it_is_up(output)


@pytest.mark.parametrize("output", ["", "Welcome!\n", "restarted\n"])
def test_other_words_are_no_agent(output: str):
    assert not says_it_is_up(output)


@pytest.mark.parametrize(
    ("errors", "why"),
    [
        (
            "ssh: connect to host gpu2 port 22: Connection refused\r\n",
            "cannot reach gpu2: connect to host gpu2 port 22: Connection refused",
        ),
        (
            "ada@gpu2: Permission denied (publickey).\r\n",
            "cannot reach gpu2: ada@gpu2: Permission denied (publickey): ssh gpu2 must work without"
            " a password",
        ),
        (
            "No ED25519 host key is known for gpu2 and you have requested strict checking.\r\n"
            "Host key verification failed.\r\n",
            "cannot reach gpu2: Host key verification failed: connect once by hand: ssh gpu2",
        ),
        (
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nIT IS POSSIBLE\n"
            "Host key verification failed.\r\n",
            "cannot reach gpu2: its host key is not the one known here: see what ssh gpu2 says",
        ),
        (
            "ssh: connect to host jump port 22: No route to host\r\n"
            "kex_exchange_identification: Connection closed by remote host\r\n"
            "Connection closed by UNKNOWN port 65535\r\n",
            "cannot reach gpu2: connect to host jump port 22: No route to host",
        ),
        (
            "Connection closed by 10.0.0.2 port 22\r\n",
            "cannot reach gpu2: Connection closed by 10.0.0.2 port 22",
        ),
        ("", "cannot reach gpu2: ssh does not say why"),
    ],
)
def test_why_a_host_cannot_be_reached_is_what_ssh_says(errors: str, why: str):
    assert failure(255, errors) == why


def test_the_command_to_try_by_hand_is_the_one_for_that_host():
    assert why_not(FAR, 255, "", "Host key verification failed.", by_ssh=True).endswith(
        ": ssh -p 2222 ada@gpu2"
    )


@pytest.mark.parametrize(
    ("code", "errors", "output", "why"),
    [
        (
            127,
            "bash: line 1: smartsched: command not found\n",
            "",
            "there is no smartsched on gpu2 (bash: line 1: smartsched: command not found):"
            " pip install it there, or name it with --remote-command",
        ),
        (2, "hello\nsmartsched: it is 0.1\n", "", "cannot start on gpu2: it is 0.1"),
        (255, "smartsched: no place\nbye\n", "", "cannot start on gpu2: no place"),
        (1, "a\nTraceback: b\n\n", "", "cannot start on gpu2: Traceback: b"),
        (1, "", "This account is closed\n", "cannot start on gpu2: This account is closed"),
        (1, "", "", "cannot start on gpu2: exit status 1"),
        (-9, "", "", "cannot start on gpu2: killed by signal 9"),
        (None, "", "", "cannot start on gpu2: it ended, and said nothing"),
        (
            0,
            "",
            "Welcome!\n",
            "cannot start on gpu2: instead of an agent, something else answered: Welcome!",
        ),
    ],
)  # fmt: skip
def test_why_no_agent_was_started_is_what_was_said_last(
    code: int | None, errors: str, output: str, why: str
):
    assert failure(code, errors, output) == why


def test_without_ssh_nothing_is_blamed_on_it():
    assert failure(255, "odd\n", by_ssh=False) == "cannot start on gpu2: odd"


def test_a_host_that_is_late_is_told_of_with_what_it_said():
    assert too_late(GPU2, 60.0, "", "") == "gpu2 has not answered for 1m 00s"
    assert too_late(GPU2, 60.0, "", "a\nb\n") == "gpu2 has not answered for 1m 00s: b"


@given(st.sampled_from([0, 1, 127, 255, -9, None]), st.text(), st.text())
def test_whatever_is_said_it_is_one_short_printable_line(code: int | None, out: str, errors: str):
    for why in (
        failure(code, errors * 20, out * 20),
        too_late(GPU2, 1.0, out, errors),
        cannot_start(GPU2, errors * 20),
    ):
        assert why.isprintable()
        assert "gpu2" in why
        assert len(why) <= 200
