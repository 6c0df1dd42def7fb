"""That the dispatch benchmark runs; whether its numbers are good is for whoever reads them."""

import json
import shutil

import pytest

from tests.benchmarks.dispatch import main


@pytest.mark.skipif(shutil.which("bash") is None, reason="its jobs ask bash for the time")
@pytest.mark.skipif(shutil.which("xargs") is None, reason="ratios are to xargs")
@pytest.mark.timeout(400)  # it measures, on a machine that may be busy
def test_it_measures_everything_once(capsys: pytest.CaptureFixture[str]):
    tiny = "--jobs 8 --rounds 1 --turns 10 --lines 100 --idle-seconds 0.1"
    inside = "--virtual-jobs 5 --growth 500"

    main([*tiny.split(), *inside.split(), "--json"])

    found = json.loads(capsys.readouterr().out)
    assert found["8 x true, 4 slots: smartsched, jobs/s"] > 0
    assert found["  smartsched's share of xargs' throughput"] > 0
    assert found["  smartsched's median over xargs'"] > 0
    assert found["  of these jobs, done"] == 5
    assert {
        "line on stdin to its start: smartsched, median ms",
        "--help, median ms",
    } <= found.keys()
    assert all(isinstance(value, float | int) for value in found.values())
