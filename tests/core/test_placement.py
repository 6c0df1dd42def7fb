"""Where a job goes, given what may still be given away."""

from typing import Any

import pytest
from msgspec.structs import replace

from smartsched.core.capacity import Budget, Offer
from smartsched.core.model import HostName, PlacedGpu, Placement, Wait
from smartsched.core.needs import Need
from smartsched.core.placement import NO_GPU, fits, place
from tests.builders import GIB, a_key, a_policy, a_sample

CARD = 24 * GIB
AUTO: dict[str, Any] = {"jobs_per_gpu": "auto"}

HERE = HostName("")  # the only host


def an_offer(index: int = 0, **fields: Any) -> Offer:
    """A card of 24 GiB that nobody uses."""
    empty = Offer(
        sample=a_sample(index, memory_total_bytes=CARD, memory_free_bytes=CARD),
        visible=str(index),
        strangers_bytes=0,
        rank=(0, 0),
        runs=0,
        usable_bytes=CARD,
        left_bytes=CARD,
        percent=0.0,
        unexplained_bytes=0,
    )
    return replace(empty, **fields)


def a_need(gpus: int = 1, gib: float | None = None, **fields: Any) -> Need:
    memory = None if gib is None else int(gib * GIB)
    return replace(Need(gpus, memory, None, 100.0, None), **fields)


def a_budget(**fields: Any) -> Budget:
    unlimited = Budget(float("inf"), float("inf"), {HERE: float("inf")}, "--max-gpus 2")
    return replace(unlimited, **fields)


def labels(placement: Placement | Wait) -> str:
    assert isinstance(placement, Placement)
    return placement.labels


def wait(offers: list[Offer], need: Need, budget: Budget | None = None, **policy: Any) -> str:
    placed = place(offers, need, budget or a_budget(), a_policy(**policy))
    assert isinstance(placed, Wait)
    return placed.why


def test_the_first_of_the_offers_is_given():
    offers = [an_offer(2), an_offer(0)]

    assert labels(place(offers, a_need(), a_budget(), a_policy())) == "2"


def test_no_free_gpu_is_an_answer_in_words():
    assert wait([], a_need()) == "no GPU is free"


def test_a_mig_instance_is_labelled_by_card_and_slot():
    instance = an_offer(sample=a_sample(1, slot=2))

    assert labels(place([instance], a_need(), a_budget(), a_policy())) == "1:2"


def test_the_gpus_of_a_placement_are_labelled_together():
    both = Placement((PlacedGpu(a_key(0), "0", "0"), PlacedGpu(a_key(3), "3", "3")))

    assert both.labels == "0,3"


def test_a_job_of_several_gpus_gets_them_in_their_order():
    offers = [an_offer(3), an_offer(1), an_offer(2)]

    assert labels(place(offers, a_need(gpus=2), a_budget(), a_policy())) == "1,3"


def test_a_job_of_several_gpus_waits_for_all_of_them():
    assert wait([an_offer()], a_need(gpus=2)) == "a command needs 2 GPUs at once, and 1 can be had"


def test_all_gpus_of_a_job_are_on_one_host():
    far = an_offer(sample=replace(a_sample(1), key=a_key(1, "far")))
    near = [an_offer(0), an_offer(2)]

    assert labels(place([far, *near], a_need(gpus=2), a_budget(), a_policy())) == "0,2"


def test_a_job_of_several_gpus_is_on_the_host_where_it_shares_them_with_the_fewest():
    def there(index: int, host: str, runs: int) -> Offer:
        return an_offer(index, sample=replace(a_sample(index), key=a_key(index, host)), runs=runs)

    offers = [there(0, "near", 0), there(0, "far", 1), there(1, "far", 1), there(1, "near", 3)]

    given = place(offers, a_need(2, 5), a_budget(), a_policy(jobs_per_gpu=4))

    assert isinstance(given, Placement)
    assert given.host == "far"


def test_a_job_that_needs_no_gpu_gets_none():
    assert place([], a_need(gpus=0), a_budget(), a_policy()) == NO_GPU


def test_jobs_without_a_gpu_have_a_limit_of_their_own():
    assert "without a GPU" in wait([], a_need(gpus=0), a_budget(gpuless={HERE: 0}))


@pytest.mark.parametrize("need", [a_need(), a_need(gpus=0)])
def test_a_cap_on_jobs_is_one_on_all_of_them(need: Need):
    assert wait([an_offer()], need, a_budget(runs=0)) == "as many jobs run as --jobs allows"


def test_a_cap_on_gpus_counts_those_that_are_new_to_us():
    offers = [an_offer(0), an_offer(1, runs=1, left_bytes=9 * GIB)]

    placed = place(offers, a_need(gib=4), a_budget(gpus=0), a_policy(jobs_per_gpu=2))

    assert labels(placed) == "1"


def test_who_limits_the_gpus_is_said():
    words = wait([an_offer()], a_need(), a_budget(gpus=0))

    assert words == "as many GPUs are used as --max-gpus 2 allows"


def test_what_is_given_is_taken_from_the_offer_and_the_caps():
    offer, budget = an_offer(), a_budget(runs=5, gpus=3)

    placed = place([offer], a_need(gib=4, percent=30.0), budget, a_policy())

    assert isinstance(placed, Placement)
    assert (placed.gpus[0].reserved_bytes, placed.gpus[0].percent) == (4 * GIB, 30.0)
    assert (offer.runs, offer.left_bytes, offer.percent) == (1, CARD - 4 * GIB, 30.0)
    assert (budget.runs, budget.gpus) == (4, 2)


def test_who_is_alone_on_a_gpu_has_all_of_it():
    offer = an_offer()

    placed = place([offer], a_need(), a_budget(), a_policy(**AUTO))

    assert isinstance(placed, Placement)
    assert placed.gpus[0].reserved_bytes is None
    assert offer.left_bytes <= 0


@pytest.mark.parametrize(
    ("offer", "need", "policy", "does"),
    [
        ({"runs": 1}, a_need(gib=1), {}, False),
        ({"runs": 1}, a_need(gib=1), {"jobs_per_gpu": 2}, True),
        ({"runs": 2}, a_need(gib=1), {"jobs_per_gpu": 2}, False),
        ({"runs": 1}, a_need(), {"jobs_per_gpu": 2}, False),
        ({"runs": 1, "left_bytes": GIB}, a_need(gib=1), {"jobs_per_gpu": 2}, True),
        ({"runs": 1, "left_bytes": GIB - 1}, a_need(gib=1), {"jobs_per_gpu": 2}, False),
        ({"runs": 2, "percent": 100.0}, a_need(gib=1, percent=25.0), AUTO, True),
        ({"runs": 2, "percent": 100.0}, a_need(gib=1, percent=26.0), AUTO, False),
        ({"runs": 2, "percent": 180.0}, a_need(gib=1, percent=90.0), {"jobs_per_gpu": 3}, True),
        ({"runs": 3}, a_need(gib=1, percent=1.0), AUTO, False),
        ({}, a_need(gib=30), {}, True),
        ({}, a_need(gib=30, asked_bytes=30 * GIB), {}, False),
        ({}, a_need(gib=24, asked_bytes=24 * GIB), {}, True),
        ({"strangers_bytes": 1}, a_need(gib=24, asked_bytes=24 * GIB), {}, False),
    ],
    ids=[
        "one each", "two each", "two are there", "an unknown need", "just so much is left",
        "a byte too much", "just so much of its time", "too much of its time",
        "so many as the user said", "never more than three", "what was learned has a margin",
        "what was asked for", "all of it", "all of it, beside somebody",
    ],
)  # fmt: skip
def test_a_gpu_has_room_by_number_memory_and_time(
    offer: dict[str, Any], need: Need, policy: dict[str, Any], *, does: bool
):
    assert fits(an_offer(**offer), need, a_policy(**policy)) is does


def test_a_gpu_in_exclusive_mode_takes_one_run():
    exclusive = a_sample(compute_mode="exclusive")
    policy = a_policy(jobs_per_gpu=3)

    assert fits(an_offer(sample=exclusive), a_need(gib=1), policy)
    assert not fits(an_offer(sample=exclusive, runs=1), a_need(gib=1), policy)


def test_so_many_jobs_as_the_user_said_share_a_gpu_evenly():
    offer, budget = an_offer(strangers_bytes=GIB), a_budget()
    need, policy = a_need(shares=3), a_policy(jobs_per_gpu=3)

    given = [place([offer], need, budget, policy) for _ in range(3)]

    assert all(isinstance(placement, Placement) for placement in given)
    assert offer.left_bytes >= 0
    assert isinstance(place([offer], need, budget, policy), Wait)


def test_where_nothing_fits_it_is_said_what_is_missing():
    packed = an_offer(runs=1, left_bytes=GIB)

    assert wait([packed], a_need(gib=3), jobs_per_gpu=2) == (
        "a command needs 3 GiB on a GPU, and none has that left"
    )
    assert wait([packed], a_need(), **AUTO) == (
        "what a command will use is not known yet: it waits for a GPU for itself"
    )


def test_a_gpu_to_be_avoided_is_not_given():
    offers = [an_offer(0), an_offer(1)]

    assert labels(place(offers, a_need(), a_budget(), a_policy(), avoid=[a_key(0)])) == "1"


def test_where_all_are_to_be_avoided_it_waits():
    placed = place([an_offer(0)], a_need(), a_budget(), a_policy(), avoid=[a_key(0)])

    assert placed == Wait("a command that failed waits for another GPU than it failed on")
