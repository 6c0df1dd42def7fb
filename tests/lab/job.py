"""A job that is accounted for: the fake training job, run so that no second copy goes unnoticed.

    python -I -S job.py --account FOLDER --id 7 [OPTIONS OF train.py]

It holds a lock for as long as its process lives, and becomes train.py. What both write to
FOLDER/log has one form, `WORD JOB.ATTEMPT@HOST UUIDS PID MONOTONIC`; words of its own:

    begin     it runs; `start` of train.py follows when it has its GPUs
    double    another copy of it lives: nothing is run, the exit status is 94

Whatever ends the process, its host's loss of power too, frees the lock at once.
"""

import fcntl
import os
import sys
import time

DOUBLE = 94
TRAIN = os.path.join(os.path.dirname(__file__), os.pardir, "stub_nvml", "train.py")


def main(arguments: list[str]) -> None:
    assert arguments[0] == "--account"
    assert arguments[2] == "--id"
    folder, job, options = arguments[1], arguments[3], arguments[4:]
    who = f"{job}.{os.environ.get('SMARTSCHED_ATTEMPT', '1')}@{os.uname().nodename}"
    log = f"{folder}/log"
    living = os.open(f"{folder}/living-{job}", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(living, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        write(log, "double", who)
        sys.exit(DOUBLE)
    os.set_inheritable(living, True)
    write(log, "begin", who)
    train = [sys.executable, "-I", "-S", TRAIN, "--id", who, "--log", log, *options]
    os.execv(train[0], train)


def write(log: str, word: str, who: str) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(fd, f"{word} {who} - {os.getpid()} {time.monotonic():.6f}\n".encode())
    os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1:])
