"""One page of HTML that holds all it needs, whatever is in its texts."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from smartsched.edges.page import page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> '\"&amp; <!-- \u2028"


class Reader(HTMLParser):
    """What a browser would make of it: tags, and what is in scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def read(data: dict[str, Any] | None = None, **fields: Any) -> Reader:
    texts: dict[str, Any] = {"facts": [], "advice": [], "remarks": [], "notes": []}
    values: dict[str, Any] = {"title": "a run", "nonce": "n0", "drawing_script": "0"} | texts
    reader = Reader()
    reader.feed(page(data=data or {}, **(values | fields)).decode())
    return reader


def test_hostile_text_is_text_wherever_it_stands():
    plain = read()

    reader = read(
        title=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        notes=[HOSTILE],
        advice=[HOSTILE],
        remarks=[(HOSTILE, HOSTILE)],
    )

    assert len(reader.scripts) == len(plain.scripts) == 3
    assert "img" not in {tag for tag, _ in reader.tags}
    assert reader.text.count("<img src=x onerror=alert(1)>") == 8


def test_hostile_data_stays_data():
    reader = read({"command": HOSTILE, "bytes": "\\xff \udcff"})

    assert json.loads(reader.scripts[0])["command"] == HOSTILE
    assert len(reader.scripts) == 3


def test_no_script_but_its_own_may_run_and_nothing_may_be_fetched():
    reader = read(nonce="word")

    [policy] = [a["content"] for tag, a in reader.tags if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'nonce-word'")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert all(attributes["nonce"] == "word" for tag, attributes in reader.tags if tag == "script")


def test_nothing_in_it_names_a_place_elsewhere():
    reader = read()

    places = [a[name] or "" for _, a in reader.tags for name in ("src", "href") if name in a]
    assert [place for place in places if not place.startswith("data:")] == []
    assert not re.search(r"https?://", reader.scripts[2])


@pytest.mark.parametrize("name", ["advice", "remarks"])
def test_a_section_without_anything_in_it_is_not_there(name: str):
    something: dict[str, Any] = {name: [("at", "x")] if name == "remarks" else ["x"]}
    full = read(**something)

    assert len([tag for tag, _ in full.tags if tag == "h2"]) == 1 + len(
        [tag for tag, _ in read().tags if tag == "h2"]
    )
