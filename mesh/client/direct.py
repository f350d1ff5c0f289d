"""Blocks without one's own peer: from their owners, else from the under-store.

A mount outlives its peer. While that is away, or when its disk is full, blocks
are read into memory here, a bounded number of bytes of them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import structlog
from crc32c import crc32c

from mesh.blocks import BlockKey, FileVersion, piece_count
from mesh.budget import Budget
from mesh.clock import Clock, monotonic_s
from mesh.errors import BlockCorrupt, MeshError, NotFound, PeerUnavailable, Refused, Stale
from mesh.membership.view import View
from mesh.metrics import PEER, UNDER_STORE, Metrics
from mesh.ring.ring import Ring, RingMember
from mesh.understore.table import MountTable, attributes_of
from mesh.wire.channels import Channels
from mesh.wire.codec import HELLO, SERVE
from mesh.wire.hedged import Hedged, Signs, Source, Strays
from mesh.wire.messages import BlockRequest, Nothing, Piece
from mesh.wire.pulse import Pulses

log = structlog.get_logger()

OWNERS_ASKED = 3
HEDGE_AFTER_S = 0.4
LOST_AFTER_S = 1.5
"""More patient than a peer is: who gives up here asks the under-store for what others have."""

PULSE_TIMEOUT_S = 1.0
AWAY_S = 2.0
"""For so long a peer that did not answer is not asked again."""


class Always:
    """Patience of one who has no budget: without the own peer there are few requests."""

    after_s = HEDGE_AFTER_S
    lost_after_s = LOST_AFTER_S

    def may(self) -> bool:
        return True


class DirectReader:
    """Blocks in memory: half of *memory_bytes* for those kept, half for those on their way."""

    def __init__(
        self,
        view: View,
        channels: Channels,
        control: Channels,
        table: MountTable,
        metrics: Metrics,
        *,
        memory_bytes: int,
        clock: Clock = monotonic_s,
    ) -> None:
        self.update(view)
        self._channels = channels
        self._control = control
        self._table = table
        self._metrics = metrics
        self._clock = clock
        self._memory_bytes = memory_bytes // 2
        self._budget = Budget(memory_bytes // 2, metrics.in_flight_bytes.labels("direct"))
        self._blocks: OrderedDict[BlockKey, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._loads: dict[BlockKey, asyncio.Lock] = {}
        self._away: dict[str, float] = {}
        self._signs = Signs()
        self._pulses = Pulses(self._feel, self._signs, clock)
        self._strays = Strays()

    def update(self, view: View) -> None:
        """Go by *view* from now on."""
        self._view = view
        self._ring = Ring(
            RingMember(m.name, m.zone, m.weight * m.portion, m.id) for m in view.placed
        )

    async def aclose(self) -> None:
        await self._pulses.aclose()
        await self._strays.aclose()

    async def _feel(self, peer: str) -> None:
        address = self._view.member(peer).address
        await self._control.call(address, HELLO, Nothing(), timeout_s=PULSE_TIMEOUT_S)

    async def block(self, file: FileVersion, index: int) -> bytes:
        """Return a block; raises what the under-store raised when nobody has it."""
        key = file.key(index)
        lock = self._loads.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                if (data := self._blocks.get(key)) is None:
                    async with self._budget.lend(file.length_bytes(index)):
                        data = await self._load(file, index)
                    self._keep(key, data)
                return data
        finally:
            if not lock.locked():
                self._loads.pop(key, None)

    async def _load(self, file: FileVersion, index: int) -> bytes:
        peers = self.peers(self._ring.owners(file.key(index), copies=OWNERS_ASKED))
        data = await self._from_peers(peers, file, index) if peers else None
        if data is not None:
            self._count(PEER, data)
            return data
        data = await self._from_under_store(file, index)
        self._count(UNDER_STORE, data)
        return data

    async def _from_peers(
        self, peers: Sequence[str], file: FileVersion, index: int
    ) -> bytes | None:
        """Return a block from its owners; None when none of them could give all of it."""
        pieces: dict[int, bytes | memoryview] = {}
        count = piece_count(file.length_bytes(index))

        def ask(peer: str) -> AsyncIterator[Piece]:
            missing = next(n for n in range(count) if n not in pieces)
            request = BlockRequest(file, index, missing)
            return self._channels.pieces(self._view.member(peer).address, SERVE, request)

        hedged = Hedged(
            peers,
            ask,
            Always(),
            self._signs,
            self._clock,
            answers=(Stale, Refused),
            pulse=self._pulses.feel,
        )
        try:
            async with aclosing(hedged.pieces()) as came:
                async for source, piece in came:
                    if crc32c(piece.data) != piece.crc:
                        hedged.give_up(source, BlockCorrupt(f"from {source.peer}"))
                        continue
                    pieces[piece.number] = piece.data
                    if len(pieces) == count:
                        break
        finally:
            for source in hedged.sources:
                if source.error is not None or hedged.is_lost(source):
                    self._leave_alone(source)
            self._strays.take(hedged)
        if len(pieces) < count:
            return None
        return b"".join(pieces[number] for number in range(count))

    def _leave_alone(self, source: Source) -> None:
        error = source.error or PeerUnavailable(source.peer, "silent")
        log.info("direct read goes on elsewhere", peer=source.peer, reason=str(error))
        self.note_failure(source.peer, error)

    async def _from_under_store(self, file: FileVersion, index: int) -> bytes:
        store = self._table.store_of(file)
        offset_bytes = index * file.block_bytes
        length_bytes = file.length_bytes(index)
        try:
            runs = store.read(file.path, attributes_of(file), offset_bytes, length_bytes)
            return b"".join([run async for run in runs])
        except NotFound as error:
            raise Stale(f"{file.path} was removed from {file.source}") from error

    def _count(self, source: str, data: bytes) -> None:
        self._metrics.read_blocks.labels(source).inc()
        self._metrics.read_bytes.labels(source).inc(len(data))

    def _keep(self, key: BlockKey, data: bytes) -> None:
        self._blocks[key] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > self._memory_bytes and len(self._blocks) > 1:
            self._kept_bytes -= len(self._blocks.popitem(last=False)[1])

    def peers(self, names: Sequence[str]) -> list[str]:
        """Return those of *names* that are here, and answered lately or were not asked."""
        now_s = self._clock()
        asked = {member.name for member in self._view.members if member.is_asked}
        return [name for name in names if name in asked and self._away.get(name, 0.0) <= now_s]

    def note_failure(self, peer: str, error: MeshError) -> None:
        """Leave a peer alone for a while if it did not answer."""
        if isinstance(error, PeerUnavailable):
            self._away[peer] = self._clock() + AWAY_S
