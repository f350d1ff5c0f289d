"""Listings of directories, kept on disk while they are being read.

A directory may have millions of entries, so a listing is never a list in memory:
pages go into an unlinked file as they come, and readers take them from there. A
listing that failed half-way fails its readers, and is not kept.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import structlog

from mesh.blocks import Attributes, DirectoryEntry
from mesh.errors import ListingGone, MeshError, Unavailable

log = structlog.get_logger()

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, Attributes]])


class Listing:
    """One listing of one directory, being made or whole."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.is_whole = False
        self.error: MeshError | None = None
        self._file = tempfile.TemporaryFile(dir=directory, prefix="listing-")  # noqa: SIM115
        self._end_bytes = 0
        self._pages: list[tuple[int, int, int]] = []  # first entry, offset, size
        self._entry_count = 0
        self._grown = asyncio.Condition()
        self._is_retired = False

    async def fill(self, pages: AsyncIterator[list[DirectoryEntry]]) -> None:
        """Take the pages of the under-store; an error is for the readers."""
        try:
            async for page in pages:
                data = await asyncio.to_thread(_encoded, page)
                await asyncio.to_thread(os.pwrite, self._file.fileno(), data, self._end_bytes)
                async with self._grown:
                    self._pages.append((self._entry_count, self._end_bytes, len(data)))
                    self._end_bytes += len(data)
                    self._entry_count += len(page)
                    self._grown.notify_all()
            self.is_whole = True
        except MeshError as error:
            self.error = error
        except Exception as error:  # a bug of ours, or a full disk: no reason to end the peer
            log.exception("listing failed")
            self.error = Unavailable(f"listing failed: {error}")
        finally:
            if not self.is_whole and self.error is None:
                self.error = ListingGone("listing ended: the peer stops")
            async with self._grown:
                self._grown.notify_all()
            if self._is_retired:
                self._file.close()

    async def page(self, start: int) -> tuple[tuple[DirectoryEntry, ...], bool]:
        """Return the entries from *start* to the end of their page, and whether they are the last.

        Waits until they have come; raises what the under-store raised.
        """
        async with self._grown:
            await self._grown.wait_for(
                lambda: self._entry_count > start or self.is_whole or self.error is not None
            )
        if self.error is not None:
            raise self.error
        for first, offset_bytes, size_bytes in reversed(self._pages):
            if first <= start:
                try:
                    fd = self._file.fileno()
                    data = await asyncio.to_thread(os.pread, fd, size_bytes, offset_bytes)
                except (ValueError, OSError) as error:
                    raise ListingGone(f"listing {self.number} is not kept any more") from error
                entries = _decoded(data)[start - first :]
                is_last = self.is_whole and start + len(entries) == self._entry_count
                return entries, is_last
        return (), True

    def retire(self) -> None:
        """Give the disk space back, as soon as nothing is written to it any more."""
        self._is_retired = True
        if self.is_whole or self.error is not None:
            self._file.close()


def _encoded(page: list[DirectoryEntry]) -> bytes:
    return _encoder.encode([(os.fsencode(entry.name), entry.attributes) for entry in page])


def _decoded(data: bytes) -> tuple[DirectoryEntry, ...]:
    return tuple(
        DirectoryEntry(os.fsdecode(name), attributes) for name, attributes in _decoder.decode(data)
    )
