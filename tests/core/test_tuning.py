"""Who is given the time to save its state before other people need the memory."""

from collections.abc import Sequence

import pytest

from smartsched.core.actions import Action, Checkpoint, Terminate
from smartsched.core.events import Event
from smartsched.core.model import GpuProcess
from smartsched.core.state import State
from tests.builders import (
    T0,
    a_process,
    a_run,
    a_sample,
    a_snapshot,
    a_state,
    accepted,
    decided,
    launched,
    placed,
    see,
    used_by,
)

RUNNING: list[Event] = [*accepted(1), placed(), launched()]
OURS = a_process(pid=77, gib=30.0, user="me", run_tag="test/1/1")
TRAIN, SERVE = "python train.py --lr 0.1", "python serve.py --preallocate"
SMALL, BIT_BY_BIT, AT_ONCE = 0.5, 2.0, 60.0  # GiB
SAVES: list[Action] = [Checkpoint(a_run())]
ENDS: list[Action] = [Terminate(a_run())]


def after(*came: tuple[str, float], asks_for_checkpoints: bool = True) -> State:
    """A run of ours is on GPU 0. GPU 1 saw these programs begin small, and hold so much later."""
    state = a_state(
        used_by(OURS),
        a_sample(1),
        events=RUNNING,
        on_contention="requeue",
        asks_for_checkpoints=asks_for_checkpoints,
    )
    for seconds, grown in ((1.0, False), (12.0, True)):
        processes = [
            a_process(600 + number, gib if grown else SMALL, command=command)
            for number, (command, gib) in enumerate(came)
        ]
        see(state, a_snapshot(used_by(*processes, index=1), at=T0 + seconds, whole=False))
    return state


def done_for(state: State, *newcomers: GpuProcess) -> Sequence[Action]:
    """They come to the GPU of our run."""
    see(state, a_snapshot(used_by(OURS), at=T0 + 13, whole=False))
    gpu = used_by(OURS, *newcomers, utilization_percent=90)
    see(state, a_snapshot(gpu, at=T0 + 14, whole=False))
    return decided(state, 14.0).actions


def test_a_run_may_save_its_state_for_a_program_that_was_seen_to_begin_small():
    state = after((TRAIN, BIT_BY_BIT), (TRAIN, BIT_BY_BIT), (TRAIN, BIT_BY_BIT))

    assert done_for(state, a_process(700, SMALL, command="python train.py --lr 0.5")) == SAVES


def test_a_run_ends_at_once_for_a_program_that_was_hardly_seen():
    state = after((TRAIN, BIT_BY_BIT), (TRAIN, BIT_BY_BIT))

    assert done_for(state, a_process(700, SMALL, command=TRAIN)) == ENDS


def test_a_run_ends_at_once_for_a_program_that_takes_nearly_all_memory_at_once():
    state = after(*[(TRAIN, BIT_BY_BIT)] * 12, (SERVE, AT_ONCE))

    assert done_for(state, a_process(700, SMALL, command=SERVE)) == ENDS


def test_that_one_program_takes_all_memory_at_once_is_not_held_against_another():
    state = after(*[(TRAIN, BIT_BY_BIT)] * 3, (SERVE, AT_ONCE))

    assert done_for(state, a_process(700, SMALL, command=TRAIN)) == SAVES


@pytest.mark.parametrize("command", ["python new.py", None])
def test_where_everybody_began_small_so_is_an_unknown_program_expected_to(command: str | None):
    many = after(*[(f"python {letter}.py", BIT_BY_BIT) for letter in "abcdefghijkl"])
    few = after(*[(f"python {letter}.py", BIT_BY_BIT) for letter in "abcdefghijk"])

    assert done_for(many, a_process(700, SMALL, command=command)) == SAVES
    assert done_for(few, a_process(700, SMALL, command=command)) == ENDS


def test_an_unknown_program_is_not_trusted_where_some_take_all_memory_at_once():
    state = after(*[(TRAIN, BIT_BY_BIT)] * 12, (SERVE, AT_ONCE))

    assert done_for(state, a_process(700, SMALL, command="python new.py")) == ENDS


def test_a_rare_exception_is_not_held_against_a_program():
    state = after(*[(TRAIN, BIT_BY_BIT)] * 50, (TRAIN, AT_ONCE))

    assert done_for(state, a_process(700, SMALL, command=TRAIN)) == SAVES


def test_all_of_several_newcomers_have_to_be_known_to_begin_small():
    state = after(*[(TRAIN, BIT_BY_BIT)] * 12, (SERVE, AT_ONCE))
    train, serve = a_process(700, SMALL, command=TRAIN), a_process(701, SMALL, command=SERVE)

    assert done_for(state, train, serve) == ENDS


def test_who_already_holds_what_he_will_is_no_reason_for_haste():
    state = after((SERVE, AT_ONCE))

    assert done_for(state, a_process(700, AT_ONCE, command=SERVE)) == SAVES


def test_a_run_is_not_asked_to_save_its_state_unless_the_user_said_how():
    state = after(*[(TRAIN, BIT_BY_BIT)] * 3, asks_for_checkpoints=False)

    assert done_for(state, a_process(700, SMALL, command=TRAIN)) == ENDS
