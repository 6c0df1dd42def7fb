"""When so many jobs have failed that the rest is not worth starting."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.halt import Halt, parse_halt
from smartsched.core.totals import Totals
from smartsched.errors import UsageError

NONE = Totals()


@pytest.mark.parametrize(
    ("text", "halt"),
    [
        ("soon,fail=3", Halt(stop=False, failures=3, percent=None)),
        ("now,fail=1", Halt(stop=True, failures=1, percent=None)),
        ("now,fail=10%", Halt(stop=True, failures=None, percent=10)),
        ("soon,fail=100%", Halt(stop=False, failures=None, percent=100)),
        (" soon, fail = 3 ", Halt(stop=False, failures=3, percent=None)),
    ],
)
def test_what_can_be_asked_for(text: str, halt: Halt):
    assert parse_halt(text) == halt


@pytest.mark.parametrize(
    "text",
    ["", "soon", "fail=3", "later,fail=3", "soon,fail=", "soon,fail=-1", "soon,fail=1.5",
     "soon,success=1", "soon,fail=3,now", "SOON,fail=3", "soon;fail=3", "never", "soon,fail=٣",
     "soon,fail=3%%", "soon,fail=1234567890"],
)  # fmt: skip
def test_what_says_no_when(text: str):
    with pytest.raises(UsageError, match="write it as soon,fail=3 or now,fail=10%"):
        parse_halt(text)


@pytest.mark.parametrize("text", ["soon,fail=0", "now,fail=0%", "now,fail=101%"])
def test_what_would_halt_at_once_or_never(text: str):
    with pytest.raises(UsageError, match="1 or more"):
        parse_halt(text)


@given(st.text(max_size=20))
def test_any_text_is_parsed_or_refused(text: str):
    with suppress(UsageError):
        assert isinstance(parse_halt(text), Halt)


@pytest.mark.parametrize(
    ("failed", "why"), [(0, None), (2, None), (3, "3 jobs failed"), (1200, "1,200 jobs failed")]
)
def test_a_number_of_failures(failed: int, why: str | None):
    assert Halt(False, 3, None).reached(Totals(failed=failed, ok=5), NONE) == why


@pytest.mark.parametrize(
    ("ok", "failed", "why"),
    [
        (0, 0, None),
        (0, 2, None),
        (0, 3, "3 of 3 finished jobs failed"),
        (8, 2, "2 of 10 finished jobs failed"),
        (9, 2, None),
        (4, 1, "1 of 5 finished jobs failed"),
    ],
)
def test_a_share_of_the_finished(ok: int, failed: int, why: str | None):
    assert Halt(False, None, 20).reached(Totals(ok=ok, failed=failed), NONE) == why


def test_stopped_and_rejected_ones_are_no_failures_and_have_not_finished():
    totals = Totals(ok=2, failed=1, stopped=50, rejected=50, dropped=50)

    assert Halt(False, None, 30).reached(totals, NONE) == "1 of 3 finished jobs failed"
    assert Halt(False, 2, None).reached(totals, NONE) is None


def test_what_an_earlier_dispatcher_saw_does_not_count_again():
    before, now = Totals(ok=10, failed=9), Totals(ok=12, failed=10)

    assert Halt(False, 2, None).reached(now, before) is None
    assert Halt(False, None, 33).reached(now, before) == "1 of 3 finished jobs failed"
    assert Halt(False, None, 34).reached(now, before) is None
