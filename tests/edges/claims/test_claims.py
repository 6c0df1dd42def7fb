"""Who gets a GPU that several want, and what whoever holds the lock can do about it."""

import os
import stat
import time
from contextlib import ExitStack
from math import inf
from pathlib import Path

from smartsched.core.model import ClaimGranted, ClaimRefused
from smartsched.edges.claims import (
    LAST_RETRY_SECONDS,
    LOCK_PATIENCE_SECONDS,
    FolderClaims,
    NoClaims,
)
from tests.builders import GIB, T0
from tests.edges.claims.claimants import (
    ALICE,
    BOB,
    IS_ROOT,
    MALLORY,
    A,
    B,
    C,
    Claimant,
    asked,
    claim,
    contents_of,
    files_in,
    locked,
    name_of,
    open_claims,
    open_fds,
    trap_in,
    uuids_in,
)

ROUNDS = 40


def test_what_nobody_has_is_granted_at_once(claims: FolderClaims):
    claims.ask([(A, GIB), (B, 0)], T0)

    assert claims.wake_at() == T0
    assert claims.take(T0) == [ClaimGranted(T0, (A, B), ())]
    assert claims.wake_at() == inf
    assert claims.take(T0) == []


def test_a_claim_says_who_what_and_since_when_to_everybody(claims: FolderClaims, folder: Path):
    asked(claims, A)
    asked(claims, B, now=T0 + 5)

    said = contents_of(folder)
    assert (said["smartsched_claims"], said["pid"], said["run"]) == (1, os.getpid(), "ours")
    assert said["host"] == os.uname().nodename
    assert said["gpus"] == [
        {"uuid": A.uuid, "memory_bytes": GIB, "since": T0},
        {"uuid": B.uuid, "memory_bytes": GIB, "since": T0 + 5},
    ]
    [file] = files_in(folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_nothing_is_left_behind_before_the_first_claim_and_after_the_end(folder: Path):
    before = open_fds()
    claims = open_claims(folder, "ours", [])
    assert files_in(folder) == []
    asked(claims, A)
    assert len(files_in(folder)) == 1

    claims.close()

    assert files_in(folder) == []
    assert open_fds() == before


def test_what_one_has_claimed_another_is_refused(
    folder: Path, stack: ExitStack, uids: tuple[int | None, int | None]
):
    first = Claimant(stack, folder, uid=uids[0], run_name="sweep")
    second = Claimant(stack, folder, uid=uids[1])

    assert first.ask(A.uuid) == []
    assert second.ask(A.uuid) == [f"GPU-a: claimed by {name_of(uids[0])} (run sweep)"]
    assert second.ask(B.uuid) == []
    assert (first.said, second.said) == ([], [])


def test_two_dispatchers_of_one_process_are_two(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    others = open_claims(folder, "theirs", [])
    stack.callback(others.close)
    asked(claims, A)

    answer = asked(others, A)

    whose = ((A, f"claimed by {name_of(None)} (run ours)"),)
    assert answer == ClaimRefused(T0, (A,), whose, whose)


def test_with_the_answer_comes_what_others_have_claimed_besides(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    others = open_claims(folder, "others", [])
    stack.callback(others.close)
    asked(claims, A)
    asked(claims, C)

    answer = asked(others, B)

    whose = f"claimed by {name_of(None)} (run ours)"
    assert answer == ClaimGranted(T0, (B,), ((A, whose), (C, whose)))


def test_all_of_several_are_claimed_or_none(
    folder: Path, stack: ExitStack, uids: tuple[int | None, int | None]
):
    first = Claimant(stack, folder, uid=uids[0])
    second = Claimant(stack, folder, uid=uids[1])
    first.ask(B.uuid)

    refused = second.ask(A.uuid, B.uuid, C.uuid)

    assert [why.partition(":")[0] for why in refused] == ["GPU-b"]
    assert first.ask(A.uuid, C.uuid) == []


def test_what_is_released_can_be_claimed_by_others(
    folder: Path, stack: ExitStack, uids: tuple[int | None, int | None]
):
    first = Claimant(stack, folder, uid=uids[0])
    second = Claimant(stack, folder, uid=uids[1])
    first.ask(A.uuid, B.uuid)
    second.ask(C.uuid)

    first.release(A.uuid, C.uuid)

    assert second.ask(A.uuid) == []
    assert len(second.ask(B.uuid)) == 1
    assert len(first.ask(C.uuid)) == 1


def test_what_is_ours_already_is_granted_again_and_says_what_is_reserved_now(
    claims: FolderClaims, folder: Path
):
    asked(claims, A)
    claims.ask([(A, 2 * GIB), (B, 0)], T0 + 1)

    assert claims.take(T0 + 1) == [ClaimGranted(T0 + 1, (A, B), ())]
    assert contents_of(folder)["gpus"] == [
        {"uuid": A.uuid, "memory_bytes": 2 * GIB, "since": T0},
        {"uuid": B.uuid, "memory_bytes": 0, "since": T0 + 1},
    ]


def test_what_is_ours_stays_ours_whatever_somebody_else_claims_later(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    asked(claims, A)
    trap_in(folder).write_bytes(claim())
    locked(stack, trap_in(folder))

    assert isinstance(asked(claims, A), ClaimGranted)


def test_several_asks_are_answered_one_by_one(claims: FolderClaims, folder: Path, stack: ExitStack):
    Claimant(stack, folder).ask(B.uuid)

    for gpus in ([A], [B], [C, B], [C], []):
        claims.ask([(gpu, 0) for gpu in gpus], T0)

    granted = [(type(answer), answer.gpus) for answer in claims.take(T0)]
    assert granted == [
        (ClaimGranted, (A,)),
        (ClaimRefused, (B,)),
        (ClaimRefused, (C, B)),
        (ClaimGranted, (C,)),
        (ClaimGranted, ()),
    ]


def test_what_was_granted_and_released_before_anybody_looked_is_not_announced(
    claims: FolderClaims, folder: Path
):
    claims.ask([(A, 0)], T0)

    claims.release([A], T0)

    assert claims.take(T0) == []
    assert uuids_in(folder) == []


def test_of_many_who_want_the_same_gpu_at_once_just_one_gets_it(folder: Path, stack: ExitStack):
    uids = [ALICE, ALICE, BOB, MALLORY] if IS_ROOT else [None] * 4
    claimants = [Claimant(stack, folder, uid=uid) for uid in uids]

    winners = []
    for number in range(ROUNDS):
        uuid = f"GPU-{number}"
        at = time.time() + 0.02
        for claimant in claimants:
            claimant.begin("do", f"import time\nwhile time.time() < {at}: pass")
            claimant.begin("ask", [uuid])
        for claimant in claimants:
            claimant.answer()
        winners.append([claimant.answer() for claimant in claimants].count([]))

    assert winners == [1] * ROUNDS


def test_a_lock_that_is_held_for_ever_makes_us_wait_for_two_seconds_with_a_message(
    claims: FolderClaims, folder: Path, stack: ExitStack, said: list[str]
):
    locked(stack, folder)
    claims.ask([(A, 0), (B, 0)], T0)
    now, answers, tries = T0, list(claims.take(T0)), 0
    while not answers:
        tries += 1
        assert now < claims.wake_at() <= now + LAST_RETRY_SECONDS
        now = claims.wake_at()
        answers = list(claims.take(now))

    why = f"the claims of this box are locked by somebody ({folder})"
    assert answers == [ClaimRefused(T0 + LOCK_PATIENCE_SECONDS, (A, B), ((A, why), (B, why)))]
    assert said == [f"waiting for the claims in {folder}: somebody holds their lock"]
    assert tries < 30
    assert claims.wake_at() == inf


def test_whoever_asks_on_while_the_lock_is_held_is_not_told_twice(
    claims: FolderClaims, folder: Path, stack: ExitStack, said: list[str]
):
    locked(stack, folder)

    for at in (T0, T0 + 3, T0 + 6):
        claims.ask([(A, 0)], at)
        assert len(claims.take(at + 2)) == 1

    assert len(said) == 1


def test_whoever_is_kept_waiting_anew_is_told_anew(
    claims: FolderClaims, folder: Path, said: list[str]
):
    for at in (T0, T0 + 10):
        with ExitStack() as soon:
            locked(soon, folder)
            claims.ask([(A, 0)], at)
            claims.take(at + 1)
        assert isinstance(claims.take(at + 1.9)[0], ClaimGranted)

    assert len(said) == 2


def test_a_lock_that_is_soon_let_go_is_nobody_s_concern(
    claims: FolderClaims, folder: Path, said: list[str]
):
    with ExitStack() as soon:
        locked(soon, folder)
        claims.ask([(A, 0)], T0)
        assert claims.take(T0) == []

    assert claims.take(claims.wake_at() - 0.001) == []
    at = claims.wake_at()
    assert claims.take(at) == [ClaimGranted(at, (A,), ())]
    assert said == []


def test_asking_again_for_the_same_before_the_answer_changes_nothing(
    claims: FolderClaims, folder: Path, stack: ExitStack
):
    locked(stack, folder)
    claims.ask([(A, 0)], T0)
    claims.ask([(A, 0)], T0 + 1.5)

    assert len(claims.take(T0 + 2)) == 1
    assert claims.wake_at() == inf


def test_each_ask_has_its_own_two_seconds(claims: FolderClaims, folder: Path, stack: ExitStack):
    locked(stack, folder)
    claims.ask([(A, 0)], T0)
    claims.ask([(B, 0)], T0 + 1)

    assert [answer.gpus for answer in claims.take(T0 + 2)] == [(A,)]
    assert [answer.gpus for answer in claims.take(T0 + 3)] == [(B,)]


def test_what_is_released_before_the_answer_is_withdrawn(claims: FolderClaims, folder: Path):
    with ExitStack() as soon:
        locked(soon, folder)
        claims.ask([(A, 0), (B, 0)], T0)
        claims.ask([(C, 0)], T0)
        claims.release([B], T0)

    assert claims.take(T0 + 1) == [ClaimGranted(T0 + 1, (C,), ())]


def test_what_is_released_while_the_lock_is_held_is_written_as_soon_as_it_is_not(
    claims: FolderClaims, folder: Path, said: list[str]
):
    asked(claims, A, B)
    with ExitStack() as soon:
        locked(soon, folder)
        claims.release([A], T0)
        for minutes in range(10):
            assert claims.take(T0 + 60 * minutes) == []
        assert uuids_in(folder) == [A.uuid, B.uuid]

    assert claims.wake_at() < inf
    claims.take(claims.wake_at())

    assert uuids_in(folder) == [B.uuid]
    assert claims.wake_at() == inf
    assert said == []


def test_what_is_wanted_again_before_it_could_be_given_up_is_granted(
    claims: FolderClaims, folder: Path
):
    asked(claims, A)
    with ExitStack() as soon:
        locked(soon, folder)
        claims.release([A], T0)
        claims.ask([(A, 0)], T0)

    assert claims.take(T0 + 1) == [ClaimGranted(T0 + 1, (A,), ())]
    assert uuids_in(folder) == [A.uuid]


def test_somebody_else_s_lock_keeps_the_others_waiting_and_no_longer_than_he_lives(
    folder: Path, stack: ExitStack, uids: tuple[int | None, int | None]
):
    mallory = Claimant(stack, folder, uid=uids[0])
    other = Claimant(stack, folder, uid=uids[1])
    mallory.do("import fcntl, os\nfcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)")
    began = time.monotonic()

    [refused] = other.ask(A.uuid)

    assert LOCK_PATIENCE_SECONDS - 0.1 < time.monotonic() - began < 10
    assert "locked by somebody" in refused
    assert len(other.said) == 1
    mallory.kill()
    assert other.ask(A.uuid) == []


def test_without_claims_everything_is_granted():
    claims = NoClaims()
    assert claims.wake_at() == inf

    claims.ask([(A, 0), (B, GIB)], T0)
    claims.ask([(C, 0)], T0)
    claims.release([C], T0)

    assert claims.wake_at() == T0
    assert claims.take(T0) == [ClaimGranted(T0, (A, B))]
    assert claims.take(T0) == []
    claims.close()
