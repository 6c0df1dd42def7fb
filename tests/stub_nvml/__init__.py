"""A stand-in for NVIDIA's driver library, for tests that run unmodified pynvml in a subprocess.

    library = build(tmp_path / "library")
    machine = StubMachine(tmp_path / "machine", library, gpus=[StubGpu(0), StubGpu(1)])
    subprocess.run([...], env=os.environ | machine.env)

`machine` may be changed at any time; the driver reads its state anew on every call. `TRAIN` is the
fake training job that holds memory on these GPUs. The state file's words are in `StubMachine`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


GIB = 1024**3
TRAIN = Path(__file__).with_name("train.py")
"""The fake training job; run it as ``[sys.executable, "-I", "-S", str(TRAIN), ...]``."""

_SOURCE = Path(__file__).with_name("nvml_stub.c")
_SONAME = "libnvidia-ml.so.1"


class NoCompilerError(RuntimeError):
    """There is no C compiler on PATH."""


def _compiler() -> str | None:
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def has_compiler() -> bool:
    """Whether `build` can work here."""
    return _compiler() is not None


def build(into: Path, *, old_driver: bool = False) -> Path:
    """Compile the stub under `into` and return the directory that holds libnvidia-ml.so.1.

    `old_driver` leaves out the `_v3` process calls and the v2 memory call. Both kinds may be built
    under the same `into`. Raises as `compile_library` does.
    """
    directory = into / ("old-driver" if old_driver else "driver")
    directory.mkdir(parents=True, exist_ok=True)
    options = [f"-Wl,-soname,{_SONAME}", *(["-DSTUB_OLD_DRIVER"] if old_driver else [])]
    compile_library(_SOURCE, directory / _SONAME, *options)
    return directory


def compile_library(source: Path, library: Path, *options: str) -> None:
    """Raises NoCompilerError, or RuntimeError with the compiler's words."""
    compiler = _compiler()
    if compiler is None:
        msg = "this needs a C compiler: install gcc or clang, or set CC"
        raise NoCompilerError(msg)
    # A name of its own, then a rename: two builds at once must not load each other's half a file.
    unfinished = library.with_name(f"unfinished-{os.getpid()}-{threading.get_ident()}")
    command = [compiler, "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *options]
    command += ["-o", str(unfinished), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        msg = f"{' '.join(command)} failed:\n{done.stderr}"
        raise RuntimeError(msg)
    unfinished.rename(library)


@dataclass
class StubGpu:
    """One GPU. Error numbers are NVML's (15: lost, 16: needs a reset); 0 means none."""

    index: int
    uuid: str = ""
    """Empty: one made from the index."""
    name: str = "Stub A100"
    total_bytes: int = 80 * GIB
    used_bytes: int = 0
    """Held by nobody visible; memory of registered processes comes on top."""
    reserved_bytes: int = 0
    util_percent: int = 0
    """-1: not supported."""
    history_seconds: float = 20
    """Six samples a second of `history_util_percent`, ending now. 0: none; -1: not supported."""
    history_util_percent: int = 0
    history: Sequence[tuple[float, int]] | None = None
    """Instead: (seconds before `history_until`, percent)."""
    history_until: float = field(default_factory=time.time)
    """Unix seconds; set anew when `history` is set."""
    error: int = 0
    """Every query answers this, while handles can still be had."""
    handle_error: int = 0
    """Answered when a handle is asked for."""
    compute_mode: int = 0
    recovery: int = 0
    """-1: not supported."""
    remap_failure: int = 0
    """-1: not supported."""
    clock_reasons: int = 0
    mig: int = 0
    """1: MIG is on; -1: not a MIG-capable GPU."""
    bus: int = -1
    """-1: the index plus 1."""
    persistence: int = 1
    process_samples: Sequence[tuple[int, float, int]] | None = None
    """Instead of what the processes themselves use: (pid, Unix seconds, percent) of each sample."""
    no_process_samples: int = 6
    """Answered where there are none: 6, not found, or 0, success; -1: not supported."""

    def __post_init__(self) -> None:
        """Fill in the UUID."""
        self.uuid = self.uuid or f"GPU-00000000-0000-4000-8000-{self.index:012d}"


class GpuChanges(TypedDict, total=False):
    """What `StubMachine.set` takes: the fields of StubGpu that may change."""

    name: str
    total_bytes: int
    used_bytes: int
    reserved_bytes: int
    util_percent: int
    history_seconds: float
    history_util_percent: int
    history: Sequence[tuple[float, int]] | None
    history_until: float
    error: int
    handle_error: int
    compute_mode: int
    recovery: int
    remap_failure: int
    clock_reasons: int
    mig: int
    bus: int
    persistence: int
    process_samples: Sequence[tuple[int, float, int]] | None
    no_process_samples: int


@dataclass
class StubMig:
    """One MIG instance, in a slot (0 to 6) of its parent; a slot without one is a hole."""

    parent: int
    slot: int
    uuid: str = ""
    """Empty: one made from parent and slot."""
    total_bytes: int = 10 * GIB
    used_bytes: int = 0
    gpu_instance: int = 1
    compute_instance: int = 0
    slices: int = 1
    name: str = "Stub A100 MIG 1g.10gb"

    def __post_init__(self) -> None:
        """Fill in the UUID."""
        self.uuid = self.uuid or f"MIG-00000000-0000-4000-8000-{self.parent:06d}{self.slot:06d}"


class StubMachine:
    """A directory that the stub library reads as one machine. All methods may be used by threads.

    Words of the state file, one line each, `#` begins a comment: `driver VERSION`, `init CODE`,
    `count_error CODE`, `gpu key=value...`, `mig key=value...`, `fail CALL gpu=G code=C`,
    `hang CALL gpu=G seconds=S`. CALL is a C name: without a version suffix it names all versions.
    G is an index, a UUID, or `*` for all and for calls about no GPU.
    """

    def __init__(self, directory: Path, library_dir: Path, gpus: Sequence[StubGpu] = ()) -> None:
        """Make the directory and write the first state."""
        self.directory = directory
        self._library_dir = library_dir
        self._lock = threading.RLock()
        self._gpus = {gpu.index: replace(gpu) for gpu in gpus}
        self._migs: dict[str, StubMig] = {}
        self._faults: list[str] = []
        self._globals: dict[str, int | str] = {"driver": "580.95.05", "init": 0, "count_error": 0}
        for folder in ("procs", "tmp"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def env(self) -> dict[str, str]:
        """What a subprocess needs in its environment to find this machine."""
        paths = [str(self._library_dir), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "LD_LIBRARY_PATH": os.pathsep.join(path for path in paths if path),
            "NVML_STUB_DIR": str(self.directory),
        }

    @property
    def state_file(self) -> Path:
        """The file that the driver reads."""
        return self.directory / "state"

    def gpu(self, index: int) -> StubGpu:
        """Return a copy of a GPU as it is now."""
        with self._lock:
            return replace(self._gpus[index])

    def set(self, index: int, **changes: Unpack[GpuChanges]) -> None:
        """Change one GPU. Raises KeyError for an index that is not there."""
        if "history" in changes and "history_until" not in changes:
            changes["history_until"] = time.time()
        with self._lock:
            self._gpus[index] = replace(self._gpus[index], **changes)
            self._write()

    def add_gpu(self, gpu: StubGpu) -> None:
        """Add a GPU, or replace the one with the same index."""
        with self._lock:
            self._gpus[gpu.index] = replace(gpu)
            self._write()

    def remove_gpu(self, index: int) -> None:
        """Take a GPU off the bus: queries through handles to it answer GPU_IS_LOST."""
        with self._lock:
            del self._gpus[index]
            self._migs = {u: mig for u, mig in self._migs.items() if mig.parent != index}
            self._write()

    def add_mig(
        self,
        parent: int,
        slot: int,
        uuid: str = "",
        *,
        total_bytes: int = 10 * GIB,
        used_bytes: int = 0,
        gpu_instance: int | None = None,
        compute_instance: int = 0,
        slices: int = 1,
    ) -> StubMig:
        """Switch MIG on for a GPU and add an instance; adding one again changes it."""
        instance = slot + 1 if gpu_instance is None else gpu_instance
        mig = StubMig(
            parent, slot, uuid, total_bytes, used_bytes, instance, compute_instance, slices
        )
        with self._lock:
            self._gpus[parent] = replace(self._gpus[parent], mig=1)
            self._migs[mig.uuid] = mig
            self._write()
        return replace(mig)

    def remove_mig(self, uuid: str) -> None:
        """Destroy an instance: its slot becomes a hole, handles to it go stale."""
        with self._lock:
            del self._migs[uuid]
            self._write()

    def add_stranger(
        self,
        gpu: int | str,
        mem_bytes: int,
        pid: int,
        *,
        kind: str = "compute",
        mem_visible: bool = True,
        shown_pid: int | None = None,
        util_percent: int | None = None,
    ) -> None:
        """Register a live process on a GPU (index) or a device (UUID); it is gone when it dies.

        Registering it again changes it. `mem_visible=False` makes the driver answer no memory for
        it, `shown_pid` another pid, as in a container. `util_percent` is what each of the driver's
        samples credits to it; None: the driver says nothing of it.
        """
        with self._lock:
            uuid = self._gpus[gpu].uuid if isinstance(gpu, int) else gpu
        line = f"pid={pid} gpu={uuid} mem={mem_bytes} kind={kind} mem_visible={int(mem_visible)}"
        if shown_pid is not None:
            line += f" shown_pid={shown_pid}"
        if util_percent is not None:
            line += f" util={util_percent}"
        self._replace(self.directory / "procs" / f"stranger-{pid}-{uuid}", line + "\n")

    def remove_stranger(self, pid: int) -> None:
        """Unregister what `add_stranger` registered for this pid, on all GPUs."""
        for path in (self.directory / "procs").glob(f"stranger-{pid}-*"):
            path.unlink(missing_ok=True)

    def registered_pids(self) -> frozenset[int]:
        """Return the pids in procs/, strangers and training jobs, dead ones included."""
        pids = set()
        for path in (self.directory / "procs").iterdir():
            with contextlib.suppress(FileNotFoundError):  # unregistered since it was listed
                words = dict(word.split("=", 1) for word in path.read_text().split())
                pids.add(int(words["pid"]))
        return frozenset(pids)

    def fail(self, call: str, code: int, gpu: int | str = "*") -> None:
        """Let a call answer an error code from now on."""
        self._add_fault(f"fail {call} gpu={gpu} code={code}")

    def hang(self, call: str, seconds: float = 60, gpu: int | str = "*") -> None:
        """Let a call hang for so long, or until `clear_faults`."""
        self._add_fault(f"hang {call} gpu={gpu} seconds={seconds}")

    def clear_faults(self) -> None:
        """Undo every `fail` and `hang`; calls that hang right now go on within 50 ms."""
        with self._lock:
            self._faults.clear()
            self._write()

    def init_error(self, code: int) -> None:
        """Let the initialisation answer this (9: no driver, 18: upgraded, 999: unknown; 0: ok)."""
        self._set_global("init", code)

    def count_error(self, code: int) -> None:
        """Let nvmlDeviceGetCount answer this; 0: ok."""
        self._set_global("count_error", code)

    def driver(self, version: str) -> None:
        """Set the driver's version."""
        self._set_global("driver", version)

    def _set_global(self, word: str, value: int | str) -> None:
        with self._lock:
            self._globals[word] = value
            self._write()

    def _add_fault(self, line: str) -> None:
        with self._lock:
            self._faults.append(line)
            self._write()

    def _write(self) -> None:
        with self._lock:
            lines = [f"{word} {value}" for word, value in self._globals.items()]
            lines += [_gpu_line(self._gpus[index]) for index in sorted(self._gpus)]
            lines += [_mig_line(mig) for mig in self._migs.values()]
            self._replace(self.state_file, "\n".join([*lines, *self._faults]) + "\n")

    def _replace(self, path: Path, text: str) -> None:
        unfinished = self.directory / "tmp" / f"{path.name}-{os.getpid()}-{threading.get_ident()}"
        unfinished.write_text(text)
        unfinished.rename(path)


@contextlib.contextmanager
def stranger_process() -> Iterator[subprocess.Popen[bytes]]:
    """Run an idle process of somebody else, whose pid can be registered, and end it."""
    with subprocess.Popen(
        ["sleep", "600"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _gpu_line(gpu: StubGpu) -> str:
    words: dict[str, object] = {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name.replace(" ", "_"),
        "total": gpu.total_bytes,
        "used": gpu.used_bytes,
        "reserved": gpu.reserved_bytes,
        "util": gpu.util_percent,
        "error": gpu.error,
        "handle_error": gpu.handle_error,
        "compute_mode": gpu.compute_mode,
        "recovery": gpu.recovery,
        "remap_failure": gpu.remap_failure,
        "clock_reasons": gpu.clock_reasons,
        "mig": gpu.mig,
        "bus": gpu.bus,
        "persistence": gpu.persistence,
        "no_process_samples": gpu.no_process_samples,
        **_history_words(gpu),
    }
    if gpu.process_samples:
        words["process_samples"] = ",".join(
            f"{pid}:{round(seconds * 1e6)}:{percent}"
            for pid, seconds, percent in gpu.process_samples
        )
    return _line("gpu", words)


def _history_words(gpu: StubGpu) -> dict[str, object]:
    if not gpu.history:
        seconds = gpu.history_seconds if gpu.history is None else 0
        return {"history": seconds, "history_util": gpu.history_util_percent}
    pairs = ",".join(f"{seconds_ago}:{percent}" for seconds_ago, percent in gpu.history)
    return {"history_at": pairs, "history_from": f"{gpu.history_until:.6f}"}


def _mig_line(mig: StubMig) -> str:
    words: dict[str, object] = {
        "parent": mig.parent,
        "slot": mig.slot,
        "uuid": mig.uuid,
        "name": mig.name.replace(" ", "_"),
        "total": mig.total_bytes,
        "used": mig.used_bytes,
        "gi": mig.gpu_instance,
        "ci": mig.compute_instance,
        "slices": mig.slices,
    }
    return _line("mig", words)


def _line(first: str, words: dict[str, object]) -> str:
    return " ".join([first, *(f"{key}={value}" for key, value in words.items())])
