"""What writers write, and where: all of it follows from a seed. No I/O.

A file is one or more segments, each of which says in its first line whose it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

MIB = 1024 * 1024
LARGEST_BYTES = 24 * MIB
SAFE = ("d0", "d1", "d2", "d3")
"""Directories whose files two peers have when they are acknowledged."""

THROUGH = "through"
"""A directory whose files the under-store has by then."""

DIRECTORIES = (*SAFE, THROUGH)
SLOTS = 12
"""Names of each writer."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of bytes that one version has added to a file."""

    version: int
    size_bytes: int


def slot(writer: int, number: int) -> str:
    """Return a path that this writer alone writes."""
    directory = DIRECTORIES[(writer + number) % len(DIRECTORIES)]
    return f"{directory}/w{writer}-{number}"


def temporary(writer: int, version: int, target: str) -> str:
    """Return a path that is written once, and renamed."""
    return f"{target.partition('/')[0]}/.w{writer}-tmp-{version}"


def size(dice: Random, *, most_bytes: int = LARGEST_BYTES) -> int:
    """Draw a size: as many between 1 and 2 KiB as between 1 and 2 MiB."""
    return max(1, int(most_bytes ** dice.random()))


def segment_bytes(seed: int, writer: int, segment: Segment) -> bytes:
    """Return the bytes of a segment: a line that names it, and noise."""
    head = f"mesh-chaos seed={seed} writer={writer} version={segment.version}\n".encode()
    noise = Random(head).randbytes(max(0, segment.size_bytes - len(head)))
    return (head + noise)[: segment.size_bytes]


def file_bytes(seed: int, writer: int, segments: Sequence[Segment]) -> bytes:
    return b"".join(segment_bytes(seed, writer, segment) for segment in segments)


def digest(parts: Iterable[bytes]) -> str:
    """Return what stands for the content of a whole file."""
    hashed = blake2b(digest_size=16)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()
