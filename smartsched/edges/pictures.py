"""The only importer of vl-convert: Vega-Lite's pictures as SVG and PNG, and Vega itself for a page,
all without a browser or a network."""

import importlib.util
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from smartsched.errors import UsageError

_HOW_TO_INSTALL = (
    "a report is drawn by a library that is not installed: pip install 'smartsched[report]'"
)
_PACKAGE = "vl-convert-python"
_PNG_SCALE = 2.0  # for slides
_EXPOSE = "window.vegaEmbed = vegaEmbed; window.vega = vega;"


def check() -> None:
    """Raises UsageError where the library is not installed."""
    if importlib.util.find_spec("vl_convert") is None:
        raise UsageError(_HOW_TO_INSTALL)


def as_svg(spec: Mapping[str, Any]) -> bytes:
    import vl_convert

    return vl_convert.vegalite_to_svg(json.dumps(spec)).encode()


def as_png(spec: Mapping[str, Any]) -> bytes:
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(json.dumps(spec), scale=_PNG_SCALE))


def drawing_script(cache: Path) -> str:
    """All JavaScript that draws pictures in a page. To put it together takes seconds: it is kept
    in this folder."""
    import vl_convert

    kept = cache / f"vega-{version(_PACKAGE)}.js"
    if (known := read_own(kept)) is not None:
        return known
    script = str(vl_convert.javascript_bundle(_EXPOSE))
    with suppress(OSError):  # then it takes as long the next time
        cache.mkdir(0o700, parents=True, exist_ok=True)
        building = cache / f".{kept.name}.{os.getpid()}"
        building.write_text(script, encoding="utf-8")
        building.replace(kept)
    return script


def read_own(path: Path) -> str | None:
    """What pages of ours are to run; None: it is not there, or others can have written it."""
    try:
        found = [path.lstat(), path.parent.lstat()]
        if not stat.S_ISREG(found[0].st_mode) or any(map(_is_open_to_others, found)):
            return None
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _is_open_to_others(status: os.stat_result) -> bool:
    return status.st_uid != os.geteuid() or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
