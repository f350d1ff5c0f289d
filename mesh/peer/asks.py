"""Questions that are under way, and that end when the peer that was asked has died.

A process that is stopped, or a machine that is cut off, refuses nothing: who asked it would
wait for as long as the longest answer may take, although all others know that it is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from mesh.errors import PeerUnavailable

A = TypeVar("A")


class Asks:
    """Who is waited for."""

    def __init__(self) -> None:
        self._waits: dict[str, set[asyncio.Timeout]] = {}

    async def answer(self, peer: str, asked: Awaitable[A]) -> A:
        """Return what *asked* does; `PeerUnavailable` when *peer* dies before."""
        waits = self._waits.setdefault(peer, set())
        wait = asyncio.timeout(None)
        try:
            async with wait:
                waits.add(wait)
                return await asked
        except TimeoutError:
            if not wait.expired():
                raise
            raise PeerUnavailable(peer, "died before it answered") from None
        finally:
            waits.discard(wait)

    def died(self, peer: str) -> None:
        """End what *peer* was asked."""
        now_s = asyncio.get_running_loop().time()
        for wait in self._waits.pop(peer, set()):
            wait.reschedule(now_s)
