"""What an under-store has, by its content: for when nobody knows what it calls it."""

from __future__ import annotations

import asyncio

from mesh.blocks import PIECE_BYTES, Attributes
from mesh.store.drafts import Digests
from mesh.understore.table import MountTable


async def digested(table: MountTable, path: str, found: Attributes) -> Digests:
    """Return the checksums of what the under-store has at a path; all of it is read."""
    place = table.place(path)
    there = Digests(place.settings.block_bytes)
    rest = b""
    async for run in place.store.read(place.path, found, 0, found.size_bytes):
        rest += bytes(run)
        whole_bytes = len(rest) - len(rest) % PIECE_BYTES
        await asyncio.to_thread(there.add, rest[:whole_bytes])
        rest = rest[whole_bytes:]
    await asyncio.to_thread(there.add, rest)
    return there
