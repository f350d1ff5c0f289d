"""The other peers: who owns what, who answers, and the calls to them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress

import structlog

from mesh.blocks import BlockKey, FileVersion
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, PeerUnavailable
from mesh.membership.view import View
from mesh.peer.breaker import PROBE_EVERY_S, Breaker
from mesh.ring.ring import Ring, RingMember
from mesh.wire.channels import Channels
from mesh.wire.codec import DESCRIBE, HELD, PEEK, SERVE, Method
from mesh.wire.messages import (
    BlockRequest,
    Description,
    HeldRequest,
    Nothing,
    Piece,
)

log = structlog.get_logger()

OWNERS = 2
"""The primary, and the successor that fills while the primary is away."""

PROBE_TIMEOUT_S = 1.0
HELD_TIMEOUT_S = 0.5
HELD_KEPT_S = 5.0
HELD_KEPT_MAX = 4096


class RingNeighbors:
    """The neighbors that a view names, in the order that its ring says."""

    def __init__(
        self, view: View, me: str, channels: Channels, *, clock: Clock = monotonic_s
    ) -> None:
        self.view = view
        self.ring = ring_of(view)
        self.me = me
        self._channels = channels
        self._clock = clock
        self._breaker = Breaker(clock())
        self._broke = asyncio.Event()
        self._held: OrderedDict[tuple[str, bytes], tuple[float, frozenset[int]]] = OrderedDict()

    def owners(self, key: BlockKey) -> list[str]:
        """Return who should be asked, nearest first; peers that don't answer are left out."""
        copies = OWNERS + 1 + len(self._breaker.broken())
        owners = self.ring.owners(key, copies=copies)
        return [peer for peer in owners if not self._breaker.is_broken(peer)][: OWNERS + 1]

    def is_me(self, peer: str) -> bool:
        return peer == self.me

    def owns(self, key: BlockKey) -> bool:
        return self.me in self.ring.owners(key, copies=OWNERS)

    def is_broken(self, peer: str) -> bool:
        return self._breaker.is_broken(peer)

    async def serve(
        self, peer: str, file: FileVersion, index: int, first_piece: int
    ) -> AsyncIterator[Piece]:
        async for piece in self._pieces(peer, SERVE, BlockRequest(file, index, first_piece)):
            yield piece

    async def peek(
        self, peer: str, file: FileVersion, index: int, first_piece: int
    ) -> AsyncIterator[Piece]:
        async for piece in self._pieces(peer, PEEK, BlockRequest(file, index, first_piece)):
            yield piece

    async def _pieces(
        self, peer: str, method: Method[BlockRequest, Piece], request: BlockRequest
    ) -> AsyncIterator[Piece]:
        try:
            async for piece in self._channels.pieces(self._address(peer), method, request):
                yield piece
        except PeerUnavailable as error:
            self._note_failure(peer, error)
            raise

    async def other_holders(self, file: FileVersion, index: int) -> list[str]:
        """Return peers that have the block, asked only while the mesh has changed recently.

        In a mesh where nothing changes nobody but its owner has filled a block, and
        nobody is asked. One answer about a version serves for all its blocks.
        """
        if not self._breaker.is_recent(self._clock()):
            return []
        owners = self.ring.owners(file.key(index), copies=OWNERS + 2)
        asked = [p for p in owners if p != self.me and not self._breaker.is_broken(p)]
        held = await asyncio.gather(*(self._held_by(peer, file) for peer in asked))
        return [peer for peer, indexes in zip(asked, held, strict=True) if index in indexes]

    async def _held_by(self, peer: str, file: FileVersion) -> frozenset[int]:
        now_s = self._clock()
        kept = self._held.get((peer, file.id))
        if kept is not None and now_s - kept[0] < HELD_KEPT_S:
            return kept[1]
        indexes: frozenset[int] = frozenset()
        with suppress(MeshError):
            indexes = await self.held(peer, file)
        self._held[peer, file.id] = (now_s, indexes)
        while len(self._held) > HELD_KEPT_MAX:
            self._held.popitem(last=False)
        return indexes

    async def held(self, peer: str, file: FileVersion) -> frozenset[int]:
        """Return which blocks of a version *peer* has."""
        address = self._address(peer)
        try:
            request = HeldRequest(file)
            reply = await self._channels.call(address, HELD, request, timeout_s=HELD_TIMEOUT_S)
        except PeerUnavailable as error:
            self._note_failure(peer, error)
            raise
        return reply.indexes

    async def describe(self, peer: str) -> Description:
        """Return how *peer* is; one that does not answer is described as down."""
        member = self.view.member(peer)
        try:
            answer = await self._channels.call(
                member.address, DESCRIBE, Nothing(), timeout_s=PROBE_TIMEOUT_S
            )
        except MeshError as error:
            if isinstance(error, PeerUnavailable):
                self._note_failure(peer, error)
            return Description(
                name=peer,
                address=member.address,
                zone=member.zone,
                weight=member.weight,
                is_up=False,
            )
        self._note_answer(peer)
        return answer

    async def probe(self) -> None:
        """Ask the peers that don't answer, until they do, for as long as this peer runs."""
        while True:
            await self._broke.wait()
            await asyncio.sleep(PROBE_EVERY_S)
            broken = self._breaker.broken()
            if not broken:
                self._broke.clear()
            await asyncio.gather(*(self.describe(peer) for peer in broken))

    def _address(self, peer: str) -> str:
        return self.view.member(peer).address

    def _note_failure(self, peer: str, error: MeshError) -> None:
        if self._breaker.failed(peer, self._clock()):
            # What others hold was asked while that one filled: ask anew.
            self._held.clear()
            log.warning("peer away", peer=peer, reason=str(error))
            self._broke.set()

    def _note_answer(self, peer: str) -> None:
        if self._breaker.answered(peer, self._clock()):
            self._held.clear()
            log.info("peer back", peer=peer)


def ring_of(view: View) -> Ring:
    """Return the ring that every peer builds of this view."""
    return Ring(RingMember(m.name, m.zone, m.weight) for m in view.members)
