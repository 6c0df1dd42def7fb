"""A line per finished job in the columns of GNU parallel's --joblog.

Seq, Host, Starttime (Unix seconds), JobRuntime (seconds), Send, Receive (bytes), Exitval, Signal,
Command, divided by tabs (GNU parallel's manual, "--joblog"). Host is the job's GPUs; nothing is
sent, and what is received is the job's log. What was never started has -1 for its exit status, what
a signal ended 0.
"""

from smartsched.core.model import EndedRun, Ending, Exited, Killed

HEADER = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
_UNKNOWN = -1


def row(ended: EndedRun, received_bytes: int) -> str:
    """One line, its end included."""
    exit_status, signum = _columns(ended.ending)
    command = ended.job.spec.command.replace("\n", " ")
    columns = (
        str(ended.key.job),
        ended.placement.labels,
        f"{ended.started_at:.3f}",
        f"{ended.seconds:.3f}",
        "0",
        str(received_bytes),
        str(exit_status),
        str(signum),
        command,
    )
    return "\t".join(columns) + "\n"


def _columns(ending: Ending) -> tuple[int, int]:
    match ending:
        case Exited(code):
            return code, 0
        case Killed(signum):
            return 0, signum
        case _:
            return _UNKNOWN, 0


def names(line: str) -> tuple[str, str] | None:
    """What tells a row from all others: Seq and Starttime; None: no row."""
    columns = line.split("\t", 8)
    return (columns[0], columns[2]) if len(columns) == 9 else None
