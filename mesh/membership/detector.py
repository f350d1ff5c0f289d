"""When a silent peer is suspected, and when it is dead: arithmetic only.

Fed with every sign of life and asked for a verdict; time is seconds on any clock
that never goes back. Used where membership asks the peers itself (`static`) or is
told of leases that end (`etcd`); gossip brings a detector of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.membership.view import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long silence is tolerated."""

    suspect_after_s: float = 1.2
    dead_after_s: float = 2.5
    """Dead everywhere within 3 s (design.md 8), probes each half second included."""

    def __post_init__(self) -> None:
        if not 0 < self.suspect_after_s < self.dead_after_s:
            raise ValueError("need 0 < suspect_after_s < dead_after_s")


class Detector:
    """The last sign of life of every peer."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._heard_s: dict[str, float] = {}

    def heard(self, peer: str, now_s: float) -> None:
        """Note a sign of life; late news never turns the clock back."""
        self._heard_s[peer] = max(now_s, self._heard_s.get(peer, now_s))

    def verdict(self, peer: str, now_s: float) -> State:
        """Return ACTIVE, SUSPECT or DEAD; one that was never heard is dead."""
        if peer not in self._heard_s:
            return State.DEAD
        silence_s = now_s - self._heard_s[peer]
        if silence_s < self._patience.suspect_after_s:
            return State.ACTIVE
        if silence_s < self._patience.dead_after_s:
            return State.SUSPECT
        return State.DEAD
