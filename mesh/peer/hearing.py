"""Whether this peer hears anybody at all: arithmetic only, no clock.

A host that is cut off finds all others silent, one after the other, and a read would wait for
each of them. When several were given up without a word of anybody in between it is more likely
that we can't hear; then nobody is of help, and the under-store is asked.
"""

from __future__ import annotations

from collections.abc import Collection

DEAF_AFTER = 2
DEAF_FOR_S = 1.0
"""Then others are asked again; who does not answer is away by then."""


class Hearing:
    """Who was given up because nothing came, since anybody was heard."""

    def __init__(self) -> None:
        self._silent: set[str] = set()
        self._deaf_until_s = 0.0

    def heard(self) -> None:
        """Note that something came from a peer, whichever."""
        if self._silent:
            self._silent.clear()
            self._deaf_until_s = 0.0

    def gave_up(self, peers: Collection[str], now_s: float) -> None:
        """Note that nothing came from *peers* for as long as one waits."""
        self._silent.update(peers)
        if peers and len(self._silent) >= DEAF_AFTER:
            self._deaf_until_s = now_s + DEAF_FOR_S

    @property
    def is_doubted(self) -> bool:
        """Whether the last one who was asked was silent."""
        return bool(self._silent)

    def is_deaf(self, now_s: float) -> bool:
        return now_s < self._deaf_until_s
