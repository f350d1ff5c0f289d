"""All peers that can be asked, this one included, as a job calls them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TypeVar

from mesh.blocks import BlockKey, FileVersion
from mesh.errors import MeshError, PeerUnavailable
from mesh.peer.care import Care
from mesh.peer.neighbors import RingNeighbors
from mesh.wire.basics import Method
from mesh.wire.care import DROP, HOLDINGS, WARM, HoldingsReply, HoldingsRequest

Q = TypeVar("Q")
A = TypeVar("A")

ASK_TIMEOUT_S = 20.0
ALL_ASKED_MAX = 32
"""In a larger mesh not everybody is asked what it holds of each page of files, but those
that should have it, and the next in the ring."""

SPARE_OWNERS = 2


class Crew:
    """The peers of the mesh at this moment."""

    def __init__(self, neighbors: RingNeighbors, care: Care) -> None:
        self.unanswered = 0
        """How often a live peer did not say what it holds."""

        self._neighbors = neighbors
        self._own = {HOLDINGS.name: care.holdings, WARM.name: care.warm, DROP.name: care.drop}

    @property
    def me(self) -> str:
        return self._neighbors.me

    def live(self) -> list[str]:
        """Return who answers, as far as one knows."""
        neighbors = self._neighbors
        return [
            member.name
            for member in neighbors.view.here
            if member.name == neighbors.me
            or (member.is_asked and not neighbors.is_broken(member.name))
        ]

    def here(self) -> list[str]:
        """Return who should answer, but perhaps does not."""
        return [member.name for member in self._neighbors.view.here]

    def census(self) -> frozenset[tuple[str, int]]:
        """Return who is live, and which of its starts that is."""
        live = set(self.live())
        members = self._neighbors.view.members
        return frozenset((m.name, m.run) for m in members if m.name in live)

    def owners(self, key: BlockKey, *, copies: int, live: Sequence[str]) -> list[str]:
        """Return the first owners of a block that are *live*, as many as copies are wanted."""
        dead = len(self._neighbors.view.placed) - len(live)
        names = self._neighbors.ring.owners(key, copies=copies + max(0, dead))
        return [name for name in names if name in live][:copies] or [self.me]

    async def ask(
        self, peer: str, method: Method[Q, A], request: Q, *, timeout_s: float = ASK_TIMEOUT_S
    ) -> A:
        """Return what *peer* answers, which may be this one; who is silent is away then."""
        if peer == self.me:
            answer: A = await self._own[method.name](request)  # type: ignore[operator]
            return answer
        try:
            return await self._neighbors.ask(peer, method, request, timeout_s=timeout_s)
        except PeerUnavailable as error:
            await self._neighbors.feel(peer)
            # By the name that people know, not by address.
            reason = str(error).partition(": ")[2].partition(";")[0]
            raise PeerUnavailable(peer, reason) from error

    async def holdings(
        self, files: Sequence[FileVersion], *, copies: int, named: Sequence[str] = ()
    ) -> Mapping[str, HoldingsReply]:
        """Return which blocks of *files* each peer says it has; who does not answer is left out.

        In a large mesh, those that should have some are asked, and those *named*.
        """
        live = self.live()
        asked = live
        if len(live) > ALL_ASKED_MAX:
            likely = self._likely(files, copies, live)
            asked = [peer for peer in live if peer in likely or peer in named]
        request = HoldingsRequest(tuple(files))
        answers = await asyncio.gather(
            *(self.ask(peer, HOLDINGS, request) for peer in asked), return_exceptions=True
        )
        found = {}
        for peer, answer in zip(asked, answers, strict=True):
            if isinstance(answer, MeshError):
                self.unanswered += 1
                continue
            if isinstance(answer, BaseException):
                raise answer
            found[peer] = answer
        return found

    def _likely(self, files: Sequence[FileVersion], copies: int, live: Sequence[str]) -> set[str]:
        names: set[str] = set()
        for file in files:
            for index in range(file.block_count):
                wanted = copies + SPARE_OWNERS
                names.update(self.owners(file.key(index), copies=wanted, live=live))
                if len(names) == len(live):
                    return names
        return names
