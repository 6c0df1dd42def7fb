"""How a run ended, as people say it."""

from smartsched.core.model import EndedRun, Ending, Exited, Killed, Lost, NotStarted

# Linux's numbers on x86 and ARM, from 1 (signal(7)).
_SIGNALS = (
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU",
    "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
)  # fmt: skip


def how_it_ended(ended: EndedRun) -> str:
    """ "exit status 1", "out of time, killed by SIGTERM"."""
    ending = how(ended.ending)
    return f"out of time, {ending}" if ended.why_stopped == "timeout" else ending


def how(ending: Ending) -> str:
    """ "exit status 1"; whoever asked for it."""
    match ending:
        case Killed(signum):
            return f"killed by {_signal_name(signum)}"
        case Exited(code):
            return f"exit status {code}"
        case NotStarted(why):
            return f"could not be started: {why}"
        case Lost(why):
            return why or "it vanished without a record of its end"


def _signal_name(signum: int) -> str:
    known = 0 < signum <= len(_SIGNALS)
    return f"SIG{_SIGNALS[signum - 1]}" if known else f"signal {signum}"
