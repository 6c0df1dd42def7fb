"""Which hosts the user named, and what can be none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.host_list import HostSpec, parse_hosts
from smartsched.core.model import HostName
from smartsched.errors import UsageError


def host(name: str, user: str | None = None, address: str = "", port: int | None = None):
    return HostSpec(HostName(name), user, address or name, port)


def names(listed: str) -> list[str]:
    return [spec.name for spec in parse_hosts(listed)]


def test_hosts_are_listed_with_commas_in_all_forms():
    assert parse_hosts("a,b.lab,user@c:22,[::1]:2222,ada@[fe80::1%eth0]") == (
        host("a"),
        host("b.lab"),
        host("c", "user", "c", 22),
        host("::1", None, "::1", 2222),
        host("fe80::1%eth0", "ada"),
    )


def test_a_file_has_one_a_line_with_comments_and_blank_lines():
    text = "\ufeff# our boxes\n\n  gpu1\t\r\nada@gpu2:2222  # the big one\n#gpu3\n[::1]"

    assert parse_hosts(None, [("hosts", text)]) == (
        host("gpu1"),
        host("gpu2", "ada", "gpu2", 2222),
        host("::1"),
    )


def test_list_and_files_add_up_in_their_order():
    assert parse_hosts("a", [("f", "b"), ("g", "c")]) == (host("a"), host("b"), host("c"))


def test_blanks_around_commas_do_not_matter():
    assert names("a, b ,\tc") == ["a", "b", "c"]


@pytest.mark.parametrize(
    "user", ["ada", "ada.l", "a-b", "me@corp.example", "CORP\\ada", "_svc", "x+y"]
)
def test_users_of_every_directory_can_be_named(user: str):
    assert parse_hosts(f"{user}@gpu1") == (host("gpu1", user),)


def test_the_same_address_with_other_ports_is_several_hosts_named_with_them():
    assert names("c:22,ada@c:2222,d:22") == ["c:22", "c:2222", "d"]
    assert names("[::1]:1,[::1]:2") == ["[::1]:1", "[::1]:2"]
    assert names("c,c:2222") == ["c", "c:2222"]


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ("a,b,a", "--hosts: 'a' is named twice, first in --hosts"),
        ("c:22,c:22", "--hosts: 'c:22' is named twice, first in --hosts"),
        ("ada@a,bob@a", "--hosts: 'bob@a' is named twice, first in --hosts as 'ada@a'"),
        ("gpu1,GPU1", "--hosts: 'GPU1' is named twice, first in --hosts as 'gpu1'"),
    ],
)
def test_the_same_host_twice_is_an_error(listed: str, says: str):
    with pytest.raises(UsageError) as refused:
        parse_hosts(listed)

    assert str(refused.value) == says


def test_twice_in_list_and_file_says_both_places():
    with pytest.raises(UsageError, match=r"^boxes:3: 'a' is named twice, first in --hosts$"):
        parse_hosts("b,a", [("boxes", "c\n\na\n")])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-oProxyCommand=evil", "begins with a -"),
        ("ada@-oProxyCommand=evil", "begins with a -"),
        ("-l@gpu1", "begins with a -"),
        ("gpu 1", "without blanks"),
        ("gpu\u20031", "without blanks"),
        ("gpu\x1b[31m", "write it as in"),
        ("gpu\x00", "write it as in"),
        ("gpu1;reboot", "write it as in"),
        ("$(reboot)", "write it as in"),
        ("`reboot`@gpu1", "write it as in"),
        ("gpu1/..", "write it as in"),
        ("gpu[1-3]", "write it as in"),
        ("ssh://gpu1", "write it as in"),
        ("@gpu1", "write it as in"),
        ("gpu1:", "write it as in"),
        (":22", "write it as in"),
        ("gpu1:x", "write it as in"),
        ("[::1", "write it as in"),
        ("[]", "write it as in"),
        ("[gpu1]", "write it as in"),
        ("::1", "in brackets"),
        ("gpu1:0", "1 to 65535"),
        ("gpu1:65536", "1 to 65535"),
        ("", "nothing between the commas"),
    ],
)
def test_what_is_no_host_is_refused_with_what_to_write(text: str, says: str):
    with pytest.raises(UsageError, match=r"^--hosts: ") as refused:
        parse_hosts(f"a,{text}")

    assert says in str(refused.value)
    assert str(refused.value).isprintable()


def test_in_a_file_the_line_is_said():
    with pytest.raises(UsageError, match=r"^boxes\.txt:3: 'gpu2,gpu3' is no host: .*one a line"):
        parse_hosts(None, [("boxes.txt", "# ours\ngpu1\ngpu2,gpu3\n")])


def test_an_endless_text_is_shown_in_part():
    with pytest.raises(UsageError) as refused:
        parse_hosts("/" * 10_000)

    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("text", ["", "\n\n", "# nobody\n"])
def test_a_file_without_hosts_is_an_error(text: str):
    with pytest.raises(UsageError, match=r"^boxes names no host"):
        parse_hosts("a", [("boxes", text)])


@given(st.text(max_size=12) | st.text("-@:[]%.,a1 \\", max_size=12))
def test_nothing_that_passes_can_be_taken_for_an_option(text: str):
    try:
        specs = parse_hosts(text)
    except UsageError:
        return
    for spec in specs:
        for part in (spec.user or "x", spec.address, spec.name):
            assert part
            assert part.isprintable()
            assert not part.startswith("-")
            assert " " not in part


@given(st.lists(st.sampled_from(["a", "A", "a:1", "a:2", "b", "[::1]", "[::1]:1"]), unique=True))
def test_names_are_unique(listed: list[str]):
    try:
        specs = parse_hosts(",".join(listed)) if listed else ()
    except UsageError:
        return

    assert len({spec.name for spec in specs}) == len(specs)
