"""A template into texts and places, each with the quoting that is right there."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartsched.core.grid.template import (
    Place,
    as_it_is,
    bare,
    check_is_command,
    in_double_quotes,
    in_single_quotes,
    names_in,
    parse_template,
)
from smartsched.errors import UsageError


def quote_in(template: str) -> Callable[[str], str]:
    """Of the only place."""
    [place] = [part for part in parse_template(template) if isinstance(part, Place)]
    return place.quote


def check(template: str, *given: str) -> None:
    check_is_command(parse_template(template), lambda _: given)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a {{b}} {x}", "a {b} "),
        ("c '{{\"lr\": {x}}}'", 'c \'{"lr": '),
        ("{{{{}}}}{x}", "{{}}"),
        ("find -exec rm {{}} + {x}", "find -exec rm {} + "),
        ("echo ${{HOME}} {x}", "echo ${HOME} "),
        ("100% {x}", "100% "),
        ("  a \\\n  b {x}\n", "a   b "),
        ("a \\\\{x}", "a \\\\"),
    ],
)
def test_doubled_braces_are_braces(template: str, text: str):
    assert parse_template(template)[0] == text


def test_each_parameter_is_named_once_in_the_order_of_its_first_place():
    assert names_in(parse_template("x {b} {a} {b:raw} {model.lr-0}")) == ["b", "a", "model.lr-0"]


@pytest.mark.parametrize(
    ("template", "quote"),
    [
        ("x {a}", bare),
        ("x --lr={a}", bare),
        ("x 'y' {a}", bare),
        ("x '{a}'", in_single_quotes),
        ("x '\"{a}\"'", in_single_quotes),
        ("x '\\' {a}", bare),
        ("x '$'{a}", bare),
        ("x '${a}'", in_single_quotes),
        ('x "{a}"', in_double_quotes),
        ("x \"'{a}'\"", in_double_quotes),
        ('x "\\"{a}"', in_double_quotes),
        ("x \\'{a}", bare),
        ("x \\\\{a}", bare),
        ("x \\${a}", bare),
        ('x "$(echo {a})"', bare),
        ('x "$(echo "{a}")"', in_double_quotes),
        ('x "$(echo y) {a}"', in_double_quotes),
        ('x "( {a}"', in_double_quotes),
        ("(cd y && x {a})", bare),
        ("x `y` {a}", bare),
        ("x $'\\'' {a}", bare),
        ('x "${{y:-it\'s}}" {a}', bare),
        ("x $# {a}", bare),
        ("x y#z {a}", bare),
        ("x '#' {a}", bare),
        ('x " # {a}"', in_double_quotes),
        ("x # it's {a}", as_it_is),
        ("x;# {a}", as_it_is),
        ("x # smartsched: gpus={a}", as_it_is),
        ("x {a:raw}", as_it_is),
        ("x `{a:raw}`", as_it_is),
        ("it's {a:raw}", as_it_is),
    ],
)
def test_a_value_is_quoted_for_where_it_stands(template: str, quote: Callable[[str], str]):
    assert quote_in(template) is quote


def test_a_value_before_a_hash_is_no_space_before_a_comment():
    parts = parse_template("x {a}#{b} 'c'")

    assert [part.quote for part in parts if isinstance(part, Place)] == [bare, bare]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.1", "0.1"),
        ("-1e-05", "-1e-05"),
        ("a/b:c,d=e@f%g+h", "a/b:c,d=e@f%g+h"),
        ("", "''"),
        ("two words", "'two words'"),
        ("it's", "'it'\\''s'"),
        ("#", "'#'"),
        ("~", "'~'"),
        ("*", "'*'"),
        ("é", "'é'"),
    ],
)
def test_a_bare_value_is_one_word(value: str, expected: str):
    assert bare(value) == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("a\n{a}", "line break"),
        ("x {a", "a { stands alone"),
        ("x a} {a}", "a } stands alone"),
        ('x {"lr": {a}}', "a { stands alone"),
        ("x {} {a}", "for braces write {{}}"),
        ("awk '{print $1}' {a}", "for braces write {{print \\$1}}"),
        ("x {0}", "no place for a value"),
        ("x { a }", "no place for a value"),
        ("x {a!r}", "no place for a value"),
        ("x {a:.2f}", "only {a} or {a:raw}"),
        ("x {a:}", "only {a} or {a:raw}"),
        ("x ${a}", "write \\${{a}}"),
        ('x "${a}"', "write \\${{a}}"),
        ("x \\{a}", "backslash"),
        ('x "\\{a}"', "backslash"),
        ("x `y {a}`", "backquotes"),
        ("x $'{a}'", "in \\$'...'"),
        ("x ${{y:-{a}}}", "assign it"),
        ("it's {a}", "a ' that is never closed"),
        ('x {a} "', 'a " that is never closed'),
    ],
)
def test_a_template_that_would_not_do_what_is_meant_is_refused(template: str, why: str):
    with pytest.raises(UsageError, match=why):
        parse_template(template)


@pytest.mark.parametrize(
    ("template", "given"),
    [
        ("# x {a}", ["1"]),
        ("{a:raw} x", ["y", " # z"]),
        ("{a:raw}#x", ["", "y"]),
        ("{a:raw}", ["", "y"]),
        (" {a:raw} ", [" "]),
        ("{a:raw}{a:raw}", [""]),
        ("x \\", ["1"]),
        ("x {a} \\\\\\", ["1"]),
        ("x {a:raw}", ["y", "z\\"]),
        ("x {a:raw}{a:raw}", ["", "z\\"]),
        ("x # {a}", ["\\"]),
    ],
)
def test_what_would_not_come_through_a_list_as_a_command_is_refused(
    template: str, given: Sequence[str]
):
    with pytest.raises(UsageError, match=r"comment|blank|backslash"):
        check(template, *given)


@pytest.mark.parametrize(
    ("template", "given"),
    [
        ("{a} x", ["#", "", " "]),
        ("{a}", ["#", "\\"]),
        ("x {a:raw}", ["", "#"]),
        ("x {a:raw} y", ["\\"]),
        ("x {a:raw}", ["z\\\\"]),
        ("x '{a}\\'", ["1"]),
        ("{a:raw}", []),
    ],
)
def test_what_does_come_through_is_not_refused(template: str, given: Sequence[str]):
    check(template, *given)


PIECES = st.sampled_from(
    [
        "{x}",
        "{x:raw}",
        "{y}",
        "{{",
        "}}",
        "{",
        "}",
        "'",
        '"',
        "`",
        "$",
        "$(",
        ")",
        "${{",
        "(",
        "\\",
        "#",
        " ",
        "\n",
        "a",
        "\\\n",
        "\r",
        "\0",
        "\udcff",
        "{ }",
        "{x:",
        "%",
        "%s",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=4))
@settings(max_examples=300)
def test_whatever_is_given_is_a_template_or_told(text: str, value: str):
    with suppress(UsageError):
        parts = parse_template(text)
        check_is_command(parts, lambda _: [value])
        written = "".join(p if isinstance(p, str) else p.quote(value) for p in parts)
        assert written.strip()


@pytest.mark.parametrize("piece", ["\\", "(", "${{", "`", "{{", "a{x}", '"', "$("])
@pytest.mark.timeout(60)
def test_a_long_template_is_read_in_no_time(piece: str):
    with suppress(UsageError):
        parse_template(piece * 100_000)
