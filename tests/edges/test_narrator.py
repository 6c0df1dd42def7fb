"""What people are told, in which words."""

from typing import Literal

from smartsched.core.apply import apply
from smartsched.core.events import Event
from smartsched.core.model import Lost, Timestamp
from smartsched.core.state import State
from smartsched.edges.narrator import Narrator
from tests.builders import T0, a_state, begun, exited, finished, listed, requeued


class Page:
    """A View that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(
        self,
        at: Timestamp,  # noqa: ARG002
        text: str,
        tone: Literal["plain", "good", "bad", "notice"],  # noqa: ARG002
    ) -> None:
        self.lines.append(text)

    def refresh(self, state: State, now: Timestamp) -> None: ...

    def wake_at(self) -> Timestamp:
        return float("inf")

    def close(self) -> None: ...


def no_log(path: str, lines: int) -> list[str]:
    return []


def narrator_on(page: Page) -> Narrator:
    return Narrator(
        page,
        tail=no_log,
        quiet=False,
        verbose=False,
        single=False,
        logs=None,
        run_name="test",
        how_to_go_on="smartsched --resume test",
        here="/",
    )


def summary_of(state: State) -> str:
    page = Page()

    narrator_on(page).finish(state, T0)

    return page.lines[0]


def told(*events: Event) -> list[str]:
    """Of what happens after a list of one command was accepted."""
    page, state = Page(), a_state(events=listed("a"))
    narrator = narrator_on(page)
    for event in events:
        apply(state, event)
        narrator.recorded(event, state, T0)
    return page.lines


def gave_way(attempt: int) -> list[Event]:
    """It had its GPU for half an hour."""
    return [
        *begun(1, attempt=attempt, at=T0),
        exited(1, attempt, at=T0 + 1800),
        requeued(1, "contention", attempt, at=T0 + 1800),
    ]


def test_the_summary_says_how_often_jobs_gave_way_and_what_that_took():
    last = [*begun(1, attempt=3), exited(1, 3, at=T0 + 3600), finished(1, attempt=3)]
    state = a_state(events=[*listed("a"), *gave_way(1), *gave_way(2), *last])

    assert "2.00 GPU-hours, 1.00 of them in 2 runs that gave way to others" in summary_of(state)


def test_the_summary_says_nothing_of_giving_way_where_nobody_did():
    state = a_state(events=[*listed("a"), *begun(1), exited(1, at=T0 + 3600), finished(1)])

    assert "1.00 GPU-hours" in summary_of(state)
    assert "gave way" not in summary_of(state)


def test_of_a_job_that_was_cancelled_out_of_reach_it_is_said_that_it_may_still_run():
    why = "its host gpu1 is out of reach, where it may still run"
    gone = exited(1, at=T0 + 60, ending=Lost(why))

    lines = told(*begun(1), gone, finished(1, "cancelled", at=T0 + 60))

    assert lines[-1] == f"job 1 cancelled after 1m 00s on GPU 0: {why}"


def test_a_job_that_goes_on_out_of_reach_is_not_said_to_be_unkillable():
    page = Page()
    state = a_state(events=[*listed("a"), *begun(1)], spans_hosts=True)

    narrator_on(page).finish(state, T0)

    assert page.lines[0] == "job 1 may still run on GPU 0, which is out of reach"
    assert page.lines[-1] == "to go on with what is left: smartsched --resume test"
