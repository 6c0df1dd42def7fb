"""Which commands of a list a run knows already: by text, folder and occurrence, not by line number.

The second `python train.py` of a list is the second that the run was given, wherever both stand; so
lines may be inserted, removed and moved between two dispatchers of one run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from msgspec import Struct, field

from smartsched.core.directives import without_wishes
from smartsched.core.events import (
    Event,
    FailuresDropped,
    GpuWithheld,
    JobAccepted,
    JobFinished,
    JobRecalled,
    JobsAdded,
    JobsRetried,
    ListReplaced,
)
from smartsched.core.model import JobId, JobSpec

# All that it wants to know of.
KINDS = (
    JobAccepted,
    JobsAdded,
    JobsRetried,
    JobFinished,
    JobRecalled,
    GpuWithheld,
    FailuresDropped,
    ListReplaced,
)
_Identity = bytes


class Ledger(Struct):
    """Of the commands that were accepted before the present list was given."""

    _known: dict[_Identity, list[JobId]] = field(default_factory=lambda: defaultdict(list))
    _since_replaced: list[tuple[_Identity, JobId]] = field(default_factory=list)
    _seen: Counter[_Identity] = field(default_factory=Counter)
    failed: dict[JobId, tuple[JobSpec, int]] = field(default_factory=dict)  # and its attempts
    _forgotten: set[JobId | None] = field(default_factory=set)  # a list that has them: new ones
    _added: set[JobId] = field(default_factory=set)  # by requests: no list has to name them
    _specs: dict[JobId, JobSpec] = field(default_factory=dict)

    def record(self, event: Event) -> None:  # noqa: C901, PLR0912  # a table: one case an event
        """Take in the journal, in its order."""
        match event:
            case JobAccepted(_, job, spec):
                self._since_replaced.append((_identity(spec), job))
                self._specs[job] = spec
            case JobsAdded(_, _, first, specs):
                for number, spec in enumerate(specs, start=first):
                    self._since_replaced.append((_identity(spec), JobId(number)))
                    self._specs[JobId(number)] = spec
                    self._added.add(JobId(number))
            case JobsRetried(jobs=jobs):
                for job in jobs:
                    if job in self.failed:
                        self._specs[job] = self.failed.pop(job)[0]
            case JobFinished(_, run, "failed"):
                self.failed[run.job] = (self._specs.pop(run.job), run.attempt)
            case JobFinished(_, run, "ok"):
                self._specs.pop(run.job, None)
            case JobRecalled(_, job, spec):
                self.failed.pop(job, None)
                self._specs[job] = spec
            case GpuWithheld(runs=runs):
                for run in runs:
                    if run.job in self.failed and self.failed[run.job][1] == run.attempt:
                        self._specs[run.job] = self.failed.pop(run.job)[0]
            case FailuresDropped(jobs=jobs):
                for job in jobs:
                    self.failed.pop(job, None)
                self._forgotten.update(jobs)
            case ListReplaced():
                self.replace_list()
            case _:
                pass

    def replace_list(self) -> None:
        """What was accepted so far is known; the occurrences of another list are counted."""
        for identity, job in self._since_replaced:
            self._known[identity].append(job)
        self._since_replaced.clear()
        self._seen.clear()

    def failed_before(self) -> set[JobId]:
        """What had failed before the present list was given."""
        known = {job for jobs in self._known.values() for job in jobs}
        return (known & self.failed.keys()) - self._added

    def next_occurrence(self, spec: JobSpec) -> JobId | None:
        """Which job this line of the present list is; None: a new one. To be asked once for each
        line, in their order."""
        identity = _identity(spec)
        jobs = self._known.get(identity, ())
        number = self._seen[identity]
        self._seen[identity] += 1
        job = jobs[number] if number < len(jobs) else None
        return None if job in self._forgotten else job


def _identity(spec: JobSpec) -> _Identity:
    import hashlib  # takes longer to load than all the rest of it

    command = without_wishes(spec.command)  # wishes may be edited, it is the same command
    text = f"{spec.directory}\0{command}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()


def ledger_of(events: Iterable[Event]) -> Ledger:
    ledger = Ledger()
    for event in events:
        ledger.record(event)
    return ledger
