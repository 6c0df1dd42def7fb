"""Long runs: `make soak`."""

import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cli.harness import Box
from tests.stub_nvml import GIB
from tests.waiting import wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

MIB = 2**20


def test_a_million_lines_cost_what_a_short_list_does(box: Box):
    listing = box.folder / "long"
    with listing.open("w") as lines:
        lines.writelines("touch started; exec sleep 600\n" for _ in range(1_000_000))

    session = box.start("--free-for", "0", "-q", str(listing))
    wait_until((box.folder / "started").exists, "the first job runs", session.dump)
    process = psutil.Process(session.process.pid)

    assert process.memory_info().rss < 100 * MIB
    session.signal(signal.SIGTERM)
    assert session.end().status == 130


def test_memory_and_descriptors_stay_flat_over_many_jobs_and_faults(box: Box):
    """Samplers are killed, GPUs are lost and come back, strangers come and go."""
    count = 4000
    listing = box.list_of([f"echo {number} >> did" for number in range(count)])
    session = box.start(
        "--free-for", "0", "--interval", "100ms", "-q", "--output", "raw", str(listing)
    )
    process = psutil.Process(session.process.pid)
    over = threading.Event()
    faults = threading.Thread(target=_make_trouble, args=(box, process, over))
    faults.start()
    early = late = (0, 0)
    try:
        while session.process.poll() is None:
            done = _lines(box.folder / "did")
            if done < count // 4:
                early = (process.memory_info().rss, process.num_fds())
            elif done < count * 3 // 4:
                late = (process.memory_info().rss, process.num_fds())
            time.sleep(0.2)
    except psutil.NoSuchProcess:
        pass
    finally:
        over.set()
        faults.join()

    assert session.end().status == 0, session.dump()
    numbers = sorted(map(int, (box.folder / "did").read_text().split()))
    assert numbers == list(range(count))
    assert late[0] < early[0] + 8 * MIB
    assert late[1] <= early[1] + 4


def _make_trouble(box: Box, process: psutil.Process, over: threading.Event) -> None:
    pick = random.Random(3)
    while not over.wait(pick.uniform(0.5, 2.0)):
        index = pick.randrange(4)
        match pick.randrange(3):
            case 0:
                with suppress(psutil.Error):  # it may just have ended
                    for child in process.children():
                        if "sample" in " ".join(child.cmdline()):
                            child.kill()
            case 1:
                box.machine.set(index, error=15)
                over.wait(0.3)
                box.machine.set(index, error=0)
            case _:
                box.machine.set(index, used_bytes=40 * GIB)
                over.wait(0.3)
                box.machine.set(index, used_bytes=0)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
