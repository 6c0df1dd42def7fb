"""What jobs have written down, wherever they ran: the truth that tests hold the journal against."""

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.strangers import Visit

JOB = Path(__file__).with_name("job.py")


@dataclass(frozen=True)
class Entry:
    word: str
    """begin, start, end, term, usr1, violation, double: see job.py and train.py."""
    job: str
    attempt: int
    host: str
    uuids: tuple[str, ...]
    pid: int
    """As the host calls it."""
    at: float
    """Monotonic seconds, the same on all pretend hosts and in the test."""


class Accounts:
    """The jobs' common book; it lies where every host can write, whatever homes it shares."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder

    def job(self, job: str, *options: str) -> str:
        """A command that trains with these options of train.py."""
        argv = [sys.executable, "-I", "-S", str(JOB), "--account", str(self._folder), "--id", job]
        return shlex.join([*argv, *options])

    def entries(self, *words: str) -> list[Entry]:
        """In their order; of these kinds, or all."""
        log = self._folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        entries = map(_entry, lines)
        return [entry for entry in entries if not words or entry.word in words]

    def ended(self) -> list[str]:
        """The jobs that came to their end, each as often as it did.

        One that ended in the moment before its host lost power may rightly be run once more: nobody
        can know that it had.
        """
        return [entry.job for entry in self.entries("end")]

    def doubles(self) -> list[Entry]:
        """Copies that were started while another one lived."""
        return self.entries("double")

    def beside(self, visits: Iterable[Visit], start_takes_seconds: float) -> list[Entry]:
        """Starts where a stranger had been for longer than a start takes, and still was."""
        visits = list(visits)
        return [entry for entry in self.entries("start") if any(
            visit.uuid in entry.uuids
            and visit.came + start_takes_seconds < entry.at < visit.left
            for visit in visits
        )]  # fmt: skip


def _entry(line: str) -> Entry:
    word, who, uuids, pid, at, *_ = line.split()
    name, _, host = who.rpartition("@")
    job, _, attempt = name.rpartition(".")
    gpus = () if uuids == "-" else tuple(uuids.split(","))
    return Entry(word, job, int(attempt), host, gpus, int(pid), float(at))
