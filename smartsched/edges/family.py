"""Who belongs to a run: what its shell started, wherever that went and whatever it calls itself.

Where the system allows it (Linux), orphans of our runs become our children instead of init's, so
that nobody can slip away; elsewhere group, session and environment have to do.
"""

import ctypes
import os
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from smartsched.core.model import Shell
from smartsched.core.tag import tag_in

if TYPE_CHECKING:
    import psutil  # takes long to import, and is needed only where somebody is left

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Family:
    """All processes below this one."""

    def __init__(self, others: Callable[[], Collection[int]]) -> None:
        """`others`: pids of children of this process that are no runs."""
        self._others = others
        self._session = os.getsid(0)
        # A shell that exec'ed us may have left us children of its own: tee, substitutions.
        self._inherited = {(pid, _started(pid)) for pid in _children()}
        self._adopts_orphans = _adopt_orphans()

    def may_have_left(self, shell: Shell, shells: Collection[Shell]) -> bool:
        """Whether an ended shell may have left anybody. Cheap, since asked at every exit."""
        if _group_exists(shell.pid):
            return True
        known = {other.pid for other in shells} | set(self._others())
        return any(pid not in known and self._may_be_ours(pid) for pid in _children())

    def members(self, shell: Shell, shells: Collection[Shell]) -> list["psutil.Process"]:
        """The living processes of a run but for its shell, as objects that notice when a pid was
        recycled. Whoever cannot be told apart belongs to the last run that there is."""
        return [process for process, owner in self._owned(shells) if owner == shell.pid]

    def _may_be_ours(self, pid: int) -> bool:
        """Runs have sessions of their own: whoever is in ours was never part of one."""
        try:
            return os.getsid(pid) != self._session and (pid, _started(pid)) not in self._inherited
        except OSError:
            return False

    def everybody(self) -> list["psutil.Process"]:
        """Whoever lives below this process, runs and strays."""
        if not self._adopts_orphans or not self._roots():
            return []
        return [process for process, _ in self._owned([])]

    def _roots(self) -> set[int]:
        """Our children that are, or once were, part of runs."""
        others = set(self._others())
        return {pid for pid in _children() if pid not in others and self._may_be_ours(pid)}

    def _owned(self, shells: Collection[Shell]) -> Iterator[tuple["psutil.Process", int | None]]:
        import psutil

        by_pid = {shell.pid: shell for shell in shells}
        by_tag = {shell.tag: shell for shell in shells}
        only = next(iter(by_pid)) if len(by_pid) == 1 else None
        owners: dict[int, int | None] = {pid: pid for pid in by_pid}
        for process in self._candidates():
            if process.pid in by_pid:
                continue
            try:
                owner = _owner_by_number(process.pid, by_pid) or _owner_by_tag(process, by_tag)
                owner = owner or owners.get(process.ppid())
                owners[process.pid] = owner = owner or (only if self._adopts_orphans else None)
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield process, owner
            except (psutil.Error, OSError):
                continue

    def _candidates(self) -> list["psutil.Process"]:
        """Ancestors before descendants."""
        if not self._adopts_orphans:
            import psutil

            return list(psutil.process_iter())
        below: list[psutil.Process] = []
        children, roots = _children_by_parent(), self._roots()
        level = [child for child in children.get(os.getpid(), ()) if child.pid in roots]
        while level:
            below += level
            level = [child for parent in level for child in children.get(parent.pid, ())]
        return below


def _children_by_parent() -> dict[int, list["psutil.Process"]]:
    import psutil

    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            children.setdefault(process.ppid(), []).append(process)
        except psutil.Error:
            continue
    return children


def _owner_by_number(pid: int, by_pid: Collection[int]) -> int | None:
    for number in (os.getsid(pid), os.getpgid(pid)):
        if number in by_pid:
            return number
    return None


def _owner_by_tag(process: "psutil.Process", by_tag: dict[str, Shell]) -> int | None:
    """The environment is read only of processes that may answer: one that hangs in the driver can
    hold the lock that reading takes."""
    import psutil

    if process.status() == psutil.STATUS_DISK_SLEEP or process.uids().real != os.getuid():
        return None
    shell = by_tag.get(tag_in(process.environ()) or "")
    return shell.pid if shell is not None else None


def _adopt_orphans() -> bool:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl is not None and prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def _group_exists(leader_pid: int) -> bool:
    try:
        os.killpg(leader_pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _children() -> list[int]:
    """Pids of our children."""
    pids: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as listing:
                pids.extend(map(int, listing.read().split()))
    except OSError:
        return _children_by_scan()
    return pids


def _children_by_scan() -> list[int]:
    """For kernels without CONFIG_PROC_CHILDREN."""
    me = str(os.getpid()).encode()
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    return [pid for pid in pids if _parent(pid) == me]


def _parent(pid: int) -> bytes:
    return _stat(pid, 4)


def _started(pid: int) -> bytes:
    """With the pid, this tells a process from any other that there ever was."""
    return _stat(pid, 22)


def _stat(pid: int, number: int) -> bytes:
    """A field of proc(5)'s stat, counted from 1; empty where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            return stat.read(4096).rpartition(b")")[2].split()[number - 3]
    except (OSError, IndexError):
        return b""
