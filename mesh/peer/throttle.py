"""So many bytes each second."""

from __future__ import annotations


class Throttle:
    """So many bytes each second, no more: arithmetic only."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    def wait_s(self, size_bytes: int, now_s: float) -> float:
        """Take *size_bytes*; return how long to wait before the next are taken."""
        self._free_s = max(self._free_s, now_s) + size_bytes / self._bytes_per_s
        return self._free_s - now_s
