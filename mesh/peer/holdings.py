"""What other peers said a moment ago that they have of a version."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress

from mesh.blocks import FileVersion
from mesh.clock import Clock
from mesh.errors import MeshError

KEPT_S = 1.0
KEPT_TIMES = 10.0
"""Times what the answer took to come: who fills block after block of a version on a busy machine
spends a tenth of that on asking, not all of it."""

KEPT_S_MAX = 5.0
KEPT_MAX = 4096


class Holdings:
    """Answers that serve for a second, or for longer when they were slow to come."""

    def __init__(
        self, ask: Callable[[str, FileVersion], Awaitable[frozenset[int]]], clock: Clock
    ) -> None:
        """*ask* returns which blocks of a version a peer has; raises if it does not answer."""
        self._ask = ask
        self._clock = clock
        self._kept: OrderedDict[tuple[str, bytes], tuple[float, float, frozenset[int]]]
        self._kept = OrderedDict()
        """When it was asked, for how long that serves, and what was said."""

    async def of(self, peer: str, file: FileVersion, *, is_fresh: bool = False) -> frozenset[int]:
        """Return which blocks of a version a peer has; none when it does not answer.

        With *is_fresh* as of a second ago at most, for whom a read fails without them.
        """
        now_s = self._clock()
        if (kept := self._kept.get((peer, file.id))) is not None:
            asked_s, kept_s, indexes = kept
            if now_s < asked_s + (KEPT_S if is_fresh else kept_s):
                return indexes
        indexes, kept_s = frozenset(), KEPT_S
        with suppress(MeshError):
            indexes = await self._ask(peer, file)
            kept_s = min(KEPT_S_MAX, max(KEPT_S, KEPT_TIMES * (self._clock() - now_s)))
        self._kept[peer, file.id] = (now_s, kept_s, indexes)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return indexes

    def clear(self) -> None:
        """Forget what was said: things have changed."""
        self._kept.clear()
