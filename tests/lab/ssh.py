"""A pretend OpenSSH, both ends: `ssh [OPTIONS] [USER@]HOST COMMAND`, over a real connection.

As with the real one: the command is run by `sh -c` in the home, in a session and a clean
environment of its own; its status is ours, 255 is our own failure; a session lasts until the
command's output is closed; a command whose client is gone goes on; one on a link that is cut hangs.
Otherwise than with the real one: nobody is asked who he is, and a host that does not answer is
given up after a second.

    python -I -S ssh.py ARGUMENTS    the client; appends its arguments to $LAB_SSH_LOG
    python -I -S ssh.py --serve      one session, stdin is the connection
"""

import getopt
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO

PORT = 22
PATIENCE_SECONDS = 1.0
FAILED = 255
OPTIONS = "1246ab:c:e:fgi:kl:m:no:p:qstvxAB:CD:E:F:GI:J:KL:MNO:PQ:R:S:TVw:W:XYy"

HEADER, IN, IN_ENDS, OUT, ERR, EXIT = b"H", b"i", b"I", b"o", b"e", b"x"
_FRAME = struct.Struct("!cI")
_CHUNK = 65536


class Link:
    """Frames over a connection; senders may be threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._incoming = connection.makefile("rb")
        self._lock = threading.Lock()

    def send(self, kind: bytes, data: bytes = b"") -> None:
        with self._lock:
            self._connection.sendall(_FRAME.pack(kind, len(data)) + data)

    def receive(self) -> tuple[bytes, bytes] | None:
        """None: the other end is gone."""
        head = self._incoming.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return None
        kind, length = _FRAME.unpack(head)
        data = self._incoming.read(length)
        return (kind, data) if len(data) == length else None


# The client.


def ask(arguments: Sequence[str]) -> int:
    record(arguments)
    try:
        options, host, command = understand(arguments)
    except getopt.GetoptError as error:
        return fail(f"{error}")
    settings = dict(o.replace(" ", "=", 1).split("=", 1) for f, o in options if f == "-o")
    host = host.removeprefix("ssh://").rpartition("@")[2].partition(":")[0]
    if not host or not command:
        return fail("usage: ssh [options] host command; there is no terminal to pretend")
    try:
        connection = connect(host, float(settings.get("ConnectTimeout", PATIENCE_SECONDS)))
    except socket.gaierror as error:
        return fail(f"Could not resolve hostname {host.lower()}: {error.strerror}")
    except OSError as error:
        why = "Connection timed out" if isinstance(error, TimeoutError) else error.strerror
        return fail(f"connect to host {host} port {PORT}: {why}")
    give_up_as_told(connection, settings)
    return converse(Link(connection), host, command, silent=("-n", "") in options)


def record(arguments: Sequence[str]) -> None:
    log = os.environ.get("LAB_SSH_LOG")
    if log is None:
        return
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, json.dumps(list(arguments)).encode() + b"\n")
    os.close(fd)


def understand(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], str, str]:
    """Options, host and command; options may follow the host too."""
    options, rest = getopt.getopt(list(arguments), OPTIONS)
    if not rest:
        return options, "", ""
    more, command = getopt.getopt(rest[1:], OPTIONS)
    return options + more, rest[0], " ".join(command)


def connect(host: str, patience_seconds: float) -> socket.socket:
    connection = socket.create_connection((host, PORT), min(patience_seconds, PATIENCE_SECONDS))
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def give_up_as_told(connection: socket.socket, settings: dict[str, str]) -> None:
    """What the options about the server's being alive ask for, left to TCP."""
    interval = int(settings.get("ServerAliveInterval", 0))
    if interval == 0:
        return
    times = int(settings.get("ServerAliveCountMax", 3))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, times)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, interval * times * 1000)


def converse(link: Link, host: str, command: str, *, silent: bool) -> int:
    try:
        link.send(HEADER, command.encode("utf-8", "surrogateescape"))
        threading.Thread(target=send_stdin, args=(link, silent), daemon=True).start()
        while (frame := link.receive()) is not None:
            kind, data = frame
            if kind == EXIT:
                return int(data)
            write_all(1 if kind == OUT else 2, data)
    except TimeoutError:
        return fail(f"Timeout, server {host} not responding.", by="")
    except OSError as error:
        return fail(f"client_loop: {error.strerror}", by="")
    return fail(f"Connection to {host} closed by remote host.", by="")


def send_stdin(link: Link, silent: bool) -> None:
    try:
        while not silent and (data := os.read(0, _CHUNK)):
            link.send(IN, data)
        link.send(IN_ENDS)
    except OSError:  # whoever receives knows why
        return


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def fail(text: str, by: str = "ssh: ") -> int:
    os.write(2, f"{by}{text}\r\n".encode())
    return FAILED


# The server.


def serve() -> int:
    connection = socket.socket(fileno=os.dup(0))
    link = Link(connection)
    wanted = link.receive()
    if wanted is None:
        return FAILED
    command = subprocess.Popen(
        ["/bin/sh", "-c", wanted[1]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=os.environ["HOME"],
        env=os.environ | told_of(connection),
        start_new_session=True,
        bufsize=0,
    )
    assert command.stdin is not None
    in_background(receive_stdin, link, command.stdin)
    carriers = [
        in_background(carry, link, kind, stream)
        for kind, stream in ((OUT, command.stdout), (ERR, command.stderr))
    ]
    for carrier in carriers:
        carrier.join()
    status = command.wait()
    link.send(EXIT, str(status if status >= 0 else FAILED).encode())
    return 0


def told_of(connection: socket.socket) -> dict[str, str]:
    (client, client_port), (server, port) = connection.getpeername(), connection.getsockname()
    return {
        "SSH_CLIENT": f"{client} {client_port} {port}",
        "SSH_CONNECTION": f"{client} {client_port} {server} {port}",
    }


def in_background(function: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def receive_stdin(link: Link, stdin: BinaryIO) -> None:
    try:
        while (frame := link.receive()) is not None:
            kind, data = frame
            if kind == IN_ENDS:
                stdin.close()
            else:
                feed(stdin, data)
    except OSError:  # a connection that was reset
        pass
    os._exit(FAILED)  # the client is gone: its command finds its streams closed


def feed(stdin: BinaryIO, data: bytes) -> None:
    try:
        write_all(stdin.fileno(), data)
    except BrokenPipeError:  # the command reads no more
        return


def carry(link: Link, kind: bytes, stream: BinaryIO) -> None:
    while data := os.read(stream.fileno(), _CHUNK):
        link.send(kind, data)


if __name__ == "__main__":
    os._exit(serve() if sys.argv[1:] == ["--serve"] else ask(sys.argv[1:]))
