"""Who owns which block: a ring that never changes once built.

A `Ring` is a snapshot. When membership changes, the next one is built and
swapped in one assignment, so a read in flight keeps the ring it started with
and no lock is needed. Two nodes with the same members build equal rings.

uhashring computes the points (its MetaRing; never its `ketama` mode, which
moves keys between unchanged peers); we freeze them into arrays and walk those,
because `HashRing.range` copies the tail of its key list on every call (about 1
ms with 160,000 points, against 9 us for the walk here).
"""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from uhashring import HashRing

from mesh.blocks import BlockKey

POINTS_PER_PEER = 256
"""Equal peers then differ by about 6 % in load (1 / sqrt(256)); 128 of them by 17 %
at the most. More points do not help a hot file: its blocks are too few."""

PLACES = 2**64
"""Of the continuum."""


@dataclass(frozen=True, slots=True)
class RingMember:
    """What placement needs to know of a peer."""

    peer: str
    zone: str = ""
    """Peers of one zone fail together; copies go to distinct zones while they last."""

    weight: float = 1.0
    """Relative capacity; over 0, up to 4."""

    identity: str = ""
    """What its points are hashed from; its name where it has no other identity."""


def place_of(key: str | bytes) -> int:
    """Return the place of a key on the continuum, 0 to 2**64 - 1."""
    data = key.encode() if isinstance(key, str) else key
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


class Ring:
    """Maps a block to its owners, nearest first."""

    def __init__(
        self, members: Iterable[RingMember], *, points_per_peer: int = POINTS_PER_PEER
    ) -> None:
        """Freeze the continuum of *members*; 1,000 of them take 0.6 s: do it in a thread."""
        # Sorted, so that the ring depends on the members alone and not on the
        # order in which they became known.
        self.members = tuple(sorted(members, key=lambda member: member.peer))
        nodes = {
            str(number): {"vnodes": max(1, round(points_per_peer * member.weight))}
            for number, member in enumerate(self.members)
        }
        # Points are hashed from the peer's identity, not from its number in this ring.
        identities = {str(n): m.identity or m.peer for n, m in enumerate(self.members)}
        continuum = HashRing(
            nodes=nodes, hash_fn=lambda point: place_of(_identified(point, identities))
        )
        points = continuum.get_points() if self.members else []
        self._places = array("Q", (place for place, _ in points))
        self._numbers = array("H", (int(number) for _, number in points))

    def owners(self, key: BlockKey | bytes, *, copies: int) -> list[str]:
        """Return at most *copies* distinct peers for *key*; the first is the primary.

        They stand in distinct zones while zones last; then the walk goes on with
        the nearest peers that it had passed over.
        """
        if not self._places:
            return []
        place = place_of(_key_bytes(key) if isinstance(key, BlockKey) else key)
        wanted = min(copies, len(self.members))
        taken: list[int] = []
        passed: list[int] = []
        zones: set[str] = set()
        zone_count = len({member.zone for member in self.members})
        seen: set[int] = set()
        step = bisect(self._places, place)
        while len(taken) < wanted and len(zones) < zone_count:
            number = self._numbers[step % len(self._numbers)]
            step += 1
            if number in seen:
                continue
            seen.add(number)
            zone = self.members[number].zone
            (passed if zone in zones else taken).append(number)
            zones.add(zone)
        while len(taken) + len(passed) < wanted:
            number = self._numbers[step % len(self._numbers)]
            step += 1
            if number not in seen:
                seen.add(number)
                passed.append(number)
        return [self.members[number].peer for number in (taken + passed)[:wanted]]

    def arcs(self) -> Iterator[tuple[int, str]]:
        """Yield each arc by the place where it ends, and its primary; the last place of
        the continuum ends the arc that wraps round to the first point."""
        for place, number in zip(self._places, self._numbers, strict=True):
            yield place, self.members[number].peer
        if self._places:
            yield PLACES, self.members[self._numbers[0]].peer

    def shares(self) -> dict[str, float]:
        """Return the part of the continuum that each peer is primary of; they add up to 1."""
        shares = dict.fromkeys((member.peer for member in self.members), 0)
        previous = 0
        for end, peer in self.arcs():
            shares[peer] += end - previous
            previous = end
        return {peer: places / PLACES for peer, places in shares.items()}


def _key_bytes(key: BlockKey) -> bytes:
    return key.version + key.index.to_bytes(8, "big")


def _identified(point: str, identities: dict[str, str]) -> str:
    """Turn uhashring's "number-k" into "identity-k"."""
    number, _, copy = point.partition("-")
    return f"{identities[number]}-{copy}"
