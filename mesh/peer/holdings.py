"""What other peers said a moment ago that they have of a version."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress

from mesh.blocks import FileVersion
from mesh.clock import Clock
from mesh.errors import MeshError

KEPT_S = 1.0
KEPT_MAX = 4096


class Holdings:
    """Answers that serve for a second."""

    def __init__(
        self, ask: Callable[[str, FileVersion], Awaitable[frozenset[int]]], clock: Clock
    ) -> None:
        """*ask* returns which blocks of a version a peer has; raises if it does not answer."""
        self._ask = ask
        self._clock = clock
        self._kept: OrderedDict[tuple[str, bytes], tuple[float, frozenset[int]]] = OrderedDict()

    async def of(self, peer: str, file: FileVersion) -> frozenset[int]:
        """Return which blocks of a version a peer has; none when it does not answer."""
        now_s = self._clock()
        kept = self._kept.get((peer, file.id))
        if kept is not None and now_s - kept[0] < KEPT_S:
            return kept[1]
        indexes: frozenset[int] = frozenset()
        with suppress(MeshError):
            indexes = await self._ask(peer, file)
        self._kept[peer, file.id] = (now_s, indexes)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return indexes

    def clear(self) -> None:
        """Forget what was said: things have changed."""
        self._kept.clear()
