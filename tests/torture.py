"""Runs the tests again and again, each time in another order, while other processes keep the
machine busy: `make torture`. A test that fails now and then fails here."""

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_BREATH_SECONDS = 0.05


def main(words: Sequence[str]) -> int:
    args = _parser().parse_args(words)
    failed: list[int] = []
    for number in range(1, args.times + 1):
        seed = random.randrange(2**32)
        print(f"--- {number} of {args.times}: --randomly-seed={seed}", flush=True)
        with busy(args.load):
            done = subprocess.run([*args.command, f"--randomly-seed={seed}"], check=False)
        if done.returncode != 0:
            failed.append(seed)
    said = f"{len(failed)} of {args.times} rounds failed"
    print(f"{said}, with seeds {failed}" if failed else said)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--load", type=int, default=4, help="busy processes beside the tests")
    parser.add_argument("command", nargs="+", help="pytest, after --")
    return parser


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute, write and wait by turns; they end with us."""
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_be_busy, args=(os.getpid(),), daemon=True) for _ in range(count)
    ]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def _be_busy(parent: int) -> None:
    pick = random.Random(os.getpid())
    with tempfile.TemporaryFile() as file:
        while os.getppid() == parent:
            until = time.monotonic() + pick.uniform(0.1, 2.0)
            while time.monotonic() < until:
                sum(range(100_000))
            file.seek(0)
            file.write(bytes(pick.randrange(1 << 22)))
            os.fsync(file.fileno())
            time.sleep(_BREATH_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
