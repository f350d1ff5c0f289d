"""The read path: one block for this host, from the nearest place that has it.

    store (this node)  →  owners, in ring order  →  under-store

All decisions of a read are made here, those of a fill in `filler`; the rooms below
only do what they are asked. No request goes round in circles, even while rings
disagree, because each may wait only for what stands below it:

    read                 may ask an owner to serve
    serve                may relay it, once, to the primary if that is another peer
    serve, when relayed  may peek at others, and fill
    peek                 waits for a fill that has come as far as the under-store

Each step has flights and a budget of its own for the same reason: with one, two
owners that both miss would wait for each other for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import dropwhile, takewhile
from typing import Protocol

from mesh.blocks import PIECE_BYTES, FileVersion, Span, pieces_of
from mesh.budget import Budget
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, NotFound, StoreFull, Unavailable, UnderStoreUnavailable
from mesh.metrics import LOCAL, PEER, UNDER_STORE, Metrics, PeerCounter
from mesh.peer.filler import BlockFiller, Neighbors, UnderStores, checked
from mesh.peer.flight import Flights, Landing
from mesh.peer.session import Session
from mesh.store.block_writer import BlockWriter
from mesh.store.store import BlockStore
from mesh.wire.channels import HEARTBEAT_S
from mesh.wire.messages import FetchReply, Piece
from mesh.wire.swarm import TakeRequest

LEASE_S = 0.5
"""How long a block stays after a mount was told that it is here: many times what the
mount needs to read it from the file. Longer would keep a small cache from evicting."""


class GivenUp(Unavailable):
    """No neighbor sends a block, and nobody was waiting for it when it was begun."""


class Swarming(Protocol):
    """What is read with the help of other readers."""

    def joined(self, file: FileVersion, index: int) -> Session | None:
        """Return the session of a version that is read with others, if it is, by who waits
        for a block of it."""
        ...

    def reads(self, file: FileVersion, index: int) -> bool:
        """Note that a stream has come to a block; False if it is not read with others."""
        ...

    def announced(self, file: FileVersion, index: int) -> Sequence[str]:
        """Return other readers who have said that they have a block, and may be asked."""
        ...

    def landed(self, file: FileVersion, index: int) -> None:
        """Note that a block is here now."""
        ...

    def given_up(self, file: FileVersion, index: int, *, may_go_on: bool) -> None:
        """Note that a read of a block has ended without it, and whether others may be asked."""
        ...


class BlockReader(BlockFiller):
    """Reads blocks for this node; what it does for neighbors it has from `BlockFiller`."""

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
        """Keep the bytes in flight under *memory_bytes*, half of it for other peers."""
        super().__init__(
            store,
            neighbors,
            under_stores,
            tasks,
            metrics,
            memory_bytes=memory_bytes // 2,
            clock=clock,
        )
        self._reads = Flights(tasks, self._ended)
        self.swarms: Swarming | None = None
        """What is read with the help of others; set once the peer is built."""

        self._swarm_bytes = PeerCounter(metrics.swarm_bytes)
        in_flight = metrics.in_flight_bytes.labels("reads")
        self._read_budget = Budget(memory_bytes // 2, in_flight)

    async def read(self, file: FileVersion, span: Span) -> FetchReply:
        """Bring a span to this host; return from which inode it can be read."""
        started_s = self._clock()
        key = checked(file, span.block_index)
        if span.stop_bytes > file.length_bytes(span.block_index):
            raise NotFound(f"block {key} ends before {span.stop_bytes}")
        self._store.touch(file.id)
        while await self._store.holds(file, span.block_index):
            record = self._store.index.block(key)
            if record is not None and self._store.lease(key, for_s=LEASE_S):
                return FetchReply(record.inode, LEASE_S, LOCAL)
            await self._store.settled(file.id)
        try:
            landing = await self._brought(file, span)
        except MeshError as error:
            self._metrics.errors.labels(type(error).__name__).inc()
            raise
        if not landing.inode and not file.is_inline:
            raise StoreFull(f"block {key} can't be kept here")
        if not self._store.lease(key, for_s=LEASE_S):
            # It landed and is being evicted already: from the beginning.
            await self._store.settled(file.id)
            return await self.read(file, span)
        self._metrics.read_seconds.labels(landing.origin).observe(self._clock() - started_s)
        return FetchReply(landing.inode, LEASE_S, landing.origin)

    async def recheck(self, file: FileVersion, index: int) -> None:
        """Look at a block that somebody read wrong bytes from; drop it if it has rotted."""
        checked(file, index)
        await self._store.recheck(file, index)

    async def read_ahead(self, file: FileVersion, index: int) -> None:
        """Begin to bring a block that nobody waits for; do nothing when memory is short."""
        checked(file, index)
        if self.swarms is not None and self.swarms.reads(file, index):
            return
        if self._read_budget.is_half_spent() or self._fill_budget.is_half_spent():
            return
        if not await self._store.holds(file, index):
            self._reads.board(file, index, self._find)

    # With the help of other readers

    async def _brought(self, file: FileVersion, span: Span) -> Landing:
        """Have the swarm, if there is one, bring a block that a reader waits for; after a while
        without help, bring it as if alone."""
        index, key = span.block_index, file.key(span.block_index)
        first_piece = span.start_bytes // PIECE_BYTES
        session = self.swarms.joined(file, index) if self.swarms is not None else None
        until_s = self._clock() + (session.patience_s if session is not None else 0.0)
        while True:
            is_helped = session is not None and not session.is_deaf
            if session is not None and is_helped and self._reads.under_way(key) is None:
                await session.wants(
                    index, lambda: self._reads.under_way(key) is not None, until_s=until_s
                )
            landing = self._reads.board(file, index, self._find, first_piece=first_piece)
            with suppress(GivenUp):  # those who were asked are busy: others, or again later
                await landing.wait(pieces_of(span))
                if file.is_inline:
                    await landing.wait_end()
                return landing

    def begin(self, session: Session, index: int, *, is_own: bool) -> bool:
        """Bring a block from the sources that a session names; an own one by a fill, for which
        what is under way must have ended: False then."""
        if is_own and self._reads.under_way(session.file.key(index)) is not None:
            return False
        load = self._find if is_own else partial(self._swarmed, session)
        with suppress(MeshError):  # the peer stops
            self._reads.board(session.file, index, load)
        return True

    async def _swarmed(self, session: Session, landing: Landing) -> None:
        file, index = landing.file, landing.index
        async with (
            self._read_budget.lend(file.length_bytes(index)),
            self._store.writing(file, index) as writer,
        ):
            while (fetch := session.source(index)) is not None:
                landing.origin = PEER
                request = TakeRequest(
                    file,
                    index,
                    landing.missing[0],
                    self._neighbors.me,
                    is_urgent=fetch.is_urgent,
                    is_owner=fetch.is_owner,
                )
                hedged = self._neighbors.take(request, fetch.source, patience_s=session.piece_s)
                session.asked(index, hedged)
                if await self._taken(hedged, landing, writer):
                    session.sent(index, hedged)
                    for source in hedged.sources:
                        if source.data_bytes:
                            self._swarm_bytes.add(source.peer, source.data_bytes)
                    await writer.commit(rank=self._neighbors.rank(file.key(index)))
                    self._count_read(PEER, file.length_bytes(index))
                    return
                session.missed(index, hedged)
        raise GivenUp(f"nobody sends block {file.key(index)}")

    def _ended(self, landing: Landing) -> None:
        if landing.is_done and landing.inode:
            self._landed(landing)
        elif self.swarms is not None:
            may_go_on = isinstance(landing.error, GivenUp)
            self.swarms.given_up(landing.file, landing.index, may_go_on=may_go_on)

    def _announced(self, file: FileVersion, index: int) -> Sequence[str]:
        return () if self.swarms is None else self.swarms.announced(file, index)

    def _landed(self, landing: Landing) -> None:
        if self.swarms is not None and landing.is_done and landing.inode:
            self.swarms.landed(landing.file, landing.index)

    async def pass_on(
        self, file: FileVersion, index: int, first_piece: int, *, beat_s: float
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a block that is here, or of which some are, and a heartbeat every
        *beat_s* while the next has not landed; `NotFound` if none."""
        landing = self._reads.under_way(checked(file, index))
        if landing is None or not landing.landed():
            async for piece in self.peek(file, index, first_piece):
                yield piece
            return
        async for piece in landing.pieces(first_piece, beat_s=beat_s):
            yield self._sent(piece)
        self._metrics.served_blocks.inc()

    async def bring(self, file: FileVersion, index: int, *, holder: str = "") -> str:
        """Have a block kept here that nobody reads yet; return where it came from.

        From *holder* if it has it; with none named, no other peer is known to have it.
        Raises `StoreFull` when it can't be kept.
        """
        key = checked(file, index)
        if await self._store.holds(file, index):
            return LOCAL
        if holder and await self.copy(file, index, holder):
            return PEER
        landing: Landing | None = None
        if not holder and self._neighbors.is_me(next(iter(self._neighbors.owners(key)), "")):
            with suppress(UnderStoreUnavailable):  # another owner may reach it
                landing = self._fills.board(file, index, self._fill_new)
                await landing.wait_end()
        if landing is None or not landing.is_done:
            landing = self._reads.board(file, index, self._found)
            await landing.wait_end()
        if not await self._store.holds(file, index):
            raise StoreFull(f"block {key} can't be kept here")
        return landing.origin

    # A read: owners in order, then the under-store

    async def _find(self, landing: Landing) -> None:
        await self._found(landing)
        self._count_read(landing.origin, landing.file.length_bytes(landing.index))

    async def _found(self, landing: Landing) -> None:
        file, index = landing.file, landing.index
        key = file.key(index)
        owners = self._neighbors.owners(key)
        others = list(takewhile(lambda peer: not self._neighbors.is_me(peer), owners))
        async with self._read_budget.lend(file.length_bytes(index)), AsyncExitStack() as stack:
            if others:
                writer = await stack.enter_async_context(self._store.writing(file, index))
                if await self._served(landing, writer, others):
                    await writer.commit(rank=self._neighbors.rank(key))
                    return
            try:
                await self._follow_fill(landing)
            except UnderStoreUnavailable:
                if not await self._served_after_all(landing, owners):
                    raise

    async def _served_after_all(self, landing: Landing, owners: Sequence[str]) -> bool:
        """Have the owners after this one fill it: it may be cut off from the under-store alone."""
        file, index = landing.file, landing.index
        after = list(dropwhile(lambda peer: not self._neighbors.is_me(peer), owners))[1:]
        if not after or not self._neighbors.may_ask_after_all():
            return False
        async with self._store.writing(file, index) as writer:
            for piece in landing.landed():
                await writer.write(piece.number, piece.data, piece.crc)
            if not await self._served(landing, writer, after):
                return False
            await writer.commit(rank=self._neighbors.rank(file.key(index)))
            return True

    async def _served(self, landing: Landing, writer: BlockWriter, peers: Sequence[str]) -> bool:
        """Take the missing pieces from *peers*; False when another source must go on."""
        landing.origin = PEER
        hedged = self._neighbors.serve(peers, landing.file, landing.index, landing.missing)
        if await self._taken(hedged, landing, writer):
            return True
        errors = [source.error for source in hedged.sources if source.error is not None]
        for error in errors:
            if isinstance(error, UnderStoreUnavailable) and not self._neighbors.may_bypass():
                raise error
        return False

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
        landing.origin = fill.origin
        if fill.origin == UNDER_STORE and not self._neighbors.owns(file.key(index)):
            self._metrics.bypass_bytes.inc(file.length_bytes(index))

    def _count_read(self, source: str, length_bytes: int) -> None:
        self._metrics.read_blocks.labels(source).inc()
        self._metrics.read_bytes.labels(source).inc(length_bytes)
