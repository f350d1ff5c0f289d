"""Which blocks go when room is needed: arithmetic only, no disk and no clock.

Copies go before owned blocks, since the owner still has them for everybody, and what
its second owner has spare goes between the two: while there is room, a block then
outlives a restart of its first owner. Among equals the version goes first that was
read longest ago. Leased blocks stay.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from mesh.blocks import BlockKey

START_RATIO = 0.90
STOP_RATIO = 0.85
FREE_STEP = 0.05
"""Eviction starts over 90 % of the capacity, or under the ratio of disk that must
stay free, and stops 5 points beyond: so that it runs rarely, and then for long."""


@dataclass(frozen=True, slots=True)
class Room:
    """How full the node is."""

    used_bytes: int
    capacity_bytes: int
    disk_free_bytes: int
    disk_total_bytes: int
    free_space_ratio: float
    """The part of the disk that stays free for everyone else."""

    def excess_bytes(self) -> int:
        """Return how many bytes should go now; 0 while no watermark is crossed."""
        over_bytes = under_bytes = 0
        if self.used_bytes > START_RATIO * self.capacity_bytes:
            over_bytes = self.used_bytes - int(STOP_RATIO * self.capacity_bytes)
        if self.disk_free_bytes < self.free_space_ratio * self.disk_total_bytes:
            target = self.free_space_ratio + FREE_STEP
            under_bytes = int(target * self.disk_total_bytes) - self.disk_free_bytes
        return min(max(over_bytes, under_bytes), self.used_bytes)

    def is_full(self, more_bytes: int) -> bool:
        """Whether *more_bytes* would not fit at all."""
        return (
            self.used_bytes + more_bytes > self.capacity_bytes or self.disk_free_bytes < more_bytes
        )


class Rank(IntEnum):
    """What a block is to the node that has it; its number is kept in the record."""

    OWNED = 0
    COPY = 1
    SPARE = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block that could go."""

    key: BlockKey
    length_bytes: int
    rank: Rank


def victims(
    oldest_first: Callable[[], Iterable[Candidate]],
    excess_bytes: int,
    *,
    leased: Container[BlockKey],
) -> Iterator[Candidate]:
    """Yield the blocks to drop until *excess_bytes* are free or none is left.

    *oldest_first* is asked for each rank anew, so that the list of all blocks never
    has to be in memory.
    """
    for rank in (Rank.COPY, Rank.SPARE, Rank.OWNED):
        for candidate in oldest_first():
            if excess_bytes <= 0:
                return
            if candidate.rank is rank and candidate.key not in leased:
                excess_bytes -= candidate.length_bytes
                yield candidate
