"""What agents cost their dispatcher; the numbers themselves are printed by the benchmark."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from smartsched.core.credentials import Credentials
from tests.edges.engine.ends import ROOT, End

# A Python that has another version of `distributed` (CI makes one with the oldest supported).
OTHER_PYTHON = "OTHER_DISTRIBUTED_PYTHON"


def test_what_fifty_agents_cost_is_measured():
    """How much time it takes is no matter of a test: others may be busy here. But a killed agent is
    known by its connection and not by its silence, which takes 10 s, less what has passed since it
    was heard last: 2.5 at most."""
    command = [sys.executable, "-m", "tests.benchmarks.cluster", "--json"]
    done = subprocess.run(
        [*command, "--seconds", "4", "--processes", "2"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    found: dict[str, float] = json.loads(done.stdout)
    measured = {name.strip(): value for name, value in found.items()}
    assert measured["50 agents: reports/s"] > 0
    assert measured["the dispatcher's share of a core, %"] > 0
    assert measured["send to the agent's loop, fastest tenth, ms"] > 0
    assert 0 < measured["its memory above that without the engine, MiB"] < 100
    assert 0 < measured["a killed agent is known after, ms"] < 7000


@pytest.mark.skipif(OTHER_PYTHON not in os.environ, reason=f"{OTHER_PYTHON} names no Python")
@pytest.mark.parametrize("other", ["dispatcher", "agent"])
def test_both_ends_may_have_different_versions_of_dask(
    start: Callable[..., End], dispatchers: Credentials, agents: Credentials, other: str
):
    pythons = dict.fromkeys(("dispatcher", "agent"), sys.executable)
    pythons[other] = os.environ[OTHER_PYTHON]
    dispatcher = start("dispatcher", dispatchers, python=pythons["dispatcher"])
    address = f"127.0.0.1:{dispatcher.wait_for('Up')['port']}"

    agent = start("agent", agents, python=pythons["agent"], addresses=[address], name="gpu1")

    agent.wait_for("Connected")
    agent.tell("send", "", "report")
    assert dispatcher.wait_for("Said")["message"] == "report"
    dispatcher.tell("send", "gpu1", "answer")
    assert agent.wait_for("Message")["message"] == "answer"
