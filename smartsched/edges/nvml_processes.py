"""Which processes a GPU has and how much of it each of them uses, by the driver's own word.

Asks through the binding that it is given, and knows nothing else of a GPU.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from smartsched.core.model import GpuProcess
from smartsched.core.process_usage import Credit, ProcessUsage

T = TypeVar("T")
Kind: TypeAlias = Literal["compute", "graphics"]
Describe: TypeAlias = Callable[[int, Kind, int | None, int | None], GpuProcess]

_LISTS: tuple[tuple[Kind, str], ...] = (
    ("graphics", "Graphics"),
    ("compute", "MPSCompute"),
    ("compute", "Compute"),
)
_RACE_RETRIES = 3
_USAGE = "usage by process"


class Questions(Protocol):
    """To one GPU: who asks remembers what it will never answer."""

    def ask(self, name: str, question: Callable[[], T]) -> T | None:
        """None: it will never say. Raises what the driver answers else."""

    def ask_gently(self, name: str, question: Callable[[], T]) -> T | None:
        """Likewise, and None as well where it does not say this once."""

    def will_never_say(self, name: str) -> bool: ...


class _Listed(NamedTuple):
    kind: Kind
    memory_bytes: int | None
    is_mps_client: bool


class ProcessReader:
    """Reads the processes of GPUs through an initialised pynvml."""

    def __init__(self, nvml: Any, describe: Describe) -> None:
        self._nvml = nvml
        self._describe = describe
        self._usage: dict[str, ProcessUsage] = {}

    def read(
        self, handle: Any, uuid: str, gpu: Questions, *, busy: bool, is_slice: bool
    ) -> tuple[GpuProcess, ...]:
        """Those on a GPU or slice; `busy`: it did something lately, or does not say."""
        listed = self._listed(handle, gpu)
        # nvml.h says that it is not supported on MIG-enabled GPUs
        shares = {} if is_slice else self._shares(handle, uuid, gpu, listed, busy=busy)
        return tuple(
            self._describe(pid, listed[pid].kind, listed[pid].memory_bytes, shares.get(pid))
            for pid in sorted(listed)
        )

    def _listed(self, handle: Any, gpu: Questions) -> dict[int, _Listed]:
        """By pid. A process may be in several lists, and its memory be told in one of them only."""
        found: dict[int, _Listed] = {}
        for kind, name in _LISTS:
            for process in self._list(handle, gpu, name):
                known = found.get(process.pid, _Listed(kind, None, is_mps_client=False))
                told = process.usedGpuMemory
                found[process.pid] = _Listed(
                    kind,
                    known.memory_bytes if told is None else told,
                    is_mps_client=known.is_mps_client or name == "MPSCompute",
                )
        return found

    def _list(self, handle: Any, gpu: Questions, name: str) -> list[Any]:
        question = f"nvmlDeviceGet{name}RunningProcesses"
        for function in (question, f"{question}_v2"):
            if (list_processes := getattr(self._nvml, function, None)) is None:
                continue
            answer = gpu.ask(function, partial(self._race, list_processes, handle))
            if answer is not None:
                return answer
        return []

    def _race(self, list_them: Callable[..., list[Any]], *arguments: object) -> list[Any]:
        """There may be more between the driver's saying how many there are and listing them."""
        for _ in range(_RACE_RETRIES):
            try:
                return list_them(*arguments)
            except self._nvml.NVMLError_InsufficientSize:
                continue
            except self._nvml.NVMLLibraryMismatchError as error:  # which is no NVMLError
                raise self._nvml.NVMLError(self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND) from error
        return list_them(*arguments)

    def _shares(
        self, handle: Any, uuid: str, gpu: Questions, listed: Mapping[int, _Listed], *, busy: bool
    ) -> dict[int, int | None]:
        """What each process uses of the GPU, in percent, as far as is known."""
        usage = self._usage.setdefault(uuid, ProcessUsage())
        since_us = usage.ask_since(time.time_ns() // 1000)
        noted: list[Credit] = []
        if listed:
            noted = gpu.ask_gently(_USAGE, partial(self._credits, handle, since_us)) or []
        if gpu.will_never_say(_USAGE):
            return {}
        now = time.monotonic()
        usage.learn(noted, listed.keys(), since_us=since_us, busy=busy, now=now)
        return {
            pid: usage.percent(pid, busy=busy, hides=process.is_mps_client, now=now)
            for pid, process in listed.items()
        }

    def _credits(self, handle: Any, since_us: int) -> list[Credit]:
        nvml = self._nvml
        try:
            samples = self._race(nvml.nvmlDeviceGetProcessUtilization, handle, since_us)
        except nvml.NVMLError as error:
            # The binding raises the driver's "success" as well, where that tells of nobody.
            if error.value in (nvml.NVML_SUCCESS, nvml.NVML_ERROR_NOT_FOUND):
                return []
            raise
        return [Credit(sample.pid, sample.timeStamp, sample.smUtil) for sample in samples]
