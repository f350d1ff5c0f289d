"""One at a time changes what is at a path: its directory's owner says who.

A turn is taken before the under-store may show something, and given back once all know of it.
So nobody takes what another host of the mesh has just put there for a stranger's, and news of
one path come in the order in which it was changed. A turn that is not given back ends by
itself: what the under-store compares is what keeps things right then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from mesh.clock import Clock, monotonic_s
from mesh.errors import Unavailable
from mesh.paths import spot_of
from mesh.peer.once import quietly
from mesh.peer.shards import Shards
from mesh.store.drafts import new_token
from mesh.understore.table import MountTable
from mesh.wire.messages import Nothing
from mesh.wire.writes import TurnRequest

TURN_S = 60.0
WAIT_S = 35.0
"""Less than who asks waits for an answer."""

WAITING_MAX = 4096
LINES_MAX = 65_536


class _Line:
    """Who has the turn at one path, and who waits for it."""

    def __init__(self) -> None:
        self.token = ""
        self.until_s = 0.0
        self.waiting: deque[asyncio.Future[None]] = deque()


class Turns:
    """The turns at paths whose directories this peer owns, and those that it asks for."""

    def __init__(self, shards: Shards, table: MountTable, clock: Clock = monotonic_s) -> None:
        self._shards = shards
        self._table = table
        self._clock = clock
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def of(self, *paths: str) -> AsyncIterator[None]:
        """Have the turn at these paths; without owners that answer, go on without."""
        token = new_token()
        taken: list[str] = []
        try:
            for path in sorted(set(paths)):
                taken.append(path)
                await self._ask(TurnRequest(path, token))
            yield
        finally:
            for path in taken:
                await quietly(self._ask(TurnRequest(path, token, is_over=True)))

    async def _ask(self, request: TurnRequest) -> None:
        directory = spot_of(self._table, request.path).directory
        nearer = self._shards.nearer(directory)
        if nearer:
            with suppress(Unavailable):
                await self._shards.in_order(nearer[:1], lambda p: self._shards.turn(p, request))
                return
        with suppress(Unavailable):
            await self.take(request)

    async def take(self, request: TurnRequest) -> Nothing:
        """Give somebody the turn at a path, or take it back, as an owner."""
        if request.is_over:
            known = self._lines.get(request.path)
            if known is not None and known.token == request.token:
                self._next(request.path, known)
            return Nothing()
        if len(self._lines) >= LINES_MAX:
            self._forget_ended()
        line = self._lines.setdefault(request.path, _Line())
        deadline_s = self._clock() + WAIT_S
        while line.token and line.token != request.token:
            rest_s = min(line.until_s, deadline_s) - self._clock()
            if rest_s <= 0 and self._clock() >= line.until_s:
                break  # who had it is gone
            if rest_s <= 0 or len(line.waiting) >= WAITING_MAX:
                raise Unavailable(f"{request.path}: others change it all the time")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            line.waiting.append(waiter)
            try:
                async with asyncio.timeout(rest_s):
                    await waiter
            except TimeoutError:
                continue
            except asyncio.CancelledError:
                if waiter.done() and not line.token:
                    self._next(request.path, line)  # the next one is to have it then
                raise
        line.token, line.until_s = request.token, self._clock() + TURN_S
        self._lines[request.path] = line
        return Nothing()

    def _forget_ended(self) -> None:
        """Forget the turns that nobody has given back in time."""
        now_s = self._clock()
        ended = [p for p, line in self._lines.items() if line.until_s <= now_s and not line.waiting]
        for path in ended:
            del self._lines[path]

    def _next(self, path: str, line: _Line) -> None:
        line.token = ""
        while line.waiting:
            waiter = line.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        if self._lines.get(path) is line:
            del self._lines[path]
