"""Sets of blocks as integers: bit i stands for block i."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random


def mask_of(indexes: Iterable[int]) -> int:
    """Return the set of these blocks."""
    mask = 0
    for index in indexes:
        mask |= 1 << index
    return mask


def span(start: int, stop: int) -> int:
    """Return the set of the blocks from *start* on, before *stop*."""
    return ((1 << (stop - start)) - 1) << start if stop > start else 0


def indexes_of(mask: int) -> Iterator[int]:
    """Yield the blocks of a set, in order."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def lowest(mask: int) -> int:
    """Return the first block of a set that is not empty."""
    return (mask & -mask).bit_length() - 1


def first(mask: int, count: int) -> int:
    """Return the first *count* blocks of a set."""
    if mask.bit_count() <= count:
        return mask
    # Blocks that are missing lie together: look at a few times as many first.
    width = 4 * count
    while True:
        base = lowest(mask)
        part = (mask >> base) & ((1 << width) - 1)
        if part.bit_count() >= count:
            break
        width *= 4
    low, high = count - 1, width
    while high - low > 1:  # so that the blocks below 1 << high are enough
        middle = (low + high) // 2
        if (part & ((1 << middle) - 1)).bit_count() >= count:
            high = middle
        else:
            low = middle
    return (part & ((1 << high) - 1)) << base


def any_of(mask: int, random: Random) -> int:
    """Return one block of a set that is not empty, each as likely as any other."""
    skip = int(random.random() * mask.bit_count())
    base = 0
    while True:
        # Halve what is left: sets are a window wide, or a file.
        width = mask.bit_length()
        if width <= 16:
            break
        half = width // 2
        low = mask & ((1 << half) - 1)
        count = low.bit_count()
        if skip < count:
            mask = low
        else:
            mask >>= half
            base += half
            skip -= count
    while skip:
        mask &= mask - 1
        skip -= 1
    return base + lowest(mask)


def to_bytes(mask: int, count: int) -> bytes:
    """Return a set of blocks below *count*: bit i % 8 of byte i / 8 stands for block i."""
    return mask.to_bytes((count + 7) // 8, "little")


def of_bytes(data: bytes, count: int) -> int:
    """Return the set that `to_bytes` made; what is not below *count* is left out."""
    return int.from_bytes(data, "little") & ((1 << count) - 1)
