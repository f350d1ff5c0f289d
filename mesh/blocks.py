"""What a block is: the words every other room uses.

A file version is cut into blocks of one fixed size, and a block into pieces of
at most 1 MiB. Blocks are immutable, so a copy found anywhere (this node, a
neighbor, the under-store) is as good as any other, and no read ever asks "is
this still fresh?": only the catalog does, when it turns a path into a version.

    version  7d3f…  |  block 0  |  block 1  |  block 2 (short)  |
                    0         4 MiB       8 MiB              9.5 MiB
                    | p | p | p | p |         pieces: what lands, what has a CRC

This module is pure: it does no I/O and imports nothing from mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

PIECE_BYTES = MIB
"""What lands, travels and is checked as one: 1 MiB messages cost gRPC the fewest
CPU-seconds for each GB, and it is the largest request FUSE makes by default."""

BLOCK_BYTES_MAX = 64 * MIB

INLINE_BYTES = 64 * KIB
"""Versions up to this size live in LMDB, so that small files need no inodes."""


@dataclass(frozen=True, slots=True, order=True)
class BlockKey:
    """The name of one block, equal on every node."""

    version: bytes
    """16 bytes; see `FileVersion.id`."""

    index: int
    """Position in the file, counted in blocks from 0."""

    def __str__(self) -> str:
        return f"{self.version.hex()}/{self.index}"


@dataclass(frozen=True, slots=True)
class Attributes:
    """What an under-store says of one path."""

    is_directory: bool
    size_bytes: int
    mtime_ns: int

    tag: str = ""
    """ETag, or the mtime in ns where there is none; "" for a directory, and in a
    listing of an under-store that names no tags there. Two contents of one path
    never have the same size and tag, as far as the under-store tells. What was
    written through the mesh has a tag of the mesh's own (`written_tag`)."""

    mode: int = 0
    """Permission bits where the under-store has such; 0 where it has none."""


DIRECTORY = Attributes(is_directory=True, size_bytes=0, mtime_ns=0, mode=0o555)
"""One that exists only because a mount lies below it."""


WRITTEN = "mesh-"
"""Begins the tag of what was written through the mesh: "mesh-TOKEN@PEER,PEER" while those
peers alone have it, "mesh-TOKEN=TAG" once the under-store has it and calls it TAG. The token
names the content, so a path that is renamed, or whose content the under-store takes over,
keeps its version and every cached block of it."""


def written_tag(token: str, under_store_tag: str) -> str:
    """Return the tag of a content that was written under that token."""
    return f"{WRITTEN}{token}={under_store_tag}"


def staged_tag(token: str, holders: Sequence[str]) -> str:
    """Return the tag of a content that only these peers have yet."""
    return f"{WRITTEN}{token}@{','.join(holders)}"


def identity_of(tag: str) -> str:
    """Return the part of a tag that tells one content from another."""
    if not tag.startswith(WRITTEN):
        return tag
    return tag.partition("=")[0].partition("@")[0]


def token_of(tag: str) -> str:
    """Return the token of what was written through the mesh; "" of anything else."""
    return identity_of(tag).removeprefix(WRITTEN) if tag.startswith(WRITTEN) else ""


def holders_of(tag: str) -> list[str]:
    """Return the peers that alone have the content of that tag; none once it is persisted."""
    if not tag.startswith(WRITTEN) or "=" in tag:
        return []
    return [name for name in tag.partition("@")[2].split(",") if name]


def is_staged(tag: str) -> bool:
    """Whether the under-store does not have the content of that tag yet."""
    return tag.startswith(WRITTEN) and "=" not in tag


def under_store_tag(tag: str) -> str:
    """Return what the under-store calls the content of that tag; "" if it has none of it."""
    return tag.partition("=")[2] if tag.startswith(WRITTEN) else tag


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name in a directory."""

    name: str
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class FileVersion:
    """One immutable content of one file: all that is needed to read it anywhere."""

    source: str
    """URL of the under-store as the mount table names it, without secrets."""

    path: str
    """Path below the source, without a leading slash."""

    size_bytes: int

    tag: str
    """As in `Attributes`."""

    block_bytes: int
    """Size of every block but the last."""

    id: bytes
    """16 bytes: digest of all of the above, so that a peer asked for a block can
    check that it is asked for what the name says (`version_of`)."""

    @property
    def block_count(self) -> int:
        return -(-self.size_bytes // self.block_bytes)

    @property
    def is_inline(self) -> bool:
        """Whether the store keeps it in LMDB instead of an extent file."""
        return self.size_bytes <= INLINE_BYTES

    def key(self, index: int) -> BlockKey:
        return BlockKey(self.id, index)

    def has(self, index: int) -> bool:
        """Whether there is a block of that index, of a size that anybody may ask for."""
        return 0 <= index < self.block_count and self.block_bytes <= BLOCK_BYTES_MAX

    def length_bytes(self, index: int) -> int:
        """Return the size of block *index*; only the last one can be short."""
        return min(self.block_bytes, self.size_bytes - index * self.block_bytes)


def version_of(
    *, source: str, path: str, size_bytes: int, tag: str, block_bytes: int
) -> FileVersion:
    """Name the content that *path* has while it has this size and tag.

    What was written through the mesh is named by its token alone: it is the same content
    under another path, and once the under-store has it.
    """
    is_written = tag.startswith(WRITTEN)
    named = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (
            source.encode("utf-8", "surrogateescape"),
            b"" if is_written else path.encode("utf-8", "surrogateescape"),
            b"%d" % size_bytes,
            identity_of(tag).encode("utf-8", "surrogateescape"),
            b"%d" % block_bytes,
        )
    )
    digest = blake2b(named, digest_size=16)
    return FileVersion(source, path, size_bytes, tag, block_bytes, digest.digest())


@dataclass(frozen=True, slots=True)
class Span:
    """A run of bytes inside one block."""

    block_index: int
    start_bytes: int
    size_bytes: int

    @property
    def stop_bytes(self) -> int:
        return self.start_bytes + self.size_bytes


def spans(offset_bytes: int, size_bytes: int, *, block_bytes: int) -> Iterator[Span]:
    """Cut the byte range of a read into spans, in order, one for each block."""
    end_bytes = offset_bytes + size_bytes
    while offset_bytes < end_bytes:
        index, start_bytes = divmod(offset_bytes, block_bytes)
        taken_bytes = min(block_bytes - start_bytes, end_bytes - offset_bytes)
        yield Span(index, start_bytes, taken_bytes)
        offset_bytes += taken_bytes


def piece_count(length_bytes: int) -> int:
    """Return the number of pieces of a block of this length."""
    return -(-length_bytes // PIECE_BYTES)


def pieces_of(span: Span) -> range:
    """Return the numbers of the pieces that a span touches."""
    return range(span.start_bytes // PIECE_BYTES, piece_count(span.stop_bytes))


def piece_range(piece: int, *, length_bytes: int) -> tuple[int, int]:
    """Return where *piece* starts and how long it is, in a block of this length."""
    start_bytes = piece * PIECE_BYTES
    return start_bytes, min(PIECE_BYTES, length_bytes - start_bytes)


def piece_order(count: int, *, first: int) -> Iterator[int]:
    """Yield all *count* pieces, the wanted one first, the rest behind it, wrapping round."""
    for step in range(count):
        yield (first + step) % count
