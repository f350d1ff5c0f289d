"""What a seed stands for: who dies, whose disk is full, when the under-store is away. No I/O.

Three lanes, each with one fault after the other; those of different lanes may meet. At most
one host's peer is dead at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from chaos.plan import Planned

DEATHS = {"kill": 3, "kill-host": 1}
KILLED_S = (0.5, 15.0)
HOST_GONE_S = (1.0, 8.0)
FULL_S = (3.0, 10.0)
BETWEEN_DEATHS_S = (2.0, 8.0)
BETWEEN_FULL_S = (6.0, 20.0)
FIRST_AT_S = 2.0


@dataclass(frozen=True, slots=True)
class Length:
    """How long a seed takes."""

    load_s: float
    away_s: float
    """For how long the under-store is away."""


FULL = Length(load_s=100.0, away_s=60.0)
SHORT = Length(load_s=26.0, away_s=10.0)


def draw(seed: int, *, hosts: int, length: Length) -> list[list[Planned]]:
    """Return the lanes of a seed, times counted from the start of the load."""
    dice = Random(f"{seed}/plan")
    return [
        _deaths(dice, hosts, length.load_s),
        _full_disks(dice, hosts, length.load_s),
        [_away(dice, length)],
    ]


def _deaths(dice: Random, hosts: int, load_s: float) -> list[Planned]:
    found: list[Planned] = []
    at_s = dice.uniform(FIRST_AT_S, 2 * FIRST_AT_S)
    while at_s < load_s - 3:
        kind = dice.choices(list(DEATHS), list(DEATHS.values()))[0]
        least_s, most_s = KILLED_S if kind == "kill" else HOST_GONE_S
        for_s = least_s * (most_s / least_s) ** dice.random()
        found.append(_planned(dice, hosts, at_s, min(for_s, load_s - at_s), kind))
        at_s += for_s + dice.uniform(*BETWEEN_DEATHS_S)
    return found


def _full_disks(dice: Random, hosts: int, load_s: float) -> list[Planned]:
    found: list[Planned] = []
    at_s = dice.uniform(FIRST_AT_S, BETWEEN_FULL_S[0])
    while at_s < load_s - FULL_S[0]:
        for_s = min(dice.uniform(*FULL_S), load_s - at_s)
        found.append(_planned(dice, hosts, at_s, for_s, "full"))
        at_s += for_s + dice.uniform(*BETWEEN_FULL_S)
    return found


def _away(dice: Random, length: Length) -> Planned:
    at_s = dice.uniform(FIRST_AT_S, length.load_s - length.away_s - FIRST_AT_S)
    return Planned(round(at_s, 1), length.away_s, "away", 0)


def _planned(dice: Random, hosts: int, at_s: float, for_s: float, kind: str) -> Planned:
    return Planned(round(at_s, 1), round(for_s, 1), kind, dice.randrange(hosts))
