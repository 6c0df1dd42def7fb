"""Who is believed to claim, and how little a folder full of traps can do about it."""

import fcntl
import json
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.model import ClaimGranted, ClaimRefused
from smartsched.edges.claim_reader import LONGEST_FILE_BYTES, MOST_FILES, ClaimReader
from smartsched.edges.claims import FolderClaims
from tests.builders import T0
from tests.edges.claims.claimants import (
    ALICE,
    IS_ROOT,
    MALLORY,
    A,
    B,
    Claimant,
    asked,
    claim,
    files_in,
    key,
    locked,
    name_of,
    open_fds,
    trap_in,
    uuids_in,
)


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_whoever_is_gone_claims_nothing(
    folder: Path, stack: ExitStack, uids: tuple[int | None, int | None], how: str
):
    first = Claimant(stack, folder, uid=uids[0])
    second = Claimant(stack, folder, uid=uids[1])
    first.ask(A.uuid)

    if how == "killed":
        first.kill()
    else:
        first.do("claims.close()")

    assert second.ask(A.uuid) == []
    assert second.said == []


def test_what_a_killed_dispatcher_left_is_removed_by_the_next_of_the_same_user(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    other = Claimant(stack, folder)
    other.ask(A.uuid)
    other.kill()

    asked(claims, B)

    assert uuids_in(folder) == [B.uuid]


def test_what_a_killed_dispatcher_of_somebody_else_left_is_left_alone(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    if not IS_ROOT:
        pytest.skip("only root can start processes of other users")
    other = Claimant(stack, folder, uid=ALICE)
    other.ask(A.uuid)
    other.kill()
    [left] = files_in(folder)

    assert isinstance(asked(claims, A), ClaimGranted)

    assert left in files_in(folder)


def test_what_a_dispatcher_starts_does_not_go_on_claiming(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    other = Claimant(stack, folder)
    other.ask(A.uuid)
    pid = other.do(
        "import subprocess as s\n"
        "result = s.Popen(['sleep', '600'], stdout=s.DEVNULL, close_fds=False).pid"
    )
    stack.callback(os.kill, pid, 9)

    other.kill()

    assert isinstance(asked(claims, A), ClaimGranted)
    os.kill(pid, 0)


@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_a_lock_on_a_dead_one_s_file_does_not_bring_him_back(
    claims: FolderClaims, folder: Path, stack: ExitStack, how: int
):
    other = Claimant(stack, folder, uid=ALICE if IS_ROOT else None)
    other.ask(A.uuid)
    other.kill()
    locked(stack, files_in(folder)[0], how)

    assert isinstance(asked(claims, A), ClaimGranted)


@pytest.mark.parametrize(
    ("fields", "lives"),
    [
        ({}, True),
        ({"start_ticks": 1}, False),  # the pid is somebody else's by now
        ({"pid": 2**31 - 1}, False),
        ({"pid": 2**31 - 1, "place": "elsewhere"}, True),
        ({"pid": 2**31 - 1, "place": ""}, True),
        ({"pid": 2**31 - 1, "place": None}, True),
        ({"pid": 10**30}, True),
        ({"pid": -1}, True),
        ({"pid": None}, True),
        ({"pid": "1"}, True),
    ],
)
def test_who_holds_his_lock_lives_unless_it_can_be_seen_that_he_does_not(
    claims: FolderClaims, folder: Path, stack: ExitStack, fields: dict[str, object], lives: bool
):
    trap_in(folder).write_bytes(claim(**fields))
    locked(stack, trap_in(folder))

    answer = asked(claims, A)

    assert isinstance(answer, ClaimRefused) == lives


def link_to_a_file(trap: Path) -> None:
    trap.symlink_to(trap.parent.parent / "precious")


def link_to_nothing(trap: Path) -> None:
    trap.symlink_to(trap.parent / "nothing")


def pipe(trap: Path) -> None:
    os.mkfifo(trap)


def a_socket(trap: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(trap))


def a_folder(trap: Path) -> None:
    trap.mkdir()


@pytest.mark.parametrize("make", [link_to_a_file, link_to_nothing, pipe, a_socket, a_folder])
def test_what_is_no_file_is_neither_opened_nor_waited_for(
    claims: FolderClaims,
    folder: Path,
    stack: ExitStack,
    said: list[str],
    make: Callable[[Path], None],
):
    precious = folder.parent / "precious"
    precious.write_bytes(claim())
    locked(stack, precious)
    before = precious.stat()
    make(trap_in(folder))
    Claimant(stack, folder).ask(B.uuid)

    assert isinstance(asked(claims, A), ClaimGranted)
    assert isinstance(asked(claims, B), ClaimRefused)

    assert said == [
        f"paying no attention to {trap_in(folder)} of {name_of(None)}: it is no plain file"
    ]
    assert precious.stat() == before
    assert not (folder / "nothing").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"\x00\xff\xfe garbage", "it is no claim", id="garbage"),
        pytest.param(b"[" * LONGEST_FILE_BYTES, "it is no claim", id="deep"),
        pytest.param(b'{"gpus":' * 8000, "it is no claim", id="deep objects"),
        pytest.param(b"[]", "it is no claim", id="a list"),
        pytest.param(b"NaN", "it is no claim", id="NaN"),
        pytest.param(b'{"gpus": {"uuid": "GPU-a"}}', "it is no claim", id="gpus of another kind"),
        pytest.param(b'{"pid": ' + b"9" * 9000 + b"}", "it is no claim", id="a huge number"),
        pytest.param(b"\n" + claim(), "it is no claim", id="an empty line"),
        pytest.param(b'{"gpus": [', "it is no claim", id="torn"),
        pytest.param(b" " * LONGEST_FILE_BYTES + b"{}", "it is too long", id="long"),
        pytest.param(None, "it is too long", id="huge"),
    ],
)
def test_what_makes_no_sense_claims_nothing_and_is_complained_of_once(
    claims: FolderClaims,
    folder: Path,
    stack: ExitStack,
    said: list[str],
    content: bytes | None,
    why: str,
):
    for number in range(3):
        trap = trap_in(folder, number)
        trap.write_bytes(content or b"")
        if content is None:
            os.truncate(trap, 2**40)
        locked(stack, trap)
    Claimant(stack, folder).ask(B.uuid)

    for _ in range(3):
        assert isinstance(asked(claims, B), ClaimRefused)
        assert isinstance(asked(claims, A), ClaimGranted)

    [complaint] = said
    assert complaint.endswith(f" of {name_of(None)}: {why}")
    assert complaint.startswith(f"paying no attention to {folder}/smartsched-0000")


@pytest.mark.parametrize(
    "gpus",
    [
        [None, 7, [], "GPU-b", {"uuid": None}, {"uuid": ["GPU-b"]}, {}, {"uuid": "GPU-a"}],
        [{"uuid": "GPU-a", "memory_bytes": float("nan"), "since": "x", "more": {}}],
        [{"uuid": "GPU-a", "memory_bytes": 10**400, "since": -(10**400)}],
        [{"uuid": "GPU-a"}] * 2000,
    ],
)
def test_of_what_makes_little_sense_that_is_believed_which_does(
    claims: FolderClaims, folder: Path, stack: ExitStack, said: list[str], gpus: list[object]
):
    trap_in(folder).write_bytes(claim(gpus=gpus))
    locked(stack, trap_in(folder))

    assert isinstance(asked(claims, A), ClaimRefused)
    assert isinstance(asked(claims, B), ClaimGranted)
    assert said == []


def test_an_unlocked_file_is_of_no_interest_whatever_it_is(
    folder: Path, stack: ExitStack, claims: FolderClaims, said: list[str]
):
    trap_in(folder, 0).write_bytes(b"garbage")
    trap_in(folder, 1).write_bytes(claim())

    assert isinstance(asked(claims, A), ClaimGranted)
    assert said == []


def test_files_of_other_names_are_none_of_our_business(
    claims: FolderClaims, folder: Path, stack: ExitStack, said: list[str]
):
    names = ["precious", "smartsched-1.claim", f"{trap_in(folder).name}.bak", "x.claim", "\udcff"]
    for name in names:
        (folder / name).write_bytes(claim())
        locked(stack, folder / name)
    os.mkfifo(folder / "smartsched-pipe")
    (folder / "unlocked.claim").touch()

    assert isinstance(asked(claims, A), ClaimGranted)

    assert said == []
    assert len(files_in(folder)) == len(names) + 3


def test_a_file_that_nobody_may_read_claims_nothing(folder: Path, stack: ExitStack):
    trap_in(folder).write_bytes(claim())
    locked(stack, trap_in(folder))
    trap_in(folder).chmod(0)
    other = Claimant(stack, folder, uid=ALICE if IS_ROOT else None)

    assert other.ask(A.uuid) == []

    [complaint] = other.said
    assert complaint.endswith(f" of {name_of(None)}: it cannot be read")


def test_whoever_owns_a_file_is_the_one_who_claims_whatever_it_says(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    trap_in(folder).write_bytes(claim(user="alice", uid=0, run="a\x1b[2J\n\u202eb" + "c" * 100))
    if IS_ROOT:
        os.chown(trap_in(folder), MALLORY, MALLORY)
    locked(stack, trap_in(folder))

    answer = asked(claims, A)

    assert isinstance(answer, ClaimRefused)
    [(_, why)] = answer.why
    assert why.startswith(f"claimed by {name_of(MALLORY if IS_ROOT else None)} (run a\\x1b[2J ")
    assert why.isprintable()
    assert len(why) < 100


@pytest.mark.parametrize("run", [None, 7, "", ["x"]])
def test_a_claim_need_not_have_a_run(
    claims: FolderClaims, folder: Path, stack: ExitStack, run: object
):
    trap_in(folder).write_bytes(claim(run=run))
    locked(stack, trap_in(folder))

    answer = asked(claims, A)

    assert isinstance(answer, ClaimRefused)
    assert answer.why == ((A, f"claimed by {name_of(None)}"),)


def test_a_second_name_of_a_claim_neither_adds_to_it_nor_takes_it_away(
    claims: FolderClaims, folder: Path, stack: ExitStack, said: list[str]
):
    other = Claimant(stack, folder)
    other.ask(A.uuid)
    for number in (0, 2**64 - 1):
        os.link(next(iter(files_in(folder))), trap_in(folder, number))

    assert isinstance(asked(claims, A), ClaimRefused)
    other.do("claims.close()")
    assert isinstance(asked(claims, A), ClaimGranted)
    assert said == []


def test_a_second_name_of_our_own_claim_is_no_claim_of_others(claims: FolderClaims, folder: Path):
    asked(claims, A)
    for number in (0, 2**64 - 1):
        os.link(files_in(folder)[0], trap_in(folder, number))
    with ExitStack() as soon:
        locked(soon, folder)
        claims.release([A], T0)

    assert isinstance(asked(claims, A), ClaimGranted)


RESTLESS = """
import fcntl, os, threading

def plain(path):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write("[" * 9000)

def restless(path):
    while True:
        for make in (plain, os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)):
            try:
                make(path + ".new")
                os.rename(path + ".new", path)
            except OSError:
                pass
            for remove in (os.unlink, os.rmdir):
                try:
                    remove(path)
                except OSError:
                    pass

for number in range(3):
    path = os.path.join(folder, f"smartsched-{number:016x}.claim")
    threading.Thread(target=restless, args=(path,), daemon=True).start()
"""


def test_files_that_turn_into_something_else_all_the_time_do_no_harm(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    Claimant(stack, folder).ask(B.uuid)
    Claimant(stack, folder, uid=MALLORY if IS_ROOT else None).do(RESTLESS)
    before = open_fds()

    for number in range(200):
        assert isinstance(asked(claims, key(f"GPU-{number}")), ClaimGranted)
        assert isinstance(asked(claims, B), ClaimRefused)

    assert open_fds() == before + 1


def test_a_folder_with_thousands_of_files_is_read_to_the_end(
    claims: FolderClaims, folder: Path, stack: ExitStack, said: list[str]
):
    for number in range(2000):
        trap_in(folder, number).write_bytes(b"garbage")
    for number in range(200):
        (folder / f"something else {number}").touch()
    if IS_ROOT:
        for path in files_in(folder):
            os.chown(path, MALLORY, MALLORY)
    other = Claimant(stack, folder, uid=ALICE if IS_ROOT else None)
    assert other.ask(B.uuid) == []

    assert isinstance(asked(claims, A), ClaimGranted)
    assert isinstance(asked(claims, B), ClaimRefused)

    assert said == []


def test_too_many_files_leave_unknown_what_is_claimed(claims: FolderClaims, folder: Path):
    for number in range(MOST_FILES + 1):
        trap_in(folder, number).touch()

    answer = asked(claims, A)

    assert isinstance(answer, ClaimRefused)
    assert answer.why[0][1].startswith(f"cannot use the claims in {folder}: there are too many")
    claims.release([A], T0)
    assert claims.wake_at() == inf


def test_too_much_to_read_leaves_unknown_what_is_claimed(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    for number in range(70):
        trap_in(folder, number).write_bytes(b" " * LONGEST_FILE_BYTES)
        locked(stack, trap_in(folder, number))

    answer = asked(claims, A)

    assert isinstance(answer, ClaimRefused)
    assert "there is too much in it" in answer.why[0][1]


TEXTS = st.sampled_from([A.uuid, "", "\x1b[2J", "\ud800", "x" * 300]) | st.text(max_size=5)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([os.getpid(), 10**400, 2**31, 2**63])
    | TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["gpus", "run", "pid", "start_ticks", "place", "x"])
GPUS = st.lists(st.dictionaries(st.sampled_from(["uuid", "x"]), JSON), max_size=3)
SAID = st.dictionaries(FIELDS, JSON) | st.builds(
    lambda said, gpus: {**said, "gpus": gpus}, st.dictionaries(FIELDS, JSON), GPUS
)


@given(
    SAID.map(lambda said: claim(**said))
    | JSON.map(lambda said: json.dumps(said).encode())
    | st.binary(max_size=100),
    st.integers(0, 200),
)
def test_whatever_somebody_writes_claims_gpus_or_nothing(
    folder: Path, data: bytes, cut_off_bytes: int
):
    reader = ClaimReader(tidy_up=False)
    trap_in(folder).write_bytes(data[: len(data) - cut_off_bytes] if cut_off_bytes < 50 else data)
    folder_fd = os.open(folder, os.O_RDONLY)

    with ExitStack() as soon:
        soon.callback(os.close, folder_fd)
        locked(soon, trap_in(folder))
        claimants = reader.read(folder_fd, None)

    for uuid, claimant in claimants.items():
        assert isinstance(uuid, str)
        assert str(claimant).isprintable()
        assert len(str(claimant)) < 120
    assert all(complaint.isprintable() for complaint in reader.complaints(folder))
