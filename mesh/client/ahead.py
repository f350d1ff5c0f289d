"""What to read ahead: arithmetic only.

A handle may carry several sequential streams at once, because loaders share one
descriptor among threads, so each handle keeps a few cursors. A read that goes on
where a cursor stands moves it and doubles its window; a read that goes on nowhere
starts a cursor with no window, and random readers pay nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.blocks import MIB

CURSORS_MAX = 16
WINDOW_BYTES_MIN = 2 * MIB
WINDOW_BYTES_MAX = 32 * MIB
SLACK_BYTES = 2 * MIB
"""The kernel's own read-ahead sends its requests out of order by so much."""


@dataclass(slots=True)
class _Cursor:
    position_bytes: int
    """Where the stream goes on."""

    window_bytes: int
    asked_bytes: int
    """Up to where blocks were asked for ahead."""


class ReadAhead:
    """The streams of one open file."""

    def __init__(self, *, size_bytes: int, block_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._block_bytes = block_bytes
        self._cursors: list[_Cursor] = []

    def note(self, offset_bytes: int, size_bytes: int) -> range:
        """Note a read; return the indexes of the blocks to bring ahead of it, maybe none."""
        end_bytes = offset_bytes + size_bytes
        cursor = self._cursor_at(offset_bytes)
        if cursor is None:
            self._cursors.insert(0, _Cursor(end_bytes, 0, end_bytes))
            del self._cursors[CURSORS_MAX:]
            return range(0)
        self._cursors.remove(cursor)
        self._cursors.insert(0, cursor)
        if end_bytes <= cursor.position_bytes:
            return range(0)
        cursor.position_bytes = end_bytes
        doubled_bytes = max(WINDOW_BYTES_MIN, 2 * cursor.window_bytes)
        cursor.window_bytes = min(WINDOW_BYTES_MAX, doubled_bytes)
        return self._next_blocks(cursor)

    def _cursor_at(self, offset_bytes: int) -> _Cursor | None:
        for cursor in self._cursors:
            if abs(offset_bytes - cursor.position_bytes) <= SLACK_BYTES:
                return cursor
        return None

    def _next_blocks(self, cursor: _Cursor) -> range:
        """Return the blocks of the window that were not asked for yet.

        New ones are asked for when half of what was asked is used up, so that a
        stream causes one burst for several blocks and not a trickle.
        """
        left_bytes = cursor.asked_bytes - cursor.position_bytes
        if left_bytes > cursor.window_bytes // 2:
            return range(0)
        start_bytes = max(cursor.asked_bytes, cursor.position_bytes)
        stop_bytes = min(cursor.position_bytes + cursor.window_bytes, self._size_bytes)
        first = -(-start_bytes // self._block_bytes)
        last = -(-stop_bytes // self._block_bytes)
        cursor.asked_bytes = max(cursor.asked_bytes, last * self._block_bytes)
        return range(first, last)
