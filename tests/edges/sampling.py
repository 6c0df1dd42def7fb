"""`smartsched sample` as a child process, read line by line."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from smartsched.core import codec
from tests.waiting import wait_until

COMMAND = [sys.executable, "-m", "smartsched", "sample"]
PATIENCE_SECONDS = 30


def once(
    env: Mapping[str, str] | None = None, *options: str
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """What it said and the lines that it wrote."""
    done = subprocess.run(
        [*COMMAND, "--once", *options],
        env=os.environ | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def gpus_of(env: Mapping[str, str]) -> list[dict[str, Any]]:
    """The GPUs in one snapshot, which the dispatcher must understand."""
    done, lines = once(env)
    assert (done.returncode, done.stderr) == (0, "")
    [line] = lines
    codec.decode(codec.parse(json.dumps(line)), taken_at=0.0)
    assert line["whole"]
    gpus: list[dict[str, Any]] = line["gpus"]
    return gpus


class Stream:
    """One that goes on."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def ask(self, *uuids: str) -> None:
        self._tell(uuids)

    def watch(self, *uuids: str) -> None:
        self._tell({"watch": uuids, "run": "test"})

    def _tell(self, what: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        self.process.stdin.flush()

    def whole(self) -> list[list[dict[str, Any]]]:
        return [line["gpus"] for line in self.lines if line.get("whole")]

    def answers(self) -> list[list[dict[str, Any]]]:
        return [line["gpus"] for line in self.lines if line.get("whole") is False]

    def next(self) -> list[dict[str, Any]]:
        """A whole snapshot that was begun after this call."""
        count = len(self.whole())
        wait_until(lambda: len(self.whole()) >= count + 2)
        return self.whole()[-1]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(PATIENCE_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))


@contextmanager
def streaming(
    env: Mapping[str, str], interval: str = "100ms", *, stdin: int = subprocess.PIPE
) -> Iterator[Stream]:
    options: Sequence[str] = ("--interval", interval)
    process = subprocess.Popen(
        [*COMMAND, *options], env=os.environ | dict(env), stdin=stdin, stdout=subprocess.PIPE
    )
    stream = Stream(process)
    try:
        yield stream
    finally:
        stream.end()
