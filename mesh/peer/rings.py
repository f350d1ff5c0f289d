"""Which ring belongs to a view of the mesh."""

from __future__ import annotations

from functools import lru_cache

from mesh.membership.view import View
from mesh.ring.ring import Ring, RingMember


def placement(view: View) -> tuple[tuple[str, str, float, str], ...]:
    """Return what the ring of a view hangs on."""
    return tuple((m.name, m.zone, m.weight * m.portion, m.id) for m in view.placed)


def ring_of(view: View) -> Ring:
    """Return the ring that every peer builds of this view."""
    return _ring_of(placement(view))


@lru_cache(maxsize=16)
def _ring_of(placed: tuple[tuple[str, str, float, str], ...]) -> Ring:
    """Peers of one process, and a view that comes back, share what took 3 ms to build."""
    return Ring(RingMember(*each) for each in placed)
