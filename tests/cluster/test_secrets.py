"""What lets agents join is seen by nobody."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.cluster.runs import (
    accounted,
    agents_logs,
    dump,
    gated,
    nobody_is_left,
    open_gate,
    start,
    started,
)
from tests.lab import Lab
from tests.waiting import wait_until


def told_by_proc() -> Iterator[bytes]:
    """What everybody may be seen to have been told, of all processes there are."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for what in ("cmdline", "environ"):
            with suppress(OSError):
                yield Path(f"/proc/{pid}/{what}").read_bytes()


def secrets_of(lab: Lab) -> list[bytes]:
    """The lines of every key there is; none as long as there is no run."""
    with suppress(ValueError, OSError):
        join = json.loads((lab.run_folder() / "join").read_text())
        pems = [join["credentials"]["key_pem"]]
        pems += [path.read_text() for path in lab.state.glob("authority/*.pem")]
        lines = [line for pem in pems for line in pem.splitlines()[1:-1] if len(line) > 40]
        return [b"PRIVATE KEY", *map(str.encode, lines)]
    return [b"PRIVATE KEY"]


def test_keys_are_in_no_command_line_or_environment_nor_on_record(lab: Lab):
    lab.boot("gpu1", "gpu2", gpus=1)
    session = start(lab, [gated(lab, "1"), gated(lab, "2")])
    seen: list[bytes] = []

    def has_begun() -> bool:
        secrets = secrets_of(lab)
        seen.extend(told for told in told_by_proc() if any(secret in told for secret in secrets))
        return started(lab) == {"1", "2"}

    wait_until(has_begun, "both run", lambda: accounted(lab))
    has_begun()
    secrets = secrets_of(lab)
    assert len(secrets) > 3
    assert seen == []
    files = [path for path in lab.state.rglob("*") if path.is_file()]
    with_keys = [path for path in files if b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in with_keys} == {"join", "authority.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in with_keys} == {0o600}
    journal = (lab.run_folder() / "events.jsonl").read_bytes()
    said = [journal, session.err.encode(), agents_logs(lab).encode()]
    said += [path.read_bytes() for path in lab.job_logs()]
    assert not any(secret in each for secret in secrets for each in said)
    open_gate(lab)

    assert session.end().status == 0, dump(lab)
    nobody_is_left(lab)
    assert list(lab.state.glob("agents/*/*")) == []  # and no key is left on a host
    assert not (lab.run_folder() / "join").exists()
