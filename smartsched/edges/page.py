"""One page of HTML that holds all it needs: text, data, pictures, style and scripts.

Commands are hostile text. The page is made of a template, into which text goes escaped and data as
JSON without a `<`; a policy in it lets nothing be fetched and no script run but its own.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

_FOLDER = Path(__file__).with_name("page")
# In a script, nothing but `</` and `<!--` ends data early; as escapes, all that might is the same.
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def page(
    *,
    title: str,
    nonce: str,
    facts: Sequence[tuple[str, str]],
    advice: Sequence[str],
    remarks: Sequence[tuple[str, str]],
    notes: Sequence[str],
    data: Mapping[str, Any],
    drawing_script: str,
) -> bytes:
    """`nonce`: a word that nobody can guess, by which the page knows its own scripts. `facts`: name
    and value. `remarks`: when, and what. `data`: for the scripts. `drawing_script`: trusted."""
    template = Template((_FOLDER / "page.html").read_text(encoding="utf-8"))
    text = template.substitute(
        title=html.escape(title),
        nonce=nonce,
        facts="".join(f"<div><dt>{_text(n)}</dt><dd>{_text(v)}</dd></div>" for n, v in facts),
        notes="".join(f'<p class="note">{_text(note)}</p>' for note in notes),
        advice=_section("Advice", [_text(text) for text in advice]),
        remarks=_section("What happened", [f"<b>{_text(at)}</b> {_text(t)}" for at, t in remarks]),
        data=_as_json(data),
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        drawing=drawing_script.replace("</script", "<\\/script"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
    )
    return text.encode("utf-8", "backslashreplace")


def _text(text: str) -> str:
    return html.escape(text)


def _section(heading: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f"<section><h2>{heading}</h2><ul>{listed}</ul></section>"


def _as_json(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return "".join(_ESCAPES.get(c, c) for c in text) if _needs_escapes(text) else text


def _needs_escapes(text: str) -> bool:
    return any(character in text for character in _ESCAPES)
