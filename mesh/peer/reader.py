"""The read path: one block, from the nearest place that has it.

    store (this node)  →  owners, in ring order  →  under-store

All decisions of a read are made here; the rooms below only do what they are
asked. Three verbs:

* `read`   for this host's mounts: may ask neighbors
* `serve`  for a neighbor: from the store, or by a fill
* `peek`   for a neighbor: from the store, or not at all

`serve` never waits for another peer's `serve` or `read`, so rings that disagree
for a moment cannot send a request round in circles; what it may do is `peek`.
Reads and fills have flights and budgets of their own for the same reason: with
one, two owners that both miss would wait for each other for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import structlog
from crc32c import crc32c

from mesh.blocks import (
    PIECE_BYTES,
    BlockKey,
    FileVersion,
    Span,
    piece_count,
    piece_order,
    pieces_of,
)
from mesh.budget import Budget
from mesh.errors import (
    BlockCorrupt,
    MeshError,
    NotFound,
    PeerUnavailable,
    Refused,
    Stale,
    StoreFull,
)
from mesh.metrics import LOCAL, PEER, UNDER_STORE, Metrics
from mesh.peer.flight import Flights, Landing
from mesh.store.store import BlockStore, BlockWriter
from mesh.understore.table import attributes_of
from mesh.understore.understore import UnderStore
from mesh.wire.channels import HEARTBEAT_S
from mesh.wire.messages import FetchReply, Piece

log = structlog.get_logger()

LEASE_S = 0.5
"""How long a block stays after a mount was told that it is here: many times what the
mount needs to read it from the file. Longer would keep a small cache from evicting."""


class Neighbors(Protocol):
    """The other peers, by name."""

    def owners(self, key: BlockKey) -> Sequence[str]:
        """Return who should be asked for *key*, nearest first, this peer among them."""
        ...

    def is_me(self, peer: str) -> bool: ...

    def owns(self, key: BlockKey) -> bool:
        """Whether this peer is one of those that the ring names for *key*."""
        ...

    def serve(
        self, peer: str, file: FileVersion, index: int, first_piece: int
    ) -> AsyncIterator[Piece]:
        """Raises `PeerUnavailable` or what the peer raised."""
        ...

    def peek(
        self, peer: str, file: FileVersion, index: int, first_piece: int
    ) -> AsyncIterator[Piece]: ...

    async def other_holders(self, file: FileVersion, index: int) -> Sequence[str]:
        """Return peers that have the block although one would think that we fill it."""
        ...


class UnderStores(Protocol):
    def store_of(self, file: FileVersion) -> UnderStore:
        """Raises `NotFound` for a version that is not from our mount table."""
        ...


class BlockReader:
    """Reads blocks for this node and for its neighbors."""

    def __init__(
        self,
        store: BlockStore,
        neighbors: Neighbors,
        under_stores: UnderStores,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        memory_bytes: int,
    ) -> None:
        """Keep the bytes in flight under *memory_bytes*, half of it for fills."""
        self._store = store
        self._neighbors = neighbors
        self._under_stores = under_stores
        self._metrics = metrics
        self._reads = Flights(tasks)
        self._fills = Flights(tasks)
        in_flight = metrics.in_flight_bytes
        self._read_budget = Budget(memory_bytes // 2, in_flight.labels("reads"))
        self._fill_budget = Budget(memory_bytes // 2, in_flight.labels("fills"))

    # The three verbs

    async def read(self, file: FileVersion, span: Span) -> FetchReply:
        """Bring a span to this host; return from which inode it can be read."""
        started_s = time.monotonic()
        key = _checked(file, span.block_index)
        if span.stop_bytes > file.length_bytes(span.block_index):
            raise NotFound(f"block {key} ends before {span.stop_bytes}")
        self._store.touch(file.id)
        while await self._store.holds(file, span.block_index):
            record = self._store.index.block(key)
            if record is not None and self._store.lease(key, for_s=LEASE_S):
                return FetchReply(record.inode, LEASE_S, LOCAL)
            await self._store.settled(file.id)
        first_piece = span.start_bytes // PIECE_BYTES
        landing = self._reads.board(file, span.block_index, self._find, first_piece=first_piece)
        try:
            await landing.wait(pieces_of(span))
            if file.is_inline:
                await landing.wait_end()
        except MeshError as error:
            self._metrics.errors.labels(type(error).__name__).inc()
            raise
        if not landing.inode and not file.is_inline:
            raise StoreFull(f"block {key} can't be kept here")
        if not self._store.lease(key, for_s=LEASE_S):
            # It landed and is being evicted already: from the beginning.
            await self._store.settled(file.id)
            return await self.read(file, span)
        self._metrics.read_seconds.labels(landing.origin).observe(time.monotonic() - started_s)
        return FetchReply(landing.inode, LEASE_S, landing.origin)

    async def recheck(self, file: FileVersion, index: int) -> None:
        """Look at a block that somebody read wrong bytes from; drop it if it has rotted."""
        _checked(file, index)
        await self._store.recheck(file, index)

    async def read_ahead(self, file: FileVersion, index: int) -> None:
        """Begin to bring a block that nobody waits for; do nothing when memory is short."""
        _checked(file, index)
        if self._read_budget.is_half_spent() or self._fill_budget.is_half_spent():
            return
        if not await self._store.holds(file, index):
            self._reads.board(file, index, self._find)

    async def serve(
        self, file: FileVersion, index: int, first_piece: int
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a block for a neighbor, heartbeats while it is filled."""
        _checked(file, index)
        if await self._store.holds(file, index):
            async for piece in self._stored(file, index, first_piece):
                yield piece
            return
        landing = self._fills.board(file, index, self._fill, first_piece=first_piece)
        async for piece in landing.pieces(first_piece, beat_s=HEARTBEAT_S):
            yield self._sent(piece)
        self._metrics.served_blocks.inc()

    async def peek(
        self, file: FileVersion, index: int, first_piece: int
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a block that is here; `NotFound` if it is not."""
        _checked(file, index)
        if not await self._store.holds(file, index):
            raise NotFound(f"block {file.key(index)} is not here")
        async for piece in self._stored(file, index, first_piece):
            yield piece

    async def _stored(
        self, file: FileVersion, index: int, first_piece: int
    ) -> AsyncIterator[Piece]:
        self._store.touch(file.id)
        count = piece_count(file.length_bytes(index))
        for number in piece_order(count, first=first_piece % count):
            data, crc = await self._store.read(file, index, number)
            yield self._sent(Piece(number, crc, data))
        self._metrics.served_blocks.inc()

    def _sent(self, piece: Piece) -> Piece:
        self._metrics.served_bytes.inc(len(piece.data))
        return piece

    # A read: owners in order, then the under-store

    async def _find(self, landing: Landing) -> None:
        file, index = landing.file, landing.index
        length_bytes = file.length_bytes(index)
        async with self._read_budget.lend(length_bytes), AsyncExitStack() as stack:
            writer: BlockWriter | None = None
            for peer in self._neighbors.owners(file.key(index)):
                if self._neighbors.is_me(peer):
                    break
                if writer is None:
                    writer = await stack.enter_async_context(self._store.writing(file, index))
                if await self._copied(landing, writer, peer):
                    await writer.commit(is_copy=not self._neighbors.owns(file.key(index)))
                    self._count_read(PEER, length_bytes)
                    return
            await self._follow_fill(landing)

    async def _copied(self, landing: Landing, writer: BlockWriter, peer: str) -> bool:
        """Take the missing pieces from *peer*; False when another source must go on."""
        landing.origin = PEER
        file, index = landing.file, landing.index
        key = str(file.key(index))
        try:
            await self._copy(landing, writer, peer)
        except (Stale, Refused, StoreFull):
            raise
        except MeshError as error:
            self._metrics.failovers.labels(type(error).__name__).inc()
            log.info("read goes on elsewhere", block=key, peer=peer, reason=str(error))
            return False
        log.debug("read", block=key, source=peer)
        return not landing.missing

    async def _copy(self, landing: Landing, writer: BlockWriter, peer: str) -> None:
        file, index = landing.file, landing.index
        missing = landing.missing
        source = self._neighbors.serve(peer, file, index, missing[0])
        async for piece in source:
            if piece.number not in missing:
                continue
            await self._keep(landing, writer, piece, peer)
            self._metrics.peer_bytes.labels(peer).inc(len(piece.data))

    async def _keep(
        self, landing: Landing, writer: BlockWriter | None, piece: Piece, whence: str
    ) -> None:
        """Check a piece that came from a peer, and put it."""
        if crc32c(piece.data) != piece.crc:
            self._metrics.corrupt_blocks.inc()
            block = landing.file.key(landing.index)
            raise BlockCorrupt(f"piece {piece.number} of block {block} from {whence}")
        await self._put(landing, writer, piece)

    async def _put(self, landing: Landing, writer: BlockWriter | None, piece: Piece) -> None:
        """Put a piece into the store and let it be read."""
        if writer is not None:
            await writer.write(piece.number, piece.data, piece.crc)
        landing.land(piece, 0 if writer is None else writer.inode)

    async def _follow_fill(self, landing: Landing) -> None:
        """Let a fill of our own be what the readers of this host wait for."""
        file, index = landing.file, landing.index
        first_piece = landing.first_piece
        fill = self._fills.board(file, index, self._fill, first_piece=first_piece)
        async for piece in fill.pieces(first_piece, beat_s=HEARTBEAT_S):
            if piece.data:
                landing.origin = fill.origin
                landing.land(piece, fill.inode)
        await fill.wait_end()
        self._count_read(fill.origin, file.length_bytes(index))

    def _count_read(self, source: str, length_bytes: int) -> None:
        self._metrics.read_blocks.labels(source).inc()
        self._metrics.read_bytes.labels(source).inc(length_bytes)

    # A fill: from a peer that happens to have it, else from the under-store

    async def _fill(self, landing: Landing) -> None:
        file, index = landing.file, landing.index
        key = file.key(index)
        async with self._fill_budget.lend(file.length_bytes(index)):
            if await self._store.holds(file, index):
                # It landed between the look-up of who asked and now.
                await self._land_stored(landing)
                return
            try:
                async with self._store.writing(file, index) as writer:
                    await self._bring(landing, writer)
                    await writer.commit(is_copy=not self._neighbors.owns(key))
            except StoreFull as error:
                log.warning("block not kept", block=str(key), reason=str(error))
                await self._bring(landing, None)

    async def _land_stored(self, landing: Landing) -> None:
        landing.origin = LOCAL
        record = self._store.index.block(landing.file.key(landing.index))
        for number in landing.missing:
            data, crc = await self._store.read(landing.file, landing.index, number)
            landing.land(Piece(number, crc, data), 0 if record is None else record.inode)

    async def _bring(self, landing: Landing, writer: BlockWriter | None) -> None:
        for peer in await self._neighbors.other_holders(landing.file, landing.index):
            if await self._peeked(landing, writer, peer):
                return
        landing.origin = UNDER_STORE
        await self._bring_from_under_store(landing, writer)

    async def _peeked(self, landing: Landing, writer: BlockWriter | None, peer: str) -> bool:
        landing.origin = PEER
        file, index = landing.file, landing.index
        try:
            async for piece in self._neighbors.peek(peer, file, index, landing.first_piece):
                await self._keep(landing, writer, piece, peer)
                self._metrics.peer_bytes.labels(peer).inc(len(piece.data))
        except (NotFound, PeerUnavailable, BlockCorrupt) as error:
            log.info("peek failed", block=str(file.key(index)), peer=peer, reason=str(error))
            return False
        return not landing.missing

    async def _bring_from_under_store(self, landing: Landing, writer: BlockWriter | None) -> None:
        file, index = landing.file, landing.index
        started_s = time.monotonic()
        offset_bytes = index * file.block_bytes
        length_bytes = file.length_bytes(index)
        store = self._under_stores.store_of(file)
        number = 0
        try:
            async for run in store.read(file.path, attributes_of(file), offset_bytes, length_bytes):
                view = memoryview(run)
                for start_bytes in range(0, len(view), PIECE_BYTES):
                    data = view[start_bytes : start_bytes + PIECE_BYTES]
                    await self._put(landing, writer, Piece(number, crc32c(data), data))
                    number += 1
        except NotFound as error:
            raise Stale(f"{file.path} was removed from {file.source}") from error
        self._metrics.fills.inc()
        self._metrics.fill_bytes.inc(length_bytes)
        took_ms = (time.monotonic() - started_s) * 1000
        log.debug(
            "fill", block=str(file.key(index)), size_bytes=length_bytes, took_ms=round(took_ms, 1)
        )


def _checked(file: FileVersion, index: int) -> BlockKey:
    """Return the key of a block that somebody asks for; `NotFound` if there can't be one."""
    if not file.has(index):
        raise NotFound(f"{file.path} has no block {index}")
    return file.key(index)
