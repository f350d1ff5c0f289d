"""Bytes in flight: nobody starts what there is no memory for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import Gauge


class Budget:
    """A number of bytes, lent first come first served."""

    def __init__(self, limit_bytes: int, gauge: Gauge) -> None:
        self.limit_bytes = limit_bytes
        self.taken_bytes = 0
        self._gauge = gauge
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def is_half_spent(self) -> bool:
        """Whether work that nobody waits for should be left undone."""
        return bool(self._waiting) or self.taken_bytes > self.limit_bytes // 2

    @asynccontextmanager
    async def lend(self, size_bytes: int) -> AsyncIterator[None]:
        """Wait until *size_bytes* fit; more than the whole budget count as the whole."""
        size_bytes = min(size_bytes, self.limit_bytes)
        if self._waiting or self.taken_bytes + size_bytes > self.limit_bytes:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size_bytes, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give_back(size_bytes)
                raise
        else:
            self._take(size_bytes)
        try:
            yield
        finally:
            self._give_back(size_bytes)

    def _take(self, size_bytes: int) -> None:
        self.taken_bytes += size_bytes
        self._gauge.set(self.taken_bytes)

    def _give_back(self, size_bytes: int) -> None:
        self._take(-size_bytes)
        while self._waiting:
            wanted_bytes, turn = self._waiting[0]
            if not turn.done() and self.taken_bytes + wanted_bytes > self.limit_bytes:
                return
            self._waiting.popleft()
            if not turn.done():
                self._take(wanted_bytes)
                turn.set_result(None)
