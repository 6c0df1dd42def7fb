"""A dispatcher and its agents in one process: who is here, and what is said."""

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from smartsched.core.credentials import Credentials
from smartsched.edges.engine.hub import Came, Hub, Refused, Said, Went
from smartsched.edges.engine.link import Connected, Disconnected, Link, Message, NotReached
from smartsched.edges.waiter import Waiter
from smartsched.errors import StateError, UsageError
from tests.edges.engine.ends import RUN
from tests.waiting import wait_until

MIB = 1 << 20


class Ear:
    """Everything that an end has reported."""

    def __init__(self, end: Hub | Link, waiter: Waiter) -> None:
        self._end, self._waiter = end, waiter
        self.heard: list[object] = []

    def has(self, *kinds: type) -> bool:
        self._waiter.wait(0)
        self.heard += self._end.take()
        return [type(news) for news in self.heard if type(news) in kinds][: len(kinds)] == [*kinds]

    def of(self, kind: type) -> list[object]:
        self._waiter.wait(0)
        self.heard += self._end.take()
        return [news for news in self.heard if isinstance(news, kind)]

    def connection(self) -> str:
        """The last that has come."""
        last = self.of(Came)[-1]
        assert isinstance(last, Came)
        return last.connection


@pytest.fixture
def hub(waiter: Waiter, dispatchers: Credentials) -> Iterator[Hub]:
    hub = Hub(waiter, dispatchers, run_id=RUN)
    yield hub
    hub.close()


@pytest.fixture
def link_to(waiter: Waiter, agents: Credentials) -> Iterator[Callable[..., Link]]:
    links: list[Link] = []

    def link_to(hub: Hub, **others: object) -> Link:
        facts = {"name": "gpu1", "hello": b"hello", "addresses": [f"localhost:{hub.port}"]}
        links.append(Link(waiter, agents, run_id=RUN, **{**facts, **others}))  # type: ignore[arg-type]
        return links[-1]

    yield link_to
    for link in links:
        link.close()


def test_an_agent_comes_with_its_hello(hub: Hub, link_to: Callable[..., Link], waiter: Waiter):
    agent = Ear(link_to(hub, hello=b"\x00\xff here I am"), waiter)
    dispatcher = Ear(hub, waiter)

    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))

    (came,) = dispatcher.of(Came)
    assert isinstance(came, Came)
    assert (came.host, came.hello) == ("gpu1", b"\x00\xff here I am")
    assert came.peer.startswith(("127.0.0.1:", "[::1]:"))
    assert agent.heard == [Connected(f"localhost:{hub.port}")]


def test_messages_arrive_in_order_both_ways(hub: Hub, link_to: Callable[..., Link], waiter: Waiter):
    link = link_to(hub)
    agent, dispatcher = Ear(link, waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))
    began = time.monotonic()

    for number in range(500):
        hub.send(dispatcher.connection(), b"%d" % number)
        link.send(b"%d" % number)

    wait_until(lambda: len(dispatcher.of(Said)) == 500 and len(agent.of(Message)) == 500)
    said, heard = dispatcher.of(Said), agent.of(Message)
    assert [news.message for news in said] == [b"%d" % n for n in range(500)]  # type: ignore[attr-defined]
    assert [news.message for news in heard] == [b"%d" % n for n in range(500)]  # type: ignore[attr-defined]
    assert all(began <= news.at_monotonic <= time.monotonic() for news in said)  # type: ignore[attr-defined]


def test_a_message_may_be_long_and_may_be_empty(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    link = link_to(hub)
    agent, dispatcher = Ear(link, waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))
    messages = [b"", os.urandom(30 * MIB), os.urandom(40 * MIB), b""]

    for message in messages:
        hub.send(dispatcher.connection(), message)
        link.send(message)

    wait_until(lambda: len(dispatcher.of(Said)) == 4 and len(agent.of(Message)) == 4)
    assert [news.message for news in dispatcher.of(Said)] == messages  # type: ignore[attr-defined]
    assert [news.message for news in agent.of(Message)] == messages  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="too long"):
        hub.send(dispatcher.connection(), b"x" * (64 * MIB))


def test_what_is_sent_to_nobody_is_dropped(hub: Hub, link_to: Callable[..., Link], waiter: Waiter):
    hub.send("gpu1", b"too early")
    link = link_to(hub)
    link.send(b"too early")
    agent, dispatcher = Ear(link, waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))

    hub.send("no such connection", b"to nobody")
    hub.send(dispatcher.connection(), b"to somebody")

    wait_until(lambda: agent.has(Message))
    assert [news.message for news in agent.of(Message)] == [b"to somebody"]  # type: ignore[attr-defined]
    assert not dispatcher.of(Said)


def test_an_agent_that_ends_has_gone(hub: Hub, link_to: Callable[..., Link], waiter: Waiter):
    link = link_to(hub)
    agent, dispatcher = Ear(link, waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))

    link.send(b"the last words")
    link.close()

    wait_until(lambda: dispatcher.has(Came, Said, Went))


def test_one_that_was_dropped_comes_back_with_its_newest_hello(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    link = link_to(hub)
    agent, dispatcher = Ear(link, waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))
    link.set_hello(b"here I am again")

    first = dispatcher.connection()
    hub.drop(first)

    wait_until(lambda: dispatcher.has(Came, Went, Came))
    wait_until(lambda: agent.has(Connected, Disconnected, Connected))
    assert dispatcher.of(Went) == [Went("gpu1", first, "dropped by the dispatcher")]
    assert [news.hello for news in dispatcher.of(Came)] == [b"hello", b"here I am again"]  # type: ignore[attr-defined]


def test_what_is_meant_for_one_connection_goes_over_no_other(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    link = link_to(hub)
    agent, dispatcher = Ear(link, waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))
    first = dispatcher.connection()
    hub.drop(first)
    wait_until(lambda: dispatcher.has(Came, Went, Came))

    hub.send(first, b"to the first")
    link.send(b"over the first")  # as far as whoever sends it knows
    wait_until(lambda: agent.has(Connected, Disconnected, Connected))
    hub.send(dispatcher.connection(), b"to the second")
    link.send(b"over the second")

    wait_until(lambda: agent.has(Connected, Disconnected, Connected, Message))
    wait_until(lambda: dispatcher.has(Came, Went, Came, Said))
    assert [news.message for news in agent.of(Message)] == [b"to the second"]  # type: ignore[attr-defined]
    assert [news.message for news in dispatcher.of(Said)] == [b"over the second"]  # type: ignore[attr-defined]


def test_an_agent_that_was_sent_away_is_told_why_and_another_of_its_name_may_come(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    agent, dispatcher = Ear(link_to(hub), waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))

    hub.drop(dispatcher.connection(), "you are too old", keep_out_seconds=3600)

    wait_until(lambda: agent.has(Connected, Disconnected, NotReached))
    (refused,) = agent.of(NotReached)[:1]
    assert "sent away for a while: you are too old" in refused.why  # type: ignore[attr-defined]
    other = Ear(link_to(hub), waiter)
    wait_until(lambda: dispatcher.has(Came, Went, Came) and other.has(Connected))
    assert not dispatcher.of(Refused)


def test_an_agent_that_was_sent_away_may_come_again_when_that_is_over(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    agent, dispatcher = Ear(link_to(hub), waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))

    hub.drop(dispatcher.connection(), "not now", keep_out_seconds=0.01)

    wait_until(lambda: dispatcher.has(Came, Went, Came))


def test_an_agent_that_cannot_use_what_is_said_looks_for_its_dispatcher_again(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    link = link_to(hub)
    agent, dispatcher = Ear(link, waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))

    link.drop()

    wait_until(lambda: dispatcher.has(Came, Went, Came))
    wait_until(lambda: agent.has(Connected, Disconnected, Connected))


def test_of_two_agents_of_one_name_the_later_one_counts(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    first, dispatcher = Ear(link_to(hub, hello=b"first"), waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and first.has(Connected))

    second = Ear(link_to(hub, hello=b"second"), waiter)

    wait_until(lambda: dispatcher.has(Came, Went, Came) and second.has(Connected))
    wait_until(lambda: first.has(Connected, Disconnected, NotReached))
    assert [news.hello for news in dispatcher.of(Came)] == [b"first", b"second"]  # type: ignore[attr-defined]
    (refused,) = first.of(NotReached)
    assert "another agent of the name gpu1 is here" in refused.why  # type: ignore[attr-defined]
    wait_until(lambda: dispatcher.has(Came, Went, Came, Refused))
    assert not second.of(Disconnected)


def test_it_is_found_at_one_address_of_many(hub: Hub, link_to: Callable[..., Link], waiter: Waiter):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        wrong = f"127.0.0.1:{nobody.getsockname()[1]}"

        link = link_to(hub, addresses=[wrong, "no-such-host.invalid:1", f"[::1]:{hub.port}"])
        agent = Ear(link, waiter)

        wait_until(lambda: agent.has(NotReached, NotReached, Connected))
        assert agent.heard[-1] == Connected(f"[::1]:{hub.port}")


def test_an_agent_is_told_where_its_dispatcher_is_now(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        link = link_to(hub, addresses=[f"127.0.0.1:{nobody.getsockname()[1]}"])
        agent = Ear(link, waiter)
        wait_until(lambda: agent.has(NotReached))

        link.set_addresses([f"127.0.0.1:{hub.port}"])

        wait_until(lambda: agent.has(NotReached, Connected))


@pytest.mark.parametrize("address", ["gpu1", ":80", "gpu1:0", "gpu1:70000", "gpu1:http", ""])
def test_what_is_no_address_is_refused(waiter: Waiter, agents: Credentials, address: str):
    with pytest.raises(UsageError, match="is no address of a dispatcher"):
        Link(waiter, agents, addresses=[address], name="gpu1", run_id=RUN, hello=b"")


def test_a_port_that_is_taken_is_told_in_one_line(
    hub: Hub, waiter: Waiter, dispatchers: Credentials
):
    with pytest.raises(StateError, match=f"cannot listen on port {hub.port}: Address already"):
        Hub(waiter, dispatchers, run_id=RUN, port=hub.port)


def test_an_address_that_is_not_ours_is_told_in_one_line(waiter: Waiter, dispatchers: Credentials):
    with pytest.raises(StateError, match=r"cannot listen on a port of 192\.0\.2\.1: "):
        Hub(waiter, dispatchers, run_id=RUN, listen="192.0.2.1")


def test_credentials_that_are_none_are_told_in_one_line(waiter: Waiter):
    with pytest.raises(StateError, match="credentials of this run cannot be used"):
        Hub(waiter, Credentials("", "", ""), run_id=RUN)


def test_nothing_is_left_when_both_have_ended(
    waiter: Waiter, dispatchers: Credentials, agents: Credentials
):
    threads, descriptors = threading.active_count(), psutil.Process().num_fds()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    hub = Hub(waiter, dispatchers, run_id=RUN)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= limit[0]
    address = f"127.0.0.1:{hub.port}"
    link = Link(waiter, agents, addresses=[address], name="gpu1", run_id=RUN, hello=b"")
    agent, dispatcher = Ear(link, waiter), Ear(hub, waiter)
    wait_until(lambda: dispatcher.has(Came) and agent.has(Connected))

    for _ in range(3):
        hub.drop(dispatcher.connection())
        wait_until(lambda: agent.of(Disconnected))
        agent.heard.clear()
        wait_until(lambda: agent.of(Connected))
    began = time.monotonic()
    hub.close()
    link.close()

    assert time.monotonic() - began < 1.5
    wait_until(lambda: threading.active_count() == threads)
    wait_until(lambda: psutil.Process().num_fds() == descriptors)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limit
    assert os.listdir() == []


def test_no_end_holds_back_what_it_has_to_say(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    agent = Ear(link_to(hub), waiter)
    wait_until(lambda: agent.has(Connected))

    ours = [c for c in psutil.net_connections("tcp") if c.pid == os.getpid()]
    met = [c for c in ours if c.status == psutil.CONN_ESTABLISHED]
    ports = [(c.fd, c.laddr[1], c.raddr[1]) for c in met if c.laddr and c.raddr]
    fds = [fd for fd, here, there in ports if hub.port in (here, there)]

    assert len(fds) == 2
    for fd in fds:  # what the other end has not confirmed yet is no reason to wait
        with socket.socket(fileno=os.dup(fd)) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_link_that_is_told_of_another_place_leaves_one_that_does_not_answer(
    hub: Hub, link_to: Callable[..., Link], waiter: Waiter
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = link_to(hub, addresses=[f"127.0.0.1:{silent.getsockname()[1]}"] * 20)
        with silent.accept()[0]:  # it is being tried
            agent = Ear(link, waiter)
            link.set_addresses([f"localhost:{hub.port}"])

            wait_until(lambda: agent.has(Connected))

    assert agent.of(NotReached) == []
