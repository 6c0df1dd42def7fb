"""Who belongs to a run: what its shell started, wherever that went and whatever it calls itself.

Where the system allows it (Linux), orphans of our runs become our children instead of init's, so
that nobody can slip away; elsewhere group, session and environment have to do.
"""

import ctypes
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from smartsched.core.model import ProcessId, Shell
from smartsched.core.tag import HOOK_VARIABLE, tag_in

if TYPE_CHECKING:
    import psutil  # takes long to import, and is needed only where somebody is left

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_NANOSECONDS = 1_000_000_000
_READ_BYTES = 1 << 16
_MOST_LOOKS = 10  # at those who were born as we looked at the ones before


class Family:
    """All processes below this one."""

    def __init__(self, others: Callable[[], Collection[int]]) -> None:
        """`others`: pids of children of this process that are no runs, and lead sessions."""
        self._others = others
        self._everywhere = False
        self._not_theirs = {os.getpid()}
        self._session = os.getsid(0)
        # A shell that exec'ed us may have left us children of its own: tee, substitutions.
        self._inherited = {(pid, _started(pid)) for pid in _children()}
        self._adopts_orphans = _adopt_orphans()
        self._ticks_a_second = os.sysconf("SC_CLK_TCK")
        # Whether that is the clock by which processes begin here. None: nobody has looked.
        self._clock_tells: bool | None = None if hasattr(time, "CLOCK_BOOTTIME") else False

    def look_everywhere(self) -> None:
        """From now on runs may have processes that do not descend from this one."""
        import psutil

        self._everywhere = True
        # A tmux that was started in a job carries its tag, and we may have been started there.
        self._not_theirs = {os.getpid(), *(process.pid for process in psutil.Process().parents())}

    def ticks(self) -> int:
        """The time as /proc has it of a process that begins now."""
        if self._clock_tells is False:
            return -1
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * self._ticks_a_second // _NANOSECONDS

    def identify(self, pid: int, not_before: int = -1) -> ProcessId:
        """A living one, or a child of ours. `not_before`: `ticks`, just before it was started. If
        they are the same by now it began then, and /proc need not be asked: that waits until the
        child is done with its exec, which is often longer than all else that a start takes."""
        if self._clock_tells and not_before == self.ticks():
            return ProcessId(pid, not_before, _place())
        found = _start_ticks(pid)
        if self._clock_tells is None and not_before == self.ticks():
            self._clock_tells = found == not_before
        return ProcessId(pid, found, _place())

    def lives(self, process: ProcessId) -> bool:
        """Whether just this process still runs; a zombie does not."""
        if (
            process.boot.partition("/")[0] != _boot()
            or _start_ticks(process.pid) != process.start_ticks
        ):
            return False
        return process.start_ticks > 0 and _stat(process.pid, 3) not in (b"Z", b"X")

    def may_be_reused(self, process: ProcessId) -> bool:
        """Whether its pid is somebody else's by now."""
        return _start_ticks(process.pid) not in (0, process.start_ticks)

    def age_seconds(self, process: ProcessId) -> float:
        """How long ago it began, whatever was done to the clock since."""
        try:
            with open("/proc/uptime", encoding="ascii") as uptime:
                up = float(uptime.read().split()[0])
        except (OSError, ValueError):
            return 0.0
        return max(0.0, up - process.start_ticks / os.sysconf("SC_CLK_TCK"))

    def carries(self, pid: int, tag: str) -> bool:
        """Whether a process is part of the run with this tag."""
        import psutil

        try:
            process = psutil.Process(pid)
            return process.uids().real == os.getuid() and tag_in(process.environ()) == tag
        except (psutil.Error, OSError):
            return False

    def watchdog(self, wrapper: int) -> ProcessId | None:
        """Of the run with this wrapper: the child that leads a group of its own. None: there is
        none yet, or nobody can tell."""
        for pid in _children_of(wrapper):
            with suppress(OSError):
                if os.getpgid(pid) == pid:
                    return self.identify(pid)
        return None

    def catches(self, pid: int, signum: int) -> bool:
        """Whether it has a handler for this signal (proc_pid_status(5): SigCgt)."""
        try:
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
                fields = dict(line.split(":", 1) for line in status if ":" in line)
            return bool(int(fields["SigCgt"], 16) >> (signum - 1) & 1)
        except (OSError, KeyError, ValueError):
            return False

    def may_have_left(self, shell: Shell, shells: Collection[Shell]) -> bool:
        """Whether an ended shell may have left anybody. Cheap, since asked at every exit."""
        if _group_exists(shell.pid):
            return True
        others = set(self._others())
        known = {other.pid for other in shells} | others
        return any(pid not in known and self._may_be_ours(pid, others) for pid in _children())

    def members(self, shell: Shell, shells: Collection[Shell]) -> list["psutil.Process"]:
        """The living processes of a run but for its shell, as objects that notice when a pid was
        recycled. Whoever cannot be told apart belongs to the last run that there is."""
        return self._found(shells, lambda tag: tag == shell.tag)

    def _may_be_ours(self, pid: int, others: Collection[int]) -> bool:
        """Runs have sessions of their own: whoever is in ours, or in that of another child of ours,
        was never part of one."""
        try:
            session = os.getsid(pid)
        except OSError:
            return False
        if session == self._session or session in others:
            return False
        return (pid, _started(pid)) not in self._inherited

    def everybody(self) -> list["psutil.Process"]:
        """Whoever lives below this process, runs and strays."""
        if not self._adopts_orphans or not self._roots():
            return []
        return self._found([], lambda _: True)

    def _roots(self) -> set[int]:
        """Our children that are, or once were, part of runs."""
        others = set(self._others())
        return {pid for pid in _children() if pid not in others and self._may_be_ours(pid, others)}

    def _found(
        self, shells: Collection[Shell], is_meant: Callable[[str | None], bool]
    ) -> list["psutil.Process"]:
        """Those of whose run that is so. Where there is nobody, we look at those too who were born
        as we looked: by somebody who was dead when we came to him, as daemons are."""
        import psutil

        owners: dict[int, str | None] = {}
        seen = set(psutil.pids())
        candidates = self._candidates()
        for _ in range(_MOST_LOOKS):
            owned = self._owned(candidates, shells, owners)
            if found := [process for process, tag in owned if is_meant(tag)]:
                return found
            born = set(psutil.pids()) - seen
            if not born:
                break
            seen |= born
            candidates = self._born(born)
        return []

    def _owned(
        self,
        candidates: Iterable[tuple["psutil.Process", bool]],
        shells: Collection[Shell],
        owners: dict[int, str | None],
    ) -> Iterator[tuple["psutil.Process", str | None]]:
        """Every process below us but the shells, and whoever else belongs to a run; with the tag
        of its run. `owners`: the tags of those that are known, by pid; more are added."""
        import psutil

        by_pid = {shell.pid: shell.tag for shell in shells if shell.is_known}
        owners.update(by_pid)
        tags = {shell.tag for shell in shells}
        only = next(iter(tags)) if len(tags) == 1 and self._adopts_orphans else None
        for process, is_below in candidates:
            if process.pid in by_pid:
                continue
            try:
                owner = _tag_by_number(process.pid, by_pid) or _tag_of(process, tags)
                owner = owner or owners.get(process.ppid())
                if owner is None and is_below:
                    if _is_of_a_hook(process):
                        continue
                    owner = only
                owners[process.pid] = owner
                if (is_below or owner) and process.status() != psutil.STATUS_ZOMBIE:
                    yield process, owner
            except (psutil.Error, OSError):
                continue

    def _candidates(self) -> Iterator[tuple["psutil.Process", bool]]:
        """Ancestors before descendants; and whether it is below us."""
        children = _children_by_parent()
        below: set[int] = set()
        if self._adopts_orphans:
            roots = self._roots()
            level = [child for child in children.get(os.getpid(), ()) if child.pid in roots]
            while level:
                yield from ((process, True) for process in level)
                below.update(process.pid for process in level)
                level = [child for parent in level for child in children.get(parent.pid, ())]
        if self._looks_at_others:
            known = below | self._not_theirs | set(self._others())
            yield from ((p, False) for p in _generations(children) if p.pid not in known)

    def _born(self, pids: Collection[int]) -> Iterator[tuple["psutil.Process", bool]]:
        """The same of a few."""
        import psutil

        known = self._not_theirs | set(self._others())
        for pid in pids:
            try:
                process = psutil.Process(pid)
            except psutil.Error:
                continue
            is_below = self._adopts_orphans and self._is_below(process)
            if is_below or (self._looks_at_others and pid not in known):
                yield process, is_below

    def _is_below(self, process: "psutil.Process") -> bool:
        import psutil

        for _ in range(_MOST_LOOKS):
            try:
                line = [process, *process.parents()]
                roots = self._roots()  # not before: it may have become one of them
                if any(each.pid in roots for each in line):
                    return True
                if line[-1].ppid() == 0:  # the first of all
                    return False
            except psutil.NoSuchProcess as gone:
                if gone.pid == process.pid:
                    return False
            # one of its ancestors has died: who is below him has got another parent by now
        return False

    @property
    def _looks_at_others(self) -> bool:
        """At those who are not below us."""
        return self._everywhere or not self._adopts_orphans


def _generations(children: Mapping[int, list["psutil.Process"]]) -> Iterator["psutil.Process"]:
    """Everybody, the eldest first: pids do not tell, they begin anew at some time."""
    left = {child.pid: child for each in children.values() for child in each}
    level = [child for parent, each in children.items() if parent not in left for child in each]
    while level:
        for process in level:
            yield left.pop(process.pid)
        level = [child for parent in level for child in children.get(parent.pid, ())]
    yield from left.values()  # pids that changed hands while they were read may form a circle


def _children_by_parent() -> dict[int, list["psutil.Process"]]:
    import psutil

    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            children.setdefault(process.ppid(), []).append(process)
        except psutil.Error:
            continue
    return children


def _tag_by_number(pid: int, by_pid: Mapping[int, str]) -> str | None:
    for number in (os.getsid(pid), os.getpgid(pid)):
        if number in by_pid:
            return by_pid[number]
    return None


def _tag_of(process: "psutil.Process", tags: Collection[str]) -> str | None:
    """The environment is read only of processes that may answer: one that hangs in the driver can
    hold the lock that reading takes."""
    import psutil

    if process.uids().real != os.getuid() or process.status() == psutil.STATUS_DISK_SLEEP:
        return None
    tag = tag_in(process.environ())
    return tag if tag in tags else None


def _is_of_a_hook(process: "psutil.Process") -> bool:
    """The user's command for a finished job may go on as long as it likes."""
    return bool(process.environ().get(HOOK_VARIABLE))


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
    return _children_of(os.getpid())


def _children_of(parent: int) -> list[int]:
    """Pids."""
    pids: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{parent}/task"):
            pids.extend(map(int, _contents(f"/proc/{parent}/task/{thread}/children").split()))
    except OSError:
        return _children_by_scan(parent)
    return pids


def _children_by_scan(parent: int) -> list[int]:
    """For kernels without CONFIG_PROC_CHILDREN."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    return [pid for pid in pids if _parent(pid) == str(parent).encode()]


def _parent(pid: int) -> bytes:
    return _stat(pid, 4)


def _started(pid: int) -> bytes:
    """With the pid, this tells a process from any other that there ever was."""
    return _stat(pid, 22)


def _start_ticks(pid: int) -> int:
    """0 where there is no such process."""
    return int(_started(pid) or 0)


@cache
def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
            return boot_id.read().strip()
    except OSError:
        return ""


@cache
def _place() -> str:
    """The boot, and of which machine it is, where that is known."""
    with suppress(OSError, ValueError), open("/etc/machine-id", encoding="ascii") as machine_id:
        if machine := machine_id.read().strip():
            return f"{_boot()}/{machine}"
    return _boot()


def _stat(pid: int, number: int) -> bytes:
    """A field of proc(5)'s stat, counted from 1; empty where there is no such process."""
    try:
        return _contents(f"/proc/{pid}/stat").rpartition(b")")[2].split()[number - 3]
    except (OSError, IndexError):
        return b""


def _contents(path: str) -> bytes:
    """Of a file in /proc, at every exit of a job: `open` takes thrice as long."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
