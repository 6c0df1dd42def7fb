"""Where a job goes, and under which name it sees its GPU."""

from typing import Literal

import pytest

from smartsched.core.model import GpuReading, PlacedGpu, Placement, Wait
from smartsched.core.placement import FreeGpu, place, placed, visible_as
from tests.builders import a_key, a_sample


def test_the_first_of_the_free_gpus_is_given():
    free = [FreeGpu(a_sample(2), 0, "2"), FreeGpu(a_sample(0), 10, "0")]

    assert place(free) == Placement((PlacedGpu(a_key(2), "2", "2"),))


def test_no_free_gpu_is_an_answer_in_words():
    assert place([]) == Wait("no GPU is free")


def test_a_mig_instance_is_labelled_by_card_and_slot():
    instance = a_sample(1, slot=2)

    assert placed(FreeGpu(instance, 0, "MIG-x")).label == "1:2"


def test_the_gpus_of_a_placement_are_labelled_together():
    both = Placement((PlacedGpu(a_key(0), "0", "0"), PlacedGpu(a_key(3), "3", "3")))

    assert both.labels == "0,3"


@pytest.mark.parametrize(
    ("reading", "unreadable", "by", "visible"),
    [
        (a_sample(3), [], "index", "3"),
        (a_sample(3), [], "uuid", "GPU-0003"),
        (a_sample(3, slot=0), [], "index", "GPU-0003"),
        (a_sample(3), [1], "index", "GPU-0003"),
        (a_sample(3), [7], "index", "3"),
        (a_sample(0), [1], "index", "0"),
        (a_sample(1), [1], "index", "1"),
    ],
    ids=["index", "uuid", "MIG", "unreadable below", "above", "above the first", "its old index"],
)
def test_a_gpu_is_visible_by_index_unless_that_is_unsure(
    reading: GpuReading, unreadable: list[int], by: Literal["index", "uuid"], visible: str
):
    assert visible_as(reading, unreadable, by) == visible
