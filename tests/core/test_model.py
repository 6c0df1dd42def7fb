"""The nouns: what follows from them, and what does not."""

from msgspec.structs import replace

from smartsched.core.model import Job, JobId
from smartsched.core.shapes import shape_of
from tests.builders import GIB, a_command

TRAIN = "python train.py --lr 0.1"


def a_job(command: str = TRAIN) -> Job:
    return Job(JobId(1), a_command(command))


def test_a_shape_is_worked_out_once_and_makes_no_difference():
    asked, unasked = a_command(TRAIN), a_command(TRAIN)

    assert asked.shape == shape_of(TRAIN)
    assert asked.shape is asked.shape
    assert (asked, hash(asked), repr(asked)) == (unasked, hash(unasked), repr(unasked))


def test_siblings_are_of_one_kind():
    sibling = replace(a_job("python train.py --lr 0.2"), id=JobId(2), rank=7, attempts=3)

    assert a_job().kind == sibling.kind


def test_jobs_that_need_something_else_are_of_another_kind():
    job = a_job()
    others = [
        a_job("python test.py --lr 0.1"),
        a_job(f"{TRAIN}  # smartsched: mem=1GiB"),
        replace(job, needs_bytes=GIB),
        replace(job, alone=True),
    ]

    assert len({job.kind, *(other.kind for other in others)}) == 5
