"""What tests of runs on several hosts share: how one is started, and what came of it."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from tests.cli.harness import MOMENT, Session
from tests.lab import Entry, Host, Lab
from tests.lab.host import has_program
from tests.waiting import wait_until

# As short as they may be: the shortest lease, and what jobs have between the asking and the end.
LEASE_SECONDS, GRACE_SECONDS = 10.0, 1.0
SHORT = ("--lease", "10s", "--grace", "1s")
# What the dispatcher waits beyond both (smartsched/cli/cluster.py).
MARGIN_SECONDS = 15.0


def start(lab: Lab, commands: Sequence[str], *options: str, hosts: str | None = None) -> Session:
    """On all hosts of the lab that are there by now, or on these."""
    named = ",".join(lab.hosts) if hosts is None else hosts
    return lab.start("--hosts", named, *MOMENT, *SHORT, *options, str(lab.list_of(commands)))


def gated(lab: Lab, job: str, *options: str, gate: str = "go") -> str:
    """A job that is accounted for, and ends when that gate is opened."""
    return lab.accounts.job(job, "--until", str(lab.base / gate), *options)


def crash(lab: Lab, session: Session) -> None:
    """As when memory runs out: its hosts are not told."""
    session.crash()


def open_gate(lab: Lab, gate: str = "go") -> None:
    (lab.base / gate).touch()


def begun(lab: Lab, *jobs: str) -> None:
    """Wait until these have their GPUs."""
    wait_until(lambda: set(jobs) <= started(lab), f"{jobs} have begun", lambda: dump(lab))


def started(lab: Lab) -> set[str]:
    return {entry.job for entry in lab.accounts.entries("start")}


def hosts_of(lab: Lab, job: str) -> list[str]:
    """Where its copies began, one after the other."""
    return [entry.host for entry in lab.accounts.entries("begin") if entry.job == job]


def begun_in_vain(lab: Lab) -> list[Entry]:
    """Of jobs that began several times, all but the last."""
    begins = lab.accounts.entries("begin")
    last = {entry.job: entry for entry in begins}
    return [entry for entry in begins if last[entry.job] is not entry]


def outcomes(lab: Lab, run: str | None = None) -> dict[int, str]:
    """What became of each job, by the journal."""
    return {record["run"][0]: record["outcome"] for record in lab.events("job_finished", run)}


def exits(lab: Lab, run: str | None = None) -> dict[int, dict[str, object]]:
    """How the last run of each job ended, by the journal."""
    return {record["run"][0]: record["ending"] for record in lab.events("run_exited", run)}


def all_once(lab: Lab, jobs: Iterable[str], but: Iterable[str] = ()) -> None:
    """Each was begun once and ended once; those of `but` may have been begun again."""
    jobs, but = list(jobs), set(but)
    begins = Counter(entry.job for entry in lab.accounts.entries("begin"))
    ends = Counter(lab.accounts.ended())
    assert lab.accounts.doubles() == []
    assert set(ends) == set(jobs)
    again = {job for job in jobs if begins[job] != 1 or ends[job] != 1}
    assert again <= but, {job: (begins[job], ends[job]) for job in again - but}


def nobody_is_left(lab: Lab, *hosts: Host) -> None:
    """Nor the dispatcher, on any host that is on."""
    there = hosts or tuple(lab.hosts.values())
    wait_until(
        lambda: lab.is_quiet() and not any(host.processes() for host in there),
        "nobody is left",
        lambda: "\n".join(f"{h.name}: {h.run('ps', '-eo', 'pid,args').out}" for h in there),
    )


def accounted(lab: Lab) -> str:
    return "\n".join(map(str, lab.accounts.entries()))


def agents_logs(lab: Lab) -> str:
    """What agents have said, where they have a home."""
    return "\n".join(
        f"{path}:\n{path.read_text()}" for path in sorted(lab.state.glob("agents/*/*/agent.log"))
    )


def dump(lab: Lab) -> str:
    """All that was said, by whoever it was."""
    said = [path.read_text() for path in sorted(lab.folder.glob("err-*"))]
    return "\n".join([*said, agents_logs(lab), accounted(lab)])


def without_smartsched(host: Host) -> None:
    """It was never installed there."""
    shutil.rmtree(host.bin)
    host.bin.mkdir()


def another_version(host: Host) -> None:
    """What is installed there is older than this."""
    program = "import smartsched; smartsched.__version__ = '0.0.1'; from smartsched.cli import main"
    argv = [sys.executable, "-c", f"import sys; {program}; sys.exit(main())"]
    has_program(host.bin, argv=[word.replace("'", '"') for word in argv])


def lines_about(text: str, what: str) -> list[str]:
    """But for those on jobs, and on what is waited for, which name everybody."""
    others = (" waiting: ", " started on ", " ok after ")
    return [
        line
        for line in text.splitlines()
        if what in line and not any(other in line for other in others)
    ]
