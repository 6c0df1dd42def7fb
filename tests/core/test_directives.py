"""What one command asks for itself, in a comment that the shell passes over."""

import subprocess
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.directives import wishes_in, without_wishes
from smartsched.core.model import Wishes
from smartsched.errors import UsageError

GIB = 2**30
NONE = Wishes()
TWO = Wishes(gpus=2)
HIDDEN = [
    'echo "# smartsched: gpus=2"',
    "echo '# smartsched: gpus=2'",
    'echo "a \\" # smartsched: gpus=2"',
    "echo a\\ # smartsched: gpus=2",
    "echo \\# smartsched: gpus=2",
    "echo a# smartsched: gpus=2",
    "echo ''# smartsched: gpus=2",
    "echo $# smartsched: gpus=2",
    "echo ${x# smartsched: gpus=2}",
    "echo `true # smartsched: gpus=2`",
    "echo 'a\n# smartsched: gpus=2'",
]
PRINTED = [command for command in HIDDEN if "${x" not in command and "`" not in command]
SHOWN = [
    "echo a # smartsched: gpus=2",
    "echo a\t#smartsched:gpus=2",
    "echo a;# smartsched: gpus=2",
    "echo a&#\tsmartsched: gpus=2",
    "(echo a)# smartsched: gpus=2",
    'echo "a" \'b\' "#" c\\\\ # smartsched: gpus=2',
    "echo it\\'s # smartsched: gpus=2",
    "echo ${#x} $# ${x#a} # smartsched: gpus=2",
    "# smartsched: gpus=2",
]


@pytest.mark.parametrize(
    ("text", "wishes"),
    [
        ("gpus=2", TWO),
        ("gpus=0", Wishes(gpus=0)),
        ("gpus=64", Wishes(gpus=64)),
        ("mem=24GiB", Wishes(memory_bytes=24 * GIB)),
        ("util=60%", Wishes(utilization_percent=60.0)),
        ("util=0", Wishes(utilization_percent=0.0)),
        ("priority=5", Wishes(priority=5)),
        ("priority=-1000000", Wishes(priority=-1_000_000)),
        ("priority=+3", Wishes(priority=3)),
        ("timeout=1h30m", Wishes(timeout_seconds=5400.0)),
        ("name=big", Wishes(name="big")),
        ("name=größe_3.1-a+b:c@d/e=f", Wishes(name="größe_3.1-a+b:c@d/e=f")),
        (f"name={'n' * 64}", Wishes(name="n" * 64)),
        (
            "gpus=2 mem=24GiB priority=5 timeout=2h name=big util=60%",
            Wishes(2, 24 * GIB, 60.0, 5, 7200.0, "big"),
        ),
        ("gpus=2,mem=1G", Wishes(gpus=2, memory_bytes=GIB)),
        (" gpus=2 ,, mem=1G,\t", Wishes(gpus=2, memory_bytes=GIB)),
    ],
)
def test_what_can_be_asked_for(text: str, wishes: Wishes):
    assert wishes_in(f"python train.py  # smartsched: {text}") == wishes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "asks for nothing: write it as gpus=2"),
        (" ,", "asks for nothing"),
        ("gpu=2", "'gpu' cannot be asked for: there are gpus, mem, util, priority, timeout, name"),
        ("GPUS=2", "'GPUS' cannot be asked for"),
        ("see below", "'see' cannot be asked for"),
        ("=2", "'' cannot be asked for"),
        ("gpus", "gpus has no = and no value: write it as gpus=2"),
        ("mem = 24GiB", "mem has no = and no value: write it as mem=24GiB"),
        ("timeout=", "timeout has no value: write it as timeout=2h"),
        ("name=, gpus=1", "name has no value: write it as name=big"),
        ("gpus=1 gpus=1", "gpus is there twice"),
        ("priority=0 priority=1", "priority is there twice"),
        ("gpus=65", "gpus: '65' is more than a command can have: 64 is the most"),
        ("gpus=two", "gpus: 'two' is no whole number"),
        ("gpus=-1", "gpus: '-1' is no whole number"),
        ("mem=24", "mem: '24' is no size"),
        ("mem=0G", "mem: '0G' is no memory at all"),
        ("util=101%", "util: '101%' is no percentage"),
        ("util=nan", "util: 'nan' is no percentage"),
        ("priority=1.5", "priority: '1.5' is no whole number from -1,000,000 to 1,000,000"),
        ("priority=1000001", "priority: '1000001' is no whole number"),
        ("priority=٣", "priority: '٣' is no whole number"),
        ("timeout=0s", "timeout: '0s' leaves no time"),
        ("timeout=soon", "timeout: 'soon' is no duration"),
        ('name="big"', "name: '\"big\"' is no name: it takes letters, digits and"),
        ("name=-x", "name: '-x' is no name"),
        ("name=a\x1b[31m", "is no name"),
        (f"name={'n' * 65}", "is longer than 64 characters"),
        (f"mem={'9' * 400}G", "is longer than 64 characters"),
    ],
)
def test_what_cannot_be_meant(text: str, complaint: str):
    with pytest.raises(UsageError) as error:
        wishes_in(f"python train.py  # smartsched:{text}")

    assert str(error.value).startswith("# smartsched: ")
    assert complaint in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("command", SHOWN)
def test_a_comment_begins_where_a_word_could(command: str):
    assert wishes_in(command) == TWO


@pytest.mark.parametrize("command", HIDDEN)
def test_a_number_sign_elsewhere_begins_no_comment(command: str):
    assert wishes_in(command) == NONE
    assert without_wishes(command) == command


@pytest.mark.parametrize(
    "command",
    [
        "python train.py",
        "",
        "echo a # see smartsched: gpus=2",
        "echo a ## smartsched: gpus=2",
        "echo a # note # smartsched: gpus=2",
        "echo smartsched: gpus=2",
    ],
)
def test_other_comments_ask_for_nothing(command: str):
    assert wishes_in(command) == NONE
    assert without_wishes(command) == command


@pytest.mark.parametrize("command", [c for c in SHOWN + HIDDEN if "\n" not in c])
def test_the_shell_sees_the_same_comments(command: str):
    """What a shell prints of the command with and without its directive is the same, and what it
    prints of one that only looks as if it had one names smartsched."""
    whole, without = (
        subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False).stdout
        for text in (command, without_wishes(command))
    )

    assert whole == without
    assert ("smartsched" in whole) == (command in PRINTED)


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("python train.py  # smartsched: gpus=2", "python train.py"),
        ("python train.py # smartsched: nonsense", "python train.py"),
        ("python train.py;# smartsched:", "python train.py;"),
        ("python train.py # why # smartsched: no", "python train.py # why # smartsched: no"),
        ("python train.py  ", "python train.py  "),
        ("# smartsched: gpus=1", ""),
        ("a # smartsched: gpus=1\nb", "a\nb"),
    ],
)
def test_the_command_without_its_directive(command: str, kept: str):
    assert without_wishes(command) == kept


def test_a_command_of_several_lines_has_one_directive():
    assert wishes_in("set -e\na # smartsched: gpus=2\nb") == TWO
    with pytest.raises(UsageError, match="is there twice: write all"):
        wishes_in("a # smartsched: gpus=2\nb # smartsched: mem=1G")
    assert without_wishes("a # smartsched: gpus=2\nb # smartsched: mem=1G") == "a\nb"


TRICKY = st.text("ab#'\"\\ $`{}();&|<>=,\n\udcff") | st.sampled_from(
    ["# smartsched:", "gpus=2", "mem=1G", "name=x"]
)


@given(st.lists(TRICKY, max_size=8).map("".join))
def test_any_text_has_wishes_or_is_refused_and_has_none_once_they_are_out(command: str):
    with suppress(UsageError):
        assert isinstance(wishes_in(command), Wishes)

    assert wishes_in(without_wishes(command)) == NONE


@given(st.text("abc ./-=", min_size=1).map(lambda text: "x" + text.rstrip()))
def test_editing_the_directive_leaves_the_command_the_same(command: str):
    assert without_wishes(f"{command}  # smartsched: gpus=2") == command
    assert without_wishes(f"{command} # smartsched: mem=1G, name=x") == command


@pytest.mark.parametrize(
    "comment", ["# smartsched gpus=2", "# Smartsched: gpus=2", "#SMARTSCHED:gpus=2 mem=1GiB"]
)
def test_a_wish_that_misses_the_mark_is_not_passed_over(comment: str):
    with pytest.raises(UsageError, match=r"make it # smartsched: gpus=2"):
        wishes_in(f"python train.py  {comment}")


@pytest.mark.parametrize(
    "command",
    [
        "python train.py  # smartsched runs this",
        "smartsched gpus=2",
        "echo '# smartsched gpus=2'",
        "python train.py --out smartsched  # lr=0.1",
    ],
)
def test_what_only_speaks_of_us_asks_for_nothing(command: str):
    assert wishes_in(command) == Wishes()


@pytest.mark.parametrize(
    "command",
    [
        "x #smartsched" + " " * 300_000 + "!",
        "x # smartsched " + "a" * 300_000,
        "x " + " " * 300_000 + "# smartsched:",
        "x # smartsched: " + "gpus=2 " * 100_000,
        "x # smartsched: " + "\\" * 300_000,
        'x "' + "\\a" * 300_000 + "# smartsched: gpus=2",
        "x ${" * 100_000 + "# smartsched: gpus=2",
        "x # smartsched: gpus=2\n" * 50_000,
    ],
    ids=lambda command: command[:20],
)
@pytest.mark.timeout(60)
def test_a_command_that_is_long_is_read_in_no_time(command: str):
    with suppress(UsageError):
        wishes_in(command)


def test_a_long_command_takes_little_memory_to_read():
    command = 'x "' + "a" * 2_000_000 + '"  # smartsched: gpus=2'
    tracemalloc.start()
    try:
        assert wishes_in(command) == TWO
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most_bytes < 20_000_000


def test_a_wish_that_misses_the_mark_is_told_in_short():
    with pytest.raises(UsageError) as refused:
        wishes_in("x # smartsched name=" + "a" * 100_000)

    assert len(str(refused.value)) < 300
