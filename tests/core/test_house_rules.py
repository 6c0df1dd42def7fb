"""What administrators allow holds on their own hosts, whatever a run is given in all."""

from smartsched.core.capacity import caps_change_at
from smartsched.core.hours import NO_CAP, Cap, parse_cap
from smartsched.core.model import HostHere, HostName
from smartsched.core.state import State
from tests.builders import T0, a_snapshot, see
from tests.core.test_hosts import GPU1, GPU2, a_cluster, begun, decided, on, starts

FOUR = ("a", "b", "c", "d")


def here(
    state: State,
    host: HostName,
    *,
    most_gpus: Cap = NO_CAP,
    leave_free: Cap = NO_CAP,
    gpus: int = 3,
    at: float = 0.0,
) -> None:
    """Its agent is, and nobody else uses its GPUs."""
    seen = [on(index, host) for index in range(gpus)]
    see(state, HostHere(host, "node", 8, most_gpus=most_gpus, leave_free=leave_free), T0 + at)
    see(state, a_snapshot(*seen, at=T0 + at, host=host))


def test_on_a_host_no_more_gpus_are_used_than_its_administrator_allows():
    state = a_cluster(*FOUR)
    here(state, GPU1, most_gpus=parse_cap("1"))
    here(state, GPU2)

    assert starts(decided(state)) == [
        (1, "gpu1/0"), (2, "gpu2/0"), (3, "gpu2/1"), (4, "gpu2/2"),
    ]  # fmt: skip


def test_those_that_are_in_use_count():
    state = a_cluster(*FOUR, more=begun())
    here(state, GPU1, most_gpus=parse_cap("2"), at=1.0)

    decision = decided(state, 1.0)

    assert starts(decision) == [(2, "gpu1/1")]
    assert decision.waiting is not None
    assert "its administrator wants at most --max-gpus 2 there" in decision.waiting.why


def test_on_a_host_as_many_stay_free_as_its_administrator_wants():
    state = a_cluster(*FOUR)
    here(state, GPU1, leave_free=parse_cap("2"))

    decision = decided(state)

    assert starts(decision) == [(1, "gpu1/0")]
    assert decision.waiting is not None
    assert "its administrator wants at least --leave-free 2 there" in decision.waiting.why


def test_what_stays_free_on_one_host_counts_for_what_the_user_leaves_in_all():
    state = a_cluster(*FOUR, leave_free=parse_cap("1"))
    here(state, GPU1, leave_free=parse_cap("1"), gpus=2)
    here(state, GPU2, gpus=2)

    assert len(starts(decided(state))) == 3


def test_when_a_host_allows_more_somebody_wakes():
    state = a_cluster("a")
    here(state, GPU1, most_gpus=parse_cap("0@00-12,4@12-24"))

    assert T0 < caps_change_at(state, T0) <= T0 + 86400
