"""How many pilots are wanted: histories of what Slurm says and what there is to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.pilot_news import (
    Answers,
    Ended,
    Ends,
    PilotNews,
    Refused,
    Runs,
    Silent,
    Submitted,
    Waits,
)
from smartsched.core.pilots import (
    ENDING_PATIENCE_SECONDS,
    IDLE_SECONDS,
    SURPLUS_SECONDS,
    Demand,
    PilotHost,
    Pilots,
    Plan,
)
from smartsched.core.slurm import PilotId

T0 = 1000.0
HOUR = 3600.0
FULL = PilotHost(gpus=2, open_gpus=0, is_idle=False)
IDLE = PilotHost(gpus=2, open_gpus=2, is_idle=True)
NOTHING_LEFT = Demand((), more_to_come=False, has_runs=False)


def pilot(number: int) -> PilotId:
    return PilotId(str(number))


def demand(
    *needs: int,
    more: bool = False,
    runs: bool = True,
    joined: Mapping[int, PilotHost] | None = None,
    elsewhere: Sequence[int] = (),
) -> Demand:
    hosts = {pilot(number): host for number, host in (joined or {}).items()}
    return Demand(needs, more, runs, hosts, elsewhere)


@dataclass
class Story:
    """Slurm takes what is submitted and numbers it 1, 2, 3 ..."""

    most: int = 4
    gpus: int = 2
    resumed: bool = False
    now: float = T0
    submitted: int = 0
    pilots: Pilots = field(init=False)

    def __post_init__(self) -> None:
        self.pilots = Pilots(
            most=self.most, gpus_per_pilot=self.gpus, warn_seconds=120.0, resumed=self.resumed
        )

    def plan(self, what: Demand, after: float = 0.0) -> Plan:
        self.now += after
        return self.pilots.plan(what, self.now)

    def hear(self, *news: PilotNews) -> None:
        for each in news:
            self.pilots.hear(each, self.now)

    def submit_all(self, what: Demand) -> list[PilotId]:
        """Plan until there is nothing to submit; the new ones."""
        before = self.submitted
        while self.plan(what).submit:
            self.submitted += 1
            assert self.submitted < 100
            self.hear(Submitted(pilot(self.submitted)))
        return [pilot(number) for number in range(before + 1, self.submitted + 1)]

    def runs(self, number: int, ends_at: float | None = None) -> None:
        self.hear(Runs(pilot(number), "node", ends_at))

    def joins(self, number: int, ends_at: float | None = None) -> None:
        self.runs(number, ends_at)
        self.pilots.joined(pilot(number))


# --- submitting


def test_without_anything_to_do_there_are_no_pilots():
    story = Story()

    assert story.submit_all(demand(more=True)) == []


def test_there_are_at_most_so_many_pilots_however_many_jobs_wait():
    assert len(Story(most=4).submit_all(demand(*[1] * 200))) == 4


@pytest.mark.parametrize(
    ("needs", "gpus", "number"),
    [
        ([1], 2, 1),
        ([1, 1], 2, 1),
        ([1, 1, 1], 2, 2),
        ([2, 1, 1], 2, 2),
        ([4, 1, 3, 2, 2], 4, 3),
        ([3], 2, 0),
        ([3, 1], 2, 1),
    ],
)
def test_there_are_as_many_as_the_waiting_jobs_fill(needs: list[int], gpus: int, number: int):
    assert len(Story(gpus=gpus).submit_all(demand(*needs))) == number


def test_one_is_submitted_after_the_other():
    story = Story()

    assert story.plan(demand(1, 1, 1, 1)).submit
    assert not story.plan(demand(1, 1, 1, 1)).submit
    story.hear(Submitted(pilot(1)))
    assert story.plan(demand(1, 1, 1, 1)).submit


def test_jobs_for_which_there_is_room_already_are_no_reason():
    story = Story()

    assert not story.plan(demand(1, 1, elsewhere=[2])).submit
    assert not story.plan(demand(2, joined={7: IDLE})).submit
    assert story.plan(demand(2, elsewhere=[1, 1])).submit


def test_what_comes_already_is_waited_for():
    story = Story()
    story.submit_all(demand(1, 1))

    story.runs(1)

    assert not story.plan(demand(1, 1)).submit
    assert story.plan(demand(1, 1, 1)).submit


def test_a_pilot_that_has_joined_and_is_full_is_no_reason_to_wait():
    story = Story()
    story.submit_all(demand(1, 1))
    story.joins(1)

    assert story.plan(demand(1, joined={1: FULL})).submit


def test_one_that_has_ended_is_replaced_while_there_is_work():
    story = Story(most=1)
    story.submit_all(demand(1))
    story.joins(1)

    assert not story.plan(demand(1, joined={1: FULL})).submit
    story.hear(Ended(pilot(1), "COMPLETED"))
    assert story.plan(demand(1)).submit


def test_one_whose_time_limit_is_near_is_replaced_while_there_is_work():
    story = Story(most=1)
    story.submit_all(demand(1))
    story.joins(1, ends_at=T0 + HOUR)

    plan = story.plan(demand(1, joined={1: FULL}))
    assert not plan.submit
    assert plan.wake_at == T0 + HOUR - 120

    assert story.plan(demand(1, joined={1: FULL}), after=HOUR - 120).submit
    assert story.pilots.is_about_to_end(pilot(1), story.now)


def test_one_of_a_short_time_limit_works_for_the_most_of_it():
    story = Story(most=1)
    story.submit_all(demand(1))
    story.joins(1, ends_at=T0 + 60)

    story.plan(demand(1, joined={1: FULL}), after=44)
    assert not story.pilots.is_about_to_end(pilot(1), story.now)
    assert story.pilots.is_about_to_end(pilot(1), story.now + 1)


def test_nothing_is_replaced_when_nobody_waits():
    story = Story(most=1)
    story.submit_all(demand(1))
    story.joins(1, ends_at=T0 + HOUR)

    assert not story.plan(demand(joined={1: FULL}), after=HOUR - 60).submit


def test_a_time_limit_that_was_moved_counts():
    story = Story(most=1)
    story.submit_all(demand(1))
    story.joins(1, ends_at=T0 + HOUR)

    story.runs(1, ends_at=T0 + 2 * HOUR)

    assert not story.plan(demand(1, joined={1: FULL}), after=HOUR - 120).submit


# --- refused and failed


def test_a_refused_submission_is_tried_again_later_and_later():
    story = Story()
    waits = []
    for _ in range(7):
        assert story.plan(demand(1)).submit
        story.hear(Refused("sbatch: no"))
        plan = story.plan(demand(1))
        assert not plan.submit
        waits.append(plan.wake_at - story.now)
        assert not story.plan(demand(1), after=waits[-1] - 1).submit
        story.now += 1

    assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_a_submission_that_is_taken_makes_good_for_refused_ones():
    story = Story()
    story.plan(demand(1))
    story.hear(Refused("sbatch: no"))
    assert "sbatch: no" in story.pilots.summary()

    story.submit_all(demand(1))
    assert story.plan(demand(1), after=30).submit
    story.hear(Submitted(pilot(1)))

    assert "sbatch: no" not in story.pilots.summary()
    assert story.plan(demand(1, 1, 1)).submit


def test_pilots_that_end_without_having_joined_are_given_up_after_three():
    story = Story(most=1)
    waits = []
    for number in (1, 2, 3):
        plan = story.plan(demand(1))
        story.now = max(story.now, plan.wake_at if not plan.submit else story.now)
        waits.append(story.now - T0)
        if not plan.submit:
            assert story.plan(demand(1)).submit
        story.hear(Submitted(pilot(number)), Ended(pilot(number), "FAILED (NonZeroExitCode)"))

    assert waits == [0, 10, 30]
    assert not story.plan(demand(1), after=HOUR).submit
    assert story.pilots.gave_up == (
        "no more pilots are submitted: 3 pilots in a row ended without having joined, the last one,"
        " 3: FAILED (NonZeroExitCode)"
    )
    assert story.pilots.summary() == f"no pilots; {story.pilots.gave_up}"


def test_those_that_join_and_do_nothing_are_given_up_as_well():
    story = Story(most=1)
    for number in (1, 2, 3):
        assert story.plan(demand(1), after=600).submit
        story.hear(Submitted(pilot(number)))
        story.joins(number)
        story.plan(demand(1, joined={number: PilotHost(2, 0, is_idle=True)}))
        story.hear(Ended(pilot(number), "CANCELLED"))

    assert not story.plan(demand(1), after=HOUR).submit
    assert story.pilots.gave_up is not None
    assert "3 pilots in a row ended without having run a job" in story.pilots.gave_up


def test_those_that_were_told_to_end_since_nothing_was_left_are_no_failures():
    story = Story(most=1)
    for number in (1, 2, 3, 4):
        assert story.plan(demand(1), after=600).submit
        story.hear(Submitted(pilot(number)))
        story.joins(number)
        assert story.plan(demand(joined={number: IDLE})).tell_to_end == (pilot(number),)
        story.hear(Ended(pilot(number), "COMPLETED"))

    assert story.pilots.gave_up is None


def test_where_one_has_worked_those_that_do_not_join_are_tried_again_for_ever():
    story = Story(most=1)
    story.submit_all(demand(1))
    story.joins(1)
    story.plan(demand(1, joined={1: FULL}))
    story.hear(Ended(pilot(1), "TIMEOUT"))

    for number in range(2, 12):
        assert story.plan(demand(1), after=600).submit
        story.hear(Submitted(pilot(number)), Ended(pilot(number), "NODE_FAIL"))

    assert story.pilots.gave_up is None


def test_one_that_was_withdrawn_is_no_failure():
    story = Story(most=1)
    for number in (1, 2, 3, 4):
        assert story.plan(demand(1)).submit
        story.hear(Submitted(pilot(number)), Waits(pilot(number), "Resources"))
        assert story.plan(NOTHING_LEFT).withdraw == (pilot(number),)
        story.hear(Ended(pilot(number), "CANCELLED"))

    assert story.plan(demand(1)).submit


def test_slurm_s_silence_ends_nothing():
    story = Story(most=2)
    story.submit_all(demand(1, 1, 1))
    story.joins(1)

    story.hear(Silent("squeue: Unable to contact slurm controller"))

    plan = story.plan(demand(1, joined={1: FULL}), after=HOUR)
    assert (plan.submit, plan.withdraw, plan.cancel, plan.tell_to_end) == (False, (), (), ())
    assert "does not answer" in story.pilots.summary()
    story.hear(Answers())
    assert story.pilots.summary() == "1 pilot runs, 1 pilot waits"


# --- after a restart


def test_after_a_restart_none_is_submitted_until_slurm_has_told_which_there_are():
    story = Story(most=2, resumed=True)

    assert not story.plan(demand(1, 1, 1, 1)).submit
    story.hear(Submitted(pilot(8)), Waits(pilot(8), "Priority"), Submitted(pilot(9)))
    story.hear(Runs(pilot(9), "node", None), Answers())

    assert not story.plan(demand(1, 1, 1, 1)).submit
    assert story.pilots.summary() == "1 pilot runs, 1 pilot waits (Priority)"


def test_of_too_many_the_latest_that_wait_are_withdrawn():
    story = Story(most=1, resumed=True)

    for number in (1, 2, 3):
        story.hear(Submitted(pilot(number)))

    assert story.plan(demand(1, 1, 1, 1, 1, 1)).withdraw == (pilot(2), pilot(3))


# --- when there is less to do


def test_pilots_that_wait_for_nobody_are_withdrawn_after_a_while():
    story = Story()
    story.submit_all(demand(1, 1, 1))

    plan = story.plan(demand(1))
    assert plan.withdraw == ()
    assert plan.wake_at == story.now + SURPLUS_SECONDS

    assert story.plan(demand(1), after=SURPLUS_SECONDS).withdraw == (pilot(2),)
    assert story.plan(demand(1), after=SURPLUS_SECONDS).withdraw == ()


def test_a_queue_that_is_empty_for_a_moment_costs_no_place_in_slurm_s_queue():
    story = Story()
    story.submit_all(demand(1, 1, 1))

    story.plan(demand())
    story.plan(demand(1, 1, 1), after=SURPLUS_SECONDS / 2)

    assert story.plan(demand(), after=SURPLUS_SECONDS / 2).withdraw == ()


def test_when_all_is_over_what_waits_is_withdrawn_at_once_and_who_cannot_be_told_is_cancelled():
    story = Story()
    story.submit_all(demand(*[1] * 8))
    story.runs(1)
    story.joins(2)

    over = Demand((), more_to_come=False, has_runs=False, joined={pilot(2): IDLE})
    plan = story.plan(over)

    assert plan.withdraw == (pilot(3), pilot(4))
    assert plan.cancel == (pilot(1),)
    assert plan.tell_to_end == (pilot(2),)
    assert story.plan(over).cancel == ()


def test_a_pilot_that_had_begun_before_it_was_withdrawn_is_told_to_end_like_others():
    story = Story()
    story.submit_all(demand(1))
    assert story.plan(demand(runs=True), after=0).withdraw == ()
    assert story.plan(demand(), after=SURPLUS_SECONDS).withdraw == (pilot(1),)

    story.joins(1)

    assert story.plan(demand(joined={1: IDLE})).tell_to_end == (pilot(1),)


def test_an_idle_pilot_is_told_to_end_when_nothing_is_left_for_it():
    story = Story()
    story.submit_all(demand(1))
    story.joins(1)

    assert story.plan(demand(1, joined={1: IDLE})).tell_to_end == ()
    assert story.plan(demand(joined={1: FULL})).tell_to_end == ()
    assert story.plan(demand(joined={1: IDLE})).tell_to_end == (pilot(1),)


def test_a_job_that_it_is_too_small_for_does_not_keep_a_pilot():
    story = Story()
    story.submit_all(demand(1))
    story.joins(1)

    assert story.plan(demand(3, joined={1: IDLE})).tell_to_end == (pilot(1),)


def test_while_input_may_come_an_idle_pilot_is_kept_for_a_while():
    story = Story()
    story.submit_all(demand(1))
    story.joins(1)

    plan = story.plan(demand(more=True, joined={1: IDLE}))
    assert plan.tell_to_end == ()
    assert plan.wake_at == story.now + IDLE_SECONDS

    still = story.plan(demand(more=True, joined={1: IDLE}), after=IDLE_SECONDS)
    assert still.tell_to_end == (pilot(1),)


def test_an_idle_pilot_near_its_time_limit_ends_though_jobs_wait():
    story = Story()
    story.submit_all(demand(1))
    story.joins(1, ends_at=T0 + HOUR)

    assert story.plan(demand(1, joined={1: IDLE}), after=HOUR - 120).tell_to_end == (pilot(1),)


def test_who_was_told_is_told_again_until_he_has_gone():
    story = Story()
    story.submit_all(demand(1))
    story.joins(1)
    story.plan(demand(joined={1: IDLE}))

    again = story.plan(demand(1, joined={1: IDLE}), after=5)

    assert again.tell_to_end == (pilot(1),)
    assert again.submit  # what waits now needs another one


def test_who_does_not_end_is_cancelled():
    story = Story()
    story.submit_all(demand(1))
    story.joins(1)
    story.plan(demand(joined={1: IDLE}))

    assert story.plan(demand(joined={1: IDLE}), after=ENDING_PATIENCE_SECONDS - 1).cancel == ()
    assert story.plan(demand(joined={1: IDLE}), after=1).cancel == (pilot(1),)
    assert story.plan(demand(joined={1: IDLE}), after=1).cancel == ()


def test_a_pilot_that_works_is_never_cancelled():
    story = Story()
    story.submit_all(demand(1))
    story.joins(1)
    story.plan(demand(joined={1: IDLE}))

    late = story.plan(demand(joined={1: FULL}), after=2 * ENDING_PATIENCE_SECONDS)

    assert late.cancel == ()


def test_a_pilot_out_of_sight_is_not_cancelled_while_something_may_run_there():
    story = Story()
    story.submit_all(demand(1))
    story.joins(1)

    assert story.plan(demand(runs=True), after=HOUR).cancel == ()
    assert story.plan(NOTHING_LEFT, after=HOUR).cancel == (pilot(1),)


def test_of_one_that_is_being_ended_nothing_is_wanted():
    story = Story(most=1)
    story.submit_all(demand(1))
    story.joins(1)

    story.hear(Ends(pilot(1)))

    assert story.plan(demand(1)).submit
    assert story.plan(NOTHING_LEFT).cancel == ()


def test_pilots_of_which_nobody_knows_change_nothing():
    story = Story()

    story.hear(Waits(pilot(5), ""), Runs(pilot(6), "node", None), Ends(pilot(7)))
    story.hear(Ended(pilot(8), "FAILED"))

    assert story.pilots.left() == 0
    assert story.pilots.gave_up is None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "refuse", "run", "join", "end", "wait", "silent", "nothing"]),
        st.integers(1, 6),
        st.floats(0, 400),
        st.lists(st.integers(1, 4), max_size=6),
        st.booleans(),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_there_are_never_more_than_the_most(
    steps: list[tuple[str, int, float, list[int], bool]],
):
    story = Story(most=3)
    there: set[PilotId] = set()
    asked = False
    for what, number, after, needs, more in steps:
        plan = story.plan(demand(*needs, more=more, joined={}), after=after)
        asked = asked or plan.submit
        assert len(there) + asked <= 3
        if what == "take" and asked:
            story.submitted += 1
            there.add(pilot(story.submitted))
            story.hear(Submitted(pilot(story.submitted)))
            asked = False
        elif what == "refuse" and asked:
            story.hear(Refused("no"))
            asked = False
        elif what == "silent":
            story.hear(Silent("no"))
        elif pilot(number) in there:
            happens(story, what, number, there)
        there -= set(plan.withdraw) | set(plan.cancel)


def happens(story: Story, what: str, number: int, there: set[PilotId]) -> None:
    match what:
        case "run":
            story.runs(number)
        case "join":
            story.joins(number)
        case "wait":
            story.hear(Waits(pilot(number), "Priority"))
        case "end":
            there.discard(pilot(number))
            story.hear(Ended(pilot(number), "FAILED"))
        case _:
            pass
