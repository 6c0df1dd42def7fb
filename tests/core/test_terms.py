"""What a run goes by beside its jobs: of its dispatchers, the most patient one counts."""

import pytest

from smartsched.core.events import RunBegan, RunResumed
from smartsched.core.terms import Terms, lost_after, terms_of
from tests.builders import HOST, T0


def after(*seconds: float | None) -> Terms:
    """A run whose dispatchers were as patient as that, one after the other."""
    first, *others = seconds
    terms = terms_of(RunBegan(T0, "run", HOST, "/", (), None, "{}", lost_after_seconds=first))
    for each in others:
        terms.take(RunResumed(T0, HOST, "{}", lost_after_seconds=each))
    return terms


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [
        ([30.0], 30.0),
        ([600.0, 30.0], 600.0),
        ([30.0, 600.0, 30.0], 600.0),
        ([0.0, 30.0], 30.0),
        ([None, 30.0], None),
        ([30.0, None], None),
    ],
)
def test_what_may_still_go_on_is_not_taken_for_lost_by_a_later_dispatcher(
    seconds: list[float | None], counts: float | None
):
    assert after(*seconds).lost_after_seconds == counts


def test_a_dispatcher_reckons_with_those_before_it():
    assert after(600.0).longer(30.0) == 600.0
    assert after(30.0).longer(600.0) == 600.0
    assert after(None).longer(30.0) is None


def test_what_has_a_lease_has_ended_some_time_after_that_and_the_grace():
    seconds = lost_after(300.0, 60.0)

    assert seconds is not None
    assert seconds > 360.0
    assert lost_after(None, 60.0) is None
