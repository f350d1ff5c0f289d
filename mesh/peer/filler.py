"""What a peer does for its neighbors: blocks from its store, or by a fill.

    store (this node)  →  the primary, if that is another peer  →  holders  →  under-store

`reader` says who may wait for whom.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import structlog
from crc32c import crc32c

from mesh.blocks import (
    PIECE_BYTES,
    BlockKey,
    FileVersion,
    holders_of,
    is_staged,
    piece_count,
    piece_order,
)
from mesh.budget import Budget
from mesh.clock import Clock, monotonic_s
from mesh.errors import BlockCorrupt, Busy, NotFound, Stale, StoreFull, UnderStoreUnavailable
from mesh.metrics import LOCAL, PEER, UNDER_STORE, Metrics
from mesh.peer.flight import HEARTBEAT, Flights, Landing
from mesh.store.block_writer import BlockWriter
from mesh.store.eviction import Rank
from mesh.store.store import BlockStore
from mesh.understore.table import attributes_of
from mesh.understore.understore import UnderStore
from mesh.wire.channels import HEARTBEAT_S
from mesh.wire.hedged import Hedged
from mesh.wire.messages import Piece
from mesh.wire.swarm import TakeRequest

log = structlog.get_logger()

Load = Callable[[Landing], Awaitable[None]]


class Neighbors(Protocol):
    """The other peers, by name."""

    me: str

    def owners(self, key: BlockKey) -> Sequence[str]:
        """Return who should be asked for *key*, nearest first, this peer among them."""
        ...

    def is_me(self, peer: str) -> bool: ...

    def owns(self, key: BlockKey) -> bool:
        """Whether this peer is one of those that the ring names for *key*."""
        ...

    def rank(self, key: BlockKey) -> Rank:
        """Return what a block is to this peer: its own, spare, or a copy of others'."""
        ...

    def may_bypass(self) -> bool:
        """Whether the under-store may be asked after others have asked it in vain."""
        ...

    def may_ask_after_all(self) -> bool:
        """Whether others may reach the under-store although this peer can't."""
        ...

    def serve(
        self, peers: Sequence[str], file: FileVersion, index: int, missing: Sequence[int]
    ) -> Hedged:
        """Return the pieces of a block from the first of *peers* that can give them."""
        ...

    def relay(self, file: FileVersion, index: int, missing: Sequence[int]) -> Hedged | None:
        """Return the pieces of a block from its primary; None if that is this peer, or away."""
        ...

    def peek(
        self, peers: Sequence[str], file: FileVersion, index: int, missing: Sequence[int]
    ) -> Hedged:
        """Return the pieces of a block from those of *peers* that have it."""
        ...

    def take(self, request: TakeRequest, peer: str, *, patience_s: float = 0.0) -> Hedged:
        """Return the pieces of a block from a reader of the same version."""
        ...

    def settle(self, hedged: Hedged) -> None:
        """Learn from what became of a block's sources, and let those left over end."""
        ...

    def note_under_store(self, *, answers: bool) -> None:
        """Learn whether the under-store answers this peer."""
        ...

    async def other_holders(self, file: FileVersion, index: int, *, wide: bool) -> Sequence[str]:
        """Return peers that have the block although one would think that we fill it."""
        ...


class UnderStores(Protocol):
    def store_of(self, file: FileVersion) -> UnderStore:
        """Raises `NotFound` for a version that is not from our mount table."""
        ...


Persisted = Callable[[FileVersion], Awaitable[FileVersion]]
"""Under which names the under-store has what was staged; raises `Stale` if it does not."""


async def _never(file: FileVersion) -> FileVersion:
    raise Stale(f"{file.path}: its holders are gone")


class BlockFiller:
    """Gives blocks to neighbors."""

    def __init__(
        self,
        store: BlockStore,
        neighbors: Neighbors,
        under_stores: UnderStores,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        memory_bytes: int,
        clock: Clock = monotonic_s,
    ) -> None:
        """Keep the bytes in flight under *memory_bytes*, half of it for those relayed."""
        self._clock = clock
        self._store = store
        self._neighbors = neighbors
        self._under_stores = under_stores
        self._metrics = metrics
        self.persisted: Persisted = _never
        self._fills = Flights(tasks, self._landed)
        self._relayed = Flights(tasks, self._landed)
        in_flight = metrics.in_flight_bytes
        self._relay_budget = Budget(memory_bytes // 2, in_flight.labels("relays"))
        self._fill_budget = Budget(memory_bytes // 2, in_flight.labels("fills"))

    def _landed(self, landing: Landing) -> None:
        """Note that a load has ended, whole or not."""

    def _announced(self, file: FileVersion, index: int) -> Sequence[str]:
        """Return peers that have said that they have a block."""
        return ()

    async def serve(
        self, file: FileVersion, index: int, first_piece: int
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a block for a neighbor, heartbeats while it is filled."""
        async for piece in self._serve(self._fills, self._fill, file, index, first_piece):
            yield piece

    async def serve_relayed(
        self, file: FileVersion, index: int, first_piece: int
    ) -> AsyncGenerator[Piece, None]:
        """Do so for a neighbor that was asked itself: never ask a third one to serve."""
        begun = self._fills.under_way(file.key(index))
        is_relaying = begun is not None and begun.is_relaying
        flights = self._relayed if is_relaying else self._fills
        async for piece in self._serve(flights, self._fill_here, file, index, first_piece):
            yield piece

    async def _serve(
        self, flights: Flights, load: Load, file: FileVersion, index: int, first_piece: int
    ) -> AsyncGenerator[Piece, None]:
        checked(file, index)
        if await self._store.holds(file, index):
            async for piece in self._stored(file, index, first_piece):
                yield piece
            return
        landing = flights.board(file, index, load, first_piece=first_piece)
        yield HEARTBEAT  # it may take a while, but we are at it
        async for piece in landing.pieces(first_piece, beat_s=HEARTBEAT_S):
            yield self._sent(piece)
        self._metrics.served_blocks.inc()

    async def peek(
        self, file: FileVersion, index: int, first_piece: int
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a block that is here, or comes from the under-store now.

        Raises `NotFound` for any other. It waits for nobody but the under-store.
        """
        checked(file, index)
        if await self._store.holds(file, index):
            async for piece in self._stored(file, index, first_piece):
                yield piece
            return
        landing = self._from_under_store(file.key(index))
        if landing is None:
            raise NotFound(f"block {file.key(index)} is not here")
        async for piece in landing.pieces(first_piece, beat_s=HEARTBEAT_S):
            yield self._sent(piece)
        self._metrics.served_blocks.inc()

    def filling(self, version: bytes) -> frozenset[int]:
        """Return the blocks of a version that come from the under-store at this moment."""
        return frozenset(
            landing.index
            for flights in (self._fills, self._relayed)
            for landing in flights.all()
            if landing.origin == UNDER_STORE and landing.file.id == version
        )

    def _from_under_store(self, key: BlockKey) -> Landing | None:
        """Return the load of a block that waits for nobody but the under-store, if any."""
        for flights in (self._fills, self._relayed):
            landing = flights.under_way(key)
            if landing is not None and landing.origin == UNDER_STORE:
                return landing
        return None

    async def repair(self, file: FileVersion, index: int, holder: str) -> bool:
        """Copy a block that this peer has come to own from a holder; False if that fails.

        Does nothing while readers need the memory.
        """
        if self._fill_budget.is_half_spent() or await self._store.holds(file, index):
            return False
        return await self.copy(file, index, holder)

    async def copy(self, file: FileVersion, index: int, holder: str) -> bool:
        """Copy a block that is not here from a holder; False if that fails."""
        try:
            async with (
                self._fill_budget.lend(file.length_bytes(index)),
                self._store.writing(file, index) as writer,
            ):
                landing = Landing(file, index, 0)
                if not await self._peeked(landing, writer, [holder]):
                    return False
                await writer.commit(rank=self._neighbors.rank(file.key(index)))
        except StoreFull:
            return False
        return True

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

    # A fill: from a peer that happens to have it, else from the under-store

    async def _fill(self, landing: Landing) -> None:
        """Have the primary fill it if that is another peer and answers; else fill it here."""
        relay = self._neighbors.relay(landing.file, landing.index, landing.missing)
        if relay is None or not await self._relay(landing, relay):
            await self._fill_here(landing)

    async def _relay(self, landing: Landing, relay: Hedged) -> bool:
        file, index = landing.file, landing.index
        landing.origin, landing.is_relaying = PEER, True
        try:
            async with (
                self._relay_budget.lend(file.length_bytes(index)),
                self._store.writing(file, index) as writer,
            ):
                if not await self._taken(relay, landing, writer):
                    return False
                await writer.commit(rank=self._neighbors.rank(file.key(index)))
        except StoreFull:
            return False
        finally:
            landing.is_relaying = False
        return True

    async def _fill_new(self, landing: Landing) -> None:
        """Fill it here, from the under-store: nobody else has it."""
        landing.is_new = True
        await self._fill_here(landing)

    async def _fill_here(self, landing: Landing) -> None:
        """Put what comes from a holder or the under-store into the store, room permitting."""
        file, index = landing.file, landing.index
        key = file.key(index)
        async with self._fill_budget.lend(file.length_bytes(index)):
            if await self._store.holds(file, index):
                # It landed between the look-up of who asked and now.
                await self._land_stored(landing)
                return
            try:
                async with self._store.writing(file, index) as writer:
                    for piece in landing.landed():  # from a primary that fell silent
                        await writer.write(piece.number, piece.data, piece.crc)
                    await self._bring(landing, writer)
                    await writer.commit(rank=self._neighbors.rank(key))
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
        file, index = landing.file, landing.index
        holders: Sequence[str] = ()
        if not landing.is_new:
            # An owner may only have been silent for a moment, and many have it from him.
            holders = self._announced(file, index)
            if not holders:
                holders = await self._neighbors.other_holders(file, index, wide=False)
        if holders:
            log.debug("peek", block=str(file.key(index)), holders=holders)
            if await self._peeked(landing, writer, holders):
                return
        if is_staged(file.tag):
            holders = [p for p in holders_of(file.tag) if not self._neighbors.is_me(p)]
            if holders and await self._peeked(landing, writer, holders):
                return
            file = await self.persisted(file)
        landing.origin = UNDER_STORE
        try:
            await self._bring_from_under_store(landing, writer, file)
            self._neighbors.note_under_store(answers=True)
        except UnderStoreUnavailable:
            self._neighbors.note_under_store(answers=False)
            landing.origin = PEER
            holders = await self._neighbors.other_holders(file, index, wide=True)
            if not holders or not await self._peeked(landing, writer, holders):
                raise

    async def _peeked(
        self, landing: Landing, writer: BlockWriter | None, holders: Sequence[str]
    ) -> bool:
        landing.origin = PEER
        missing = landing.missing
        hedged = self._neighbors.peek(holders, landing.file, landing.index, missing)
        return await self._taken(hedged, landing, writer)

    async def _bring_from_under_store(
        self, landing: Landing, writer: BlockWriter | None, file: FileVersion
    ) -> None:
        index = landing.index
        started_s = self._clock()
        offset_bytes = index * file.block_bytes
        length_bytes = file.length_bytes(index)
        store = self._under_stores.store_of(file)
        missing = set(landing.missing)
        number = 0
        try:
            async for run in store.read(file.path, attributes_of(file), offset_bytes, length_bytes):
                view = memoryview(run)
                for start_bytes in range(0, len(view), PIECE_BYTES):
                    data = view[start_bytes : start_bytes + PIECE_BYTES]
                    if number in missing:  # a peer that died may have sent the others
                        await self._put(landing, writer, Piece(number, crc32c(data), data))
                    number += 1
        except NotFound as error:
            raise Stale(f"{file.path} was removed from {file.source}") from error
        self._metrics.fills.inc()
        self._metrics.fill_bytes.inc(length_bytes)
        took_ms = (self._clock() - started_s) * 1000
        log.debug(
            "fill", block=str(file.key(index)), size_bytes=length_bytes, took_ms=round(took_ms, 1)
        )

    # Pieces of peers

    async def _taken(self, hedged: Hedged, landing: Landing, writer: BlockWriter | None) -> bool:
        """Take from the sources of a block what is missing; False when they had not all."""
        block = str(landing.file.key(landing.index))
        wanted = set(landing.missing)
        try:
            async with aclosing(hedged.pieces()) as pieces:
                async for source, piece in pieces:
                    if piece.number not in wanted:
                        continue
                    try:
                        await self._keep(landing, writer, piece, source.peer)
                    except BlockCorrupt as error:
                        hedged.give_up(source, error)
                        continue
                    self._metrics.peer_bytes.labels(source.peer).inc(len(piece.data))
                    wanted.discard(piece.number)
                    if not wanted:
                        break
        finally:
            self._neighbors.settle(hedged)
        for source in hedged.sources:
            if source.error is not None:
                self._metrics.failovers.labels(type(source.error).__name__).inc()
                say = log.debug if isinstance(source.error, Busy | NotFound) else log.info
                say(
                    "read goes on elsewhere",
                    block=block,
                    peer=source.peer,
                    reason=str(source.error),
                )
        return not wanted

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


def checked(file: FileVersion, index: int) -> BlockKey:
    """Return the key of a block that somebody asks for; `NotFound` if there can't be one."""
    if not file.has(index):
        raise NotFound(f"{file.path} has no block {index}")
    return file.key(index)
