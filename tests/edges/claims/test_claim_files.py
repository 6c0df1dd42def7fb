"""What is shared can vanish, be full, or be worth nothing; and the folder is for all."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from smartsched.core.model import ClaimGranted, ClaimRefused
from smartsched.edges.claim_files import claims_of_others, default_folder
from smartsched.edges.claim_reader import MOST_FILES, ClaimReader
from smartsched.edges.claims import FolderClaims
from smartsched.errors import StateError
from tests.builders import T0
from tests.edges.claims.claimants import (
    ALICE,
    BOB,
    IS_ROOT,
    A,
    B,
    C,
    Claimant,
    asked,
    files_in,
    locked,
    name_of,
    open_claims,
    open_fds,
    trap_in,
    uuids_in,
)


def test_the_first_user_makes_the_folder_for_all(place: Path, stack: ExitStack):
    place.chmod(0o777 | stat.S_ISVTX)
    folder = place / "claims"
    umask = os.umask(0o077)
    stack.callback(os.umask, umask)
    first = Claimant(stack, folder, uid=ALICE if IS_ROOT else None)
    first.ask(A.uuid)

    second = Claimant(stack, folder, uid=BOB if IS_ROOT else None)

    assert len(second.ask(A.uuid)) == 1
    assert second.ask(B.uuid) == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


def test_making_the_folder_leaves_the_umask_as_it_was(place: Path):
    before = os.umask(0o027)
    open_claims(place / "claims", "ours", []).close()

    assert os.umask(before) == 0o027


def test_a_relative_folder_stays_the_same_wherever_we_go(
    folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder.parent)
    claims = open_claims(Path("claims"), "ours", [])
    stack.callback(claims.close)
    monkeypatch.chdir("/")

    assert isinstance(asked(claims, A), ClaimGranted)
    assert uuids_in(folder) == [A.uuid]


def is_a_file(folder: Path) -> None:
    folder.rmdir()
    folder.touch()


def is_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def is_not_sticky(folder: Path) -> None:
    folder.chmod(0o777)


def claim_there(folder: Path) -> object:
    return open_claims(folder, "ours", [])


def look_there(folder: Path) -> object:
    return claims_of_others(folder, ClaimReader(tidy_up=False), print)


def is_a_link_to_nothing(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to("nowhere/claims")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (is_a_file, "it is no folder, or a link to one"),
        (is_a_link, "it is no folder, or a link to one"),
        (is_a_link_to_nothing, "it is no folder, or a link to one"),
        (is_not_sticky, "anybody may remove the files of others there (chmod +t it)"),
    ],
)
@pytest.mark.parametrize("use", [claim_there, look_there])
def test_a_folder_in_which_claims_are_worth_nothing_is_refused_with_what_to_do(
    folder: Path, spoil: Callable[[Path], None], why: str, use: Callable[[Path], object]
):
    spoil(folder)
    before = open_fds()

    with pytest.raises(StateError) as refused:
        use(folder)

    advice = "name another folder with --claims DIR, or do without (--no-claims)"
    assert str(refused.value) == f"cannot use the claims in {folder}: {why}; {advice}"
    assert open_fds() == before


def test_a_folder_below_nothing_is_not_made(place: Path):
    with pytest.raises(StateError, match=r"nowhere/claims: No such file or directory; name anoth"):
        open_claims(place / "nowhere" / "claims", "ours", [])


def test_a_folder_where_we_may_not_write_is_refused(folder: Path, stack: ExitStack):
    folder.chmod(0o555)

    with pytest.raises(StateError, match=r"you may not write there; name another folder"):
        Claimant(stack, folder, uid=ALICE if IS_ROOT else None)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o770, 0o1777])
def test_a_folder_need_not_be_shared_with_everybody(folder: Path, mode: int):
    folder.chmod(mode)
    claims = open_claims(folder, "ours", [])

    assert isinstance(asked(claims, A), ClaimGranted)

    claims.close()


def test_the_folder_unless_another_is_named_is_everybody_s_and_nobody_s():
    mode = default_folder().stat().st_mode

    assert stat.S_ISDIR(mode)
    assert mode & stat.S_ISVTX
    assert mode & stat.S_IWOTH
    assert default_folder().stat().st_uid in (0, 65534)


def test_to_look_at_the_claims_of_others_changes_nothing(
    folder: Path, stack: ExitStack, uids: tuple[int | None, int | None]
):
    first = Claimant(stack, folder, uid=uids[0], run_name="sweep")
    second = Claimant(stack, folder, uid=uids[1])
    first.ask(A.uuid, B.uuid)
    second.ask(C.uuid)
    second.kill()
    before = [(path, path.stat()) for path in files_in(folder)]
    said: list[str] = []

    claims = claims_of_others(folder, ClaimReader(tidy_up=False), said.append)

    who = f"claimed by {name_of(uids[0])} (run sweep)"
    assert claims == {A.uuid: who, B.uuid: who}
    assert said == []
    assert [path for path, _ in before] == files_in(folder)


def test_to_look_waits_for_no_lock(folder: Path, stack: ExitStack):
    Claimant(stack, folder).ask(A.uuid)
    locked(stack, folder)

    assert list(claims_of_others(folder, ClaimReader(tidy_up=False), print)) == [A.uuid]


def test_to_look_where_nobody_has_claimed_anything_yet_makes_no_folder(place: Path):
    assert claims_of_others(place / "claims", ClaimReader(tidy_up=False), print) == {}
    assert files_in(place) == []


def test_whoever_looks_is_told_of_files_that_are_not_as_they_should_be(folder: Path):
    os.mkfifo(trap_in(folder))
    said: list[str] = []

    assert claims_of_others(folder, ClaimReader(tidy_up=False), said.append) == {}
    assert len(said) == 1


def test_too_many_files_are_no_reason_to_say_that_nothing_is_claimed(folder: Path):
    for number in range(MOST_FILES + 1):
        trap_in(folder, number).touch()

    with pytest.raises(StateError, match="too many files"):
        claims_of_others(folder, ClaimReader(tidy_up=False), print)


def test_a_claim_that_somebody_removed_is_made_anew(claims: FolderClaims, folder: Path):
    asked(claims, A, B)
    before = open_fds()
    [file] = files_in(folder)
    file.unlink()

    assert claims.take(T0 + 2) == []

    assert uuids_in(folder) == [A.uuid, B.uuid]
    assert open_fds() == before


@pytest.mark.parametrize("how", ["removed", "moved away"])
def test_a_folder_that_vanishes_is_made_anew_with_all_that_we_hold(
    claims: FolderClaims, folder: Path, place: Path, how: str
):
    asked(claims, A)
    before = open_fds()
    if how == "removed":
        shutil.rmtree(folder)
    else:
        folder.rename(place / "elsewhere")

    assert isinstance(asked(claims, B, now=T0 + 0.1), ClaimGranted)

    assert uuids_in(folder) == [A.uuid, B.uuid]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert open_fds() == before


def test_where_nothing_is_held_nothing_is_made_anew(claims: FolderClaims, folder: Path):
    asked(claims, A)
    claims.release([A], T0)
    shutil.rmtree(folder)

    assert claims.take(T0 + 2) == []

    assert not folder.exists()


def test_a_folder_that_becomes_a_link_is_not_followed(
    claims: FolderClaims, folder: Path, place: Path
):
    asked(claims, A)
    (place / "precious").mkdir()
    folder.rename(place / "elsewhere")
    folder.symlink_to(place / "precious")

    assert claims.take(T0 + 2) == []
    answer = asked(claims, B, now=T0 + 3)

    assert isinstance(answer, ClaimRefused)
    assert "no folder, or a link to one; name another folder with --claims DIR" in answer.why[0][1]
    assert files_in(place / "precious") == []


def test_what_cannot_be_written_now_is_tried_again_without_haste(
    claims: FolderClaims, folder: Path, said: list[str]
):
    asked(claims, A, B)
    folder.chmod(0o777)

    claims.release([A], T0)
    assert claims.wake_at() >= T0 + 1
    folder.chmod(0o1777)
    claims.take(claims.wake_at())

    assert (uuids_in(folder), said) == ([B.uuid], [])


def test_without_room_for_a_new_claim_the_old_ones_stay_written(folder: Path, stack: ExitStack):
    other = Claimant(stack, folder)
    other.ask(A.uuid)
    [file] = files_in(folder)
    other.do(f"import resource as r\nr.setrlimit(r.RLIMIT_FSIZE, ({file.stat().st_size + 5},) * 2)")

    [refused] = other.ask(B.uuid)

    assert refused.startswith(f"GPU-b: cannot use the claims in {folder}: No space left on device;")
    assert uuids_in(folder) == [A.uuid]
    assert other.ask(A.uuid) == []


def test_without_any_room_nothing_is_claimed_and_nobody_complains(
    claims: FolderClaims, folder: Path, stack: ExitStack, said: list[str]
):
    other = Claimant(stack, folder)
    other.do("import resource as r\nr.setrlimit(r.RLIMIT_FSIZE, (0, 0))")

    assert len(other.ask(A.uuid)) == 1

    assert isinstance(asked(claims, A), ClaimGranted)
    assert said == []


def test_where_a_file_cannot_be_read_nothing_is_granted(
    claims: FolderClaims, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    trap_in(folder).touch()
    opening = os.open

    def open_nothing_there(path: Any, *arguments: Any, **options: Any) -> int:
        if path == trap_in(folder).name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opening(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_nothing_there)
    answer = asked(claims, A)

    assert isinstance(answer, ClaimRefused)
    assert "Input/output error" in answer.why[0][1]


def test_where_there_are_no_descriptors_left_nothing_is_granted(folder: Path, stack: ExitStack):
    Claimant(stack, folder).ask(A.uuid)
    other = Claimant(stack, folder)
    used = other.do("import os\nresult = max(map(int, os.listdir('/proc/self/fd')))")

    for more in range(4):
        other.do(f"import resource as r\nr.setrlimit(r.RLIMIT_NOFILE, ({used + more}, 4096))")
        assert len(other.ask(A.uuid)) == 1


def test_a_folder_in_which_nothing_can_be_locked_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Such as one on a network."""

    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.raises(StateError, match="Bad file descriptor"):
        open_claims(folder, "ours", [])
