"""Blocks without one's own peer: from their owners, else from the under-store.

A mount outlives its peer. While that is away, or when its disk is full, blocks
are read into memory here, a bounded number of bytes of them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import structlog
from crc32c import crc32c

from mesh.blocks import BlockKey, FileVersion
from mesh.budget import Budget
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, NotFound, PeerUnavailable, Refused, Stale
from mesh.membership.view import View
from mesh.metrics import PEER, UNDER_STORE, Metrics
from mesh.ring.ring import Ring, RingMember
from mesh.understore.table import MountTable, attributes_of
from mesh.wire.channels import Channels
from mesh.wire.codec import SERVE
from mesh.wire.messages import BlockRequest

log = structlog.get_logger()

OWNERS_ASKED = 3
AWAY_S = 2.0
"""For so long a peer that did not answer is not asked again."""


class DirectReader:
    """Blocks in memory: half of *memory_bytes* for those kept, half for those on their way."""

    def __init__(
        self,
        view: View,
        channels: Channels,
        table: MountTable,
        metrics: Metrics,
        *,
        memory_bytes: int,
        clock: Clock = monotonic_s,
    ) -> None:
        self._addresses = {member.name: member.address for member in view.members}
        self._ring = Ring(RingMember(m.name, m.zone, m.weight) for m in view.members)
        self._channels = channels
        self._table = table
        self._metrics = metrics
        self._clock = clock
        self._memory_bytes = memory_bytes // 2
        self._budget = Budget(memory_bytes // 2, metrics.in_flight_bytes.labels("direct"))
        self._blocks: OrderedDict[BlockKey, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._loads: dict[BlockKey, asyncio.Lock] = {}
        self._away: dict[str, float] = {}

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
        key = file.key(index)
        for peer in self.peers(self._ring.owners(key, copies=OWNERS_ASKED)):
            try:
                data = await self._from_peer(peer, file, index)
            except (Stale, Refused):
                raise
            except MeshError as error:
                log.info("direct read goes on elsewhere", block=str(key), reason=str(error))
                self.note_failure(peer, error)
                continue
            self._count(PEER, data)
            return data
        data = await self._from_under_store(file, index)
        self._count(UNDER_STORE, data)
        return data

    async def _from_peer(self, peer: str, file: FileVersion, index: int) -> bytes:
        address = self._addresses[peer]
        pieces: dict[int, bytes | memoryview] = {}
        async for piece in self._channels.pieces(address, SERVE, BlockRequest(file, index)):
            if crc32c(piece.data) != piece.crc:
                raise PeerUnavailable(peer, f"sent a corrupt piece of {file.key(index)}")
            pieces[piece.number] = piece.data
        data = b"".join(pieces[number] for number in sorted(pieces))
        if len(data) != file.length_bytes(index):
            raise PeerUnavailable(peer, f"sent a part of {file.key(index)}")
        return data

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

    def peers(self, names: list[str]) -> list[str]:
        """Return those of *names* that answered lately, or were not asked."""
        now_s = self._clock()
        return [name for name in names if self._away.get(name, 0.0) <= now_s]

    def note_failure(self, peer: str, error: MeshError) -> None:
        """Leave a peer alone for a while if it did not answer."""
        if isinstance(error, PeerUnavailable):
            self._away[peer] = self._clock() + AWAY_S
