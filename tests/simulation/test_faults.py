"""What becomes of a batch when GPUs, commands or the disk fail, in virtual time."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from smartsched.core.events import GpuWithheld, Halted, RunExited
from smartsched.core.guard import THE_COMMAND_FAILS
from smartsched.core.model import Ending, Exited, Killed
from smartsched.core.state import State
from smartsched.simulation.box import PretendBox, PretendJob, commands_at_once
from tests.builders import INSTANT, a_policy
from tests.simulation.witness import Witness

HOUR = 3600.0
FAILS_AT_ONCE = PretendJob(0.5, ending=Exited(1))


def a_box(job: PretendJob, count: int, gpus: int) -> PretendBox:
    box = PretendBox(gpus, lambda _: job, commands_at_once(f"job {n}" for n in range(1, count + 1)))
    Witness(box, INSTANT)
    return box


def finish(box: PretendBox, **options: float | bool) -> State:
    return box.run(a_policy(**options)).state


def gpus_tried(box: PretendBox) -> dict[str, list[int]]:
    tried: dict[str, list[int]] = {}
    for _, _, command, gpu in box.launched:
        tried.setdefault(command, []).append(gpu)
    return tried


def endings(box: PretendBox) -> list[Ending]:
    return [event.ending for event in box.events if isinstance(event, RunExited)]


def test_a_gpu_on_which_everything_fails_costs_a_few_attempts_and_no_job():
    box = a_box(PretendJob(30.0), count=40, gpus=4)
    box.broken[1] = FAILS_AT_ONCE

    state = finish(box)

    assert (state.totals.ok, state.totals.failed) == (40, 0)
    assert [gpu for *_, gpu in box.launched].count(1) <= 4
    assert [e.gpu.uuid for e in box.events if isinstance(e, GpuWithheld)] == [
        next(key.uuid for key, watch in state.gpus.items() if watch.latest.index == 1)
    ]


def test_without_the_guard_a_gpu_on_which_everything_fails_eats_the_list():
    box = a_box(PretendJob(30.0), count=40, gpus=4)
    box.broken[1] = FAILS_AT_ONCE

    state = finish(box, guard=False)

    assert state.totals.failed > 20


def test_a_list_of_which_every_command_fails_at_once_is_halted_soon():
    box = a_box(FAILS_AT_ONCE, count=1000, gpus=4)
    began = box.clock.time

    state = finish(box)

    why = [event.why for event in box.events if isinstance(event, Halted)]
    assert state.halted
    assert len(why) == 1
    assert THE_COMMAND_FAILS in why[0]
    assert len(box.launched) <= 4 * 3
    assert box.clock.time - began < 60


@pytest.mark.parametrize("guard", [False, True])
def test_what_failed_is_tried_again_on_another_gpu(guard: bool):
    box = a_box(PretendJob(30.0), count=2, gpus=2)
    box.broken[0] = FAILS_AT_ONCE

    state = finish(box, retries=1, guard=guard)

    assert state.totals.ok == 2
    assert gpus_tried(box) == {"job 1": [0, 1], "job 2": [1]}


def test_with_one_gpu_what_failed_is_tried_again_there():
    box = a_box(FAILS_AT_ONCE, count=1, gpus=1)

    state = finish(box, retries=2)

    assert state.totals.failed == 1
    assert gpus_tried(box) == {"job 1": [0, 0, 0]}


def test_another_try_waits_twice_as_long_each_time():
    box = a_box(FAILS_AT_ONCE, count=1, gpus=1)

    finish(box, retries=3, retry_delay_seconds=10.0)

    starts = [at for at, *_ in box.launched]
    gaps = [after - before for before, after in pairwise(starts)]
    assert gaps == pytest.approx([10.5, 20.5, 40.5], abs=0.1)


@pytest.mark.parametrize(
    ("job", "ending", "lasts"),
    [
        (PretendJob(HOUR), Killed(15), 60),
        (PretendJob(HOUR, ending_when_asked=Exited(0)), Exited(0), 60),
        (PretendJob(HOUR, ignores_sigterm=True), Killed(9), 70),
    ],
    ids=["ends when asked", "saves its state", "has to be killed"],
)
def test_what_takes_too_long_is_stopped_and_has_failed(
    job: PretendJob, ending: Ending, lasts: float
):
    box = a_box(job, count=1, gpus=1)
    began = box.clock.time

    state = finish(box, timeout_seconds=60.0, grace_seconds=10.0)

    assert endings(box) == [ending]
    assert state.totals.failed == 1
    assert box.clock.time - began == pytest.approx(lasts, abs=0.1)


def test_what_took_too_long_is_tried_again():
    box = a_box(PretendJob(HOUR), count=1, gpus=1)

    state = finish(box, timeout_seconds=60.0, retries=2)

    assert endings(box) == [Killed(15)] * 3
    assert state.totals.failed == 1


def test_while_the_disk_is_full_runs_end_and_count_and_nothing_starts():
    box = a_box(PretendJob(60.0), count=10, gpus=2)
    full = (box.clock.time + 90, box.clock.time + 90 + HOUR)
    box.disk_is_full = [full]
    counts: list[int] = []
    box.observers.append(during(box, full, lambda state: counts.append(state.totals.ok)))

    state = finish(box)

    assert max(counts) == 4
    assert not [at for at, *_ in box.launched if full[0] <= at < full[1]]
    assert state.totals.ok == 10
    assert len(box.launched) == 10
    assert box.launched[4][0] == pytest.approx(full[1], abs=31)


def during(
    box: PretendBox, times: tuple[float, float], look: Callable[[State], None]
) -> Callable[[State, float], None]:
    def observe(state: State, _: float) -> None:
        if times[0] <= box.clock.time < times[1]:
            look(state)

    return observe
