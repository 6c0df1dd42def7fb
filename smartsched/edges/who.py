"""Who a process is: its user, command, session and ancestors, and the tag of the run it belongs to.

Asked by the sampler for every pid that the driver names. The environment is read only of processes
that belong to us, since nobody else's tag would be believed.
"""

import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from smartsched.core.model import GpuProcess
from smartsched.core.tag import tag_in

if TYPE_CHECKING:
    import psutil  # takes longer to import than a sample to take: only once somebody is there

_LONGEST_COMMAND = 300


class _Identity(NamedTuple):
    user: str | None
    command: str | None
    run_tag: str | None
    session: int | None
    ancestors: tuple[int, ...]


_NOBODY = _Identity(None, None, None, None, ())


class Register:
    """Remembers who is who, for as long as the driver keeps naming the pid.

    The driver still lists a process for a moment after its end; it keeps its identity then.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[psutil.Process | None, _Identity]] = {}

    def describe(
        self,
        pid: int,
        kind: Literal["compute", "graphics"],
        memory_bytes: int | None,
        utilization_percent: int | None = None,
    ) -> GpuProcess:
        identity = self._identify(pid)
        return GpuProcess(pid, kind, memory_bytes, *identity, utilization_percent)

    def forget_all_but(self, pids: set[int]) -> None:
        for pid in self._known.keys() - pids:
            del self._known[pid]

    def _identify(self, pid: int) -> _Identity:
        import psutil

        process, identity = self._known.get(pid, (None, _NOBODY))
        if process is not None and not _was_recycled(process):
            return identity
        try:
            process = psutil.Process(pid)
            identity = _read(process)
        except psutil.Error:
            process, identity = None, _NOBODY
        self._known[pid] = (process, identity)
        return identity


def _was_recycled(process: "psutil.Process") -> bool:
    """Whether the pid is somebody else's by now. A process that ended is still itself."""
    import psutil

    return bool(psutil.pid_exists(process.pid)) and not process.is_running()


def _read(process: "psutil.Process") -> _Identity:
    with process.oneshot():
        uid = process.uids().real
        return _Identity(
            user=_try(process.username) or str(uid),
            command=_command(process),
            run_tag=_run_tag(process) if uid == os.getuid() else None,
            session=_session(process.pid),
            ancestors=tuple(parent.pid for parent in _try(process.parents) or ()),
        )


def _command(process: "psutil.Process") -> str | None:
    arguments = _try(process.cmdline)
    command = " ".join(arguments) if arguments else _try(process.name)
    return command[:_LONGEST_COMMAND].encode("utf-8", "replace").decode() if command else None


def _run_tag(process: "psutil.Process") -> str | None:
    environment = _try(process.environ) or {}
    return tag_in(environment)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _try(question: Any) -> Any:
    import psutil

    try:
        return question()
    except (psutil.Error, OSError, KeyError):
        return None
