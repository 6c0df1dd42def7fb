"""Which GPUs may be used at all."""

from contextlib import suppress
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smartsched.core.model import GpuKey, GpuReading, GpuSample, GpuUuid
from smartsched.core.selection import (
    ByIndex,
    BySlot,
    ByUuid,
    GpuId,
    Selection,
    label,
    looks_like_ids,
    parse_ids,
    visible_as,
)
from smartsched.errors import UsageError
from tests.builders import HOST, a_sample, unreadable


def with_uuid(uuid: str, index: int = 0, slot: int | None = None) -> GpuSample:
    return a_sample(index, key=GpuKey(HOST, GpuUuid(uuid)), slot=slot)


BOX = (
    with_uuid("GPU-aa11", 0),
    with_uuid("GPU-aa22", 1),
    with_uuid("MIG-bb00", 2, slot=0),
    with_uuid("MIG-bb01", 2, slot=1),
)


def admitted(wanted: str | None, excluded: str = "") -> list[str]:
    selection = Selection(
        parse_ids(wanted) if wanted else None, excluded=parse_ids(excluded) if excluded else ()
    )
    return [gpu.key.uuid for gpu in BOX if selection.admits(gpu)]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("0", (ByIndex(0),)),
        ("0,2-4", (ByIndex(0), ByIndex(2), ByIndex(3), ByIndex(4))),
        ("3,1", (ByIndex(3), ByIndex(1))),
        (" 1 , 2 ,", (ByIndex(1), ByIndex(2))),
        ("1:2", (BySlot(1, 2),)),
        ("GPU-8f6a", (ByUuid("GPU-8f6a"),)),
        ("MIG-GPU-8f6a/1/0", (ByUuid("MIG-GPU-8f6a/1/0"),)),
        ("gpu-8F", (ByUuid("gpu-8F"),)),
    ],
)
def test_ids_are_indices_ranges_slots_and_uuids(text: str, ids: tuple[GpuId, ...]):
    assert parse_ids(text) == ids


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no GPU"),
        (" , ", "names no GPU"),
        ("all", "'all' is no GPU id"),
        ("-1", "'-1' is no GPU id"),
        ("0.5", "is no GPU id"),
        ("1-", "is no GPU id"),
        ("٣", "is no GPU id"),
        ("GPU", "is no GPU id"),
        ("3-1", "runs backwards"),
        ("0-999999999", "no host has that many"),
        ("1024", "no host has that many"),
        ("0,0", "names GPU 0 twice"),
        ("0-2,1", "names GPU 1 twice"),
        ("GPU-a,GPU-a", "names GPU GPU-a twice"),
    ],
)
def test_what_is_no_list_of_ids_is_told(text: str, why: str):
    with pytest.raises(UsageError, match=why):
        parse_ids(text)


@pytest.mark.parametrize("text", ["9" * 5000, "0-" + "9" * 5000, "1:" + "9" * 5000])
def test_an_endless_number_is_a_usage_error_too(text: str):
    with pytest.raises(UsageError):
        Selection(parse_ids(text)).check(BOX)


@given(st.text(alphabet="0123456789-,:GPUMIgpumi af/٣x", max_size=12))
def test_whatever_is_given_is_parsed_or_told(text: str):
    with suppress(UsageError):
        ids = parse_ids(text)
        assert ids
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("text", ["0", "0,2-3", "GPU-8f", "mig-1", "1:0", "0,"])
def test_words_that_can_only_be_ids_are_recognised(text: str):
    assert looks_like_ids(text)


@pytest.mark.parametrize("text", ["", ",", "commands.txt", "GPUS.txt", "models", "0.txt", "1:x"])
def test_words_that_may_be_files_are_not_taken_for_ids(text: str):
    assert not looks_like_ids(text)


@pytest.mark.parametrize(
    ("wanted", "excluded", "uuids"),
    [
        (None, "", ["GPU-aa11", "GPU-aa22", "MIG-bb00", "MIG-bb01"]),
        ("1", "", ["GPU-aa22"]),
        ("2", "", ["MIG-bb00", "MIG-bb01"]),
        ("2:1", "", ["MIG-bb01"]),
        ("gpu-AA1", "", ["GPU-aa11"]),
        ("0-2", "1", ["GPU-aa11", "MIG-bb00", "MIG-bb01"]),
        (None, "2:0,GPU-aa11", ["GPU-aa22", "MIG-bb01"]),
    ],
)
def test_gpus_are_chosen_by_what_names_them(wanted: str | None, excluded: str, uuids: list[str]):
    assert admitted(wanted, excluded) == uuids


def test_an_unreadable_gpu_can_be_chosen():
    assert Selection((ByIndex(3),)).admits(unreadable(3))


def test_a_selection_that_fits_the_box_passes():
    Selection(parse_ids("0,2:1,GPU-aa2"), excluded=parse_ids("0")).check(BOX)


@pytest.mark.parametrize(
    ("selection", "why"),
    [
        (Selection(parse_ids("7")), r"--gpus: there is no GPU 7 \(there are: 0, 1, 2:0, 2:1\)"),
        (Selection(parse_ids("GPU-zz")), "--gpus: there is no GPU GPU-zz"),
        (Selection(parse_ids("GPU-aa")), "names 2 GPUs: GPU-aa11, GPU-aa22"),
        (Selection(excluded=parse_ids("9")), "--exclude: there is no GPU 9"),
        (Selection(parse_ids("0"), excluded=parse_ids("0")), "leave no GPU to choose from"),
        (Selection(parse_ids("7"), "CUDA_VISIBLE_DEVICES"), "CUDA_VISIBLE_DEVICES: there is no"),
    ],
)
def test_a_selection_that_does_not_fit_the_box_is_told(selection: Selection, why: str):
    with pytest.raises(UsageError, match=why):
        selection.check(BOX)


def test_gpus_are_labelled_as_they_are_chosen():
    for gpu in BOX:
        (gpu_id,) = parse_ids(label(gpu))
        assert gpu_id.names(gpu)


def test_a_choice_by_index_stays_with_the_card_when_indices_move():
    chosen = Selection(parse_ids("2")).pinned([a_sample(index) for index in range(4)])

    moved = [replace(a_sample(2), index=1), replace(a_sample(3), index=2)]

    assert [chosen.admits(reading) for reading in moved] == [True, False]


def test_a_gpu_that_turns_up_later_is_judged_by_the_ids():
    chosen = Selection(parse_ids("1"), excluded=parse_ids("3")).pinned([a_sample(1), a_sample(3)])

    late = [replace(a_sample(7), index=1), replace(a_sample(8), index=4)]

    assert [chosen.admits(reading) for reading in late] == [True, False]


def test_a_choice_is_checked_when_it_is_made():
    with pytest.raises(UsageError, match="there is no GPU 7"):
        Selection(parse_ids("7")).pinned([a_sample(0)])


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


@pytest.mark.timeout(60)
def test_very_many_ids_are_read_in_no_time_and_the_first_that_is_there_twice_ends_it():
    assert len(parse_ids(",".join(f"0:{slot}" for slot in range(30_000)))) == 30_000
    with pytest.raises(UsageError, match="names GPU 0 twice"):
        parse_ids("0-1023," * 20_000)
