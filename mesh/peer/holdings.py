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
    """Answers that serve for a second, or for longer when they are slow to come."""

    def __init__(
        self, ask: Callable[[str, FileVersion], Awaitable[frozenset[int]]], clock: Clock
    ) -> None:
        """*ask* returns which blocks of a version a peer has; raises if it does not answer."""
        self._ask = ask
        self._clock = clock
        self._kept: OrderedDict[tuple[str, bytes], tuple[float, frozenset[int]]] = OrderedDict()
        """Until when."""

    async def of(self, peer: str, file: FileVersion) -> frozenset[int]:
        """Return which blocks of a version a peer has; none when it does not answer."""
        now_s = self._clock()
        kept = self._kept.get((peer, file.id))
        if kept is not None and now_s < kept[0]:
            return kept[1]
        indexes: frozenset[int] = frozenset()
        with suppress(MeshError):
            indexes = await self._ask(peer, file)
        took_s = self._clock() - now_s
        until_s = now_s + min(KEPT_S_MAX, max(KEPT_S, KEPT_TIMES * took_s))
        self._kept[peer, file.id] = (until_s, indexes)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return indexes

    def clear(self) -> None:
        """Forget what was said: things have changed."""
        self._kept.clear()
