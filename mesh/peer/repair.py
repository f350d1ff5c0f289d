"""Bringing home what the ring says is ours: gently, and after the reads.

When this peer becomes the primary of blocks that others have (it has joined, or the
one before it is gone for good), it asks each of the others what it has, picks what
it should have itself, and copies that from them, never from the under-store. A
reader who is faster than this gets its block from the peer that had it before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from mesh.blocks import FileVersion
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError
from mesh.metrics import Metrics
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.reader import BlockReader
from mesh.peer.throttle import Throttle
from mesh.store.store import BlockStore
from mesh.wire.codec import INVENTORY
from mesh.wire.messages import InventoryRequest

log = structlog.get_logger()

SETTLE_S = 1.0
"""Several peers that join at once make one repair, not several."""

FULL_RATIO = 0.8
"""A store fuller than this is not filled by repair: it would evict what is read."""

BUSY_PAUSE_S = 0.2
INVENTORY_TIMEOUT_S = 5.0


class Repair:
    """Runs when `due` was called, one run at a time."""

    def __init__(
        self,
        store: BlockStore,
        neighbors: RingNeighbors,
        reader: BlockReader,
        metrics: Metrics,
        *,
        bytes_per_s: float,
        capacity_bytes: int,
        clock: Clock = monotonic_s,
    ) -> None:
        """Copy at most *bytes_per_s*."""
        self._store = store
        self._neighbors = neighbors
        self._reader = reader
        self._metrics = metrics
        self._throttle = Throttle(bytes_per_s)
        self._capacity_bytes = capacity_bytes
        self._clock = clock
        self._due = asyncio.Event()

    def due(self) -> None:
        """Have what this peer owns looked for: blocks have other owners than before."""
        self._due.set()

    async def run(self) -> None:
        """Repair whenever it is due, for as long as this peer runs."""
        while True:
            await self._due.wait()
            await asyncio.sleep(SETTLE_S)
            self._due.clear()
            await self._repair()

    async def _repair(self) -> None:
        me = self._neighbors.me
        missing = 0
        brought = 0
        pending: list[tuple[FileVersion, int, str]] = []
        for member in self._neighbors.view.here:
            if member.name != me and not self._neighbors.is_broken(member.name):
                pending += [block async for block in self._wanted(member.name)]
        # Each block once, from the first that has it.
        by_key = {file.key(index): (file, index, peer) for file, index, peer in reversed(pending)}
        missing = len(by_key)
        self._metrics.repair_pending_blocks.set(missing)
        if not missing:
            return
        log.info("repair begins", blocks=missing)
        for file, index, peer in by_key.values():
            if self._due.is_set() or self._is_full():
                break
            brought += await self._bring(file, index, peer)
            missing -= 1
            self._metrics.repair_pending_blocks.set(missing)
        self._metrics.repair_pending_blocks.set(0)
        log.info("repair ends", blocks=brought, left=missing)

    async def _wanted(self, peer: str) -> AsyncIterator[tuple[FileVersion, int, str]]:
        """Yield the blocks on *peer* that this one should have, and has not."""
        after = b""
        while True:
            try:
                page = await self._neighbors.ask(
                    peer, INVENTORY, InventoryRequest(after), timeout_s=INVENTORY_TIMEOUT_S
                )
            except MeshError as error:
                log.info("no inventory", peer=peer, reason=str(error))
                return
            for file, indexes in page.stock:
                here = {index for index, _ in self._store.index.blocks(file.id)}
                for index in sorted(indexes - here):
                    if self._neighbors.is_primary(file.key(index)):
                        yield file, index, peer
                after = file.id
            if page.is_last or not page.stock:
                return

    async def _bring(self, file: FileVersion, index: int, peer: str) -> bool:
        length_bytes = file.length_bytes(index)
        if not await self._reader.repair(file, index, peer):
            await asyncio.sleep(BUSY_PAUSE_S)
            return False
        self._metrics.repaired_blocks.inc()
        self._metrics.repaired_bytes.inc(length_bytes)
        await asyncio.sleep(self._throttle.wait_s(length_bytes, self._clock()))
        return True

    def _is_full(self) -> bool:
        return self._store.used_bytes > FULL_RATIO * self._capacity_bytes
