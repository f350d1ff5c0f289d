"""Sets of blocks of one version as ints: bit i stands for block i. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mesh.blocks import FileVersion


def whole(file: FileVersion) -> int:
    """Return the mask of all blocks."""
    return (1 << file.block_count) - 1


def size_of(file: FileVersion, mask: int) -> int:
    """Return how many bytes the blocks of *mask* have."""
    last = file.block_count - 1
    size_bytes = mask.bit_count() * file.block_bytes
    if mask >> max(last, 0) & 1:
        size_bytes -= file.block_bytes - file.length_bytes(last)
    return size_bytes


def at_least(masks: Iterable[int], count: int) -> int:
    """Return the blocks that are in at least *count* of the masks."""
    levels = [0] * count  # levels[k]: in more than k of those seen so far
    for mask in masks:
        for level in range(count - 1, 0, -1):
            levels[level] |= levels[level - 1] & mask
        levels[0] |= mask
    return levels[-1]


def indexes(mask: int) -> Iterator[int]:
    """Yield the blocks of a mask in order."""
    for at, byte in enumerate(mask.to_bytes(-(-mask.bit_length() // 8), "little")):
        while byte:
            low = byte & -byte
            yield at * 8 + low.bit_length() - 1
            byte ^= low


def mask_of(found: Iterable[int]) -> int:
    """Return the mask of these blocks."""
    bits = bytearray()
    for index in found:
        if index // 8 >= len(bits):
            bits.extend(bytes(index // 8 + 1 - len(bits)))
        bits[index // 8] |= 1 << index % 8
    return int.from_bytes(bits, "little")
