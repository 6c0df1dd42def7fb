"""What there is to do for pilots, by what waits and who is here."""

from typing import Any

import pytest

from smartsched.core.demand import demand_of
from smartsched.core.events import Halted
from smartsched.core.hours import parse_cap
from smartsched.core.impossible import impossible
from smartsched.core.model import Asked, HostAway, HostHere, HostName, PilotsStand, Wait
from smartsched.core.pilots import Demand, PilotHost
from smartsched.core.slurm import PilotId
from smartsched.core.standing import BEING_STARTED
from smartsched.core.state import Closing, State
from tests.builders import (
    GIB,
    HOST,
    T0,
    a_process,
    a_sample,
    a_snapshot,
    a_state,
    decided,
    see,
    used_by,
)

BOX, GPU1 = HostName(HOST), HostName("gpu1")


def a_run_of_pilots(queued: int = 0, **fields: Any) -> State:
    return a_state(queued=queued, spans_hosts=True, gpus_per_pilot=2, **fields)


def demand(state: State, *pilots: HostName, **fields: Any) -> Demand:
    """Each pilot has the name of its host."""
    about: dict[str, Any] = {"ending": (), "blind": ()}
    return demand_of(state, {host: PilotId(host) for host in pilots}, T0 + 1, **about | fields)


def test_each_job_that_waits_takes_what_it_wishes():
    assert demand(a_run_of_pilots(3)).needs == (1, 1, 1)
    assert demand(a_run_of_pilots(2, gpus_per_job=2)).needs == (2, 2)


def test_jobs_that_share_a_gpu_take_one_together():
    assert demand(a_run_of_pilots(5, jobs_per_gpu=2)).needs == (1, 1, 1)


@pytest.mark.parametrize("cap", ["most_jobs", "most_gpus"])
def test_what_caps_do_not_allow_to_run_is_no_reason_for_pilots(cap: str):
    found = demand(a_run_of_pilots(5, **{cap: parse_cap("2")}))

    assert found.needs == (1, 1)


def test_when_nothing_more_is_started_nothing_is_needed():
    state = a_run_of_pilots(3)
    state.input_open = False
    state.closing = Closing.DRAIN

    assert demand(state).is_over


def test_a_run_that_is_paused_needs_nothing_and_is_not_over():
    state = a_run_of_pilots(3)
    state.paused = True

    assert demand(state).needs == ()
    assert demand(state).more_to_come


def test_a_pilot_that_has_just_come_is_as_large_as_it_should_be():
    state = a_run_of_pilots()
    see(state, HostHere(BOX, "node", 8))

    assert demand(state, BOX).joined == {PilotId(BOX): PilotHost(2, 2, is_idle=True)}
    assert demand(state, BOX, blind=[BOX]).joined[PilotId(BOX)].gpus == 0


def test_gpus_that_others_use_are_not_open():
    state = a_run_of_pilots()
    see(state, HostHere(BOX, "node", 8))
    see(state, a_snapshot(used_by(a_process(gib=40)), a_sample(1)))

    assert demand(state, BOX).joined[PilotId(BOX)] == PilotHost(2, 1, is_idle=True)


def test_hosts_that_are_no_pilots_take_their_part():
    state = a_run_of_pilots(3)
    see(state, HostHere(BOX, "node", 8))
    see(state, a_snapshot(a_sample(0), a_sample(1)))

    assert demand(state).elsewhere == (2,)
    see(state, HostHere(BOX, "node", 8, leaves=True))
    assert demand(state).elsewhere == ()


def test_hosts_that_are_being_started_are_waited_for():
    state = a_run_of_pilots(3)
    see(state, HostAway(GPU1, BEING_STARTED))

    assert sum(demand(state).elsewhere) >= 3
    see(state, HostAway(GPU1, "cannot reach gpu1"))
    assert demand(state).elsewhere == ()


def test_what_is_larger_than_a_pilot_will_never_be():
    state = a_run_of_pilots(1, gpus_per_job=3)
    [why] = impossible(state).values()

    assert why == "it needs 3 GPUs on one host, and a pilot has 2 (--gpus-per-pilot)"


def test_what_a_host_is_large_enough_for_may_be_though_a_pilot_is_not():
    state = a_run_of_pilots(1, gpus_per_job=3)
    see(state, HostHere(BOX, "node", 8))
    see(state, a_snapshot(*(a_sample(index) for index in range(3))))

    assert impossible(state) == {}


def test_on_a_pilot_nobody_knows_what_memory_there_will_be():
    state = a_run_of_pilots(1, job_memory=4000 * GIB)
    see(state, HostHere(BOX, "node", 8))
    see(state, a_snapshot(a_sample(0)))

    assert state.asked == {Asked(None, None): 1}
    assert impossible(state) == {}


def test_a_run_for_which_nobody_will_come_ends():
    state = a_run_of_pilots(1)
    see(state, PilotsStand("no pilots", may_bring=True, hopeless="no more are submitted: why"))

    [event] = decided(state).events

    assert event == Halted(T0, "no more are submitted: why", stop=False)


def test_it_does_not_end_while_a_host_is_here():
    state = a_run_of_pilots(1)
    see(state, HostHere(BOX, "node", 8))
    see(state, PilotsStand("no pilots", may_bring=True, hopeless="no more are submitted: why"))

    assert decided(state).events == []


def test_whoever_waits_is_told_how_pilots_stand():
    state = a_run_of_pilots(1)
    assert decided(state).waiting == Wait("no host is here yet")

    see(state, PilotsStand("1 pilot waits (Resources)", may_bring=True, hopeless=""))

    assert decided(state).waiting == Wait("Slurm: 1 pilot waits (Resources)")
