"""What a seed stands for: which faults, on whom, when. Draws only, does nothing.

The same seed and the same number of peers give the same plan. No plan takes more
than a minority of the peers out at a time, and none touches the under-store: it
can always be read, so every read must end right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

KINDS = ("stop", "cut", "one-way", "loss", "slow-link", "disk-errors", "flip", "restart", "kill")
"""Faults that a mesh gets over with no operator, once they have ended.

`slow-fsync` can be drawn as well: a peer to which nothing new comes has nothing to sync.
"""

FIRST_AT_S = 1.0
LAST_AT_S = 9.0


@dataclass(frozen=True, slots=True, order=True)
class Planned:
    """One fault of a plan."""

    at_s: float
    """Counted from the moment the load is steady."""
    for_s: float
    kind: str
    victim: int
    """Which peer, counted from 0."""

    def __str__(self) -> str:
        ends_s = self.at_s + self.for_s
        return f"{self.kind} of peer {self.victim + 1} from {self.at_s:.1f} to {ends_s:.1f} s"


def draw(seed: int, *, peers: int, kinds: Sequence[str] = KINDS) -> list[Planned]:
    """Return two to four faults, each with a victim of its own, in order of time."""
    dice = Random(seed)
    count = min(dice.randint(2, 4), max(1, (peers - 1) // 2) + 1, peers - 1)
    victims = dice.sample(range(peers), count)
    plan: list[Planned] = []
    for kind, victim in zip(dice.sample(list(kinds), count), victims, strict=True):
        at_s = round(dice.uniform(FIRST_AT_S, LAST_AT_S), 1)
        planned = Planned(at_s, round(dice.uniform(1.0, 4.0), 1), kind, victim)
        plan.append(_after_the_crowd(planned, plan, most=max(1, (peers - 1) // 2)))
    return sorted(plan)


def at_once(plan: Sequence[Planned], at_s: float) -> int:
    """Return how many faults of a plan are on at a time."""
    return sum(each.at_s <= at_s < each.at_s + each.for_s for each in plan)


def _after_the_crowd(planned: Planned, plan: Sequence[Planned], *, most: int) -> Planned:
    """Put a fault off until fewer than *most* others are on, from its start to its end."""
    starts_s = [planned.at_s, *sorted(each.at_s + each.for_s for each in plan)]
    for at_s in starts_s:
        moved = Planned(max(at_s, planned.at_s), planned.for_s, planned.kind, planned.victim)
        moments = [moved.at_s, *(each.at_s for each in plan if moved.at_s <= each.at_s)]
        inside = [m for m in moments if m < moved.at_s + moved.for_s]
        if all(at_once(plan, moment) < most for moment in inside):
            return moved
    raise AssertionError("after the last fault there is room")


def soak(seed: int, *, rounds: int) -> list[int]:
    """Return the seeds of the rounds of a soak."""
    dice = Random(seed)
    return [dice.randrange(1_000_000) for _ in range(rounds)]
