"""The README: what it tells people to type is there, and what it points at."""

import argparse
import re
from itertools import takewhile
from pathlib import Path

import pytest

from smartsched.cli.parser import build_parser
from smartsched.cli.verbs import VERBS, verb

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
FENCED = re.compile(r"^```(?:console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"((?:^ {4}.*\n)+)", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
COMMAND = re.compile(r"(?:^ *|[|(] ?|\$ |')smartsched (.*)")
# What follows belongs to another program, or to people.
ENDS_A_COMMAND = re.compile(r"--|[|&<>;)].*|#.*|2?>.*")
OF_OTHERS = {"--pid", "--ipc", "-P"}  # of docker and xargs


def commands() -> list[list[str]]:
    """The words behind each `smartsched`, as far as they are its own."""
    blocks = FENCED.findall(TEXT) + INDENTED.findall(TEXT)
    code = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    code += [span.replace("\\|", "|") for span in INLINE.findall(TEXT)]
    found = []
    for line in code:
        for part in re.split(r"(?<=\|) |(?<=\$\()", line):
            if match := COMMAND.search(part):
                bare = re.sub(r"\"[^\"]*\"|'[^']*'", "QUOTED", match[1])
                found.append(
                    list(takewhile(lambda word: not ENDS_A_COMMAND.fullmatch(word), bare.split()))
                )
    return found


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return set(parser._option_string_actions)


def test_the_readme_shows_many_commands():
    assert len(commands()) > 50
    assert {words[0] for words in commands() if words} >= set(VERBS)


def test_every_command_in_the_readme_has_options_that_are_there():
    main = options_of(build_parser())
    known = {name: options_of(verb(name).build_parser()) for name in VERBS}
    known["config"] |= main

    wrong = [
        (words, word)
        for words in commands()
        for word in words
        if word.startswith("-") and word not in ("-", "--")
        if not re.fullmatch(r"-\d.*", word)
        if word.partition("=")[0].rstrip("`,]") not in known.get(words[0], main)
    ]

    assert wrong == []


def test_every_option_that_the_readme_names_is_there():
    known = options_of(build_parser()) | OF_OTHERS
    known |= {option for name in VERBS for option in options_of(verb(name).build_parser())}

    named = {
        option
        for span in INLINE.findall(TEXT)
        if span.startswith("-")
        for option in OPTION.findall(span.partition("=")[0])
    }

    assert named - known == set()
    assert len(named) > 50


def test_every_option_of_the_main_command_is_in_the_readme():
    missing = [
        action.option_strings
        for action in build_parser()._actions
        if action.option_strings and not any(name in TEXT for name in action.option_strings)
    ]

    assert missing in ([], [["--version"]])


@pytest.mark.parametrize("verb_name", VERBS)
def test_every_verb_is_in_the_table(verb_name: str):
    table = TEXT.partition("## All verbs")[2].partition("\n\n`--help`")[0]

    assert f"`smartsched {verb_name}" in table


def test_links_lead_to_files_and_headings_that_are_there():
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}

    inside = [target for target in targets if not target.startswith("https://")]

    assert [t for t in inside if t.startswith("#") and t not in anchors] == []
    files = [target.partition("#")[0] for target in inside if not target.startswith("#")]
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("name", ["dry-run.svg", "live-view.svg"])
def test_the_pictures_are_there_and_say_how_they_were_made(name: str):
    picture = (ROOT / "docs" / name).read_text()

    assert f"](docs/{name})" in TEXT
    assert picture.startswith("<svg")
    assert "--simulate" in picture.replace("&#160;", " ")


def test_every_target_of_make_that_the_readme_names_is_there():
    makefile = (ROOT / "Makefile").read_text()

    named = set(re.findall(r"(?:^ {4}|`)make\s([a-z-]+)", TEXT, re.MULTILINE))

    assert {"demo", "test", "pictures"} <= named
    assert [name for name in named if f"\n{name}: " not in makefile] == []
