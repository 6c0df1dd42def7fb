"""Ends that die, stop, or are cut off: how soon the other one knows, and how they find together."""

import signal
import time
from collections.abc import Callable

import pytest

from smartsched.core.credentials import Credentials
from smartsched.edges.clock import SteadyClock
from smartsched.edges.engine.link import Link
from smartsched.edges.waiter import Waiter
from tests.edges.engine.ends import RUN, End
from tests.lab import Lab
from tests.waiting import wait_until

SILENT_AFTER_SECONDS = 2.0  # 10 for users; as these fixtures have it
# What a busy machine may add. The time itself is printed by tests/benchmarks/cluster.py.
PATIENCE_SECONDS = 5.0


@pytest.fixture
def agent(dispatcher: End, agent_of: Callable[..., End]) -> End:
    agent = agent_of(dispatcher)
    agent.wait_for("Connected")
    dispatcher.wait_for("Came")
    return agent


def test_a_killed_agent_is_known_at_once(dispatcher: End, agent: End):
    began = time.monotonic()

    agent.signal(signal.SIGKILL)

    dispatcher.wait_for("Went", timeout=1.0)
    assert time.monotonic() - began < 1.0


def test_a_stopped_agent_is_known_soon_and_comes_back_by_itself(dispatcher: End, agent: End):
    agent.signal(signal.SIGSTOP)
    went = dispatcher.wait_for("Went", timeout=SILENT_AFTER_SECONDS + PATIENCE_SECONDS)
    assert went["why"] == "silent for 2 s"

    agent.signal(signal.SIGCONT)

    dispatcher.wait_for("Came", 2)
    agent.wait_for("Disconnected")
    agent.wait_for("Connected", 2)
    assert dispatcher.kinds() == ["Up", "Came", "Went", "Came"]


def test_a_dispatcher_that_is_silent_is_left_and_found_again(dispatcher: End, agent: End):
    dispatcher.signal(signal.SIGSTOP)
    lost = agent.wait_for("Disconnected", timeout=SILENT_AFTER_SECONDS + PATIENCE_SECONDS)
    assert lost["why"] == "silent for 2 s"

    dispatcher.signal(signal.SIGCONT)

    agent.wait_for("Connected", 2)
    dispatcher.wait_for("Came", 2)
    assert dispatcher.kinds()[:4] == ["Up", "Came", "Went", "Came"]


def test_an_end_that_was_stopped_does_not_take_the_other_for_silent(
    start: Callable[..., End], dispatchers: Credentials, agent_of: Callable[..., End]
):
    """What the other has said meanwhile lies there, and is heard first."""
    dispatcher = start("dispatcher", dispatchers, silent_after_seconds=1.0)
    agent = agent_of(dispatcher, silent_after_seconds=60.0)
    agent.wait_for("Connected")
    dispatcher.wait_for("Came")

    dispatcher.signal(signal.SIGSTOP)
    agent.tell("send", "", "are you there?")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 2.0)
    dispatcher.signal(signal.SIGCONT)

    dispatcher.wait_for("Said")
    assert dispatcher.kinds() == ["Up", "Came", "Said"]


def test_agents_that_have_nothing_to_say_stay(dispatcher: End, agent: End):
    began = time.monotonic()

    wait_until(lambda: time.monotonic() - began > 3 * SILENT_AFTER_SECONDS)

    assert dispatcher.kinds() == ["Up", "Came"]
    assert agent.kinds() == ["Connected"]


def test_a_killed_dispatcher_that_is_there_again_gets_its_agents_back(
    dispatcher: End, agent: End, start: Callable[..., End], dispatchers: Credentials
):
    port = dispatcher.wait_for("Up")["port"]
    began = time.monotonic()
    dispatcher.signal(signal.SIGKILL)
    agent.wait_for("Disconnected")
    assert time.monotonic() - began < PATIENCE_SECONDS

    again = start("dispatcher", dispatchers, port=port)

    assert again.wait_for("Came")["host"] == "gpu1"
    again.tell("send", "gpu1", "welcome back")
    assert agent.wait_for("Message")["message"] == "welcome back"


def test_a_cut_link_is_known_on_both_sides_and_found_together_when_it_is_healed(
    start: Callable[..., End], lab: Lab, dispatchers: Credentials, agents: Credentials
):
    """No farewell of any kind comes through. (The lab is asked for last, so it ends first: it ends
    what lives in a host.)"""
    [gpu1] = lab.boot("gpu1")
    quick = {"silent_after_seconds": SILENT_AFTER_SECONDS}
    dispatcher = start("dispatcher", dispatchers, where=lab.enter(), listen="", **quick)
    address = f"head:{dispatcher.wait_for('Up')['port']}"
    agent = start("agent", agents, where=gpu1.enter, addresses=[address], name="gpu1", **quick)
    dispatcher.wait_for("Came")
    agent.wait_for("Connected")

    gpu1.cut()
    agent.tell("send", "", "into the void")
    dispatcher.tell("send", "gpu1", "into the void")

    patience_seconds = SILENT_AFTER_SECONDS + PATIENCE_SECONDS
    assert "silent" in dispatcher.wait_for("Went", timeout=patience_seconds)["why"]
    assert "silent" in agent.wait_for("Disconnected", timeout=patience_seconds)["why"]
    gpu1.heal()
    agent.wait_for("Connected", 2)
    dispatcher.wait_for("Came", 2)
    dispatcher.tell("send", "gpu1", "welcome back")
    assert agent.wait_for("Message")["message"] == "welcome back"
    assert "Said" not in dispatcher.kinds()


def test_an_agent_started_anew_is_not_kept_out_by_its_stopped_predecessor(
    dispatcher: End, agent: End, agent_of: Callable[..., End]
):
    agent.signal(signal.SIGSTOP)

    successor = agent_of(dispatcher, hello="the successor")

    successor.wait_for("Connected", timeout=PATIENCE_SECONDS)
    dispatcher.wait_for("Came", 2)
    assert dispatcher.kinds()[1:4] == ["Came", "Went", "Came"]
    agent.signal(signal.SIGCONT)
    assert "began later" in agent.wait_for("NotReached")["why"]
    assert successor.kinds() == ["Connected"]


def test_a_silent_dispatcher_keeps_no_agent_from_ending(
    dispatcher: End, agent: End, start: Callable[..., End]
):
    """Neither one that says goodbye nor one that just ends."""
    dispatcher.signal(signal.SIGSTOP)
    agent.tell("send", "", "x" * 10_000_000)
    began = time.monotonic()

    agent.tell("close")

    agent.process.wait(timeout=PATIENCE_SECONDS)
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert agent.process.returncode == 0


@pytest.mark.parametrize("how", ["close", "leave"])
def test_a_process_ends_though_its_peer_cannot_be_reached(
    start: Callable[..., End], agents: Credentials, how: str
):
    """192.0.2.1 is nobody's (RFC 5737)."""
    agent = start("agent", agents, addresses=["192.0.2.1:9", "no-such-host.invalid:9"], name="gpu1")
    agent.wait_for("NotReached")

    agent.tell(how)

    agent.process.wait(timeout=PATIENCE_SECONDS)
    assert agent.process.returncode == 0


@pytest.mark.parametrize("how", ["close", "leave"])
def test_a_dispatcher_ends_though_its_agents_are_stopped(dispatcher: End, agent: End, how: str):
    agent.signal(signal.SIGSTOP)
    dispatcher.tell("send", "gpu1", "x" * 10_000)

    dispatcher.tell(how)

    dispatcher.process.wait(timeout=PATIENCE_SECONDS)
    assert dispatcher.process.returncode == 0


def test_close_is_quick_whatever_is_going_on(waiter: Waiter, agents: Credentials):
    """Also while it looks for its dispatcher."""
    link = Link(waiter, agents, addresses=["192.0.2.1:9"], name="gpu1", run_id=RUN, hello=b"")
    waiter.wait(SteadyClock().now() + 0.2)
    began = time.monotonic()

    link.close()

    assert time.monotonic() - began < 1.0
