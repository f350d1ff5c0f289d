"""Blocks that could not be had, and are let be for a while: where a disk is full, or the
under-store away, each of them would be begun in vain again and again."""

from __future__ import annotations

from mesh.swarm.bits import mask_of

REST_S = 1.0
REST_S_MAX = 64.0


class Rests:
    """For REST_S, then twice as long each time, unless somebody waits for the block."""

    def __init__(self) -> None:
        self._until_s: dict[int, float] = {}
        self._last_s: dict[int, float] = {}
        """For how long, the last time."""

    def failed(self, index: int, now_s: float) -> None:
        """Note that a block could not be had."""
        for_s = min(REST_S_MAX, 2 * self._last_s.get(index, REST_S / 2))
        self._last_s[index] = for_s
        self._until_s[index] = now_s + for_s

    def wake(self, index: int) -> None:
        """Note that somebody waits for a block."""
        self._until_s.pop(index, None)

    def forget(self, index: int) -> None:
        """Note that a block is here."""
        self._until_s.pop(index, None)
        self._last_s.pop(index, None)

    def expire(self, now_s: float) -> None:
        """Have those tried again that were to rest until now."""
        self._until_s = {i: at_s for i, at_s in self._until_s.items() if at_s > now_s}

    def without(self, blocks: int) -> int:
        """Return a set of blocks without those that rest."""
        return blocks & ~mask_of(self._until_s) if self._until_s else blocks

    def due_s(self) -> float:
        """Return when the first of them may be tried again; inf if none rests."""
        return min(self._until_s.values(), default=float("inf"))
