"""Second copies of what the first owner of a directory learns of its names."""

from __future__ import annotations

import asyncio

from mesh.blocks import Attributes
from mesh.clock import Clock
from mesh.paths import Spot
from mesh.peer.once import quietly
from mesh.peer.shards import Shards
from mesh.wire.messages import KeepRequest, Kept

KEPT_TOGETHER = 1000
QUEUED_MAX = 20_000
SOON_S = 0.01


class Copies:
    """What is on its way to second owners; what finds no room is looked up again."""

    def __init__(self, shards: Shards, tasks: asyncio.TaskGroup, clock: Clock) -> None:
        self._shards = shards
        self._tasks = tasks
        self._clock = clock
        self._queued: dict[str, dict[str, Kept]] = {}

    def give(self, spot: Spot, about: Attributes | None, asked_s: float) -> None:
        """Have the second owner keep what this one, the first, has learned."""
        peer = self._shards.successor(spot.directory)
        if peer is None or self._shards.is_broken(peer):
            return
        if peer not in self._queued:
            self._queued[peer] = {}
            self._tasks.create_task(quietly(self._send(peer)), name=f"copies to {peer}")
        if len(self._queued[peer]) < QUEUED_MAX:
            self._queued[peer][spot.path] = Kept(spot.path, about, asked_s)

    async def _send(self, peer: str) -> None:
        queued = self._queued[peer]
        try:
            await asyncio.sleep(SOON_S)
            while queued:
                paths = list(queued)[:KEPT_TOGETHER]
                now_s = self._clock()
                taken = [queued.pop(path) for path in paths]
                kept = tuple(Kept(k.path, k.attributes, now_s - k.age_s) for k in taken)
                await self._shards.keep(peer, KeepRequest(self._shards.me, kept))
        finally:
            del self._queued[peer]
