"""Dispatchers as processes of their own, if need be of users of their own: the real thing.

What a `Claimant` is told to do, it does in its process (`python -m tests.edges.claims.claimants`).
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from smartsched.core.model import ClaimGranted, ClaimRefused, GpuKey, GpuUuid, HostName
from smartsched.edges.claim_files import ClaimFiles
from smartsched.edges.claim_reader import ClaimReader
from smartsched.edges.claims import FolderClaims
from smartsched.errors import StateError
from tests.builders import GIB, T0

ROOT = Path(__file__).parents[3]
ALICE, BOB, MALLORY = 54321, 54322, 54323  # nobody of that name need exist
HOST = HostName("box")
IS_ROOT = os.geteuid() == 0


def key(uuid: str) -> GpuKey:
    return GpuKey(HOST, GpuUuid(uuid))


A, B, C = key("GPU-a"), key("GPU-b"), key("GPU-c")


def open_claims(folder: Path, run_name: str, said: list[str]) -> FolderClaims:
    """`said` gets what its user is told. Raises StateError."""
    files = ClaimFiles(folder, ClaimReader(tidy_up=True), run_name=run_name)
    return FolderClaims(files, said.append)


def name_of(uid: int | None) -> str:
    import pwd

    return f"user {uid}" if uid is not None else pwd.getpwuid(os.geteuid()).pw_name


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def contents_of(folder: Path) -> Any:
    """Of the only file there."""
    [file] = files_in(folder)
    return json.loads(file.read_bytes())


def uuids_in(folder: Path) -> list[str]:
    return [gpu["uuid"] for gpu in contents_of(folder)["gpus"]]


def trap_in(folder: Path, number: int = 0) -> Path:
    """A name that a claim could have."""
    return folder / f"smartsched-{number:016x}.claim"


def claim(**fields: object) -> bytes:
    """As somebody might write it who lives: this process, here."""
    whose = {**ClaimReader(tidy_up=False).ourselves(), "run": "theirs"}
    return json.dumps({**whose, "gpus": [{"uuid": A.uuid}], **fields}).encode()


def locked(stack: ExitStack, path: Path, how: int = fcntl.LOCK_EX) -> None:
    """For the rest of the test."""
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    fcntl.flock(fd, how | fcntl.LOCK_NB)


def asked(claims: FolderClaims, *gpus: GpuKey, now: float = T0) -> ClaimGranted | ClaimRefused:
    """The answer, which is there at once."""
    claims.ask([(gpu, GIB) for gpu in gpus], now)
    [answer] = claims.take(now)
    return answer


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Claimant:
    """Somebody else's dispatcher, in a process of its own."""

    def __init__(
        self, stack: ExitStack, folder: Path, *, uid: int | None = None, run_name: str = "run"
    ) -> None:
        """`uid`: whose it is (only root can say); None: ours. Raises StateError if it does."""
        self.said: list[str] = []
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.edges.claims.claimants",
                str(folder),
                run_name,
                str(uid or ""),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
        )
        stack.callback(self.kill)
        self.answer()

    def ask(self, *uuids: str) -> list[str]:
        """What speaks against it; empty: it has them all."""
        self.begin("ask", uuids)
        return list(self.answer())

    def release(self, *uuids: str) -> None:
        self.begin("release", uuids)
        self.answer()

    def do(self, code: str) -> Any:
        """Anything else: what it assigns to `result` is returned."""
        self.begin("do", code)
        return self.answer()

    def begin(self, what: str, arguments: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, arguments]) + "\n")

    def answer(self) -> Any:
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        self.said += answer["said"]
        if answer["error"] is not None:
            raise StateError(answer["error"])
        return answer["result"]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class _Claimant:
    """The other end."""

    def __init__(self, folder: Path, run_name: str) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.claims = open_claims(folder, run_name, self.said)

    def ask(self, uuids: list[str]) -> list[str]:
        self.claims.ask([(key(uuid), 0) for uuid in uuids], time.time())
        while True:
            for answer in self.claims.take(time.time()):
                if isinstance(answer, ClaimGranted):
                    return []
                return [f"{gpu.uuid}: {text}" for gpu, text in answer.why]
            time.sleep(max(0.0, self.claims.wake_at() - time.time()))

    def release(self, uuids: list[str]) -> None:
        self.claims.release([key(uuid) for uuid in uuids], time.time())

    def do(self, code: str) -> Any:
        names: dict[str, Any] = {"folder": str(self.folder), "claims": self.claims}
        exec(code, names)
        return names.get("result")


def _say(said: list[str], result: Any = None, error: str | None = None) -> None:
    print(json.dumps({"said": said, "result": result, "error": error}), flush=True)
    said.clear()


def _serve(folder: Path, run_name: str, uid: str) -> None:
    if uid:
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    try:
        claimant = _Claimant(folder, run_name)
    except StateError as error:
        _say([], error=str(error))
        return
    _say(claimant.said)
    for line in sys.stdin:
        what, arguments = json.loads(line)
        _say(claimant.said, getattr(claimant, what)(arguments))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), *sys.argv[2:])
