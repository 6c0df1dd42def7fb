"""A report's two pictures, as Vega-Lite says how they are drawn: a timeline with a row per GPU, and
what the GPUs' time went to."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from smartsched.core.chart_data import PALER, SHARE_WORDS, STRIP_BASE, TOP, Rows, Scene
from smartsched.core.shares import SHARES, Share

Theme: TypeAlias = Literal["light", "dark"]
Width: TypeAlias = int | Literal["container"]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched
_FONT = "system-ui, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
# Told apart by people who see fewer colours as well (Okabe and Ito, "Color Universal Design").
_COLORS: dict[Theme, dict[str, str]] = {
    "light": {
        "ink": "#1f2328", "faint": "#59636e", "line": "#d1d9e0", "paper": "#ffffff",
        "ok": "#2f6fb5", "running": "#74b0e4", "failed": "#c9401f", "tried again": "#c06c9b",
        "gave way": "#7f56b0", "stopped": "#7d8590", "cancelled": "#4b535d",
        "others' memory": "#e9c583", "utilisation": "#8f7a55",
        "ours": "#2f6fb5", "strangers": "#e0a33a", "window": "#f2dfb0", "claimed": "#6fb9a8",
        "capped": "#b692c4", "held": "#dcc4e6", "idle": "#e4e8ec", "unknown": "#59636e",
        "unwatched": "#f3f0f5",
    },
    "dark": {
        "ink": "#e6edf3", "faint": "#9198a1", "line": "#30363d", "paper": "#0d1117",
        "ok": "#4d94dd", "running": "#9ccbf5", "failed": "#f0704c", "tried again": "#dd8fb8",
        "gave way": "#a886d8", "stopped": "#8b949e", "cancelled": "#c4ccd4",
        "others' memory": "#5c4a26", "utilisation": "#b39a6b",
        "ours": "#4d94dd", "strangers": "#c78b2c", "window": "#6b5a33", "claimed": "#3f8a7a",
        "capped": "#8a629b", "held": "#5b4567", "idle": "#2a3138", "unknown": "#b1bac4",
        "unwatched": "#1b1a21",
    },
}  # fmt: skip
_HAIR = 0.001
_BEHIND = ("others' memory", "utilisation")


def timeline(scene: Scene, data: Mapping[str, Rows], theme: Theme, width: Width) -> dict[str, Any]:
    """The picture without its data: they are put beside it, as `datasets`. `width`: pixels."""
    colors = _COLORS[theme]
    layers = [
        _axes_layer(scene, colors),
        _memory_layer(colors),
        _utilisation_layer(colors),
        _bars_layer(scene, colors),
        _uses_layer(scene, colors),
        _waits_layer(colors),
    ]
    rows = len(scene.gpus) + 1
    return {
        "$schema": _SCHEMA,
        "width": width,
        "height": rows * _row_pixels(len(scene.gpus)),
        "padding": 4,
        "autosize": {"type": "fit-x" if width == "container" else "pad", "contains": "padding"},
        "background": colors["paper"],
        "config": _config(colors),
        "layer": [layer for layer in layers if data[layer["name"]]],  # Vega warns of empty ones
        "resolve": {
            "scale": {"color": "independent", "fill": "independent", "stroke": "independent"}
        },
    }


def _is_seen(scene: Scene, share: Share) -> bool:
    """Whether it is worth a colour: more than a hair's breadth."""
    least = _HAIR * (scene.span[1] - scene.span[0])
    return any(scene.shares[gpu.key][share] > least for gpu in scene.gpus)


def shares_chart(scene: Scene, theme: Theme, width: Width) -> dict[str, Any]:
    """Likewise."""
    colors = _COLORS[theme]
    used = [share for share in SHARES if _is_seen(scene, share)]
    return {
        "$schema": _SCHEMA,
        "width": width,
        "height": (len(scene.gpus) + 1) * (20 if len(scene.gpus) > 8 else 26),
        "padding": 4,
        "autosize": {"type": "fit-x" if width == "container" else "pad", "contains": "padding"},
        "background": colors["paper"],
        "config": _config(colors),
        "data": {"name": "shares"},
        "mark": {"type": "bar", "height": {"band": 0.72}},
        "encoding": {
            "y": {"field": "gpu", "type": "nominal", "sort": _BY_ORDER, "title": None},
            "x": {
                "field": "share",
                "type": "quantitative",
                "stack": "zero",
                "scale": {"domain": [0, 1]},
                "axis": {"format": ".0%", "title": None, "tickCount": 5},
            },
            "order": {"field": "place"},
            "color": _use_color(used, colors, title=None),
            "tooltip": [
                {"field": "gpu", "title": "GPU"},
                {"field": "use", "title": "went to"},
                {"field": "share", "type": "quantitative", "format": ".1%", "title": "share"},
                {"field": "took", "title": "time"},
            ],
        },
    }


_BY_ORDER = {"field": "order", "op": "min"}


def _row_pixels(gpus: int) -> int:
    return 64 if gpus <= 4 else 52 if gpus <= 8 else 40


def _config(colors: Mapping[str, str]) -> dict[str, Any]:
    text = {"labelColor": colors["faint"], "titleColor": colors["faint"]}
    return {
        "font": _FONT,
        "view": {"stroke": None},
        "axis": text
        | {
            "domainColor": colors["line"],
            "gridColor": colors["line"],
            "tickColor": colors["line"],
            "labelFontSize": 12,
        },
        "legend": {
            "labelColor": colors["ink"],
            "titleColor": colors["faint"],
            "titleFontWeight": "normal",
            "labelFontSize": 12,
            "titleFontSize": 12,
            "orient": "top",
            "symbolType": "square",
            "symbolStrokeWidth": 0,
            "columnPadding": 14,
            "labelLimit": 260,
        },
    }


def _color(
    field: str, names: Sequence[str], range_: Sequence[str], legend: dict[str, Any]
) -> dict[str, Any]:
    scale = {"domain": list(names), "range": list(range_)}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend | {"columns": 8}}


def _use_color(uses: Sequence[Share], colors: Mapping[str, str], **legend: Any) -> dict[str, Any]:
    names = [SHARE_WORDS[use] for use in uses]
    return _color("use", names, [colors[use] for use in uses], legend)


def _mixed(color: str, paper: str) -> str:
    """Nearer to the paper: of two neighbours one is drawn so, that they are told apart."""
    parts = [(int(color[n : n + 2], 16), int(paper[n : n + 2], 16)) for n in (1, 3, 5)]
    return "#" + "".join(f"{round(0.8 * ink + 0.2 * white):02x}" for ink, white in parts)


_TIMES = {
    "year": "%Y",
    "quarter": "%b",
    "month": "%b",
    "week": "%b %d",
    "date": "%b %d",
    "day": "%b %d",
    "hours": "%H:%M",
    "minutes": "%H:%M",
    "seconds": "%H:%M:%S",
    "milliseconds": "%H:%M:%S.%L",
}


def _x() -> dict[str, Any]:
    return {
        "field": "b",
        "type": "temporal",
        "title": None,
        # the times are shifted to those on the wall of the box, wherever the page is looked at
        "scale": {"type": "utc", "nice": False},
        "axis": {
            "grid": True,
            "tickCount": 8,
            "labelOverlap": True,
            "labelFlush": True,
            "format": _TIMES,
        },
    }


def _y(scene: Scene) -> dict[str, Any]:
    labels = [f"GPU {gpu.label}" for gpu in scene.gpus] + ["waits"]
    rows = len(labels)
    middles = [number + (TOP + STRIP_BASE) / 2 for number in range(rows)]
    return {
        "field": "y",
        "type": "quantitative",
        "title": None,
        "scale": {"domain": [0, rows], "reverse": True, "nice": False, "zero": False},
        "axis": {
            "values": middles,
            "labelExpr": f"{_list_of(labels)}[floor(datum.value)]",
            "grid": False,
            "ticks": False,
            "domain": False,
            "labelPadding": 6,
        },
    }


def _list_of(labels: Sequence[str]) -> str:
    """As Vega's expressions write it; labels are numbers, and what the driver may call an
    instance."""
    quoted = (
        "'" + "".join(c for c in label if c.isalnum() or c in " :-_.") + "'" for label in labels
    )
    return "[" + ",".join(quoted) + "]"


def _axes_layer(scene: Scene, colors: Mapping[str, str]) -> dict[str, Any]:
    """Also what all layers have in common: the axes, and how the reader moves along them."""
    zoom = {
        "type": "interval",
        "bind": "scales",
        "encodings": ["x"],
        "zoom": "wheel![event.shiftKey]",  # a wheel alone goes on scrolling the page
    }
    return {
        "name": "lines",
        "data": {"name": "lines"},
        "params": [{"name": "zoom", "select": zoom}],
        "mark": {"type": "rule", "stroke": colors["line"], "strokeWidth": 1, "tooltip": None},
        "encoding": {"x": _x(), "x2": {"field": "e"}, "y": _y(scene)},
    }


def _memory_layer(colors: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": "memory",
        "data": {"name": "memory"},
        "mark": {"type": "rect", "fill": colors["others' memory"], "clip": True},
        "encoding": {
            "x": {"field": "b", "type": "temporal"},
            "x2": {"field": "e"},
            "y": {"field": "y0", "type": "quantitative"},
            "y2": {"field": "y1"},
            "tooltip": [
                {"field": "gpu", "title": "GPU"},
                {"field": "memory", "title": "other people's memory"},
            ],
        },
    }


def _utilisation_layer(colors: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": "utilisation",
        "data": {"name": "utilisation"},
        "mark": {
            "type": "line",
            "stroke": colors["utilisation"],
            "strokeWidth": 1,
            "invalid": "break-paths-filter-domains",
            "clip": True,
            "tooltip": None,
        },
        "encoding": {
            "x": {"field": "t", "type": "temporal"},
            "y": {"field": "y", "type": "quantitative"},
            "detail": {"field": "n"},
        },
    }


def _bars_layer(scene: Scene, colors: Mapping[str, str]) -> dict[str, Any]:
    there = {bar.became for bar in scene.bars}
    order = ("ok", "running", "failed", "tried again", "gave way", "stopped", "cancelled")
    names = [name for name in order if name in there] + list(_BEHIND)
    tones = {name: colors[name] for name in names}
    tones |= {name + PALER: _mixed(colors[name], colors["paper"]) for name in names}
    tone = _color("tone", [*tones], [*tones.values()], {"title": None, "values": names})
    return {
        "name": "bars",
        "data": {"name": "bars"},
        # a stroke of its own colour, or the shortest could not be seen
        "mark": {"type": "rect", "clip": True, "strokeWidth": 0.5},
        "encoding": {
            "x": {"field": "b", "type": "temporal"},
            "x2": {"field": "e"},
            "y": {"field": "y0", "type": "quantitative"},
            "y2": {"field": "y1"},
            "fill": tone,
            "stroke": tone,
            "tooltip": [
                {"field": "job", "title": "job"},
                {"field": "attempt", "title": "try"},
                {"field": "gpu", "title": "GPU"},
                {"field": "command", "title": "command"},
                {"field": "b", "type": "temporal", "format": "%Y-%m-%d %H:%M:%S", "title": "began",
                 "formatType": "utc"},
                {"field": "took", "title": "took"},
                {"field": "how", "title": "ended"},
            ],
        },
    }  # fmt: skip


def _uses_layer(scene: Scene, colors: Mapping[str, str]) -> dict[str, Any]:
    there = {seen.use for seen in scene.history.seen}
    uses: list[Share] = [share for share in SHARES if share != "unwatched" and share in there]
    return {
        "name": "uses",
        "data": {"name": "uses"},
        "mark": {"type": "rect", "clip": True},
        "encoding": {
            "x": {"field": "b", "type": "temporal"},
            "x2": {"field": "e"},
            "y": {"field": "y0", "type": "quantitative"},
            "y2": {"field": "y1"},
            "color": _use_color(uses, colors, title="strip: its time went to", orient="bottom"),
            "tooltip": [
                {"field": "gpu", "title": "GPU"},
                {"field": "use", "title": "its time went to"},
                {"field": "why", "title": "why"},
            ],
        },
    }


def _waits_layer(colors: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": "waits",
        "data": {"name": "waits"},
        "mark": {"type": "rect", "fill": colors["faint"], "fillOpacity": 0.45, "clip": True},
        "encoding": {
            "x": {"field": "b", "type": "temporal"},
            "x2": {"field": "e"},
            "y": {"field": "y0", "type": "quantitative"},
            "y2": {"field": "y1"},
            "tooltip": [
                {"field": "why", "title": "jobs wait, because"},
                {"field": "took", "title": "for"},
            ],
        },
    }
