"""Forms that follow from the types of fields."""

import json
import subprocess
import sys
from collections import Counter, deque
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import pytest
from msgspec import Struct, field

from smartsched.core.derived import fingerprint, form_of
from smartsched.core.model import Exited, GpuKey, JobId, Killed, RunKey
from smartsched.core.state import State
from tests.builders import a_key, a_run


class Colour(IntEnum):
    RED = 1
    BLUE = 2


class Pair(NamedTuple):
    left: int
    right: "Leaf | None"


class Leaf(Struct, frozen=True):
    size: int
    word: str = "green"


class Tree(Struct):
    leaves: dict[RunKey, Leaf] = field(default_factory=dict)
    height: float | None = None


class Taller(Tree):
    roots: int = 0


VALUES: list[tuple[Any, Any]] = [
    (int, 3),
    (str, "\udcff\u4e2d"),
    (Literal["a", "b"], "a"),
    (float | None, None),
    (JobId, JobId(7)),
    (GpuKey, a_key()),
    (tuple[GpuKey, ...], (a_key(1), a_key(0))),
    (deque[int], deque([2, 1])),
    (set[JobId], {JobId(3), JobId(1)}),
    (frozenset[int], frozenset({5})),
    (list[Leaf], [Leaf(1), Leaf(2, "red")]),
    (dict[str, list[int]], {"b": [1], "a": []}),
    (Counter[Pair], Counter({Pair(1, None): 2})),
    (Pair, Pair(1, Leaf(2, "red"))),
    (Colour, Colour.BLUE),
    (Exited | Killed | None, Killed(9)),
    (Exited | Killed | None, None),
    (Tree, Tree({a_run(): Leaf(1), a_run(2): Leaf(3)}, 2.5)),
    (Tree, Tree()),
]


@pytest.mark.parametrize(("hint", "value"), VALUES, ids=lambda each: repr(each)[:40])
def test_a_value_comes_back_as_it_was_and_of_its_kind(hint: Any, value: Any):
    form = form_of(hint)

    back = form.of_json(json.loads(json.dumps(form.to_json(value))))

    assert back == value
    assert type(back) is type(value)


def test_the_order_of_a_dictionary_is_kept():
    form = form_of(dict[RunKey, Leaf])
    leaves = {a_run(3): Leaf(1), a_run(1): Leaf(2)}

    assert list(form.of_json(form.to_json(leaves))) == [a_run(3), a_run(1)]


def test_what_is_as_by_default_takes_no_room():
    assert form_of(Leaf).to_json(Leaf(1)) == {"size": 1}


def test_the_same_value_may_be_of_several_classes():
    assert form_of(Exited | Killed).to_json(Exited(1)) == ["Exited", {"code": 1}]


@pytest.mark.parametrize("hint", [complex, object, list, dict[str, complex], Any])
def test_what_cannot_be_written_is_refused_at_once(hint: Any):
    with pytest.raises(TypeError):
        form_of(hint)


def test_another_field_anywhere_gives_another_fingerprint():
    assert fingerprint(Tree) != fingerprint(Taller)
    assert fingerprint(list[Tree]) == fingerprint(Tree)


def test_a_fingerprint_is_the_same_in_every_process():
    program = (
        "from smartsched.core.derived import fingerprint\n"
        "from smartsched.core.state import State\n"
        "print(fingerprint(State))"
    )

    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert told.stdout.decode().strip() == fingerprint(State)
