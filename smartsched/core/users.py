"""Whose use of a GPU it is, in words."""

from collections.abc import Sequence

from smartsched.core import words
from smartsched.core.freeness import describe
from smartsched.core.model import GpuProcess
from smartsched.core.tag import job_words


def job_of(process: GpuProcess) -> str | None:
    """ "job 3 of run night", where that run is of the user who asks; None: it is no job of his."""
    return None if process.run_tag is None else words.printable(job_words(process.run_tag))


def process_words(process: GpuProcess) -> str:
    """ "used by alice: python train.py, 34 GiB (pid 24021)" """
    kind = "" if process.kind == "compute" else f", {process.kind}"
    job = job_of(process)
    of = "" if job is None else f", {job}"
    return f"used by {describe(process)} (pid {process.pid}{kind}{of})"


def users_words(processes: Sequence[GpuProcess]) -> str:
    """In short, who uses most first: "alice 34 GiB, job 3 of run night 2 GiB"."""
    held: dict[str, int] = {}
    for process in processes:
        who = job_of(process) or words.printable(process.user or f"pid {process.pid}")
        held[who] = held.get(who, 0) + (process.memory_bytes or 0)
    most_first = sorted(held.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{who} {words.size(held)}" if held else who for who, held in most_first)
