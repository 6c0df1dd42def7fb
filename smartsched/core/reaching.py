"""How an agent is started on a host, as arguments of a program; and what its failure is called.

What ssh, shells and other people's hosts say is text that nobody has checked: of it one line is
kept, in which no terminal finds anything to act on.
"""

import re
from collections.abc import Sequence

from smartsched.core import words
from smartsched.core.host_list import HostSpec
from smartsched.errors import UsageError

_AGENT_ARGUMENTS = "agent --join -"
# What it runs may be meant for bash (`source`); and where pip puts programs for a user is not
# looked into by shells without a terminal. It holds neither ' nor \ nor !, which shells quote in
# ways of their own.
_SCRIPT = (
    'PATH="$PATH:$HOME/.local/bin"; export PATH;'
    ' if command -v bash >/dev/null 2>&1; then exec bash -c "$0"; else exec sh -c "$0"; fi'
)
_SSH_OPTIONS = [
    "-T",
    "-o", "BatchMode=yes",  # nobody is there to answer
    "-o", "ConnectTimeout=15",
    "-o", "ServerAliveInterval=10",
    "-o", "ServerAliveCountMax=3",
    "-o", "ClearAllForwardings=yes",  # ports that the user forwards are for his own sessions
    # What a user may have set for his own sessions leaves no room for a command with an input; not
    # every client knows all of it. One that is named here only would take the place of those that
    # the user has named.
    "-o", "IgnoreUnknown=*",
    "-o", "RemoteCommand=none",
    "-o", "SessionType=default",
    "-o", "StdinNull=no",
    "-o", "ForkAfterAuthentication=no",
]  # fmt: skip
_LONGEST_QUOTED = 100
_LONGEST_WHY = 200
_NOT_FOUND = 127
_SSH_FAILED = 255  # so do agents with some errors; they say that they are smartsched
_OURS = "smartsched: "
_GOOD_NEWS = re.compile(r"\b(joined|started)\b")
_WAS_THERE = re.compile(r"\bjoined\b")
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(\x07|\x1b\\)?|\x1b[@-_]?")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
# What ssh says last where it said before what it is about.
_VAGUE = re.compile(r"(Connection (closed|reset) by|kex_exchange_identification:|client_loop:)")


def agent_script(remote_command: str) -> str:
    """What a shell has to run. Raises UsageError for what cannot be a line of one."""
    command = remote_command.strip()
    if not command or not command.isprintable():
        shown = words.shortened(words.printable(remote_command), _LONGEST_QUOTED)
        raise UsageError(f"--remote-command: '{shown}' cannot be a line of a shell")
    return f"{command} {_AGENT_ARGUMENTS}"


def local_argv(script: str) -> list[str]:
    return ["/bin/sh", "-c", _SCRIPT, script]


def ssh_argv(ssh: str, host: HostSpec, script: str) -> list[str]:
    """Whatever the user's login shell is there: it may be one that knows no `if` as sh does."""
    port = [] if host.port is None else ["-p", str(host.port)]
    command = f"exec sh -c {quoted(_SCRIPT)} {quoted(script)}"
    return [ssh, *_SSH_OPTIONS, *port, "--", _destination(host), command]


def quoted(text: str) -> str:
    """As one word, the same to sh, csh and fish, which takes some backslashes in quotes away."""
    return "'" + "".join({"'": r"'\''", "\\": r"'\\'"}.get(c, c) for c in text) + "'"


def says_it_is_up(output: str) -> bool:
    """Whether an agent spoke there, whatever else the host's shells say before."""
    return _GOOD_NEWS.search(_ESCAPES.sub("", output)) is not None


def says_it_was_there(output: str) -> bool:
    """Whether it was up before."""
    return _WAS_THERE.search(_ESCAPES.sub("", output)) is not None


def why_not(host: HostSpec, code: int | None, output: str, errors: str, *, by_ssh: bool) -> str:
    """One line. `code`: the exit status, below 0 the signal; None: that is not known."""
    said = _last_line(errors)
    if by_us := _last_line(errors, _OURS):
        why = cannot_start(host, by_us)
    elif code == _NOT_FOUND:
        why = (
            f"there is no smartsched on {host.name} ({said or 'exit status 127'}): pip install it"
            " there, or name it with --remote-command"
        )
    elif code == _SSH_FAILED and by_ssh:
        why = f"cannot reach {host.name}: {_what_ssh_said(host, _lines(errors))}"
    elif code == 0:
        answer = _last_line(output) or said or "nothing"
        why = cannot_start(host, f"instead of an agent, something else answered: {answer}")
    else:
        why = cannot_start(host, said or _last_line(output) or _end_of(code))
    return words.shortened(why, _LONGEST_WHY)


def too_late(host: HostSpec, seconds: float, output: str, errors: str) -> str:
    """It has neither come up nor failed for so long."""
    said = _last_line(errors) or _last_line(output)
    why = f"{host.name} has not answered for {words.duration(seconds)}"
    return words.shortened(f"{why}: {said}" if said else why, _LONGEST_WHY)


def cannot_start(host: HostSpec, why: str) -> str:
    return words.shortened(f"cannot start on {host.name}: {_plain(why)}", _LONGEST_WHY)


def by_hand(host: HostSpec) -> str:
    """What to type to come there."""
    return f"ssh {'' if host.port is None else f'-p {host.port} '}{_destination(host)}"


def _destination(host: HostSpec) -> str:
    return host.address if host.user is None else f"{host.user}@{host.address}"


def _what_ssh_said(host: HostSpec, lines: Sequence[str]) -> str:
    clear = [line for line in lines if not _VAGUE.match(line)] or lines or ["ssh does not say why"]
    last = words.shortened(clear[-1], _LONGEST_QUOTED).rstrip(".").removeprefix("ssh: ")
    to_try = by_hand(host)
    if any("HOST IDENTIFICATION HAS CHANGED" in line for line in lines):
        return f"its host key is not the one known here: see what {to_try} says"
    if last.startswith("Host key verification failed"):
        return f"{last}: connect once by hand: {to_try}"
    if "Permission denied" in last:
        return f"{last}: {to_try} must work without a password"
    return last


def _end_of(code: int | None) -> str:
    if code is None:
        return "it ended, and said nothing"
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def _last_line(said: str, beginning: str = "") -> str:
    """Without who said it; "": there is none that begins so."""
    lines = [line for line in _lines(said) if line.startswith(beginning)] or [""]
    return words.shortened(lines[-1].removeprefix(_OURS), _LONGEST_QUOTED)


def _lines(said: str) -> list[str]:
    lines = (_plain(line) for line in re.split(r"[\r\n]+", _ESCAPES.sub("", said)))
    return [line for line in lines if line]


def _plain(line: str) -> str:
    return words.printable(_CONTROLS.sub(" ", line)).strip()
