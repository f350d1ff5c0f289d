"""Whom one reader can ask: its neighbors, how fast they are, and who is better left alone.

busy      said so, until it says it may be asked again
away      did not answer: AWAY_S
slow      took many times as long as others do: asked last, for longer each time
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from random import Random

AWAY_S = 30.0
"""A source that did not answer is left alone for so long (Kraken's blacklist)."""

BUSY_S_MAX = 2.0
SLOW_TIMES = 5.0
"""A source that takes so many times the median is slow (fanout.md 4: a fifth of the rate)."""

SLOW_MEDIANS = 25.0
"""It is asked last for so many medians, twice as long each time that it is seen to be."""

SLOW_DOUBLED_MAX = 4
RATE_WEIGHT = 0.3
NEAR_WEIGHT = 4.0
TOOK_KEPT = 64
TOOK_MIN = 8
"""Of so few blocks nobody can say what is slow."""


@dataclass(slots=True)
class Neighbor:
    zone: str
    has: int = 0
    free_slots: int = 1
    flying: int = 0
    rate: float = 0.0
    """Blocks a second while one is sent; 0 while nothing came."""

    blocks: int = 0


class Sources:
    """The neighbors of one reader."""

    def __init__(self, zone: str, random: Random, at_once: int) -> None:
        """Ask each source for *at_once* blocks at most."""
        self.neighbors: dict[str, Neighbor] = {}
        self.median_s = 0.0
        """What a block takes, from whoever; 0 while nobody can say."""

        self._zone = zone
        self._random = random
        self._at_once = at_once
        self._quiet: dict[str, float] = {}
        """By peer: until when it is busy, or taken to be away."""

        self._slow: dict[str, tuple[float, int]] = {}
        """By peer: until when it is asked last, and how often it was seen to be slow."""

        self._took_s: deque[float] = deque(maxlen=TOOK_KEPT)

    # What is known

    def expire(self, now_s: float) -> None:
        """Ask those again who were to be left alone until now."""
        self._quiet = {p: at_s for p, at_s in self._quiet.items() if at_s > now_s}

    def quiet_until_s(self) -> float:
        """Return when the first of those who are left alone can be asked again; inf if none."""
        return min(self._quiet.values(), default=float("inf"))

    def is_quiet(self, peer: str) -> bool:
        return peer in self._quiet

    def is_away(self, peer: str, now_s: float) -> bool:
        """Whether a peer did not answer; who is busy is not away."""
        return self._quiet.get(peer, 0.0) > now_s + BUSY_S_MAX

    def is_slow(self, peer: str, now_s: float) -> bool:
        """Whether a peer takes many times as long as others do."""
        return peer in self._slow and self._slow[peer][0] > now_s

    # What happens

    def leave_alone(self, peer: str, until_s: float) -> None:
        """Ask a peer nothing until then."""
        self._quiet[peer] = until_s

    def flew(self, peer: str) -> None:
        """Note that a neighbor, if it is one, is asked for a block."""
        if (neighbor := self.neighbors.get(peer)) is not None:
            neighbor.flying += 1
            neighbor.free_slots = max(0, neighbor.free_slots - 1)

    def landed(self, peer: str) -> None:
        """Note that what a neighbor was asked for has ended, in whatever way."""
        neighbor = self.neighbors.get(peer)
        if neighbor is not None and neighbor.flying:
            neighbor.flying -= 1

    def sent(self, peer: str, took_s: float, now_s: float) -> None:
        """Note how long a block from a peer took, since it was asked for."""
        self._took_s.append(took_s)
        self.median_s = sorted(self._took_s)[len(self._took_s) // 2]
        neighbor = self.neighbors.get(peer)
        if neighbor is not None:
            rate = 1 / took_s
            neighbor.rate += (rate - neighbor.rate) * (RATE_WEIGHT if neighbor.blocks else 1.0)
            neighbor.blocks += 1
        if took_s <= 2 * self.median_s:
            self._slow.pop(peer, None)
        else:
            self.dragged(peer, took_s, now_s)

    def dragged(self, peer: str, took_s: float, now_s: float) -> None:
        """Note that a block from a peer took so long, or takes it still."""
        is_known = len(self._took_s) >= TOOK_MIN
        if is_known and took_s > SLOW_TIMES * self.median_s and not self.is_slow(peer, now_s):
            times = self._slow.get(peer, (0.0, 0))[1]
            for_s = SLOW_MEDIANS * self.median_s * 2 ** min(times, SLOW_DOUBLED_MAX)
            self._slow[peer] = (now_s + for_s, times + 1)

    # Who is asked

    def usable(self, now_s: float) -> Iterator[Neighbor]:
        """Yield the neighbors that could be asked for one more block that nobody waits for."""
        for peer, neighbor in self.neighbors.items():
            is_free = neighbor.flying < self._at_once and peer not in self._quiet
            if is_free and not self.is_slow(peer, now_s):
                yield neighbor

    def all_with(self, index: int) -> list[str]:
        """Return the neighbors that have a block, those that are left alone last."""
        found = [peer for peer, neighbor in self.neighbors.items() if neighbor.has >> index & 1]
        return sorted(found, key=self.is_quiet)

    def one_with(
        self, index: int, now_s: float, *, more: int = 0, others_than: Collection[str] = ()
    ) -> str | None:
        """Return a neighbor that has a block, drawn by zone, rate and free slots; the slow
        ones only when there is no other. Each may be asked for *more* than usual."""
        well: list[tuple[str, float]] = []
        slow: list[tuple[str, float]] = []
        for peer, neighbor in self.neighbors.items():
            if not neighbor.has >> index & 1 or neighbor.flying >= self._at_once + more:
                continue
            if peer in self._quiet or peer in others_than:
                continue
            found = slow if self.is_slow(peer, now_s) else well
            found.append((peer, self._weight(neighbor)))
        return self._drawn(well or slow) if well or slow else None

    def _weight(self, neighbor: Neighbor) -> float:
        rate = neighbor.rate or (1 / self.median_s if self.median_s else 1.0)
        weight = rate * max(0.5, neighbor.free_slots)
        return weight * (NEAR_WEIGHT if neighbor.zone == self._zone else 1.0)

    def _drawn(self, weighted: list[tuple[str, float]]) -> str:
        at = self._random.random() * sum(weight for _, weight in weighted)
        for peer, weight in weighted:
            at -= weight
            if at <= 0:
                return peer
        return weighted[-1][0]
