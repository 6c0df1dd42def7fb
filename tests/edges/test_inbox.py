"""Requests to a run, as files: from whoever asks to the dispatcher and back."""

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.requests import VERSION, Answer, Ask, Pause, Unusable
from smartsched.edges.clock import SteadyClock
from smartsched.edges.inbox import FOLDER, FileInbox, Sender, has_requests
from smartsched.edges.runs import open_own_file
from smartsched.edges.waiter import Waiter
from tests.builders import T0

PAUSE = {"smartsched_request": VERSION, "verb": "pause"}
STATUS = {"smartsched_request": VERSION, "verb": "status"}
DONE = Answer(done=True, words="paused", facts={"jobs": [1]})


class Desk:
    """A dispatcher's end that a test looks into."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / FOLDER
        self.clock = SteadyClock()
        self.waiter = Waiter(self.clock)
        self.inboxes: list[FileInbox] = []

    def open(self, *known: str) -> FileInbox:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        inbox = FileInbox(self.folder, open_own_file, self.waiter, known)
        self.inboxes.append(inbox)
        return inbox

    def sender(self) -> Sender:
        return Sender(self.run, open_own_file)

    def close(self) -> None:
        for inbox in self.inboxes:
            inbox.close()
        self.waiter.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def old(path: Path, seconds: float = 10 * 86_400.0) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_request_is_taken_once_and_its_answer_comes_back(desk: Desk):
    inbox, sender = desk.open(), desk.sender()

    number = sender.send(PAUSE)
    taken = [*inbox.take(T0), *inbox.take(T0)]
    inbox.answer(number, DONE)

    assert taken == [Pause(number)]
    assert sender.wait_for(number, lambda: True, 5.0) == DONE
    assert not has_requests(desk.run)
    assert inbox.take(T0) == []


def test_requests_are_taken_in_the_order_in_which_they_were_made(desk: Desk):
    inbox, sender = desk.open(), desk.sender()

    numbers = [sender.send(PAUSE) for _ in range(20)]

    assert [request.id for request in inbox.take(T0)] == numbers


def test_the_dispatcher_wakes_up_at_once_when_somebody_asks(desk: Desk):
    inbox, sender = desk.open(), desk.sender()
    inbox.take(T0)
    threading.Timer(0.05, lambda: sender.send(PAUSE)).start()

    began = time.monotonic()
    desk.waiter.wait(desk.clock.now() + 30)
    while not inbox.take(T0) and time.monotonic() < began + 30:
        desk.waiter.wait(desk.clock.now() + 30)

    assert time.monotonic() - began < 5


def test_a_request_of_another_host_is_found_though_no_bell_rings(desk: Desk):
    inbox = desk.open()
    inbox.take(T0)

    (desk.folder / "7.request").write_text(json.dumps(PAUSE))

    assert inbox.take(T0) == [Pause("7")]


def test_where_no_fifo_can_be_made_requests_are_found_all_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_args: object, **_more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mkfifo", refuse)
    inbox, sender = desk.open(), desk.sender()

    number = sender.send(PAUSE)

    assert inbox.take(T0) == [Pause(number)]


def test_a_request_that_was_made_before_the_dispatcher_lived_is_done_by_it(desk: Desk):
    number = desk.sender().send(PAUSE)

    assert has_requests(desk.run)
    assert desk.open().take(T0) == [Pause(number)]


def test_what_is_on_record_is_answered_and_not_done_again(desk: Desk):
    sender = desk.sender()
    number = sender.send(PAUSE)

    assert desk.open(number).take(T0) == []

    answer = sender.wait_for(number, lambda: True, 5.0)
    assert answer is not None
    assert answer.done
    assert not has_requests(desk.run)


def test_a_question_whose_asker_is_gone_is_not_answered(desk: Desk):
    desk.sender().send(STATUS)

    assert desk.open().take(T0) == []
    assert not has_requests(desk.run)


def test_a_question_that_is_asked_now_is_taken(desk: Desk):
    inbox, sender = desk.open(), desk.sender()

    number = sender.send(STATUS)

    assert inbox.take(T0) == [Ask(number)]


def test_nobody_waits_for_a_dispatcher_that_has_died(desk: Desk):
    sender = desk.sender()
    number = sender.send(PAUSE)

    assert sender.wait_for(number, lambda: False, 60.0) is None
    assert has_requests(desk.run)
    assert sender.take_back(number)
    assert not has_requests(desk.run)


def test_patience_ends(desk: Desk):
    sender = desk.sender()

    assert sender.wait_for(sender.send(PAUSE), lambda: True, 0.05) is None


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_hard_link(path: Path) -> None:
    (path.parent / "other").write_text(json.dumps(PAUSE))
    os.link(path.parent / "other", path)


@pytest.mark.parametrize("make", [make_link, make_fifo, make_folder, make_hard_link])
def test_what_is_no_plain_file_is_refused(desk: Desk, make: Callable[[Path], None]):
    inbox = desk.open()
    make(desk.folder / "7.request")

    [request] = inbox.take(T0)

    assert isinstance(request, Unusable)


def test_what_is_no_request_is_told_so(desk: Desk):
    inbox = desk.open()
    (desk.folder / "7.request").write_bytes(b"\xff{")

    [request] = inbox.take(T0)

    assert isinstance(request, Unusable)


def test_only_the_user_may_read_requests_and_answers(desk: Desk):
    inbox, sender = desk.open(), desk.sender()
    number = sender.send(PAUSE)
    request = desk.folder / f"{number}.request"
    mode_of_request = stat.S_IMODE(request.stat().st_mode)
    inbox.take(T0)

    inbox.answer(number, DONE)

    answer = desk.folder / f"{number}.answer"
    assert mode_of_request == stat.S_IMODE(answer.stat().st_mode) == 0o600


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / FOLDER).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match=r"."):
        Sender(tmp_path, open_own_file)


def test_answers_that_nobody_fetched_are_forgotten_one_day(desk: Desk):
    desk.folder.mkdir(mode=0o700)
    for name in ("1.answer", ".2.answer.abc", "3.request"):
        (desk.folder / name).write_text(json.dumps(PAUSE))
        old(desk.folder / name)
    (desk.folder / "4.answer").write_text("{}")

    desk.open()

    assert {"3.request", "4.answer"} == {path.name for path in desk.folder.iterdir()} - {"bell"}


def test_an_answer_that_finds_no_room_ends_the_request_all_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    inbox, sender = desk.open(), desk.sender()
    number = sender.send(PAUSE)
    inbox.take(T0)

    def full(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        inbox.answer(number, DONE)

    assert not has_requests(desk.run)
    assert inbox.take(T0) == []


@given(st.lists(st.binary(max_size=60) | st.just(json.dumps(PAUSE).encode()), max_size=3))
def test_whatever_lies_there_is_taken_once_and_can_be_answered(desk: Desk, files: list[bytes]):
    inbox = desk.open()
    for number, data in enumerate(files):
        (desk.folder / f"{number}.request").write_bytes(data)

    taken = inbox.take(T0)
    for request in taken:
        inbox.answer(request.id, DONE)

    assert [request.id for request in taken] == [str(number) for number in range(len(files))]
    assert inbox.take(T0) == []
    assert not has_requests(desk.run)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def a_huge_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.parametrize("make", [a_pipe, a_link, a_huge_file, Path.mkdir])
def test_what_is_no_file_of_requests_is_told_and_not_waited_for(
    desk: Desk, make: Callable[[Path], None]
):
    inbox = desk.open()
    make(desk.folder / "1.request")

    [request] = inbox.take(T0)

    assert isinstance(request, Unusable)
