"""Thresholds over a window: which GPUs count as free."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from smartsched.core import freeness
from smartsched.core.freeness import (
    Busy,
    Free,
    Share,
    Size,
    Thresholds,
    Unknown,
    Verdict,
    Watch,
    culprits,
    limits_again,
    utilization_over_window,
    verdict,
)
from smartsched.core.model import GpuProcess, GpuReading
from smartsched.core.strangers import DISPLAY_SERVERS, Hold, Ignored
from tests.builders import (
    GIB,
    MAX_GAP_SECONDS,
    T0,
    a_hold,
    a_process,
    a_run,
    a_sample,
    history,
    observe,
    unreadable,
    used_by,
    watched,
)

WINDOW = 10.0


def judged(reading: GpuReading, **limits: object) -> Verdict:
    """The verdict on one sample alone."""
    thresholds = Thresholds(**({"free_for_seconds": 0.0} | limits))  # type: ignore[arg-type]
    return verdict(watched([(0, reading)], thresholds), 0.0)


def judged_over_time(*readings: tuple[float, GpuReading], free_for: float = WINDOW) -> Verdict:
    thresholds = Thresholds(free_for_seconds=free_for)
    return verdict(watched(readings, thresholds), free_for)


def reasons(found: Verdict, at: float = 0.0) -> list[str]:
    assert isinstance(found, Busy)
    return [breach.words(T0 + at) for breach in found.breaches]


def failed_tests(found: Verdict) -> set[str]:
    assert isinstance(found, Busy)
    return {breach.test for breach in found.breaches}


@pytest.mark.parametrize("limit", [Share(20.0), Size(20 * GIB)], ids=["share", "size"])
def test_memory_at_the_limit_is_free(limit: Share | Size):
    assert judged(a_sample(used_gib=20), max_memory=limit) == Free(20 * GIB)


@pytest.mark.parametrize("limit", [Share(20.0), Size(20 * GIB)], ids=["share", "size"])
def test_memory_over_the_limit_is_busy(limit: Share | Size):
    found = judged(used_by(a_process(gib=20), a_process(501, gib=0.001)), max_memory=limit)

    assert failed_tests(found) == {"memory"}


def test_a_share_is_of_the_memory_of_that_gpu():
    small = a_sample(used_gib=3, memory_total_bytes=10 * GIB)

    assert failed_tests(judged(small, max_memory=Share(20.0))) == {"memory"}
    assert isinstance(judged(small, max_memory=Size(4 * GIB)), Free)


@pytest.mark.parametrize(("percent", "free"), [(0, True), (10, True), (11, False), (100, False)])
def test_utilisation_may_veto(percent: int, free: bool):
    found = judged(a_sample(utilization_percent=percent), max_utilization_percent=10.0)

    assert isinstance(found, Free) == free


def test_a_gpu_that_reports_no_utilisation_passes():
    found = judged(a_sample(utilization_percent=None), max_utilization_percent=0.0)

    assert found == Free(0)


@pytest.mark.parametrize(("used_gib", "free"), [(60, True), (60.5, False)])
def test_so_much_memory_must_be_free(used_gib: float, free: bool):
    found = judged(a_sample(used_gib=used_gib), max_memory=Share(100), min_free_bytes=40 * GIB)

    assert isinstance(found, Free) == free
    if not free:
        assert reasons(found) == ["free memory 39.5 GiB < 40 GiB (by no visible process)"]


def test_memory_of_a_run_of_ours_counts_as_free_memory():
    ours = used_by(a_process(77, gib=80, user="me"))
    limits = Thresholds(min_free_bytes=90 * GIB, free_for_seconds=0.0)

    watch = watched([(0, ours)], limits, a_hold(pid=77))

    assert verdict(watch, 0.0) == Free(0)


def test_memory_of_somebody_to_be_ignored_is_still_not_free_for_a_job():
    held = used_by(a_process(gib=80, user="bob"))
    ignored = Ignored(users=frozenset({"bob"}))

    found = judged(held, min_free_bytes=40 * GIB, ignored=ignored)

    assert failed_tests(found) == {"free memory"}


@pytest.mark.parametrize(("count", "free"), [(0, True), (2, True), (3, False)])
def test_strangers_processes_may_be_limited(count: int, free: bool):
    gpu = used_by(*(a_process(500 + n, gib=0.1) for n in range(count)))

    found = judged(gpu, max_processes=2)

    assert isinstance(found, Free) == free


def test_processes_are_not_limited_by_default():
    gpu = used_by(*(a_process(500 + n, gib=0.001) for n in range(50)))

    assert isinstance(judged(gpu), Free)


@pytest.mark.parametrize("name", ["Xorg", "gnome-shell", "kwin_x11"])
@pytest.mark.parametrize("kind", ["compute", "graphics"])
def test_a_display_server_is_no_process_but_its_memory_counts(name: str, kind: str):
    screen = a_process(gib=4, user="root", kind=kind, command=f"/usr/lib/xorg/{name} :0 -nolisten")

    assert judged(used_by(screen), max_processes=0) == Free(4 * GIB)
    assert failed_tests(judged(used_by(screen), max_memory=Share(2.0))) == {"memory"}


def test_the_issue_names_display_servers_that_are_ignored():
    assert {"Xorg", "gnome-shell"} <= DISPLAY_SERVERS


def test_a_graphics_process_is_no_compute_process():
    gpu = used_by(a_process(kind="graphics", command="blender"))

    assert isinstance(judged(gpu, max_processes=0), Free)


@pytest.mark.parametrize(
    "ignored",
    [Ignored(users=frozenset({"bob"})), Ignored(pids=frozenset({600}))],
    ids=["user", "pid"],
)
def test_whom_the_user_ignores_counts_as_not_there(ignored: Ignored):
    gpu = used_by(a_process(600, gib=90, user="bob"), utilization_percent=100)

    assert judged(gpu, ignored=ignored, max_processes=0) == Free(0)
    assert failed_tests(judged(gpu)) == {"memory", "utilisation"}


def test_an_ignored_user_beside_a_stranger_excuses_no_utilisation():
    gpu = used_by(a_process(600, user="bob"), a_process(500, user="alice"), utilization_percent=100)

    found = judged(gpu, ignored=Ignored(users=frozenset({"bob"})))

    assert failed_tests(found) == {"utilisation"}


def test_utilisation_by_nobody_visible_is_a_strangers_though_users_are_ignored():
    found = judged(a_sample(utilization_percent=90), ignored=Ignored(users=frozenset({"bob"})))

    assert failed_tests(found) == {"utilisation"}


def test_memory_that_nobody_visible_holds_is_a_strangers_though_users_are_ignored():
    gpu = a_sample(used_gib=50, processes=(a_process(600, gib=20, user="bob"),))

    found = judged(gpu, ignored=Ignored(users=frozenset({"bob"})), max_memory=Share(40))

    assert found == Free(30 * GIB)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"compute_mode": "prohibited"}, "compute mode PROHIBITED (set by the administrator)"),
        ({"ailment": "row remapping failed"}, "health row remapping failed"),
    ],
)
def test_a_gpu_that_nobody_should_use_is_busy_however_empty(fields: dict[str, Any], words: str):
    assert reasons(judged(a_sample(**fields))) == [words]


def test_an_exclusive_gpu_takes_one_process_only():
    in_use = used_by(a_process(gib=0.5), compute_mode="exclusive")

    assert isinstance(judged(a_sample(compute_mode="exclusive")), Free)
    assert reasons(judged(in_use)) == [
        "compute mode EXCLUSIVE_PROCESS and in use (alice: python train.py, 512 MiB)"
    ]


def test_an_unreadable_gpu_is_unknown_with_the_drivers_words():
    assert judged(unreadable(why="GPU is lost")) == Unknown("GPU is lost")


def test_a_gpu_is_unknown_until_it_was_watched_for_the_window():
    idle = a_sample()

    assert judged_over_time((0, idle), (5, idle)) == Unknown("watched for 5.0s of 10s")
    assert judged_over_time((0, idle), (5, idle), (9.9, idle)) != Free(0)
    assert judged_over_time((0, idle), (5, idle), (10, idle)) == Free(0)


def test_without_a_window_one_sample_is_enough():
    assert judged_over_time((0, a_sample()), free_for=0.0) == Free(0)
    assert judged_over_time((0, a_sample(used_gib=50)), (1, a_sample()), free_for=0.0) == Free(0)


@pytest.mark.parametrize(
    "bad",
    [
        used_by(a_process(gib=50)),
        a_sample(utilization_percent=80),
        a_sample(ailment="reset required"),
        a_sample(compute_mode="prohibited"),
        used_by(a_process(), compute_mode="exclusive"),
    ],
    ids=["memory", "utilisation", "health", "prohibited", "exclusive"],
)
def test_one_bad_sample_starts_the_window_anew(bad: GpuReading):
    idle = a_sample()
    readings = [(float(second), bad if second == 12 else idle) for second in range(22)]

    assert isinstance(judged_over_time(*readings[:12]), Free)
    assert isinstance(judged_over_time(*readings), Busy)
    assert isinstance(judged_over_time(*readings, (22.0, idle)), Free)


def test_a_bad_sample_of_a_while_ago_says_when_that_was():
    gone = used_by(a_process(gib=43))

    found = judged_over_time((0, gone), (3, a_sample()))

    assert reasons(found, at=3) == ["memory 43% > 10%, 3.0s ago (alice: python train.py, 43 GiB)"]


def test_the_drivers_history_fills_the_window_at_the_first_sample():
    points = history(*((float(age), 0) for age in range(12)))

    assert judged_over_time((0, a_sample(utilization_history=points))) == Free(0)


def test_a_history_shorter_than_the_window_fills_a_part_of_it():
    points = history((4.0, 0), (2.0, 0), (0.0, 0))
    first = a_sample(utilization_history=points)

    assert judged_over_time((0, first)) == Unknown("watched for 4.0s of 10s")
    assert judged_over_time((0, first), (6, a_sample())) == Free(0)


def test_use_within_the_history_counts_from_its_own_time():
    points = history((12.0, 0), (7.0, 90), (0.0, 0))
    first = a_sample(utilization_history=points)

    found = judged_over_time((0, first))

    assert reasons(found) == ["utilisation 90% > 10%, 7.0s ago (by no visible process)"]
    assert isinstance(judged_over_time((0, first), (3, a_sample())), Free)


def test_use_before_the_window_is_forgiven():
    points = history((14.0, 90), (11.0, 0), (0.0, 0))

    assert isinstance(judged_over_time((0, a_sample(utilization_history=points))), Free)


def test_a_history_that_ended_long_ago_does_not_fill_the_window():
    points = history((40.0, 0), (30.0, 0))

    assert isinstance(judged_over_time((0, a_sample(utilization_history=points))), Unknown)


@pytest.mark.parametrize("points", [None, ()], ids=["none kept", "nothing new"])
def test_without_history_the_window_begins_at_the_first_sample(points: tuple[()] | None):
    found = judged_over_time((0, a_sample(utilization_history=points)))

    assert found == Unknown("watched for 0.0s of 10s")


def test_a_gap_between_samples_starts_the_window_anew():
    idle = a_sample()
    before = [(float(second), idle) for second in range(12)]
    after_the_gap = 11 + MAX_GAP_SECONDS + 0.5

    assert isinstance(judged_over_time(*before, (11 + MAX_GAP_SECONDS, idle)), Free)
    assert isinstance(judged_over_time(*before, (after_the_gap, idle)), Unknown)


def test_a_moment_of_being_unreadable_starts_the_window_anew():
    idle = a_sample()
    before = [(float(second), idle) for second in range(12)]

    found = judged_over_time(*before, (12.0, unreadable()), (13.0, idle), (14.0, idle))

    assert found == Unknown("watched for 1.0s of 10s")


def test_reasons_are_worded_with_value_threshold_and_who():
    gpu = used_by(a_process(gib=10.2), memory_total_bytes=int(10.2 * GIB / 0.43))

    assert reasons(judged(gpu, max_memory=Share(20.0))) == [
        "memory 43% > 20% (alice: python train.py, 10.2 GiB)"
    ]


def test_every_test_that_failed_is_told():
    gpu = used_by(a_process(gib=95), utilization_percent=99)

    found = judged(gpu, min_free_bytes=10 * GIB, max_processes=0)

    assert reasons(found) == [
        "memory 95% > 10% (alice: python train.py, 95 GiB)",
        "free memory 5 GiB < 10 GiB (alice: python train.py, 95 GiB)",
        "processes 1 > 0 (alice: python train.py, 95 GiB)",
        "utilisation 99% > 10% (alice: python train.py, 95 GiB)",
    ]


def test_a_value_just_over_its_limit_does_not_read_like_the_limit():
    gpu = used_by(a_process(gib=10.2))

    assert reasons(judged(gpu))[0].startswith("memory 10.2% > 10%")


def test_culprits_are_the_two_who_hold_most_and_how_many_more():
    crowd = tuple(a_process(500 + n, gib=n + 1, user=f"user{n}") for n in range(5))

    assert culprits(crowd) == (
        "user4: python train.py, 5 GiB; user3: python train.py, 4 GiB; 3 more"
    )


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (a_process(7, user=None, command=None), "pid 7: 1 GiB"),
        (a_process(7, gib=None), "alice: python train.py"),
        (a_process(7, gib=None, command=None), "alice"),
        (
            a_process(command="/opt/env/bin/python /home/a/x.py"),
            "alice: python /home/a/x.py, 1 GiB",
        ),
        (a_process(command="evil\x1b[2J"), r"alice: evil\x1b[2J, 1 GiB"),
        (a_process(command="x" * 90), f"alice: {'x' * 39}…, 1 GiB"),
    ],
)
def test_a_process_is_described_by_what_is_known_of_it(process: GpuProcess, words: str):
    assert culprits((process,)) == words


def test_a_watch_does_not_grow_with_time():
    watch: Watch | None = None
    busy = used_by(a_process(gib=50), utilization_percent=50)

    for tick in range(20_000):
        reading = busy if tick % 3 else a_sample(utilization_history=history((0.05, 3)))
        watch = observe(watch, reading, T0 + tick / 10, None, Thresholds(), MAX_GAP_SECONDS)

    assert watch is not None
    assert len(watch.utilization) <= 600
    assert len(watch.breaches) <= 6


def test_utilisation_is_told_over_the_window():
    watch = watched([(float(n), a_sample(utilization_percent=n)) for n in range(31)])

    assert utilization_over_window(watch) == (30.0, 30)


def test_utilisation_is_not_told_where_it_is_not_reported():
    assert utilization_over_window(watched([(0, a_sample(utilization_percent=None))])) is None


# --- what was so and still is


READINGS: list[GpuReading] = [
    a_sample(),
    a_sample(utilization_percent=60),
    a_sample(utilization_percent=None),
    a_sample(used_gib=30),
    a_sample(ailment="Xid 79", utilization_percent=5),
    used_by(a_process(gib=3), utilization_percent=60),
    used_by(a_process(gib=40), a_process(501, gib=1), utilization_percent=60),
    used_by(a_process(77, gib=20, utilization_percent=55), utilization_percent=55),
    used_by(a_process(77, gib=20), a_process(501, gib=12), utilization_percent=90),
    a_sample(used_gib=30, processes=(a_process(77, gib=20),)),
    a_sample(utilization_history=history((2.0, 80), (1.0, 0))),
    unreadable(),
]
HELD: list[tuple[Hold, ...]] = [
    (),
    (a_hold(),),
    (a_hold(), a_hold(run=a_run(2), pid=501)),
    (a_hold(cleared_at=T0),),
]
LIMITS = [
    Thresholds(free_for_seconds=3.0, max_processes=1),
    Thresholds(Share(35.0), 70.0, free_for_seconds=3.0),
    Thresholds(Share(35.0), 70.0, free_for_seconds=3.0, ignored=Ignored(frozenset({"alice"}))),
]
MOMENTS = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.9, 2.0, 2.0, MAX_GAP_SECONDS + 1]),
        st.sampled_from(READINGS),
        st.sampled_from(HELD),
        st.lists(st.sampled_from(LIMITS), min_size=1, max_size=5),
    ),
    max_size=12,
)


@given(MOMENTS)
def test_a_reading_that_says_the_same_comes_to_what_a_new_one_would(
    moments: list[tuple[float, GpuReading, tuple[Hold, ...], list[Thresholds]]],
):
    """Though the user may change the limits meanwhile."""
    at = T0
    same: Watch | None = None
    renamed: Watch | None = None
    for seconds, reading, holds, changes in moments:
        for number, limits in enumerate([each for each in changes for _ in range(2)]):
            if number % 2 == 0:
                for watch in filter(None, (same, renamed)):
                    limits_again(watch, limits)
            at += seconds
            another = replace(reading, name=f"Test GPU {number % 2}")  # never what it was before
            same = freeness.observe(same, reading, at, at, holds, limits, MAX_GAP_SECONDS)
            renamed = freeness.observe(renamed, another, at, at, holds, limits, MAX_GAP_SECONDS)
            assert asdict(same) | {"latest": None} == asdict(renamed) | {"latest": None}
