"""Which peers not to ask for now: arithmetic only, no clock and no sockets.

A peer that failed to answer is left alone until a probe of ours, which no reader
waits for, has found it well again.
"""

from __future__ import annotations

PROBE_EVERY_S = 0.5
RECENT_S = 600.0
"""For so long after a change somebody else may hold what a peer would fill."""


class Breaker:
    """The peers that did not answer, and since when the mesh was not whole."""

    def __init__(self, now_s: float) -> None:
        self._broken: dict[str, float] = {}
        self._changed_s = now_s

    def failed(self, peer: str, now_s: float) -> bool:
        """Note that *peer* did not answer; say whether that is news."""
        self._changed_s = now_s
        is_news = peer not in self._broken
        self._broken.setdefault(peer, now_s)
        return is_news

    def answered(self, peer: str, now_s: float) -> bool:
        """Note that *peer* answers; say whether that is news."""
        if self._broken.pop(peer, None) is None:
            return False
        self._changed_s = now_s
        return True

    def is_broken(self, peer: str) -> bool:
        return peer in self._broken

    def broken(self) -> list[str]:
        return sorted(self._broken)

    def is_recent(self, now_s: float) -> bool:
        """Whether owners changed, or this peer began, not long ago."""
        return now_s - self._changed_s < RECENT_S
