"""A sign of life, asked for on a connection of its own.

A peer whose megabytes fill the cable, or that waits for a disk, is not dead. A small
question that need not queue behind them tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from mesh.clock import Clock
from mesh.errors import MeshError
from mesh.wire.hedged import Signs


class Pulses:
    """Asks peers whether they live, each one at most once at a time."""

    def __init__(self, ask: Callable[[str], Awaitable[object]], signs: Signs, clock: Clock) -> None:
        """Have *ask* raise a `MeshError` when a peer does not answer in time."""
        self._ask = ask
        self._signs = signs
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def feel(self, peer: str) -> None:
        """Ask *peer*, unless that is under way; an answer is a sign of life."""
        if peer not in self._tasks:
            task = asyncio.ensure_future(self._feel(peer))
            self._tasks[peer] = task
            task.add_done_callback(lambda done: self._tasks.pop(peer, None))

    async def _feel(self, peer: str) -> None:
        with suppress(MeshError):
            await self._ask(peer)
            self._signs.heard(peer, self._clock())

    async def aclose(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
