"""PID 1 of a pretend host: buries the dead, starts an sshd for whoever connects to port 22, and
goes down, and everything on the host with it, when whoever booted it is gone.

    python -I -S init.py SSHD...    says `up` when it listens
"""

import os
import select
import signal
import socket
import sys

SSH_PORT = 22


def main(sshd: list[str]) -> None:
    signal.signal(signal.SIGCHLD, bury)
    listening = socket.create_server(("", SSH_PORT), backlog=64)
    os.write(1, b"up\n")
    waiting = select.poll()
    waiting.register(0, select.POLLIN)
    waiting.register(listening, select.POLLIN)
    while True:
        for fd, _ in waiting.poll():
            if fd == 0:
                return
            connection, _ = listening.accept()
            with connection:
                as_stdin = (os.POSIX_SPAWN_DUP2, connection.fileno(), 0)
                os.posix_spawn(sshd[0], sshd, os.environ, file_actions=[as_stdin])


def bury(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
