"""An order at random of the numbers below any count, without ever holding them all.

The order is a function of the count and the seed alone, on every platform and for ever.
"""

import hashlib
from collections.abc import Iterator
from itertools import count as counting

# Up to here every order is as likely as any other, for 64Ki numbers at most that are remembered.
_SMALL = 1 << 16
_ROUNDS = 6
_DIGEST_BYTES = 64


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Every number from 0 to count - 1, once; however many are taken, they are the same first."""
    if count <= _SMALL:
        return _drawn(count, seed)
    return _scattered(count, seed)


def _drawn(count: int, seed: int) -> Iterator[int]:
    """Fisher and Yates's shuffle, of which only what is out of its place is kept."""
    displaced: dict[int, int] = {}
    for position, number in zip(range(count), _random_numbers(seed), strict=False):
        other = position + number % (count - position)
        own = displaced.pop(position, position)
        if other == position:
            yield own
        else:
            yield displaced.get(other, other)
            displaced[other] = own


def _scattered(count: int, seed: int) -> Iterator[int]:
    """A bijection of k bits, 2^k the next power of two, that is walked over what is too large.

    Each round multiplies by an odd number and folds the upper half of the bits into the lower one:
    both can be undone. As in A. Kensler, "Correlated Multi-Jittered Sampling", Pixar 13-01.
    """
    bits = (count - 1).bit_length()
    mask, half = (1 << bits) - 1, (bits + 1) // 2
    numbers = _random_numbers(seed)
    rounds = [(next(numbers) & mask | 1, next(numbers) & mask) for _ in range(_ROUNDS)]
    for position in range(mask + 1):
        number = position
        for factor, offset in rounds:
            number = (number * factor + offset) & mask
            number ^= number >> half
        if number < count:
            yield number


def _random_numbers(seed: int) -> Iterator[int]:
    for number in counting():
        text = f"smartsched {seed} {number}".encode()
        yield int.from_bytes(hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest(), "big")
