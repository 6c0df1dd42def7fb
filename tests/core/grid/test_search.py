"""Combinations: which there are, in which order, and which searches make no sense."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice, product

import pytest

from smartsched.core.grid.search import Search
from smartsched.core.grid.values import values_of
from smartsched.errors import UsageError


def search(template: str, *zipped: Sequence[str], **words: str) -> Search:
    """Values of parameters as they stand behind -p."""
    parameters = {name: values_of(text.split()) for name, text in words.items()}
    return Search(template, parameters, zipped)


def test_the_last_parameter_turns_fastest():
    found = search("x {b} {a}", a="1 2", b="int:3:5")

    pairs = [f"x {b} {a}" for a, b in product("12", "345")]
    assert list(found.in_order()) == pairs
    assert list(found.in_order(4)) == pairs[:4]


def test_a_shuffled_grid_is_the_grid_in_another_order():
    found = search("x {a} {b}", a="int:1:20", b="int:1:30")

    commands = list(found.at_random(seed=1))

    assert commands != list(found.in_order())
    assert sorted(commands) == sorted(found.in_order())


def test_a_sample_has_no_repeats_and_begins_like_a_smaller_one():
    found = search("x {a} {b}", a="uniform:0:1", b="choice:x,y")

    sample = list(found.at_random(5, most=1000))

    assert len(set(sample)) == 1000
    assert list(found.at_random(5, most=10)) == sample[:10]
    assert Counter(command[-1] for command in sample)["x"] == pytest.approx(500, abs=80)


def test_zipped_parameters_go_together():
    found = search("x {a} {b} {c} {d}", ["a", "c"], ["d", "b"], a="1 2", b="3 4", c="5 6", d="7 8")

    assert list(found.in_order()) == ["x 1 3 5 7", "x 1 4 5 8", "x 2 3 6 7", "x 2 4 6 8"]


def test_a_parameter_may_have_several_places_each_with_its_quotes():
    parameters = {"a": values_of(["it's 5%"])}

    command = Search("x {a} '{a}' \"{a}\" {a:raw}", parameters).command(0)

    assert command == "x 'it'\\''s 5%' 'it'\\''s 5%' \"it's 5%\" it's 5%"


def test_more_combinations_than_anybody_could_count_are_no_trouble():
    million = f"int:1:{10**6}"
    found = search("x {a} {b} {c}", a=million, b=million, c=million)

    first = list(islice(found.at_random(seed=0), 3))

    assert found.count == 10**18
    assert len(set(first)) == 3
    assert next(found.in_order()) == "x 1 1 1"


@pytest.mark.parametrize(
    ("template", "words", "why"),
    [
        ("x", {}, "no parameter"),
        ("x {a}", {}, "for {a} there are no values"),
        ("x {a} {b}", {"a": "1"}, "for {b} there are no values"),
        ("x {a}", {"a": "1", "b": "2"}, "-p b is not used"),
        ("x {a} # smartsched: gpu=2", {"a": "1"}, "'gpu' cannot be asked for"),
        ("x # smartsched: gpus={a}", {"a": "many"}, "'many' is no whole number"),
        ("{a:raw}", {"a": "#"}, "skipped as a comment"),
    ],
)
def test_a_search_that_makes_no_list_is_refused(template: str, words: dict[str, str], why: str):
    with pytest.raises(UsageError, match=why):
        search(template, **words)


@pytest.mark.parametrize(
    ("zipped", "why"),
    [
        ([["a"]], "two parameters"),
        ([[]], "two parameters"),
        ([["a", "z"]], "no parameter 'z'"),
        ([["a", "a"]], "a is there twice"),
        ([["a", "b"], ["b", "c"]], "b is there twice"),
        ([["a", "three"]], "a has 2 values and three 3"),
        ([["a", "u"]], "u is sampled"),
    ],
    ids=str,
)
def test_parameters_that_cannot_go_together_are_refused(zipped: list[list[str]], why: str):
    words = {"a": "1 2", "b": "1 2", "c": "1 2", "three": "1 2 3", "u": "choice:1,2"}
    template = "x {a} {b} {c} {three} {u}"

    with pytest.raises(UsageError, match=why):
        search(template, *zipped, **words)


@pytest.mark.parametrize("mode", ["in_order", "at_random"])
def test_more_samples_than_there_are_combinations_are_refused(mode: str):
    found = search("x {a} {b}", a="1 2", b="1 2 3")

    with pytest.raises(UsageError, match="7 is more than there are: 6 combinations"):
        found.in_order(7) if mode == "in_order" else found.at_random(0, 7)


def test_a_distribution_is_sampled_so_many_times_and_at_random():
    found = search("x {a}", a="uniform:0:1")

    with pytest.raises(UsageError, match="a is sampled: say how often with --n-samples"):
        found.at_random(0)
    with pytest.raises(UsageError, match="without --sampling-mode grid"):
        found.in_order(3)


def test_the_wish_behind_a_command_stays_there():
    found = search("x {a}  # smartsched: gpus={n} name=x-{a}", ["a", "n"], a="1 2", n="2 4")

    assert list(found.in_order()) == [
        "x 1  # smartsched: gpus=2 name=x-1",
        "x 2  # smartsched: gpus=4 name=x-2",
    ]
