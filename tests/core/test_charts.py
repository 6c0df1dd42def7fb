"""What a report's pictures show."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from smartsched.core.account import Bar
from smartsched.core.chart_data import GpuLine, Rows, Scene, datasets
from smartsched.core.charts import Theme, shares_chart, timeline
from smartsched.core.gpu_time import GpuUse
from smartsched.core.history import GpuSeen, History, QueueSeen
from smartsched.core.model import JobId, Placement
from smartsched.core.shares import gpu_seconds
from tests.builders import GIB, T0, a_key, a_part, a_run


def a_bar(job: int, begin: float, end: float | None, *indices: int) -> Bar:
    placement = Placement(tuple(a_part(index) for index in indices or (0,)))
    return Bar(a_run(job), placement, T0 + begin, None if end is None else T0 + end, "ok")


def seen(begin: float, end: float, use: GpuUse = "strangers", gib: float = 40.0) -> GpuSeen:
    return GpuSeen(T0 + begin, T0 + end, a_key(), use, "why", int(gib * GIB), 0, 50.0)


def scene(
    bars: Sequence[Bar] = (),
    pieces: Iterable[GpuSeen] = (),
    queue: Iterable[QueueSeen] = (),
    gpus: int = 1,
    seconds: float = 100.0,
    **fields: Any,
) -> Scene:
    lines = [GpuLine(a_key(n), str(n), 80 * GIB) for n in range(gpus)]
    history = History(seen=list(pieces), queue=list(queue))
    span = (T0, T0 + seconds)
    found = gpu_seconds([line.key for line in lines], bars, history, span)
    values: dict[str, Any] = {"commands": {}, "local_offset": 0.0} | fields
    return Scene(lines, bars, values["commands"], history, span, found, values["local_offset"])


def drawn(scene: Scene, theme: Theme = "light") -> dict[str, Any]:
    return timeline(scene, datasets(scene), theme, 800)


def times(rows: Rows) -> list[tuple[float, float]]:
    """In seconds after T0."""
    return [(row["b"] / 1000 - T0, row["e"] / 1000 - T0) for row in rows]


def test_each_gpu_of_an_attempt_has_a_bar_in_its_row():
    bars = datasets(scene([a_bar(7, 10, 30, 0, 2)], gpus=3))["bars"]

    assert times(bars) == [(10, 30)] * 2
    assert [int(bar["y0"]) for bar in bars] == [0, 2]
    assert [(bar["gpu"], bar["job"], bar["took"]) for bar in bars] == [
        ("0", 7, "20s"),
        ("2", 7, "20s"),
    ]


def test_jobs_that_share_a_gpu_lie_side_by_side():
    bars = datasets(scene([a_bar(1, 0, 50), a_bar(2, 10, 60), a_bar(3, 55, 70)]))["bars"]

    tops = [bar["y0"] for bar in bars]
    assert tops[0] == tops[2] < tops[1]
    assert all(bar["y0"] < bar["y1"] < 1 for bar in bars)
    assert bars[0]["y1"] <= bars[1]["y0"]


def test_neighbours_are_told_apart():
    bars = datasets(scene([a_bar(1, 0, 10), a_bar(2, 10, 20)]))["bars"]

    assert [bar["tone"] for bar in bars] == ["ok", "ok "]


def test_what_runs_is_drawn_until_now():
    assert times(datasets(scene([a_bar(1, 20, None)]))["bars"]) == [(20, 100)]


def test_times_are_those_on_the_wall_of_the_box():
    bars = datasets(scene([a_bar(1, 20, 30)], local_offset=3600.0))["bars"]

    assert times(bars) == [(3620, 3630)]


def test_commands_are_printable_and_not_endless():
    hostile = "echo \udcff\x1b[31m</script>" + "x" * 1000

    [bar] = datasets(scene([a_bar(1, 0, 1)], commands={JobId(1): hostile}))["bars"]

    assert bar["command"].startswith("echo \\xff\\x1b[31m</script>x")
    assert len(bar["command"]) == 160


def test_other_peoples_memory_is_as_high_as_its_share():
    [row] = datasets(scene(pieces=[seen(0, 50, gib=80)]))["memory"]
    [half] = datasets(scene(pieces=[seen(0, 50, gib=40)]))["memory"]

    assert (half["y1"] - half["y0"]) / (row["y1"] - row["y0"]) == pytest.approx(0.5)
    assert row["memory"] == "80 GiB of 80 GiB"


def test_pieces_that_say_the_same_are_one():
    data = datasets(scene(pieces=[seen(n, n + 1) for n in range(50)]))

    assert times(data["memory"]) == times(data["uses"]) == [(0, 50)]


def test_however_long_a_history_is_no_more_is_drawn_than_anybody_sees():
    uses: list[GpuUse] = ["strangers", "idle"]
    pieces = [seen(n / 100, (n + 1) / 100, uses[n % 2], n % 80) for n in range(10_000)]

    data = datasets(scene(pieces=pieces))

    assert len(data["memory"]) <= 800
    assert len(data["uses"]) <= 800
    assert times(data["uses"])[0][0] == 0
    assert 99 < times(data["uses"])[-1][1] <= 100


def test_waits_are_drawn_below_the_gpus_with_why():
    why = "no GPU is free"
    waits = [
        QueueSeen(T0, T0 + 5, 3, why),
        QueueSeen(T0 + 5, T0 + 9, 2, why),
        QueueSeen(T0 + 9, T0 + 20, 0, ""),
    ]

    [row] = datasets(scene(queue=waits, gpus=2))["waits"]

    assert (row["why"], row["took"]) == (why, "9.0s")
    assert row["y0"] > 2


def test_shares_of_each_gpu_and_of_all_come_to_a_whole():
    rows = datasets(scene([a_bar(1, 0, 30)], [seen(30, 60)], gpus=2))["shares"]

    for name in ("all", "GPU 0", "GPU 1"):
        assert round(sum(row["share"] for row in rows if row["gpu"] == name), 4) == 1
    assert next(row["share"] for row in rows if row["gpu"] == "all") == 0.15


def test_light_and_dark_differ_in_nothing_but_colours():
    here = scene([a_bar(1, 0, 30)], [seen(30, 60)])

    light, dark = drawn(here), drawn(here, "dark")

    assert light["background"] != dark["background"]
    assert [layer["name"] for layer in light["layer"]] == [layer["name"] for layer in dark["layer"]]
    assert shares_chart(here, "light", 800).keys() == shares_chart(here, "dark", 800).keys()


def test_labels_cannot_break_out_of_an_expression():
    here = scene()
    odd = Scene([GpuLine(a_key(), "0'];alert(1);['", None)], (), {}, History(), here.span,
                here.shares, 0.0)  # fmt: skip

    axis = drawn(odd)["layer"][0]["encoding"]["y"]["axis"]

    assert axis["labelExpr"] == "['GPU 0alert1','waits'][floor(datum.value)]"


def test_layers_without_anything_in_them_are_left_out():
    bare = Scene([], (), {}, History(), (T0, T0), {}, 0.0)

    assert [layer["name"] for layer in drawn(bare)["layer"]] == ["lines"]
    assert [layer["name"] for layer in drawn(scene([a_bar(1, 0, 9)]))["layer"]] == ["lines", "bars"]
