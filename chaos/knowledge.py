"""When did all know? Reads what `watch` wrote down. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GONE = frozenset({"dead", "left"})
WELL = frozenset({"active", "alive", "up"})


@dataclass(frozen=True, slots=True)
class Sight:
    """How one peer saw the others at a moment."""

    at_s: float
    by: str
    states: dict[str, str]


def parsed(lines: Iterable[str]) -> list[Sight]:
    """Return what the lines say; a line that is half written is left out."""
    sights = []
    for line in lines:
        try:
            at_s, by, states, *_ = json.loads(line)
        except ValueError:
            continue
        if states:
            sights.append(Sight(at_s, by, states))
    return sights


def all_knew_s(
    sights: Sequence[Sight],
    *,
    about: str,
    observers: Sequence[str],
    since_s: float,
    states: frozenset[str] = GONE,
) -> float | None:
    """Return how long after *since_s* the last observer saw a peer in one of *states*.

    A peer that is missing from a list counts as gone. None: somebody never did.
    """
    firsts = [
        min(
            (
                sight.at_s
                for sight in sights
                if sight.by == observer
                and sight.at_s >= since_s
                and sight.states.get(about, "left") in states
            ),
            default=None,
        )
        for observer in observers
    ]
    known = [first for first in firsts if first is not None]
    return max(known) - since_s if known and len(known) == len(firsts) else None
