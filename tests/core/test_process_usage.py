"""What a process uses, from what the driver credits to whom: known, zero for a reason, or None."""

import pytest

from smartsched.core.process_usage import Credit, ProcessUsage

HERE, THERE = 100, 200
EPOCH_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


class Watched:
    """A GPU that is read again and again, with `at` in seconds since the first reading."""

    def __init__(self) -> None:
        self.usage = ProcessUsage()
        self.asked: list[float] = []

    def read(
        self,
        at: float,
        *noted: tuple[int, float, int],
        pids: tuple[int, ...] = (HERE, THERE),
        busy: bool = True,
        hides: bool = False,
        clock: float = 0.0,
    ) -> dict[int, int | None]:
        """`noted`: pid, when, percent; `clock`: by how much it was set forth."""
        now_us = EPOCH_US + round((at + clock) * SECOND_US)
        since_us = self.usage.ask_since(now_us)
        self.asked.append((since_us - EPOCH_US) / SECOND_US)
        told = [
            Credit(p, EPOCH_US + round(when * SECOND_US), percent) for p, when, percent in noted
        ]
        self.usage.learn(told, pids, since_us=since_us, busy=busy, now=at)
        return {pid: self.usage.percent(pid, busy=busy, hides=hides, now=at) for pid in pids}

    def read_every_second(
        self, first: int, last: int, *, busy: bool = True, hides: bool = False
    ) -> list[int | None]:
        """What was said of THERE while all that the GPU did was credited to HERE."""
        return [
            self.read(at, *([(HERE, at - 0.1, 80)] if busy else []), busy=busy, hides=hides)[THERE]
            for at in range(first, last + 1)
        ]


def test_what_is_credited_to_a_process_is_its_share():
    gpu = Watched()

    assert gpu.read(0, (HERE, -0.1, 70), (THERE, -0.3, 25)) == {HERE: 70, THERE: 25}


def test_of_several_credits_the_latest_counts():
    gpu = Watched()

    assert gpu.read(0, (HERE, -0.1, 70), (HERE, -0.5, 20))[HERE] == 70


def test_no_share_is_more_than_everything():
    assert Watched().read(0, (HERE, -0.1, 37_100))[HERE] == 100


def test_credits_of_pids_that_are_not_listed_are_nobodys():
    gpu = Watched()

    assert gpu.read(0, (999, -0.1, 70)) == {HERE: None, THERE: None}
    assert gpu.read(30, (999, 29.9, 70)) == {HERE: None, THERE: None}


@pytest.mark.parametrize("when", [-50.0, -1.5, 5.0, -1_700_000_000.0 + 158_819_300.0])
def test_credits_of_another_time_are_no_credits(when: float):
    gpu = Watched()

    assert gpu.read(0, (HERE, when, 70))[HERE] is None
    assert gpu.read(1, (HERE, 0.9, 30))[HERE] == 30


def test_the_first_question_is_about_the_last_second():
    gpu = Watched()
    gpu.read(0)

    assert gpu.asked == [-1]


def test_what_was_told_once_is_not_asked_for_again():
    gpu = Watched()
    gpu.read(0, (HERE, -0.25, 70), (THERE, -0.5, 10))
    gpu.read(1)

    assert gpu.asked[1] == -0.25


def test_a_long_silence_is_not_averaged_over():
    gpu = Watched()
    gpu.read(0, (HERE, -0.25, 70))
    for at in range(1, 61):
        gpu.read(at)

    assert gpu.asked[-1] == 58  # the last question, and what was late by then


def test_a_clock_set_back_is_followed():
    gpu = Watched()
    gpu.read(0, (HERE, -0.25, 70))

    shares = gpu.read(10, (HERE, -3590.1, 40), clock=-3600)

    assert gpu.asked[1] == -3591
    assert shares[HERE] == 40


def test_a_share_is_repeated_while_there_is_nothing_new_to_tell():
    gpu = Watched()
    gpu.read(0, (HERE, -0.1, 70))

    shares = [gpu.read(at)[HERE] for at in (0.05, 1.9, 2.1)]

    assert shares == [70, 70, None]


def test_nobody_uses_a_gpu_that_does_nothing():
    gpu = Watched()

    assert gpu.read(0, busy=False) == {HERE: 0, THERE: 0}
    assert gpu.read(1) == {HERE: None, THERE: None}


def test_when_a_busy_gpu_credits_nobody_nothing_is_known_however_long():
    gpu = Watched()

    shares = [gpu.read(at) for at in range(100)]

    assert all(share == {HERE: None, THERE: None} for share in shares)


def test_a_process_that_goes_uncredited_for_long_while_others_do_not_uses_nothing():
    assert Watched().read_every_second(0, 31) == [*[None] * 30, 0, 0]


def test_a_process_that_came_later_is_watched_from_then_on():
    gpu = Watched()
    for at in range(40):
        gpu.read(at, (HERE, at - 0.1, 80), pids=(HERE,))

    assert gpu.read_every_second(40, 71) == [*[None] * 30, 0, 0]


def test_a_process_that_went_and_came_is_another_one():
    gpu = Watched()
    gpu.read(0, (THERE, -0.1, 70))
    gpu.read(0.5, pids=(HERE,))

    assert gpu.read(1)[THERE] is None


def test_a_credit_in_between_begins_the_watch_anew():
    gpu = Watched()
    gpu.read_every_second(0, 19)
    gpu.read(20, (THERE, 19.9, 5))

    assert gpu.read_every_second(21, 51) == [5, 5, *[None] * 27, 0, 0]


def test_a_time_that_nobody_is_credited_with_begins_the_watch_anew():
    gpu = Watched()
    gpu.read_every_second(0, 20)
    for at in range(21, 25):
        gpu.read(at)

    assert gpu.read_every_second(25, 55)[-3:] == [None, 0, 0]


def test_a_time_without_work_does_not_end_the_watch():
    gpu = Watched()
    gpu.read_every_second(0, 9)
    gpu.read_every_second(10, 20, busy=False)

    assert gpu.read_every_second(21, 31)[-3:] == [None, 0, 0]


def test_what_may_be_credited_to_somebody_else_is_never_nothing_while_the_gpu_works():
    gpu = Watched()

    shares = gpu.read_every_second(0, 60, hides=True)

    assert set(shares) == {None}
    assert gpu.read(61, busy=False, hides=True)[THERE] == 0


def test_readings_far_apart_count_for_all_the_time_between_them():
    gpu = Watched()
    gpu.read(0, (HERE, -0.1, 80))

    assert gpu.read(60, (HERE, 59.9, 80))[THERE] == 0
