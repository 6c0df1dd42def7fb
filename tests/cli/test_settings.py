"""What is set in files and in the environment: which of them wins, and what is refused."""

import argparse
import json
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.cli import main, settings
from smartsched.cli.desk import changed
from smartsched.cli.limits import limited
from smartsched.cli.parser import SETTABLE, build_parser, parse, parse_again, remembered
from smartsched.cli.settings import File, Settings, blamed, merged, preset, variable_of
from smartsched.cli.verbs import VerbParser
from smartsched.config import SET_BY_US, configure
from smartsched.core.hours import parse_cap, words
from smartsched.core.policy import Policy
from smartsched.core.requests import SetOptions
from smartsched.errors import UsageError


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The user's own file, which is not there yet."""
    path = tmp_path / "home/.config/smartsched/config.toml"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def administrators(tmp_path: Path) -> Path:
    """Likewise the administrator's."""
    return tmp_path / "administrators.toml"


def complaint(path: Path, whose: str = "user") -> str:
    file = File(path, "config.toml", "folder" if whose == "folder" else "user")
    with pytest.raises(UsageError) as error:
        merged(build_parser(), [file], {})
    return str(error.value)


# --- which one wins


def test_the_later_wins(mine: Path, monkeypatch: pytest.MonkeyPatch):
    mine.write_text('max-mem = "1%"\nmax-util = "1%"\nretries = 1\ngrace = "1s"\n')
    Path("smartsched.toml").write_text('max-util = "2%"\nretries = 2\ngrace = "2s"\n')
    monkeypatch.setenv("SMARTSCHED_RETRIES", "3")
    monkeypatch.setenv("SMARTSCHED_GRACE", "3s")

    args = parse(["--grace", "4s"])

    assert (args.max_mem, args.max_util, args.retries, args.grace) == ("1%", "2%", "3", "4s")


def test_the_administrators_defaults_come_first(administrators: Path, mine: Path):
    administrators.write_text('max-mem = "5%"\nretries = 1\n[limits]\nmax-gpus = 4\n')
    mine.write_text("retries = 2\n")
    files = [File(administrators, "/etc/x", "administrator"), File(mine, "mine", "user")]

    found = merged(build_parser(), files, {})

    assert found.values() == {"max_mem": "5%", "retries": "2"}
    assert found.by_option["max_mem"].place == "/etc/x:1"


def test_a_list_that_is_set_later_replaces_an_earlier_one(mine: Path):
    mine.write_text('ignore-user = ["bob", "carol"]\n')

    assert parse([]).ignore_user == ["bob", "carol"]
    assert parse(["--ignore-user", "dave", "--ignore-user", "erin"]).ignore_user == ["dave", "erin"]


def test_a_flag_wins_over_an_option_that_cannot_be_beside_it(mine: Path):
    mine.write_text("no-claims = true\n")

    args = parse(["--claims", "shared"])

    assert not args.no_claims
    assert args.claims.endswith("/shared")


def test_a_switch_that_is_set_can_be_taken_back(mine: Path):
    mine.write_text("polite = true\nguard = false\n")
    Path("smartsched.toml").write_text("polite = false\n")

    assert (parse([]).polite, parse([]).guard, parse(["--guard"]).guard) == (False, False, True)


def test_options_that_exclude_each_other_cannot_stand_in_one_file(mine: Path):
    mine.write_text('claims = "here"\nno-claims = true\n')

    assert complaint(mine) == "config.toml:1: claims cannot be beside no-claims: leave one out"


# --- values


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ('max-mem = "4GiB"', "max_mem", "4GiB"),
        ("retries = 3", "retries", "3"),
        ("polite = true", "polite", True),
        ("guard = false", "guard", False),
        ("progress = false", "progress", False),
        ('ignore-user = "bob"', "ignore_user", ["bob"]),
        ("ignore-pid = [7, 8]", "ignore_pid", ["7", "8"]),
        ("gpus = [0, 1]", "gpus", "0,1"),
        ("gpus = 0", "gpus", "0"),
        ('visible = "uuid"', "visible", "uuid"),
        ('halt = "soon,fail=3"', "halt", "soon,fail=3"),
    ],
)
def test_a_value_is_what_the_flag_would_have_made_of_it(
    mine: Path, text: str, name: str, value: object
):
    mine.write_text(f"{text}\n")

    assert getattr(parse([]), name) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('max-mme = "20%"', "there is no setting max-mme: do you mean max-mem?"),
        ('max_mem = "20%"', "there is no setting max_mem: do you mean max-mem?"),
        ("zzz = 1", "there is no setting zzz: `smartsched config` lists what there is"),
        ("n = 1", "there is no setting n: `smartsched config` lists what there is"),
        ("no-guard = true", "there is no setting no-guard: write guard = false"),
        (
            "dry-run = true",
            "dry-run cannot be set, it is said of one run: give --dry-run as a flag",
        ),
        ("polite = 1", "polite is either true or false, without quotes"),
        ("max-mem = true", 'max-mem is text or a number: write it as in max-mem = "10%"'),
        ("max-mem = 2026-01-01", 'max-mem is text or a number: write it as in max-mem = "10%"'),
        ("gpus = [[0]]", 'gpus is text or a number: write it as in gpus = "IDS"'),
        ('shell = ""', 'shell is empty: leave it out, or write it as in shell = "PATH"'),
        ("grace = [1]", 'grace is one value, no list: write it as in grace = "10s"'),
        ('visible = "all"', "visible cannot be 'all': it is one of index, uuid"),
        ("max-mem.gpu = 1", "there is no setting max-mem.gpu: do you mean max-mem?"),
        (
            "[limits]",
            "[limits] is the administrator's, in /etc/smartsched/config.toml: leave it out",
        ),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_line(mine: Path, text: str, why: str):
    mine.write_text(f"# mine\n\n{text}\n")

    assert complaint(mine) == f"config.toml:3: {why}"


def test_an_option_that_turns_out_wrong_later_is_named_with_its_line(mine: Path):
    mine.write_text('\nmax-mem = "20$"\n')
    args = parse([])

    with pytest.raises(UsageError) as error:
        configure(args, "run")

    assert str(blamed(error.value, args.settings)).startswith(f"{mine}:2: --max-mem: '20$' is ")


def test_a_flag_that_turns_out_wrong_is_nobody_elses_fault(mine: Path):
    mine.write_text('max-mem = "20%"\n')
    args = parse(["--max-mem", "20$"])

    with pytest.raises(UsageError) as error:
        configure(args, "run")

    assert blamed(error.value, args.settings) is error.value


@pytest.mark.parametrize("key", ["on-finish", "shell", "joblog", "json-log", "state", "claims"])
def test_a_folders_file_runs_nothing_and_names_no_file_to_be_written(tmp_path: Path, key: str):
    path = tmp_path / "smartsched.toml"
    path.write_text(f'{key} = "x"\n')

    assert f"{key} cannot be set by a folder's file" in complaint(path, "folder")


def test_every_option_can_be_set_or_is_known_to_be_said_of_one_run_only():
    parser = build_parser()
    settable = {action.dest for action in settings.settable(parser).values()}

    others = {action.dest for action in parser._actions} - settable

    assert others - settings._FLAGS_ONLY == {"files", "help", "version"}


# --- the environment


def in_environment(**variables: str) -> Settings:
    return merged(build_parser(), [], variables)


def test_variables_have_the_options_names():
    found = in_environment(
        SMARTSCHED_MAX_MEM="20%",
        SMARTSCHED_POLITE="1",
        SMARTSCHED_GUARD="off",
        SMARTSCHED_IGNORE_USER="bob,carol",
    )

    assert found.values() == {
        "max_mem": "20%",
        "polite": True,
        "guard": False,
        "ignore_user": ["bob", "carol"],
    }


def test_an_empty_variable_says_nothing():
    assert in_environment(SMARTSCHED_MAX_MEM="", SMARTSCHED_CLAIMS="").values() == {}


def test_what_a_job_is_told_is_no_option():
    """A job may run smartsched itself."""
    told = dict.fromkeys(SET_BY_US, "7")

    assert merged(build_parser(), [], told).values() == {}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("MAXMEM", "1", "is no option: do you mean SMARTSCHED_MAX_MEM? If not, unset"),
        ("IGNORE_USERS", "bob", "is no option: do you mean SMARTSCHED_IGNORE_USER?"),
        ("POLITE", "maybe", "is 'maybe': make it 1 or 0"),
        ("VISIBLE", "all", "cannot be 'all': it is one of index, uuid"),
        ("DRY_RUN", "1", "--dry-run cannot be set: give it as a flag"),
    ],
)
def test_variables_that_cannot_be_meant_are_refused(name: str, text: str, why: str):
    variable = f"SMARTSCHED_{name}"

    with pytest.raises(UsageError) as error:
        in_environment(**{variable: text})

    assert str(error.value).startswith(f"{variable} in the environment")
    assert why in str(error.value)


@pytest.mark.parametrize("name", ["HOME", "VERSION", "PROJECT", "X"])
def test_variables_of_others_are_left_alone(name: str):
    assert in_environment(**{f"SMARTSCHED_{name}": "1"}).values() == {}


# --- verbs that have options of the main command


def test_a_verb_can_have_its_options_as_they_are_set(mine: Path):
    mine.write_text('max-mem = "20%"\nmax-util = "5%"\nretries = 3\n')
    parser = VerbParser("pick", "")
    parser.add_argument("--max-mem", default="10%")
    parser.add_argument("--max-util", default="10%")
    parser.add_argument("--wait", action="store_true")

    found = preset(parser)

    args = parser.parse_args(["--max-util", "7%"])
    assert vars(args) == {"max_mem": "20%", "max_util": "7%", "wait": False}
    assert found.by_option["max_mem"].place == f"{mine}:1"


# --- a run that is resumed


def test_a_run_goes_on_with_what_was_set_when_it_began(mine: Path):
    mine.write_text('max-mem = "20%"\n')
    options = remembered(parse(["--retries", "2"]))
    mine.write_text('max-mem = "30%"\ngrace = "1h"\nretries = 9\n')

    later = parse_again(["--resume"], options)

    assert (later.max_mem, later.grace, later.retries) == ("20%", "10s", "2")


def test_flags_given_when_resuming_win_over_all(mine: Path):
    mine.write_text('max-mem = "20%"\n')
    options = remembered(parse(["--retries", "2"]))

    later = parse_again(["--resume", "--max-mem", "5%", "--retries", "3"], options)

    assert (later.max_mem, later.retries) == ("5%", "3")


def test_what_belongs_to_an_invocation_is_as_it_is_set_now(mine: Path):
    mine.write_text("quiet = true\n")
    options = remembered(parse([]))
    mine.write_text("verbose = true\n")

    later = parse_again(["--resume"], options)

    assert (later.quiet, later.verbose) == (False, True)


def test_where_claims_are_is_as_it_is_set_now(monkeypatch: pytest.MonkeyPatch):
    """The dispatchers of a box have to agree on it."""
    monkeypatch.setenv("SMARTSCHED_CLAIMS", "/before")
    options = remembered(parse([]))
    monkeypatch.setenv("SMARTSCHED_CLAIMS", "/now")

    assert parse_again(["--resume"], options).claims == "/now"
    assert json.loads(remembered(parse(["--claims", "/flag"])))["claims"] == "/flag"


# --- the administrator's limits


def test_limits_are_read_from_the_administrators_file(administrators: Path):
    administrators.write_text('[limits]\nmax-gpus = "2@09-18"\nleave-free = 1\n')

    policy, notes = limited(Policy("run", most_gpus=parse_cap("8")), administrators)

    assert (words(policy.most_gpus), words(policy.leave_free)) == ("2@09-18,8@18-09", "1")
    assert f"({administrators}:2)" in notes[0]


def test_without_limits_nothing_changes(administrators: Path):
    policy = Policy("run")

    assert limited(policy, administrators) == (policy, ())
    administrators.write_text("polite = true\n[limits]\n")
    assert limited(policy, administrators) == (policy, ())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max-gpu = 4", "there is no limit max-gpu: do you mean max-gpus?"),
        ("max-gpus = true", "max-gpus is a number, or by the hour"),
        ('max-gpus = "many"', "max-gpus: 'many' is no cap"),
        ("leave-free.x = 1", "there is no limit leave-free.x: do you mean leave-free?"),
    ],
)
def test_limits_that_cannot_be_meant_are_named_with_their_line(
    administrators: Path, text: str, why: str
):
    administrators.write_text(f"[limits]\n{text}\n")

    with pytest.raises(UsageError) as error:
        limited(Policy("run"), administrators)

    assert str(error.value).startswith(f"{administrators}:2: {why}")
    assert str(error.value).endswith("; tell the administrator of this box")


def test_what_a_folder_s_file_says_does_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]):
    Path("smartsched.toml").write_text('"x\\u001b[2J\\u009b1m\\r" = 1\n')

    assert main(["--dry-run"]) == 2

    assert "there is no setting x\\x1b[2J\\x9b1m " in capfd.readouterr().err


# --- what was mistyped on the command line


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--max-mme", "20%"], "unrecognized arguments: --max-mme: do you mean --max-mem?"),
        (["--max-mme=20%"], "unrecognized arguments: --max-mme=20%: do you mean --max-mem?"),
        (["--zzz"], "unrecognized arguments: --zzz; see smartsched --help"),
        (["sampel"], "there is no file 'sampel': do you mean smartsched sample?"),
        (["sample", "--onec"], "unrecognized arguments: --onec: do you mean --once?"),
    ],
)
def test_a_mistyped_word_is_answered_with_what_may_have_been_meant(
    words: list[str], why: str, capfd: pytest.CaptureFixture[str]
):
    with suppress(SystemExit):
        assert main(words) == 2

    assert capfd.readouterr().err.startswith(f"smartsched: {why}")


# --- whatever stands there


KEYS = sorted(settings.settable(build_parser()))
TOML = st.sampled_from(
    [
        "true",
        "false",
        "0",
        "-1",
        "4",
        "1e999",
        "nan",
        "2021-01-01",
        "{}",
        "{a = 1}",
        "[]",
        "[[]]",
        "0x" + "f" * 5000,
        "9" * 5000,
        "[1, 2]",
        '["", "a"]',
        "[true]",
        "[{a = 1}]",
        "0b1",
        '""',
        '"\\u0000"',
        '"20%"',
        '"4GiB"',
        '"0-3"',
        '"2@09-18"',
        '"10s"',
        '"now,fail=3"',
        '"a,b"',
        '"\\u001b[2J"',
        '"' + "x" * 5000 + '"',
        '"http://[/"',
        '"~/x"',
        '"log"',
        '"last"',
        '"-"',
    ]
)


@given(st.dictionaries(st.sampled_from(KEYS), TOML, max_size=3))
@hypothesis.settings(max_examples=150)
def test_whatever_is_set_in_a_file_is_a_configuration_or_told(mine: Path, said: dict[str, str]):
    mine.write_text("".join(f"{key} = {value}\n" for key, value in said.items()))

    with suppress(UsageError):
        configure(_with(merged(build_parser(), [File(mine, "mine", "user")], {})), "run")


@given(
    st.dictionaries(
        st.sampled_from([variable_of(key) for key in KEYS if variable_of(key)]),
        TOML.map(lambda text: text.strip('"')) | st.text(st.characters(exclude_characters="\0")),
        max_size=3,
    )
)
@hypothesis.settings(max_examples=150)
def test_whatever_is_set_in_the_environment_is_a_configuration_or_told(said: dict[str, str]):
    with suppress(UsageError):
        configure(_with(merged(build_parser(), [], said)), "run")


def _with(found: Settings) -> argparse.Namespace:
    parser = build_parser()
    parser.set_defaults(command=None, **found.values())
    return parser.parse_args([])


@given(st.lists(st.tuples(st.sampled_from(["max-gpus", "leave-free", "x", "max-gpus.y"]), TOML)))
def test_whatever_the_administrator_says_is_a_limit_or_told(
    administrators: Path, said: list[tuple[str, str]]
):
    administrators.write_text("".join(["[limits]\n", *(f"{k} = {v}\n" for k, v in said)]))

    with suppress(UsageError):
        limited(Policy("run"), administrators)


VALUES = st.none() | st.booleans() | st.integers() | st.lists(st.text(max_size=3)) | st.text()


@given(
    st.dictionaries(
        st.sampled_from(sorted(SETTABLE)) | st.text(max_size=5),
        VALUES | TOML.map(lambda text: text.strip('"')),
        max_size=3,
    )
)
@hypothesis.settings(max_examples=150)
def test_whatever_a_run_is_told_to_go_by_is_a_configuration_or_told(options: dict[str, object]):
    with suppress(UsageError):
        args, _ = changed(parse([]), SetOptions("7", options))
        configure(args, "run")
