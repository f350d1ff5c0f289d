"""Forgetting, now and then, what the catalog's tables know and nobody asks about."""

from __future__ import annotations

import asyncio

from mesh.peer.shards import Shards
from mesh.store.entry_store import EntryStore

TIDY_EVERY_S = 300.0
IDLE_S = 3600.0
ENTRIES_MAX = 20_000_000
"""About 2.5 GB of LMDB; with more, what is this peer's own is forgotten like the rest."""


async def tidy(entries: EntryStore, shards: Shards) -> None:
    """Forget, now and then, what nobody asks about, for as long as this peer runs."""
    while True:
        await asyncio.sleep(TIDY_EVERY_S)
        await forget_idle(entries, shards)


async def forget_idle(entries: EntryStore, shards: Shards, *, for_s: float = IDLE_S) -> int:
    """Forget directories of others that nobody here asked about for so long, and own ones
    too while there are too many entries; return how many."""
    forgotten = 0
    after: bytes | None = b""
    while after is not None:
        idle, after = await entries.idle(after, for_s=for_s)
        for directory in idle:
            is_full = entries.tables.usage()[0] > ENTRIES_MAX
            if is_full or not shards.owns(directory):
                await entries.forget(directory)
                forgotten += 1
    return forgotten
