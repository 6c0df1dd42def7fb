"""The boxes that are measured, as data. A new one is one more entry of SCENARIOS."""

from dataclasses import dataclass

from tests.benchmarks.decisions.phases import GIB


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    cards: int
    card_gib: int
    jobs: int
    families: int  # of jobs with the same command but for its numbers
    scale: float  # of the jobs' durations
    load: float  # share of the time that colleagues are on a card
    colleagues: tuple[tuple[str, int], ...]  # how often which kind of them comes (see `mix`)
    two_gpu_share: float = 0.0  # of the families
    memory_scale: float = 1.0  # of the jobs'
    utilization_scale: float = 1.0  # of the jobs'

    @property
    def card_bytes(self) -> int:
        return self.card_gib * GIB


def mix(**weights: int) -> tuple[tuple[str, int], ...]:
    """Of the kinds in colleagues.py."""
    return tuple(weights.items())


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("quiet_sweep", 8, 24, 96, 4, 0.7, 0.15, mix(train=1)),
        Scenario("busy_lab", 8, 24, 64, 6, 0.7, 0.55, mix(train=6, debug=4, grab=1)),
        Scenario("notebooks", 8, 48, 64, 5, 0.7, 0.5, mix(note=6, train=2, debug=2)),
        Scenario(
            "small_packable", 4, 80, 120, 4, 0.5, 0.25, mix(train=3, debug=2),
            memory_scale=0.35, utilization_scale=0.45,
        ),
        Scenario(
            "gang_mix", 8, 40, 48, 6, 0.9, 0.4, mix(train=4, debug=3), two_gpu_share=0.5
        ),
        Scenario(
            "bursty_deadline", 16, 80, 128, 8, 0.8, 0.6, mix(debug=8, train=3, grab=2),
            two_gpu_share=0.1,
        ),
    )
}  # fmt: skip

# For tests: over in a moment.
TINY = Scenario("tiny", 2, 24, 6, 2, 0.2, 0.4, mix(train=1, debug=3))
