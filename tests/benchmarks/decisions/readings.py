"""What the driver says about the cards of the world: what a scheduler gets to see of it."""

from collections.abc import Iterable

from smartsched.core.model import GpuProcess, GpuSample
from tests.benchmarks.decisions.world import Card, Process, World


def read(world: World, cards: Iterable[Card]) -> tuple[GpuSample, ...]:
    return tuple(_sample(world, card) for card in cards)


def utilization(world: World, card: Card) -> int:
    """One sample of the device's, in percent."""
    idle = 1.0
    for process in card.processes:
        idle *= 1.0 - _utilization_now(world, process)
    return round(100 * (1.0 - idle))


def _utilization_now(world: World, process: Process) -> float:
    phase = process.phase
    if not phase.utilization or world.noise.random() < phase.zero_share:
        return 0.0
    return min(max(world.noise.gauss(phase.utilization, world.physics.noise), 0.0), 1.0)


def _sample(world: World, card: Card) -> GpuSample:
    if not card.processes:
        if card.unused is None:
            card.unused = _as_sample(card, 0, ())
        return card.unused
    if world.physics.per_process_utilization:
        return _sample_by_process(world, card)
    return _as_sample(
        card, utilization(world, card), tuple(listed(process) for process in card.processes)
    )


def _sample_by_process(world: World, card: Card) -> GpuSample:
    idle, processes = 1.0, []
    for process in card.processes:
        busy = _utilization_now(world, process)
        idle *= 1.0 - busy
        processes.append(_as_listed(process, round(100 * busy)))
    return _as_sample(card, round(100 * (1.0 - idle)), tuple(processes))


def _as_sample(card: Card, percent: int, processes: tuple[GpuProcess, ...]) -> GpuSample:
    return GpuSample(
        key=card.key,
        index=card.index,
        slot=None,
        name="Pretend GPU",
        memory_total_bytes=card.memory_bytes,
        memory_used_bytes=card.used_bytes,
        memory_free_bytes=card.memory_bytes - card.used_bytes,
        utilization_percent=percent,
        utilization_history=None,
        compute_mode="default",
        ailment=None,
        processes=processes,
    )


def listed(process: Process) -> GpuProcess:
    if process.listed is None:
        process.listed = _as_listed(process, None)
    return process.listed


def _as_listed(process: Process, percent: int | None) -> GpuProcess:
    return GpuProcess(
        pid=process.pid,
        kind="compute",
        memory_bytes=process.phase.memory_bytes,
        user=process.user,
        command=process.command,
        run_tag=None,
        session=process.pid,
        utilization_percent=percent,
    )
