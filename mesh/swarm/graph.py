"""Who is whose neighbor among the readers of one version: a random regular graph, nearly.

Handed out by the owner of the file's directory. All of it is soft: who speaks no more is
forgotten, and an owner that knows nothing learns it from those who say whom they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

DEGREE = 16
DEGREE_MAX = 24
DEGREE_MIN = 10
"""Who has fewer gets new ones."""

NEAR = 12
"""Of DEGREE in the own zone, where it has so many readers."""

EXPIRES_S = 6.0
INTERVAL_S = 2.0
"""How often a reader says that it is there."""


@dataclass(slots=True)
class _Reader:
    zone: str
    seen_s: float
    done: float = 0.0
    """The part of the file that it has."""

    neighbors: dict[str, None] = field(default_factory=dict)


class Graph:
    """The readers of one version."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._readers: dict[str, _Reader] = {}

    def __len__(self) -> int:
        return len(self._readers)

    @property
    def readers(self) -> list[tuple[str, float, int]]:
        """Each reader, the part of the file that it has, and how many neighbors."""
        return [(name, r.done, len(r.neighbors)) for name, r in self._readers.items()]

    def join(
        self,
        now_s: float,
        name: str,
        *,
        zone: str = "",
        done: float = 0.0,
        known: Sequence[str] = (),
        gone: Sequence[str] = (),
    ) -> list[str]:
        """Note that a reader is there, with those it knows; return its neighbors.

        *gone* are those that do not answer it.
        """
        self.expire(now_s)
        reader = self._readers.get(name)
        if reader is None:
            reader = self._readers[name] = _Reader(zone, now_s)
        reader.seen_s, reader.done = now_s, done
        for other in known:
            if other in self._readers and other not in gone:
                self._link(name, other)
        for other in gone:
            self._unlink(name, other)
        if len(self._readers) <= DEGREE + 1:
            for other in self._readers:
                if other not in gone:
                    self._link(name, other)
        elif len(reader.neighbors) < DEGREE_MIN:
            self._choose(name, reader, DEGREE // 2 if not reader.neighbors else DEGREE, gone)
        return list(reader.neighbors)

    def leave(self, name: str) -> None:
        """Forget a reader."""
        reader = self._readers.pop(name, None)
        for other in reader.neighbors if reader else ():
            if other in self._readers:
                self._readers[other].neighbors.pop(name, None)

    def expire(self, now_s: float) -> None:
        """Forget who has not spoken for too long."""
        for name in [n for n, r in self._readers.items() if now_s - r.seen_s > EXPIRES_S]:
            self.leave(name)

    def _link(self, one: str, other: str) -> None:
        if one != other:
            self._readers[one].neighbors[other] = None
            self._readers[other].neighbors[one] = None

    def _unlink(self, one: str, other: str) -> None:
        self._readers[one].neighbors.pop(other, None)
        if other in self._readers:
            self._readers[other].neighbors.pop(one, None)

    def _choose(self, name: str, reader: _Reader, count: int, gone: Sequence[str]) -> None:
        """Give a reader more neighbors: half as many as it is to have, because those who
        come later choose it as well; most of them in its zone, where it has enough."""
        free = [
            other
            for other, one in self._readers.items()
            if other != name
            and other not in reader.neighbors
            and other not in gone
            and len(one.neighbors) < DEGREE_MAX
        ]
        near = [other for other in free if self._readers[other].zone == reader.zone]
        far = [other for other in free if self._readers[other].zone != reader.zone]
        wanted = count - len(reader.neighbors)
        if len(near) >= NEAR and far:
            few = max(1, wanted * (DEGREE - NEAR) // DEGREE)
            chosen = self._some(near, wanted - few) + self._some(far, few)
        else:
            chosen = self._some(free, wanted)
        for other in chosen:
            self._link(name, other)

    def _some(self, names: list[str], count: int) -> list[str]:
        """Return some of *names*, those with few neighbors rather than those with many."""
        drawn = self._random.sample(names, min(len(names), 2 * count)) if count > 0 else []
        drawn.sort(key=lambda name: len(self._readers[name].neighbors))
        return drawn[:count]
