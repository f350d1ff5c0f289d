"""How many requests an under-store gets at once, and when one is repeated.

    SlowDown, 503, 429   half as many, at least one
    a window of answers  one more, at most what the mount table says

`Window` and `pauses_s` are decisions alone; `Gate` makes calls wait their turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from itertools import count
from random import Random

PAUSE_S = 0.05
PAUSE_S_MAX = 2.0


class Window:
    """How many requests may be under way: additive increase, multiplicative decrease."""

    def __init__(self, most: int) -> None:
        self.limit = most
        self._most = most
        self._answers = 0
        self._cuts = 0

    def ticket(self) -> int:
        """Return what tells whether a request began before the last cut."""
        return self._cuts

    def answered(self) -> None:
        self._answers += 1
        if self._answers >= self.limit:
            self._answers = 0
            self.limit = min(self._most, self.limit + 1)

    def slowed(self, ticket: int) -> None:
        """Halve the limit, once for all the requests that were under way together."""
        if ticket == self._cuts:
            self._cuts += 1
            self._answers = 0
            self.limit = max(1, self.limit // 2)


def pauses_s(random: Random) -> Iterator[float]:
    """Yield how long to wait before each repetition: longer and longer, never in step."""
    for attempt in count():
        yield random.uniform(0, min(PAUSE_S_MAX, PAUSE_S * 2 ** min(attempt, 10)))


class Gate:
    """Lets calls through, in order, as far as its window is open."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        if self._inside < self._window.limit and not self._waiting:
            self._inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn had come
                self.leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        self._inside -= 1
        while self._waiting and self._inside < self._window.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
