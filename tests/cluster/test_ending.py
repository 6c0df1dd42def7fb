"""How a run on several hosts ends, and that nothing of it stays on any of them."""

import signal

import pytest

from tests.cluster.runs import begun, dump, gated, nobody_is_left, open_gate, start, started
from tests.lab import Lab


def test_the_first_ctrl_c_lets_jobs_on_hosts_end_and_starts_nothing_more(lab: Lab):
    lab.boot("gpu1", "gpu2", gpus=1)
    session = start(lab, [gated(lab, "1"), gated(lab, "2"), lab.accounts.job("3")])
    begun(lab, "1", "2")

    session.signal(signal.SIGINT)
    session.says("starting nothing more; waiting for 2 running jobs")
    open_gate(lab)

    done = session.end()
    assert done.status == 130, dump(lab)
    assert "2 jobs ok, 0 failed, 1 not started" in done.err
    assert started(lab) == {"1", "2"}
    nobody_is_left(lab)


@pytest.mark.parametrize("signums", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM]])
def test_whoever_wants_no_more_has_jobs_stopped_on_all_hosts(
    lab: Lab, signums: list[signal.Signals]
):
    lab.boot("gpu1", "gpu2", gpus=1)
    session = start(lab, [gated(lab, "1"), gated(lab, "2", "--ignore-term")])
    begun(lab, "1", "2")

    for signum in signums:
        session.signal(signum)
        session.says("starting nothing more" if signum is signal.SIGINT else "stopping")
    done = session.end()

    assert done.status == 130, dump(lab)
    assert "2 stopped" in done.err
    assert lab.accounts.ended() == []
    nobody_is_left(lab)
