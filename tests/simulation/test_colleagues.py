"""Pretend colleagues: a function of seed and time."""

import pytest

from smartsched.core.model import GpuReading, GpuSample
from smartsched.errors import UsageError
from smartsched.simulation.colleagues import GIB, Colleagues, parse_simulation, pretend_uuid
from tests.builders import HOST

SECONDS = [0.0, 1.0, 60.5, 600.0, 3600.0]


def world(seed: int, count: int = 4) -> list[tuple[GpuReading, ...]]:
    colleagues = Colleagues(count, seed)
    return [colleagues.readings(HOST, at) for at in SECONDS]


def samples(readings: tuple[GpuReading, ...]) -> list[GpuSample]:
    return [reading for reading in readings if isinstance(reading, GpuSample)]


def test_the_same_seed_is_the_same_world():
    assert world(7) == world(7)


def test_another_seed_is_another_world():
    assert world(7) != world(8)


def test_a_gpu_has_the_same_colleagues_however_many_gpus_there_are():
    assert [gpus[:2] for gpus in world(7, 4)] == world(7, 2)


def test_how_often_one_looks_changes_nothing():
    often, seldom = Colleagues(3, 7), Colleagues(3, 7)
    often.readings(HOST, 0)
    seldom.readings(HOST, 0)

    for tenth in range(1, 6000):
        often.readings(HOST, tenth / 10)

    assert often.readings(HOST, 600.0) == seldom.readings(HOST, 600.0)


@pytest.mark.parametrize("count", [1, 4, 1024])
def test_there_are_as_many_gpus_as_asked_for(count: int):
    readings = Colleagues(count, 0).readings(HOST, 0)

    assert [reading.index for reading in readings] == list(range(count))
    assert len({reading.key for reading in readings}) == count


def test_only_the_gpus_that_were_asked_for_are_read():
    readings = Colleagues(4, 0).readings(HOST, 0, {pretend_uuid(2)})

    assert [reading.index for reading in readings] == [2]


def test_the_first_reading_tells_the_history_before_it():
    colleagues = Colleagues(2, 3)

    for sample in samples(colleagues.readings(HOST, 0)):
        history = sample.utilization_history or ()
        assert max(point.age_seconds for point in history) >= 10
        assert min(point.age_seconds for point in history) == 0
        assert history[-1].percent == sample.utilization_percent
    for sample in samples(colleagues.readings(HOST, 1)):
        assert not sample.utilization_history


def test_colleagues_come_and_go():
    colleagues = Colleagues(4, 0)

    seen = [samples(colleagues.readings(HOST, float(at))) for at in range(0, 3600, 5)]

    assert any(sample.processes for gpus in seen for sample in gpus)
    assert any(not sample.processes for gpus in seen for sample in gpus)


def test_a_reading_is_consistent():
    colleagues = Colleagues(4, 0)

    for at in range(0, 3600, 5):
        for sample in samples(colleagues.readings(HOST, float(at))):
            held = sum(process.memory_bytes or 0 for process in sample.processes)
            assert sample.memory_used_bytes == held
            assert sample.memory_used_bytes + sample.memory_free_bytes == 24 * GIB


@pytest.mark.parametrize(
    ("text", "found"),
    [("4", (4, 0)), ("4,seed=7", (4, 7)), ("1024,seed=0", (1024, 0))],
)
def test_a_simulation_is_asked_for_by_count_and_seed(text: str, found: tuple[int, int]):
    assert parse_simulation(text) == found


@pytest.mark.parametrize("text", ["", "0", "-1", "1025", "x", "4,seed=", "4,seed=x", "4,7", "٤"])
def test_what_is_no_simulation_is_told(text: str):
    with pytest.raises(UsageError, match="--simulate"):
        parse_simulation(text)
