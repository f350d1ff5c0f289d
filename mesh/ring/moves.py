"""What changes hands between two rings, to the place: arithmetic only.

before   ── a ──┬─── b ───┬── a ──
after    ── a ──┬ c ┬─ b ─┬── a ──      moved: the arc under c, from b to c
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mesh.ring.ring import PLACES, Ring


@dataclass(frozen=True, slots=True)
class Move:
    """A part of the continuum that has another primary than before."""

    giver: str
    taker: str
    share: float
    """0 to 1, of all keys."""


def moves(before: Ring, after: Ring) -> list[Move]:
    """Return who gives how much to whom, the largest first."""
    moved: Counter[tuple[str, str]] = Counter()
    for start, end, giver, taker in _arcs(before, after):
        if giver != taker:
            moved[giver, taker] += end - start
    return [Move(*pair, share=places / PLACES) for pair, places in moved.most_common()]


def moved_share(before: Ring, after: Ring) -> float:
    """Return the part of all keys that changes hands."""
    return sum(move.share for move in moves(before, after))


def collateral_share(before: Ring, after: Ring) -> float:
    """Return the part that moves between two peers that are the same in both rings.

    It is 0: a ring in which it is not moves data for nothing.
    """
    unchanged = {m.peer for m in set(before.members) & set(after.members)}
    return sum(m.share for m in moves(before, after) if {m.giver, m.taker} <= unchanged)


def _arcs(before: Ring, after: Ring) -> Iterator[tuple[int, int, str, str]]:
    """Yield the arcs that have one primary in each ring: start, end, and both of them."""
    old, new = list(before.arcs()), list(after.arcs())
    if not old or not new:
        return
    start = i = j = 0
    while start < PLACES:
        end = min(old[i][0], new[j][0])
        if end > start:
            yield start, end, old[i][1], new[j][1]
        start = end
        i += old[i][0] == end
        j += new[j][0] == end
