"""How people who come to a GPU take its memory."""

import pytest

from smartsched.core.newcomers import Newcomers
from tests.builders import T0, a_process, used_by

LONG = 60.0  # after which anybody has settled
ALICE, BOB = 500, 600
Look = tuple[float, dict[int, float]]


def watched(*looks: Look, beside_ours: bool = True) -> Newcomers:
    """Who had how many of 100 GiB, so long after T0."""
    newcomers = Newcomers()
    for seconds, held in looks:
        people = [a_process(pid, gib) for pid, gib in held.items()]
        newcomers.see(used_by(*people), people, T0 + seconds, beside_ours=beside_ours)
    return newcomers


def counts(newcomers: Newcomers) -> tuple[int, int]:
    return newcomers.all.calm, newcomers.all.grabs


def test_who_was_there_before_anybody_looked_is_no_newcomer():
    assert counts(watched((0, {ALICE: 90}), (LONG, {ALICE: 99}))) == (0, 0)


def test_who_begins_small_and_grows_bit_by_bit_is_calm():
    looks: list[Look] = [(float(second), {ALICE: 0.5 + second}) for second in range(1, 20)]

    assert counts(watched((0, {}), *looks)) == (1, 0)


@pytest.mark.parametrize("gib", [50, 95])
def test_who_takes_most_of_the_memory_at_once_grabs(gib: int):
    assert counts(watched((0, {}), (1, {ALICE: gib}))) == (0, 1)
    assert counts(watched((0, {}), (1, {ALICE: 0.4}), (3, {ALICE: gib + 0.4}))) == (0, 1)


def test_who_has_settled_may_take_what_he_likes():
    looks: list[Look] = [
        (0.0, {}),
        (1.0, {ALICE: 0.4}),
        (LONG, {ALICE: 0.4}),
        (LONG + 1, {ALICE: 95}),
    ]

    assert counts(watched(*looks)) == (1, 0)


def test_who_goes_at_once_beside_runs_of_ours_may_not_have_got_his_memory():
    looks: list[Look] = [(0.0, {}), (1.0, {ALICE: 0.4}), (3.0, {})]

    assert counts(watched(*looks)) == (0, 1)
    assert counts(watched(*looks, beside_ours=False)) == (0, 0)


def test_each_is_counted_once():
    looks: list[Look] = [(0.0, {}), (1.0, {ALICE: 60, BOB: 0.4}), (2.0, {ALICE: 60, BOB: 0.4})]

    newcomers = watched(*looks, (LONG, {ALICE: 60, BOB: 0.4}), (2 * LONG, {BOB: 0.4}))

    assert counts(newcomers) == (1, 1)


def settled(*looks: Look) -> bool:
    newcomers = watched((0, {}), *looks)
    people = tuple(a_process(pid, gib) for pid, gib in looks[-1][1].items())
    return not list(newcomers.undecided(used_by(*people)))


def test_who_has_no_more_than_a_context_has_still_to_show_how_he_takes_his_memory():
    assert not settled((1, {ALICE: 0.4}))
    assert settled((1, {ALICE: 20}))
    assert settled((1, {ALICE: 0.4}), (LONG, {ALICE: 0.4}))


def test_of_several_all_have_to_have_settled():
    assert not settled((1, {ALICE: 20, BOB: 0.4}))


def test_where_nobody_came_all_have_settled():
    assert settled((1, {}))


def test_what_the_driver_does_not_say_counts_as_nothing():
    nobody_knows = a_process(ALICE, None)
    newcomers = watched((0, {}))

    newcomers.see(used_by(nobody_knows), [nobody_knows], T0 + 1, beside_ours=True)

    assert list(newcomers.undecided(used_by(nobody_knows)))
