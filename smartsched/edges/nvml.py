"""The only module that imports pynvml. Turns driver calls into GPU readings.

Runs in the sampler process alone: NVML does not survive a fork, can hang for ever, and after an
upgrade of the driver only a fresh process gets on with it again.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from smartsched.core.model import (
    UNREAD,
    ComputeMode,
    GpuKey,
    GpuProcess,
    GpuReading,
    GpuSample,
    GpuUnreadable,
    GpuUuid,
    HostName,
    UtilizationPoint,
)
from smartsched.errors import DriverError

T = TypeVar("T")

_COMPUTE_MODES: dict[int, ComputeMode] = {2: "prohibited", 3: "exclusive"}
_RECOVERY_ACTION_FIELD = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, nvml.h 12.8
_RECOVERY_ACTIONS = {1: "a reset", 2: "a reboot", 3: "to be drained", 4: "to be drained and reset"}
_HEALTH_EVERY_SECONDS = 30.0
_RECENT_SECONDS = 2.0
_RESET_REQUIRED = 16  # NVML_ERROR_RESET_REQUIRED, which older bindings do not name


def load() -> Any:
    """The driver library's binding, initialised. Raises DriverError."""
    try:
        import pynvml
    except ImportError as error:
        raise DriverError(
            "the Python package nvidia-ml-py is not installed: pip install nvidia-ml-py"
        ) from error
    if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
        raise DriverError(
            f"{pynvml.__file__} is not NVIDIA's pynvml but shadows it:"
            " pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py"
        )
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DriverError(_why_no_driver(pynvml, error)) from error
    return pynvml


def driver_version(nvml: Any) -> str:
    """As it calls itself: 550.54.14. Raises DriverError."""
    try:
        return _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        raise DriverError(f"the NVIDIA driver does not say its version ({error})") from error


def _why_no_driver(nvml: Any, error: Any) -> str:
    match error.value:
        case nvml.NVML_ERROR_LIBRARY_NOT_FOUND | nvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return f"no NVIDIA driver here ({error})"
        case nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return (
                "the NVIDIA driver was upgraded but the old kernel module is still loaded"
                f" ({error}); it takes a reboot or a reload of the module"
            )
        case nvml.NVML_ERROR_NO_PERMISSION:
            return (
                f"the NVIDIA driver may not be asked from here ({error}): look who may open"
                " /dev/nvidia*"
            )
        case _:
            return (
                f"the NVIDIA driver does not answer properly ({error}): see whether nvidia-smi does"
            )


class _Questions:
    """To one GPU."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._never = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        self._unsupported: set[str] = set()

    def ask(self, name: str, question: Callable[[], T]) -> T | None:
        """The answer, or None where the driver will never give one for this GPU."""
        if name in self._unsupported:
            return None
        try:
            return question()
        except self._nvml.NVMLError as error:
            if error.value not in self._never:
                raise
            self._unsupported.add(name)
            return None

    def ask_gently(self, name: str, question: Callable[[], T]) -> T | None:
        """Likewise, and None as well where it fails this once: what is asked is good to know, and
        no reason to give up on the GPU."""
        try:
            return self.ask(name, question)
        except self._nvml.NVMLError as error:
            if error.value in (self._nvml.NVML_ERROR_GPU_IS_LOST, _RESET_REQUIRED):
                raise
            return None

    def will_never_say(self, name: str) -> bool:
        return name in self._unsupported


class _Card(Struct):
    """What we remember of a GPU between samples."""

    questions: _Questions
    name: str = "GPU"
    history_seen: int = 0  # the driver's own timestamp
    ailment: str | None = None
    health_due_at: float = 0.0


class _Place(Struct, frozen=True):
    index: int
    slot: int | None


class Processes(Protocol):
    """Who reads the processes of a GPU."""

    def read(
        self, handle: Any, uuid: str, gpu: _Questions, *, busy: bool, is_slice: bool
    ) -> tuple[GpuProcess, ...]:
        """`busy`: it did something lately, or does not say. Raises what the driver answers."""


class NvmlReader:
    """Reads GPUs through an initialised pynvml."""

    def __init__(self, nvml: Any, host: HostName, processes: Processes) -> None:
        self._nvml = nvml
        self._host = host
        self._processes = processes
        self._cards: dict[str, _Card] = {}
        self._uuid_at: dict[int, str] = {}

    def read(self, only: Collection[str] | None = None) -> tuple[GpuReading, ...]:
        """All GPUs, or those with the given UUIDs. Raises DriverError when none can be asked."""
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            raise DriverError(_why_no_driver(self._nvml, error)) from error
        if count == 0:
            raise DriverError("the NVIDIA driver lists no GPU: containers need --gpus all")
        return tuple(reading for index in range(count) for reading in self._at(index, only))

    def _at(self, index: int, only: Collection[str] | None) -> Iterator[GpuReading]:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = self._uuid_at[index] = _text(self._nvml.nvmlDeviceGetUUID(handle))
            in_slices = self._is_in_mig_mode(handle, uuid)
        except self._nvml.NVMLError as error:
            uuid = self._uuid_at.get(index, f"{UNREAD}{index}")
            if only is None or uuid in only:
                yield self._unreadable(uuid, _Place(index, None), error)
            return
        if in_slices:
            yield from self._instances(handle, uuid, index, only)
        elif only is None or uuid in only:
            yield self._read_one(handle, uuid, _Place(index, None))

    def _is_in_mig_mode(self, handle: Any, uuid: str) -> bool:
        card = self._card(uuid)
        modes = card.questions.ask("mig mode", lambda: self._nvml.nvmlDeviceGetMigMode(handle))
        return modes is not None and modes[0] == 1

    def _instances(
        self, card_handle: Any, card_uuid: str, index: int, only: Collection[str] | None
    ) -> Iterator[GpuReading]:
        found = False
        try:
            slots = self._nvml.nvmlDeviceGetMaxMigDeviceCount(card_handle)
        except self._nvml.NVMLError as error:
            yield self._unreadable(card_uuid, _Place(index, None), error)
            return
        for slot in range(slots):
            try:
                handle = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(card_handle, slot)
                uuid = _text(self._nvml.nvmlDeviceGetUUID(handle))
            except self._nvml.NVMLError:
                continue  # slots may be empty anywhere in between
            found = True
            if only is None or uuid in only:
                yield self._read_one(handle, uuid, _Place(index, slot))
        if not found and (only is None or card_uuid in only):
            why = "MIG is on but has no instances"
            key = GpuKey(self._host, GpuUuid(card_uuid))
            yield GpuUnreadable(key, index, None, self._cards[card_uuid].name, why)

    def _read_one(self, handle: Any, uuid: str, place: _Place) -> GpuReading:
        card = self._card(uuid)
        try:
            if card.name == "GPU":
                name = card.questions.ask_gently(
                    "name", partial(self._nvml.nvmlDeviceGetName, handle)
                )
                card.name = _text(name or card.name)
            return self._sample(handle, uuid, place, card)
        except self._nvml.NVMLError as error:
            return self._unreadable(uuid, place, error)

    def _unreadable(self, uuid: str, place: _Place, error: Exception) -> GpuUnreadable:
        name = self._cards[uuid].name if uuid in self._cards else "GPU"
        key = GpuKey(self._host, GpuUuid(uuid))
        return GpuUnreadable(key, place.index, place.slot, name, f"the driver says: {error}")

    def _card(self, uuid: str) -> _Card:
        return self._cards.setdefault(uuid, _Card(_Questions(self._nvml)))

    def _sample(self, handle: Any, uuid: str, place: _Place, card: _Card) -> GpuSample:
        rates = card.questions.ask(
            "utilisation", lambda: self._nvml.nvmlDeviceGetUtilizationRates(handle)
        )
        utilization = None if rates is None else int(rates.gpu)
        history = self._history(handle, card)
        processes = self._processes.read(
            handle,
            uuid,
            card.questions,
            busy=_is_busy(utilization, history),
            is_slice=place.slot is not None,
        )
        total, used, free = self._memory(handle, card, processes)
        return GpuSample(
            key=GpuKey(self._host, GpuUuid(uuid)),
            index=place.index,
            slot=place.slot,
            name=card.name,
            memory_total_bytes=total,
            memory_used_bytes=used,
            memory_free_bytes=free,
            utilization_percent=utilization,
            utilization_history=history,
            compute_mode=self._compute_mode(handle, card),
            ailment=self._ailment(handle, card),
            processes=processes,
        )

    def _memory(
        self, handle: Any, card: _Card, processes: Iterable[GpuProcess]
    ) -> tuple[int, int, int]:
        """Total, used without what the driver reserves for itself, and free, in bytes."""
        nvml = self._nvml
        memory = card.questions.ask(
            "memory v2",
            lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2),
        ) or card.questions.ask("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        if memory is not None and memory.total:
            return int(memory.total), int(memory.used), int(memory.free)
        # GB10 and the like share the system's memory and report none of their own
        import psutil

        system = psutil.virtual_memory()
        used = sum(process.memory_bytes or 0 for process in processes)
        return system.total, used, system.available

    def _history(self, handle: Any, card: _Card) -> tuple[UtilizationPoint, ...] | None:
        nvml = self._nvml

        def ask() -> list[Any]:
            try:
                _, entries = nvml.nvmlDeviceGetSamples(
                    handle, nvml.NVML_GPU_UTILIZATION_SAMPLES, card.history_seen
                )
            except nvml.NVMLError_NotFound:
                return []
            return [entry for entry in entries if entry.timeStamp]

        entries = card.questions.ask_gently("history", ask)
        if entries is None:
            return None
        if not entries:
            return ()
        newest = max(entry.timeStamp for entry in entries)
        card.history_seen = newest
        # Microseconds since 1970 with every driver seen; should that change, they still count from
        # the newest one.
        age = time.time() - newest / 1e6
        age = age if 0 <= age < 3600 else 0.0
        return tuple(
            UtilizationPoint(age + (newest - entry.timeStamp) / 1e6, int(entry.sampleValue.uiVal))
            for entry in entries
        )

    def _compute_mode(self, handle: Any, card: _Card) -> ComputeMode:
        mode = card.questions.ask("mode", lambda: self._nvml.nvmlDeviceGetComputeMode(handle))
        return _COMPUTE_MODES.get(mode or 0, "default")

    def _ailment(self, handle: Any, card: _Card) -> str | None:
        now = time.monotonic()
        if now >= card.health_due_at:
            card.health_due_at = now + _HEALTH_EVERY_SECONDS
            card.ailment = self._recovery(handle, card) or self._remapping(handle, card)
        return card.ailment

    def _recovery(self, handle: Any, card: _Card) -> str | None:
        values = card.questions.ask_gently(
            "recovery",
            lambda: self._nvml.nvmlDeviceGetFieldValues(handle, [_RECOVERY_ACTION_FIELD]),
        )
        if not values or values[0].nvmlReturn != 0 or values[0].value.uiVal == 0:
            return None
        action = values[0].value.uiVal
        return f"the driver wants {_RECOVERY_ACTIONS.get(action, f'recovery action {action}')}"

    def _remapping(self, handle: Any, card: _Card) -> str | None:
        rows = card.questions.ask_gently(
            "remapped rows", lambda: self._nvml.nvmlDeviceGetRemappedRows(handle)
        )
        return "its memory failed and could not be remapped" if rows and rows[3] else None


def _is_busy(utilization: int | None, history: Iterable[UtilizationPoint] | None) -> bool:
    """Whether the GPU did anything lately, or does not say."""
    recent = [point.percent for point in history or () if point.age_seconds <= _RECENT_SECONDS]
    return utilization is None or max(utilization, *recent, 0) > 0


def _text(value: str | bytes) -> str:
    """Older bindings return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
