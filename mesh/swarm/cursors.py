"""Where the readers of this host are in a file, and what they will want next.

A mount says where a stream goes on once it has seen that it is one, so that random
readers have no cursor. Loaders read 8 to 32 ranges of one file at once: the window is
shared among the cursors.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.swarm.bits import first, span

CURSORS_MAX = 32
NEAR_BLOCKS = 16
"""A stream is known again by a position that is no further on than this."""

IDLE_S = 15.0
"""A cursor that has not moved for so long belongs to a reader that is gone."""

GUESSED_S = 3.0
"""Likewise one that is only supposed to be a stream."""

WINDOW_BLOCKS = 64
WINDOW_BLOCKS_MIN = 8
LEAD_BLOCKS_MAX = 256
"""Further ahead of a cursor nothing is fetched: its reader may never get there."""


@dataclass(slots=True)
class Cursor:
    position: int
    moved_s: float
    run: int
    """How many blocks it has gone on since it was first seen."""

    idle_s: float = IDLE_S
    """For how long it may stand still."""


class Cursors:
    """The streams in one file of *block_count* blocks."""

    def __init__(self, block_count: int) -> None:
        self._block_count = block_count
        self._cursors: list[Cursor] = []
        self.wants_all = False
        """Somebody wants the whole file here, in whatever order."""

    def note(self, index: int, now_s: float) -> None:
        """Note that a stream has come to a block, or begins there."""
        for at, cursor in enumerate(self._cursors):
            if -NEAR_BLOCKS <= index - cursor.position <= NEAR_BLOCKS:
                if index > cursor.position:
                    cursor.run += index - cursor.position
                    cursor.position = index
                cursor.moved_s, cursor.idle_s = now_s, IDLE_S
                self._cursors.insert(0, self._cursors.pop(at))
                return
        self._cursors.insert(0, Cursor(index, now_s, WINDOW_BLOCKS_MIN))
        del self._cursors[CURSORS_MAX:]

    def guess(self, index: int, now_s: float) -> None:
        """Suppose for a moment that who waits for a block will read on from there."""
        self._cursors.insert(0, Cursor(index, now_s, WINDOW_BLOCKS_MIN, GUESSED_S))
        del self._cursors[CURSORS_MAX:]

    def due_s(self) -> float:
        """Return when the next of them has stood still for too long; inf without any."""
        return min((c.moved_s + c.idle_s for c in self._cursors), default=float("inf"))

    def expire(self, now_s: float) -> bool:
        """Forget cursors that have not moved for long; say whether there were any."""
        before = len(self._cursors)
        self._cursors = [c for c in self._cursors if now_s < c.moved_s + c.idle_s]
        return len(self._cursors) < before

    @property
    def is_idle(self) -> bool:
        return not self._cursors and not self.wants_all

    def window(self, mine: int, *, helpers: int = 0) -> int:
        """Return the blocks to fetch next, of those that are not *mine*.

        Where many read at once, *helpers* of them known to this one, a narrow window would
        leave most of them without a block that others lack.
        """
        missing = ~mine & ((1 << self._block_count) - 1)
        if not self._cursors:
            return first(missing, WINDOW_BLOCKS) if self.wants_all else 0
        share = max(WINDOW_BLOCKS_MIN, WINDOW_BLOCKS // len(self._cursors))
        window = 0
        for cursor in self._cursors:
            lead = min(self._block_count, cursor.position + LEAD_BLOCKS_MAX)
            width = min(share, 2 * max(cursor.run, helpers))
            window |= first(missing & span(cursor.position, lead), width)
        if self.wants_all and not window:
            return first(missing, WINDOW_BLOCKS)
        return window
