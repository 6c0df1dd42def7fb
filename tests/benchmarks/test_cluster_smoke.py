"""That the benchmark of agents runs; whether its numbers are good is for whoever reads them."""

import json
import shutil

import pytest

from tests.benchmarks.cluster import main

pytest.importorskip("distributed", reason="agents need the extra `cluster`")


@pytest.mark.skipif(shutil.which("bash") is None, reason="its jobs ask bash for the time")
@pytest.mark.timeout(400)  # it measures, on a machine that may be busy
def test_it_measures_agents_and_orders_once(capfd: pytest.CaptureFixture[str]):
    main(["--agents", "3", "--processes", "2", "--seconds", "2", "--jobs", "5", "--json"])

    found = json.loads(capfd.readouterr().out)
    assert found["3 agents: reports/s"] > 0
    assert found["  a killed agent is known after, ms"] > 0
    assert found["order to the first act of each of 5 jobs, fastest ms"] > 0
    assert all(isinstance(value, float | int) for value in found.values())
