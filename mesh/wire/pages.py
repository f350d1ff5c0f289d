"""Pages of listings, packed: who passes one on need not unpack it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mesh.blocks import Attributes, DirectoryEntry

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[bytes, bool, int, int, str, int]]).decode

EMPTY = _encode([])


def packed(entries: Iterable[tuple[str, Attributes]]) -> bytes:
    """Return a page of these names and attributes."""
    return _encode(
        [
            (
                name.encode("utf-8", "surrogateescape"),
                about.is_directory,
                about.size_bytes,
                about.mtime_ns,
                about.tag,
                about.mode,
            )
            for name, about in entries
        ]
    )


def unpacked(page: bytes) -> list[tuple[str, Attributes]]:
    """Return what a page has; ValueError when it is none."""
    return [
        (name.decode("utf-8", "surrogateescape"), Attributes(is_directory, size, mtime, tag, mode))
        for name, is_directory, size, mtime, tag, mode in _decode(page)
    ]


def entries_of(page: bytes) -> tuple[DirectoryEntry, ...]:
    """Return a page as entries of a directory."""
    return tuple(DirectoryEntry(name, about) for name, about in unpacked(page))
