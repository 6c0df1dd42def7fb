"""The scores as tables, and the gates that a policy has to pass: harm first, then speed."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tests.benchmarks.decisions.harm import Score


@dataclass(frozen=True, slots=True)
class Limits:
    """What may not be exceeded; percentages but for the ratio."""

    colleague_ooms: float = 0.5
    delay_blind: float = 1.0
    delay_looking: float = 2.0
    later_own_ooms: float = 1.0
    over_oracle: float = 1.25
    over_oracle_checkpointable: float = 1.10
    waste: float = 15.0


LIMITS = Limits()
_WIDTH = 175


@dataclass(frozen=True, slots=True)
class Row:
    """Several games as one line."""

    policy: str
    scenario: str
    colleagues: str
    scores: tuple[Score, ...]

    def ratio(self, value: str, to: str) -> float:
        """The geometric mean over the games."""
        return geometric_mean(getattr(s, value) / getattr(s, to) for s in self.scores)

    def share(self, part: str, whole: str) -> float:
        """In percent, of all games together."""
        return _percent(self.sum(part), self.sum(whole))

    def sum(self, value: str) -> float:
        return float(sum(getattr(s, value) for s in self.scores))

    @property
    def colleague_ooms(self) -> float:
        return _percent(self.sum("ooms") - self.sum("ooms_alone"), self.sum("visits"))

    @property
    def delay(self) -> float:
        return self.share("delay_seconds", "solo_seconds")

    @property
    def lost_to_us(self) -> float:
        return self.share("lost_to_us_seconds", "solo_seconds")

    @property
    def over_oracle(self) -> float:
        return self.ratio("makespan", "oracle_makespan")

    @property
    def waste(self) -> float:
        """The mean over the scenarios, so that none weighs more than another."""
        each = [row.waste_of_all for row in rows(self.scores)]
        return sum(each) / len(each)

    @property
    def waste_of_all(self) -> float:
        """Of all GPU time together; most of it is the busiest scenario's."""
        return self.share("wasted_gpu_seconds", "gpu_seconds")

    @property
    def later_own_ooms(self) -> float:
        return self.share("later_own_ooms", "later_launches")


@dataclass(frozen=True, slots=True)
class Gate:
    what: str
    worst: float
    limit: float
    where: str

    @property
    def passed(self) -> bool:
        return self.worst <= self.limit


def rows(scores: Sequence[Score]) -> list[Row]:
    """By policy, colleagues and scenario, in the order in which they come."""
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.policy, score.colleagues, score.scenario), []).append(score)
    return [
        Row(policy, scenario, colleagues, tuple(group))
        for (policy, colleagues, scenario), group in groups.items()
    ]


def together(all_rows: Sequence[Row]) -> list[Row]:
    """All scenarios as one, by policy and colleagues."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for row in all_rows:
        groups.setdefault((row.policy, row.colleagues), []).extend(row.scores)
    return [
        Row(policy, "all", colleagues, tuple(scores))
        for (policy, colleagues), scores in groups.items()
    ]


def gates(policy: str, all_rows: Sequence[Row], *, checkpointable: bool) -> Iterator[Gate]:
    """What the policy has to keep to in every scenario, then over all of them."""
    mine = [row for row in all_rows if row.policy == policy]
    for colleagues in dict.fromkeys(row.colleagues for row in mine):
        here = [row for row in mine if row.colleagues == colleagues]
        delay = LIMITS.delay_looking if colleagues == "looking" else LIMITS.delay_blind
        yield _worst("colleagues' OOM, %", here, lambda r: r.colleague_ooms, LIMITS.colleague_ooms)
        yield _worst("colleagues' delay, %", here, lambda r: r.delay, delay)
        yield _worst(
            "own OOM after a shape's first, %",
            here,
            lambda r: r.later_own_ooms,
            LIMITS.later_own_ooms,
        )
        (whole,) = together(here)
        limit = LIMITS.over_oracle_checkpointable if checkpointable else LIMITS.over_oracle
        yield _worst("makespan / oracle_pack", [whole], lambda r: r.over_oracle, limit)
        yield _worst("waste, mean of the scenarios, %", [whole], lambda r: r.waste, LIMITS.waste)
    yield _worst("jobs not done, or twice", mine, _astray, 0.0)


def _astray(row: Row) -> float:
    return row.sum("unfinished") + row.sum("done_twice")


def _worst(what: str, some: Sequence[Row], value: Callable[[Row], float], limit: float) -> Gate:
    worst = max(some, key=value)
    return Gate(what, value(worst), limit, f"{worst.scenario}, {worst.colleagues}")


def show(all_rows: Sequence[Row], checked: Sequence[str], *, checkpointable: bool) -> bool:
    """Whether all of the checked policies passed all gates."""
    console = Console(width=max(Console().width, _WIDTH))
    console.print(_table([*all_rows, *together(all_rows)]))
    passed = True
    for policy in checked:
        console.print(f"\n[bold]{policy}[/]: the worst scenario, and what is allowed")
        for gate in gates(policy, all_rows, checkpointable=checkpointable):
            word = "[green]pass[/]" if gate.passed else "[red]FAIL[/]"
            console.print(
                f"  {word}  {gate.what:<34}{gate.worst:8.2f} <= {gate.limit:<6g} {gate.where}",
                highlight=False,
            )
            passed = passed and gate.passed
    return passed


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("makesp.\n/LB", lambda r: f"{r.ratio('makespan', 'lower_bound'):.2f}"),
    ("makesp.\n/oracle", lambda r: f"{r.over_oracle:.2f}"),
    (
        "mean c.\n/oracle",
        lambda r: f"{r.ratio('mean_completion', 'oracle_mean_completion'):.2f}",
    ),
    ("coll.\nOOM %", lambda r: f"{r.colleague_ooms:.2f}"),
    ("beside\nus %", lambda r: f"{r.share('ooms_beside_us', 'visits'):.2f}"),
    ("coll.\ndelay %", lambda r: f"{r.delay:.2f}"),
    ("beside\nus %", lambda r: f"{r.lost_to_us:.2f}"),
    ("delayed\n> 5 % %", lambda r: f"{r.share('delayed', 'compared'):.1f}"),
    ("own OOM\n%", lambda r: f"{r.share('own_ooms', 'launches'):.2f}"),
    ("... later\n%", lambda r: f"{r.later_own_ooms:.2f}"),
    ("waste\n%", lambda r: f"{r.waste:.1f}"),
    ("... of\nall %", lambda r: f"{r.waste_of_all:.1f}"),
    ("stopped\na game", lambda r: f"{r.sum('stopped') / len(r.scores):.0f}"),
    ("not\ndone", lambda r: f"{_astray(r):.0f}"),
)


def _table(all_rows: Iterable[Row]) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 1))
    for name in ("policy", "scenario", "colleagues"):
        table.add_column(name, no_wrap=True)
    for name, _ in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in all_rows:
        group = (row.policy, row.colleagues, row.scenario == "all")
        if before is not None and group != before:
            table.add_row()
        before = group
        cells = [value(row) for _, value in _COLUMNS]
        table.add_row(row.policy, row.scenario, row.colleagues, *cells)
    return table


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0
