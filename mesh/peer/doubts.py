"""Files that this peer holds for writers who do not have them.

A holder has a file before anybody was told of it. If its writer ends in that moment nobody ever
is, and the writer may have written the same anew. So holders ask writers, soon and then now and
then; what a writer who is there does not have, owners are asked about: one who never heard of it
ends it, any other has it persisted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.stager import Stager
from mesh.wire.staged import HAVE, HaveRequest

ASK_EVERY_S = 5.0
SURE_FOR_S = 60.0
"""A writer may lose its disk: then it is another one, under the same name."""

TOGETHER = 1000
CALL_TIMEOUT_S = 5.0


class Doubts:
    """Asks writers for what this peer holds."""

    def __init__(
        self, stager: Stager, neighbors: RingNeighbors, clock: Clock = monotonic_s
    ) -> None:
        self._stager = stager
        self._neighbors = neighbors
        self._clock = clock
        self._sure_until_s: dict[str, float] = {}
        self.lost: set[str] = set()
        """Tokens that their writers do not have, though they are there."""

    async def run(self) -> None:
        """Ask for as long as this peer runs."""
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            await self.ask()

    async def ask(self) -> None:
        """Ask each writer once for what is in doubt."""
        here = self._stager.files.keys()
        self.lost &= here
        self._sure_until_s = {t: s for t, s in self._sure_until_s.items() if t in here}
        for writer, tokens in self._doubtful():
            with suppress(MeshError):  # one who does not answer may have it
                reply = await self._neighbors.ask(
                    writer, HAVE, HaveRequest(tokens), timeout_s=CALL_TIMEOUT_S
                )
                sure_until_s = self._clock() + SURE_FOR_S
                self._sure_until_s |= dict.fromkeys(reply.tokens, sure_until_s)
                self.lost -= set(reply.tokens)
                self.lost |= set(tokens).difference(reply.tokens, reply.pending) & here

    def _doubtful(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        now_s = self._clock()
        of: dict[str, list[str]] = {}
        for token, file in self._stager.files.items():
            writer = file.holders[0]
            if writer != self._neighbors.me and self._sure_until_s.get(token, 0.0) <= now_s:
                of.setdefault(writer, []).append(token)
        for writer, tokens in of.items():
            for start in range(0, len(tokens), TOGETHER):
                yield writer, tuple(tokens[start : start + TOGETHER])
